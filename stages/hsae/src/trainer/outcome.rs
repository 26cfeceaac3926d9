//! What a pass found, beside the gradients.

use crate::activation::Activation;
use crate::objective::Losses;
use crate::sparse::{Columns, SparseRows};
use crate::tree_terms::TreeLosses;

pub(super) struct Outcome {
    pub(super) losses: Losses,
    pub(super) tree: TreeLosses,
    pub(super) firing: Firing,
    /// Tokens on which each latent would have been active without the tree's gate, [d_sae]. None where it did nothing, or
    /// nobody asks.
    pub(super) ungated: Option<Vec<u64>>,
    /// See `Found`.
    pub(super) sum_of_squares: f64,
    pub(super) along: Vec<f32>,
    /// Mean over tokens of ‖x − x̂‖², whatever its weight in the loss.
    pub(super) squared_error: f64,
    /// The gate's strength.
    pub(super) gate: f32,
    /// The penalty's coefficient in this step's loss.
    pub(super) coefficient: f64,
    /// See `Penalty`, as a sum over tokens.
    pub(super) watched: f64,
}

/// How often latents were active.
pub(super) struct Firing {
    /// Tokens, [d_sae].
    pub(super) n: Vec<u64>,
    pub(super) sum_acts: f64,
}

impl Firing {
    pub(super) fn of<A: Activation>(activation: &A, pre_acts: &SparseRows, columns: &Columns) -> Self {
        let acts = || pre_acts.idx.iter().zip(&pre_acts.vals).map(|(&j, &pre)| (j, activation.act(j as usize, pre)));
        let mut n = vec![0; columns.n_cols()];
        if A::ALL_ACTIVE {
            n.iter_mut().enumerate().for_each(|(j, n)| *n = columns.range(j).len() as u64);
        } else {
            acts().filter(|&(_, act)| act > 0.0).for_each(|(j, _)| n[j as usize] += 1);
        }
        Self { n, sum_acts: acts().map(|(_, act)| f64::from(act)).sum() }
    }
}
