//! Of many candidates the best, within a budget that is counted per token or over the batch.

use rayon::prelude::*;

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

/// What a budget keeps, and the lowest score kept: one per token, or one for the batch. −∞ where the budget was not used
/// up, so that more candidates could change the choice.
pub(super) struct Chosen {
    pub(super) kept: SparseRows,
    pub(super) lowest: Vec<f32>,
}

/// The candidates that the budget keeps by score.
pub(super) fn choose(candidates: &SparseRows, budget: &Budget, scope: Scope, scores: &[f32]) -> Chosen {
    const BLOCK_ROWS: usize = 64;
    let n_rows = candidates.n_rows();
    match scope {
        Scope::Batch => {
            let kept = keep_best(&candidates.idx, scores, n_rows as f64, budget);
            Chosen { kept: candidates.filtered_by(&kept.keep), lowest: vec![kept.lowest] }
        }
        Scope::Token => {
            let parts: Vec<(SparseRows, Vec<f32>)> = (0..n_rows)
                .into_par_iter()
                .step_by(BLOCK_ROWS)
                .map(|first| {
                    let (mut kept, mut lowest) = (SparseRows::new(candidates.n_cols), Vec::with_capacity(BLOCK_ROWS));
                    for t in first..(first + BLOCK_ROWS).min(n_rows) {
                        let (idx, vals) = candidates.row(t);
                        let scores = &scores[candidates.indptr[t]..candidates.indptr[t + 1]];
                        let best = keep_best(idx, scores, 1.0, budget);
                        let entries = idx.iter().copied().zip(vals.iter().copied()).zip(best.keep);
                        kept.push_row(entries.filter(|&(_, keep)| keep).map(|(entry, _)| entry));
                        lowest.push(best.lowest);
                    }
                    (kept, lowest)
                })
                .collect();
            Chosen {
                kept: SparseRows::concatenated(candidates.n_cols, parts.iter().map(|(kept, _)| kept)),
                lowest: parts.iter().flat_map(|(_, lowest)| lowest.iter().copied()).collect(),
            }
        }
    }
}

struct Kept {
    /// For each candidate.
    keep: Vec<bool>,
    lowest: f32,
}

/// Applies the budget of `n_tokens` tokens. Only positive scores are ever kept.
fn keep_best(idx: &[u32], scores: &[f32], n_tokens: f64, budget: &Budget) -> Kept {
    let n_of = |k: f64| (k * n_tokens).round() as usize;
    let mut keep: Vec<bool> = scores.iter().map(|&score| score > 0.0).collect();
    let lowest = match *budget {
        Budget::All => 0.0,
        Budget::Shared { k, fine, n_coarse } => {
            let mut lowest = f32::INFINITY;
            if fine < k {
                lowest = drop_all_but_best(scores, n_of(fine), &mut keep, |e| idx[e] as usize >= n_coarse);
            }
            lowest.min(drop_all_but_best(scores, n_of(k), &mut keep, |_| true))
        }
        Budget::PerLevel { coarse, fine, n_coarse } => {
            let is_fine = |e: usize| idx[e] as usize >= n_coarse;
            let low_fine = drop_all_but_best(scores, n_of(fine), &mut keep, is_fine);
            low_fine.min(drop_all_but_best(scores, n_of(coarse), &mut keep, |e| !is_fine(e)))
        }
    };
    Kept { keep, lowest }
}

/// Among the entries of the group that are still kept, all with positive scores, keeps the n best; of equal ones the
/// first. Returns the lowest score kept; −∞ where fewer than n were there.
fn drop_all_but_best(scores: &[f32], n: usize, keep: &mut [bool], in_group: impl Fn(usize) -> bool) -> f32 {
    let group = |keep: &[bool]| -> usize { (0..scores.len()).filter(|&e| keep[e] && in_group(e)).count() };
    let n_rivals = group(keep);
    if n_rivals < n {
        return f32::NEG_INFINITY;
    }
    if n == 0 {
        (0..scores.len()).filter(|&e| in_group(e)).for_each(|e| keep[e] = false);
        return f32::INFINITY;
    }
    let rivals = (0..scores.len()).filter(|&e| keep[e] && in_group(e)).map(|e| scores[e]);
    let (nth, mut n_equal) = nth_largest(rivals, n);
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

/// The n-th largest of positive values, n ≥ 1, and how many of those equal to it belong to the n.
fn nth_largest(values: impl Iterator<Item = f32> + Clone, n: usize) -> (f32, usize) {
    // The bits of positive floats are ordered as they are. A histogram of the upper half leaves few to sort.
    const FEW: usize = 2048;
    let n_values = values.clone().count();
    let (mut low, mut n_above) = (Vec::new(), 0);
    if n_values <= FEW {
        low.extend(values);
    } else {
        let mut counts = vec![0u32; 1 << 16];
        values.clone().for_each(|value| counts[(value.to_bits() >> 16) as usize] += 1);
        let mut bin = counts.len() - 1;
        while n_above + (counts[bin] as usize) < n {
            n_above += counts[bin] as usize;
            bin -= 1;
        }
        low.extend(values.filter(|value| (value.to_bits() >> 16) as usize == bin));
    }
    let rank = n - n_above;
    let (above, &mut nth, _) = low.select_nth_unstable_by(rank - 1, |a, b| b.total_cmp(a));
    let n_greater = above.iter().filter(|&&value| value > nth).count();
    (nth, rank - n_greater)
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
                let (nth, n_equal) = nth_largest(values.iter().copied(), n);
                assert!(nth == sorted[n - 1], "{n} of {n_values}");
                let n_greater = values.iter().filter(|&&value| value > nth).count();
                assert_eq!(n_greater + n_equal, n);
            }
        }
    }
}
