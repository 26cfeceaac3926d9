//! A manifest says what a folder holds, from which inputs and which configuration it was made, and that it is whole:
//! it is written last, so a folder without one is unfinished.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest;

/// Rises when the meaning of manifests or tables changes; readers refuse any other.
pub(super) const SCHEMA: u32 = 1;
pub const FILE_NAME: &str = "manifest.json";

/// What the outputs of a task depend on. Equal keys, equal outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    pub schema: u32,
    pub stage: String,
    /// Raised by hand when a stage computes something else from the same inputs and configuration.
    pub recipe: u32,
    pub seed: u64,
    /// `cpu` or `cuda`: their sums differ in the last bits.
    pub device: String,
    /// The configuration that the task reads, whole.
    pub config: Value,
    /// Folder under the run, and the digest of what it held.
    pub inputs: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub key: Key,
    /// Sorted by path.
    pub outputs: Vec<Output>,
    /// Over all outputs: what a downstream key sees of this folder.
    pub digest: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Relative to the manifest's folder.
    pub path: String,
    pub sha256: String,
    pub bytes: u64,
    /// For tables.
    pub rows: Option<u64>,
}

impl Manifest {
    pub fn new(key: Key, mut outputs: Vec<Output>) -> Self {
        outputs.sort_by(|a, b| a.path.cmp(&b.path));
        let lines: String = outputs.iter().map(|o| format!("{} {}\n", o.sha256, o.path)).collect();
        Self { key, outputs, digest: digest::of_bytes(lines.as_bytes()) }
    }

    /// `None` where there is no manifest. Errors: it cannot be read, is no manifest, or is of another schema.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        Self::read_file(&folder.join(FILE_NAME))
    }

    pub(super) fn read_file(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{}: cannot read", path.display())),
        };
        let manifest: Self = serde_json::from_str(&text)
            .with_context(|| format!("{}: not a manifest; delete it and run the stage again", path.display()))?;
        ensure!(
            manifest.key.schema == SCHEMA,
            "{}: written with schema {}, this build reads {SCHEMA}; run the stage again",
            path.display(),
            manifest.key.schema
        );
        Ok(Some(manifest))
    }

    /// The first reason why the folder is not what the manifest says, if any.
    pub fn damage(&self, folder: &Path) -> Option<String> {
        self.outputs.iter().find_map(|output| {
            let path = folder.join(&output.path);
            match digest::of_file(&path) {
                Ok(found) if found == output.sha256 => None,
                Ok(_) => Some(format!("{} is not what was published", output.path)),
                Err(_) => Some(format!("{} is missing", output.path)),
            }
        })
    }
}

impl Key {
    /// The same, less a part of the configuration.
    pub fn without(&self, part: &str) -> Self {
        let mut key = self.clone();
        if let Some(config) = key.config.as_object_mut() {
            config.remove(part);
        }
        key
    }

    /// What differs from an older key, in words: `train.k 32 → 64`.
    pub fn changes_since(&self, old: &Key) -> Vec<String> {
        let mut changes = Vec::new();
        if self.recipe != old.recipe {
            changes.push(format!("the stage's recipe {} → {}", old.recipe, self.recipe));
        }
        if self.seed != old.seed {
            changes.push(format!("seed {} → {}", old.seed, self.seed));
        }
        if self.device != old.device {
            changes.push(format!("device {} → {}", old.device, self.device));
        }
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &old.config, &mut before);
        flatten("", &self.config, &mut after);
        let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let show = |side: &BTreeMap<String, String>| side.get(key).cloned().unwrap_or_else(|| "unset".into());
            if before.get(key) != after.get(key) {
                changes.push(format!("{key} {} → {}", show(&before), show(&after)));
            }
        }
        let inputs: std::collections::BTreeSet<_> = old.inputs.keys().chain(self.inputs.keys()).collect();
        for input in inputs {
            if old.inputs.get(input) != self.inputs.get(input) {
                changes.push(format!("{input} has changed"));
            }
        }
        changes
    }
}

/// Nested JSON as `a.b[0].c` → text.
fn flatten(at: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                flatten(&at, value, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                flatten(&format!("{at}[{i}]"), value, out);
            }
        }
        _ => {
            out.insert(at.to_owned(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_said_key_by_key() {
        let key = |k: u32| Key {
            schema: SCHEMA,
            stage: "train".into(),
            recipe: 1,
            seed: 0,
            device: "cpu".into(),
            config: json!({"train": {"k": k, "saes": [{"name": "a"}]}}),
            inputs: BTreeMap::from([("harvest".into(), k.to_string())]),
        };
        assert_eq!(key(64).changes_since(&key(32)), ["train.k 32 → 64", "harvest has changed"]);
        assert!(key(32).changes_since(&key(32)).is_empty());
    }
}
