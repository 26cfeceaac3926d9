//! The files of `train/NAME/`. The flat view is written in SAELens's format (version 6 and later), so that
//! `SAE.load_from_disk` reads it; what SAELens has no place for stands in files beside it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use artifact::config::{Arch, Sae};
use artifact::stage::{Input, Task};
use artifact::tables::{CurveRow, TreeNode, read_rows, write_rows};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::refine::Refinement;
use crate::tensor_file::{TensorFile, Tensors};
use crate::trained::{Magnitude, Rule, Rules, TrainedSae, TreeGate};
use crate::tree::TreeLearner;

pub(crate) const WEIGHTS: &str = "sae_weights.safetensors";
pub(crate) const CFG: &str = "cfg.json";
pub(crate) const RULES: &str = "rules.safetensors";
pub(crate) const TREE: &str = "tree.parquet";
const CURVE: &str = "curve.parquet";

/// What `cfg.json` says of us, under `metadata.hiersae`.
#[derive(Serialize, Deserialize)]
struct Ours {
    seed: u64,
    config: Sae,
}

pub(crate) struct Cfg {
    pub(crate) d_in: usize,
    pub(crate) d_sae: usize,
    pub(crate) seed: u64,
    pub(crate) config: Sae,
}

/// What a training tells of itself.
pub struct Record {
    tree: Vec<TreeNode>,
    curve: Vec<CurveRow>,
}

impl Record {
    /// `tree` is what the choice of parents rests on, where it is mutual information.
    pub fn new(sae: &TrainedSae, tree: Option<&TreeLearner>, curve: Vec<CurveRow>) -> Self {
        Self { tree: tree_nodes(sae, tree), curve }
    }

    /// Of an SAE that has been published. Errors: a file is damaged.
    pub fn read(input: &Input) -> Result<Self> {
        Ok(Self { tree: read_rows(&input.file(TREE)?)?, curve: read_rows(&input.file(CURVE)?)? })
    }
}

/// Writes weights, configuration, rules, tree and curve. `hook` and `model` are for whoever loads the SAE elsewhere.
pub fn publish(
    task: &mut Task,
    sae: &TrainedSae,
    record: &Record,
    model: Option<&str>,
    hook: Option<&str>,
) -> Result<()> {
    task.write_bytes(WEIGHTS, &weights_file(sae).to_bytes()?)?;
    task.write_json(CFG, &cfg(sae, model, hook)?)?;
    task.write_bytes(RULES, &rules_file(sae).to_bytes()?)?;
    task.write(TREE, |file| write_rows(file, &record.tree))?;
    task.write(CURVE, |file| write_rows(file, &record.curve))
}

/// [rows, cols] → [cols, rows].
pub(crate) fn transpose(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| matrix[i % rows * cols + i / rows]).collect()
}

fn weights_file(sae: &TrainedSae) -> TensorFile {
    let (d_model, d_sae) = (sae.d_model, sae.d_sae);
    let file = TensorFile::default().f32("W_dec", &sae.w_dec, &[d_sae, d_model]).f32("b_dec", &sae.b_dec, &[d_model]);
    if sae.config.arch == Arch::MatchingPursuit {
        return file;
    }
    let file = file.f32("W_enc", &transpose(&sae.w_enc, d_sae, d_model), &[d_model, d_sae]);
    let per_latent = |file: TensorFile, name: &str, values: &[f32]| file.f32(name, values, &[d_sae]);
    if let Some(Magnitude { r_mag, b_mag }) = &sae.magnitude {
        let file = per_latent(file, "b_gate", &sae.b_enc);
        return per_latent(per_latent(file, "r_mag", r_mag), "b_mag", b_mag);
    }
    let file = per_latent(file, "b_enc", &sae.b_enc);
    match &sae.rules.flat_native {
        Rule::Above(thresholds) => per_latent(file, "threshold", thresholds),
        Rule::Positive | Rule::TopK(_) => file,
    }
}

fn cfg(sae: &TrainedSae, model: Option<&str>, hook: Option<&str>) -> Result<Value> {
    let mut cfg = json!({
        "architecture": match (&sae.magnitude, &sae.rules.flat_native) {
            (Some(_), _) => "gated",
            (None, Rule::Positive) => "standard",
            (None, Rule::TopK(_)) => "topk",
            (None, Rule::Above(_)) => "jumprelu",
        },
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": model,
            "hook_name": hook,
            // Its family is what it is called, not what it is.
            "hiersae": Ours { seed: sae.seed, config: Sae { family: None, ..sae.config.clone() } },
        },
    });
    if sae.config.arch == Arch::MatchingPursuit {
        cfg["architecture"] = json!("matching_pursuit");
        cfg["max_iterations"] = json!(sae.config.k);
        cfg["residual_threshold"] = json!(0.0);
        cfg["stop_on_duplicate_support"] = json!(false);
    } else if let Rule::TopK(k) = sae.rules.flat_native {
        cfg["k"] = json!(k);
    }
    Ok(cfg)
}

pub(crate) fn read_cfg(path: &Path) -> Result<Cfg> {
    let read = || -> Result<Cfg> {
        let cfg: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let size = |key: &str| cfg[key].as_u64().with_context(|| format!("has no size `{key}`"));
        let (d_in, d_sae) = (size("d_in")? as usize, size("d_sae")? as usize);
        let Ours { seed, config } = serde_json::from_value(cfg["metadata"]["hiersae"].clone())?;
        ensure!(config.d_sae() == d_sae, "d_sae = {d_sae} does not fit its configuration's {}", config.d_sae());
        Ok(Cfg { d_in, d_sae, seed, config })
    };
    read().with_context(|| path.display().to_string())
}

fn rules_file(sae: &TrainedSae) -> TensorFile {
    let mut file = TensorFile::default();
    let mut kinds = serde_json::Map::new();
    for (name, rule) in by_name(&sae.rules) {
        let kind = match rule {
            Rule::Positive => json!("positive"),
            Rule::TopK(k) => json!({"topk": k}),
            Rule::Above(thresholds) => {
                file = file.f32(name, thresholds, &[sae.d_sae]);
                json!("above")
            }
        };
        kinds.insert(name.into(), kind);
    }
    let gate = match sae.gate {
        TreeGate::Soft(strength) => json!(strength),
        TreeGate::Hard { active_above } => json!({"active_above": active_above}),
    };
    let mut sweeps = serde_json::Map::new();
    for (name, refinement) in refinements(&sae.rules) {
        let Some(Refinement { shift, thresholds }) = refinement else { continue };
        file = file.f32(name, shift, &[sae.d_sae]);
        sweeps.insert(name.into(), json!(thresholds));
    }
    file.json(json!({"gate": gate, "rules": kinds, "sweeps": sweeps}))
}

fn by_name(rules: &Rules) -> [(&'static str, &Rule); 4] {
    [
        ("flat_native", &rules.flat_native),
        ("flat_prior", &rules.flat_prior),
        ("gated_native", &rules.gated_native),
        ("gated_prior", &rules.gated_prior),
    ]
}

fn refinements(rules: &Rules) -> [(&'static str, Option<&Refinement>); 2] {
    [("flat_refined", rules.flat_refined.as_ref()), ("gated_refined", rules.gated_refined.as_ref())]
}

pub(crate) fn read_rules(path: &Path, d_sae: usize) -> Result<(TreeGate, Rules)> {
    let file = Tensors::read(path)?;
    let json = file.json()?;
    let gate = match (json["gate"].as_f64(), json["gate"]["active_above"].as_f64()) {
        (Some(strength), _) => TreeGate::Soft(strength as f32),
        (None, Some(active_above)) => TreeGate::Hard { active_above: active_above as f32 },
        (None, None) => anyhow::bail!("has no number `gate` or `gate.active_above`"),
    };
    let rule = |name: &str| -> Result<Rule> {
        let kind = &json["rules"][name];
        match (kind.as_str(), kind["topk"].as_u64()) {
            (Some("positive"), _) => Ok(Rule::Positive),
            (Some("above"), _) => Ok(Rule::Above(file.f32(name, d_sae)?)),
            (_, Some(k)) => Ok(Rule::TopK(k as usize)),
            _ => anyhow::bail!("has no rule `{name}`"),
        }
    };
    let refinement = |name: &str| -> Result<Option<Refinement>> {
        let Some(thresholds) = json["sweeps"].get(name) else { return Ok(None) };
        let thresholds: Vec<f32> =
            serde_json::from_value(thresholds.clone()).with_context(|| format!("sweeps of `{name}`"))?;
        Ok(Some(Refinement { shift: file.f32(name, d_sae)?, thresholds }))
    };
    let rules = Rules {
        flat_refined: refinement("flat_refined")?,
        gated_refined: refinement("gated_refined")?,
        flat_native: rule("flat_native")?,
        flat_prior: rule("flat_prior")?,
        gated_native: rule("gated_native")?,
        gated_prior: rule("gated_prior")?,
    };
    Ok((gate, rules))
}

fn tree_nodes(sae: &TrainedSae, tree: Option<&TreeLearner>) -> Vec<TreeNode> {
    let n_coarse = sae.n_coarse;
    let level = |j: usize| match n_coarse {
        0 => "flat",
        _ if j < n_coarse => "coarse",
        _ => "fine",
    };
    let edge = |j: usize| tree.and_then(|tree| tree.edges[j]);
    let node = |j: usize| {
        let edge = edge(j);
        let runner_up = edge.and_then(|edge| edge.runner_up);
        TreeNode {
            latent: j as u32,
            level: level(j).into(),
            parent: sae.parent[j],
            weight: edge.map(|edge| edge.mi_bits),
            runner_up: runner_up.map(|(latent, _)| latent),
            margin: edge.and_then(|edge| Some(edge.mi_bits - edge.runner_up?.1)),
        }
    };
    (0..sae.d_sae).map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::assembled;
    use crate::weights::Weights;

    #[test]
    fn rules_and_gates_are_read_as_they_were_written() {
        let config = Sae { n_coarse: 2, n_fine: 3, k: 2, ..Sae::default() };
        let mut sae = assembled(config, 7, Weights::init(7, 4, 5, &[0.0; 4]));
        sae.rules.flat_native = Rule::Above(vec![0.0, 0.1, 0.2, f32::MAX, 1e-30]);
        sae.rules.gated_native = Rule::TopK(2);
        let shift = vec![-3.0, -2.5, f32::MIN, 0.0, 0.5];
        sae.rules.gated_refined = Some(Refinement { shift, thresholds: vec![0.25, 1e-30, f32::MIN, f32::MAX] });
        for gate in [TreeGate::Soft(0.0), TreeGate::Soft(0.3), TreeGate::Hard { active_above: 1e-3 }] {
            sae.gate = gate;
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), rules_file(&sae).to_bytes().unwrap()).unwrap();
            assert_eq!(read_rules(file.path(), 5).unwrap(), (gate, sae.rules.clone()));
        }
    }
}
