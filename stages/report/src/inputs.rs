//! What the report reads: the tables of `recover` and `probe`, the curves of every SAE, and the pipeline's wishes.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use artifact::config::{Pipeline, Sae};
use artifact::digest;
use artifact::stage::{Input, Stage};
use artifact::tables::{CurveRow, DensityBin, Metric, ProbeScore, Row, SpliceScore, read_rows};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::trees::TreeSummary;

/// The published folders that the report is made from.
pub(crate) struct Folders {
    harvest: Input,
    train: Input,
    saes: Vec<Input>,
    recover: Input,
    probe: Input,
}

/// Everything read, in the order of the pipeline.
pub(crate) struct Run {
    pub(crate) pipeline: Pipeline,
    pub(crate) saes: Vec<TrainedSae>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) trees: Vec<TreeSummary>,
    pub(crate) density: Vec<DensityBin>,
    pub(crate) probes: Vec<ProbeScore>,
    pub(crate) splices: Vec<SpliceScore>,
    /// `harvest/stats.json`.
    pub(crate) stats: Value,
    /// Folder → digest of what it held, and the digest of the configuration.
    pub(crate) made_from: BTreeMap<String, String>,
}

pub(crate) struct TrainedSae {
    pub(crate) config: Sae,
    pub(crate) curve: Vec<CurveRow>,
}

/// The part of the pipeline that the report shows or checks against.
pub(crate) fn config_of(pipeline: &Pipeline) -> Value {
    serde_json::json!({
        "report": pipeline.report,
        "source": pipeline.source,
        "harvest": {"hook": pipeline.harvest.hook},
        "train": {"n_tokens": pipeline.train.n_tokens, "saes": pipeline.train.saes},
        "probe": {"tasks": pipeline.probe.tasks, "ks": pipeline.probe.ks, "splice": pipeline.probe.splice},
    })
}

impl Folders {
    /// Errors: one of them has not been published yet.
    pub(crate) fn open(stage: &Stage) -> Result<Self> {
        let saes = &stage.pipeline.train.saes;
        Ok(Self {
            harvest: stage.input("harvest")?,
            train: stage.input("train")?,
            saes: saes.iter().map(|sae| stage.input(&format!("train/{}", sae.name))).collect::<Result<_>>()?,
            recover: stage.input("recover")?,
            probe: stage.input("probe")?,
        })
    }

    pub(crate) fn all(&self) -> Vec<&Input> {
        let mut all = vec![&self.harvest, &self.train];
        all.extend(&self.saes);
        all.extend([&self.recover, &self.probe]);
        all
    }
}

impl Run {
    /// Errors: a file is missing, is not what was published, or has other columns (it is named).
    pub(crate) fn read(pipeline: &Pipeline, folders: &Folders) -> Result<Self> {
        let saes = folders.saes.iter().map(|input| {
            // As published: of an imported SAE the pipeline only knows the name.
            let config = json::<Cfg>(input, "cfg.json")?.metadata.hiersae.config;
            let curve = read_rows(&input.file("curve.parquet")?)?;
            Ok(TrainedSae { config, curve })
        });
        let mut made_from: BTreeMap<_, _> =
            folders.all().into_iter().map(|input| (input.name.clone(), input.manifest.digest.clone())).collect();
        made_from.insert("config".into(), digest::of_bytes(config_of(pipeline).to_string().as_bytes()));
        Ok(Self {
            pipeline: pipeline.clone(),
            saes: saes.collect::<Result<_>>()?,
            metrics: read_rows(&folders.recover.file("recovery.parquet")?)?,
            trees: json::<Summary>(&folders.recover, "summary.json")?.trees,
            density: optional(&folders.recover, "density.parquet")?,
            probes: optional(&folders.probe, "probes.parquet")?,
            splices: optional(&folders.probe, "splice.parquet")?,
            stats: json(&folders.harvest, "stats.json")?,
            made_from,
        })
    }

    pub(crate) fn sae(&self, name: &str) -> Option<&TrainedSae> {
        self.saes.iter().find(|sae| sae.config.name == name)
    }
}

/// A table that a stage leaves out where it has nothing to say: without a language model there is nothing to probe.
fn optional<R: Row>(input: &Input, path: &str) -> Result<Vec<R>> {
    if input.has(path) { read_rows(&input.file(path)?) } else { Ok(Vec::new()) }
}

/// `recover/summary.json`, as far as it is read here.
#[derive(Deserialize)]
struct Summary {
    trees: Vec<TreeSummary>,
}

/// `train/NAME/cfg.json`, as far as it is read here.
#[derive(Deserialize)]
struct Cfg {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    hiersae: Ours,
}

#[derive(Deserialize)]
struct Ours {
    config: Sae,
}

fn json<T: DeserializeOwned>(input: &Input, path: &str) -> Result<T> {
    let path = input.file(path)?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
