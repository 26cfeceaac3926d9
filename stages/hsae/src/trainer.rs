//! One SAE in training: its state, and what a step does to it. The state is all that a checkpoint has to hold.

use std::time::Instant;

use anyhow::Result;
use artifact::config::{Sae, Select, Train};
use artifact::tables::CurveRow;
use rayon::prelude::*;
use serde::Serialize;

use crate::activation::{Activation, Kept};
use crate::adam::Adam;
use crate::archs::Relu;
use crate::gradients::Gradients;
use crate::kernels::screen::{PackedEncoder, Path};
use crate::kernels::{EncoderInput, Prefixes, axpy, dot, vectorised};
use crate::objective::{AuxK, Found, Losses, Objective};
use crate::schedule::{self, Phase};
use crate::select::{Budget, Gate, Selection, select_batch};
use crate::sparse::{Columns, SparseRows};
use crate::tree::TreeLearner;
use crate::tree_terms::{EdgeStats, TreeLosses, TreeTerms};
use crate::weights::Weights;

/// How fast the L1 coefficient follows the L0 that it is steered to, per step.
const L1_GAIN: f64 = 0.02;
/// Steering ends here, so that the last part of training has a constant loss.
const L1_STEERED_UNTIL: f64 = 0.8;
/// Above this share of active latents dense products are cheaper than going over entries. A ReLU SAE starts half dense.
const DENSE_ABOVE: f64 = 0.03;
/// Tokens per parallel piece of elementwise work, and per partial sum.
const ROWS_AT_ONCE: usize = 64;
/// Decay of the moving average of the mean activation.
const AVERAGE_DECAY: f64 = 0.98;
/// Width of the tree terms' soft firing, in mean activations.
const TAU: f32 = 0.07;

pub struct Trainer {
    pub config: Sae,
    pub train: Train,
    pub seed: u64,
    pub n_steps: u64,
    pub state: TrainerState,
    timing: Timing,
    /// Room for what every step makes anew.
    packed: PackedEncoder,
    grads: Gradients,
    flow: Vec<f32>,
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
    /// Tokens since each latent last fired, [d_sae].
    pub tokens_since_fired: Vec<u64>,
    pub l1_coefficient: f64,
    /// A moving average; None before the first step.
    pub mean_activation: Option<f64>,
    /// Where the selection of the next batch starts to look.
    pub guess: f32,
    /// Share of latents that were active in the last step.
    pub density: f64,
}

impl Trainer {
    /// `mean` is the mean of the normalised activations, [d_model].
    pub fn new(config: &Sae, train: &Train, seed: u64, mean: &[f32]) -> Self {
        let (d_model, d_sae) = (mean.len(), config.d_sae());
        let weights = Weights::init(seed, d_model, d_sae, mean);
        let adam = Adam::new(&weights, train.adam_beta1, train.adam_beta2, train.max_grad_norm, true);
        let tree = config.tree().map(|tree| TreeLearner::new(&tree, config.n_coarse, d_sae));
        let l1_coefficient = match (config.select(), config.l1) {
            (Select::Relu, Some(l1)) => l1,
            (Select::Relu, None) => 1.0,
            _ => 0.0,
        };
        Self {
            config: config.clone(),
            train: train.clone(),
            seed,
            n_steps: train.n_tokens / train.batch_size as u64,
            timing: Timing::default(),
            packed: PackedEncoder::pack(Path::detect(), &weights.w_enc, d_model),
            grads: Gradients::zeros(d_model, d_sae),
            flow: Vec::new(),
            state: TrainerState {
                step: 0,
                weights,
                adam,
                tree,
                tokens_since_fired: vec![0; d_sae],
                l1_coefficient,
                mean_activation: None,
                guess: 0.0,
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
        let phase = schedule::phase(&self.train, &self.config, self.state.step, self.n_steps);
        let n_rows = x.len() / self.state.weights.d_model;
        let total_variance = total_variance(&x, self.state.weights.d_model);
        subtract(&mut x, &self.state.weights.b_dec);
        let outcome = match self.config.select() {
            Select::Relu => {
                let relu = Relu { l1: self.state.l1_coefficient as f32 / n_rows as f32, lengths: None };
                self.pass(&relu, &x, &phase)
            }
            Select::Topk | Select::Batchtopk => self.pass(&Kept, &x, &phase),
        };
        let start = Instant::now();
        let lr_rows = self.lr_rows(&phase);
        let state = &mut self.state;
        let grad_norm = state.adam.update(
            &mut state.weights,
            &mut self.packed,
            &self.grads,
            outcome.sum_of_squares,
            &lr_rows,
            phase.lr as f32,
        );
        self.timing.adam_s += start.elapsed().as_secs_f64();

        self.follow(&phase, &outcome.firing, n_rows);
        self.state.step += 1;
        let row = self.curve_row(&phase, &outcome, grad_norm, n_rows, total_variance);
        anyhow::ensure!(
            row.loss.is_finite() && row.grad_norm.is_finite(),
            "{}: the loss is no longer finite at step {}; lower train.lr",
            self.config.name,
            row.step
        );
        Ok(row)
    }

    /// Loss and gradients of a batch, the latter in `self.grads`. Shapes: x [B, d_model], b_dec already subtracted.
    fn pass<A: Activation>(&mut self, activation: &A, x: &[f32], phase: &Phase) -> Outcome {
        let dead = self.dead_latents(phase);
        let prefixes = self.prefixes(phase);
        let aux = &self.config.aux_k;
        let k_aux = aux.k.unwrap_or(self.state.weights.d_model / 2).max(1);
        let aux_k = (!dead.is_empty()).then(|| AuxK {
            dead: &dead,
            k: k_aux,
            // Few dead latents cannot be asked to explain the whole residual.
            weight: aux.weight * (dead.len() as f64 / k_aux as f64).min(1.0),
            is_normalised: false,
        });
        let parents = self.state.tree.as_ref().map(TreeLearner::parents);
        let gate = self.gate(phase, parents.as_deref());
        let gate_strength = gate.map_or(0.0, |gate| gate.strength);
        let is_dense = phase.budget == Budget::All && gate.is_none() && self.state.density > DENSE_ABOVE;
        let objective = |weights| Objective {
            activation,
            weights,
            x,
            target: x,
            prefixes: &prefixes,
            aux: aux_k,
            is_constrained: true,
            centers_input: true,
        };
        if is_dense {
            let start = Instant::now();
            let (found, counts) = objective(&self.state.weights).dense(Vec::new(), &mut self.grads);
            self.timing.gradients_s += start.elapsed().as_secs_f64();
            let firing = Firing { n: counts.firings, sum_acts: counts.sum_acts, n_coarse: self.config.n_coarse };
            return Outcome::new(found, TreeLosses::default(), firing, gate_strength);
        }

        let start = Instant::now();
        let weights = &self.state.weights;
        let input = EncoderInput {
            x_centered: x,
            w_enc: &weights.w_enc,
            b_enc: &weights.b_enc,
            d_model: weights.d_model,
            packed: &self.packed,
        };
        let selection = select_batch(input, &phase.budget, phase.scope, gate, self.state.guess);
        self.timing.select_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let columns = selection.pre_acts.columns();
        self.observe(phase, &selection, &columns);
        self.timing.tree_s += start.elapsed().as_secs_f64();

        let start = Instant::now();
        let mut terms = Vec::new();
        let mut tree_losses = TreeLosses::default();
        if let Some(tree) = self.tree_terms(phase, selection.threshold) {
            let mut uncentered = x.to_vec();
            add(&mut uncentered, &self.state.weights.b_dec);
            if let Some((losses, extra)) = tree.gradients(&self.state.weights, &uncentered, &selection.pre_acts) {
                tree_losses = losses;
                terms.push(extra);
            }
        }
        let found = objective(&self.state.weights).sparse(
            &selection.pre_acts,
            &columns,
            terms,
            &mut self.flow,
            &mut self.grads,
        );
        self.timing.gradients_s += start.elapsed().as_secs_f64();
        self.state.guess = selection.guess;
        let firing = Firing::of(activation, &selection.pre_acts, &columns, self.config.n_coarse);
        Outcome::new(found, tree_losses, firing, gate_strength)
    }

    fn gate<'a>(&self, phase: &Phase, parents: Option<&'a [Option<u32>]>) -> Option<Gate<'a>> {
        let tree = self.config.tree()?;
        let strength = phase.gate * tree.gate * self.state.mean_activation?;
        Some(Gate { parent: parents?, strength: strength as f32 })
    }

    /// Learns the tree from this step's firing, once fine latents take part.
    fn observe(&mut self, phase: &Phase, selection: &Selection, columns: &Columns) {
        let step = self.state.step;
        if let Some(tree) = &mut self.state.tree
            && phase.fine_is_on
            && phase.tree_is_open
        {
            match &selection.ungated {
                Some(ungated) => tree.observe(ungated, &ungated.columns()),
                None => tree.observe(&selection.pre_acts, columns),
            }
            if step.is_multiple_of(tree.config.update_every) {
                tree.choose();
            }
        }
    }

    /// Latents that AuxK revives: those that have not fired for long. A ReLU SAE has no AuxK, and fine latents are not
    /// dead before their time has come.
    fn dead_latents(&self, phase: &Phase) -> Vec<u32> {
        let aux = &self.config.aux_k;
        if aux.weight == 0.0 || self.config.select() == Select::Relu {
            return Vec::new();
        }
        let n_in_use = self.n_in_use(phase);
        let since = self.state.tokens_since_fired[..n_in_use].iter().enumerate();
        since.filter(|&(_, &tokens)| tokens > aux.dead_after).map(|(j, _)| j as u32).collect()
    }

    fn prefixes(&self, phase: &Phase) -> Prefixes {
        let config = self.config.prefixes();
        let mut ends = schedule::prefixes(config.as_ref(), self.seed, self.state.step, self.n_in_use(phase));
        let beta = config.map_or(0.0, |prefixes| prefixes.beta as f32);
        if beta == 0.0 {
            ends.clear();
        }
        let mut weights = vec![beta; ends.len()];
        ends.push(self.config.d_sae());
        weights.push(1.0);
        Prefixes { ends, weights }
    }

    fn n_in_use(&self, phase: &Phase) -> usize {
        if phase.fine_is_on { self.config.d_sae() } else { self.config.n_coarse }
    }

    /// The optional terms of the tree, once its gate is on; None where all weights are 0.
    fn tree_terms(&self, phase: &Phase, threshold: f32) -> Option<TreeTerms> {
        let (learner, mean_activation) = (self.state.tree.as_ref()?, self.state.mean_activation?);
        let config = &learner.config;
        let weight = |w: f64| (w * phase.gate) as f32;
        if phase.gate == 0.0 || config.w_mi + config.w_coverage + config.w_geometry == 0.0 {
            return None;
        }
        let edges = learner.edges.iter().enumerate().filter_map(|(j, edge)| {
            let (parent, child) = (edge.as_ref()?.parent, j as u32);
            let (p, q) = (learner.rate(parent), learner.rate(child));
            Some(EdgeStats { parent, child, p, q, p11: learner.joint_rate(child, parent) })
        });
        Some(TreeTerms {
            edges: edges.collect(),
            threshold: threshold.max(0.0),
            tau: TAU * mean_activation as f32,
            w_mi: weight(config.w_mi),
            w_coverage: weight(config.w_coverage),
            w_geometry: weight(config.w_geometry),
        })
    }

    fn lr_rows(&self, phase: &Phase) -> Vec<f32> {
        let of = |j| if j < self.config.n_coarse { phase.lr_coarse } else { phase.lr_fine };
        (0..self.config.d_sae()).map(|j| of(j) as f32).collect()
    }

    /// Updates what later steps need to know of this one.
    fn follow(&mut self, phase: &Phase, firing: &Firing, n_rows: usize) {
        let n_in_use = self.n_in_use(phase);
        let state = &mut self.state;
        for (j, (since, &n)) in state.tokens_since_fired.iter_mut().zip(&firing.n).enumerate() {
            // A latent that may not fire yet is not dying.
            *since = if j < n_in_use && n == 0 { *since + n_rows as u64 } else { 0 };
        }
        let n_active: u64 = firing.n.iter().sum();
        if n_active > 0 {
            let now = firing.sum_acts / n_active as f64;
            let follow = |mean: f64| AVERAGE_DECAY * mean + (1.0 - AVERAGE_DECAY) * now;
            state.mean_activation = Some(state.mean_activation.map_or(now, follow));
        }
        let l0 = n_active as f64 / n_rows as f64;
        state.density = l0 / self.config.d_sae() as f64;
        let share = state.step as f64 / self.n_steps as f64;
        if self.config.select() == Select::Relu && self.config.l1.is_none() && share < L1_STEERED_UNTIL {
            // Multiplicative, by at most the gain a step: up while too many latents are active, down while too few.
            let excess = (l0 / self.config.k as f64).max(1e-3).ln();
            state.l1_coefficient *= (L1_GAIN * excess.clamp(-1.0, 1.0)).exp();
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
        let (coarse, fine) = outcome.firing.n.split_at(outcome.firing.n_coarse);
        let n_dead = state.tokens_since_fired.iter().filter(|&&tokens| tokens > self.config.aux_k.dead_after).count();
        CurveRow {
            step: state.step,
            tokens: state.step * self.train.batch_size as u64,
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
            fvu: losses.mse * n_rows as f64 / total_variance,
            l0_coarse: per_token(coarse),
            l0_fine: per_token(fine),
            dead: n_dead as f64 / self.config.d_sae() as f64,
            grad_norm: f64::from(grad_norm),
            l1_coefficient: state.l1_coefficient,
            gate: f64::from(outcome.gate),
            n_edges: state.tree.as_ref().map_or(0, |tree| tree.edges.iter().flatten().count() as u64),
        }
    }
}

/// What a pass found, beside the gradients.
struct Outcome {
    losses: Losses,
    tree: TreeLosses,
    firing: Firing,
    sum_of_squares: f64,
    gate: f32,
}

impl Outcome {
    fn new(found: Found, tree: TreeLosses, firing: Firing, gate: f32) -> Self {
        let mut losses = found.losses;
        losses.total += tree.mi + tree.coverage + tree.geometry;
        Self { losses, tree, firing, sum_of_squares: found.sum_of_squares, gate }
    }
}

/// How often latents were active.
struct Firing {
    /// Tokens, [d_sae].
    n: Vec<u64>,
    sum_acts: f64,
    n_coarse: usize,
}

impl Firing {
    fn of<A: Activation>(activation: &A, pre_acts: &SparseRows, columns: &Columns, n_coarse: usize) -> Self {
        let acts = || pre_acts.idx.iter().zip(&pre_acts.vals).map(|(&j, &pre)| (j, activation.act(j as usize, pre)));
        let mut n = vec![0; columns.n_cols()];
        if A::ALL_ACTIVE {
            n.iter_mut().enumerate().for_each(|(j, n)| *n = columns.range(j).len() as u64);
        } else {
            acts().filter(|&(_, act)| act > 0.0).for_each(|(j, _)| n[j as usize] += 1);
        }
        Self { n, sum_acts: acts().map(|(_, act)| f64::from(act)).sum(), n_coarse }
    }
}

/// x − b_dec for every token, in place. Shapes: x [B, d_model], b_dec [d_model].
fn subtract(x: &mut [f32], b_dec: &[f32]) {
    let rows = x.par_chunks_mut(ROWS_AT_ONCE * b_dec.len());
    rows.for_each(|rows| subtract_from_rows(rows, b_dec));
}

vectorised! {
    fn subtract_from_rows(rows: &mut [f32], b_dec: &[f32]) {
        rows.chunks_exact_mut(b_dec.len()).for_each(|row| axpy(row, -1.0, b_dec));
    }
}

/// x + b_dec.
fn add(x: &mut [f32], b_dec: &[f32]) {
    x.chunks_exact_mut(b_dec.len()).for_each(|row| axpy(row, 1.0, b_dec));
}

/// Σ ‖x − mean(x)‖² over the batch, in blocks folded in order.
fn total_variance(x: &[f32], d_model: usize) -> f64 {
    let parts: Vec<(Vec<f32>, f64)> =
        x.par_chunks(ROWS_AT_ONCE * d_model).map(|rows| first_moments(rows, d_model)).collect();
    let n_rows = (x.len() / d_model) as f64;
    let (mut sum, mut sum_of_squares) = (vec![0f64; d_model], 0f64);
    for (part, part_of_squares) in parts {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
        sum_of_squares += part_of_squares;
    }
    sum_of_squares - sum.iter().map(|sum| sum * sum).sum::<f64>() / n_rows
}

vectorised! {
    /// Σ x and Σ ‖x‖².
    fn first_moments(rows: &[f32], d_model: usize) -> (Vec<f32>, f64) {
        let (mut sum, mut sum_of_squares) = (vec![0f32; d_model], 0f64);
        for row in rows.chunks_exact(d_model) {
            axpy(&mut sum, 1.0, row);
            sum_of_squares += f64::from(dot(row, row));
        }
        (sum, sum_of_squares)
    }
}

#[cfg(test)]
#[path = "trainer/tests.rs"]
mod tests;
