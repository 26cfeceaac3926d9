//! A training that is interrupted goes on bit for bit: one file holds the whole state.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use artifact::tables::CurveRow;
use artifact::whole_file;
use serde_json::{Value, json};

use crate::tensor_file::{TensorFile, Tensors};
use crate::trainer::Trainer;
use crate::tree::ParentEdge;

const FILE_NAME: &str = "state.safetensors";

/// Parent, mutual information, runner-up and its mutual information.
type SavedEdge = (u32, f64, Option<(u32, f64)>);

/// Writes the state and the curve so far. `key` says what is being trained; the file appears whole or not at all.
pub fn save(folder: &Path, key: &str, trainer: &Trainer, curve: &[CurveRow]) -> Result<()> {
    let state = &trainer.state;
    let mut file = TensorFile::default();
    for (prefix, of) in [("weights", &state.weights), ("first", &state.adam.first), ("second", &state.adam.second)] {
        for (name, values) in of.named() {
            file = file.f32(&format!("{prefix}.{name}"), values, &[values.len()]);
        }
    }
    file = file.u64("tokens_since_fired", &state.tokens_since_fired);
    if !state.recent_firings.is_empty() {
        file = file.u64("recent_firings", &state.recent_firings);
    }
    let mut tree_json = Value::Null;
    if let Some(tree) = &state.tree {
        let partners: Vec<u64> = tree.partners.iter().map(|&partner| partner.into()).collect();
        file = file.u64("tree.partners", &partners).f32("tree.n11", &tree.n11, &[tree.n11.len()]);
        file = file.f32("tree.n1", &tree.n1, &[tree.n1.len()]);
        file = file.f32("tree.n_counted", &tree.n_counted, &[tree.n_counted.len()]);
        let edge = |e: &ParentEdge| json!([e.parent, e.mi_bits, e.runner_up]);
        let edges: Vec<_> = tree.edges.iter().map(|e| e.as_ref().map(edge)).collect();
        tree_json = json!({"n": tree.n, "weight": tree.weight, "edges": edges});
    }
    let mut family_json = Value::Null;
    if let Some(family) = &state.family {
        let parent: Vec<u64> = family.parent.iter().map(|&parent| parent.into()).collect();
        let capacity: Vec<u64> = family.capacity.iter().map(|capacity| capacity.to_bits()).collect();
        file = file.u64("family.parent", &parent).u64("family.capacity", &capacity);
        family_json = json!({"n_since": family.n_since, "interval": family.interval, "is_fixed": family.is_fixed});
    }
    let json = json!({
        "key": key,
        "step": state.step,
        "adam_step": state.adam.step,
        "l1_coefficient": state.l1_coefficient,
        "mean_activation": state.mean_activation,
        "guess": state.guess,
        "guesses": state.guesses,
        "density": state.density,
        "annealing": state.annealing,
        "tree": tree_json,
        "family": family_json,
        "curve": curve,
    });
    let bytes = file.json(json).to_bytes()?;

    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    whole_file::write(&folder.join(FILE_NAME), &bytes)
}

/// Goes on from a checkpoint, if there is one of the same key; returns the curve so far. A checkpoint of something else is
/// passed over.
///
/// Errors: the checkpoint is damaged.
pub fn resume(folder: &Path, key: &str, trainer: &mut Trainer) -> Result<Option<Vec<CurveRow>>> {
    let path = folder.join(FILE_NAME);
    if !path.exists() {
        return Ok(None);
    }
    let mut load = || -> Result<Option<Vec<CurveRow>>> {
        let file = Tensors::read(&path)?;
        let json = file.json()?;
        if json["key"] != key {
            return Ok(None);
        }
        restore(&file, &json, trainer)?;
        Ok(Some(serde_json::from_value(json["curve"].clone())?))
    };
    load().with_context(|| format!("{}: damaged; delete it to train from the start", path.display()))
}

fn restore(file: &Tensors, json: &Value, trainer: &mut Trainer) -> Result<()> {
    let state = &mut trainer.state;
    let d_sae = state.weights.d_sae;
    for (prefix, of) in
        [("weights", &mut state.weights), ("first", &mut state.adam.first), ("second", &mut state.adam.second)]
    {
        for (name, values) in of.named_mut() {
            *values = file.f32(&format!("{prefix}.{name}"), values.len())?;
        }
    }
    state.tokens_since_fired = file.u64("tokens_since_fired", d_sae)?;
    if !state.recent_firings.is_empty() {
        state.recent_firings = file.u64("recent_firings", d_sae)?;
    }
    let number = |key: &str| json[key].as_f64().with_context(|| format!("has no number `{key}`"));
    let count = |key: &str| json[key].as_u64().with_context(|| format!("has no count `{key}`"));
    state.step = count("step")?;
    state.adam.step = count("adam_step")?;
    state.l1_coefficient = number("l1_coefficient")?;
    state.mean_activation = json["mean_activation"].as_f64();
    state.guess = number("guess")? as f32;
    state.guesses = serde_json::from_value(json["guesses"].clone())?;
    state.density = number("density")?;
    state.annealing = serde_json::from_value(json["annealing"].clone())?;
    if let Some(tree) = &mut state.tree {
        let number = |key: &str| json["tree"][key].as_f64().with_context(|| format!("has no number `tree.{key}`"));
        let partners = file.u64("tree.partners", tree.partners.len())?;
        tree.partners = partners.into_iter().map(|partner| partner as u32).collect();
        tree.n11 = file.f32("tree.n11", tree.n11.len())?;
        tree.n1 = file.f32("tree.n1", d_sae)?;
        tree.n_counted = file.f32("tree.n_counted", d_sae)?;
        (tree.n, tree.weight) = (number("n")?, number("weight")?);
        let edges: Vec<Option<SavedEdge>> = serde_json::from_value(json["tree"]["edges"].clone())?;
        ensure!(edges.len() == d_sae, "has {} tree entries, expected {d_sae}", edges.len());
        let edge = |(parent, mi_bits, runner_up)| ParentEdge { parent, mi_bits, runner_up };
        tree.edges = edges.into_iter().map(|e| e.map(edge)).collect();
    }
    if let Some(family) = &mut state.family {
        let json = &json["family"];
        let count = |key: &str| json[key].as_u64().with_context(|| format!("has no count `family.{key}`"));
        let n_parents = family.capacity.len() as u64;
        let parent = file.u64("family.parent", family.parent.len())?;
        ensure!(parent.iter().all(|&parent| parent < n_parents), "a parent lies outside the {n_parents} possible ones");
        family.parent = parent.into_iter().map(|parent| parent as u32).collect();
        family.capacity = file.u64("family.capacity", family.capacity.len())?.into_iter().map(f64::from_bits).collect();
        (family.n_since, family.interval) = (count("n_since")?, count("interval")?);
        family.is_fixed = json["is_fixed"].as_bool().context("does not say `family.is_fixed`")?;
    }
    trainer.repack();
    Ok(())
}
