//! SAEs that others have trained, as baselines: read, given their thresholds, and published as ours are.

use anyhow::Result;
use artifact::config::Sae;
use artifact::stage::{Input, Stage, Task};
use hsae::export::Record;
use serde_json::json;

use crate::RECIPE;
use crate::data::{Harvested, TrainingData};
use crate::together::N_CALIBRATION_ROWS;

/// Starts taking over a finished SAE; `None` if it has been done before, from the same files.
///
/// Errors: `fetch` has not looked at the folder yet; another process writes there.
pub(crate) fn start(stage: &Stage, sae: &Sae, harvest: &Input, harvested: &Harvested) -> Result<Option<(Input, Task)>> {
    let source = stage.source_input(&sae.source_name())?;
    // The files' digests are among the inputs. Where they lie does not matter, nor does most of how others are trained.
    let train = &stage.pipeline.train;
    let resident_mb = (!harvested.fits(train)).then_some(train.resident_mb);
    let Sae { name, prior_kappa, refine_sweeps, .. } = sae;
    let mut config = json!({"sae": {
        "name": name,
        "import": sae.import_name(),
        "prior_kappa": prior_kappa,
        "refine_sweeps": refine_sweeps,
    }});
    if let Some(resident_mb) = resident_mb {
        config["train"] = json!({"resident_mb": resident_mb});
    }
    let (folder, seed) = (format!("train/{}", sae.name), stage.pipeline.seed);
    // No GPU has a part in it.
    let task = stage.task_with(&folder, RECIPE, config, &[harvest, &source], seed, "cpu")?;
    Ok(task.map(|task| (source, task)))
}

/// Errors: the files cannot be read as an SAE for these activations.
pub(crate) fn publish(
    stage: &Stage,
    sae: &Sae,
    source: &Input,
    task: Task,
    harvested: &Harvested,
    data: &TrainingData,
) -> Result<()> {
    let seed = stage.pipeline.seed;
    let foreign = hsae::import::read(source)?;
    foreign.check_width(harvested.d_model)?;
    let imported = foreign.finish(sae, seed, &data.sample(seed, N_CALIBRATION_ROWS)?)?;
    crate::publish(task, &imported, &Record::new(&imported, None, Vec::new()), harvested)?;
    let Sae { arch, k, .. } = &imported.config;
    let (arch, d_sae) = (format!("{arch:?}").to_lowercase(), imported.d_sae);
    stage.log.line(format!("{}: imported, {arch} with {d_sae} latents, L0 {k}", sae.name));
    Ok(())
}
