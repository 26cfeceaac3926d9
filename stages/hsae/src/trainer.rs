//! One SAE in training: its state, and what a step does to it. The state is all that a checkpoint has to hold.

mod device;
mod order;
mod outcome;
mod pass;
mod resample;
mod tree_sae;

use std::time::Instant;

use anyhow::Result;
use artifact::config::{Arch, JumpReluSparsity, L1Weighting, Sae, Select, Train};
use artifact::tables::CurveRow;
use serde::Serialize;

use crate::activation::Kept;
use crate::adam::{Adam, Lengths};
use crate::archs::{Annealing, EPSILON, Family, Gated, JumpRelu, PAnneal, Relu, Sparsity};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::gpu::Engine;
use crate::gradients::Gradients;
use crate::kernels::Prefixes;
use crate::kernels::screen::{PackedEncoder, Path};
use crate::objective::Room;
use crate::rows::{subtract, total_variance};
use crate::schedule::{self, Phase};
use crate::select::OfLevels;
use crate::tree::TreeLearner;
use crate::weights::Weights;
use outcome::Outcome;

/// How fast the penalty's coefficient follows the L0 that it is steered to, per step.
const L1_GAIN: f64 = 0.02;
/// The same for each factor e by which L0 itself has just changed, since weights answer late.
const L1_DAMPING: f64 = 0.5;
/// L0 may take this share of training to come down: latents that fall silent before they stand for anything stay useless,
/// and a penalty that hurries L0 is one that it later finds ten times too high.
const L1_FALLS_UNTIL: f64 = 0.5;
/// Steering ends here, so that the last part of training has a constant loss.
const L1_STEERED_UNTIL: f64 = 0.8;
/// Decay of the moving average of the mean activation.
const AVERAGE_DECAY: f64 = 0.98;

pub struct Trainer {
    pub config: Sae,
    pub train: Train,
    pub seed: u64,
    pub n_steps: u64,
    pub state: TrainerState,
    timing: Timing,
    /// Where steps run on a GPU: parameters and moments are there, and `state` has them after `sync`.
    engine: Option<Engine>,
    /// Room for what every step makes anew.
    packed: PackedEncoder,
    grads: Gradients,
    room: Room,
}

/// Wall time spent in the parts of all steps so far, for the log.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timing {
    /// Encoder product and selection.
    pub select_s: f64,
    pub tree_s: f64,
    /// Losses and their gradients.
    pub gradients_s: f64,
    pub adam_s: f64,
}

/// Everything that changes from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    pub weights: Weights,
    pub adam: Adam,
    pub tree: Option<TreeLearner>,
    /// tree-sae only.
    pub family: Option<Family>,
    /// Tokens since each latent last fired, [d_sae]; a Tree SAE counts those of the step in which it did.
    pub tokens_since_fired: Vec<u64>,
    /// How often each has fired in the steps before latents are put in order, [d_sae], and 0 at all other times; empty where
    /// they never are.
    pub recent_firings: Vec<u64>,
    /// Coefficient of the sparsity penalty.
    pub l1_coefficient: f64,
    /// panneal only.
    pub annealing: Option<Annealing>,
    /// A moving average; None before the first step.
    pub mean_activation: Option<f64>,
    /// Where the selection of the next batch starts to look.
    pub guess: f32,
    /// The same for each step of a matching pursuit, for fine latents where they have a limit of their own, and for the
    /// root's children of a Tree SAE.
    pub guesses: Vec<f32>,
    /// Share of latents that were active in the last step.
    pub density: f64,
}

/// What the logarithm of the penalty's coefficient gains in a step: more while too many latents are active, less while too
/// few, and nothing while L0 is between `k` and what it may still be after this share of training. `change` is that of
/// ln L0 since the step before.
fn steer(l0: f64, change: f64, k: f64, d_sae: f64, share: f64) -> f64 {
    let left = (1.0 - share / L1_FALLS_UNTIL).max(0.0);
    let most = k * (d_sae / 2.0 / k).max(1.0).powf(left * left);
    let (above, below) = ((l0 / most).ln(), (l0.max(1e-3 * k) / k).ln());
    if above > 0.0 {
        (L1_GAIN * above.min(1.0) + L1_DAMPING * change).max(0.0)
    } else if below < 0.0 {
        (L1_GAIN * below.max(-1.0) + L1_DAMPING * change).min(0.0)
    } else {
        0.0
    }
}

impl TrainerState {
    pub(crate) fn guess(&self) -> OfLevels {
        [self.guess, self.guesses.first().copied().unwrap_or(0.0)]
    }

    pub(crate) fn set_guess(&mut self, [first, fine]: OfLevels) {
        (self.guess, self.guesses) = (first, vec![fine]);
    }
}

impl Trainer {
    /// `mean` is the mean of the normalised activations, [d_model].
    pub fn new(config: &Sae, train: &Train, seed: u64, mean: &[f32]) -> Self {
        let (d_model, d_sae) = (mean.len(), config.d_sae());
        let mut weights = Weights::init(seed, d_model, d_sae, mean);
        weights.own = match (config.arch, config.select()) {
            (Arch::Gated, _) => vec![vec![0.0; d_sae]; 2],
            (_, Select::Jumprelu) => vec![vec![config.jumprelu.threshold as f32; d_sae]],
            _ => Vec::new(),
        };
        // Published recipes of these two run without momentum.
        let has_momentum = !matches!(config.arch, Arch::Gated | Arch::Jumprelu);
        let beta1 = config.adam_beta1.unwrap_or(if has_momentum { train.adam_beta1 } else { 0.0 });
        let lengths = match config.arch {
            Arch::TreeSae => Lengths::UnitBefore,
            _ if config.has_unit_rows() => Lengths::UnitAfter,
            _ => Lengths::Free,
        };
        let mut adam = Adam::new(&weights, beta1, train.adam_beta2, train.max_grad_norm, lengths);
        if config.arch == Arch::TreeSae {
            adam.epsilon = EPSILON;
        }
        let n_steps = train.n_tokens / train.batch_size as u64;
        let family = config.tree_sae().map(|tree| Family::new(&tree, seed, config.n_coarse, config.n_fine, n_steps));
        let tree = config.tree().map(|tree| TreeLearner::new(&tree, config.n_coarse, d_sae));
        Self {
            config: config.clone(),
            train: train.clone(),
            seed,
            n_steps,
            timing: Timing::default(),
            engine: None,
            packed: PackedEncoder::pack(Path::detect(), &weights.w_enc, d_model),
            grads: Gradients::zeros(d_model, d_sae),
            room: Room::default(),
            state: TrainerState {
                step: 0,
                weights,
                adam,
                tree,
                family,
                tokens_since_fired: vec![0; d_sae],
                recent_firings: vec![0; schedule::sorted_before(config, n_steps).map_or(0, |_| d_sae)],
                l1_coefficient: if config.has_penalty() { config.l1.unwrap_or(1.0) } else { 0.0 },
                annealing: (config.arch == Arch::Panneal).then(Annealing::new),
                mean_activation: None,
                guess: 0.0,
                guesses: Vec::new(),
                density: 1.0,
            },
        }
    }

    /// To be called when the weights were changed from outside.
    pub fn repack(&mut self) {
        self.packed.update(&self.state.weights.w_enc);
    }

    pub fn is_done(&self) -> bool {
        self.state.step == self.n_steps
    }

    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Trains on one batch of normalised activations, x [B, d_model].
    ///
    /// Errors: the loss or a weight is no longer finite.
    pub fn step(&mut self, mut x: Vec<f32>) -> Result<CurveRow> {
        #[cfg(feature = "gpu")]
        if let Some(mut engine) = self.engine.take() {
            let row = gpu::guarded(|| self.step_on_gpu(&mut engine, x));
            self.engine = Some(engine);
            return row;
        }
        let phase = schedule::phase(&self.train, &self.config, self.state.step, self.n_steps);
        let n_rows = x.len() / self.state.weights.d_model;
        let total_variance = total_variance(&x, self.state.weights.d_model);
        let uncentered = (!self.config.apply_b_dec_to_input).then(|| x.clone());
        subtract(&mut x, &self.state.weights.b_dec);
        self.packed.balance(uncentered.as_deref().unwrap_or(&x), &self.state.weights.w_enc);
        let outcome = self.pass_of_arch(uncentered.as_deref().unwrap_or(&x), &x, &phase);
        let start = Instant::now();
        let lr_rows = self.lr_rows(&phase);
        let state = &mut self.state;
        let grad_norm = state.adam.update(
            &mut state.weights,
            &mut self.packed,
            &self.grads,
            outcome.sum_of_squares,
            &outcome.along,
            &lr_rows,
            phase.lr as f32,
        );
        if self.config.arch == Arch::MatchingPursuit {
            // The encoder is the decoder.
            state.weights.w_enc.copy_from_slice(&state.weights.w_dec);
            self.packed.update(&state.weights.w_enc);
        }
        if self.config.select() == Select::Jumprelu {
            // A threshold below zero would let negative activations through.
            state.weights.own[0].iter_mut().for_each(|threshold| *threshold = threshold.max(0.0));
        }
        self.timing.adam_s += start.elapsed().as_secs_f64();

        let row = self.curve_row(&phase, &outcome, grad_norm, n_rows, total_variance);
        anyhow::ensure!(
            row.loss.is_finite() && row.grad_norm.is_finite(),
            "{}: the loss is no longer finite at step {}; lower train.lr",
            self.config.name,
            row.step
        );
        self.follow(&outcome, n_rows);
        self.packed.reconsider(&self.state.weights.w_enc);
        // A large budget passes so much of the screen that 8 bits do not pay; a smaller one may.
        if schedule::budget_has_fallen(&self.config, self.state.step, self.n_steps) {
            self.packed.try_fewer_bits(&self.state.weights.w_enc);
        }
        self.resample_if_due(uncentered.as_deref().unwrap_or(&x), &x);
        self.sort_if_due(outcome.ungated.as_deref().unwrap_or(&outcome.firing.n));
        self.state.step += 1;
        Ok(row)
    }

    /// The pass with what the architecture does to pre-activations filled in. Shapes: x, target [B, d_model].
    fn pass_of_arch(&mut self, x: &[f32], target: &[f32], phase: &Phase) -> Outcome {
        let weights = &self.state.weights;
        let n_rows = x.len() / weights.d_model;
        let coefficient = (self.state.l1_coefficient * phase.sparsity / n_rows as f64) as f32;
        match (self.config.arch, self.config.select()) {
            (Arch::MatchingPursuit, _) => self.pursue(target, phase),
            (Arch::TreeSae, _) => self.tree_sae(x, target, phase),
            (Arch::Gated, _) => {
                let (b_gate, own) = (weights.b_enc.clone(), weights.own.clone());
                let gated = Gated { l1: coefficient, b_gate: &b_gate, r_mag: &own[0], b_mag: &own[1] };
                self.pass(&gated, x, target, phase)
            }
            (Arch::Panneal, _) => {
                let annealing = self.state.annealing.as_ref();
                let p = annealing.map_or(1.0, |annealing| annealing.p as f32);
                let next_p = annealing.and_then(|annealing| annealing.next_p).map(|p| p as f32);
                self.pass(&PAnneal { coefficient, p, next_p }, x, target, phase)
            }
            (_, Select::Relu) => {
                let is_weighted = self.config.l1_weighting == L1Weighting::DecoderNorm;
                let lengths = is_weighted.then(|| weights.decoder_lengths());
                self.pass(&Relu { l1: coefficient, lengths }, x, target, phase)
            }
            (_, Select::Jumprelu) => {
                let config = &self.config.jumprelu;
                let (threshold, lengths) = (weights.own[0].clone(), weights.decoder_lengths());
                let jumprelu = JumpRelu {
                    threshold: &threshold,
                    bandwidth: config.bandwidth as f32,
                    coefficient,
                    sparsity: match config.sparsity {
                        JumpReluSparsity::Step => Sparsity::Step,
                        JumpReluSparsity::Tanh => Sparsity::Tanh { scale: config.tanh_scale as f32 },
                        JumpReluSparsity::Quadratic => Sparsity::Quadratic { target: self.config.k as f32 },
                    },
                    reaches_input: config.reaches_input,
                    lengths: &lengths,
                };
                self.pass(&jumprelu, x, target, phase)
            }
            (_, Select::Topk | Select::Batchtopk) => self.pass(&Kept, x, target, phase),
        }
    }

    fn prefixes(&self, phase: &Phase) -> Prefixes {
        let config = self.config.prefixes();
        let mut ends = schedule::prefixes(config.as_ref(), self.seed, self.state.step, self.n_in_use(phase));
        let (beta, reach) =
            config.as_ref().map_or((0.0, 1.0), |config| schedule::annealed(config, self.state.step, self.n_steps));
        if beta == 0.0 {
            ends.clear();
        }
        let mut weights = vec![beta; ends.len()];
        ends.push(self.config.d_sae());
        weights.push(config.map_or(1.0, |prefixes| prefixes.beta_full as f32));
        Prefixes { ends, weights, reach }
    }

    fn n_in_use(&self, phase: &Phase) -> usize {
        if phase.fine_is_on { self.config.d_sae() } else { self.config.n_coarse }
    }

    fn lr_rows(&self, phase: &Phase) -> Vec<f32> {
        let of = |j| if j < self.config.n_coarse { phase.lr_coarse } else { phase.lr_fine };
        (0..self.config.d_sae()).map(|j| of(j) as f32).collect()
    }

    /// Updates what later steps need to know of this one.
    fn follow(&mut self, outcome: &Outcome, n_rows: usize) {
        let state = &mut self.state;
        let firing = &outcome.firing;
        let n_active: u64 = firing.n.iter().sum();
        if n_active > 0 {
            let now = firing.sum_acts / n_active as f64;
            let follow = |mean: f64| AVERAGE_DECAY * mean + (1.0 - AVERAGE_DECAY) * now;
            state.mean_activation = Some(state.mean_activation.map_or(now, follow));
        }
        let l0 = n_active as f64 / n_rows as f64;
        let change = (l0 / (state.density * self.config.d_sae() as f64)).clamp(1e-3, 1e3).ln();
        state.density = l0 / self.config.d_sae() as f64;
        let share = state.step as f64 / self.n_steps as f64;
        let panneal = &self.config.panneal;
        let steered_until = match self.config.arch {
            // From there on the penalty keeps its size by its own rule.
            Arch::Panneal => panneal.from.min(L1_STEERED_UNTIL),
            _ => L1_STEERED_UNTIL,
        };
        if self.config.has_penalty() && self.config.l1.is_none() && share < steered_until {
            state.l1_coefficient *= steer(l0, change, self.config.k as f64, self.config.d_sae() as f64, share).exp();
        }
        if let Some(annealing) = &mut state.annealing {
            let step_at = |share: f64| (share * self.n_steps as f64).round() as u64;
            let range = (step_at(panneal.from), step_at(panneal.to));
            let now = if state.l1_coefficient > 0.0 { outcome.losses.l1 / outcome.coefficient } else { 0.0 };
            let next = outcome.watched / n_rows as f64;
            state.l1_coefficient *= annealing.follow(state.step, range, panneal.n_values, panneal.p_end, (now, next));
        }
    }

    fn curve_row(
        &self,
        phase: &Phase,
        outcome: &Outcome,
        grad_norm: f32,
        n_rows: usize,
        total_variance: f64,
    ) -> CurveRow {
        let (state, losses) = (&self.state, &outcome.losses);
        let per_token = |firings: &[u64]| firings.iter().sum::<u64>() as f64 / n_rows as f64;
        let (coarse, fine) = outcome.firing.n.split_at(self.config.n_coarse);
        let n_dead = state.tokens_since_fired.iter().filter(|&&tokens| tokens > self.config.aux_k.dead_after).count();
        let step = state.step + 1;
        CurveRow {
            step,
            tokens: step * self.train.batch_size as u64,
            lr_coarse: phase.lr_coarse,
            lr_fine: phase.lr_fine,
            loss: losses.total,
            mse: losses.mse,
            mse_prefixes: losses.prefixes,
            l1: losses.l1,
            aux: losses.aux,
            mi: outcome.tree.mi,
            coverage: outcome.tree.coverage,
            geometry: outcome.tree.geometry,
            // A batch of equal rows has no variance.
            fvu: outcome.squared_error * n_rows as f64 / total_variance.max(f64::MIN_POSITIVE),
            l0_coarse: per_token(coarse),
            l0_fine: per_token(fine),
            dead: n_dead as f64 / self.config.d_sae() as f64,
            grad_norm: f64::from(grad_norm),
            l1_coefficient: state.l1_coefficient,
            gate: f64::from(outcome.gate),
            n_edges: match (&state.tree, &state.family) {
                (Some(tree), _) => tree.edges.iter().flatten().count() as u64,
                (None, Some(family)) => family.n_edges(),
                (None, None) => 0,
            },
        }
    }
}

#[cfg(test)]
mod goldens;
#[cfg(test)]
mod tests;
