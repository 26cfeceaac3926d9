//! After training: the thresholds at inference, set on training rows so that the wanted L0 is reached exactly.
//!
//! Every SAE, baselines included, gets the same treatment: F1 is largely a matter of thresholds (science.md §7).

use artifact::config::{Arch, Sae, Select};
use rayon::prelude::*;

use crate::kernels::{Bounds, EncoderInput, TokenBounds, vectorised};
use crate::schedule::full_budget;
use crate::select::{Budget, Gate, Scope, gated_scores, select_batch};
use crate::sparse::SparseRows;
use crate::trained::{Magnitude, Packed, Rule, Rules, TrainedSae, TreeGate, apply};
use crate::trainer::Trainer;
use crate::weights::Weights;

mod hard;
mod recount;
mod refined;

pub use recount::Recount;

/// Rows that the noise of inactive latents is measured on.
const N_NOISE_ROWS: usize = 2048;
/// Candidates are collected from this share of the thresholds that a few rows suggest.
const START: f32 = 0.7;
/// A rate below this share of the mean one counts as this share: a latent that hardly fired has no well-known rate.
const RATE_FLOOR: f64 = 0.05;

/// Folds the normalisation in and finds the thresholds.
/// Shapes: rows [n, d_model], training activations in their own units; `scale` normalises them.
pub fn finish(trainer: &Trainer, scale: f32, rows: &[f32]) -> TrainedSae {
    let mut sae = without_rules(trainer, scale);
    set_rules(&mut sae, rows);
    sae
}

/// The same, but where parents are to be chosen once more, with thresholds for that alone; `Recount` sets the others.
pub fn finish_but_for_tree(trainer: &Trainer, scale: f32, rows: &[f32]) -> (TrainedSae, Option<Recount>) {
    let mut sae = without_rules(trainer, scale);
    let recount = Recount::start(&mut sae, trainer.state.tree.as_ref(), rows);
    if recount.is_none() {
        set_rules(&mut sae, rows);
    }
    (sae, recount)
}

fn without_rules(trainer: &Trainer, scale: f32) -> TrainedSae {
    let (state, config) = (&trainer.state, &trainer.config);
    let weights = folded(&state.weights, config.has_unit_rows(), scale);
    let gate = match (config.tree_sae(), config.tree(), state.mean_activation) {
        (Some(tree), ..) => TreeGate::Hard { active_above: tree.active_above as f32 / scale },
        (None, Some(tree), Some(mean_activation)) => TreeGate::Soft((tree.gate * mean_activation) as f32 / scale),
        _ => TreeGate::Soft(0.0),
    };
    let mut sae = assembled(config.clone(), trainer.seed, weights);
    sae.gate = gate;
    match (&state.tree, &state.family) {
        (Some(tree), _) => sae.parent = tree.parents(),
        (None, Some(family)) => sae.parent = family.parents(),
        (None, None) => {}
    }
    sae
}

/// A finished SAE with the thresholds that `config` asks for; it may differ in `prior_kappa` and `refine_sweeps`. On the
/// rows that training ended with it becomes what that training would have ended in, bit for bit.
/// Shapes: rows [n, d_model].
pub fn calibrated_anew(sae: TrainedSae, config: &Sae, rows: &[f32]) -> TrainedSae {
    let mut sae = TrainedSae { config: config.clone(), packed: Packed::default(), ..sae };
    set_rules(&mut sae, rows);
    sae
}

/// An SAE of finished weights, without a tree, its thresholds not yet found but for trained ones.
pub(crate) fn assembled(config: Sae, seed: u64, weights: Weights) -> TrainedSae {
    let mut sae = TrainedSae {
        n_coarse: config.n_coarse,
        config,
        seed,
        d_model: weights.d_model,
        d_sae: weights.d_sae,
        w_enc: weights.w_enc,
        b_enc: weights.b_enc,
        parent: vec![None; weights.d_sae],
        w_dec: weights.w_dec,
        b_dec: weights.b_dec,
        magnitude: None,
        gate: TreeGate::Soft(0.0),
        packed: Packed::default(),
        rules: Rules {
            flat_native: Rule::Positive,
            flat_prior: Rule::Positive,
            gated_native: Rule::Positive,
            gated_prior: Rule::Positive,
            flat_refined: None,
            gated_refined: None,
        },
    };
    match <[Vec<f32>; 2]>::try_from(weights.own) {
        Ok([r_mag, b_mag]) => sae.magnitude = Some(Magnitude { r_mag, b_mag }),
        Err(own) => {
            if let Some(threshold) = own.into_iter().next() {
                sae.rules.flat_native = Rule::Above(threshold);
            }
        }
    }
    sae
}

/// The weights in the units of the activations on disk, with decoder rows of length 1.
pub(crate) fn folded(weights: &Weights, has_unit_rows: bool, scale: f32) -> Weights {
    let mut folded = weights.clone();
    let d_model = weights.d_model;
    if !has_unit_rows {
        for (j, length) in weights.decoder_lengths().into_iter().enumerate().filter(|&(_, length)| length > 0.0) {
            let row = j * d_model..(j + 1) * d_model;
            folded.w_dec[row.clone()].iter_mut().for_each(|w| *w /= length);
            folded.w_enc[row].iter_mut().for_each(|w| *w *= length);
            folded.b_enc[j] *= length;
            // A threshold or a magnitude's bias goes with the activation, a magnitude's logarithmic scale does not.
            folded.own.last_mut().into_iter().for_each(|own| own[j] *= length);
        }
    }
    // pre/s = (x − b_dec/s) W + b/s: with activations divided by the scale, no matrix changes.
    let biases = [&mut folded.b_enc, &mut folded.b_dec].into_iter().chain(folded.own.last_mut());
    biases.flatten().for_each(|b| *b /= scale);
    folded
}

/// Finds the rules of all modes, from rows in the SAE's own units.
pub(crate) fn set_rules(sae: &mut TrainedSae, rows: &[f32]) {
    let (rules, shift) = rules(sae, rows);
    sae.rules = rules;
    if let Some(shift) = shift {
        refined::set_refinements(sae, rows, &shift);
    }
}

/// The rules of all modes but the refined ones, and what the prior adds to scores, [d_sae]; None where there is nothing
/// to refine.
fn rules(sae: &TrainedSae, rows: &[f32]) -> (Rules, Option<Vec<f32>>) {
    if sae.config.arch == Arch::MatchingPursuit {
        // It chooses one latent after the other, and has no thresholds.
        let [flat_native, flat_prior, gated_native, gated_prior] = [(); 4].map(|()| Rule::TopK(sae.config.k));
        let (flat_refined, gated_refined) = (None, None);
        let rules = Rules { flat_native, flat_prior, gated_native, gated_prior, flat_refined, gated_refined };
        return (rules, None);
    }
    // A first look at a few rows tells where to start collecting, latent by latent: frequent ones have low thresholds,
    // and going that low for all would be to look at everything. What started too high is noticed and lowered.
    let few = &rows[..rows.len().min(N_NOISE_ROWS * sae.d_model)];
    let mut lower = vec![0f32; sae.d_sae];
    let mut fit = Fit::new(sae, few, &lower, few);
    lower.iter_mut().zip(&fit.lowest).for_each(|(lower, low)| *lower = START * low.max(0.0));
    loop {
        fit = Fit::new(sae, rows, &lower, few);
        let mut is_low_enough = true;
        for (lower, &low) in lower.iter_mut().zip(&fit.lowest) {
            if low.max(0.0) < *lower {
                (*lower, is_low_enough) = (START * low.max(0.0), false);
            }
        }
        if is_low_enough {
            let shift = fit.shift.clone();
            let rules = match sae.gate {
                TreeGate::Soft(_) => fit.rules,
                TreeGate::Hard { active_above } => hard::rules(sae, rows, fit, active_above),
            };
            return (rules, Some(shift));
        }
    }
}

/// Rules fitted to the candidates above some bounds, which have to reach down to all that they rest on.
struct Fit {
    rules: Rules,
    /// What the prior adds to scores, [d_sae].
    shift: Vec<f32>,
    /// What a latent's candidates have to reach down to, [d_sae].
    lowest: Vec<f32>,
}

impl Fit {
    /// Shapes: rows [n, d_model], lower [d_sae]; `few` rows tell the noise.
    fn new(sae: &TrainedSae, rows: &[f32], lower: &[f32], few: &[f32]) -> Self {
        let config = &sae.config;
        let candidates = sae.candidates(rows, Bounds { tokens: TokenBounds::All(0.0), shift: Some(lower), top: None });
        let n_rows = candidates.n_rows() as f64;
        let native = |scores: &[f32]| native_rule(sae, &candidates, scores);
        let flat_native = native(&candidates.vals);
        let acts = match flat_native {
            // The k largest of a token may lie below all bounds.
            Rule::TopK(k) => {
                let budget = Budget::Shared { k: k as f64, fine: k as f64, n_coarse: 0 };
                select_batch(sae.encoder(&sae.input(rows)), &budget, Scope::Token, None, [0.0; 2]).pre_acts
            }
            _ => apply(&flat_native, &candidates, &candidates.vals),
        };

        // The same cut for every architecture tells which latents are inactive, and how strong the active ones are.
        let k = config.k as f64;
        let cut = threshold_for(&candidates, &candidates.vals, k * n_rows, |_| true).max(0.0);
        let kappa = config.prior_kappa.unwrap_or_else(|| kappa(sae, few, cut, &candidates));
        let floor = RATE_FLOOR * k / sae.d_sae as f64;
        let shift: Vec<f32> = acts
            .firings()
            .iter()
            .map(|&n| {
                let q = (n as f64 / n_rows).clamp(floor, 0.9);
                (kappa * (q / (1.0 - q)).ln()) as f32
            })
            .collect();
        let prior = |scores: &[f32]| {
            let shifted: Vec<f32> = candidates.idx.iter().zip(scores).map(|(&j, s)| s + shift[j as usize]).collect();
            let t = threshold_for(&candidates, &shifted, k * n_rows, |_| true);
            Rule::Above(shift.iter().map(|shift| (t - shift).max(0.0)).collect())
        };
        let flat_prior = prior(&candidates.vals);
        let scores = match sae.gate {
            TreeGate::Soft(strength) => gated_scores(&candidates, &acts, Gate { parent: &sae.parent, strength }),
            // Thresholds behind a hard gate rest on other candidates.
            TreeGate::Hard { .. } => candidates.vals.clone(),
        };
        let rules = Rules {
            gated_native: native(&scores),
            gated_prior: prior(&scores),
            flat_native,
            flat_prior,
            flat_refined: None,
            gated_refined: None,
        };
        let mut lowest = vec![cut; sae.d_sae];
        for rule in [&rules.flat_native, &rules.flat_prior, &rules.gated_native, &rules.gated_prior] {
            match rule {
                Rule::Above(thresholds) => lowest.iter_mut().zip(thresholds).for_each(|(low, t)| *low = low.min(*t)),
                Rule::Positive => lowest.fill(0.0),
                Rule::TopK(_) => {}
            }
        }
        Self { rules, shift, lowest }
    }
}

/// ReLU, TopK and JumpReLU as they are; for BatchTopK and Tree SAEs the threshold that gives the wanted L0, per level where
/// levels have budgets.
fn native_rule(sae: &TrainedSae, candidates: &SparseRows, scores: &[f32]) -> Rule {
    let config = &sae.config;
    let n_rows = candidates.n_rows() as f64;
    match (config.select(), full_budget(config)) {
        (Select::Jumprelu, _) => sae.rules.flat_native.clone(),
        (Select::Relu, _) | (_, Budget::All) => Rule::Positive,
        (Select::Topk, Budget::Shared { .. }) => Rule::TopK(config.k),
        (Select::Batchtopk, Budget::Shared { k, .. }) => {
            let t = threshold_for(candidates, scores, k * n_rows, |_| true).max(0.0);
            Rule::Above(vec![t; config.d_sae()])
        }
        (Select::Topk | Select::Batchtopk, Budget::PerLevel { coarse, fine, n_coarse }) => {
            let is_coarse = |j: u32| (j as usize) < n_coarse;
            let t_coarse = threshold_for(candidates, scores, coarse * n_rows, is_coarse).max(0.0);
            let t_fine = threshold_for(candidates, scores, fine * n_rows, |j| !is_coarse(j)).max(0.0);
            Rule::Above((0..config.d_sae()).map(|j| if j < n_coarse { t_coarse } else { t_fine }).collect())
        }
    }
}

/// The threshold above which `n` candidates of the group lie: halfway between the n-th and the next. Where there are
/// fewer, −∞: all that there are.
fn threshold_for(candidates: &SparseRows, scores: &[f32], n: f64, in_group: impl Fn(u32) -> bool) -> f32 {
    let entries = candidates.idx.iter().zip(scores).filter(|(j, _)| in_group(**j));
    let mut group: Vec<f32> = entries.map(|(_, &score)| score).collect();
    let n = n.round() as usize;
    if n == 0 {
        return f32::MAX;
    }
    if group.len() <= n {
        return f32::NEG_INFINITY;
    }
    let (better, &mut next, _) = group.select_nth_unstable_by(n, |a, b| b.total_cmp(a));
    let last = better.iter().copied().fold(f32::INFINITY, f32::min);
    let between = last + (next - last) / 2.0;
    // Neighbouring floats have nothing between them; the rule is «strictly above».
    if between < last { between } else { last.next_down() }
}

/// κ = noise variance / mean magnitude: the variance, within latents, of pre-activations below the cut, over the mean of
/// those above it. With Gaussian noise of that variance and features of that magnitude, the score at which a latent of
/// rate q is more likely on than off falls by κ·logit(q).
fn kappa(sae: &TrainedSae, few: &[f32], cut: f32, candidates: &SparseRows) -> f64 {
    let (mut sum_active, mut n_active) = (0f64, 0f64);
    for &value in candidates.vals.iter().filter(|&&value| value > cut) {
        sum_active += f64::from(value);
        n_active += 1.0;
    }
    let x = sae.input(few);
    let input = sae.encoder(&x);
    let moments: Vec<[f64; 3]> = (0..sae.d_sae).into_par_iter().map(|j| moments_below(&input, j, cut)).collect();
    let (mut scatter, mut n) = (0f64, 0f64);
    for [count, sum, sum_sq] in moments {
        if count > 0.0 {
            scatter += sum_sq - sum * sum / count;
            n += count;
        }
    }
    if n == 0.0 || sum_active <= 0.0 { 0.0 } else { (scatter / n) / (sum_active / n_active) }
}

vectorised! {
    /// Number, sum and sum of squares of a latent's pre-activations at or below the cut.
    fn moments_below(input: &EncoderInput, j: usize, cut: f32) -> [f64; 3] {
        let mut moments = [0f64; 3];
        for value in (0..input.n_rows()).map(|t| input.pre_act(t, j)).filter(|&value| value <= cut) {
            let value = f64::from(value);
            moments[0] += 1.0;
            moments[1] += value;
            moments[2] += value * value;
        }
        moments
    }
}
