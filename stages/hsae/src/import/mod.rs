//! Finished SAEs of other tools: read from their own files, folded to decoder rows of length 1, and given the thresholds
//! that every SAE gets.
//!
//! Nothing in a file is believed before it is checked, and nothing is ever executed.

mod dictionary_learning;
mod sae_lens;
mod tensors;
#[cfg(test)]
mod tests;
mod torch_file;
mod torch_pickle;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use artifact::config::{Arch, Prefixes, Sae, Select};
use artifact::stage::Input;

use crate::calibrate;
use crate::kernels::{Bounds, dot};
use crate::trained::{Mode, Threshold, TrainedSae, View};
use crate::weights::Weights;

/// Rows that are encoded at once to measure L0: an SAE may be dense on data that it does not know.
const N_ROWS_AT_ONCE: usize = 1024;

/// Pre-activations that may be weighed against each other to find thresholds. ReLU and TopK weigh all that are positive,
/// which on a wide SAE, or on data that it does not know, are most of them.
const MAX_POSITIVE: usize = 1 << 26;

/// A finished SAE as its files hold it.
pub struct Foreign {
    /// The nearest of ours.
    arch: Arch,
    /// The wanted L0, where the files state one.
    k: Option<usize>,
    /// Where the inner ones of nested groups of latents end, ascending.
    prefixes: Vec<usize>,
    apply_b_dec_to_input: bool,
    /// `own` is empty, or one vector of thresholds, or a gated SAE's r_mag and b_mag.
    weights: Weights,
    lengths: Lengths,
    /// The file of the weights, for errors.
    file: PathBuf,
}

/// How decoder rows come to length 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengths {
    /// Each by its own length, which its latent's encoder takes over.
    Each,
    /// All by their mean length: TopK compares latents, and other factors would change which are the largest.
    Common,
    /// They have it already.
    One,
}

/// Reads the folder of a finished SAE.
///
/// Errors: it is in neither format; a file is damaged; the SAE is of a kind that cannot be taken over exactly (what it
/// is of is named); a tensor is missing, superfluous, of another shape, or holds NaN or an infinity.
pub fn read(input: &Input) -> Result<Foreign> {
    let formats: [(_, _, Reader); 2] = [
        (sae_lens::CFG, sae_lens::WEIGHTS, sae_lens::read),
        (dictionary_learning::CONFIG, dictionary_learning::WEIGHTS, dictionary_learning::read),
    ];
    let found = formats.into_iter().find(|(config, weights, _)| input.has(config) && input.has(weights));
    let (config, weights, read) = found.with_context(|| {
        let [sae_lens, dictionary_learning] = formats.map(|(config, weights, _)| format!("{config} and {weights}"));
        format!("{}: an SAE is {sae_lens} (SAELens), or {dictionary_learning} (dictionary_learning)", input.name)
    })?;
    read(&input.file(config)?, &input.file(weights)?)
}

type Reader = fn(&std::path::Path, &std::path::Path) -> Result<Foreign>;

impl Foreign {
    /// Errors: the SAE is for activations of another width.
    pub fn check_width(&self, d_model: usize) -> Result<()> {
        let found = self.weights.d_model;
        ensure!(
            found == d_model,
            "{}: the SAE is for activations of width {found}, but the harvest's are {d_model} wide",
            self.file.display()
        );
        Ok(())
    }

    /// The SAE with unit decoder rows, its native rule, and the prior's.
    /// Shapes: rows [n, d_model], training activations in their own units. `sae` names it; `seed` chose the rows.
    ///
    /// Errors: folding leaves the range of f32.
    pub fn finish(self, sae: &Sae, seed: u64, rows: &[f32]) -> Result<TrainedSae> {
        let config = self.config(sae);
        let weights = match self.lengths {
            Lengths::Each => calibrate::folded(&self.weights, false, 1.0),
            Lengths::Common => by_mean_length(self.weights),
            Lengths::One => self.weights,
        };
        for (name, values) in weights.named() {
            let is_finite = values.iter().all(|value| value.is_finite());
            ensure!(is_finite, "{}: values so far from 1 that {name} leaves the range of f32", self.file.display());
        }
        let mut sae = calibrate::assembled(config, seed, weights);
        if self.k.is_none() {
            sae.config.k = (mean_l0(&sae, rows).round() as usize).clamp(1, sae.d_sae);
        }
        let rows = not_too_many(&sae, rows);
        calibrate::set_rules(&mut sae, rows);
        Ok(sae)
    }

    /// What an SAE of ours would have been configured as, as far as it is known.
    fn config(&self, sae: &Sae) -> Sae {
        let n_coarse = self.prefixes.first().copied().unwrap_or(0);
        let prefixes = Prefixes { fixed: self.prefixes.clone(), n_random: 0, ..Prefixes::default() };
        Sae {
            name: sae.name.clone(),
            import: sae.import_name().map(PathBuf::from),
            prior_kappa: sae.prior_kappa,
            refine_sweeps: sae.refine_sweeps,
            arch: self.arch,
            // Whatever it was trained with, what is left of it are its thresholds.
            select: (self.weights.own.len() == 1).then_some(Select::Jumprelu),
            n_coarse,
            n_fine: self.weights.d_sae - n_coarse,
            k: self.k.unwrap_or(1),
            prefixes: (!self.prefixes.is_empty()).then_some(prefixes),
            apply_b_dec_to_input: self.apply_b_dec_to_input,
            ..Sae::default()
        }
    }
}

/// Decoder rows over their mean length, the encoder times it: the order of pre-activations stays as it was.
fn by_mean_length(mut weights: Weights) -> Weights {
    let lengths: Vec<f32> = weights.w_dec.chunks_exact(weights.d_model).map(|row| dot(row, row).sqrt()).collect();
    let mean = (lengths.iter().copied().map(f64::from).sum::<f64>() / lengths.len() as f64) as f32;
    if mean > 0.0 {
        weights.w_dec.iter_mut().for_each(|w| *w /= mean);
        weights.w_enc.iter_mut().chain(&mut weights.b_enc).for_each(|w| *w *= mean);
    }
    weights
}

/// As many of the rows as have about [`MAX_POSITIVE`] positive pre-activations.
fn not_too_many<'a>(sae: &TrainedSae, rows: &'a [f32]) -> &'a [f32] {
    let few = &rows[..rows.len().min(N_ROWS_AT_ONCE * sae.d_model)];
    let n_positive = sae.candidates(few, Bounds::above(0.0)).idx.len().max(1);
    let n_values = few.len().saturating_mul(MAX_POSITIVE) / n_positive;
    &rows[..rows.len().min(n_values / sae.d_model * sae.d_model)]
}

/// Active latents per row, by the native rule.
fn mean_l0(sae: &TrainedSae, rows: &[f32]) -> f64 {
    let mode = Mode { view: View::Flat, threshold: Threshold::Native };
    let active = rows.chunks(N_ROWS_AT_ONCE * sae.d_model).map(|rows| sae.encode(rows, mode).idx.len());
    active.sum::<usize>() as f64 / (rows.len() / sae.d_model).max(1) as f64
}
