//! Row-wise arithmetic of the model on slices, written so that the compiler turns it into vector code.
//!
//! No fused multiply-adds and a fixed number of partial sums: the results are the same on every CPU.

use crate::config::Activation;

/// Partial sums of a reduction: one AVX-512 register of f32, or two of AVX.
const LANES: usize = 16;

/// Runs a piece of arithmetic with the widest vector instructions this CPU has.
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    // pulp compiles the closure, and all that is inlined into it, once for each level of instructions.
    pulp::Arch::new().dispatch(work)
}

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
                let mean = sum(x) / d as f32;
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

/// Softmax over the scores that each row sees, zero before and behind them: row i sees positions up to first_query + i,
/// and of these the last `window`.
/// Shapes: scores [rows, width].
pub(crate) fn causal_softmax(scores: &mut [f32], width: usize, first_query: usize, window: Option<usize>) {
    vectorised(
        #[inline(always)]
        || {
            for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                let n_seen = first_query + row + 1;
                let n_before = window.map_or(0, |window| n_seen.saturating_sub(window));
                // What fills the last register becomes zeros, and changes no maximum and no sum.
                let end = width.min(n_before + (n_seen - n_before).next_multiple_of(LANES));
                let (scores, unseen) = scores.split_at_mut(end);
                scores[n_seen..].fill(f32::NEG_INFINITY);
                let (before, seen) = scores.split_at_mut(n_before);
                before.fill(0.0);
                let max = max(seen);
                for score in seen.iter_mut() {
                    *score = exp(*score - max);
                }
                let scale = 1.0 / sum(seen);
                for score in seen.iter_mut() {
                    *score *= scale;
                }
                unseen.fill(0.0);
            }
        },
    );
}

/// x += y.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, &y) in x.iter_mut().zip(y) {
                *x += y;
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
    1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += x * x;
    }
    fold(sums, |a, b| a + b)
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += x;
    }
    fold(sums, |a, b| a + b)
}

#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (max, &x) in maxima.iter_mut().zip(chunk) {
            *max = larger(*max, x);
        }
    }
    for (max, &x) in maxima.iter_mut().zip(rest) {
        *max = larger(*max, x);
    }
    fold(maxima, larger)
}

/// Joins partial results by halves, always in the same order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// eˣ to within 3 units in the last place; 0 below −87.3 and NaN for NaN.
///
/// The library's `exp` is a call for each value and differs between systems. x = n·ln 2 + r with n whole, and a
/// polynomial for eʳ on |r| ≤ ln 2 / 2 (coefficients: Cephes, `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that n · LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2²³ rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.0;

    // Written as comparisons that let NaN through.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let n = clamped * LOG2_E + ROUND - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let e_r = p * r * r + r + 1.0;
    // 2ⁿ, put together from its exponent bits; n is between −126 and 127.
    let bits = ((n + ROUND).to_bits() << 23).wrapping_add(127 << 23);
    let y = e_r * f32::from_bits(bits);
    if x < LOWEST { 0.0 } else { y }
}

/// x / (1 + e⁻ˣ).
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x Φ(x). Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".
#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The same by tanh, as GPT-2 has it.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(ROOT_TWO_OVER_PI * (x + 0.044_715 * x * x * x)))
}

/// To within 3e-7.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near 0 the quotient would lose what is left after 1 − 1: there the series.
    let squared = x * x;
    let series = x * (1.0 + squared * (-1.0 / 3.0 + squared * (2.0 / 15.0 - squared * (17.0 / 315.0))));
    let quotient = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if squared < 0.02 { series } else { quotient }
}

/// The error function, to within 3e-7. Coefficients: Cephes, `erff` and `erfcf`.
#[inline(always)]
fn erf(x: f32) -> f32 {
    #[inline(always)]
    fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
        let mut sum = 0.0;
        for c in coefficients {
            sum = sum * x + c;
        }
        sum
    }
    const NEAR: [f32; 7] = [
        7.853_861_4e-5,
        -8.010_193_6e-4,
        5.188_327_7e-3,
        -2.685_381_2e-2,
        1.128_358_5e-1,
        -3.761_262_6e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const MIDDLE: [f32; 9] = [
        2.326_82e-2,
        -1.387_039_4e-1,
        3.687_424_7e-1,
        -5.824_733e-1,
        6.210_004_6e-1,
        -4.944_515_3e-1,
        3.404_88e-1,
        -2.741_127e-1,
        5.638_259_4e-1,
    ];
    // Beyond 2 what is missing to 1 is so small that the middle's polynomial, clamped, does for all.
    let size = x.abs();
    let near = x * polynomial(x * x, NEAR);
    let clamped = if size > 1.0 { size } else { 1.0 };
    let inverse = 1.0 / (clamped * clamped);
    let missing = exp(-clamped * clamped) / clamped * polynomial(inverse, MIDDLE);
    let far = if x < 0.0 { missing - 1.0 } else { 1.0 - missing };
    if size <= 1.0 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_the_last_places() {
        let mut worst: f64 = 0.0;
        for step in 0..=1_760_000 {
            let x = (f64::from(step) * 1e-4 - 88.0) as f32;
            if x < -87.3 {
                continue;
            }
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst <= 2.5e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_sees_no_later_position() {
        let mut scores = vec![1.0, 9.0, 9.0, 9.0, 0.0, 3.0_f32.ln(), 9.0, 9.0];
        causal_softmax(&mut scores, 4, 0, None);
        let expected = [1.0, 0.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.0];
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score - expected).abs() <= 1e-6, "{scores:?}");
        }
    }

    #[test]
    fn softmax_sees_no_further_back_than_its_window() {
        let mut scores = vec![5.0, 9.0, 9.0, 0.0, 3.0_f32.ln(), 9.0, 7.0, 1.0, 1.0];
        causal_softmax(&mut scores, 3, 0, Some(2));
        let expected = [1.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.0, 0.5, 0.5];
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score - expected).abs() <= 1e-6, "{scores:?}");
        }
    }

    /// By its series, and further out by the continued fraction of its distance to 1.
    fn erf_of(x: f64) -> f64 {
        let root_pi = std::f64::consts::PI.sqrt();
        if x.abs() > 2.0 {
            let size = x.abs();
            let fraction = (1..=100).rev().fold(size, |fraction, k| size + f64::from(k) / 2.0 / fraction);
            return x.signum() * (1.0 - (-size * size).exp() / root_pi / fraction);
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / root_pi
    }

    #[test]
    fn activations_are_those_of_their_definitions() {
        for step in -100_000..=100_000 {
            let x = f64::from(step) * 1e-4;
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            for (name, found, expected) in [
                ("silu", silu(x as f32), x / (1.0 + (-x).exp())),
                ("gelu", gelu(x as f32), 0.5 * x * (1.0 + erf_of(x / 2f64.sqrt()))),
                ("gelu_tanh", gelu_tanh(x as f32), 0.5 * x * (1.0 + inner.tanh())),
                ("tanh", tanh(x as f32), x.tanh()),
                ("erf", erf(x as f32), erf_of(x)),
            ] {
                let off = (f64::from(found) - expected).abs();
                assert!(off <= 4e-7 * expected.abs().max(1.0), "{name}({x}) = {found}, expected {expected}");
            }
        }
        assert!(gelu(f32::NAN).is_nan() && gelu_tanh(f32::NAN).is_nan() && silu(f32::NAN).is_nan());
    }

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
