//! What the latents are good for: sparse probes of labelled texts, and the model's own cross-entropy when the SAE's
//! reconstruction stands in for the activation (science.md §9). Writes `probe/probes.parquet` and `probe/splice.parquet`.

mod bootstrap;
mod classes;
mod cross_entropy;
mod examples;
mod logistic;
mod measure;
mod movies;
mod probing;
mod splice;
mod tasks;
mod texts;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use artifact::config::{ModelSource, ProbeTask};
use artifact::stage::{Input, Stage, main_of};
use artifact::tables::{Context, ProbeScore, SpliceScore, read_rows, write_rows};
use hsae::TrainedSae;
use lm::LanguageModel;
use serde::Deserialize;
use serde_json::json;

use crate::measure::Subject;

/// Raised when the same inputs and configuration come to give other results.
const RECIPE: u32 = 3;

fn main() -> ExitCode {
    main_of("probe", "Sparse probes of labelled texts, and the model's loss with the SAE spliced in", run)
}

fn run(stage: &Stage) -> Result<()> {
    let harvest = stage.input("harvest")?;
    let train = stage.input("train")?;
    let saes = sae_inputs(stage, &train)?;
    let model = match &stage.pipeline.source.model {
        Some(model) => Some(ModelInputs::find(stage, model)?),
        None => None,
    };
    let mut inputs = vec![&harvest];
    inputs.extend(&saes);
    inputs.extend(model.iter().flat_map(ModelInputs::all));
    // Of the list of SAEs, what is read: their families are the report's business.
    let names: Vec<_> = saes.iter().map(|sae| &sae.name).collect();
    let config = json!({"probe": stage.pipeline.probe, "saes": names});
    let Some(mut task) = stage.task("probe", RECIPE, config, &inputs)? else { return Ok(()) };

    let (probes, splices) = match &model {
        Some(model) => measure_all(stage, &harvest, &saes, model)?,
        None => {
            stage.log.line("the source has no language model: nothing to probe or splice, both tables stay empty");
            (Vec::new(), Vec::new())
        }
    };
    task.write("probes.parquet", |file| write_rows(file, &probes))?;
    task.write("splice.parquet", |file| write_rows(file, &splices))?;
    task.finish()?;
    Ok(())
}

fn measure_all(
    stage: &Stage,
    harvest: &Input,
    saes: &[Input],
    inputs: &ModelInputs,
) -> Result<(Vec<ProbeScore>, Vec<SpliceScore>)> {
    let config = &stage.pipeline.probe;
    let stats = Stats::read(&harvest.file("stats.json")?)?;
    let contexts: Vec<Context> = read_rows(&harvest.file("contexts.parquet")?)?;
    let saes = saes.iter().map(TrainedSae::load).collect::<Result<Vec<_>>>()?;
    let model = LanguageModel::open(&inputs.path, &lm::cpu())?;
    ensure!(
        model.config().d_model == stats.mean.len(),
        "harvest/stats.json: activations of {} values, but the model's have {}",
        stats.mean.len(),
        model.config().d_model
    );
    let subject = Subject {
        hook: stats.hook.parse().context("harvest/stats.json: hook")?,
        context_length: stats.context_length,
        mean: &stats.mean,
        norm_limit: stats.norm_limit.unwrap_or(f32::INFINITY),
        model: &model,
        saes: &saes,
        seed: stage.pipeline.seed,
        log: &stage.log,
    };
    let mut probes = Vec::new();
    for (task, source) in &inputs.tasks {
        let split = tasks::draw(*task, source, &contexts, config, stage.pipeline.seed, &stage.log)?;
        probes.extend(measure::probe(&subject, *task, &split, config)?);
    }
    let splices = match &config.splice {
        Some(splice) => measure::splice(&subject, &contexts, splice, config.n_bootstrap)?,
        None => Vec::new(),
    };
    Ok((probes, splices))
}

/// What is read beyond the run's own folders.
struct ModelInputs {
    model: Input,
    /// The model's file or folder.
    path: std::path::PathBuf,
    tasks: Vec<(ProbeTask, Input)>,
}

impl ModelInputs {
    fn find(stage: &Stage, model: &ModelSource) -> Result<Self> {
        let (model, path) = stage.model_input(model)?;
        let tasks = stage.pipeline.probe.tasks.iter().map(|&task| Ok((task, tasks::source(stage, task)?)));
        Ok(Self { model, path, tasks: tasks.collect::<Result<_>>()? })
    }

    fn all(&self) -> impl Iterator<Item = &Input> {
        std::iter::once(&self.model).chain(self.tasks.iter().map(|(_, input)| input))
    }
}

/// The published SAEs, in the pipeline's order.
fn sae_inputs(stage: &Stage, train: &Input) -> Result<Vec<Input>> {
    #[derive(Deserialize)]
    struct Listed {
        folder: String,
    }
    let path = train.file("saes.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let listed: Vec<Listed> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    listed.iter().map(|sae| stage.input(&sae.folder)).collect()
}

/// What `harvest/stats.json` says of the activations.
#[derive(Deserialize)]
struct Stats {
    mean: Vec<f32>,
    /// Rows beyond this norm were left out of the dataset.
    norm_limit: Option<f32>,
    hook: String,
    context_length: usize,
}

impl Stats {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        let stats: Self = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(stats.mean.iter().all(|value| value.is_finite()), "{}: mean is not finite", path.display());
        ensure!(stats.context_length >= 2, "{}: context_length is below 2", path.display());
        Ok(stats)
    }
}
