//! What the SAEs of a run have recovered, on the held-out split: reconstruction, planted features where there are any,
//! and the edges of every tree (science.md §6 and §7).

mod controls;
mod cosine;
mod documents;
mod edges;
mod evaluate;
mod firing;
#[cfg(test)]
mod golden;
mod heldout;
mod independence;
mod information;
mod magnitude;
mod matching;
mod measure;
#[cfg(test)]
mod planted;
mod reconstruction;
mod resampling;
mod significance;
mod summary;
#[cfg(test)]
mod tests;
mod tree;
mod true_tree;
mod truth;

use std::process::ExitCode;

use anyhow::{Context, Result};
use artifact::stage::{Input, Stage, Task, main_of};
use artifact::tables::write_rows;
use hsae::TrainedSae;
use serde_json::{Value, json};

use evaluate::{Setting, Tables};
use heldout::Heldout;
use truth::Truth;

/// Rises when this stage computes something else from the same inputs and configuration.
const RECIPE: u32 = 2;

fn main() -> ExitCode {
    main_of("recover", "Measures what SAEs have recovered: reconstruction, planted features, trees", run)
}

fn run(stage: &Stage) -> Result<()> {
    let harvest = stage.input("harvest")?;
    let train = stage.input("train")?;
    let saes = sae_folders(&train)?.iter().map(|folder| stage.input(folder)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Input> = [&harvest, &train].into_iter().chain(&saes).collect();
    let config = json!({"recover": stage.pipeline.recover});
    let Some(mut task) = stage.task("recover", RECIPE, config, &inputs)? else { return Ok(()) };

    let heldout = Heldout::read(&harvest)?;
    let truth = Truth::read(&harvest, &heldout)?;
    let setting = Setting::new(&stage.pipeline.recover, stage.pipeline.seed, &heldout, truth)?;
    let mut tables = Tables::default();
    let mut progress = stage.log.progress(saes.len() as u64, "SAEs");
    for (i, input) in saes.iter().enumerate() {
        let sae = TrainedSae::load(input)?;
        for mode in sae.modes() {
            progress.set(i as u64, || format!("{} {} {}", sae.config.name, mode.view, mode.threshold));
            tables.add(&setting, &sae, mode)?;
        }
    }
    progress.finish(saes.len() as u64);

    publish(&mut task, &tables)?;
    task.finish()?;
    stage.log.line(format!("{} edges of {} SAEs measured", tables.edges.len(), saes.len()));
    Ok(())
}

/// `train/NAME` of every SAE, in the order of the pipeline.
fn sae_folders(train: &Input) -> Result<Vec<String>> {
    let path = train.file("saes.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let saes: Vec<Value> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let folder = |sae: &Value| sae["folder"].as_str().map(str::to_owned);
    saes.iter().map(|sae| folder(sae).with_context(|| format!("{}: an SAE has no `folder`", path.display()))).collect()
}

fn publish(task: &mut Task, tables: &Tables) -> Result<()> {
    task.write("recovery.parquet", |file| write_rows(file, &tables.metrics))?;
    task.write("edges.parquet", |file| write_rows(file, &tables.edges))?;
    task.write("latents.parquet", |file| write_rows(file, &tables.latents))?;
    task.write("trees.parquet", |file| write_rows(file, &tables.trees))?;
    task.write("density.parquet", |file| write_rows(file, &tables.density))?;
    task.write_json("summary.json", &json!({"notes": summary::notes(), "trees": tables.summary}))
}
