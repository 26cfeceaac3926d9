//! Leave-one-out refinement: which latents are active once each is judged by what the others leave of a token.
//!
//! A linear encoder sees all features of a token at once, and what they have in common is noise to each. Given the active
//! latents S and their magnitudes z, the residual r = x − b_dec − Σ_S z_j d_j lacks what they explain, and latent j's score
//! becomes r·d_j + z_j: the coefficient it would have were it put in again alone. Prior and gate act on that score as they
//! do on pre-activations, then the magnitudes of the newly active are solved by least squares, and so on for a few sweeps.
//! Without prior and gate such steps overfit, as matching pursuit does (Chanin & Garriga-Alonso 2026, "SynthSAEBench", §5).
//!
//! Source: block-coordinate descent on the spike-and-slab posterior; compare Gregor & LeCun 2010, "Learning Fast
//! Approximations of Sparse Coding".

use rayon::prelude::*;

use crate::kernels::screen::PackedEncoder;
use crate::kernels::{Bounds, EncoderInput, TokenBounds, collect, decode_rows, dot, dots, vectorised};
use crate::select::{Gate, gated_scores};
use crate::sparse::SparseRows;
use crate::trained::{Rule, apply};

/// Tokens of a parallel piece of work.
const BLOCK_ROWS: usize = 64;
/// Added to the diagonal of the Gram matrix, whose entries are 1 there: latents that are alike share what they explain.
const RIDGE: f64 = 1e-3;

/// The sweeps of one view.
#[derive(Clone, Debug, PartialEq)]
pub struct Refinement {
    /// κ·logit(q_j), what the prior adds to scores, [d_sae].
    pub shift: Vec<f32>,
    /// What a score with its shift has to exceed, a sweep each.
    pub thresholds: Vec<f32>,
}

/// A decoder to refine by, with rows of length 1.
#[derive(Clone, Copy)]
pub(crate) struct Refiner<'a> {
    /// [d_sae, d_model].
    pub(crate) w_dec: &'a [f32],
    pub(crate) d_model: usize,
    /// W_dec as the screen has it.
    pub(crate) packed: &'a PackedEncoder,
    /// [d_sae].
    pub(crate) zeros: &'a [f32],
    pub(crate) gate: Option<Gate<'a>>,
}

impl Refinement {
    /// What the scores of a sweep have to exceed, [d_sae].
    pub(crate) fn lower(&self, threshold: f32) -> Vec<f32> {
        self.shift.iter().map(|shift| (threshold - shift).max(0.0)).collect()
    }
}

impl Refiner<'_> {
    /// All sweeps from a first choice of latents. Shapes: x [n, d_model] without b_dec, active [n, d_sae] sparse, its
    /// values unused → activations [n, d_sae] sparse.
    pub(crate) fn refine(&self, x: &[f32], active: &SparseRows, refinement: &Refinement) -> SparseRows {
        let sweep = |acts: SparseRows, &threshold: &f32| {
            let lower = refinement.lower(threshold);
            let (candidates, scores) = self.scores(x, &acts, &lower);
            self.solve(x, &apply(&Rule::Above(lower), &candidates, &scores))
        };
        refinement.thresholds.iter().fold(self.solve(x, active), sweep)
    }

    /// Leave-one-out scores beyond their bounds, and what the gate leaves of them. Shapes: lower [d_sae].
    pub(crate) fn scores(&self, x: &[f32], acts: &SparseRows, lower: &[f32]) -> (SparseRows, Vec<f32>) {
        let mut residual = decode_rows(acts, self.w_dec, &vec![0.0; self.d_model], acts.n_cols);
        residual.par_iter_mut().zip(x).for_each(|(r, x)| *r = x - *r);
        let input = EncoderInput {
            x_centered: &residual,
            w_enc: self.w_dec,
            b_enc: self.zeros,
            d_model: self.d_model,
            packed: self.packed,
        };
        let found = collect(input, Bounds { tokens: TokenBounds::All(0.0), shift: Some(lower), top: None });
        let blocks: Vec<SparseRows> = (0..x.len() / self.d_model)
            .collect::<Vec<_>>()
            .par_chunks(BLOCK_ROWS)
            .map(|rows| {
                let mut merged = SparseRows::new(acts.n_cols);
                for &t in rows {
                    merged.push_row(merge(&input, t, acts.row(t), found.row(t), lower));
                }
                merged
            })
            .collect();
        let candidates = SparseRows::concatenated(acts.n_cols, blocks.iter());
        let scores = match self.gate {
            Some(gate) => gated_scores(&candidates, acts, gate),
            None => candidates.vals.clone(),
        };
        (candidates, scores)
    }

    /// Magnitudes by least squares, token by token. Those that would be negative are left out and the rest solved again,
    /// until none is.
    pub(crate) fn solve(&self, x: &[f32], active: &SparseRows) -> SparseRows {
        let n_rows = active.n_rows();
        let blocks: Vec<SparseRows> = (0..n_rows.div_ceil(BLOCK_ROWS))
            .into_par_iter()
            .map(|block| solve_block(self, x, active, block * BLOCK_ROWS))
            .collect();
        SparseRows::concatenated(active.n_cols, blocks.iter())
    }
}

/// A token's scores: of what is active, its part of the residual and its own magnitude; of the others, what was found.
fn merge(
    input: &EncoderInput,
    t: usize,
    (active, acts): (&[u32], &[f32]),
    (found, scores): (&[u32], &[f32]),
    lower: &[f32],
) -> Vec<(u32, f32)> {
    let of_active = |(&j, &act): (&u32, &f32)| (j, input.pre_act(t, j as usize) + act);
    let mut all: Vec<(u32, f32)> = active.iter().zip(acts).map(of_active).collect();
    all.retain(|&(j, score)| score > lower[j as usize]);
    let is_new = |(j, _): &(u32, f32)| active.binary_search(j).is_err();
    all.extend(found.iter().copied().zip(scores.iter().copied()).filter(is_new));
    all.sort_unstable_by_key(|&(j, _)| j);
    all
}

/// Appends the scalar products of some rows with y, four at a time: y and each row are then read less often.
#[inline(always)]
fn products_with<'a>(idx: &[u32], row: impl Fn(u32) -> &'a [f32], y: &[f32], out: &mut Vec<f64>) {
    let (fours, rest) = idx.as_chunks::<4>();
    for four in fours {
        out.extend(dots(four.map(&row), y, &[]).map(f64::from));
    }
    out.extend(rest.iter().map(|&j| f64::from(dot(row(j), y))));
}

vectorised! {
    fn solve_block(refiner: &Refiner, x: &[f32], active: &SparseRows, first: usize) -> SparseRows {
        let d_model = refiner.d_model;
        let mut acts = SparseRows::new(active.n_cols);
        for t in first..(first + BLOCK_ROWS).min(active.n_rows()) {
            let mut idx = active.row(t).0.to_vec();
            let row = |j: u32| &refiner.w_dec[j as usize * d_model..(j as usize + 1) * d_model];
            let x = &x[t * d_model..(t + 1) * d_model];
            let mut right = Vec::with_capacity(idx.len());
            products_with(&idx, row, x, &mut right);
            // The lower half of the Gram matrix, row after row.
            let mut gram = Vec::with_capacity(idx.len() * (idx.len() + 1) / 2);
            for (a, &j) in idx.iter().enumerate() {
                products_with(&idx[..=a], row, row(j), &mut gram);
                if let Some(square) = gram.last_mut() {
                    *square += RIDGE;
                }
            }
            let mut solution = solve(&gram, right.clone());
            while solution.iter().any(|&act| act <= 0.0) {
                let keep: Vec<usize> = (0..idx.len()).filter(|&a| solution[a] > 0.0).collect();
                gram = keep.iter().enumerate().flat_map(|(n, &a)| {
                    let gram = &gram;
                    keep[..=n].iter().map(move |&b| gram[a * (a + 1) / 2 + b])
                }).collect();
                right = keep.iter().map(|&a| right[a]).collect();
                idx = keep.iter().map(|&a| idx[a]).collect();
                solution = solve(&gram, right.clone());
            }
            acts.push_row(idx.into_iter().zip(solution.into_iter().map(|act| act as f32)));
        }
        acts
    }
}

/// The solution of gram · z = right, by Cholesky's decomposition. Shapes: gram the lower half of [n, n], positive definite,
/// row after row; right [n] → [n].
#[inline(always)]
fn solve(gram: &[f64], mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    let at = |a: usize, b: usize| a * (a + 1) / 2 + b;
    // The triangle whose product with its transpose the Gram matrix is, laid out alike.
    let mut root: Vec<f64> = Vec::with_capacity(gram.len());
    for a in 0..n {
        for b in 0..=a {
            let (row, other) = (at(a, 0), at(b, 0));
            let sum: f64 = (0..b).map(|c| root[row + c] * root[other + c]).sum();
            let rest = gram[row + b] - sum;
            root.push(if a == b { rest.sqrt() } else { rest / root[other + b] });
        }
        let sum: f64 = (0..a).map(|c| root[at(a, c)] * right[c]).sum();
        right[a] = (right[a] - sum) / root[at(a, a)];
    }
    for a in (0..n).rev() {
        let sum: f64 = (a + 1..n).map(|c| root[at(c, a)] * right[c]).sum();
        right[a] = (right[a] - sum) / root[at(a, a)];
    }
    right
}

#[cfg(test)]
#[path = "refine/tests.rs"]
mod tests;
