//! What the report reads: the tables of `recover` and `probe`, the curves of every SAE, and the pipeline's wishes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Error, Result, bail, ensure};
use artifact::config::{Pipeline, Report, Sae};
use artifact::digest;
use artifact::stage::{Input, MANIFEST, Stage};
use artifact::tables::{CurveRow, DensityBin, Metric, ProbeScore, Row, SpliceScore, read_rows};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::comparison::{Contender, Training};
use crate::trees::{self, TreeSummary};

/// The published folders that the report is made from.
pub(crate) struct Folders {
    /// None for a pipeline that only compares other runs.
    own: Option<Own>,
    beside: Vec<Beside>,
    /// Runs beside this one that may be left out, and are.
    missing: Vec<String>,
}

struct Own {
    harvest: Input,
    train: Input,
    saes: Vec<PublishedSae>,
    recover: Input,
    probe: Input,
}

/// Of another run, what is compared.
struct Beside {
    /// The last part of the path to its folder.
    run: String,
    /// Says what families there are.
    train: Input,
    saes: Vec<PublishedSae>,
    recover: Input,
    /// Where SAEs have been spliced into a model.
    probe: Option<Input>,
}

/// `train/NAME`, and what `train/saes.json` says beside it.
struct PublishedSae {
    input: Input,
    family: Option<String>,
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
    /// Runs that were to be beside this one, and are not there.
    pub(crate) missing: Vec<String>,
    /// Folder → digest of what it held, and the digest of the configuration.
    pub(crate) made_from: BTreeMap<String, String>,
}

pub(crate) struct TrainedSae {
    pub(crate) config: Sae,
    pub(crate) curve: Vec<CurveRow>,
}

/// The part of the pipeline that the report shows or checks against.
pub(crate) fn config_of(pipeline: &Pipeline) -> Value {
    // Where other runs lie means nothing elsewhere; what they hold is among the inputs.
    let beside = pipeline.report.beside.iter().map(|run| name_of(run).into()).collect();
    serde_json::json!({
        "report": Report { beside, ..pipeline.report.clone() },
        "source": pipeline.source,
        "harvest": {"hook": pipeline.harvest.hook},
        "train": {"n_tokens": pipeline.train.n_tokens, "saes": pipeline.train.saes},
        "probe": {"tasks": pipeline.probe.tasks, "ks": pipeline.probe.ks, "splice": pipeline.probe.splice},
    })
}

impl Folders {
    /// Errors: one of them has not been published yet.
    pub(crate) fn open(stage: &Stage) -> Result<Self> {
        let pipeline = &stage.pipeline;
        let own = || {
            let train = stage.input("train")?;
            Ok::<_, Error>(Own {
                harvest: stage.input("harvest")?,
                saes: published(&train, |folder| stage.input(folder))?,
                train,
                recover: stage.input("recover")?,
                probe: stage.input("probe")?,
            })
        };
        let own = if pipeline.only_compares() { None } else { Some(own()?) };
        let Report { beside, skip_missing, .. } = &pipeline.report;
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for run in beside {
            let is_taken = !skip_missing || is_finished(run)?;
            if is_taken { there.push(run) } else { missing.push(run) }
        }
        if own.is_none() && there.is_empty() {
            bail!("report.beside: no run has been made yet in {}", missing[0].display());
        }
        Ok(Self {
            own,
            beside: there.into_iter().map(|run| Beside::open(run)).collect::<Result<_>>()?,
            missing: missing.into_iter().map(|run| name_of(run)).collect(),
        })
    }

    pub(crate) fn all(&self) -> Vec<&Input> {
        let mut all = Vec::new();
        if let Some(own) = &self.own {
            all.extend([&own.harvest, &own.train]);
            all.extend(own.saes.iter().map(|sae| &sae.input));
            all.extend([&own.recover, &own.probe]);
        }
        for beside in &self.beside {
            all.push(&beside.train);
            all.extend(beside.saes.iter().map(|sae| &sae.input));
            all.push(&beside.recover);
            all.extend(&beside.probe);
        }
        all
    }
}

impl Beside {
    fn open(folder: &Path) -> Result<Self> {
        let run = name_of(folder);
        let open = |name: &str| {
            let mut input = Input::open(folder, name).context("report.beside")?;
            input.name = format!("beside/{run}/{name}");
            Ok::<_, Error>(input)
        };
        let train = open("train")?;
        let saes = published(&train, open)?;
        let recover = open("recover")?;
        let probe = spliced_in(folder, open)?;
        let stale = stale(&saes, &recover, probe.as_ref(), folder)?;
        ensure!(
            stale.is_none(),
            "report.beside: {}: its figures are of another {}, which has been trained since; run `make recover probe` there",
            folder.display(),
            stale.unwrap_or_default()
        );
        Ok(Self { run, train, saes, recover, probe })
    }
}

impl Run {
    /// Errors: a file is missing, is not what was published, or has other columns (it is named).
    pub(crate) fn read(pipeline: &Pipeline, folders: &Folders) -> Result<Self> {
        let mut made_from: BTreeMap<_, _> =
            folders.all().into_iter().map(|input| (input.name.clone(), input.manifest.digest.clone())).collect();
        made_from.insert("config".into(), digest::of_bytes(config_of(pipeline).to_string().as_bytes()));
        let mut run = Self {
            pipeline: pipeline.clone(),
            saes: Vec::new(),
            metrics: Vec::new(),
            trees: Vec::new(),
            density: Vec::new(),
            probes: Vec::new(),
            splices: Vec::new(),
            stats: Value::Null,
            missing: folders.missing.clone(),
            made_from,
        };
        if let Some(own) = &folders.own {
            let saes = own.saes.iter().map(|sae| {
                let curve = read_rows(&sae.input.file("curve.parquet")?)?;
                Ok(TrainedSae { config: sae.config()?, curve })
            });
            run.saes = saes.collect::<Result<_>>()?;
            run.metrics = read_rows(&own.recover.file("recovery.parquet")?)?;
            run.trees = json::<Summary>(&own.recover, "summary.json")?.trees;
            run.density = optional(&own.recover, "density.parquet")?;
            run.probes = optional(&own.probe, "probes.parquet")?;
            run.splices = optional(&own.probe, "splice.parquet")?;
            run.stats = json(&own.harvest, "stats.json")?;
        }
        Ok(run)
    }

    /// This run, if it has SAEs, and those beside it.
    ///
    /// Errors: as of `read`.
    pub(crate) fn contenders(&self, folders: &Folders) -> Result<Vec<Contender>> {
        let own = folders.own.iter().map(|own| {
            Ok(Contender {
                run: None,
                data: harvest_of(&own.recover),
                saes: own.saes.iter().map(PublishedSae::contestant).collect::<Result<_>>()?,
                metrics: [self.metrics.clone(), trees::compared(&self.trees)?, spliced(&self.splices)].concat(),
                is_spliced_elsewhere: false,
            })
        });
        let mut contexts = folders.own.iter().map(|own| &own.probe).find(|probe| has_splices(probe)).map(contexts_of);
        let beside = folders.beside.iter().map(|beside| {
            let metrics: Vec<Metric> = read_rows(&beside.recover.file("recovery.parquet")?)?;
            let trees = json::<Summary>(&beside.recover, "summary.json")?.trees;
            let (mut splices, mut is_spliced_elsewhere) = (Vec::new(), false);
            if let Some(probe) = &beside.probe {
                is_spliced_elsewhere = *contexts.get_or_insert_with(|| contexts_of(probe)) != contexts_of(probe);
                if !is_spliced_elsewhere {
                    splices = read_rows(&probe.file("splice.parquet")?)?;
                }
            }
            Ok(Contender {
                run: Some(beside.run.clone()),
                data: harvest_of(&beside.recover),
                saes: beside.saes.iter().map(PublishedSae::contestant).collect::<Result<_>>()?,
                metrics: [metrics, trees::compared(&trees)?, spliced(&splices)].concat(),
                is_spliced_elsewhere,
            })
        });
        own.chain(beside).collect()
    }

    /// The first SAE of each family.
    pub(crate) fn one_a_family(&self) -> impl Iterator<Item = &TrainedSae> {
        let is_first = |(i, sae): &(usize, &TrainedSae)| {
            !self.saes[..*i].iter().any(|earlier| earlier.config.family() == sae.config.family())
        };
        self.saes.iter().enumerate().filter(is_first).map(|(_, sae)| sae)
    }

    pub(crate) fn sae(&self, name: &str) -> Option<&TrainedSae> {
        self.saes.iter().find(|sae| sae.config.name == name)
    }
}

/// Without a language model the table is there, and empty.
fn has_splices(probe: &Input) -> bool {
    probe.manifest.outputs.iter().any(|output| output.path == "splice.parquet" && output.rows.is_some_and(|n| n > 0))
}

/// The `probe` of a run whose SAEs have been spliced into a model.
fn spliced_in(run: &Path, open: impl Fn(&str) -> Result<Input>) -> Result<Option<Input>> {
    if is_published(run, "probe") { Ok(Some(open("probe")?).filter(has_splices)) } else { Ok(None) }
}

/// What decides which of a harvest's contexts SAEs are spliced into.
fn contexts_of(probe: &Input) -> (Value, u64) {
    let key = &probe.manifest.key;
    (key.config["probe"]["splice"].clone(), key.seed)
}

/// What reconstructions cost the model, as far as families are compared by it.
fn spliced(scores: &[SpliceScore]) -> Vec<Metric> {
    let metric = |score: &SpliceScore| Metric {
        sae: score.sae.clone(),
        seed: score.seed,
        view: score.view.clone(),
        threshold: score.threshold.clone(),
        metric: "ce_recovered".into(),
        level: "all".into(),
        value: score.ce_recovered,
        ci_low: Some(score.ci_low),
        ci_high: Some(score.ci_high),
    };
    scores.iter().filter(|score| score.intervention == "reconstruction").map(metric).collect()
}

/// What tells a run from others beside it.
pub(crate) fn name_of(run: &Path) -> String {
    run.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_published(run: &Path, folder: &str) -> bool {
    run.join(folder).join(MANIFEST).exists()
}

/// Whether everything has been published that a comparison reads, and is of one making.
///
/// Errors: what has been published is damaged.
fn is_finished(run: &Path) -> Result<bool> {
    let has = |folder: &str| is_published(run, folder);
    if !has("train") || !has("recover") {
        return Ok(false);
    }
    let train = Input::open(run, "train")?;
    let listed: Vec<Listed> = json(&train, "saes.json")?;
    if !listed.iter().all(|sae| has(&sae.folder) && has(&measured_in(&sae.folder))) {
        return Ok(false);
    }
    let saes = published(&train, |folder| Input::open(run, folder))?;
    let probe = spliced_in(run, |folder| Input::open(run, folder))?;
    Ok(stale(&saes, &Input::open(run, "recover")?, probe.as_ref(), run)?.is_none())
}

/// `train/NAME` → `recover/NAME`.
fn measured_in(folder: &str) -> String {
    folder.replacen("train/", "recover/", 1)
}

/// The first SAE whose figures are those of an earlier training, or of an earlier measurement.
fn stale(saes: &[PublishedSae], recover: &Input, probe: Option<&Input>, run: &Path) -> Result<Option<String>> {
    for PublishedSae { input, .. } in saes {
        let folder = &input.name[input.name.find("train/").unwrap_or(0)..];
        let measured = Input::open(run, &measured_in(folder)).context("report.beside")?;
        let is_of_it = measured.manifest.key.inputs.get(folder) == Some(&input.manifest.digest);
        let is_told = recover.manifest.key.inputs.get(&measured.name) == Some(&measured.manifest.digest);
        let is_spliced =
            probe.is_none_or(|probe| probe.manifest.key.inputs.get(folder) == Some(&input.manifest.digest));
        if !is_of_it || !is_told || !is_spliced {
            return Ok(Some(folder.to_owned()));
        }
    }
    Ok(None)
}

/// The digest of the activations on which it was measured.
fn harvest_of(recover: &Input) -> String {
    recover.manifest.key.inputs.get("harvest").cloned().unwrap_or_default()
}

/// The SAEs that `train/saes.json` lists.
fn published(train: &Input, open: impl Fn(&str) -> Result<Input>) -> Result<Vec<PublishedSae>> {
    let listed: Vec<Listed> = json(train, "saes.json")?;
    let saes = listed.into_iter().map(|Listed { folder, family }| Ok(PublishedSae { input: open(&folder)?, family }));
    saes.collect()
}

impl PublishedSae {
    /// As published: of an imported SAE the pipeline only knows the name.
    fn config(&self) -> Result<Sae> {
        let config = json::<Cfg>(&self.input, "cfg.json")?.metadata.hiersae.config;
        // Runs of older builds have it in the SAE's own file.
        Ok(Sae { family: self.family.clone().or(config.family), ..config })
    }

    /// Its key says how it was trained.
    fn contestant(&self) -> Result<(Sae, Training)> {
        let sae = self.config()?;
        let train = &self.input.manifest.key.config["train"];
        let training = Training::new(&sae, train["n_tokens"].as_u64(), train["batch_size"].as_u64());
        Ok((sae, training))
    }
}

/// A table that a stage leaves out where it has nothing to say: without a language model there is nothing to probe.
fn optional<R: Row>(input: &Input, path: &str) -> Result<Vec<R>> {
    if input.has(path) { read_rows(&input.file(path)?) } else { Ok(Vec::new()) }
}

/// A line of `train/saes.json`.
#[derive(Deserialize)]
struct Listed {
    folder: String,
    family: Option<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_splice_the_reconstruction_is_compared() {
        let score = |sae: &str, intervention: &str, ce_recovered: f64| SpliceScore {
            sae: sae.into(),
            seed: 1,
            view: "flat".into(),
            threshold: "prior".into(),
            intervention: intervention.into(),
            cross_entropy: 3.0,
            kl: 0.1,
            ce_recovered,
            ci_low: 0.8,
            ci_high: 0.95,
            n_tokens: 100,
        };
        let scores = [score("", "clean", 1.0), score("a", "reconstruction", 0.9), score("a", "zero", 0.0)];
        let metrics = spliced(&scores);
        let found: Vec<_> = metrics.iter().map(|row| (row.sae.as_str(), row.metric.as_str(), row.value)).collect();
        assert_eq!(found, [("a", "ce_recovered", 0.9)]);
        assert_eq!((metrics[0].ci_low, metrics[0].ci_high), (Some(0.8), Some(0.95)));
    }
}
