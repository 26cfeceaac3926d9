//! Which latents are active: z = select(pre), with the tree's soft gate (science.md §2).
//!
//! The gate lowers the *score* of a latent whose parent is silent; the activation keeps its value. Whether a parent is
//! silent is decided without the gate.

use crate::candidates::{Bound, Candidates, Dead, collect};
use crate::sparse::SparseRows;

/// A soft gate: latent j's score is lowered by `strength` where `parent[j]` is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate<'a> {
    /// [d_sae].
    pub(crate) parent: &'a [Option<u32>],
    /// In pre-activation units.
    pub(crate) strength: f32,
}

/// How many latents a token may use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Budget {
    /// Every positive pre-activation.
    All,
    /// `k` per token, of which at most `fine` at or above `n_coarse`.
    Shared { k: f64, fine: f64, n_coarse: usize },
    /// `coarse` per token below `n_coarse`, `fine` per token above.
    PerLevel { coarse: f64, fine: f64, n_coarse: usize },
}

/// Over what the budget is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Token,
    Batch,
}

/// What training needs of a batch.
pub(crate) struct Selection {
    /// The active latents.
    pub(crate) acts: SparseRows,
    /// What would be active without the gate: the firing that the tree is learned from.
    pub(crate) ungated: SparseRows,
    /// Dead latents' entries for AuxK.
    pub(crate) dead: Option<SparseRows>,
    /// The lowest ungated score that is active, over the batch; −∞ where the budget was not used up.
    pub(crate) threshold: f32,
    /// The lowest score of any active latent, gated or not: where the next batch may start to look.
    pub(crate) lowest: f32,
}

/// The encoder of one batch, as slices. Shapes: x_centered [B, d_model], w_enc [d_sae, d_model], b_enc [d_sae].
#[derive(Clone, Copy)]
pub(crate) struct EncoderInput<'a> {
    pub(crate) x_centered: &'a [f32],
    pub(crate) w_enc: &'a [f32],
    pub(crate) b_enc: &'a [f32],
    pub(crate) d_model: usize,
}

impl EncoderInput<'_> {
    fn collect(&self, bound: Bound, dead: Option<Dead>) -> Candidates {
        collect(self.x_centered, self.w_enc, self.b_enc, self.d_model, bound, dead)
    }
}

/// Selects the active latents of a batch. `guess` is a lower bound on the scores worth looking at, from the batch
/// before: a wrong one costs a second pass and changes nothing.
pub(crate) fn select_batch(
    input: EncoderInput,
    budget: &Budget,
    scope: Scope,
    gate: Option<Gate>,
    dead: Option<Dead>,
    guess: f32,
) -> Selection {
    let slack = gate.map_or(0.0, |gate| gate.strength);
    let bound = match (budget, scope) {
        (Budget::All, _) => Bound::Above(0.0),
        // A gated score lies at or below its pre-activation, so what passes by score passes the bound.
        (_, Scope::Batch) => Bound::Above(guess),
        // A level's budget may reach below the token's k-th largest, so levels look at everything.
        (Budget::Shared { k, fine, .. }, Scope::Token) if fine >= k => Bound::TopK { k: k.round() as usize, slack },
        (_, Scope::Token) => Bound::Above(0.0),
    };
    let candidates = input.collect(bound, dead);
    let selection = select_from(candidates, budget, scope, gate);
    match bound {
        // The guess was too high: scores below it may belong to the budget.
        Bound::Above(bound) if bound > 0.0 && selection.lowest <= bound => {
            let entries = input.collect(Bound::Above(0.0), None).entries;
            select_from(Candidates { entries, dead: selection.dead }, budget, scope, gate)
        }
        _ => selection,
    }
}

/// The selection among candidates: the right one where `lowest` lies above the bound that they were collected with.
fn select_from(candidates: Candidates, budget: &Budget, scope: Scope, gate: Option<Gate>) -> Selection {
    let (ungated, threshold) = choose(&candidates.entries, budget, scope, &candidates.entries.vals);
    let (acts, lowest) = match gate {
        Some(gate) if gate.strength > 0.0 => {
            let scores = gated_scores(&candidates.entries, &ungated, gate);
            choose(&candidates.entries, budget, scope, &scores)
        }
        _ => (ungated.clone(), threshold),
    };
    Selection { acts, ungated, dead: candidates.dead, threshold, lowest: lowest.min(threshold) }
}

/// Each candidate's pre-activation, less the gate where its parent is silent in `on`.
pub(crate) fn gated_scores(candidates: &SparseRows, on: &SparseRows, gate: Gate) -> Vec<f32> {
    let mut is_on = vec![false; candidates.n_cols];
    let mut scores = candidates.vals.clone();
    for t in 0..candidates.n_rows() {
        let (active, _) = on.row(t);
        active.iter().for_each(|&j| is_on[j as usize] = true);
        let (latents, _) = candidates.row(t);
        for (score, &j) in scores[candidates.indptr[t]..].iter_mut().zip(latents) {
            if gate.parent[j as usize].is_some_and(|parent| !is_on[parent as usize]) {
                *score -= gate.strength;
            }
        }
        active.iter().for_each(|&j| is_on[j as usize] = false);
    }
    scores
}

/// The candidates that the budget keeps by score, and the lowest score kept (or that the budget was not used up: −∞).
fn choose(candidates: &SparseRows, budget: &Budget, scope: Scope, scores: &[f32]) -> (SparseRows, f32) {
    let keep = match scope {
        Scope::Batch => {
            let n_rows = candidates.n_rows();
            keep_best(candidates, 0..candidates.nnz(), n_rows as f64, budget, scores)
        }
        Scope::Token => {
            let mut all = Kept { keep: vec![false; candidates.nnz()], lowest: f32::INFINITY };
            for t in 0..candidates.n_rows() {
                let range = candidates.indptr[t]..candidates.indptr[t + 1];
                let kept = keep_best(candidates, range.clone(), 1.0, budget, scores);
                all.keep[range].copy_from_slice(&kept.keep);
                all.lowest = all.lowest.min(kept.lowest);
            }
            all
        }
    };
    let mut kept = SparseRows::new(candidates.n_cols);
    for t in 0..candidates.n_rows() {
        let range = candidates.indptr[t]..candidates.indptr[t + 1];
        kept.push_row(range.filter(|&e| keep.keep[e]).map(|e| (candidates.idx[e], candidates.vals[e])));
    }
    (kept, keep.lowest)
}

struct Kept {
    /// For each candidate of the range.
    keep: Vec<bool>,
    lowest: f32,
}

/// Applies the budget of `n_tokens` tokens to a range of candidates. Only positive scores are ever kept.
fn keep_best(
    candidates: &SparseRows,
    range: std::ops::Range<usize>,
    n_tokens: f64,
    budget: &Budget,
    scores: &[f32],
) -> Kept {
    let idx = &candidates.idx[range.clone()];
    let scores = &scores[range];
    let n_of = |k: f64| (k * n_tokens).round() as usize;
    match *budget {
        Budget::All => Kept { keep: scores.iter().map(|&score| score > 0.0).collect(), lowest: 0.0 },
        Budget::Shared { k, fine, n_coarse } => {
            let mut keep = vec![true; scores.len()];
            let mut lowest = f32::INFINITY;
            if fine < k {
                let is_fine = |e: usize| idx[e] as usize >= n_coarse;
                lowest = drop_all_but_best(scores, n_of(fine), &mut keep, is_fine);
            }
            lowest = lowest.min(drop_all_but_best(scores, n_of(k), &mut keep, |_| true));
            Kept { keep, lowest }
        }
        Budget::PerLevel { coarse, fine, n_coarse } => {
            let mut keep = vec![true; scores.len()];
            let is_fine = |e: usize| idx[e] as usize >= n_coarse;
            let low_fine = drop_all_but_best(scores, n_of(fine), &mut keep, is_fine);
            let low_coarse = drop_all_but_best(scores, n_of(coarse), &mut keep, |e| !is_fine(e));
            Kept { keep, lowest: low_fine.min(low_coarse) }
        }
    }
}

/// Among the entries that are still kept and in the group, keeps the n with the largest positive scores; of equal ones
/// the first. Returns the lowest score kept; −∞ where fewer than n were there.
fn drop_all_but_best(scores: &[f32], n: usize, keep: &mut [bool], in_group: impl Fn(usize) -> bool) -> f32 {
    let mut rivals: Vec<u32> = Vec::new();
    for e in 0..scores.len() {
        if keep[e] && in_group(e) {
            if scores[e] > 0.0 {
                rivals.push(e as u32);
            } else {
                keep[e] = false;
            }
        }
    }
    if rivals.len() < n {
        return f32::NEG_INFINITY;
    }
    if n == 0 {
        rivals.iter().for_each(|&e| keep[e as usize] = false);
        return f32::INFINITY;
    }
    let order = |&a: &u32, &b: &u32| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b));
    let (_, &mut nth, losers) = rivals.select_nth_unstable_by(n - 1, order);
    losers.iter().for_each(|&e| keep[e as usize] = false);
    scores[nth as usize]
}

#[cfg(test)]
#[path = "select/tests.rs"]
mod tests;
