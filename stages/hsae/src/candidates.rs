//! From dense pre-activations to the few that can matter. Everything downstream of here is sparse.

use crate::kernels::{for_each_block, vectorised};
use crate::sparse::SparseRows;

/// Entries of a batch whose pre-activation lies above a bound, and what dead latents would say.
pub(crate) struct Candidates {
    pub(crate) entries: SparseRows,
    /// The `k_aux` largest positive pre-activations among dead latents, where there are any.
    pub(crate) dead: Option<SparseRows>,
}

/// Which entries of a token's pre-activations are collected. Never those at or below zero.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    Above(f32),
    /// Every entry within `slack` of the token's k-th largest, among the latents of each range: enough for a top-k by a
    /// score that is at most `slack` below the pre-activation.
    TopK {
        k: usize,
        slack: f32,
    },
}

/// The dead latents, ascending, and how many of them reconstruct the residual of a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dead<'a> {
    pub(crate) latents: &'a [u32],
    pub(crate) k_aux: usize,
}

/// Shapes: x_centered [B, d_model], w_enc [d_sae, d_model], b_enc [d_sae].
pub(crate) fn collect(
    x_centered: &[f32],
    w_enc: &[f32],
    b_enc: &[f32],
    d_model: usize,
    bound: Bound,
    dead: Option<Dead>,
) -> Candidates {
    let d_sae = b_enc.len();
    let blocks = for_each_block(x_centered, w_enc, b_enc, d_model, |_, pre_acts| {
        vectorised(|| {
            let mut entries = SparseRows::new(d_sae);
            let mut dead_entries = SparseRows::new(d_sae);
            for row in pre_acts.chunks_exact(d_sae) {
                let lower = match bound {
                    Bound::Above(lower) => lower.max(0.0),
                    Bound::TopK { k, slack } => (lower_bound_of_kth(row, k) - slack).max(0.0),
                };
                push_above(row, lower, &mut entries);
                if let Some(dead) = dead {
                    push_top_of(row, dead, &mut dead_entries);
                }
            }
            (entries, dead_entries)
        })
    });
    let mut all = Candidates { entries: SparseRows::new(d_sae), dead: dead.map(|_| SparseRows::new(d_sae)) };
    for (entries, dead_entries) in &blocks {
        all.entries.append(entries);
        if let Some(dead) = &mut all.dead {
            dead.append(dead_entries);
        }
    }
    all
}

/// Entries above `lower`, ascending in latent. Most chunks hold none, which one vector comparison tells.
#[inline(always)]
fn push_above(row: &[f32], lower: f32, out: &mut SparseRows) {
    const CHUNK: usize = 32;
    for (c, chunk) in row.chunks(CHUNK).enumerate() {
        let n_above: u32 = chunk.iter().map(|&value| u32::from(value > lower)).sum();
        if n_above > 0 {
            for (i, &value) in chunk.iter().enumerate() {
                if value > lower {
                    out.idx.push((c * CHUNK + i) as u32);
                    out.vals.push(value);
                }
            }
        }
    }
    out.indptr.push(out.idx.len());
}

/// A value that at least k entries reach: the k-th largest of the maxima of interleaved groups, each of which is an
/// entry of its own.
#[inline(always)]
fn lower_bound_of_kth(row: &[f32], k: usize) -> f32 {
    let n_groups = (4 * k).next_multiple_of(32).min(row.len());
    if k == 0 || k > n_groups {
        return f32::NEG_INFINITY;
    }
    let mut maxima = row[..n_groups].to_vec();
    for chunk in row[n_groups..].chunks(n_groups) {
        for (max, &value) in maxima.iter_mut().zip(chunk) {
            *max = max.max(value);
        }
    }
    // `collect` takes what lies strictly above, so step below the k-th itself.
    maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1.next_down()
}

fn push_top_of(row: &[f32], dead: Dead, out: &mut SparseRows) {
    let mut entries: Vec<(u32, f32)> =
        dead.latents.iter().map(|&j| (j, row[j as usize])).filter(|&(_, value)| value > 0.0).collect();
    if entries.len() > dead.k_aux {
        entries.select_nth_unstable_by(dead.k_aux, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        entries.truncate(dead.k_aux);
        entries.sort_unstable_by_key(|&(j, _)| j);
    }
    out.push_row(entries);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of 50 made-up pre-activations.
    fn row() -> Vec<f32> {
        (0..50).map(|i| ((i * 37 % 50) as f32 - 25.0) / 5.0).collect()
    }

    #[test]
    fn everything_above_the_bound_is_found() {
        let mut found = SparseRows::new(50);
        push_above(&row(), 2.0, &mut found);
        let expected: Vec<u32> = (0..50).filter(|&i| row()[i as usize] > 2.0).collect();
        assert_eq!(found.idx, expected);
    }

    #[test]
    fn the_bound_never_loses_one_of_the_top_k() {
        for k in 1..=40 {
            let mut sorted = row();
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert!(lower_bound_of_kth(&row(), k) < sorted[k - 1], "k = {k}");
        }
    }

    #[test]
    fn dead_latents_give_their_largest_positive_entries() {
        let mut found = SparseRows::new(50);
        let latents: Vec<u32> = (0..50).step_by(2).collect();
        push_top_of(&row(), Dead { latents: &latents, k_aux: 3 }, &mut found);
        let mut expected: Vec<u32> = latents.clone();
        expected.sort_by(|&a, &b| row()[b as usize].total_cmp(&row()[a as usize]));
        expected.truncate(3);
        expected.sort_unstable();
        assert_eq!(found.idx, expected);
    }
}
