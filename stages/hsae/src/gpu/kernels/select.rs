//! The n-th largest score, exactly: a radix search on the bits of positive floats, which are ordered as the floats are.
//! Three looks at the scores, at 11, 10 and 10 bits.
//!
//! A score is a pre-activation: the product with the encoder, and b_enc.

use cubecl::prelude::*;

use super::cube::UNITS;

/// Digits of a positive float, of at most 11 bits.
pub(crate) const N_DIGITS: u32 = 3;
pub(crate) const N_BINS: usize = 2048;
const BINS_PER_UNIT: usize = N_BINS / UNITS as usize;

/// The search's state: the digits found so far, the rank among scores that share them, and whether all are wanted, because
/// fewer are positive than are looked for.
pub(crate) const STATE: usize = 3;
const PREFIX: usize = 0;
const RANK: usize = 1;
const ALL: usize = 2;

/// Counts a score where it shares the digits before this one.
#[cube]
fn count_digit(score: f32, prefix: u32, counts: &[Atomic<u32>], #[comptime] digit: u32) {
    if score > 0.0 {
        let bits = u32::reinterpret(score);
        if digit == 0u32 {
            counts[(bits >> 20u32) as usize].fetch_add(1u32);
        } else if digit == 1u32 {
            if bits >> 20u32 == prefix {
                counts[((bits >> 10u32) & 1023u32) as usize].fetch_add(1u32);
            }
        } else if bits >> 10u32 == prefix {
            counts[(bits & 1023u32) as usize].fetch_add(1u32);
        }
    }
}

/// Finds the digit of the score of the wanted rank from the counts, and empties these. `sums` [UNITS].
#[cube]
fn settle_digit(counts: &[Atomic<u32>], sums: &mut Shared<[u32]>, state: &mut [u32], #[comptime] digit: u32) {
    let first = UNIT_POS as usize * BINS_PER_UNIT;
    let mut sum = 0u32;
    for bin in 0..BINS_PER_UNIT {
        sum += counts[first + bin].load();
    }
    sums[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS == 0 {
        let rank = state[RANK];
        let mut above = 0u32;
        let mut unit = CUBE_DIM;
        // Down to the unit in whose bins the rank is reached.
        let mut is_reached = false;
        while unit > 0 && !is_reached {
            let with_it = above + sums[(unit - 1) as usize];
            is_reached = with_it >= rank;
            if !is_reached {
                above = with_it;
                unit -= 1;
            }
        }
        if is_reached {
            let mut bin = unit as usize * BINS_PER_UNIT - 1;
            let mut with_it = above + counts[bin].load();
            while with_it < rank {
                above = with_it;
                bin -= 1;
                with_it = above + counts[bin].load();
            }
            let shift = comptime!(if digit == 0 { 0u32 } else { 10u32 });
            state[PREFIX] = (state[PREFIX] << shift) | bin as u32;
            state[RANK] = rank - above;
        } else {
            state[ALL] = 1u32;
        }
    }
    sync_cube();
    for bin in 0..BINS_PER_UNIT {
        counts[first + bin].store(0u32);
    }
    sync_cube();
}

/// The bits that a score has to be above, and how many of those equal to it belong to the wanted ones.
#[cube]
fn write_found(state: &mut [u32], threshold: &mut [u32], quota: &mut [u32], at: usize) {
    if UNIT_POS == 0 {
        if state[ALL] == 1u32 {
            threshold[at] = 0u32;
            quota[at] = 0u32;
        } else {
            threshold[at] = state[PREFIX];
            quota[at] = state[RANK];
        }
    }
}

/// For every token, the n-th largest score among latents `from..to`. One cube per token.
/// Shapes: scores [B, n_cols] without b_enc, b_enc [n_cols] → threshold, quota [B].
#[cube(launch_unchecked)]
pub(crate) fn nth_of_token(
    scores: &[f32],
    b_enc: &[f32],
    threshold: &mut [u32],
    quota: &mut [u32],
    n_rows: usize,
    n_cols: usize,
    from: usize,
    to: usize,
    n: u32,
) {
    let t = CUBE_POS;
    if t >= n_rows {
        terminate!();
    }
    let counts = Shared::<[Atomic<u32>]>::new_slice(N_BINS);
    let mut sums = Shared::<[u32]>::new_slice(UNITS as usize);
    let mut state = Shared::<[u32]>::new_slice(STATE);
    for bin in 0..BINS_PER_UNIT {
        counts[UNIT_POS as usize * BINS_PER_UNIT + bin].store(0u32);
    }
    if UNIT_POS == 0 {
        state[PREFIX] = 0u32;
        state[RANK] = n;
        state[ALL] = 0u32;
    }
    sync_cube();
    #[unroll]
    for digit in 0..N_DIGITS {
        let prefix = state[PREFIX];
        let mut j = from + UNIT_POS as usize;
        while j < to {
            count_digit(scores[t * n_cols + j] + b_enc[j], prefix, &counts, digit);
            j += UNITS as usize;
        }
        sync_cube();
        settle_digit(&counts, &mut sums, &mut state, digit);
    }
    write_found(&mut state, threshold, quota, t);
}

/// For the batch, one digit of the n-th largest score among latents `from..to` is counted into `counts` [N_BINS], which is
/// zero before. Every cube takes some tokens. Shapes as above.
#[cube(launch_unchecked)]
pub(crate) fn count_digit_of_batch(
    scores: &[f32],
    b_enc: &[f32],
    state: &[u32],
    counts: &[Atomic<u32>],
    n_rows: usize,
    n_cols: usize,
    from: usize,
    to: usize,
    #[comptime] digit: u32,
) {
    let own = Shared::<[Atomic<u32>]>::new_slice(N_BINS);
    let first = UNIT_POS as usize * BINS_PER_UNIT;
    for bin in 0..BINS_PER_UNIT {
        own[first + bin].store(0u32);
    }
    sync_cube();
    let prefix = state[PREFIX];
    let mut t = CUBE_POS;
    while t < n_rows {
        let mut j = from + UNIT_POS as usize;
        while j < to {
            count_digit(scores[t * n_cols + j] + b_enc[j], prefix, &own, digit);
            j += UNITS as usize;
        }
        t += CUBE_COUNT;
    }
    sync_cube();
    for bin in 0..BINS_PER_UNIT {
        let n = own[first + bin].load();
        if n > 0 {
            counts[first + bin].fetch_add(n);
        }
    }
}

/// Settles the digit, and after the last one writes what was found. One cube. `threshold` and `quota` [1].
#[cube(launch_unchecked)]
pub(crate) fn settle_digit_of_batch(
    counts: &[Atomic<u32>],
    state: &mut [u32],
    threshold: &mut [u32],
    quota: &mut [u32],
    #[comptime] digit: u32,
) {
    let mut sums = Shared::<[u32]>::new_slice(UNITS as usize);
    settle_digit(counts, &mut sums, state, digit);
    if digit == comptime!(N_DIGITS - 1) {
        write_found(state, threshold, quota, 0usize);
    }
}
