//! Row-wise arithmetic of the model on slices, written so that the compiler turns it into vector code.
//!
//! No fused multiply-adds and a fixed number of partial sums: the results are the same on every CPU.

use slices::{gelu, gelu_tanh, reduce, silu, tanh, vectorised};

use crate::config::Activation;

/// Root-mean-square norm of each row: y = x / √(mean x² + ε) · gain.
/// Shapes: x [T, d], gain [d] → [T, d].
/// Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
pub(crate) fn rms_norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
    let d = gain.len();
    let mut out = Vec::with_capacity(x.len());
    vectorised(
        #[inline(always)]
        || {
            for x in x.chunks_exact(d) {
                let scale = inverse_rms(x, eps);
                out.extend(x.iter().zip(gain).map(|(&x, &gain)| x * scale * gain));
            }
        },
    );
    out
}

/// Layer norm of each row: y = (x − mean) / √(variance + ε) · gain + bias.
/// Shapes: x [T, d], gain and bias [d] → [T, d].
/// Source: Ba et al. 2016, "Layer Normalization", equation 3.
pub(crate) fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let d = gain.len();
    let mut out = Vec::with_capacity(x.len());
    vectorised(
        #[inline(always)]
        || {
            for x in x.chunks_exact(d) {
                let start = out.len();
                let mean = reduce(x, x, |x, _| x) / d as f32;
                out.extend(x.iter().map(|&x| x - mean));
                let scale = inverse_rms(&out[start..], eps);
                for ((y, &gain), &bias) in out[start..].iter_mut().zip(gain).zip(bias) {
                    *y = *y * scale * gain + bias;
                }
            }
        },
    );
    out
}

/// The norm of each head, in place: a head's width of values, `heads` of them at the start of each row of `width` from
/// `first` on. Shapes: rows [T, width], gain [d_head].
pub(crate) fn norm_heads(rows: &mut [f32], width: usize, heads: std::ops::Range<usize>, gain: &[f32], eps: f32) {
    let d = gain.len();
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(width) {
                for head in row[heads.start * d..heads.end * d].chunks_exact_mut(d) {
                    let scale = inverse_rms(head, eps);
                    head.iter_mut().zip(gain).for_each(|(x, &gain)| *x = *x * scale * gain);
                }
            }
        },
    );
}

/// Adds the same values to each row. Shapes: rows [T, d], bias [d].
pub(crate) fn add_to_rows(rows: &mut [f32], bias: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, &bias)| *x += bias);
            }
        },
    );
}

/// Bounds values to ± cap: cap · tanh(x / cap).
pub(crate) fn softcap(values: &mut [f32], cap: f32) {
    vectorised(
        #[inline(always)]
        || {
            for value in values {
                *value = cap * tanh(*value / cap);
            }
        },
    );
}

/// The activation of a feed-forward part without a gate, in place.
pub(crate) fn activate(values: &mut [f32], activation: Activation) {
    match activation {
        Activation::Silu => each(values, silu),
        Activation::Gelu => each(values, gelu),
        Activation::GeluTanh => each(values, gelu_tanh),
    }
}

fn each(values: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || values.iter_mut().for_each(|x| *x = f(*x)),
    );
}

/// The gated activation of the feed-forward part, in the place of the gate: activation(gate) · up.
/// Shapes: gate_up [T, 2·d_ffn], each row gate then up; the result is the first half of each row.
/// Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
pub(crate) fn activate_gated(gate_up: &mut [f32], d_ffn: usize, activation: Activation) {
    match activation {
        Activation::Silu => each_gated(gate_up, d_ffn, silu),
        Activation::Gelu => each_gated(gate_up, d_ffn, gelu),
        Activation::GeluTanh => each_gated(gate_up, d_ffn, gelu_tanh),
    }
}

fn each_gated(gate_up: &mut [f32], d_ffn: usize, f: impl Fn(f32) -> f32) {
    vectorised(
        #[inline(always)]
        || {
            for gate_up in gate_up.chunks_exact_mut(2 * d_ffn) {
                let (gate, up) = gate_up.split_at_mut(d_ffn);
                for (gate, &up) in gate.iter_mut().zip(&*up) {
                    *gate = f(*gate) * up;
                }
            }
        },
    );
}

/// Rotates pairs (x[i], x[i + d/2]) of one head by the angles of its position.
/// Shapes: head [d_head], cos and sin [d_head / 2].
/// Source: Su et al. 2021, "RoFormer", equation 34, in the "rotate half" arrangement of pairs.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}

/// 1 / √(mean x² + ε).
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (reduce(x, x, |x, y| x * y) / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_of_a_width_that_fills_no_register() {
        let x: Vec<f32> = (0..21).map(|i| (i as f32 - 7.5).powi(2) + 1000.0).collect();
        let (gain, bias): (Vec<f32>, Vec<f32>) = (0..21).map(|i| (1.0 + i as f32, i as f32)).unzip();
        let out = layer_norm(&x, &gain, &bias, 1e-5);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / 21.0;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 21.0;
        for i in 0..21 {
            let normed = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
            let expected = normed * f64::from(gain[i]) + f64::from(bias[i]);
            assert!((f64::from(out[i]) - expected).abs() <= 1e-4, "{} against {expected}", out[i]);
        }
    }

    #[test]
    fn norm_of_a_width_that_fills_no_register() {
        let x: Vec<f32> = (0..21).map(|i| i as f32 - 7.5).collect();
        let gain: Vec<f32> = (0..21).map(|i| 1.0 + i as f32).collect();
        let out = rms_norm(&x, &gain, 1e-5);
        let mean_square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / 21.0;
        for i in 0..21 {
            let expected = f64::from(x[i]) / (mean_square + 1e-5).sqrt() * f64::from(gain[i]);
            assert!((f64::from(out[i]) - expected).abs() <= 1e-5, "{} against {expected}", out[i]);
        }
    }
}
