//! Loss and gradients of a batch: which latents are active, the tree, the terms that count now.

#[cfg(feature = "gpu")]
mod on_gpu;

use std::time::Instant;

use super::outcome::{Firing, Outcome};
use super::{Arch, Select, Trainer};
use crate::activation::Activation;
use crate::archs::{Dictionary, PreActLoss};
use crate::gradients::Extra;
use crate::kernels::{EncoderInput, Prefixes, finish_rows};
use crate::objective::{AuxK, Found, Losses, Objective};
use crate::schedule::{self, Phase};
use crate::select::{Budget, Gate, Selection, select_above, select_batch};
use crate::sparse::Columns;
use crate::tree::TreeLearner;
use crate::tree_terms::{EdgeStats, TreeLosses, TreeTerms};

/// Above this share of active latents dense products are cheaper than going over entries. A ReLU SAE starts half dense.
const DENSE_ABOVE: f64 = 0.03;
/// Width of the tree terms' soft firing, in mean activations.
const TAU: f32 = 0.07;

impl Trainer {
    /// Gradients go to `self.grads`. Shapes: x [B, d_model] the encoder's input, target [B, d_model] without b_dec.
    pub(super) fn pass<A: Activation>(&mut self, activation: &A, x: &[f32], target: &[f32], phase: &Phase) -> Outcome {
        let prefixes = self.prefixes(phase);
        let parents = self.state.tree.as_ref().map(TreeLearner::parents);
        let gate = self.gate(phase, parents.as_deref());
        let gate_strength = gate.map_or(0.0, |gate| gate.strength);
        let n_rows = x.len() / self.state.weights.d_model;
        // A tree is learned from entries; and fine latents are left out entry by entry.
        let may_be_dense = phase.budget == Budget::All && self.state.tree.is_none() && phase.fine_is_on;
        let is_dense = may_be_dense && self.state.density > DENSE_ABOVE;

        let start = Instant::now();
        let selection = (!is_dense).then(|| self.select(x, phase, gate));
        self.timing.select_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let columns = selection.as_ref().map(|selection| selection.pre_acts.columns());
        if let (Some(selection), Some(columns)) = (&selection, &columns) {
            self.observe(phase, selection, columns);
        }
        self.timing.tree_s += start.elapsed().as_secs_f64();

        let start = Instant::now();
        let dead = self.dead_before();
        let (pre_act, mut terms) = self.pre_act_loss(x, n_rows, &dead);
        let mut tree_losses = TreeLosses::default();
        let firing = match (&selection, &columns) {
            (Some(selection), Some(columns)) => {
                if let Some((losses, extra)) = self.tree_extra(activation, phase, x, selection) {
                    tree_losses = losses;
                    terms.push(extra);
                }
                Some(Firing::of(activation, &selection.pre_acts, columns))
            }
            _ => None,
        };
        let dead = match &firing {
            Some(firing) if self.config.aux_k.normalise => self.dead_with(phase, firing, n_rows),
            _ => dead,
        };
        let aux = self.aux_k(phase, &dead);
        let objective = Objective {
            activation,
            weights: &self.state.weights,
            x,
            target,
            prefixes: &prefixes,
            aux,
            is_constrained: self.config.has_unit_rows(),
            centers_input: self.config.apply_b_dec_to_input,
        };
        let (mut found, firing) = match (&selection, &columns, firing) {
            (Some(selection), Some(columns), Some(firing)) => {
                let room = &mut self.room;
                (objective.sparse(&selection.pre_acts, columns, terms, room, &mut self.grads), firing)
            }
            _ => {
                let (found, counts) = objective.dense(terms, &mut self.grads);
                (found, Firing { n: counts.firings, sum_acts: counts.sum_acts })
            }
        };
        self.timing.gradients_s += start.elapsed().as_secs_f64();
        if let Some(selection) = &selection {
            self.state.set_guess(selection.guess);
        }
        self.count_dead(phase, &firing, n_rows);
        found.losses.l1 += pre_act;
        let mut outcome = self.outcome(found, pre_act, tree_losses, firing, gate_strength, phase, &prefixes);
        if schedule::counts_for_order(&self.config, self.state.step, self.n_steps) {
            outcome.ungated = selection.and_then(|selection| selection.ungated).map(|ungated| ungated.firings());
        }
        outcome
    }

    /// The pass of a matching pursuit, which has no encoder. Shapes: x_centered [B, d_model].
    pub(super) fn pursue(&mut self, x_centered: &[f32], phase: &Phase) -> Outcome {
        let start = Instant::now();
        let weights = &self.state.weights;
        let dictionary = Dictionary { w_dec: &weights.w_dec, d_model: weights.d_model, packed: &self.packed };
        let pursuit = dictionary.pursue(x_centered, self.config.k, &mut self.state.guesses);
        self.timing.select_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let acts = pursuit.acts(weights.d_sae);
        let mse = pursuit.backward(dictionary, &mut self.grads);
        let totals = finish_rows(&mut self.grads, &[], &weights.w_dec, weights.d_model, self.config.has_unit_rows());
        let of_b_dec: f64 = self.grads.b_dec.iter().map(|&g| f64::from(g).powi(2)).sum();
        self.timing.gradients_s += start.elapsed().as_secs_f64();
        let firing = Firing { n: acts.firings(), sum_acts: acts.vals.iter().map(|&act| f64::from(act)).sum() };
        self.count_dead(phase, &firing, acts.n_rows());
        Outcome {
            losses: Losses { total: mse, mse, ..Losses::default() },
            tree: TreeLosses::default(),
            firing,
            ungated: None,
            sum_of_squares: totals.sum_of_squares + of_b_dec,
            along: totals.along,
            squared_error: mse,
            gate: 0.0,
            coefficient: 0.0,
            watched: 0.0,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "puts together what the pass found")]
    pub(super) fn outcome(
        &self,
        found: Found,
        pre_act: f64,
        tree: TreeLosses,
        firing: Firing,
        gate: f32,
        phase: &Phase,
        prefixes: &Prefixes,
    ) -> Outcome {
        let mut losses = found.losses;
        losses.total += pre_act + tree.mi + tree.coverage + tree.geometry;
        let weight_of_full = prefixes.weights.last().copied().map_or(1.0, f64::from);
        Outcome {
            squared_error: losses.mse / weight_of_full,
            losses,
            tree,
            firing,
            ungated: None,
            sum_of_squares: found.sum_of_squares,
            along: found.along,
            gate,
            coefficient: self.state.l1_coefficient * phase.sparsity,
            watched: found.watched,
        }
    }

    pub(super) fn encoder<'a>(&'a self, x: &'a [f32]) -> EncoderInput<'a> {
        let weights = &self.state.weights;
        EncoderInput {
            x_centered: x,
            w_enc: &weights.w_enc,
            b_enc: &weights.b_enc,
            d_model: weights.d_model,
            packed: &self.packed,
        }
    }

    fn select(&self, x: &[f32], phase: &Phase, gate: Option<Gate>) -> Selection {
        let mut selection = self.select_all(x, phase, gate);
        if phase.budget == Budget::All && !phase.fine_is_on {
            let pre_acts = &selection.pre_acts;
            let keep: Vec<bool> = pre_acts.idx.iter().map(|&j| (j as usize) < self.config.n_coarse).collect();
            selection.pre_acts = selection.pre_acts.filtered_by(&keep);
            selection.ungated = None;
        }
        selection
    }

    fn select_all(&self, x: &[f32], phase: &Phase, gate: Option<Gate>) -> Selection {
        let input = self.encoder(x);
        if self.config.select() != Select::Jumprelu {
            return select_batch(input, &phase.budget, phase.scope, gate, self.state.guess());
        }
        // The window below a threshold is listed too, for its gradient.
        let half = self.config.jumprelu.bandwidth as f32 / 2.0;
        let threshold = &self.state.weights.own[0];
        let lower: Vec<f32> = threshold.iter().map(|threshold| threshold - half).collect();
        select_above(input, &lower, threshold, gate)
    }

    fn gate<'a>(&self, phase: &Phase, parents: Option<&'a [Option<u32>]>) -> Option<Gate<'a>> {
        let tree = self.config.tree()?;
        let strength = phase.gate * tree.gate * self.state.mean_activation?;
        Some(Gate { parent: parents?, strength: strength as f32 }).filter(|gate| gate.strength > 0.0)
    }

    /// Learns the tree from this step's firing, once fine latents take part.
    fn observe(&mut self, phase: &Phase, selection: &Selection, columns: &Columns) {
        let (seed, step) = (self.seed, self.state.step);
        if let Some(tree) = &mut self.state.tree
            && phase.fine_is_on
            && phase.tree_is_open
        {
            match &selection.ungated {
                Some(ungated) => tree.observe(ungated, &ungated.columns()),
                None => tree.observe(&selection.pre_acts, columns),
            }
            if step.is_multiple_of(tree.config.update_every) {
                tree.choose_by_rule(seed, step);
            }
        }
    }

    /// Latents that have not fired for long, before this batch is counted.
    fn dead_before(&self) -> Vec<u32> {
        let since = self.state.tokens_since_fired.iter().enumerate();
        since.filter(|&(_, &tokens)| tokens > self.config.aux_k.dead_after).map(|(j, _)| j as u32).collect()
    }

    /// The same with this batch counted first, at or beyond the limit.
    fn dead_with(&self, phase: &Phase, firing: &Firing, n_rows: usize) -> Vec<u32> {
        let n_in_use = self.n_in_use(phase);
        let since = self.state.tokens_since_fired.iter().zip(&firing.n).enumerate().take(n_in_use);
        let is_dead = |tokens: u64, n: u64| n == 0 && tokens + n_rows as u64 >= self.config.aux_k.dead_after;
        since.filter(|&(_, (&tokens, &n))| is_dead(tokens, n)).map(|(j, _)| j as u32).collect()
    }

    fn count_dead(&mut self, phase: &Phase, firing: &Firing, n_rows: usize) {
        let n_in_use = self.n_in_use(phase);
        for (j, (since, &n)) in self.state.tokens_since_fired.iter_mut().zip(&firing.n).enumerate() {
            // A latent that may not fire yet is not dying.
            *since = if j < n_in_use && n == 0 { *since + n_rows as u64 } else { 0 };
        }
    }

    /// AuxK, for SAEs with a budget; those with a penalty have none.
    fn aux_k<'a>(&self, phase: &Phase, dead: &'a [u32]) -> Option<AuxK<'a>> {
        let aux = &self.config.aux_k;
        // Fine latents are not dead before their time has come.
        let n_in_use = self.n_in_use(phase) as u32;
        let dead = &dead[..dead.partition_point(|&j| j < n_in_use)];
        let weight = self.config.aux_weight();
        if weight == 0.0 || self.config.has_penalty() || dead.is_empty() {
            return None;
        }
        let k = aux.k.unwrap_or(self.state.weights.d_model / 2).max(1);
        // Few dead latents cannot be asked to explain the whole residual, unless its variance measures their error.
        let share = if aux.normalise { 1.0 } else { (dead.len() as f64 / k as f64).min(1.0) };
        Some(AuxK { dead, k, weight: weight * share, is_normalised: aux.normalise })
    }

    /// JumpReLU's pull on dead latents, where it is switched on.
    fn pre_act_loss(&self, x: &[f32], n_rows: usize, dead: &[u32]) -> (f64, Vec<Extra>) {
        let weight = self.config.jumprelu.pre_act_loss;
        if self.config.select() != Select::Jumprelu || weight == 0.0 || dead.is_empty() {
            return (0.0, Vec::new());
        }
        let weights = &self.state.weights;
        let term = PreActLoss {
            coefficient: (weight / n_rows as f64) as f32,
            dead,
            threshold: &weights.own[0],
            w_dec: &weights.w_dec,
        };
        let (loss, extra) = term.run(&self.encoder(x));
        (loss, vec![extra])
    }

    /// The optional terms of the tree, once its gate is on; None where all weights are 0.
    fn tree_extra<A: Activation>(
        &self,
        activation: &A,
        phase: &Phase,
        x: &[f32],
        selection: &Selection,
    ) -> Option<(TreeLosses, Extra)> {
        let (learner, mean_activation) = (self.state.tree.as_ref()?, self.state.mean_activation?);
        let config = &learner.config;
        let weight = |w: f64| (w * phase.gate) as f32;
        let is_off = config.w_mi + config.w_coverage + config.w_geometry == 0.0;
        if phase.gate == 0.0 || is_off || self.config.arch != Arch::Hiersae {
            return None;
        }
        let edges = learner.edges.iter().enumerate().filter_map(|(j, edge)| {
            let (parent, child) = (edge.as_ref()?.parent, j as u32);
            let (p, q) = (learner.rate(parent), learner.rate(child));
            Some(EdgeStats { parent, child, p, q, p11: learner.joint_rate(child, parent) })
        });
        let terms = TreeTerms {
            edges: edges.collect(),
            threshold: selection.threshold.max(0.0),
            tau: TAU * mean_activation as f32,
            w_mi: weight(config.w_mi),
            w_coverage: weight(config.w_coverage),
            w_geometry: weight(config.w_geometry),
        };
        let pre_acts = &selection.pre_acts;
        if A::ALL_ACTIVE {
            return terms.gradients(&self.state.weights, x, pre_acts);
        }
        let is_active = |(&j, &pre): (&u32, &f32)| activation.act(j as usize, pre) > 0.0;
        let active: Vec<bool> = pre_acts.idx.iter().zip(&pre_acts.vals).map(is_active).collect();
        terms.gradients(&self.state.weights, x, &pre_acts.filtered_by(&active))
    }
}
