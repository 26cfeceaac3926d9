//! The comparison: every figure that the run's artifacts hold, with its interval and the place it comes from
//! (`results.json`), the same as tables for a reader (`report.md`), and pictures of training.

mod comparison;
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
const RECIPE: u32 = 7;

fn main() -> ExitCode {
    main_of("report", "Compares the SAEs of a run: tables, figures with intervals, pictures", run)
}

fn run(stage: &Stage) -> Result<()> {
    let folders = Folders::open(stage)?;
    let config = inputs::config_of(&stage.pipeline);
    let Some(mut task) = stage.task("report", RECIPE, config, &folders.all())? else { return Ok(()) };

    let run = Run::read(&stage.pipeline, &folders)?;
    let figures = figures::collect(&run)?;
    let reference = run.pipeline.report.reference.as_deref();
    let contenders = run.contenders(&folders)?;
    let comparison = comparison::compare(&contenders, reference, run.missing.is_empty())?;
    let mut gaps = if run.saes.is_empty() { Vec::new() } else { gaps::find(&run, &figures) };
    let mut plots = plots::draw(&run, &figures)?;
    if !run.missing.is_empty() {
        let missing = run.missing.join(", ");
        stage.log.line(format!("left out, since there is no finished run in them: {missing}"));
        gaps.push(format!("the runs {missing}, which were to stand beside the others: they have not been made yet"));
    }
    for contender in contenders.iter().filter(|contender| contender.is_spliced_elsewhere) {
        gaps.push(format!(
            "cross-entropies of {}: its SAEs were spliced into other contexts, by its `probe.splice` or its seed",
            contender.run.as_deref().unwrap_or_default()
        ));
    }
    if let Some(comparison) = &comparison {
        gaps.extend(comparison.gaps(reference));
        plots.extend(comparison::draw(comparison)?);
    }
    for plot in &plots {
        task.write_bytes(&plot.path, plot.svg.as_bytes())?;
    }
    let mut results = json!({
        "title": run.pipeline.report.title,
        "made_from": run.made_from,
        "figures": figures.all,
    });
    if let Some(comparison) = &comparison {
        results["comparison"] = serde_json::to_value(comparison)?;
    }
    results["not_measured"] = json!(gaps);
    task.write_json("results.json", &results)?;
    task.write_bytes("report.md", page::render(&run, &figures, comparison.as_ref(), &gaps, &plots).as_bytes())?;
    task.finish()?;
    let n_groups = comparison.map_or(0, |comparison| comparison.groups.len());
    stage.log.line(format!(
        "{} figures of {} SAEs, {n_groups} rows of families, {} not measured",
        figures.all.len(),
        run.saes.len(),
        gaps.len()
    ));
    Ok(())
}
