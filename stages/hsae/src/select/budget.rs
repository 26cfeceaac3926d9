//! Of many candidates the best, within a budget that is counted per token or over the batch.

use std::ops::Range;

use crate::sparse::SparseRows;

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

/// A score of all latents, and one of fine ones where the budget limits them apart. As bounds on what is looked at, the first
/// is then that of coarse ones.
pub(crate) type OfLevels = [f32; 2];

/// What a budget keeps, and the lowest scores kept: one pair per token, or one for the batch. −∞ where the budget was not
/// used up, so that more candidates could change the choice; ∞ where none could.
pub(super) struct Chosen {
    pub(super) kept: SparseRows,
    pub(super) lowest: Vec<OfLevels>,
}

impl Budget {
    /// `n_coarse`, where fine latents have a limit of their own.
    pub(super) fn levels(&self) -> Option<usize> {
        match *self {
            Self::Shared { k, fine, n_coarse } if fine < k => Some(n_coarse),
            Self::PerLevel { n_coarse, .. } => Some(n_coarse),
            _ => None,
        }
    }

    /// Whether so many tokens together may use a latent of either level at all.
    pub(super) fn allows(&self, n_tokens: usize) -> [bool; 2] {
        let is_some = |k: f64| n_of(k, n_tokens as f64) > 0;
        match *self {
            Self::All => [true; 2],
            Self::Shared { k, fine, .. } => [is_some(k), is_some(fine)],
            Self::PerLevel { coarse, fine, .. } => [is_some(coarse), is_some(fine)],
        }
    }

    /// The same, with at least one fine latent in so many tokens.
    pub(super) fn allowing_fine(&self, n_tokens: usize) -> Self {
        let mut budget = self.clone();
        if let Self::Shared { fine, .. } | Self::PerLevel { fine, .. } = &mut budget {
            *fine = fine.max(1.0 / n_tokens as f64);
        }
        budget
    }
}

fn n_of(k: f64, n_tokens: f64) -> usize {
    (k * n_tokens).round() as usize
}

/// The candidates that the budget keeps by score.
pub(super) fn choose(candidates: &SparseRows, budget: &Budget, scope: Scope, scores: &[f32]) -> Chosen {
    let mut choice = Choice { keep: vec![false; candidates.nnz()], scratch: Vec::new() };
    let lowest = match scope {
        Scope::Batch => {
            let n_tokens = candidates.n_rows() as f64;
            vec![choice.keep_best(0..candidates.nnz(), &candidates.idx, scores, n_tokens, budget)]
        }
        Scope::Token => (0..candidates.n_rows())
            .map(|t| {
                let entries = candidates.indptr[t]..candidates.indptr[t + 1];
                choice.keep_best(entries, &candidates.idx, scores, 1.0, budget)
            })
            .collect(),
    };
    Chosen { kept: candidates.filtered_by(&choice.keep), lowest }
}

/// Which candidates are kept, so far.
struct Choice {
    /// For each candidate.
    keep: Vec<bool>,
    /// Room for scores.
    scratch: Vec<f32>,
}

impl Choice {
    /// Applies the budget of `n_tokens` tokens to some candidates. Only positive scores are ever kept. Returns the lowest
    /// scores kept.
    fn keep_best(
        &mut self,
        entries: Range<usize>,
        idx: &[u32],
        scores: &[f32],
        n_tokens: f64,
        budget: &Budget,
    ) -> OfLevels {
        let n_of = |k: f64| n_of(k, n_tokens);
        let (idx, scores) = (&idx[entries.clone()], &scores[entries.clone()]);
        let (keep, scratch) = (&mut self.keep[entries], &mut self.scratch);
        keep.iter_mut().zip(scores).for_each(|(keep, &score)| *keep = score > 0.0);
        match *budget {
            Budget::All => [0.0, f32::INFINITY],
            Budget::Shared { k, fine, n_coarse } => {
                let mut low_fine = f32::INFINITY;
                if fine < k {
                    low_fine = drop_all_but_best(scores, n_of(fine), keep, scratch, |e| idx[e] as usize >= n_coarse);
                }
                [drop_all_but_best(scores, n_of(k), keep, scratch, |_| true), low_fine]
            }
            Budget::PerLevel { coarse, fine, n_coarse } => {
                let is_fine = |e: usize| idx[e] as usize >= n_coarse;
                let low_fine = drop_all_but_best(scores, n_of(fine), keep, scratch, is_fine);
                [drop_all_but_best(scores, n_of(coarse), keep, scratch, |e| !is_fine(e)), low_fine]
            }
        }
    }
}

/// Among the entries of the group that are still kept, all with positive scores, keeps the n best; of equal ones the
/// first. Returns the lowest score kept; −∞ where fewer than n were there.
fn drop_all_but_best(
    scores: &[f32],
    n: usize,
    keep: &mut [bool],
    scratch: &mut Vec<f32>,
    in_group: impl Fn(usize) -> bool,
) -> f32 {
    let rivals = |e: &usize| keep[*e] && in_group(*e);
    scratch.clear();
    scratch.extend((0..scores.len()).filter(rivals).map(|e| scores[e]));
    if scratch.len() < n {
        return f32::NEG_INFINITY;
    }
    if n == 0 {
        (0..scores.len()).filter(|&e| in_group(e)).for_each(|e| keep[e] = false);
        return f32::INFINITY;
    }
    let (nth, mut n_equal) = nth_largest(scratch, n);
    for e in 0..scores.len() {
        if keep[e] && in_group(e) {
            if scores[e] == nth && n_equal > 0 {
                n_equal -= 1;
            } else {
                keep[e] = scores[e] > nth;
            }
        }
    }
    nth
}

/// The n-th largest of positive values, n ≥ 1, and how many of those equal to it belong to the n. Their order is lost.
fn nth_largest(values: &mut [f32], n: usize) -> (f32, usize) {
    // The bits of positive floats are ordered as they are. A histogram of the upper half leaves few to sort.
    const FEW: usize = 2048;
    if values.len() <= FEW {
        return nth_of_few(values, n);
    }
    let mut counts = vec![0u32; 1 << 16];
    values.iter().for_each(|value| counts[(value.to_bits() >> 16) as usize] += 1);
    let (mut bin, mut n_above) = (counts.len() - 1, 0);
    while n_above + (counts[bin] as usize) < n {
        n_above += counts[bin] as usize;
        bin -= 1;
    }
    let mut low: Vec<f32> = values.iter().copied().filter(|value| (value.to_bits() >> 16) as usize == bin).collect();
    nth_of_few(&mut low, n - n_above)
}

fn nth_of_few(values: &mut [f32], n: usize) -> (f32, usize) {
    let (above, &mut nth, _) = values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
    let n_greater = above.iter().filter(|&&value| value > nth).count();
    (nth, n - n_greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_largest_is_that_of_a_sorted_list() {
        for n_values in [1usize, 5, 3000, 5000] {
            let values: Vec<f32> = (0..n_values).map(|i| 0.01 + (i * 7919 % 1013) as f32 * 0.37).collect();
            let mut sorted = values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for n in [1, n_values / 2, n_values] {
                if n == 0 {
                    continue;
                }
                let (nth, n_equal) = nth_largest(&mut values.clone(), n);
                assert!(nth == sorted[n - 1], "{n} of {n_values}");
                let n_greater = values.iter().filter(|&&value| value > nth).count();
                assert_eq!(n_greater + n_equal, n);
            }
        }
    }
}
