//! What a replaced activation costs the model, from logits.

use slices::{exp, max, reduce, vectorised};

/// Entries added up in f32 before the sum goes on in f64.
const BLOCK: usize = 1024;

/// Over the vocabulary, at one position of the clean model.
pub(crate) struct CleanLogits<'a> {
    logits: &'a [f32],
    probabilities: Vec<f32>,
    log_normaliser: f64,
}

impl<'a> CleanLogits<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let mut probabilities = logits.to_vec();
        let (max, normaliser) = vectorised(
            #[inline(always)]
            || {
                let max = max(logits);
                probabilities.iter_mut().for_each(|x| *x = exp(*x - max));
                let normaliser = blocks_sum(&probabilities, |exp| exp);
                let scale = (1.0 / normaliser) as f32;
                probabilities.iter_mut().for_each(|x| *x *= scale);
                (max, normaliser)
            },
        );
        Self { logits, probabilities, log_normaliser: f64::from(max) + normaliser.ln() }
    }

    /// KL(clean ‖ other) = Σ_v p_v (a_v − b_v) − lse(a) + lse(b), in nats; a and b are the clean and the other logits,
    /// p = softmax(a). `other_log_normaliser` is lse(b).
    pub(crate) fn kl(&self, other: &[f32], other_log_normaliser: f64) -> f64 {
        assert_eq!(other.len(), self.logits.len(), "one vocabulary");
        let total: f64 = vectorised(
            #[inline(always)]
            || {
                let logits = self.logits.chunks(BLOCK).zip(other.chunks(BLOCK));
                let mut differences = [0.0; BLOCK];
                let of_block = |(p, (a, b)): (&[f32], (&[f32], &[f32]))| {
                    differences.iter_mut().zip(a).zip(b).for_each(|((difference, a), b)| *difference = a - b);
                    f64::from(reduce(p, &differences[..p.len()], |p, difference| p * difference))
                };
                self.probabilities.chunks(BLOCK).zip(logits).map(of_block).sum()
            },
        );
        total - self.log_normaliser + other_log_normaliser
    }
}

/// lse(logits) = log Σ_v exp(logit_v), so that −log p(v) = lse − logit_v.
pub(crate) fn log_normaliser(logits: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let max = max(logits);
            f64::from(max) + blocks_sum(logits, |logit| exp(logit - max)).ln()
        },
    )
}

/// Σ term(x).
#[inline(always)]
fn blocks_sum(x: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    x.chunks(BLOCK).map(|block| f64::from(reduce(block, block, |x, _| term(x)))).sum()
}

#[cfg(test)]
mod tests {
    use artifact::random::stream;
    use rand::RngExt;

    use super::*;

    fn logits(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = stream(seed, "test", 0, 0);
        (0..n).map(|_| 30.0 * rng.random::<f32>() - 12.0).collect()
    }

    fn naive_log_softmax(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        logits.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
    }

    #[test]
    fn cross_entropy_and_kl_are_those_of_the_definition() {
        for n in [1, 5, 16, 1000, 1024, 49_152] {
            let (a, b) = (logits(1, n), logits(2, n));
            let (log_p, log_q) = (naive_log_softmax(&a), naive_log_softmax(&b));
            let clean = CleanLogits::new(&a);
            for (v, log_p) in log_p.iter().enumerate() {
                assert!((clean.log_normaliser - f64::from(a[v]) + log_p).abs() <= 1e-5);
            }
            let lse = log_normaliser(&b);
            assert!((lse - f64::from(b[0]) + log_q[0]).abs() <= 1e-5);
            let expected: f64 = log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum();
            let found = clean.kl(&b, lse);
            assert!((found - expected).abs() <= 1e-5 * expected.max(1.0), "{n}: {found} and {expected}");
        }
    }

    #[test]
    fn a_model_left_as_it_is_loses_nothing() {
        let a = logits(3, 5000);
        assert_eq!(CleanLogits::new(&a).kl(&a, log_normaliser(&a)), 0.0);
    }

    #[test]
    fn nan_is_passed_on() {
        let mut a = logits(3, 100);
        a[40] = f32::NAN;
        assert!(log_normaliser(&a).is_nan());
    }
}
