//! One SAE in training: its state, and what a step does to it. The state is all that a checkpoint has to hold.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use artifact::config::{Sae, Select, Train};
use artifact::tables::CurveRow;
use burn::tensor::Device;
use serde::Serialize;

use crate::adam::Adam;
use crate::candidates::Dead;
use crate::objective::{Aux, Losses, Objective};
use crate::ops::Entries;
use crate::schedule::{self, Phase};
use crate::select::{EncoderInput, Gate, Selection, select_batch};
use crate::tree::TreeLearner;
use crate::tree_terms::{EdgeStats, TreeTerms};
use crate::weights::Weights;

/// How fast the L1 coefficient follows the L0 that it is steered to, per step.
const L1_GAIN: f64 = 0.02;
/// Steering ends here, so that the last part of training has a constant loss.
const L1_STEERED_UNTIL: f64 = 0.8;
/// Decay of the moving averages of L0 and of the mean activation.
const AVERAGE_DECAY: f64 = 0.98;
/// Width of the tree terms' soft firing, in mean activations.
const TAU: f32 = 0.07;

pub struct Trainer {
    pub config: Sae,
    pub train: Train,
    pub seed: u64,
    pub n_steps: u64,
    device: Device,
    pub state: TrainerState,
    timing: Timing,
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
    /// Moving averages; None before the first step.
    pub mean_l0: Option<f64>,
    pub mean_activation: Option<f64>,
    /// Where the selection of the next batch starts to look.
    pub guess: f32,
}

impl Trainer {
    /// `mean` is the mean of the normalised activations, [d_model].
    pub fn new(config: &Sae, train: &Train, seed: u64, mean: &[f32]) -> Self {
        let (d_model, d_sae) = (mean.len(), config.d_sae());
        let weights = Weights::init(seed, d_model, d_sae, mean);
        let adam = Adam::new(d_model, d_sae, train.adam_beta1, train.adam_beta2, train.max_grad_norm);
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
            device: Device::flex().autodiff(),
            timing: Timing::default(),
            state: TrainerState {
                step: 0,
                weights,
                adam,
                tree,
                tokens_since_fired: vec![0; d_sae],
                l1_coefficient,
                mean_l0: None,
                mean_activation: None,
                guess: 0.0,
            },
        }
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
    pub fn step(&mut self, x: Vec<f32>) -> Result<CurveRow> {
        let phase = schedule::phase(&self.train, &self.config, self.state.step, self.n_steps);
        let x_centered = Arc::new(self.state.weights.centered(&x));
        let parents = self.state.tree.as_ref().map(TreeLearner::parents);
        let gate = self.gate(&phase, parents.as_deref());
        let dead = self.dead_latents(&phase);
        let start = Instant::now();
        let selection = self.select(&x_centered, &phase, gate, &dead);
        self.timing.select_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.observe(&phase, &selection);
        self.timing.tree_s += start.elapsed().as_secs_f64();

        let start = Instant::now();
        let fvu_denominator = total_variance(&x, self.state.weights.d_model);
        let acts = Entries::new(selection.acts);
        let objective = Objective {
            weights: &self.state.weights,
            x: Arc::new(x),
            x_centered,
            acts: acts.clone(),
            prefixes: self.prefixes(&phase),
            beta: self.config.prefixes().map_or(0.0, |prefixes| prefixes.beta as f32),
            l1_coefficient: self.state.l1_coefficient as f32,
            aux: self.aux(selection.dead, dead.len()),
            tree: self.tree_terms(&phase, selection.threshold),
        };
        let (losses, grads) = objective.gradients(&self.device);
        drop(objective);
        self.timing.gradients_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let lr_rows = self.lr_rows(&phase);
        let grad_norm = self.state.adam.update(&mut self.state.weights, grads, &lr_rows, phase.lr as f32);
        self.timing.adam_s += start.elapsed().as_secs_f64();

        self.follow(&phase, &acts, selection.lowest);
        self.state.step += 1;
        let row = self.curve_row(&phase, &losses, &acts, gate.map_or(0.0, |g| g.strength), grad_norm, fvu_denominator);
        anyhow::ensure!(
            row.loss.is_finite() && row.grad_norm.is_finite(),
            "{}: the loss is no longer finite at step {}; lower train.lr",
            self.config.name,
            row.step
        );
        Ok(row)
    }

    fn select(&self, x_centered: &[f32], phase: &Phase, gate: Option<Gate>, dead: &[u32]) -> Selection {
        let weights = &self.state.weights;
        let input = EncoderInput { x_centered, w_enc: &weights.w_enc, b_enc: &weights.b_enc, d_model: weights.d_model };
        let k_aux = self.config.aux_k.k.unwrap_or(weights.d_model / 2);
        let dead = (!dead.is_empty()).then_some(Dead { latents: dead, k_aux });
        select_batch(input, &phase.budget, phase.scope, gate, dead, self.state.guess)
    }

    fn gate<'a>(&self, phase: &Phase, parents: Option<&'a [Option<u32>]>) -> Option<Gate<'a>> {
        let tree = self.config.tree()?;
        let strength = phase.gate * tree.gate * self.state.mean_activation?;
        Some(Gate { parent: parents?, strength: strength as f32 })
    }

    /// Learns the tree from this step's firing, once fine latents take part.
    fn observe(&mut self, phase: &Phase, selection: &Selection) {
        let step = self.state.step;
        if let Some(tree) = &mut self.state.tree
            && phase.fine_is_on
            && phase.tree_is_open
        {
            tree.observe(&selection.ungated, &selection.ungated.columns());
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

    fn aux(&self, entries: Option<crate::SparseRows>, n_dead: usize) -> Option<Aux> {
        let entries = entries.filter(|entries| entries.nnz() > 0)?;
        // Few dead latents cannot be asked to explain the whole residual.
        let half = (self.state.weights.d_model / 2).max(1) as f64;
        let weight = self.config.aux_k.weight * (n_dead as f64 / half).min(1.0);
        Some(Aux { entries, weight: weight as f32 })
    }

    fn prefixes(&self, phase: &Phase) -> Vec<usize> {
        schedule::prefixes(self.config.prefixes().as_ref(), self.seed, self.state.step, self.n_in_use(phase))
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
    fn follow(&mut self, phase: &Phase, acts: &Entries, lowest: f32) {
        let n_in_use = self.n_in_use(phase);
        let (rows, state) = (&acts.rows, &mut self.state);
        let n_rows = rows.n_rows() as u64;
        for (j, since) in state.tokens_since_fired.iter_mut().enumerate() {
            // A latent that may not fire yet is not dying.
            *since = if j < n_in_use && acts.columns.range(j).is_empty() { *since + n_rows } else { 0 };
        }
        // A little below, since thresholds drift; a guess that is too high costs a second pass.
        state.guess = if lowest.is_finite() { 0.9 * lowest } else { 0.0 };
        let follow =
            |mean: Option<f64>, now: f64| Some(mean.map_or(now, |m| AVERAGE_DECAY * m + (1.0 - AVERAGE_DECAY) * now));
        if rows.nnz() > 0 {
            let sum: f64 = rows.vals.iter().map(|&value| f64::from(value)).sum();
            state.mean_activation = follow(state.mean_activation, sum / rows.nnz() as f64);
        }
        let l0 = rows.nnz() as f64 / n_rows as f64;
        state.mean_l0 = follow(state.mean_l0, l0);
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
        losses: &Losses,
        acts: &Entries,
        gate: f32,
        grad_norm: f32,
        fvu_denominator: f64,
    ) -> CurveRow {
        let (state, rows) = (&self.state, &acts.rows);
        let n_coarse = rows.idx.iter().filter(|&&j| (j as usize) < self.config.n_coarse).count();
        let per_token = |n: usize| n as f64 / rows.n_rows() as f64;
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
            mi: losses.mi,
            coverage: losses.coverage,
            geometry: losses.geometry,
            fvu: losses.mse * rows.n_rows() as f64 / fvu_denominator,
            l0_coarse: per_token(n_coarse),
            l0_fine: per_token(rows.nnz() - n_coarse),
            dead: n_dead as f64 / self.config.d_sae() as f64,
            grad_norm: f64::from(grad_norm),
            l1_coefficient: state.l1_coefficient,
            gate: f64::from(gate),
            n_edges: state.tree.as_ref().map_or(0, |tree| tree.edges.iter().flatten().count() as u64),
        }
    }
}

/// Σ ‖x − mean(x)‖² over the batch.
fn total_variance(x: &[f32], d_model: usize) -> f64 {
    let n_rows = (x.len() / d_model) as f64;
    let (mut sum, mut sum_sq) = (vec![0f64; d_model], 0f64);
    for row in x.chunks_exact(d_model) {
        for (sum, &value) in sum.iter_mut().zip(row) {
            *sum += f64::from(value);
            sum_sq += f64::from(value) * f64::from(value);
        }
    }
    sum_sq - sum.iter().map(|sum| sum * sum).sum::<f64>() / n_rows
}

#[cfg(test)]
#[path = "trainer/tests.rs"]
mod tests;
