//! One output folder being made: lock, compare keys, clear, write, publish. The manifest comes last, so that a folder
//! is whole or says that it is not. A folder that is replaced stays whole all the while (`replace`).

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::lock::{self, FolderLock};
use super::log::Log;
use super::manifest::{self, Key, Manifest, Output};
use super::replace;
use crate::digest;

/// Unpublished work that a later run of the same task may go on from.
const CHECKPOINT: &str = "checkpoint";

pub struct Task {
    folder: PathBuf,
    key: Key,
    outputs: Vec<Output>,
    /// Files that are written, and take their places when the task is finished: (temporary, target). None: each at once.
    waiting: Option<Vec<(PathBuf, PathBuf)>>,
    _lock: FolderLock,
}

/// What stands in a folder, beside what is wanted there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    Fresh,
    Missing,
    /// Why, in words.
    Stale(String),
}

impl State {
    pub(super) fn of(folder: &Path, key: &Key) -> Self {
        let manifest = match Manifest::read(folder) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Self::Missing,
            Err(error) => return Self::Stale(format!("{error:#}")),
        };
        let changes = key.changes_since(&manifest.key);
        if !changes.is_empty() {
            return Self::Stale(changes.join(", "));
        }
        manifest.damage(folder).map_or(Self::Fresh, Self::Stale)
    }
}

impl Task {
    /// `None`: the folder already holds what the key would make. `name` is what the log calls it.
    ///
    /// Errors: another process writes there.
    pub(super) fn begin(folder: PathBuf, name: &str, key: Key, force: bool, log: &Log) -> Result<Option<Self>> {
        let lock = FolderLock::take(&folder)?;
        match State::of(&folder, &key) {
            State::Fresh if !force => {
                log.line(format!("{name}: up to date"));
                replace::remove_temporaries(&folder)?;
                touch(&folder.join(manifest::FILE_NAME))?;
                return Ok(None);
            }
            State::Fresh => log.line(format!("{name}: rerun, as asked")),
            State::Missing => {}
            State::Stale(why) => log.line(format!("{name}: rerun: {why}")),
        }
        clear(&folder, |_| false)?;
        Ok(Some(Self { folder, key, outputs: Vec::new(), waiting: None, _lock: lock }))
    }

    /// A task that makes a folder anew from what the folder holds, which stays as it is until the task is
    /// finished. `None`: what was published there is damaged, or differs in more than `part` of the configuration.
    ///
    /// Errors: another process writes there.
    pub(super) fn replace(folder: PathBuf, key: Key, part: &str, log: &Log) -> Result<Option<Self>> {
        let lock = FolderLock::take(&folder)?;
        replace::put_in_place(&folder)?;
        let Ok(Some(manifest)) = Manifest::read(&folder) else { return Ok(None) };
        let may_serve = manifest.key != key && manifest.key.without(part) == key.without(part);
        if !may_serve || manifest.damage(&folder).is_some() {
            return Ok(None);
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        log.line(format!("{name}: rerun: {}", key.changes_since(&manifest.key).join(", ")));
        replace::remove_temporaries(&folder)?;
        Ok(Some(Self { folder, key, outputs: Vec::new(), waiting: Some(Vec::new()), _lock: lock }))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Identifies what is being made; a checkpoint that carries another one is of no use.
    pub fn key_digest(&self) -> String {
        digest_of(&self.key)
    }

    /// The same, whatever a part of its configuration says.
    pub fn key_digest_without(&self, part: &str) -> String {
        digest_of(&self.key.without(part))
    }

    /// Where unfinished work may be kept. It goes when the task is published.
    pub fn checkpoint_folder(&self) -> PathBuf {
        self.folder.join(CHECKPOINT)
    }

    /// Writes one output: into a temporary file beside it, synced, then renamed. `write` returns the number of rows, for
    /// tables.
    pub fn write(&mut self, path: &str, write: impl FnOnce(&mut BufWriter<File>) -> Result<Option<u64>>) -> Result<()> {
        let mut output = self.create(path)?;
        let rows = write(&mut output.file)?;
        self.publish(output, rows)
    }

    pub fn write_bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.write(path, |file| {
            file.write_all(bytes)?;
            Ok(None)
        })
    }

    /// JSON with two spaces of indent and a final newline. NaN and infinities would become `null`: check before.
    pub fn write_json(&mut self, path: &str, value: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).with_context(|| path.to_owned())?;
        text.push('\n');
        self.write_bytes(path, text.as_bytes())
    }

    /// Opens an output that is written piece by piece; `publish` makes it one.
    pub fn create(&self, path: &str) -> Result<OpenOutput> {
        ensure!(!self.outputs.iter().any(|output| output.path == path), "{path} is published twice");
        let target = self.folder.join(path);
        let parent = target.parent().context("an output lies in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("{}: cannot make the folder", parent.display()))?;
        let temporary = replace::temporary(&target);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary);
        let file = file.with_context(|| format!("{}: cannot write", temporary.display()))?;
        Ok(OpenOutput { path: path.into(), target, temporary, file: BufWriter::with_capacity(1 << 20, file) })
    }

    pub fn publish(&mut self, output: OpenOutput, rows: Option<u64>) -> Result<()> {
        let OpenOutput { path, target, temporary, mut file } = output;
        let context = || format!("{}: cannot write", temporary.display());
        file.flush().with_context(context)?;
        file.get_ref().sync_all().with_context(context)?;
        let bytes = file.get_ref().metadata().with_context(context)?.len();
        drop(file);
        let sha256 = digest::of_file(&temporary)?;
        match &mut self.waiting {
            Some(waiting) => waiting.push((temporary, target)),
            None => rename(&temporary, &target)?,
        }
        self.outputs.push(Output { path, sha256, bytes, rows });
        Ok(())
    }

    /// Everything is there: syncs the folder and writes the manifest.
    pub fn finish(self) -> Result<Manifest> {
        let checkpoint = self.checkpoint_folder();
        let manifest = Manifest::new(self.key, self.outputs);
        let path = self.folder.join(manifest::FILE_NAME);
        let temporary = replace::temporary(&path);
        let mut file = File::create(&temporary).with_context(|| format!("{}: cannot write", temporary.display()))?;
        let mut text = serde_json::to_string_pretty(&manifest)?;
        text.push('\n');
        file.write_all(text.as_bytes()).with_context(|| format!("{}: cannot write", temporary.display()))?;
        file.sync_all()?;
        // The task's own folder first, as the empty path.
        let parents = manifest.outputs.iter().filter_map(|output| Path::new(&output.path).parent());
        let folders: BTreeSet<PathBuf> =
            std::iter::once(Path::new("")).chain(parents).map(|folder| self.folder.join(folder)).collect();
        let is_replacement = self.waiting.is_some();
        if let Some(waiting) = &self.waiting {
            // All of it is there before the first takes its place: from here on a process that is killed, or loses its power,
            // has this done by the next.
            folders.iter().try_for_each(|folder| sync_folder(folder))?;
            waiting.iter().try_for_each(|(temporary, target)| rename(temporary, target))?;
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))?;
        rename(&temporary, &path)?;
        sync_folder(&self.folder)?;
        if is_replacement {
            let is_published = |name: &str| {
                let first = |output: &Output| Path::new(&output.path).iter().next().is_some_and(|first| first == name);
                name == manifest::FILE_NAME || manifest.outputs.iter().any(first)
            };
            clear(&self.folder, is_published)?;
        }
        if checkpoint.exists() {
            std::fs::remove_dir_all(&checkpoint).with_context(|| format!("{}: cannot remove", checkpoint.display()))?;
        }
        Ok(manifest)
    }
}

fn digest_of(key: &Key) -> String {
    digest::of_bytes(serde_json::to_string(key).expect("a key is plain JSON").as_bytes())
}

/// An output under way; dropped without `publish`, it stays a `.tmp` that the next run clears.
pub struct OpenOutput {
    path: String,
    target: PathBuf,
    temporary: PathBuf,
    pub file: BufWriter<File>,
}

impl Write for OpenOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Removes what an earlier run of this task left, the manifest first, but for what is kept. Folders with a lock of their
/// own belong to other tasks, and a checkpoint may yet be of use.
fn clear(folder: &Path, is_kept: impl Fn(&str) -> bool) -> Result<()> {
    let manifest = folder.join(manifest::FILE_NAME);
    if manifest.exists() && !is_kept(manifest::FILE_NAME) {
        std::fs::remove_file(&manifest).with_context(|| format!("{}: cannot remove", manifest.display()))?;
        sync_folder(folder)?;
    }
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}: cannot list", folder.display()))? {
        let path = entry?.path();
        let name = file_name(&path);
        if name == lock::FILE_NAME || name == CHECKPOINT || is_kept(&name) {
            continue;
        }
        if path.is_dir() {
            if !path.join(lock::FILE_NAME).exists() {
                std::fs::remove_dir_all(&path).with_context(|| format!("{}: cannot remove", path.display()))?;
            }
        } else {
            std::fs::remove_file(&path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
    }
    Ok(())
}

/// Make compares times; a manifest that is still right gets a new one.
fn touch(path: &Path) -> Result<()> {
    let file = OpenOptions::new().append(true).open(path);
    let file = file.with_context(|| format!("{}: cannot open", path.display()))?;
    file.set_modified(std::time::SystemTime::now()).with_context(|| format!("{}: cannot touch", path.display()))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("{}: cannot rename", from.display()))
}

pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    let file = File::open(folder).with_context(|| format!("{}: cannot open", folder.display()))?;
    file.sync_all().with_context(|| format!("{}: cannot sync", folder.display()))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
