//! Adam in place, as `crate::adam` defines it: the whole gradient clipped, a learning rate per level, decoder rows kept at
//! length 1 where they are constrained.

use cubecl::prelude::*;

use super::cube::{UNITS, sum_of_cube};

const EPSILON: f32 = 1e-8;

/// The numbers of a step, as a buffer: rates of the levels and of b_dec, decays, what corrects the moments' bias.
pub(crate) const N_NUMBERS: usize = 7;
pub(crate) const LR_COARSE: usize = 0;
pub(crate) const LR_FINE: usize = 1;
pub(crate) const LR: usize = 2;
pub(crate) const BETA1: usize = 3;
pub(crate) const BETA2: usize = 4;
pub(crate) const FIRST_SCALE: usize = 5;
pub(crate) const SECOND_SCALE: usize = 6;

/// The whole gradient's norm, and the factor that brings it to at most `max_norm`. One cube.
/// Shapes: squares [d_sae], grad_b_dec [d_model] → norm_and_clip [2].
#[cube(launch_unchecked)]
pub(crate) fn clip(
    squares: &[f32],
    grad_b_dec: &[f32],
    norm_and_clip: &mut [f32],
    d_sae: usize,
    d_model: usize,
    max_norm: f32,
) {
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut sum = 0.0f32;
    let mut j = UNIT_POS as usize;
    while j < d_sae {
        sum += squares[j];
        j += UNITS as usize;
    }
    let mut c = UNIT_POS as usize;
    while c < d_model {
        sum += grad_b_dec[c] * grad_b_dec[c];
        c += UNITS as usize;
    }
    let sum = sum_of_cube(sum, &mut room);
    if UNIT_POS == 0 {
        let norm = sum.sqrt();
        norm_and_clip[0] = norm;
        let mut factor = 1.0f32;
        if norm > max_norm {
            factor = max_norm / norm;
        }
        norm_and_clip[1] = factor;
    }
}

/// One element's new value.
#[cube]
fn updated(w: f32, m: &mut [f32], v: &mut [f32], at: usize, g: f32, lr: f32, numbers: &[f32]) -> f32 {
    let beta1 = numbers[BETA1];
    let beta2 = numbers[BETA2];
    let first = beta1 * m[at] + (1.0 - beta1) * g;
    let second = beta2 * v[at] + (1.0 - beta2) * g * g;
    m[at] = first;
    v[at] = second;
    w - lr * numbers[FIRST_SCALE] * first / (second.sqrt() * numbers[SECOND_SCALE] + EPSILON)
}

/// One matrix. One cube per latent. Shapes: w, m, v, grad [d_sae, d_model], along [d_sae].
#[cube(launch_unchecked)]
pub(crate) fn update_rows(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    along: &[f32],
    norm_and_clip: &[f32],
    numbers: &[f32],
    n_coarse: usize,
    d_sae: usize,
    d_model: usize,
    #[comptime] is_constrained: bool,
) {
    let j = CUBE_POS;
    if j >= d_sae {
        terminate!();
    }
    let mut room = Shared::<[f32]>::new_slice(UNITS as usize);
    let factor = norm_and_clip[1];
    let lr = if j < n_coarse { numbers[LR_COARSE] } else { numbers[LR_FINE] };
    let mut square = 0.0f32;
    let mut c = UNIT_POS as usize;
    while c < d_model {
        let at = j * d_model + c;
        let old = w[at];
        let mut g = grad[at];
        if is_constrained {
            g -= along[j] * old;
        }
        let new = updated(old, m, v, at, g * factor, lr, numbers);
        w[at] = new;
        square += new * new;
        c += UNITS as usize;
    }
    if is_constrained {
        let square = sum_of_cube(square, &mut room);
        // A row of zeros stays.
        if square > 0.0 {
            let length = square.sqrt();
            let mut c = UNIT_POS as usize;
            while c < d_model {
                w[j * d_model + c] /= length;
                c += UNITS as usize;
            }
        }
    }
}

/// A vector: b_enc with the levels' rates, or b_dec with its own. A unit per element. Shapes: all [n].
#[cube(launch_unchecked)]
pub(crate) fn update_vector(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    norm_and_clip: &[f32],
    numbers: &[f32],
    n_coarse: usize,
    n: usize,
    #[comptime] is_by_level: bool,
) {
    let i = CUBE_POS * UNITS as usize + UNIT_POS as usize;
    if i < n {
        let of_level = if i < n_coarse { numbers[LR_COARSE] } else { numbers[LR_FINE] };
        let lr = if is_by_level { of_level } else { numbers[LR] };
        let new = updated(w[i], m, v, i, grad[i] * norm_and_clip[1], lr, numbers);
        w[i] = new;
    }
}
