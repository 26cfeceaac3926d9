//! Makes activations: planted ones, the user's own, or those of a language model reading text. Whatever they come from,
//! they leave as rows in document order, split by document, with the statistics that normalise them.

mod dataset;
mod stats;
mod synthetic;
mod text;
mod user;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use artifact::stage::{Stage, main_of};

fn main() -> ExitCode {
    main_of("harvest", "Makes the activations that SAEs are trained on", run)
}

fn run(stage: &Stage) -> Result<()> {
    ensure!(stage.args.shard.is_none(), "--shard: harvest does not split its work yet; leave it out");
    if !stage.args.status {
        text::hooks::write_pipelines(stage)?;
    }
    // The pipeline's validation has seen to it that there is exactly one.
    let source = &stage.pipeline.source;
    if let Some(planted) = &source.synthetic {
        synthetic::harvest(stage, planted)?;
    }
    if let Some(activations) = &source.activations {
        user::harvest(stage, activations)?;
    }
    if let Some(model) = &source.model {
        text::harvest(stage, model)?;
    }
    Ok(())
}
