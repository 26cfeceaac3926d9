//! Activations → sparse autoencoders.

mod batches;
mod calibration;
mod data;
mod fresh;
mod import;
mod order;
mod together;

use std::process::ExitCode;

use anyhow::Result;
use artifact::config::{DeviceChoice, Sae};
use artifact::stage::{GpuSupport, Input, Key, Stage, Task, main_of_with_gpu};
use hsae::TrainedSae;
use hsae::export::{self, Record};
use hsae::gpu::{self, Gpu};
use serde_json::json;

use data::{Harvested, TrainingData};
use together::{Failures, or_error, train_together};

/// Raised when training computes something else from the same inputs and configuration.
const RECIPE: u32 = 8;

/// What `Stage::device` calls a GPU.
pub(crate) const GPU: &str = "cuda";

/// The part of an SAE's key that only its thresholds at inference depend on.
pub(crate) const CALIBRATION: &str = "calibration";

/// SAEs on one pass over data that do not fit in memory, or are drawn.
const TOGETHER: usize = 8;

fn main() -> ExitCode {
    let about = "Trains the pipeline's sparse autoencoders on harvested activations";
    let gpu = GpuSupport { is_compiled_in: gpu::HAS_CUDA, find: || Gpu::cuda().map(drop) };
    main_of_with_gpu("train", about, gpu, run)
}

fn run(stage: &Stage) -> Result<()> {
    if stage.pipeline.device == DeviceChoice::Cuda {
        // Asked for by name, it is for all of them.
        stage.pipeline.train.saes.iter().filter(|sae| sae.import.is_none()).try_for_each(gpu::check)?;
    }
    let harvest = stage.input("harvest")?;
    let harvested = Harvested::read(&harvest)?;
    let mut data = None;
    let mut failures = Failures::default();
    for (seed, saes) in by_seed(stage) {
        let mut others = Vec::new();
        for sae in saes {
            let key = key(stage, seed, sae, &harvest, &harvested)?;
            let Some(renewal) = calibration::start(stage, sae, key)? else {
                others.push(sae);
                continue;
            };
            let data = loaded(&mut data, stage, &harvest, &harvested)?;
            let renewed = or_error(sae, || renewal.finish(stage, sae, &harvested, data));
            match renewed {
                Ok(()) => others.push(sae),
                // Its weights are there, so that it is not trained.
                Err(error) => failures.note(stage, sae, error),
            }
        }
        let mut saes = others.into_iter().peekable();
        while saes.peek().is_some() {
            let started = start_some(stage, seed, &mut saes, &harvest, &harvested)?;
            if started.is_empty() {
                continue;
            }
            let data = loaded(&mut data, stage, &harvest, &harvested)?;
            train_together(stage, seed, started, &harvested, data, &mut failures)?;
        }
    }
    for sae in stage.pipeline.train.saes.iter().filter(|sae| sae.import.is_some()) {
        if let Some((source, task)) = import::start(stage, sae, &harvest, &harvested)? {
            let data = loaded(&mut data, stage, &harvest, &harvested)?;
            let imported = import::publish(stage, sae, &source, task, &harvested, data);
            imported.unwrap_or_else(|error| failures.note(stage, sae, error));
        }
    }
    failures.into_result()?;
    publish_list(stage, &harvest)
}

/// The rows of the train split, read when they are first needed.
fn loaded<'a>(
    data: &'a mut Option<TrainingData>,
    stage: &Stage,
    harvest: &Input,
    harvested: &Harvested,
) -> Result<&'a TrainingData> {
    Ok(match data {
        Some(data) => data,
        None => data.insert(TrainingData::load(harvest, harvested, &stage.pipeline.train)?),
    })
}

/// SAEs to train that may share batches, in the order of the pipeline.
fn by_seed(stage: &Stage) -> Vec<(u64, Vec<&Sae>)> {
    let mut groups: Vec<(u64, Vec<&Sae>)> = Vec::new();
    for sae in stage.pipeline.train.saes.iter().filter(|sae| sae.import.is_none()) {
        let seed = sae.seed.unwrap_or(stage.pipeline.seed);
        match groups.iter_mut().find(|group| group.0 == seed) {
            Some(group) => group.1.push(sae),
            None => groups.push((seed, vec![sae])),
        }
    }
    groups
}

/// Starts as many of the SAEs that are to be trained as may train together.
fn start_some<'a>(
    stage: &Stage,
    seed: u64,
    saes: &mut impl Iterator<Item = &'a Sae>,
    harvest: &Input,
    harvested: &Harvested,
) -> Result<Vec<(&'a Sae, Task)>> {
    let train = &stage.pipeline.train;
    // Reading and drawing is what several share; what is in memory is read once anyway. A GPU's memory is for one, but
    // planted worlds are small and a GPU is faster than they are drawn.
    let is_alone = !harvested.is_endless && (harvested.fits(train) || stage.device == GPU);
    let together = train.together.unwrap_or(if is_alone { 1 } else { TOGETHER });
    let mut started = Vec::new();
    while started.len() < together
        && let Some(sae) = saes.next()
    {
        let task = stage.task_of(&folder(sae), key(stage, seed, sae, harvest, harvested)?)?;
        started.extend(task.map(|task| (sae, task)));
    }
    Ok(started)
}

/// Of an SAE that is trained here.
fn key(stage: &Stage, seed: u64, sae: &Sae, harvest: &Input, harvested: &Harvested) -> Result<Key> {
    let mut shared = serde_json::to_value(&stage.pipeline.train)?;
    if let Some(shared) = shared.as_object_mut() {
        // None of these changes what the SAE becomes.
        for key in ["saes", "checkpoint_every", "together"] {
            shared.remove(key);
        }
        if harvested.fits(&stage.pipeline.train) {
            shared.remove("resident_mb");
        }
        if device(stage, sae) != GPU {
            shared.remove("gpu_precision");
        }
    }
    let mut of_sae = serde_json::to_value(Sae { family: None, ..sae.clone() })?;
    let mut calibration = serde_json::Map::new();
    if let Some(of_sae) = of_sae.as_object_mut() {
        let keys = ["prior_kappa", "refine_sweeps"].into_iter();
        calibration.extend(keys.filter_map(|key| of_sae.remove_entry(key)));
    }
    let config = json!({"train": shared, "sae": of_sae, CALIBRATION: calibration});
    Ok(stage.key(RECIPE, config, &[harvest], seed, device(stage, sae)))
}

/// The end of an SAE, however it came about.
pub(crate) fn publish(mut task: Task, sae: &TrainedSae, record: &Record, harvested: &Harvested) -> Result<()> {
    export::publish(&mut task, sae, record, harvested.model.as_deref(), harvested.hook.as_deref())?;
    task.finish()?;
    Ok(())
}

/// Of an SAE, below the run.
pub(crate) fn folder(sae: &Sae) -> String {
    format!("train/{}", sae.name)
}

/// Where an SAE is trained: on the CPU where the GPU trains none like it.
pub(crate) fn device(stage: &Stage, sae: &Sae) -> &'static str {
    if gpu::refusal(sae).is_none() { stage.device } else { "cpu" }
}

/// `train/saes.json`: what the pipeline's SAEs are and where they lie, for the stages after this one.
fn publish_list(stage: &Stage, harvest: &Input) -> Result<()> {
    let saes = &stage.pipeline.train.saes;
    let folders: Vec<_> = saes.iter().map(folder).collect();
    // What an SAE is called in comparisons stands here alone: to call it otherwise is not to train it anew.
    let list: Vec<_> = saes
        .iter()
        .zip(&folders)
        .map(|(sae, folder)| json!({"name": sae.name, "family": sae.family(), "folder": folder}))
        .collect();
    let mut inputs = vec![];
    if !stage.args.status {
        for folder in &folders {
            inputs.push(stage.input(folder)?);
        }
    } else {
        inputs.extend(folders.iter().filter_map(|folder| stage.input(folder).ok()));
    }
    let inputs: Vec<&Input> = inputs.iter().chain([harvest]).collect();
    // No GPU has a part in it.
    let (config, seed) = (json!({"saes": list}), stage.pipeline.seed);
    let Some(mut task) = stage.task_with("train", RECIPE, config, &inputs, seed, "cpu")? else { return Ok(()) };
    task.write_json("saes.json", &list)?;
    task.finish()?;
    Ok(())
}
