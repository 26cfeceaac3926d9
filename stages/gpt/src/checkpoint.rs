//! A training that is interrupted goes on bit for bit: one file holds weights, moments, the best weights so far, and where
//! it stands. Random streams are keyed by the step, so that the step is their place too.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use artifact::whole_file;
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::adamw::State;

const FILE_NAME: &str = "state.safetensors";
const JSON_KEY: &str = "hiersae";

/// A training under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub state: State,
    /// The weights of the lowest validation loss so far.
    pub best: Vec<f32>,
    /// What else the training remembers.
    pub notes: Value,
}

/// Writes a checkpoint. `key` says what is being trained; the file appears whole or not at all.
pub fn save(folder: &Path, key: &str, checkpoint: &Checkpoint) -> Result<()> {
    let Checkpoint { state, best, notes } = checkpoint;
    let vectors = [("weights", &state.weights), ("first", &state.first), ("second", &state.second), ("best", best)];
    let bytes: BTreeMap<&str, Vec<u8>> =
        vectors.iter().map(|(name, of)| (*name, of.iter().flat_map(|value| value.to_le_bytes()).collect())).collect();
    let views =
        bytes.iter().map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    let json = json!({"key": key, "step": state.step, "notes": notes, "sha256": digest(bytes.values())});
    let bytes = safetensors::serialize(views, Some(HashMap::from([(JSON_KEY.to_owned(), json.to_string())])))?;

    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    whole_file::write(&folder.join(FILE_NAME), &bytes)
}

/// The checkpoint of a training, if there is one of the same key; one of something else is passed over. `take` makes of it
/// what goes on.
///
/// Errors: the checkpoint is damaged, or `take` says so.
pub fn load<T>(
    folder: &Path,
    key: &str,
    n_parameters: usize,
    take: impl FnOnce(Checkpoint) -> Result<T>,
) -> Result<Option<T>> {
    let path = folder.join(FILE_NAME);
    if !path.exists() {
        return Ok(None);
    }
    read(&path, key, n_parameters)
        .and_then(|checkpoint| checkpoint.map(take).transpose())
        .with_context(|| format!("{}: damaged; delete it to train from the start", path.display()))
}

fn read(path: &Path, key: &str, n_parameters: usize) -> Result<Option<Checkpoint>> {
    let bytes = std::fs::read(path).context("cannot read")?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
    let text = metadata.metadata().as_ref().and_then(|values| values.get(JSON_KEY));
    let json: Value = serde_json::from_str(text.context("has no JSON metadata")?)?;
    if json["key"] != key {
        return Ok(None);
    }
    let tensors = SafeTensors::deserialize(&bytes)?;
    let vector = |name: &str| {
        let tensor = tensors.tensor(name).with_context(|| format!("has no tensor `{name}`"))?;
        let (values, rest) = tensor.data().as_chunks::<4>();
        ensure!(
            tensor.dtype() == Dtype::F32 && rest.is_empty() && values.len() == n_parameters,
            "tensor `{name}` is not {n_parameters} values of f32"
        );
        Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect::<Vec<f32>>())
    };
    let names = ["best", "first", "second", "weights"];
    let data = names.map(|name| tensors.tensor(name).map(|tensor| tensor.data().to_vec()).unwrap_or_default());
    ensure!(json["sha256"] == digest(data.iter()), "its tensors are not those that were saved");
    let step = json["step"].as_u64().context("has no count `step`")?;
    let state = State { weights: vector("weights")?, first: vector("first")?, second: vector("second")?, step };
    Ok(Some(Checkpoint { state, best: vector("best")?, notes: json["notes"].clone() }))
}

/// Of tensors in the order of their names.
fn digest<'a>(tensors: impl Iterator<Item = &'a Vec<u8>>) -> String {
    artifact::digest::of_bytes(&tensors.flatten().copied().collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_comes_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = State { weights: vec![1.0, -0.1], first: vec![2.0, 3.0], second: vec![4.0, 5.0], step: 7 };
        let checkpoint = Checkpoint { state, best: vec![0.3, 0.4], notes: json!({"a": [0.1, null]}) };
        save(folder.path(), "this", &checkpoint).unwrap();
        assert_eq!(load(folder.path(), "this", 2, Ok).unwrap(), Some(checkpoint));
        assert_eq!(load(folder.path(), "another", 2, Ok).unwrap(), None);
        assert_eq!(load(&folder.path().join("none"), "this", 2, Ok).unwrap(), None);
        let refused = load(folder.path(), "this", 2, |_| -> Result<()> { anyhow::bail!("stands elsewhere") });
        let error = format!("{:#}", refused.unwrap_err());
        assert!(
            error.ends_with("state.safetensors: damaged; delete it to train from the start: stands elsewhere"),
            "{error}"
        );
        // Cut short, and with one bit of one weight turned over.
        let path = folder.path().join(FILE_NAME);
        let bytes = std::fs::read(&path).unwrap();
        let mut turned = bytes.clone();
        *turned.last_mut().unwrap() ^= 1;
        for damaged in [&bytes[..bytes.len() - 3], &turned] {
            std::fs::write(&path, damaged).unwrap();
            let error = format!("{:#}", load(folder.path(), "this", 2, Ok).unwrap_err());
            assert!(error.contains("state.safetensors: damaged; delete it"), "{error}");
        }
    }
}
