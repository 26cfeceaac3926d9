//! All figures in one list, each with its interval, its artifact and the filter that finds it there.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use artifact::tables::{Metric, ProbeScore, SpliceScore};
use serde::Serialize;

use crate::inputs::Run;
use crate::measures::TREES;
use crate::trees;

/// An SAE read in one way: with or without its gate, with one or the other threshold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Mode {
    /// Empty for what is not about an SAE: the clean model, ablations, probes on activations.
    pub(crate) sae: String,
    pub(crate) seed: u64,
    /// `flat` or `gated`.
    pub(crate) view: String,
    /// `native` or `prior`.
    pub(crate) threshold: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    #[serde(flatten)]
    pub(crate) mode: Mode,
    pub(crate) metric: String,
    /// `all`, `coarse` or `fine` latents; `activations` or `embeddings` where a probe reads those instead.
    pub(crate) level: String,
    /// Tree figures: `own`, `posthoc`, `rate-matched`, `cosine`, `permuted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tree: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    /// Latents that a probe may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) k: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) intervention: Option<String>,
    pub(crate) value: f64,
    pub(crate) ci_low: Option<f64>,
    pub(crate) ci_high: Option<f64>,
    pub(crate) source: Source,
}

/// `select COLUMN from ARTIFACT where FILTER` gives the figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Source {
    pub(crate) artifact: String,
    pub(crate) column: String,
    pub(crate) filter: String,
}

/// Which figure is meant, within a mode.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) metric: String,
    pub(crate) level: String,
    pub(crate) tree: Option<String>,
    pub(crate) task: Option<String>,
    pub(crate) k: Option<u64>,
}

pub(crate) struct Figures {
    pub(crate) all: Vec<Figure>,
    index: BTreeMap<(Mode, Name), usize>,
    /// Modes of SAEs: SAEs in the pipeline's order, flat before gated, native before prior.
    pub(crate) modes: Vec<Mode>,
}

/// Errors: the summary of trees has another form; a figure is NaN or infinite (it is named by artifact and filter).
pub(crate) fn collect(run: &Run) -> Result<Figures> {
    let mut all: Vec<Figure> = run.metrics.iter().map(of_metric).collect();
    all.extend(trees::of_summary(&run.trees)?);
    all.extend(run.probes.iter().map(of_probe));
    all.extend(chances(&run.probes));
    all.extend(run.splices.iter().flat_map(of_splice));
    for figure in &all {
        let finite = [Some(figure.value), figure.ci_low, figure.ci_high].iter().flatten().all(|x| x.is_finite());
        let Source { artifact, column, filter } = &figure.source;
        ensure!(finite, "{artifact}: {column} where {filter} is NaN or infinite, value or interval");
    }
    Ok(Figures::new(all, run))
}

impl Figures {
    fn new(all: Vec<Figure>, run: &Run) -> Self {
        let index = all.iter().enumerate().map(|(i, figure)| ((figure.mode.clone(), figure.name()), i)).collect();
        let place = |mode: &Mode| run.saes.iter().position(|sae| sae.config.name == mode.sae);
        let mut modes: Vec<Mode> = all.iter().map(|f| f.mode.clone()).filter(|mode| !mode.sae.is_empty()).collect();
        modes.sort_by_key(|mode| (place(mode).unwrap_or(usize::MAX), mode.clone()));
        modes.dedup();
        Self { all, index, modes }
    }

    pub(crate) fn get(&self, mode: &Mode, name: &Name) -> Option<&Figure> {
        self.index.get(&(mode.clone(), name.clone())).and_then(|&i| self.all.get(i))
    }

    pub(crate) fn value(&self, mode: &Mode, metric: &str, level: &str) -> Option<f64> {
        self.get(mode, &Name::new(metric, level)).map(|figure| figure.value)
    }

    /// Thresholds in the order of the modes.
    pub(crate) fn thresholds(&self) -> Vec<String> {
        let mut thresholds: Vec<_> = self.modes.iter().map(|mode| mode.threshold.clone()).collect();
        thresholds.sort();
        thresholds.dedup();
        thresholds
    }
}

impl Name {
    /// Whether it counts what was found; a count is no estimate and has no interval.
    pub(crate) fn is_count(&self) -> bool {
        self.metric.split('_').any(|word| word == "n")
    }

    /// Whether it repeats, for another tree, what is told of the SAE's first one.
    pub(crate) fn is_of_other_tree(&self) -> bool {
        TREES.iter().any(|(tree, _)| self.metric.ends_with(&format!("_{tree}")))
    }
}

impl Figure {
    pub(crate) fn name(&self) -> Name {
        Name {
            metric: match &self.intervention {
                Some(intervention) if intervention != "reconstruction" => format!("{}/{intervention}", self.metric),
                _ => self.metric.clone(),
            },
            level: self.level.clone(),
            tree: self.tree.clone(),
            task: self.task.clone(),
            k: self.k,
        }
    }
}

impl Name {
    pub(crate) fn new(metric: &str, level: &str) -> Self {
        Self { metric: metric.into(), level: level.into(), tree: None, task: None, k: None }
    }

    pub(crate) fn tree(mut self, tree: &str) -> Self {
        self.tree = Some(tree.into());
        self
    }

    pub(crate) fn task(mut self, task: &str, k: Option<u64>) -> Self {
        self.task = Some(task.into());
        self.k = k;
        self
    }
}

impl Mode {
    /// The rows of an artifact that are about this mode.
    pub(crate) fn filter(&self) -> String {
        let Self { sae, seed, view, threshold } = self;
        format!("sae = '{sae}' and seed = {seed} and view = '{view}' and threshold = '{threshold}'")
    }
}

fn of_metric(row: &Metric) -> Figure {
    let mode = Mode { sae: row.sae.clone(), seed: row.seed, view: row.view.clone(), threshold: row.threshold.clone() };
    let filter = format!("{} and metric = '{}' and level = '{}'", mode.filter(), row.metric, row.level);
    let source = Source { artifact: "recover/recovery.parquet".into(), column: "value".into(), filter };
    Figure {
        metric: row.metric.clone(),
        level: row.level.clone(),
        value: row.value,
        ci_low: row.ci_low,
        ci_high: row.ci_high,
        ..Figure::empty(mode, source)
    }
}

fn of_probe(row: &ProbeScore) -> Figure {
    let mode = Mode { sae: row.sae.clone(), seed: row.seed, view: row.view.clone(), threshold: row.threshold.clone() };
    let k = row.k.map_or("k is null".into(), |k| format!("k = {k}"));
    let filter = format!("{} and task = '{}' and level = '{}' and {k}", mode.filter(), row.task, row.level);
    let source = Source { artifact: "probe/probes.parquet".into(), column: "score".into(), filter };
    // Baselines belong to no SAE, whatever else their rows say.
    let mode = if row.sae.is_empty() { Mode::none() } else { mode };
    Figure {
        metric: "probe_accuracy".into(),
        level: row.level.clone(),
        task: Some(row.task.clone()),
        k: row.k,
        value: row.score,
        ci_low: Some(row.ci_low),
        ci_high: Some(row.ci_high),
        ..Figure::empty(mode, source)
    }
}

/// The share of the largest class, once a task.
fn chances(rows: &[ProbeScore]) -> Vec<Figure> {
    let tasks: BTreeMap<&str, f64> = rows.iter().map(|row| (row.task.as_str(), row.baseline)).collect();
    let figure = |(task, value): (&str, f64)| Figure {
        metric: "probe_chance".into(),
        level: "all".into(),
        task: Some(task.into()),
        value,
        ..Figure::empty(
            Mode::none(),
            Source {
                artifact: "probe/probes.parquet".into(),
                column: "baseline".into(),
                filter: format!("task = '{task}'"),
            },
        )
    };
    tasks.into_iter().map(figure).collect()
}

fn of_splice(row: &SpliceScore) -> Vec<Figure> {
    let mode = Mode { sae: row.sae.clone(), seed: row.seed, view: row.view.clone(), threshold: row.threshold.clone() };
    let filter = format!("{} and intervention = '{}'", mode.filter(), row.intervention);
    let mode = if row.sae.is_empty() { Mode::none() } else { mode };
    let figure = |metric: &str, value: f64, interval: Option<(f64, f64)>| Figure {
        metric: metric.into(),
        level: "all".into(),
        intervention: Some(row.intervention.clone()),
        value,
        ci_low: interval.map(|(low, _)| low),
        ci_high: interval.map(|(_, high)| high),
        ..Figure::empty(
            mode.clone(),
            Source { artifact: "probe/splice.parquet".into(), column: metric.into(), filter: filter.clone() },
        )
    };
    vec![
        figure("cross_entropy", row.cross_entropy, None),
        figure("kl", row.kl, None),
        // The table's interval is that of its last score.
        figure("ce_recovered", row.ce_recovered, Some((row.ci_low, row.ci_high))),
    ]
}

impl Mode {
    pub(crate) fn none() -> Self {
        Self { sae: String::new(), seed: 0, view: String::new(), threshold: String::new() }
    }
}

impl Figure {
    pub(crate) fn empty(mode: Mode, source: Source) -> Self {
        Self {
            mode,
            metric: String::new(),
            level: String::new(),
            tree: None,
            task: None,
            k: None,
            intervention: None,
            value: 0.0,
            ci_low: None,
            ci_high: None,
            source,
        }
    }
}
