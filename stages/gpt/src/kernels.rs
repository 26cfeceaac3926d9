//! Row-wise arithmetic of training on slices, written so that the compiler turns it into vector code.
//!
//! Products are fused with sums in `exp` alone, there on every CPU, and the number of partial sums is fixed: the results are the
//! same everywhere.

use slices::{exp, max, reduce, vectorised};

/// As `config.json` has it.
pub(crate) const NORM_EPSILON: f32 = 1e-5;

/// (x − mean x) / √(variance + ε) of each row, and the factors 1 / √(variance + ε).
/// Shapes: x [n, d] → normed [n, d], scales [n].
/// Source: Ba et al. 2016, "Layer Normalization", equation 3, without gain and bias.
pub(crate) fn normalise(x: &[f32], normed: &mut [f32], scales: &mut [f32]) {
    let d = x.len() / scales.len();
    vectorised(
        #[inline(always)]
        || {
            for ((x, normed), scale) in x.chunks_exact(d).zip(normed.chunks_exact_mut(d)).zip(scales) {
                let mean = reduce(x, x, |x, _| x) / d as f32;
                for (y, &x) in normed.iter_mut().zip(x) {
                    *y = x - mean;
                }
                let variance = reduce(normed, normed, |x, y| x * y) / d as f32;
                *scale = 1.0 / (variance + NORM_EPSILON).sqrt();
                normed.iter_mut().for_each(|y| *y *= *scale);
            }
        },
    );
}

/// The gradient of `normalise`, added to what is there or put in its place.
/// Shapes: d_normed [n, d], normed [n, d], scales [n] → dx [n, d].
pub(crate) fn normalise_back(d_normed: &[f32], normed: &[f32], scales: &[f32], is_first: bool, dx: &mut [f32]) {
    let d = normed.len() / scales.len();
    vectorised(
        #[inline(always)]
        || {
            let rows = d_normed.chunks_exact(d).zip(normed.chunks_exact(d)).zip(scales).zip(dx.chunks_exact_mut(d));
            for (((dy, y), &scale), dx) in rows {
                let mean = reduce(dy, dy, |dy, _| dy) / d as f32;
                let along = reduce(dy, y, |dy, y| dy * y) / d as f32;
                for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
                    let before = if is_first { 0.0 } else { *dx };
                    *dx = before + scale * (dy - mean - y * along);
                }
            }
        },
    );
}

const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// x Φ(x) by the approximation with tanh, as GPT-2 has it.
/// Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".
pub(crate) fn gelu(x: &[f32], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (y, &x) in out.iter_mut().zip(x) {
                *y = x * gate(x);
            }
        },
    );
}

/// The same, and the slope there in the place of x: the backward pass then knows neither exponentials nor divisions.
pub(crate) fn gelu_and_slope(x: &mut [f32], out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (y, slope) in out.iter_mut().zip(x) {
                let x = *slope;
                let gate = gate(x);
                *y = x * gate;
                let of_exponent = 2.0 * ROOT_TWO_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
                *slope = gate + x * gate * (1.0 - gate) * of_exponent;
            }
        },
    );
}

/// x ∘= y.
pub(crate) fn multiply_each(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, &y) in x.iter_mut().zip(y) {
                *x *= y;
            }
        },
    );
}

/// (1 + tanh u) / 2 = 1 / (1 + e⁻²ᵘ) with GPT-2's u.
#[inline(always)]
pub(crate) fn gate(x: f32) -> f32 {
    let u = ROOT_TWO_OVER_PI * (x + CUBIC * x * x * x);
    1.0 / (1.0 + exp(-2.0 * u))
}

/// The gradient by the scores in the place of the one by the weights: weight · (d − Σ weight · d) · scale, and zero where
/// a row sees nothing. Shapes as for `causal_softmax`; `weights` and `grads` in rows of the same stride.
pub(crate) fn causal_softmax_back(
    weights: &[f32],
    grads: &mut [f32],
    stride: usize,
    width: usize,
    first_query: usize,
    scale: f32,
) {
    vectorised(
        #[inline(always)]
        || {
            for (row, (weights, grads)) in weights.chunks(stride).zip(grads.chunks_mut(stride)).enumerate() {
                let (seen, unseen) = grads[..width].split_at_mut(first_query + row + 1);
                let weights = &weights[..seen.len()];
                let mean = reduce(weights, seen, |w, d| w * d);
                for (d, &w) in seen.iter_mut().zip(weights) {
                    *d = w * (*d - mean) * scale;
                }
                unseen.fill(0.0);
            }
        },
    );
}

/// The gradient of the loss by the logits, in their place, and the sum of the losses −log softmax(logits)[target].
/// Shapes: logits [n, n_vocab], targets [n]. Each row's gradient is multiplied by `scale`.
pub(crate) fn cross_entropy(logits: &mut [f32], targets: &[u32], scale: f32) -> f64 {
    let n_vocab = logits.len() / targets.len();
    vectorised(
        #[inline(always)]
        || {
            let mut sum = 0.0;
            for (row, &target) in logits.chunks_exact_mut(n_vocab).zip(targets) {
                let max = max(row);
                let of_target = f64::from(row[target as usize] - max);
                for value in row.iter_mut() {
                    *value = exp(*value - max);
                }
                let total = reduce(row, row, |x, _| x);
                sum += f64::from(total).ln() - of_target;
                let factor = scale / total;
                row.iter_mut().for_each(|value| *value *= factor);
                row[target as usize] -= scale;
            }
            sum
        },
    )
}

/// Which values dropout keeps: a hash of a value's place, keyed anew for each use, is compared with a threshold. The
/// finaliser of MurmurHash3 on 32 bits, which maps neighbouring places to bits that pass for independent; drawing as many
/// ChaCha numbers would cost as much as the products. The keys come from ChaCha.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    key: u32,
    /// A hash below this means that the value goes.
    threshold: u32,
    scale: f32,
}

impl Dropout {
    /// None where nothing is dropped.
    pub(crate) fn new(probability: f32, key: u32) -> Option<Self> {
        let threshold = (f64::from(probability) * f64::from(u32::MAX)) as u32;
        (probability > 0.0).then_some(Self { key, threshold, scale: 1.0 / (1.0 - probability) })
    }

    /// What the value at a place is multiplied by.
    #[inline(always)]
    fn factor(self, place: u32) -> f32 {
        let mut hash = place.wrapping_mul(0x9e37_79b9) ^ self.key;
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        if hash < self.threshold { 0.0 } else { self.scale }
    }

    /// Values that lie from `place` on, in place.
    pub(crate) fn apply(self, values: &mut [f32], place: usize) {
        vectorised(
            #[inline(always)]
            || {
                for (i, value) in values.iter_mut().enumerate() {
                    *value *= self.factor((place + i) as u32);
                }
            },
        );
    }

    /// The same into another vector.
    pub(crate) fn copy(self, values: &[f32], place: usize, out: &mut [f32]) {
        vectorised(
            #[inline(always)]
            || {
                for (i, (out, &value)) in out.iter_mut().zip(values).enumerate() {
                    *out = value * self.factor((place + i) as u32);
                }
            },
        );
    }

    /// x += dropped values.
    pub(crate) fn add(self, values: &[f32], place: usize, x: &mut [f32]) {
        vectorised(
            #[inline(always)]
            || {
                for (i, (x, &value)) in x.iter_mut().zip(values).enumerate() {
                    *x += value * self.factor((place + i) as u32);
                }
            },
        );
    }
}

/// Σ x y.
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || reduce(x, y, |x, y| x * y),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_drops_the_share_it_says_and_leaves_sums_as_they_were() {
        let n = 1_000_000;
        let mut ones = vec![1.0; n];
        Dropout::new(0.2, 12_345).unwrap().apply(&mut ones, 0);
        let n_dropped = ones.iter().filter(|&&value| value == 0.0).count();
        let off = (n_dropped as f64 - 0.2 * n as f64).abs();
        // Four standard deviations of a binomial count.
        assert!(off <= 1600.0, "{n_dropped}");
        assert!(ones.iter().all(|&value| value == 0.0 || value == 1.25));
        // Neighbours, and values a row apart, drop independently of each other.
        for lag in [1, 64, 384] {
            let n_both = (lag..n).filter(|&i| ones[i] == 0.0 && ones[i - lag] == 0.0).count();
            assert!((n_both as f64 - 0.04 * n as f64).abs() <= 1000.0, "{n_both} at {lag}");
        }
        assert!(Dropout::new(0.0, 1).is_none());
    }

    #[test]
    fn the_gradient_of_gelu_is_its_slope() {
        for step in -600..=600 {
            let x = step as f32 * 0.01;
            let value = |x: f64| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            };
            let (mut slope, mut with_slope) = ([x], [0.0]);
            gelu_and_slope(&mut slope, &mut with_slope);
            let expected = (value(f64::from(x) + 1e-5) - value(f64::from(x) - 1e-5)) / 2e-5;
            assert!((f64::from(slope[0]) - expected).abs() <= 3e-6, "{x}: {} against {expected}", slope[0]);
            let mut out = [0.0];
            gelu(&[x], &mut out);
            assert_eq!(out, with_slope);
            assert!((f64::from(out[0]) - value(f64::from(x))).abs() <= 3e-6);
        }
    }

    #[test]
    fn cross_entropy_of_a_row_that_can_be_told_by_hand() {
        let mut logits = [1.0f32.ln(), 3.0f32.ln(), 4.0f32.ln()];
        let loss = cross_entropy(&mut logits, &[1], 0.5);
        assert!((loss - (8.0f64 / 3.0).ln()).abs() <= 1e-6, "{loss}");
        for (found, expected) in logits.iter().zip([0.0625, 0.1875 - 0.5, 0.25]) {
            assert!((found - expected).abs() <= 1e-6, "{logits:?}");
        }
    }
}
