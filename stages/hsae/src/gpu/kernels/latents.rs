//! Latent by latent: gradients from its entries, summed in the order of tokens, and what clipping needs of them.

use cubecl::prelude::*;

use super::cube::{UNITS, count_of_cube, sum_of_cube};

/// A cube works on so many columns, each with so many units that share a latent's entries.
pub(crate) const COLUMNS: usize = 64;
const SHARES: usize = UNITS as usize / COLUMNS;

/// ∂W_dec[j] = Σ_t z · flow[t], ∂W_enc[j] = Σ_t g x[t] and ∂b_enc[j] = Σ_t g, where g is what flows back into the
/// activation. One cube per latent along x and y, and per COLUMNS along z, so that a latent that is active on very many
/// tokens has several.
/// Shapes: x [B, d_model], flow [n_prefixes, B, d_model], acts, grad_acts [nnz] by `entry`; col_ptr, row, entry: see
///   `columns`; ends [n_prefixes] → grads shaped like the parameters, firings, act_sums [d_sae].
#[cube(launch_unchecked)]
pub(crate) fn gradients(
    x: &[f32],
    flow: &[f32],
    acts: &[f32],
    grad_acts: &[f32],
    col_ptr: &[u32],
    row: &[u32],
    entry: &[u32],
    ends: &[u32],
    grad_enc: &mut [f32],
    grad_dec: &mut [f32],
    grad_b_enc: &mut [f32],
    firings: &mut [u32],
    act_sums: &mut [f32],
    n_rows: usize,
    d_sae: usize,
    d_model: usize,
) {
    let j = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize;
    if j >= d_sae {
        terminate!();
    }
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut decoder_room = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut counts = Shared::<[u32]>::new_slice(UNITS as usize);
    let first = col_ptr[j] as usize;
    let end = col_ptr[j + 1] as usize;

    // What all columns have in common.
    if CUBE_POS_Z == 0 {
        let mut bias = 0.0f32;
        let mut act_sum = 0.0f32;
        let mut n = 0u32;
        let mut at = first + UNIT_POS as usize;
        while at < end {
            let e = entry[at] as usize;
            bias += grad_acts[e];
            act_sum += acts[e];
            if acts[e] > 0.0 {
                n += 1;
            }
            at += UNITS as usize;
        }
        let bias = sum_of_cube(bias, &mut room);
        let act_sum = sum_of_cube(act_sum, &mut room);
        let n = count_of_cube(n, &mut counts);
        if UNIT_POS == 0 {
            grad_b_enc[j] = bias;
            act_sums[j] = act_sum;
            firings[j] = n;
        }
    }

    let mut p = 0usize;
    while ends[p] as usize <= j {
        p += 1;
    }
    let flow_start = p * n_rows * d_model;
    let column = UNIT_POS as usize % COLUMNS;
    let share = UNIT_POS as usize / COLUMNS;
    let c = CUBE_POS_Z as usize * COLUMNS + column;
    let mut encoder = 0.0f32;
    let mut decoder = 0.0f32;
    if c < d_model {
        let mut at = first + share;
        while at < end {
            let e = entry[at] as usize;
            let from = row[at] as usize * d_model + c;
            encoder += grad_acts[e] * x[from];
            decoder += acts[e] * flow[flow_start + from];
            at += SHARES;
        }
    }
    room[UNIT_POS as usize] = encoder;
    decoder_room[UNIT_POS as usize] = decoder;
    sync_cube();
    if share == 0 && c < d_model {
        for other in 1..SHARES {
            encoder += room[other * COLUMNS + column];
            decoder += decoder_room[other * COLUMNS + column];
        }
        grad_enc[j * d_model + c] = encoder;
        grad_dec[j * d_model + c] = decoder;
    }
}

/// How far a decoder row's gradient goes along the row, and the squares of the latent's gradients without that part, where
/// rows are constrained to length 1. One cube per latent.
/// Shapes: grads and w_dec like the parameters → along, squares [d_sae].
/// Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on training.
#[cube(launch_unchecked)]
pub(crate) fn measure(
    grad_enc: &[f32],
    grad_dec: &[f32],
    grad_b_enc: &[f32],
    w_dec: &[f32],
    along: &mut [f32],
    squares: &mut [f32],
    d_sae: usize,
    d_model: usize,
    #[comptime] is_constrained: bool,
) {
    let j = CUBE_POS;
    if j >= d_sae {
        terminate!();
    }
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut encoder = 0.0f32;
    let mut decoder = 0.0f32;
    let mut product = 0.0f32;
    let mut c = UNIT_POS as usize;
    while c < d_model {
        let g_enc = grad_enc[j * d_model + c];
        let g_dec = grad_dec[j * d_model + c];
        encoder += g_enc * g_enc;
        decoder += g_dec * g_dec;
        product += g_dec * w_dec[j * d_model + c];
        c += UNITS as usize;
    }
    let encoder = sum_of_cube(encoder, &mut room);
    let decoder = sum_of_cube(decoder, &mut room);
    let product = sum_of_cube(product, &mut room);
    if UNIT_POS == 0 {
        let bias = grad_b_enc[j];
        if is_constrained {
            along[j] = product;
            squares[j] = max(decoder - product * product, 0.0f32) + encoder + bias * bias;
        } else {
            along[j] = 0.0f32;
            squares[j] = decoder + encoder + bias * bias;
        }
    }
}

/// Rows of some latents, one after another. One cube per latent. Shapes: matrix [d_sae, d], latents [n] → rows [n, d].
#[cube(launch_unchecked)]
pub(crate) fn gather(matrix: &[f32], latents: &[u32], rows: &mut [f32], n: usize, d: usize) {
    let i = CUBE_POS;
    if i >= n {
        terminate!();
    }
    let from = latents[i] as usize * d;
    let mut c = UNIT_POS as usize;
    while c < d {
        rows[i * d + c] = matrix[from + c];
        c += UNITS as usize;
    }
}

/// Adds rows to those of some latents. One cube per latent. Shapes: rows [n, d], latents [n], matrix [d_sae, d].
#[cube(launch_unchecked)]
pub(crate) fn add_rows(rows: &[f32], latents: &[u32], matrix: &mut [f32], n: usize, d: usize) {
    let i = CUBE_POS;
    if i >= n {
        terminate!();
    }
    let to = latents[i] as usize * d;
    let mut c = UNIT_POS as usize;
    while c < d {
        matrix[to + c] += rows[i * d + c];
        c += UNITS as usize;
    }
}
