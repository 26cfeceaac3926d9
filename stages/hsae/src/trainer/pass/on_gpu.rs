//! A step on a GPU: what the device does, between the same schedule and the same bookkeeping as on the CPU.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use artifact::tables::CurveRow;

use super::super::Trainer;
use super::super::outcome::{Firing, Outcome};
use crate::gpu::{Engine, Plan};
use crate::objective::Losses;
use crate::schedule;
use crate::select::Selection;
use crate::tree::TreeLearner;
use crate::tree_terms::TreeLosses;

impl Trainer {
    /// Shapes: x [B, d_model].
    pub(in super::super) fn step_on_gpu(&mut self, engine: &mut Engine, x: Vec<f32>) -> Result<CurveRow> {
        let phase = schedule::phase(&self.train, &self.config, self.state.step, self.n_steps);
        let n_rows = x.len() / self.state.weights.d_model;
        let prefixes = self.prefixes(&phase);
        let parents = self.state.tree.as_ref().map(TreeLearner::parents);
        let gate = self.gate(&phase, parents.as_deref());
        let gate_strength = gate.map_or(0.0, |gate| gate.strength);
        let aux = &self.config.aux_k;
        let may_have_dead = self.config.aux_weight() != 0.0 && self.someone_may_be_dead(n_rows);
        let plan = Plan {
            phase: &phase,
            prefixes: &prefixes,
            gate,
            n_in_use: self.n_in_use(&phase),
            wants_residual: may_have_dead,
        };
        let start = Instant::now();
        let mut pass = engine.pass(x, &plan)?;
        if may_have_dead {
            let dead = if aux.normalise {
                let firing = Firing { n: engine.firings()?, sum_acts: 0.0 };
                self.dead_with(&phase, &firing, n_rows)
            } else {
                self.dead_before()
            };
            if let Some(aux) = self.aux_k(&phase, &dead) {
                engine.aux_k(&mut pass, aux)?;
            }
        }
        engine.update(&mut pass, &mut self.state.adam, &phase);
        let mut in_tree = Duration::ZERO;
        if self.state.tree.is_some() && phase.fine_is_on && phase.tree_is_open {
            let pre_acts = engine.firing_lists(&pass)?;
            let counting = Instant::now();
            let columns = pre_acts.columns();
            let selection = Selection { pre_acts, ungated: None, threshold: 0.0, guess: [0.0; 2] };
            self.observe(&phase, &selection, &columns);
            in_tree = counting.elapsed();
        }
        let found = engine.found(&pass)?;
        // What the device does is not told apart.
        self.timing.tree_s += in_tree.as_secs_f64();
        self.timing.gradients_s += (start.elapsed() - in_tree).as_secs_f64();

        let weighted = |p: usize| f64::from(prefixes.weights[p]) * found.errors[p];
        let last = prefixes.len() - 1;
        let mut losses = Losses { mse: weighted(last), aux: found.aux, ..Losses::default() };
        losses.prefixes = (0..last).map(weighted).sum();
        losses.total = losses.mse + losses.prefixes + losses.aux;
        let outcome = Outcome {
            squared_error: found.errors[last],
            losses,
            tree: TreeLosses::default(),
            firing: Firing { n: found.firings, sum_acts: found.sum_acts },
            ungated: None,
            sum_of_squares: f64::from(found.grad_norm).powi(2),
            along: Vec::new(),
            gate: gate_strength,
            coefficient: 0.0,
            watched: 0.0,
        };
        self.count_dead(&phase, &outcome.firing, n_rows);
        let row = self.curve_row(&phase, &outcome, found.grad_norm, n_rows, found.total_variance);
        ensure!(
            row.loss.is_finite() && row.grad_norm.is_finite(),
            "{}: the loss is no longer finite at step {}; lower train.lr",
            self.config.name,
            row.step
        );
        self.follow(&outcome, n_rows);
        self.state.step += 1;
        Ok(row)
    }

    /// Whether a latent can be called dead in this step: if not, the device need not be waited for.
    fn someone_may_be_dead(&self, n_rows: usize) -> bool {
        let most = self.state.tokens_since_fired.iter().max().copied().unwrap_or(0);
        most + n_rows as u64 >= self.config.aux_k.dead_after
    }
}
