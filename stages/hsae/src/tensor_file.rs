//! Named vectors and matrices in a safetensors file, with one JSON value beside them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

const JSON_KEY: &str = "hiersae";

/// What a file is to hold. Entries are written in the order of their names.
#[derive(Default)]
pub(crate) struct TensorFile {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    json: Option<Value>,
}

impl TensorFile {
    pub(crate) fn json(mut self, json: Value) -> Self {
        self.json = Some(json);
        self
    }

    pub(crate) fn f32(mut self, name: &str, values: &[f32], shape: &[usize]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), bytes));
        self
    }

    pub(crate) fn u64(mut self, name: &str, values: &[u64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.insert(name.into(), (Dtype::U64, vec![values.len()], bytes));
        self
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let views = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, bytes))| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)));
        let views = views.collect::<Result<Vec<_>>>()?;
        let metadata = self.json.as_ref().map(|json| HashMap::from([(JSON_KEY.to_owned(), json.to_string())]));
        Ok(safetensors::serialize(views, metadata)?)
    }
}

/// A file read back.
pub(crate) struct Tensors {
    bytes: Vec<u8>,
}

impl Tensors {
    /// Errors: the file cannot be read, or is no safetensors file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
        let tensors = Self { bytes };
        tensors.parse().with_context(|| path.display().to_string())?;
        Ok(tensors)
    }

    /// Errors: there is no such tensor, it is not f32, or it has another number of values.
    pub(crate) fn f32(&self, name: &str, n_values: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes_of(name, Dtype::F32, n_values)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    pub(crate) fn u64(&self, name: &str, n_values: usize) -> Result<Vec<u64>> {
        let bytes = self.bytes_of(name, Dtype::U64, n_values)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|&b| u64::from_le_bytes(b)).collect())
    }

    pub(crate) fn json(&self) -> Result<Value> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes)?;
        let text = metadata.metadata().as_ref().and_then(|values| values.get(JSON_KEY));
        Ok(serde_json::from_str(text.context("has no JSON metadata")?)?)
    }

    fn bytes_of(&self, name: &str, dtype: Dtype, n_values: usize) -> Result<Vec<u8>> {
        let tensors = self.parse()?;
        let tensor = tensors.tensor(name).with_context(|| format!("has no tensor `{name}`"))?;
        ensure!(tensor.dtype() == dtype, "tensor `{name}` is {:?}, expected {dtype:?}", tensor.dtype());
        let found: usize = tensor.shape().iter().product();
        ensure!(found == n_values, "tensor `{name}` has {found} values, expected {n_values}");
        Ok(tensor.data().to_vec())
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        Ok(SafeTensors::deserialize(&self.bytes)?)
    }
}
