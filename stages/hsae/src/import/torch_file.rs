//! What `torch.save` writes: a zip archive with `NAME/data.pkl`, a pickle that says what there is, and `NAME/data/0`,
//! `NAME/data/1`, …, the storages that it speaks of.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use zip::{CompressionMethod, ZipArchive};

use super::tensors::{Tensor, Tensors, Values};
use super::torch_pickle::{self, Pickled};

const PICKLE: &str = "data.pkl";

/// A dictionary of tensors.
///
/// Errors: the file is no such archive, is damaged, or holds something else; it is named, and the tensor, if any.
pub(super) fn read(path: &Path) -> Result<Tensors> {
    let tensors = read_all(path).with_context(|| path.display().to_string())?;
    Ok(Tensors::new(path, tensors))
}

fn read_all(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = File::open(path).context("cannot open")?;
    let n_bytes = file.metadata()?.len();
    let archive = ZipArchive::new(BufReader::new(file));
    let mut archive = Archive {
        zip: archive.context("no whole zip archive, which is what torch.save writes")?,
        folder: String::new(),
        n_bytes,
    };
    archive.find_folder()?;
    if let Some(order) = archive.read("byteorder")? {
        ensure!(order == b"little", "its byte order is {:?}, expected little", String::from_utf8_lossy(&order));
    }
    let pickle = archive.read(PICKLE)?.context("holds no data.pkl")?;
    let pickled = torch_pickle::read(&pickle).context(PICKLE)?;
    // However often tensors share a storage, reading them ends.
    let mut n_left = n_bytes.saturating_mul(4);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in pickled {
        let n_bytes = (tensor.storage.n_values as u64).saturating_mul(tensor.storage.dtype.bytes() as u64);
        ensure!(n_bytes <= n_left, "tensor `{name}`: tensors are together much larger than the file");
        n_left -= n_bytes;
        let read = archive.tensor(&tensor).with_context(|| format!("tensor `{name}`"))?;
        tensors.insert(name, read);
    }
    Ok(tensors)
}

struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// What paths in it start with, its slash included.
    folder: String,
    n_bytes: u64,
}

impl Archive {
    /// Errors: there is no pickle, or more than one.
    fn find_folder(&mut self) -> Result<()> {
        let names = self.zip.file_names().collect::<Result<Vec<_>, _>>().context("a path in it is not text")?;
        let mut folders = names.iter().filter_map(|name| name.strip_suffix(PICKLE)).filter(|name| name.ends_with('/'));
        let folder = folders.next().context("holds no data.pkl; torch.save writes one since version 1.6")?.to_owned();
        ensure!(folders.next().is_none(), "holds more than one data.pkl");
        self.folder = folder;
        Ok(())
    }

    /// A file's bytes; `None`: there is no such file.
    fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = format!("{}{name}", self.folder);
        let Some(i) = self.zip.index_for_name(&path) else { return Ok(None) };
        let mut entry = self.zip.by_index(i).with_context(|| path.clone())?;
        // As torch writes it; so nothing is larger in memory than in the file.
        ensure!(
            entry.compression() == CompressionMethod::Stored,
            "{path} is compressed; torch.save compresses nothing"
        );
        ensure!(entry.size() <= self.n_bytes, "{path} is longer than the file");
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        let n_bytes = entry.size();
        entry.by_ref().take(n_bytes).read_to_end(&mut bytes).with_context(|| format!("{path}: damaged"))?;
        // The checksum is compared at the very end.
        ensure!(entry.read(&mut [0]).with_context(|| format!("{path}: damaged"))? == 0, "{path}: longer than it says");
        ensure!(bytes.len() as u64 == n_bytes, "{path}: cut short");
        Ok(Some(bytes))
    }

    fn tensor(&mut self, tensor: &Pickled) -> Result<Tensor> {
        let Pickled { storage, offset, shape, strides } = tensor;
        let name = format!("data/{}", storage.key);
        let bytes = self.read(&name)?.with_context(|| format!("its storage {name} is missing"))?;
        let n_bytes = storage.n_values.checked_mul(storage.dtype.bytes());
        ensure!(
            Some(bytes.len()) == n_bytes,
            "its storage {name} has {} bytes, not those of {} values of {:?}",
            bytes.len(),
            storage.n_values,
            storage.dtype
        );
        let shared = View::new(*offset, shape, strides, storage.n_values)?;
        let values = match storage.dtype.read(&bytes) {
            Values::Real(values) => Values::Real(shared.of(&values)),
            Values::Whole(values) => Values::Whole(shared.of(&values)),
        };
        Ok(Tensor { shape: shape.clone(), values })
    }
}

/// Where a tensor of up to two dimensions stands in its storage.
struct View {
    offset: usize,
    /// Rows and columns; a vector is one row, a scalar one row of one column.
    shape: [usize; 2],
    strides: [usize; 2],
}

impl View {
    /// Errors: a value stands outside the storage, or there are more values than the storage has.
    fn new(offset: usize, shape: &[usize], strides: &[usize], n_values: usize) -> Result<Self> {
        let view = match (shape, strides) {
            ([], []) => Self { offset, shape: [1, 1], strides: [0, 0] },
            (&[cols], &[stride]) => Self { offset, shape: [1, cols], strides: [0, stride] },
            (&[rows, cols], &[down, right]) => Self { offset, shape: [rows, cols], strides: [down, right] },
            _ => bail!("{} strides for the shape {shape:?}", strides.len()),
        };
        let [rows, cols] = view.shape;
        ensure!(
            rows.checked_mul(cols).is_some_and(|n| n <= n_values),
            "its shape {shape:?} holds more than the {n_values} values of its storage"
        );
        let last = |size: usize, stride: usize| size.saturating_sub(1).checked_mul(stride);
        let last = last(rows, view.strides[0]).zip(last(cols, view.strides[1]));
        let last = last.and_then(|(down, right)| offset.checked_add(down)?.checked_add(right));
        ensure!(
            last.is_some_and(|last| last < n_values),
            "its place {offset} + {strides:?} leads out of the {n_values} values of its storage"
        );
        Ok(view)
    }

    /// The values, row by row.
    fn of<T: Copy>(&self, storage: &[T]) -> Vec<T> {
        let Self { offset, shape: [rows, cols], strides: [down, right] } = *self;
        (0..rows).flat_map(|row| (0..cols).map(move |col| storage[offset + row * down + col * right])).collect()
    }
}
