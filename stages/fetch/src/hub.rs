//! Models from the Hugging Face hub, at a pinned commit. The user's hub cache, token and endpoint are honoured.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use artifact::stage::{Stage, Task};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde_json::json;

const RECIPE: u32 = 1;

/// Errors: the revision is no commit, the hub cannot be reached, or the model lacks a file.
pub(crate) fn fetch(stage: &Stage, name: &str, id: &str, revision: Option<&str>) -> Result<()> {
    let Some(revision) = revision else {
        bail!("source.model.revision is missing: a hub model needs its commit, so that a rerun reads the same weights");
    };
    ensure!(
        revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit()),
        "source.model.revision = {revision}: give the commit, 40 hexadecimal digits; a branch may move"
    );
    let Some(mut task) = stage.source_task(name, RECIPE, json!({"hub": id, "revision": revision}))? else {
        return Ok(());
    };
    stage.log.line(format!("{name}: fetching {id} at {revision}"));
    let api = ApiBuilder::from_env().with_progress(false).with_retries(2).build().context("the hub's client")?;
    let repo = api.repo(Repo::with_revision(id.into(), RepoType::Model, revision.into()));
    let copied = copy_all(&mut task, &repo);
    copied.with_context(|| {
        format!(
            "{id}: check the network and the name, or give the path of a local copy as source.model.name (./{name})"
        )
    })?;
    task.finish()?;
    Ok(())
}

fn copy_all(task: &mut Task, repo: &ApiRepo) -> Result<()> {
    for file in ["config.json", "tokenizer.json"] {
        copy(task, file, get(repo, file)?)?;
    }
    // One file of weights, or an index and the files that it names.
    if let Ok(weights) = repo.get("model.safetensors") {
        return copy(task, "model.safetensors", weights);
    }
    let index = "model.safetensors.index.json";
    let path = get(repo, index).context("the model has no safetensors weights")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("{index}: cannot read"))?;
    let parsed: serde_json::Value = serde_json::from_str(&text).with_context(|| index.to_owned())?;
    let map = parsed.get("weight_map").and_then(|map| map.as_object());
    let map = map.with_context(|| format!("{index}: has no weight_map"))?;
    let parts: std::collections::BTreeSet<&str> = map.values().filter_map(|part| part.as_str()).collect();
    copy(task, index, path)?;
    for part in parts {
        ensure!(!part.contains(['/', '\\']), "{index}: names a file in another folder, {part}");
        copy(task, part, get(repo, part)?)?;
    }
    Ok(())
}

/// From the user's hub cache if it is there, else from the hub.
fn get(repo: &ApiRepo, file: &str) -> Result<PathBuf> {
    repo.get(file).with_context(|| format!("{file}: the hub did not send it"))
}

fn copy(task: &mut Task, file: &str, from: PathBuf) -> Result<()> {
    task.write(file, |output| {
        let mut input = std::fs::File::open(&from).with_context(|| format!("{}: cannot open", from.display()))?;
        std::io::copy(&mut input, output)?;
        Ok(None)
    })
}
