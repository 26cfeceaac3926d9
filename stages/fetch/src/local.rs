//! Files of the user: used where they are, their digests taken down, so that later stages read what was meant.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use artifact::digest;
use artifact::stage::{Output, Source};

pub(crate) struct Local {
    pub(crate) name: String,
    /// The key of the pipeline that names the path, for errors.
    pub(crate) key: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: LocalKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalKind {
    /// A `.gguf` file, or a folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    Model,
    /// A `.txt`, `.jsonl` or `.parquet` file, or a folder of `.txt` files.
    Text,
    /// A folder of `.parquet` files.
    Activations,
    /// A folder in the format of SAELens or of dictionary_learning.
    Sae,
}

impl LocalKind {
    fn takes(self, file: &str) -> bool {
        let ends = |ends: &[&str]| ends.iter().any(|end| file.ends_with(end));
        match self {
            Self::Model => ["config.json", "tokenizer.json"].contains(&file) || ends(&[".safetensors", ".index.json"]),
            Self::Text => ends(&[".txt"]),
            Self::Activations => ends(&[".parquet"]),
            Self::Sae => ["cfg.json", "sae_weights.safetensors", "config.json", "ae.pt"].contains(&file),
        }
    }

    fn files(self) -> &'static str {
        match self {
            Self::Model => "`config.json`, `tokenizer.json` and `*.safetensors`",
            Self::Text => "`*.txt`",
            Self::Activations => "`*.parquet`",
            Self::Sae => "`cfg.json` and `sae_weights.safetensors`, and no `config.json` and `ae.pt`",
        }
    }
}

/// Errors: the path does not exist, or the folder holds no such files.
pub(crate) fn look_at(local: &Local) -> Result<Source> {
    let Local { name, key, path, kind } = local;
    let at = || format!("{key} = {}", path.display());
    let metadata = std::fs::metadata(path).with_context(at)?;
    let (folder, files) = if metadata.is_file() {
        ensure!(
            !matches!(kind, LocalKind::Activations | LocalKind::Sae),
            "{}: expected a folder of {}",
            at(),
            kind.files()
        );
        let file = path.file_name().and_then(|file| file.to_str()).with_context(at)?;
        (path.parent().unwrap_or(Path::new("")).to_owned(), vec![file.to_owned()])
    } else {
        (path.clone(), files_of(path, *kind).with_context(at)?)
    };
    ensure!(!files.is_empty(), "{}: the folder holds no {}", at(), kind.files());
    let outputs = files.into_iter().map(|file| {
        let path = folder.join(&file);
        let bytes = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        Ok(Output { path: file, sha256: digest::of_file(&path)?, bytes, rows: None })
    });
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    let lines: String = outputs.iter().map(|o| format!("{} {}\n", o.sha256, o.path)).collect();
    let digest = digest::of_bytes(lines.as_bytes());
    Ok(Source { name: name.clone(), path: Some(folder), digest, outputs })
}

/// Sorted by name.
fn files_of(folder: &Path, kind: LocalKind) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|name| anyhow::anyhow!("the file name {name:?} is not UTF-8"))?;
        if kind.takes(&name) && entry.path().is_file() {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(path: &Path, kind: LocalKind) -> Result<Source> {
        look_at(&Local { name: "mine".into(), key: "source.x.path".into(), path: path.into(), kind })
    }

    #[test]
    fn a_folders_files_are_listed_in_order_and_a_change_shows() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.txt", "notes.md"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let before = local(folder.path(), LocalKind::Text).unwrap();
        assert_eq!(before.outputs.iter().map(|o| o.path.as_str()).collect::<Vec<_>>(), ["a.txt", "b.txt"]);
        std::fs::write(folder.path().join("b.txt"), "other").unwrap();
        assert_ne!(local(folder.path(), LocalKind::Text).unwrap().digest, before.digest);
    }

    #[test]
    fn what_is_not_there_is_named_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let error = format!("{:#}", local(&folder.path().join("no"), LocalKind::Model).unwrap_err());
        assert!(error.contains("source.x.path = "), "{error}");
        let error = format!("{:#}", local(folder.path(), LocalKind::Activations).unwrap_err());
        assert!(error.contains("holds no `*.parquet`"), "{error}");
    }
}
