//! Token by token: centring, the exact pre-activations of active latents, nested reconstructions.

use cubecl::prelude::*;

use super::cube::{UNITS, sum_of_cube};

/// Units that share the product of an entry; so many entries are worked on at a time.
const UNITS_PER_ENTRY: usize = 32;
const ENTRIES_AT_ONCE: usize = UNITS as usize / UNITS_PER_ENTRY;

/// x − b_dec, and ‖x − b_dec‖² for every token. One cube per token. Shapes: x, centered [B, d_model], squares [B].
#[cube(launch_unchecked)]
pub(crate) fn center(
    x: &[f32],
    b_dec: &[f32],
    centered: &mut [f32],
    squares: &mut [f32],
    n_rows: usize,
    d_model: usize,
) {
    let t = CUBE_POS;
    if t >= n_rows {
        terminate!();
    }
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut sum = 0.0f32;
    let mut c = UNIT_POS as usize;
    while c < d_model {
        let value = x[t * d_model + c] - b_dec[c];
        centered[t * d_model + c] = value;
        sum += value * value;
        c += UNITS as usize;
    }
    let sum = sum_of_cube(sum, &mut room);
    if UNIT_POS == 0 {
        squares[t] = sum;
    }
}

/// One product for each entry (t, j) of the lists. One cube per token.
///
/// Encoding: max(x[t] · W_enc[j] + b_enc[j], 0), the activation in f32 whatever the selection was made with.
/// Otherwise: flow[p, t] · W_dec[j] where the latent is active, p the first prefix that holds it: what flows back into
/// its activation.
/// Shapes: rows [n_prefixes, B, d_model], matrix [d_sae, d_model], bias [d_sae], acts [nnz] → out [nnz].
#[cube(launch_unchecked)]
pub(crate) fn entry_products(
    rows: &[f32],
    matrix: &[f32],
    bias: &[f32],
    row_ptr: &[u32],
    idx: &[u32],
    acts: &[f32],
    ends: &[u32],
    out: &mut [f32],
    n_rows: usize,
    d_model: usize,
    #[comptime] is_encoding: bool,
) {
    let t = CUBE_POS;
    if t >= n_rows {
        terminate!();
    }
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let lane = UNIT_POS as usize % UNITS_PER_ENTRY;
    let group = UNIT_POS as usize / UNITS_PER_ENTRY;
    let end = row_ptr[t + 1] as usize;
    let mut first = row_ptr[t] as usize;
    while first < end {
        let at = first + group;
        let mut sum = 0.0f32;
        let mut j = 0usize;
        if at < end {
            j = idx[at] as usize;
            let mut row = t * d_model;
            if !is_encoding {
                let mut p = 0usize;
                while ends[p] as usize <= j {
                    p += 1;
                }
                row += p * n_rows * d_model;
            }
            let mut c = lane;
            while c < d_model {
                sum += rows[row + c] * matrix[j * d_model + c];
                c += UNITS_PER_ENTRY;
            }
        }
        room[UNIT_POS as usize] = sum;
        sync_cube();
        let mut n = CUBE_DIM as usize / (2 * ENTRIES_AT_ONCE);
        while n > 0 {
            if lane < n {
                let other = room[UNIT_POS as usize + n];
                room[UNIT_POS as usize] += other;
            }
            sync_cube();
            n /= 2;
        }
        if lane == 0 && at < end {
            let product = room[UNIT_POS as usize];
            if is_encoding {
                out[at] = max(product + bias[j], 0.0f32);
            } else {
                let mut flow = 0.0f32;
                if acts[at] > 0.0 {
                    flow = product;
                }
                out[at] = flow;
            }
        }
        sync_cube();
        first += ENTRIES_AT_ONCE;
    }
}

/// Nested reconstructions of a token as running sums over its list; their squared errors; and what flows back into each,
/// which is the sum of ∂L/∂x̂_m over a prefix and all longer ones. `residual` receives x − x̂ of the longest.
/// One cube per token.
/// Shapes: target [B, d_model] without b_dec, w_dec [d_sae, d_model], ends, factors [n_prefixes] (∂L/∂(‖x − x̂_m‖²) · 2)
///   → flow [n_prefixes, B, d_model], errors [n_prefixes, B], residual [B, d_model].
/// Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", equation 2.
#[cube(launch_unchecked)]
pub(crate) fn reconstruct(
    target: &[f32],
    row_ptr: &[u32],
    idx: &[u32],
    acts: &[f32],
    w_dec: &[f32],
    ends: &[u32],
    factors: &[f32],
    flow: &mut [f32],
    errors: &mut [f32],
    residual: &mut [f32],
    n_rows: usize,
    d_model: usize,
    n_prefixes: usize,
    #[comptime] wants_residual: bool,
) {
    let t = CUBE_POS;
    if t >= n_rows {
        terminate!();
    }
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let prefix_len = n_rows * d_model;
    let end = row_ptr[t + 1] as usize;
    let mut first = row_ptr[t] as usize;
    for p in 0..n_prefixes {
        let mut last = first;
        while last < end && idx[last] < ends[p] {
            last += 1;
        }
        let mut square = 0.0f32;
        let mut c = UNIT_POS as usize;
        while c < d_model {
            let at = t * d_model + c;
            let mut sum = 0.0f32;
            if p == 0 {
                sum -= target[at];
            } else {
                sum += flow[(p - 1) * prefix_len + at];
            }
            for e in first..last {
                sum += acts[e] * w_dec[idx[e] as usize * d_model + c];
            }
            flow[p * prefix_len + at] = sum;
            square += sum * sum;
            c += UNITS as usize;
        }
        let square = sum_of_cube(square, &mut room);
        if UNIT_POS == 0 {
            errors[p * n_rows + t] = square;
        }
        first = last;
    }
    // Every unit goes on with the columns that it wrote.
    let mut c = UNIT_POS as usize;
    while c < d_model {
        let at = t * d_model + c;
        if wants_residual {
            residual[at] = -flow[(n_prefixes - 1) * prefix_len + at];
        }
        let mut sum = 0.0f32;
        for i in 0..n_prefixes {
            let p = n_prefixes - 1 - i;
            sum += flow[p * prefix_len + at] * factors[p];
            flow[p * prefix_len + at] = sum;
        }
        c += UNITS as usize;
    }
}
