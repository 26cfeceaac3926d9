//! From the threshold of a selection to lists of active latents, one per token, ascending.
//!
//! A token's latents are cut into segments of 32 × UNITS: a unit holds 32 latents as the bits of a word. With W words and
//! S segments a token: `above`, `equal`, `kept`, `word_start` are [B, W], counts are [B, S].

use cubecl::prelude::*;

use super::cube::{UNITS, count_before, count_of_cube};

/// Latents in a segment.
pub(crate) const SEGMENT: usize = 32 * UNITS as usize;
/// Of latents without a parent.
pub(crate) const NO_PARENT: u32 = u32::MAX;
/// A score that is never kept.
const NEVER: f32 = -1e30;

/// Marks scores above the threshold, and equal to it, and counts both. One cube per segment.
/// Shapes: scores [B, n_cols] without b_enc, b_enc [n_cols]; threshold [B], or [1] for the batch.
#[cube(launch_unchecked)]
pub(crate) fn mark(
    scores: &[f32],
    b_enc: &[f32],
    threshold: &[u32],
    above: &mut [u32],
    equal: &mut [u32],
    n_above: &mut [u32],
    n_equal: &mut [u32],
    n_rows: usize,
    n_cols: usize,
    from: usize,
    to: usize,
    n_segments: usize,
    n_words: usize,
    #[comptime] is_per_token: bool,
) {
    let at = CUBE_POS;
    if at >= n_rows * n_segments {
        terminate!();
    }
    let t = at / n_segments;
    let segment = at % n_segments;
    let above_words = Shared::<[Atomic<u32>]>::new_slice(UNITS as usize);
    let equal_words = Shared::<[Atomic<u32>]>::new_slice(UNITS as usize);
    let mut room = Shared::<[u32]>::new_slice(UNITS as usize);
    above_words[UNIT_POS as usize].store(0u32);
    equal_words[UNIT_POS as usize].store(0u32);
    sync_cube();
    let least = if is_per_token { threshold[t] } else { threshold[0] };
    let first = segment * SEGMENT;
    for i in 0..32usize {
        let in_segment = i * UNITS as usize + UNIT_POS as usize;
        let j = first + in_segment;
        if j >= from && j < to {
            let score = scores[t * n_cols + j] + b_enc[j];
            if score > 0.0 {
                let bits = u32::reinterpret(score);
                let bit = 1u32 << (in_segment % 32) as u32;
                if bits > least {
                    above_words[in_segment / 32].fetch_or(bit);
                } else if bits == least {
                    equal_words[in_segment / 32].fetch_or(bit);
                }
            }
        }
    }
    sync_cube();
    let own_above = above_words[UNIT_POS as usize].load();
    let own_equal = equal_words[UNIT_POS as usize].load();
    let word = segment * UNITS as usize + UNIT_POS as usize;
    if word < n_words {
        above[t * n_words + word] = own_above;
        equal[t * n_words + word] = own_equal;
    }
    let sum_above = count_of_cube(own_above.count_ones(), &mut room);
    let sum_equal = count_of_cube(own_equal.count_ones(), &mut room);
    if UNIT_POS == 0 {
        n_above[at] = sum_above;
        n_equal[at] = sum_equal;
    }
}

/// How many of those equal to the threshold each segment keeps, the first ones, and where its entries start. One cube.
/// Shapes: n_above, n_equal, n_equal_kept, start [B, S], quota [B] or [1] → row_ptr [B + 1].
#[cube(launch_unchecked)]
pub(crate) fn place(
    n_above: &[u32],
    n_equal: &[u32],
    quota: &[u32],
    n_equal_kept: &mut [u32],
    start: &mut [u32],
    row_ptr: &mut [u32],
    n_rows: usize,
    n_segments: usize,
    #[comptime] is_per_token: bool,
) {
    let mut room = Shared::<[u32]>::new_slice(UNITS as usize);
    // Every unit takes tokens that follow each other.
    let rows_per_unit = n_rows.div_ceil(UNITS as usize);
    let first = min(UNIT_POS as usize * rows_per_unit, n_rows);
    let end = min(first + rows_per_unit, n_rows);

    let mut equal = 0u32;
    for at in first * n_segments..end * n_segments {
        equal += n_equal[at];
    }
    let mut equal_before = count_before(equal, &mut room);
    let mut n = 0u32;
    for t in first..end {
        let left = if is_per_token { quota[t] } else { quota[0] };
        if is_per_token {
            equal_before = 0u32;
        }
        for segment in 0..n_segments {
            let at = t * n_segments + segment;
            let mut kept = 0u32;
            if equal_before < left {
                kept = min(left - equal_before, n_equal[at]);
            }
            n_equal_kept[at] = kept;
            n += n_above[at] + kept;
            equal_before += n_equal[at];
        }
    }
    let mut next = count_before(n, &mut room);
    for t in first..end {
        row_ptr[t] = next;
        for segment in 0..n_segments {
            let at = t * n_segments + segment;
            start[at] = next;
            next += n_above[at] + n_equal_kept[at];
        }
        if t + 1 == n_rows {
            row_ptr[n_rows] = next;
        }
    }
}

/// Writes the lists. One cube per segment.
/// Shapes as above → kept, word_start [B, W], idx [nnz].
#[cube(launch_unchecked)]
pub(crate) fn collect(
    above: &[u32],
    equal: &[u32],
    n_equal_kept: &[u32],
    start: &[u32],
    kept: &mut [u32],
    word_start: &mut [u32],
    idx: &mut [u32],
    n_rows: usize,
    n_segments: usize,
    n_words: usize,
) {
    let at = CUBE_POS;
    if at >= n_rows * n_segments {
        terminate!();
    }
    let t = at / n_segments;
    let word = (at % n_segments) * UNITS as usize + UNIT_POS as usize;
    let mut room = Shared::<[u32]>::new_slice(UNITS as usize);
    let mut own = 0u32;
    let mut ties = 0u32;
    if word < n_words {
        own = above[t * n_words + word];
        ties = equal[t * n_words + word];
    }
    let ties_before = count_before(ties.count_ones(), &mut room);
    let limit = n_equal_kept[at];
    let mut rank = ties_before;
    while ties != 0 && rank < limit {
        let rest = ties & (ties - 1);
        own |= ties ^ rest;
        ties = rest;
        rank += 1;
    }
    let mut next = start[at] + count_before(own.count_ones(), &mut room);
    if word < n_words {
        kept[t * n_words + word] = own;
        word_start[t * n_words + word] = next;
    }
    while own != 0 {
        idx[next as usize] = word as u32 * 32 + own.trailing_zeros();
        next += 1;
        own &= own - 1;
    }
}

/// Of latents `from..to`, those that are not kept are out of the running. One cube per token.
#[cube(launch_unchecked)]
pub(crate) fn drop_others(
    kept: &[u32],
    scores: &mut [f32],
    n_rows: usize,
    n_cols: usize,
    from: usize,
    to: usize,
    n_words: usize,
) {
    let t = CUBE_POS;
    if t >= n_rows {
        terminate!();
    }
    let mut j = from + UNIT_POS as usize;
    while j < to {
        let bit = (kept[t * n_words + j / 32] >> (j % 32) as u32) & 1u32;
        if bit == 0 {
            scores[t * n_cols + j] = NEVER;
        }
        j += UNITS as usize;
    }
}

/// The tree's soft gate: where a latent's parent is not in the token's list, the latent's score is lowered by `strength`.
/// One cube per token. Shapes: parent [n_cols]; row_ptr, idx: the lists made without the gate; scores [B, n_cols].
#[cube(launch_unchecked)]
pub(crate) fn gate(
    parent: &[u32],
    row_ptr: &[u32],
    idx: &[u32],
    scores: &mut [f32],
    n_rows: usize,
    n_cols: usize,
    strength: f32,
) {
    let t = CUBE_POS;
    if t >= n_rows {
        terminate!();
    }
    let first = row_ptr[t];
    let end = row_ptr[t + 1];
    let mut j = UNIT_POS as usize;
    while j < n_cols {
        let wanted = parent[j];
        if wanted != NO_PARENT {
            // The first entry that is not below the parent.
            let mut low = first;
            let mut high = end;
            while low < high {
                let middle = (low + high) / 2;
                if idx[middle as usize] < wanted {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            let mut is_on = false;
            if low < end {
                is_on = idx[low as usize] == wanted;
            }
            if !is_on {
                scores[t * n_cols + j] -= strength;
            }
        }
        j += UNITS as usize;
    }
}
