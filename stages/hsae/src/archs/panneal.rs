//! P-anneal: the ReLU SAE whose penalty moves from Σ z to Σ z^p with p falling, which is ever closer to counting.
//!
//! L = mean ‖x − x̂‖² + α · mean Σ_j z_j^p
//!
//! Where p falls, α is rescaled so that the penalty keeps its size.
//! Source: Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with Board
//! Game Models", §4.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::activation::{Activation, Flow, Own, Penalty};

/// Steps whose penalties decide how α is rescaled.
const QUEUE_LENGTH: usize = 10;

pub(crate) struct PAnneal {
    /// α over the number of tokens.
    pub(crate) coefficient: f32,
    pub(crate) p: f32,
    /// The exponent to come.
    pub(crate) next_p: Option<f32>,
}

impl Activation for PAnneal {
    const IS_WATCHED: bool = true;

    #[inline(always)]
    fn act(&self, _j: usize, pre: f32) -> f32 {
        pre.max(0.0)
    }

    #[inline(always)]
    fn backward(&self, _j: usize, pre: f32, flow: Flow, _own: &mut Own) -> f32 {
        if pre > 0.0 { flow.act + self.coefficient * self.p * pre.powf(self.p - 1.0) } else { 0.0 }
    }

    #[inline(always)]
    fn penalty(&self, _j: usize, pre: f32) -> Penalty {
        if pre <= 0.0 {
            return Penalty::default();
        }
        let watched = self.next_p.map_or(0.0, |p| f64::from(pre.powf(p)));
        Penalty { value: f64::from(self.coefficient) * f64::from(pre.powf(self.p)), watched }
    }
}

/// Where the annealing stands: part of the state of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Annealing {
    pub(crate) p: f64,
    pub(crate) next_p: Option<f64>,
    /// Changes of p so far.
    pub(crate) n_changes: usize,
    /// Σ z^p at this exponent and at the next, means over tokens, of the last steps.
    pub(crate) queue: VecDeque<(f64, f64)>,
}

impl Annealing {
    pub(crate) fn new() -> Self {
        Self { p: 1.0, next_p: None, n_changes: 0, queue: VecDeque::new() }
    }

    /// Counts a step; `now` and `next` are Σ z^p at both exponents. There are so many `values` of the exponent, evenly
    /// spaced from 1 to `p_end`, taken at evenly spaced steps, one a step at most. Returns the factor on α.
    pub(crate) fn follow(
        &mut self,
        step: u64,
        (from, until): (u64, u64),
        values: usize,
        p_end: f64,
        (now, next): (f64, f64),
    ) -> f64 {
        if self.next_p.is_some() {
            self.queue.push_back((now, next));
            if self.queue.len() > QUEUE_LENGTH {
                self.queue.pop_front();
            }
        }
        let spaced = |i: usize, a: f64, b: f64| a + (b - a) * i as f64 / (values.max(2) - 1) as f64;
        if self.n_changes >= values || step < spaced(self.n_changes, from as f64, until as f64) as u64 {
            return 1.0;
        }
        let sum = |part: fn(&(f64, f64)) -> f64| self.queue.iter().map(part).sum::<f64>();
        let factor = match self.next_p {
            Some(_) if sum(|q| q.1) > 0.0 => sum(|q| q.0) / sum(|q| q.1),
            _ => 1.0,
        };
        self.p = spaced(self.n_changes, 1.0, p_end);
        self.n_changes += 1;
        self.next_p = Some(if self.n_changes < values { spaced(self.n_changes, 1.0, p_end) } else { p_end });
        factor
    }
}
