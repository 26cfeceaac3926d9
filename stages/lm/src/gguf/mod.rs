//! Reads GGUF version 3 files: metadata, tensor table, tensors as f32.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Little-endian throughout:
//! a header, the metadata pairs, the tensor table, padding, then the tensors' bytes.
//! Every length and offset in the file is checked against the file's true size before anything is
//! allocated or read, so a damaged file ends in an error that names it and not in a panic.

mod header;
mod quant;
mod value;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub(crate) use quant::TensorType;
pub(crate) use value::Value;

/// An opened GGUF file. Metadata and the tensor table are in memory, tensors stay on disk.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Where one tensor lies and how to read it.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Sizes as the file lists them: the fastest-varying dimension first, so a matrix that maps
    /// d_in to d_out is `[d_in, d_out]` here and `[d_out, d_in]` row-major in memory.
    pub(crate) dims: Vec<usize>,
    pub(crate) tensor_type: TensorType,
    /// From the start of the file.
    offset: u64,
    n_bytes: u64,
}

impl Gguf {
    /// Opens and checks a file. Errors name the file, and the key or tensor they are about.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let header = header::read(&file).with_context(|| format!("{}: not a readable GGUF file", path.display()))?;
        Ok(Self { path: path.to_owned(), file, metadata: header.metadata, tensors: header.tensors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A tensor's values as f32, in the file's order (row-major over the reversed `dims`).
    /// Errors: no such tensor, other sizes than `dims`, values that are not finite.
    pub(crate) fn read(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let path = self.path.display();
        let Some(info) = self.tensors.get(name) else { bail!("{path}: tensor {name} is missing") };
        if info.dims != dims {
            bail!("{path}: tensor {name} has sizes {:?}, expected {dims:?}", info.dims);
        }
        // The table was checked against the file's size, so this allocates no more than the file holds.
        let mut bytes = vec![0; usize::try_from(info.n_bytes)?];
        self.file.read_exact_at(&mut bytes, info.offset).with_context(|| format!("{path}: reading tensor {name}"))?;
        let values = info.tensor_type.dequantise(&bytes);
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!("{path}: tensor {name} holds {} at value {at}", values[at]);
        }
        Ok(values)
    }
}
