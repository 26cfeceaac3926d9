//! The hooks that one pass reads: the run's own, and those of `harvest.also`, whose datasets lie in runs beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use artifact::config::{Harvest, ModelSource, Products};
use artifact::stage::{Input, Stage, Task};
use artifact::whole_file;
use lm::Hook;
use serde_json::{Value, json};

const RECIPE: u32 = 5;

/// A hook, and what makes its dataset.
pub(super) struct Wanted {
    pub(super) hook: Hook,
    /// The key that names it.
    pub(super) key: String,
    /// The run that gets its dataset.
    run: PathBuf,
}

/// The hooks of `harvest.also`, and the run's own behind them: Make looks at what that one publishes, so it comes last.
///
/// Errors: a name is no hook's, or two are the same one's.
pub(super) fn wanted(stage: &Stage) -> Result<Vec<Wanted>> {
    let config = &stage.pipeline.harvest;
    let own: Hook = config.hook.parse().context("harvest.hook")?;
    let mut all: Vec<Wanted> = Vec::new();
    for (i, name) in config.also.iter().enumerate() {
        let key = format!("harvest.also[{i}]");
        let hook: Hook = name.parse().with_context(|| key.clone())?;
        if hook == own || all.iter().any(|other| other.hook == hook) {
            bail!("{key}: {hook} is harvested already");
        }
        all.push(Wanted { hook, key, run: stage.run_beside(&hook.to_string())? });
    }
    all.push(Wanted { hook: own, key: "harvest.hook".into(), run: stage.run.clone() });
    Ok(all)
}

/// Those whose datasets are not up to date.
pub(super) fn tasks(
    stage: &Stage,
    source: &ModelSource,
    inputs: &[&Input],
    all: Vec<Wanted>,
) -> Result<Vec<(Wanted, Task)>> {
    let mut tasks = Vec::new();
    for wanted in all {
        let config = key(source, &stage.pipeline.harvest, wanted.hook);
        let key = stage.key(RECIPE, config, inputs, stage.pipeline.seed, stage.device);
        let task = match wanted.run == stage.run {
            true => stage.task_of("harvest", key)?,
            false => stage.task_in(&wanted.run, "harvest", key)?,
        };
        tasks.extend(task.map(|task| (wanted, task)));
    }
    Ok(tasks)
}

/// What the rows at a hook depend on; `batch_contexts` and the other hooks are not among it.
fn key(source: &ModelSource, config: &Harvest, hook: Hook) -> Value {
    let mut key = json!({"source": {"model": source}, "harvest": {
        "hook": hook.to_string(),
        "context_length": config.context_length,
        "heldout_fraction": config.heldout_fraction,
        "max_norm_multiple": config.max_norm_multiple,
        "dtype": config.dtype,
        "rows_per_part": config.rows_per_part,
    }});
    if config.products != Products::F32 {
        key["harvest"]["products"] = json!(config.products);
    }
    if config.products == Products::Int8 {
        key["harvest"]["int8"] = json!(slices::INT8_RECIPE);
    }
    key
}

/// A `pipeline.yaml` in each run beside this one: the pipeline at `config`, at its hook and at no other. And the list of these
/// runs, `RUN/.hooks`, from which `make hooks` goes on.
pub(crate) fn write_pipelines(stage: &Stage) -> Result<()> {
    let mut runs = String::new();
    if stage.pipeline.source.model.is_some() {
        for Wanted { hook, run, .. } in wanted(stage)?.iter().filter(|wanted| wanted.run != stage.run) {
            write_pipeline(&stage.args.config, run, *hook)?;
            if stage.pipeline.pretrained().is_some() {
                for folder in ["pretrain", "pretrain/sample"] {
                    stage.publish_in(run, folder, &stage.input(folder)?)?;
                }
            }
            runs += &format!("{}\n", run.display());
        }
    }
    write_if_new(&stage.run.join(".hooks"), &runs)
}

fn write_pipeline(config: &Path, run: &Path, hook: Hook) -> Result<()> {
    std::fs::create_dir_all(run).with_context(|| format!("{}: cannot make the folder", run.display()))?;
    let real = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    let base = relative(&real(config)?, &real(run)?);
    let text = format!(
        "# Written by harvest: the same pipeline at another of its hooks. `make hooks` runs it.\nextends: {}\nharvest: {{hook: {hook}, also: []}}\n",
        json!(base.display().to_string())
    );
    write_if_new(&run.join("pipeline.yaml"), &text)
}

/// Make looks at its time: what says so already stays.
fn write_if_new(path: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    whole_file::write(path, text.as_bytes())
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
        check("/a/pipeline.yaml", "/a/data/run@x", "../../pipeline.yaml");
        check("/a/configs/b.yaml", "/a/configs", "b.yaml");
        check("/b.yaml", "/a", "../b.yaml");
    }
}
