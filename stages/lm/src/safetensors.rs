//! Weights of a folder in Hugging Face format: `*.safetensors`, one file or several.
//!
//! Headers are read when the folder is opened, tensors when they are asked for. Every size is checked against the file's
//! own before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

/// The one file of a model whose weights are in one.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A header longer than this is damage, however large the file is.
const MOST_HEADER_BYTES: u64 = 100 << 20;
/// The length of the header, in front of it.
const PREFIX: u64 = 8;

/// The tensors of a folder's files. They stay on disk.
#[derive(Debug)]
pub(crate) struct TensorFiles {
    folder: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Place>,
}

#[derive(Clone, Debug)]
struct Place {
    file: usize,
    dtype: Dtype,
    /// Row-major.
    shape: Vec<usize>,
    /// From the start of the file.
    offset: u64,
    n_bytes: usize,
}

impl TensorFiles {
    /// Errors: no weights, only pickled ones, a damaged file, a tensor in two files.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut found = Self { folder: folder.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths(folder)? {
            found.add(&path).with_context(|| path.display().to_string())?;
        }
        Ok(found)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).context("cannot open")?;
        let n_bytes = file.metadata()?.len();
        ensure!(n_bytes >= PREFIX, "{n_bytes} bytes are no safetensors file");
        let mut prefix = [0; PREFIX as usize];
        file.read_exact_at(&mut prefix, 0)?;
        let n_header = u64::from_le_bytes(prefix);
        ensure!(
            n_header <= MOST_HEADER_BYTES.min(n_bytes - PREFIX),
            "a header of {n_header} bytes in a file of {n_bytes}: it is damaged or cut short"
        );
        let mut header = vec![0; usize::try_from(n_header)?];
        file.read_exact_at(&mut header, PREFIX)?;
        // Sizes that do not fit shapes, and gaps, are refused here.
        let metadata: Metadata = serde_json::from_slice(&header).context("not a readable safetensors header")?;
        let start = PREFIX + n_header;
        let number = self.files.len();
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let end = start.checked_add(to as u64).filter(|&end| from <= to && end <= n_bytes);
            ensure!(end.is_some(), "tensor {name} ends behind the file's {n_bytes} bytes: it is cut short");
            let place = Place {
                file: number,
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: start + from as u64,
                n_bytes: to - from,
            };
            ensure!(self.tensors.insert(name.clone(), place).is_none(), "tensor {name} is in another file too");
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    /// The names of all tensors, and the files that they are in.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), self.files[place.file].0.as_path()))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's values, row-major. Errors: no such tensor, another shape, another kind of number, a value that is not
    /// finite.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Some(place) = self.tensors.get(name) else {
            let files = if let [(file, _)] = &self.files[..] { file } else { &self.folder };
            bail!("{}: tensor {name} is missing from the weights", files.display());
        };
        let (path, file) = &self.files[place.file];
        let at = || format!("{}: tensor {name}", path.display());
        ensure!(place.shape == shape, "{} is {:?}, expected {shape:?}", at(), place.shape);
        let n: usize = shape.iter().product();
        let width = match place.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => bail!("{} holds {other:?}, only F32, F16 and BF16 are read", at()),
        };
        ensure!(place.n_bytes == n * width, "{} has {} bytes for {n} values", at(), place.n_bytes);
        let mut bytes = vec![0; place.n_bytes];
        file.read_exact_at(&mut bytes, place.offset).with_context(at)?;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let values: Vec<f32> = match place.dtype {
            Dtype::F16 => pairs().map(|&pair| f16::from_le_bytes(pair).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|&pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(i) => bail!("{} holds {} at value {i}", at(), values[i]),
        }
    }
}

/// The one file, or those that the index names, or all there are.
fn paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        let at = || index.display().to_string();
        let text = std::fs::read(&index).with_context(at)?;
        let json: serde_json::Value = serde_json::from_slice(&text).with_context(at)?;
        let map = json.get("weight_map").and_then(|map| map.as_object());
        let map = map.with_context(|| format!("{}: has no weight_map", at()))?;
        let mut names = Vec::new();
        for (tensor, name) in map {
            let name = name.as_str().with_context(|| format!("{}: weight_map.{tensor} is no file's name", at()))?;
            ensure!(
                Path::new(name).file_name().is_some_and(|file| file == name),
                "{}: weight_map.{tensor} names a file in another folder, {name}",
                at()
            );
            names.push(name);
        }
        names.sort_unstable();
        names.dedup();
        ensure!(!names.is_empty(), "{}: weight_map is empty", at());
        let is_missing = |name: &&&str| !folder.join(name).is_file();
        if let Some(name) = names.iter().find(is_missing) {
            bail!("{}: weight_map names {name}, which is not there", at());
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let mut found = Vec::new();
    let mut pickled = None;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => found.push(path),
            Some("bin" | "pt" | "pth" | "ckpt") => pickled = Some(path),
            _ => {}
        }
    }
    found.sort();
    match (found.is_empty(), pickled) {
        (false, _) => Ok(found),
        (true, Some(pickled)) => bail!(
            "{}: pickled weights are not read, since opening them may run whatever code they hold; save the model as \
             safetensors (`model.save_pretrained(folder, safe_serialization=True)`)",
            pickled.display()
        ),
        (true, None) => bail!("{}: holds no *.safetensors", folder.display()),
    }
}
