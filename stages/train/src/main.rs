//! Activations → sparse autoencoders.

mod data;

use std::process::ExitCode;

use anyhow::Result;
use artifact::config::Sae;
use artifact::stage::{Input, Stage, Task, main_of};
use artifact::tables::CurveRow;
use hsae::{Trainer, checkpoint, export};
use serde_json::json;

use data::TrainingData;

/// Raised when training computes something else from the same inputs and configuration.
const RECIPE: u32 = 4;
/// Training rows on which the thresholds at inference are set.
const N_CALIBRATION_ROWS: usize = 16_384;

fn main() -> ExitCode {
    main_of("train", "Trains the pipeline's sparse autoencoders on harvested activations", run)
}

fn run(stage: &Stage) -> Result<()> {
    let harvest = stage.input("harvest")?;
    let mut data = None;
    for sae in &stage.pipeline.train.saes {
        if let Some(task) = start(stage, sae, &harvest)? {
            let data = match &data {
                Some(data) => data,
                None => data.insert(TrainingData::load(&harvest)?),
            };
            train(stage, sae, task, data)?;
        }
    }
    publish_list(stage, &harvest)
}

fn start(stage: &Stage, sae: &Sae, harvest: &Input) -> Result<Option<Task>> {
    let mut shared = serde_json::to_value(&stage.pipeline.train)?;
    // Neither another SAE nor how often a checkpoint is written changes what this one becomes.
    if let Some(shared) = shared.as_object_mut() {
        shared.remove("saes");
        shared.remove("checkpoint_every");
    }
    let config = json!({"train": shared, "sae": sae});
    let seed = sae.seed.unwrap_or(stage.pipeline.seed);
    stage.task_with_seed(&format!("train/{}", sae.name), RECIPE, config, &[harvest], seed)
}

fn train(stage: &Stage, sae: &Sae, mut task: Task, data: &TrainingData) -> Result<()> {
    let train = &stage.pipeline.train;
    let seed = sae.seed.unwrap_or(stage.pipeline.seed);
    let key = task.key_digest();
    let checkpoints = task.checkpoint_folder();

    let mut trainer = Trainer::new(sae, train, seed, &data.mean);
    let mut curve = checkpoint::resume(&checkpoints, &key, &mut trainer)?.unwrap_or_default();
    if trainer.state.step > 0 {
        stage.log.line(format!("{}: going on from step {}", sae.name, trainer.state.step));
    }
    let n_before = trainer.state.step * train.batch_size as u64;
    let mut progress = stage.log.progress(train.n_tokens - n_before, "tokens");
    while !trainer.is_done() {
        let batch = data.batch(seed, trainer.state.step, train.batch_size);
        let row = trainer.step(batch)?;
        progress.set(row.tokens - n_before, || summary(sae, &row));
        if row.step % train.log_every == 0 || trainer.is_done() {
            curve.push(row);
        }
        let is_due = train.checkpoint_every > 0 && trainer.state.step.is_multiple_of(train.checkpoint_every);
        if is_due && !trainer.is_done() {
            checkpoint::save(&checkpoints, &key, &trainer, &curve)?;
        }
    }
    trainer.state.weights.check_finite()?;
    progress.finish(trainer.state.step * train.batch_size as u64 - n_before);
    if let Some(row) = curve.last() {
        stage.log.event(&summary(sae, row), json!({"sae": sae.name, "parts_s": trainer.timing()}));
    }

    let trained = hsae::finish(&trainer, data.scale, &data.sample(seed, N_CALIBRATION_ROWS));
    export::publish(&mut task, &trained, &trainer, &curve, data.model.as_deref(), data.hook.as_deref())?;
    task.finish()?;
    Ok(())
}

fn summary(sae: &Sae, row: &CurveRow) -> String {
    format!(
        "{} loss {:.3} (mse {:.3}) fvu {:.4} l0 {:.1} + {:.1} dead {:.1} % edges {}",
        sae.name,
        row.loss,
        row.mse,
        row.fvu,
        row.l0_coarse,
        row.l0_fine,
        100.0 * row.dead,
        row.n_edges
    )
}

/// `train/saes.json`: what the pipeline's SAEs are and where they lie, for the stages after this one.
fn publish_list(stage: &Stage, harvest: &Input) -> Result<()> {
    let names: Vec<_> = stage.pipeline.train.saes.iter().map(|sae| &sae.name).collect();
    let folders: Vec<_> = names.iter().map(|name| format!("train/{name}")).collect();
    let mut inputs = vec![];
    if !stage.args.status {
        for folder in &folders {
            inputs.push(stage.input(folder)?);
        }
    } else {
        inputs.extend(folders.iter().filter_map(|folder| stage.input(folder).ok()));
    }
    let inputs: Vec<&Input> = inputs.iter().chain([harvest]).collect();
    let Some(mut task) = stage.task("train", RECIPE, json!({"saes": names}), &inputs)? else { return Ok(()) };
    let list: Vec<_> =
        names.iter().zip(&folders).map(|(name, folder)| json!({"name": name, "folder": folder})).collect();
    task.write_json("saes.json", &list)?;
    task.finish()?;
    Ok(())
}
