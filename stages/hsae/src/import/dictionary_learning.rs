//! dictionary_learning's format: `config.json` names the class, `ae.pt` is its state as torch saves it.
//!
//! Source: saprmarks/dictionary_learning, `dictionary.py` and `trainers/*.py`, the classes' `encode` and `decode`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use artifact::config::Arch;
use serde_json::Value;

use super::tensors::Tensors;
use super::{Foreign, Lengths, torch_file};
use crate::export::transpose;
use crate::weights::Weights;

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "ae.pt";

/// Errors: as `import::read`'s.
pub(super) fn read(config: &Path, weights: &Path) -> Result<Foreign> {
    let (class, k) = read_config(config).with_context(|| config.display().to_string())?;
    let mut tensors = torch_file::read(weights)?;
    let sae = of_class(&class, k, &mut tensors)?.with_context(|| {
        format!(
            "{}: trainer.dict_class = {class} is not read; AutoEncoder, AutoEncoderNew, GatedAutoEncoder, \
             AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE and JumpReluAutoEncoder are",
            config.display()
        )
    })?;
    tensors.finish(&class)?;
    Ok(sae)
}

fn read_config(path: &Path) -> Result<(String, Option<u64>)> {
    let config: Value = serde_json::from_slice(&std::fs::read(path)?).context("not JSON")?;
    let class = config["trainer"]["dict_class"].as_str().context("has no trainer.dict_class")?;
    Ok((class.to_owned(), config["trainer"]["k"].as_u64()))
}

/// `None`: there is no such class. `k` is the configuration's, which has to agree with the weights'.
fn of_class(class: &str, k: Option<u64>, tensors: &mut Tensors) -> Result<Option<Foreign>> {
    let file = tensors.file.clone();
    let plain = |arch: Arch, weights: Weights| Foreign {
        arch,
        k: None,
        prefixes: vec![],
        apply_b_dec_to_input: true,
        weights,
        lengths: Lengths::Each,
        file: file.clone(),
    };
    Ok(Some(match class {
        "AutoEncoder" => plain(Arch::Vanilla, linear(tensors, "encoder.bias", "bias")?),
        "AutoEncoderNew" => {
            let weights = linear(tensors, "encoder.bias", "decoder.bias")?;
            Foreign { apply_b_dec_to_input: false, ..plain(Arch::Vanilla, weights) }
        }
        "GatedAutoEncoder" => {
            let mut weights = linear(tensors, "gate_bias", "decoder_bias")?;
            let per_latent = [weights.d_sae];
            weights.own = vec![tensors.take("r_mag", &per_latent)?, tensors.take("mag_bias", &per_latent)?];
            plain(Arch::Gated, weights)
        }
        "AutoEncoderTopK" => {
            let weights = linear(tensors, "encoder.bias", "b_dec")?;
            let k = take_k(tensors, k, weights.d_sae)?;
            // For use in place of the k largest; older files have none.
            if tensors.has("threshold") {
                tensors.take("threshold", &[])?;
            }
            Foreign { k: Some(k), lengths: Lengths::Common, ..plain(Arch::Topk, weights) }
        }
        "BatchTopKSAE" => {
            let mut weights = linear(tensors, "encoder.bias", "b_dec")?;
            weights.own = one_threshold(tensors, weights.d_sae)?;
            let k = take_k(tensors, k, weights.d_sae)?;
            Foreign { k: Some(k), ..plain(Arch::Batchtopk, weights) }
        }
        "MatryoshkaBatchTopKSAE" => {
            let mut weights = matrices(tensors)?;
            weights.own = one_threshold(tensors, weights.d_sae)?;
            let k = take_k(tensors, k, weights.d_sae)?;
            let prefixes = take_groups(tensors, weights.d_sae)?;
            let arch = if prefixes.is_empty() { Arch::Batchtopk } else { Arch::Matryoshka };
            Foreign { k: Some(k), prefixes, ..plain(arch, weights) }
        }
        "JumpReluAutoEncoder" => {
            let mut weights = matrices(tensors)?;
            let thresholds = tensors.take("threshold", &[weights.d_sae])?;
            weights.own = vec![thresholds.into_iter().map(|threshold| threshold.max(0.0)).collect()];
            Foreign { apply_b_dec_to_input: false, ..plain(Arch::Jumprelu, weights) }
        }
        _ => return Ok(None),
    }))
}

/// Of torch's Linear layers: weights are [to, from].
fn linear(tensors: &mut Tensors, b_enc: &str, b_dec: &str) -> Result<Weights> {
    let [d_sae, d_model] = tensors.matrix_shape("encoder.weight")?;
    Ok(Weights {
        d_model,
        d_sae,
        w_enc: tensors.take("encoder.weight", &[d_sae, d_model])?,
        b_enc: tensors.take(b_enc, &[d_sae])?,
        w_dec: transpose(&tensors.take("decoder.weight", &[d_model, d_sae])?, d_model, d_sae),
        b_dec: tensors.take(b_dec, &[d_model])?,
        own: vec![],
    })
}

/// Of classes that multiply by matrices of their own: weights are [from, to].
fn matrices(tensors: &mut Tensors) -> Result<Weights> {
    let [d_model, d_sae] = tensors.matrix_shape("W_enc")?;
    Ok(Weights {
        d_model,
        d_sae,
        w_enc: transpose(&tensors.take("W_enc", &[d_model, d_sae])?, d_model, d_sae),
        b_enc: tensors.take("b_enc", &[d_sae])?,
        w_dec: tensors.take("W_dec", &[d_sae, d_model])?,
        b_dec: tensors.take("b_dec", &[d_model])?,
        own: vec![],
    })
}

/// The same for all latents. Training starts with −1, at which all that is positive is active.
fn one_threshold(tensors: &mut Tensors, d_sae: usize) -> Result<Vec<Vec<f32>>> {
    let threshold = tensors.take("threshold", &[])?;
    Ok(vec![vec![threshold[0].max(0.0); d_sae]])
}

fn take_k(tensors: &mut Tensors, stated: Option<u64>, d_sae: usize) -> Result<usize> {
    let file = tensors.file.display().to_string();
    let k = tensors.take_whole("k")?;
    let &[k] = k.as_slice() else { bail!("{file}: `k` holds {} values, expected one", k.len()) };
    ensure!((1..=d_sae as i64).contains(&k), "{file}: k = {k} must lie between 1 and the {d_sae} latents");
    if let Some(stated) = stated {
        ensure!(stated == k as u64, "{file}: k = {k}, but {CONFIG} says trainer.k = {stated}");
    }
    Ok(k as usize)
}

/// Where all groups but the last end.
fn take_groups(tensors: &mut Tensors, d_sae: usize) -> Result<Vec<usize>> {
    let file = tensors.file.display().to_string();
    let sizes = tensors.take_whole("group_sizes")?;
    let mut ends = Vec::new();
    let mut end = 0usize;
    for size in sizes {
        let size = usize::try_from(size).ok().filter(|&size| size > 0 && size <= d_sae - end);
        end += size.with_context(|| format!("{file}: `group_sizes` do not add up to the {d_sae} latents"))?;
        ends.push(end);
    }
    ensure!(end == d_sae, "{file}: `group_sizes` add up to {end}, not to the {d_sae} latents");
    ends.pop();
    Ok(ends)
}
