//! Reads `pipeline.yaml`, and the files that it extends. The only file that knows serde_yaml.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_yaml::{Mapping, Value};

use super::{Pipeline, Sae};

/// One file of a pipeline: what it says itself.
struct Layer {
    path: PathBuf,
    /// With the nulls that take back what a file below says.
    sections: Mapping,
    /// The same, typed; what it leaves out or takes back are defaults.
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
    let document: Value = serde_yaml::from_str(text)?;
    let Value::Mapping(sections) = document else {
        bail!("expected sections such as `source:` and `train:`, found {}", kind(&document));
    };
    let mut said = sections.clone();
    if sections.get("extends").is_some_and(|base| !base.is_null()) {
        take_back(&mut said, &mut Vec::new())?;
    } else {
        // A section whose keys are all commented out parses as null; it says nothing, as a missing one does.
        said.retain(|_, value| !value.is_null());
    }
    let pipeline: Pipeline = if said == sections {
        // Parsed from the text and not from the value, since only then does an error know its line and column.
        serde_yaml::from_str(text)?
    } else {
        serde_yaml::from_value(Value::Mapping(said))?
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
    if layers.len() > 1 {
        take_back(&mut sections, &mut Vec::new())?;
    }
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

/// Removes every key that is null, so that it has its default; but not where null is a value of its own.
/// `at`: the keys and places in lists that lead to the map.
///
/// Errors: there is no such key.
fn take_back(map: &mut Mapping, at: &mut Vec<Value>) -> Result<()> {
    for (key, mut value) in std::mem::take(map) {
        at.push(key.clone());
        let is_kept = !value.is_null() || null_is_a_value(at)?;
        take_back_within(&mut value, at)?;
        at.pop();
        if is_kept {
            map.insert(key, value);
        }
    }
    Ok(())
}

fn take_back_within(value: &mut Value, at: &mut Vec<Value>) -> Result<()> {
    match value {
        Value::Mapping(map) => take_back(map, at)?,
        Value::Sequence(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                at.push(i.into());
                take_back_within(item, at)?;
                at.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether null says something else of this key than its absence: `probe.splice: null` is no splice at all. Told by reading
/// a pipeline that has the key and nothing beside it, and one that has not.
fn null_is_a_value(at: &[Value]) -> Result<bool> {
    let Some((key, above)) = at.split_last() else { return Ok(false) };
    let pipeline = |map: Mapping| {
        let around = |inner: Value, key: &Value| match key {
            Value::Number(_) => Value::Sequence(vec![inner]),
            _ => Value::Mapping([(key.clone(), inner)].into_iter().collect()),
        };
        serde_yaml::from_value::<Pipeline>(above.iter().rev().fold(Value::Mapping(map), around))
    };
    let without = pipeline(Mapping::new())?;
    match pipeline([(key.clone(), Value::Null)].into_iter().collect()) {
        Ok(with) => Ok(with != without),
        Err(error) if error.to_string().contains("unknown field") => Err(error.into()),
        Err(_) => Ok(false), // it needs a value
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
