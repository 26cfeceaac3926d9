//! The pass of a Tree SAE: level by level, then its parents take the step into account.

use std::time::Instant;

use super::Trainer;
use super::outcome::{Firing, Outcome};
use crate::activation::Kept;
use crate::archs::{CoarseAux, HardGate, Keep, Levels, Parts, Signs};
use crate::objective::Objective;
use crate::rows::element_variance;
use crate::schedule::Phase;
use crate::sparse::SparseRows;
use crate::tree_terms::TreeLosses;

impl Trainer {
    /// Gradients go to `self.grads`. Shapes: x [B, d_model] the encoder's input, target [B, d_model] without b_dec.
    pub(super) fn tree_sae(&mut self, x: &[f32], target: &[f32], phase: &Phase) -> Outcome {
        let Some(config) = self.config.tree_sae() else { unreachable!("the pass of a Tree SAE") };
        let Some(mut family) = self.state.family.take() else { unreachable!("a Tree SAE has parents") };
        let (d_model, n_coarse) = (self.state.weights.d_model, self.config.n_coarse);
        let active_above = config.active_above as f32;

        let start = Instant::now();
        let mut guesses = self.state.guess();
        let parents = family.parents();
        let (input, gate) = (self.encoder(x), HardGate { parent: &parents, n_coarse, active_above });
        let levels = Levels { input, gate, parts: &Parts::new(&input, gate) };
        let coarse = self.config.k_coarse().unwrap_or(self.config.k);
        let pre_acts = levels.active(Keep::Largest { coarse, fine: self.config.k - coarse }, &mut guesses);
        self.state.set_guess(guesses);
        self.timing.select_s += start.elapsed().as_secs_f64();

        let start = Instant::now();
        let n_rows = target.len() / d_model;
        let fired = fired(&pre_acts, active_above);
        for (since, &fired) in self.state.tokens_since_fired.iter_mut().zip(&fired) {
            *since = if fired { 0 } else { *since } + n_rows as u64;
        }
        let dead_after = self.config.aux_k.dead_after;
        let signs = Signs { fired: &fired, tokens_since_fired: &self.state.tokens_since_fired, dead_after };
        let dead: Vec<u32> = (0..n_coarse).filter(|&j| signs.is_dead(j)).map(|j| j as u32).collect();
        let aux = CoarseAux {
            dead: &dead,
            k: self.config.aux_k.k.unwrap_or(d_model / 2).max(1),
            weight: self.config.aux_weight(),
            n_coarse,
        };
        let mut prefixes = self.prefixes(phase);
        let variance = element_variance(target, &self.state.weights.b_dec) + 1e-8;
        let per_element = (1.0 / (d_model as f64 * variance)) as f32;
        prefixes.weights.iter_mut().for_each(|weight| *weight *= per_element);
        let objective = Objective {
            activation: &Kept,
            weights: &self.state.weights,
            x,
            target,
            prefixes: &prefixes,
            aux: None,
            is_constrained: true,
            centers_input: self.config.apply_b_dec_to_input,
        };
        let columns = pre_acts.columns();
        let firing = Firing::of(&Kept, &pre_acts, &columns);
        let found = objective.tree_sae(&pre_acts, &columns, &aux, &mut self.room, &mut self.grads);
        self.timing.gradients_s += start.elapsed().as_secs_f64();

        let start = Instant::now();
        family.follow(&config, found.losses.total, &signs, self.state.step + 1, self.n_steps);
        self.state.family = Some(family);
        self.timing.tree_s += start.elapsed().as_secs_f64();
        self.outcome(found, 0.0, TreeLosses::default(), firing, 0.0, phase, &prefixes)
    }
}

/// Which latents are active on any token, [d_sae].
fn fired(pre_acts: &SparseRows, active_above: f32) -> Vec<bool> {
    let mut fired = vec![false; pre_acts.n_cols];
    let active = pre_acts.idx.iter().zip(&pre_acts.vals).filter(|&(_, &act)| act > active_above);
    active.for_each(|(&j, _)| fired[j as usize] = true);
    fired
}
