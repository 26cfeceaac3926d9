//! What a stage reads: folders that other stages have published, their files verified before they are parsed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::manifest::{Key, Manifest, Output, SCHEMA};
use super::replace;
use crate::digest;

pub struct Input {
    /// Relative to the run, for example `harvest`.
    pub name: String,
    pub manifest: Manifest,
    folder: PathBuf,
    verified: RefCell<BTreeSet<String>>,
}

impl Input {
    /// The folder `name` of a run. Errors: nothing has been published there.
    pub fn open(run: &Path, name: &str) -> Result<Self> {
        Self::at(run.join(name), name)
    }

    /// Files of the user, used where they are; `outputs` is what they were when `fetch` looked at them.
    pub(super) fn local(name: &str, folder: PathBuf, outputs: Vec<Output>) -> Self {
        let key = Key {
            schema: SCHEMA,
            stage: "fetch".into(),
            recipe: 0,
            seed: 0,
            device: "cpu".into(),
            config: serde_json::Value::Null,
            inputs: Default::default(),
        };
        Self { name: name.into(), manifest: Manifest::new(key, outputs), folder, verified: RefCell::default() }
    }

    pub(super) fn at(folder: PathBuf, name: &str) -> Result<Self> {
        // Sources are published by `fetch`.
        let name_of_stage = if name.starts_with("source/") { "fetch" } else { name };
        let stage = name_of_stage.split('/').next().unwrap_or(name);
        let manifest = Manifest::read(&folder)?
            .with_context(|| format!("{}: nothing published there yet; run `make {stage}`", folder.display()))?;
        Ok(Self { name: name.into(), manifest, folder, verified: RefCell::default() })
    }

    /// The path of a published file, its digest checked once per process.
    ///
    /// Errors: the manifest lists no such file, or the file is missing or is not what was published.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let full = self.folder.join(path);
        let output = self.output(path)?;
        if !self.verified.borrow().contains(path) {
            let found = digest::of_file(&full)?;
            let stage = &self.manifest.key.stage;
            if found != output.sha256 {
                ensure!(
                    !replace::is_half_done(&self.folder),
                    "{}: `{stage}` was ended while it put this folder's new files in place; run `make {stage}`, which goes on",
                    self.folder.display()
                );
                bail!(
                    "{}: sha256 is {found}, but {} was published; run `make again-{stage}`",
                    full.display(),
                    output.sha256
                );
            }
            self.verified.borrow_mut().insert(path.into());
        }
        Ok(full)
    }

    /// Whether the folder holds such a file at all.
    pub fn has(&self, path: &str) -> bool {
        self.manifest.outputs.iter().any(|output| output.path == path)
    }

    /// Published paths that start so, sorted.
    pub fn paths(&self, prefix: &str) -> Vec<String> {
        let outputs = self.manifest.outputs.iter().filter(|output| output.path.starts_with(prefix));
        outputs.map(|output| output.path.clone()).collect()
    }

    fn output(&self, path: &str) -> Result<&Output> {
        let output = self.manifest.outputs.iter().find(|output| output.path == path);
        output.with_context(|| format!("{}: its manifest lists no {path}", self.folder.display()))
    }
}
