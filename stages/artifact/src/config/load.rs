//! Reads `pipeline.yaml`, and the files that it extends. The only file that knows serde_yaml.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_yaml::{Mapping, Value};

use super::{Pipeline, Sae};

/// One file of a pipeline: what it says itself.
struct Layer {
    path: PathBuf,
    sections: Mapping,
    /// The same, typed; what it leaves out are defaults.
    pipeline: Pipeline,
}

impl Layer {
    fn sets(&self, keys: &[&str]) -> bool {
        let mut keys = keys.iter();
        let section = keys.next().and_then(|key| self.sections.get(*key));
        section.is_some_and(|section| keys.try_fold(section, |value, key| value.get(*key)).is_some())
    }
}

/// Reads, parses and validates a pipeline, merged with what it extends.
///
/// Errors: a file cannot be read, extends itself, is no YAML of the expected shape (key, line and column are named), or a
/// value makes no sense (the file, the key and the reason are named).
pub fn load(path: &Path) -> Result<Pipeline> {
    let layers = layers(path)?;
    let name = |path: &Path| match path == layers[0].path {
        true => path.display().to_string(),
        false => format!("{}, which {} extends", path.display(), layers[0].path.display()),
    };
    resolve(&layers).map_err(|error| {
        let place = name(origin(&layers, &format!("{error:#}")));
        error.context(place)
    })
}

/// The JSON Schema of `pipeline.yaml`, for editors.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(Pipeline);
    serde_json::to_string_pretty(&schema).expect("a schema is plain JSON")
}

/// The file, the one that it extends, the one that this extends, and so on.
fn layers(path: &Path) -> Result<Vec<Layer>> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let of = layers.last().map(|layer| format!("{}: extends", layer.path.display()));
        let layer = read(&path, layers.is_empty());
        let layer = of.into_iter().fold(layer, |layer, of| layer.context(of))?;
        let real = path.canonicalize().with_context(|| path.display().to_string())?;
        if seen.contains(&real) {
            let names: Vec<_> = layers.iter().map(|layer| layer.path.display().to_string()).collect();
            bail!("{}: extends itself: {} → {}", names[0], names.join(" → "), path.display());
        }
        seen.push(real);
        next = layer.pipeline.extends.as_ref().map(|base| path.parent().unwrap_or(Path::new("")).join(base));
        layers.push(layer);
    }
    Ok(layers)
}

fn read(path: &Path, is_first: bool) -> Result<Layer> {
    let text = std::fs::read_to_string(path).with_context(|| match is_first {
        true => format!("{}: cannot read the pipeline (give one with --config)", path.display()),
        false => format!("{}: cannot read", path.display()),
    })?;
    parse(&text, path).with_context(|| path.display().to_string())
}

fn parse(text: &str, path: &Path) -> Result<Layer> {
    // A section whose keys are all commented out parses as null; it says nothing, as a missing one does.
    let mut document: Value = serde_yaml::from_str(text)?;
    let Some(sections) = document.as_mapping_mut() else {
        bail!("expected sections such as `source:` and `train:`, found {}", kind(&document));
    };
    let has_null = sections.values().any(Value::is_null);
    sections.retain(|_, value| !value.is_null());
    let sections = sections.clone();
    let pipeline: Pipeline = if has_null {
        serde_yaml::from_value(document)?
    } else {
        // Parsed from the text and not from the value, since only then does an error know its line and column.
        serde_yaml::from_str(text)?
    };
    if let Some(base) = &pipeline.extends {
        ensure!(!base.as_os_str().is_empty(), "extends is empty: name a file");
    }
    Ok(Layer { path: path.to_owned(), sections, pipeline })
}

/// The pipeline that the files make together, an SAE for each of its seeds and budgets.
fn resolve(layers: &[Layer]) -> Result<Pipeline> {
    let mut sections = Mapping::new();
    layers.iter().rev().for_each(|layer| merge(&mut sections, &layer.sections));
    refuse_beside_import(&sections)?;
    let says_k = saes(&sections).map(|sae| sae.get("k").is_some_and(|k| !k.is_null())).collect::<Vec<_>>();
    let mut pipeline = match layers {
        [only] => only.pipeline.clone(),
        _ => serde_yaml::from_value(Value::Mapping(sections))?,
    };
    pipeline.extends = None;
    pipeline.train.expand(&says_k)?;
    pipeline.validate()?;
    Ok(pipeline)
}

/// Lays `over` upon `base`: maps are merged key by key, to any depth; lists and single values are replaced.
fn merge(base: &mut Mapping, over: &Mapping) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Mapping(base)), Value::Mapping(over)) => merge(base, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The file that has the last word on the key with which an error's message begins: the first file that sets it, or, where
/// none does, the section around it.
fn origin<'a>(layers: &'a [Layer], message: &str) -> &'a Path {
    let key = message.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).next().unwrap_or_default();
    let keys: Vec<&str> = key.split('.').collect();
    let origin = |n_keys: usize| layers.iter().find(|layer| layer.sets(&keys[..n_keys]));
    (1..=keys.len()).rev().find_map(origin).map_or(&layers[0].path, |layer| &layer.path)
}

/// A finished SAE has no training to configure. Only the file tells a key that was set from one that was left out.
fn refuse_beside_import(sections: &Mapping) -> Result<()> {
    for (i, sae) in saes(sections).enumerate() {
        let Some(sae) = sae.as_mapping().filter(|sae| sae.get("import").is_some_and(|import| !import.is_null())) else {
            continue;
        };
        for key in sae.keys().filter_map(Value::as_str) {
            ensure!(
                Sae::BESIDE_IMPORT.contains(&key),
                "train.saes[{i}].{key} has no meaning beside import: that SAE is finished"
            );
        }
    }
    Ok(())
}

fn saes(sections: &Mapping) -> impl Iterator<Item = &Value> {
    let saes = sections.get("train").and_then(|train| train.get("saes")).and_then(Value::as_sequence);
    saes.into_iter().flatten()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "an empty file",
        Value::Sequence(_) => "a list",
        _ => "a single value",
    }
}

#[cfg(test)]
mod tests;
