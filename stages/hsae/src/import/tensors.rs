//! Tensors of a file, by name: taken one by one, so that none is missed and none is left over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F16,
    Bf16,
    I32,
    I64,
}

#[derive(Debug)]
pub(super) enum Values {
    Real(Vec<f32>),
    Whole(Vec<i64>),
}

#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) shape: Vec<usize>,
    /// Row-major.
    pub(super) values: Values,
}

#[derive(Debug)]
pub(super) struct Tensors {
    pub(super) file: PathBuf,
    by_name: BTreeMap<String, Tensor>,
}

impl Dtype {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Little-endian, a whole number of values.
    pub(super) fn read(self, bytes: &[u8]) -> Values {
        let real = |read: fn([u8; 2]) -> f32| Values::Real(bytes.as_chunks::<2>().0.iter().map(|&b| read(b)).collect());
        match self {
            Self::F16 => real(|bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => real(|bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::F32 => Values::Real(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
            Self::I32 => {
                Values::Whole(bytes.as_chunks::<4>().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect())
            }
            Self::I64 => Values::Whole(bytes.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect()),
        }
    }
}

impl Tensors {
    pub(super) fn new(file: &Path, by_name: BTreeMap<String, Tensor>) -> Self {
        Self { file: file.to_owned(), by_name }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Rows and columns. Errors: there is no such tensor, or it is no matrix, or an empty one.
    pub(super) fn matrix_shape(&self, name: &str) -> Result<[usize; 2]> {
        let shape = &self.by_name.get(name).with_context(|| self.missing(name))?.shape;
        match shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => bail!("{}: tensor `{name}` is {shape:?}, expected a matrix", self.file.display()),
        }
    }

    /// Errors: there is no such tensor, it has another shape, or it holds NaN or an infinity.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Tensor { shape: found, values } = self.by_name.remove(name).with_context(|| self.missing(name))?;
        let at = || format!("{}: tensor `{name}`", self.file.display());
        ensure!(found == shape, "{} is {found:?}, expected {shape:?}", at());
        let Values::Real(values) = values else { bail!("{} holds whole numbers, expected real ones", at()) };
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            bail!("{} holds {} as its value {i}", at(), values[i]);
        }
        Ok(values)
    }

    /// A whole-numbered tensor's values, whatever its shape.
    pub(super) fn take_whole(&mut self, name: &str) -> Result<Vec<i64>> {
        match self.by_name.remove(name).with_context(|| self.missing(name))?.values {
            Values::Whole(values) => Ok(values),
            Values::Real(_) => {
                bail!("{}: tensor `{name}` holds real numbers, expected whole ones", self.file.display())
            }
        }
    }

    /// Errors: a tensor is left that nobody asked for; it might change what the others mean.
    pub(super) fn finish(self, kind: &str) -> Result<()> {
        match self.by_name.keys().next() {
            Some(name) => bail!("{}: has a tensor `{name}`, which is no part of a {kind} SAE", self.file.display()),
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str) -> String {
        format!("{}: has no tensor `{name}`", self.file.display())
    }
}
