//! Row-wise arithmetic of the model on slices, written so that the compiler turns it into vector code.
//!
//! No fused multiply-adds and a fixed number of partial sums: the results are the same on every CPU.

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
                let scale = 1.0 / (sum_of_squares(x) / d as f32 + eps).sqrt();
                out.extend(x.iter().zip(gain).map(|(&x, &gain)| x * scale * gain));
            }
        },
    );
    out
}

/// The gated activation of the feed-forward part, in the place of the gate: silu(gate) · up, silu(g) = g / (1 + e⁻ᵍ).
/// Shapes: gate_up [T, 2·d_ffn], each row gate then up; the result is the first half of each row.
/// Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
pub(crate) fn swiglu(gate_up: &mut [f32], d_ffn: usize) {
    vectorised(
        #[inline(always)]
        || {
            for gate_up in gate_up.chunks_exact_mut(2 * d_ffn) {
                let (gate, up) = gate_up.split_at_mut(d_ffn);
                for (gate, &up) in gate.iter_mut().zip(&*up) {
                    *gate = *gate / (1.0 + exp(-*gate)) * up;
                }
            }
        },
    );
}

/// Softmax over the first `n_seen` scores of each row, zero behind them; row i sees `n_seen(i)`.
/// Shapes: scores [rows, width].
pub(crate) fn causal_softmax(scores: &mut [f32], width: usize, first_query: usize) {
    vectorised(
        #[inline(always)]
        || {
            for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
                let (seen, unseen) = scores.split_at_mut(first_query + row + 1);
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
        causal_softmax(&mut scores, 4, 0);
        let expected = [1.0, 0.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.0];
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score - expected).abs() <= 1e-6, "{scores:?}");
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
