//! The comparison: every figure that the run's artifacts hold, with its interval and the place it comes from
//! (`results.json`), the same as tables for a reader (`report.md`), and pictures of training.

mod figures;
mod gaps;
mod inputs;
mod markdown;
mod measures;
mod page;
mod plots;
#[cfg(test)]
mod tests;
mod trees;

use std::process::ExitCode;

use anyhow::Result;
use artifact::stage::{Stage, main_of};
use serde_json::json;

use inputs::{Folders, Run};

/// Rises when the report says something else about the same artifacts.
const RECIPE: u32 = 3;

fn main() -> ExitCode {
    main_of("report", "Compares the SAEs of a run: tables, figures with intervals, pictures", run)
}

fn run(stage: &Stage) -> Result<()> {
    let folders = Folders::open(stage)?;
    let config = inputs::config_of(&stage.pipeline);
    let Some(mut task) = stage.task("report", RECIPE, config, &folders.all())? else { return Ok(()) };

    let run = Run::read(&stage.pipeline, &folders)?;
    let figures = figures::collect(&run)?;
    let gaps = gaps::find(&run, &figures);

    let plots = plots::draw(&run, &figures)?;
    for plot in &plots {
        task.write_bytes(&plot.path, plot.svg.as_bytes())?;
    }
    let results = json!({
        "title": run.pipeline.report.title,
        "made_from": run.made_from,
        "figures": figures.all,
        "not_measured": gaps,
    });
    task.write_json("results.json", &results)?;
    task.write_bytes("report.md", page::render(&run, &figures, &gaps, &plots).as_bytes())?;
    task.finish()?;
    stage.log.line(format!("{} figures of {} SAEs, {} not measured", figures.all.len(), run.saes.len(), gaps.len()));
    Ok(())
}
