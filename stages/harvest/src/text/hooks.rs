//! The datasets that one pass makes: the run's own, and those of `harvest.also`, each in a run of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use artifact::config::{Harvest, ModelSource, Products};
use artifact::stage::{Input, Stage, Task};
use lm::Hook;
use serde_json::{Value, json};

const RECIPE: u32 = 4;

/// What is to be made: each hook whose dataset is not up to date.
pub(super) fn tasks(stage: &Stage, source: &ModelSource, inputs: &[&Input]) -> Result<Vec<(Hook, Task)>> {
    let config = &stage.pipeline.harvest;
    let mut tasks = Vec::new();
    let hook: Hook = config.hook.parse().context("harvest.hook")?;
    tasks.extend(stage.task("harvest", RECIPE, key(source, config, &config.hook), inputs)?.map(|task| (hook, task)));
    for (i, name) in config.also.iter().enumerate() {
        let hook: Hook = name.parse().with_context(|| format!("harvest.also[{i}]"))?;
        let run = PathBuf::from("at").join(hook.to_string());
        let folder = run.join("harvest");
        let folder = folder.to_str().context("a hook's name is plain text")?;
        if !stage.args.status {
            write_pipeline(&stage.args.config, &stage.run.join(&run), hook)?;
        }
        tasks.extend(stage.task(folder, RECIPE, key(source, config, name), inputs)?.map(|task| (hook, task)));
    }
    Ok(tasks)
}

/// What the rows at a hook depend on; `batch_contexts` and the other hooks are not among it.
fn key(source: &ModelSource, config: &Harvest, hook: &str) -> Value {
    let mut key = json!({"source": {"model": source}, "harvest": {
        "hook": hook,
        "context_length": config.context_length,
        "heldout_fraction": config.heldout_fraction,
        "max_norm_multiple": config.max_norm_multiple,
        "dtype": config.dtype,
        "rows_per_part": config.rows_per_part,
    }});
    if config.products != Products::F32 {
        key["harvest"]["products"] = json!(config.products);
    }
    key
}

/// `pipeline.yaml` in a run folder: the pipeline at `config`, at this hook and at no other. Kept as it is where it says so
/// already, since Make looks at its time.
fn write_pipeline(config: &Path, run: &Path, hook: Hook) -> Result<()> {
    let path = run.join("pipeline.yaml");
    let context = || format!("{}: cannot write", path.display());
    std::fs::create_dir_all(run).with_context(context)?;
    let real = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    let base = relative(&real(config)?, &real(run)?);
    let text = format!(
        "# Written by harvest: the same pipeline at another of its hooks. `make hooks` runs it.\nextends: {}\nharvest: {{hook: {hook}, also: []}}\n",
        json!(base.display().to_string())
    );
    if std::fs::read_to_string(&path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    std::fs::write(&path, text).with_context(context)
}

/// The way to a file from a folder, both absolute.
fn relative(file: &Path, folder: &Path) -> PathBuf {
    let n_shared = file.iter().zip(folder.iter()).take_while(|(a, b)| a == b).count();
    let up = folder.iter().skip(n_shared).map(|_| "..");
    up.map(PathBuf::from).chain(file.iter().skip(n_shared).map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_file() {
        let check =
            |file: &str, folder: &str, way: &str| assert_eq!(relative(file.as_ref(), folder.as_ref()), Path::new(way));
        check("/a/pipeline.yaml", "/a/data/run/at/x", "../../../../pipeline.yaml");
        check("/a/configs/b.yaml", "/a/configs", "b.yaml");
        check("/b.yaml", "/a", "../b.yaml");
    }
}
