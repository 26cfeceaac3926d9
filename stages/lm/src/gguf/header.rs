//! The part of a GGUF file before the tensors' bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};

use anyhow::{Context, Result, bail, ensure};

use super::{TensorInfo, TensorType, Value};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Nobody aligns beyond a page; a larger figure is a damaged file.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Names of keys and tensors are short; the format itself allows 65,535 and 64 bytes.
const MAX_NAME_BYTES: u64 = 65_535;
const MAX_DIMS: u32 = 4;

pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

pub(super) fn read(file: &File) -> Result<Header> {
    let n_bytes = file.metadata().context("asking for its size")?.len();
    let mut cursor = Cursor { reader: BufReader::with_capacity(1 << 20, file), at: 0, n_bytes };

    let magic = cursor.array::<4>()?;
    ensure!(magic == MAGIC, "it starts with {magic:02x?}, not with \"GGUF\"");
    let version = cursor.u32()?;
    ensure!(version == VERSION, "GGUF version {version} is not supported, only {VERSION}");
    let n_tensors = cursor.u64()?;
    let n_pairs = cursor.u64()?;

    let mut metadata = BTreeMap::new();
    for row in 0..n_pairs {
        let key = cursor.string(MAX_NAME_BYTES).with_context(|| format!("metadata key {row} of {n_pairs}"))?;
        let value = cursor.value().with_context(|| format!("metadata {key}"))?;
        ensure!(metadata.insert(key.clone(), value).is_none(), "metadata {key} is given twice");
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Integer(n)) => u64::try_from(*n).unwrap_or(0),
        Some(other) => bail!("general.alignment is {}, expected an integer", other.kind()),
    };
    ensure!(
        alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT,
        "general.alignment is {alignment}, expected a power of two up to {MAX_ALIGNMENT}"
    );

    let mut tensors = BTreeMap::new();
    for row in 0..n_tensors {
        let name = cursor.string(MAX_NAME_BYTES).with_context(|| format!("name of tensor {row} of {n_tensors}"))?;
        let info = cursor.tensor_info().with_context(|| format!("tensor {name}"))?;
        ensure!(tensors.insert(name.clone(), info).is_none(), "tensor {name} is listed twice");
    }

    let data_start = cursor.at.next_multiple_of(alignment);
    place_tensors(&mut tensors, data_start, alignment, n_bytes)?;
    Ok(Header { metadata, tensors })
}

/// Turns offsets into absolute ones. Refuses tensors outside the file, and tensors that overlap:
/// a small file whose tensors all point at the same bytes would otherwise unfold to any size.
fn place_tensors(
    tensors: &mut BTreeMap<String, TensorInfo>,
    data_start: u64,
    alignment: u64,
    n_bytes: u64,
) -> Result<()> {
    for (name, info) in tensors.iter_mut() {
        ensure!(info.offset % alignment == 0, "tensor {name}: offset {} is not a multiple of {alignment}", info.offset);
        let end = data_start.checked_add(info.offset).and_then(|start| start.checked_add(info.n_bytes));
        ensure!(
            end.is_some_and(|end| end <= n_bytes),
            "tensor {name} reaches beyond the file's {n_bytes} bytes: the file is cut short or damaged"
        );
        info.offset += data_start;
    }
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, info)| info.offset);
    for pair in by_offset.windows(2) {
        let ((first, a), (second, b)) = (pair[0], pair[1]);
        ensure!(a.offset + a.n_bytes <= b.offset, "tensors {first} and {second} overlap");
    }
    Ok(())
}

/// Reads forward, and knows how much of the file is left.
struct Cursor<'a> {
    reader: BufReader<&'a File>,
    at: u64,
    n_bytes: u64,
}

impl Cursor<'_> {
    /// Claims the next `n` bytes, before anything is allocated for them.
    fn claim(&mut self, n: u64) -> Result<()> {
        let left = self.n_bytes.saturating_sub(self.at);
        ensure!(n <= left, "{n} bytes expected at offset {}, the file has {left} more", self.at);
        self.at += n;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn bool(&mut self) -> Result<bool> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => bail!("a bool is {other}, expected 0 or 1"),
        }
    }

    fn string(&mut self, max_bytes: u64) -> Result<String> {
        let n = self.u64()?;
        ensure!(n <= max_bytes, "a name of {n} bytes");
        self.claim(n)?;
        let mut bytes = vec![0; usize::try_from(n)?];
        self.reader.read_exact(&mut bytes)?;
        String::from_utf8(bytes).context("text that is not UTF-8")
    }

    fn value(&mut self) -> Result<Value> {
        let code = self.u32()?;
        match code {
            8 => Ok(Value::String(self.string(self.n_bytes)?)),
            9 => self.array_value(),
            _ => self.scalar(code),
        }
    }

    fn scalar(&mut self, code: u32) -> Result<Value> {
        Ok(match code {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.bool()?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => bail!("value type {other} is not one of GGUF's"),
        })
    }

    /// Grows with what is really read: the count in the file reserves nothing.
    fn array_value(&mut self) -> Result<Value> {
        let code = self.u32()?;
        let n = self.u64()?;
        Ok(match code {
            0..=5 | 10 | 11 => Value::Integers(self.items(n, |cursor| match cursor.scalar(code)? {
                Value::Integer(v) => i64::try_from(v).context("an integer beyond 2^63"),
                other => bail!("{} among integers", other.kind()),
            })?),
            6 => Value::Floats(self.items(n, |cursor| Ok(f32::from_le_bytes(cursor.array()?).into()))?),
            12 => Value::Floats(self.items(n, |cursor| Ok(f64::from_le_bytes(cursor.array()?)))?),
            7 => Value::Bools(self.items(n, Self::bool)?),
            8 => Value::Strings(self.items(n, |cursor| cursor.string(cursor.n_bytes))?),
            9 => bail!("arrays of arrays are not supported"),
            other => bail!("element type {other} is not one of GGUF's"),
        })
    }

    fn items<T>(&mut self, n: u64, mut read_one: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        for row in 0..n {
            items.push(read_one(self).with_context(|| format!("element {row} of {n}"))?);
        }
        Ok(items)
    }

    fn tensor_info(&mut self) -> Result<TensorInfo> {
        let n_dims = self.u32()?;
        ensure!((1..=MAX_DIMS).contains(&n_dims), "{n_dims} dimensions, expected 1 to {MAX_DIMS}");
        let mut dims = Vec::new();
        let mut n_values = 1_u64;
        for _ in 0..n_dims {
            let size = self.u64()?;
            ensure!(size > 0, "a dimension of size 0");
            n_values = n_values.checked_mul(size).context("sizes whose product overflows")?;
            dims.push(usize::try_from(size)?);
        }
        let tensor_type = TensorType::from_code(self.u32()?)?;
        let offset = self.u64()?;
        let (block_values, block_bytes) = (tensor_type.block_values() as u64, tensor_type.block_bytes() as u64);
        ensure!(
            dims[0].is_multiple_of(tensor_type.block_values()),
            "rows of {} values do not divide into {tensor_type:?} blocks of {block_values}",
            dims[0]
        );
        let n_bytes = (n_values / block_values).checked_mul(block_bytes).context("a size that overflows")?;
        Ok(TensorInfo { dims, tensor_type, offset, n_bytes })
    }
}
