//! SAELens' format, version 6 and later: `cfg.json` says what kind of SAE it is, `sae_weights.safetensors` holds it.
//!
//! Source: decoderesearch/SAELens, `sae_lens/saes/*_sae.py`, the inference classes' `encode` and `decode`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use artifact::config::Arch;
use safetensors::tensor::{self, SafeTensors};
use serde_json::Value;

use super::tensors::{Dtype, Tensor, Tensors};
use super::{Foreign, Lengths};
use crate::export::transpose;
use crate::kernels::dot;
use crate::weights::Weights;

pub(super) const CFG: &str = crate::export::CFG;
pub(super) const WEIGHTS: &str = crate::export::WEIGHTS;

/// How far a matching pursuit's decoder rows may be from length 1.
const LENGTH_TOLERANCE: f32 = 1e-3;

/// `cfg.json`, as far as it matters to what an SAE computes.
struct Cfg {
    kind: Kind,
    d_in: usize,
    d_sae: usize,
    apply_b_dec_to_input: bool,
    /// JumpReLU only: what it was trained as.
    trained_as: TrainedAs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Standard,
    TopK {
        k: usize,
        is_rescaled: bool,
    },
    JumpRelu,
    Gated,
    /// W_dec is the encoder too.
    MatchingPursuit {
        k: usize,
    },
}

/// BatchTopK and Matryoshka SAEs are saved as JumpReLU ones.
struct TrainedAs {
    arch: Arch,
    k: Option<usize>,
    prefixes: Vec<usize>,
}

/// Errors: as `import::read`'s.
pub(super) fn read(cfg: &Path, weights: &Path) -> Result<Foreign> {
    let cfg = read_cfg(cfg).with_context(|| cfg.display().to_string())?;
    let tensors = read_tensors(weights).with_context(|| weights.display().to_string())?;
    let mut tensors = Tensors::new(weights, tensors);
    for name in ["finetuning_scaling_factor", "scaling_factor"] {
        ensure!(!tensors.has(name), "{}: `{name}`: finetuned scaling is not read", weights.display());
    }
    let Cfg { kind, d_in, d_sae, apply_b_dec_to_input, trained_as } = cfg;
    if let Kind::MatchingPursuit { k } = kind {
        return matching_pursuit(tensors, d_in, d_sae, k);
    }
    let w_enc = tensors.take("W_enc", &[d_in, d_sae])?;
    let mut per_latent = |name: &str| tensors.take(name, &[d_sae]);
    let b_enc = per_latent(if kind == Kind::Gated { "b_gate" } else { "b_enc" })?;
    let own = match kind {
        Kind::Standard | Kind::TopK { .. } | Kind::MatchingPursuit { .. } => vec![],
        // An activation is never below zero, whatever the threshold.
        Kind::JumpRelu => vec![per_latent("threshold")?.into_iter().map(|threshold| threshold.max(0.0)).collect()],
        Kind::Gated => vec![per_latent("r_mag")?, per_latent("b_mag")?],
    };
    let weights = Weights {
        d_model: d_in,
        d_sae,
        w_enc: transpose(&w_enc, d_in, d_sae),
        b_enc,
        w_dec: tensors.take("W_dec", &[d_sae, d_in])?,
        b_dec: tensors.take("b_dec", &[d_in])?,
        own,
    };
    let file = tensors.file.clone();
    tensors.finish(kind.name())?;
    let (arch, k, lengths) = match kind {
        Kind::Standard => (Arch::Vanilla, None, Lengths::Each),
        Kind::TopK { k, is_rescaled: true } => (Arch::Topk, Some(k), Lengths::Each),
        Kind::TopK { k, is_rescaled: false } => (Arch::Topk, Some(k), Lengths::Common),
        Kind::JumpRelu => (trained_as.arch, trained_as.k, Lengths::Each),
        Kind::Gated => (Arch::Gated, None, Lengths::Each),
        Kind::MatchingPursuit { k } => (Arch::MatchingPursuit, Some(k), Lengths::One),
    };
    Ok(Foreign { arch, k, prefixes: trained_as.prefixes, apply_b_dec_to_input, weights, lengths, file })
}

/// Errors: as `read`'s; decoder rows are not of length 1, so that a step would not take away what it explains.
fn matching_pursuit(mut tensors: Tensors, d_in: usize, d_sae: usize, k: usize) -> Result<Foreign> {
    let w_dec = tensors.take("W_dec", &[d_sae, d_in])?;
    let b_dec = tensors.take("b_dec", &[d_in])?;
    let file = tensors.file.clone();
    tensors.finish("matching_pursuit")?;
    for (j, row) in w_dec.chunks_exact(d_in).enumerate() {
        let length = dot(row, row).sqrt();
        let is_one = (length - 1.0).abs() <= LENGTH_TOLERANCE;
        ensure!(is_one, "{}: W_dec[{j}] has length {length}; a matching pursuit's have length 1", file.display());
    }
    let weights =
        Weights { d_model: d_in, d_sae, w_enc: w_dec.clone(), b_enc: vec![0.0; d_sae], w_dec, b_dec, own: vec![] };
    let (arch, lengths) = (Arch::MatchingPursuit, Lengths::One);
    Ok(Foreign { arch, k: Some(k), prefixes: vec![], apply_b_dec_to_input: true, weights, lengths, file })
}

/// Errors: the pursuit does not take a fixed number of steps from x − b_dec.
fn pursuit_steps(cfg: &Value, d_sae: usize) -> Result<usize> {
    let is = |key: &str, wanted: bool| cfg[key].as_bool().unwrap_or(true) == wanted;
    ensure!(
        cfg["residual_threshold"].as_f64() == Some(0.0) && is("stop_on_duplicate_support", false),
        "residual_threshold = {}, stop_on_duplicate_support = {}: a matching pursuit is read that takes max_iterations \
         steps on every token (0.0 and false)",
        cfg["residual_threshold"],
        cfg["stop_on_duplicate_support"]
    );
    ensure!(is("apply_b_dec_to_input", true), "apply_b_dec_to_input = false is not read of a matching pursuit");
    let steps = cfg["max_iterations"].as_u64().map(|steps| steps as usize);
    steps
        .filter(|steps| (1..=d_sae).contains(steps))
        .with_context(|| format!("max_iterations = {} is no number of steps", cfg["max_iterations"]))
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::TopK { .. } => "topk",
            Self::JumpRelu => "jumprelu",
            Self::Gated => "gated",
            Self::MatchingPursuit { .. } => "matching_pursuit",
        }
    }
}

fn read_cfg(path: &Path) -> Result<Cfg> {
    let cfg: Value = serde_json::from_slice(&std::fs::read(path)?).context("not JSON")?;
    let version = cfg["metadata"]["sae_lens_version"].as_str().or(cfg["sae_lens_version"].as_str());
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    ensure!(
        major.is_some_and(|major| major >= 6),
        "metadata.sae_lens_version = {}: only SAELens 6 and later is read; load it with a current SAELens and save it \
         again with `save_model`",
        version.unwrap_or("unset")
    );
    let size = |key: &str| match cfg[key].as_u64() {
        Some(size) if size > 0 => Ok(size as usize),
        _ => bail!("{key} = {} is no size", cfg[key]),
    };
    let (d_in, d_sae) = (size("d_in")?, size("d_sae")?);
    check_normalisation(&cfg)?;
    let flag = |key: &str, default: bool| match &cfg[key] {
        Value::Null => Ok(default),
        value => value.as_bool().with_context(|| format!("{key} = {value} must be true or false")),
    };
    let architecture = cfg["architecture"].as_str();
    let kind = match architecture {
        Some("standard") => Kind::Standard,
        Some("topk") => {
            let k = size("k")?;
            ensure!(k <= d_sae, "k = {k} exceeds d_sae = {d_sae}");
            Kind::TopK { k, is_rescaled: flag("rescale_acts_by_decoder_norm", false)? }
        }
        Some("jumprelu") => Kind::JumpRelu,
        Some("gated") => Kind::Gated,
        Some("matching_pursuit") => Kind::MatchingPursuit { k: pursuit_steps(&cfg, d_sae)? },
        _ => bail!(
            "architecture = {} is not read; standard, topk, jumprelu, gated and matching_pursuit are, as which \
             `save_inference_model` writes batchtopk and matryoshka_batchtopk too",
            architecture.unwrap_or("unset")
        ),
    };
    let trained_as = match kind {
        Kind::JumpRelu => trained_as(&cfg["metadata"], d_sae)?,
        _ => TrainedAs { arch: Arch::Jumprelu, k: None, prefixes: vec![] },
    };
    Ok(Cfg { kind, d_in, d_sae, apply_b_dec_to_input: flag("apply_b_dec_to_input", true)?, trained_as })
}

/// Errors: the SAE does something to its input or output that no weights can stand for.
fn check_normalisation(cfg: &Value) -> Result<()> {
    let text = |key: &str| match &cfg[key] {
        Value::Null => Ok("none".to_owned()),
        value => value.as_str().map(str::to_owned).with_context(|| format!("{key} = {value} is no name")),
    };
    match text("normalize_activations")?.as_str() {
        "none" => {}
        "expected_average_only_in" => bail!(
            "normalize_activations = expected_average_only_in: its factor is not in the folder; call \
             `sae.fold_activation_norm_scaling_factor` with the factor of the training, and save it again"
        ),
        other => bail!("normalize_activations = {other} depends on each row, and cannot be folded into weights"),
    }
    let reshape = text("reshape_activations")?;
    ensure!(reshape == "none", "reshape_activations = {reshape} is not read; only none is");
    for place in [cfg, &cfg["metadata"]] {
        let factor = &place["finetuning_scaling_factor"];
        ensure!(
            matches!(factor, Value::Null | Value::Bool(false)),
            "finetuning_scaling_factor = {factor}: finetuned scaling is not read"
        );
    }
    Ok(())
}

/// Errors: the widths of a Matryoshka SAE do not ascend to d_sae.
fn trained_as(metadata: &Value, d_sae: usize) -> Result<TrainedAs> {
    let details = &metadata["training_architecture_details"];
    // SAELens' k is a mean, and may be a fraction.
    let k = details["k"].as_f64().map(|k| (k.round() as usize).clamp(1, d_sae));
    Ok(match metadata["training_architecture"].as_str() {
        Some("batchtopk") => TrainedAs { arch: Arch::Batchtopk, k, prefixes: vec![] },
        Some("matryoshka_batchtopk") => {
            let widths = details["matryoshka_widths"].as_array().map_or(&[][..], Vec::as_slice);
            let widths: Option<Vec<_>> =
                widths.iter().map(|width| width.as_u64().map(|width| width as usize)).collect();
            let widths = widths.filter(|widths| widths.first() != Some(&0) && widths.is_sorted_by(|a, b| a < b));
            let widths = widths.filter(|widths| widths.last().is_none_or(|&last| last <= d_sae));
            let mut prefixes = widths.context("matryoshka_widths do not ascend to d_sae")?;
            prefixes.retain(|&width| width < d_sae);
            let arch = if prefixes.is_empty() { Arch::Batchtopk } else { Arch::Matryoshka };
            TrainedAs { arch, k, prefixes }
        }
        _ => TrainedAs { arch: Arch::Jumprelu, k: None, prefixes: vec![] },
    })
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).context("cannot read")?;
    let file = SafeTensors::deserialize(&bytes).context("no whole safetensors file")?;
    let tensor = |(name, view): (String, tensor::TensorView)| {
        let dtype = match view.dtype() {
            tensor::Dtype::F32 => Dtype::F32,
            tensor::Dtype::F16 => Dtype::F16,
            tensor::Dtype::BF16 => Dtype::Bf16,
            other => bail!("tensor `{name}` is {other:?}; F32, F16 and BF16 are read"),
        };
        Ok((name, Tensor { shape: view.shape().to_vec(), values: dtype.read(view.data()) }))
    };
    file.tensors().into_iter().map(tensor).collect()
}
