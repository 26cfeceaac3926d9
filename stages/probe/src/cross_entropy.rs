//! What a replaced activation costs the model, from logits.

/// Over the vocabulary, at one position of the clean model.
pub(crate) struct CleanLogits<'a> {
    logits: &'a [f32],
    probabilities: Vec<f32>,
    log_normaliser: f64,
}

impl<'a> CleanLogits<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let mut probabilities = vec![0.0; logits.len()];
        let max = max(logits);
        for (probability, &logit) in probabilities.iter_mut().zip(logits) {
            *probability = exp_of_nonpositive(logit - max);
        }
        let normaliser = sum_of(&probabilities, |&exp| exp);
        let scale = (1.0 / normaliser) as f32;
        probabilities.iter_mut().for_each(|probability| *probability *= scale);
        Self { logits, probabilities, log_normaliser: f64::from(max) + normaliser.ln() }
    }

    /// KL(clean ‖ other) = Σ_v p_v (a_v − b_v) − lse(a) + lse(b), in nats; a and b are the clean and the other logits,
    /// p = softmax(a). `other_log_normaliser` is lse(b).
    pub(crate) fn kl(&self, other: &[f32], other_log_normaliser: f64) -> f64 {
        let mut total = 0.0;
        for ((p, a), b) in self.probabilities.chunks(BLOCK).zip(self.logits.chunks(BLOCK)).zip(other.chunks(BLOCK)) {
            total += block_sum(p.len(), |i| p[i] * (a[i] - b[i]));
        }
        total - self.log_normaliser + other_log_normaliser
    }
}

/// lse(logits) = log Σ_v exp(logit_v), so that −log p(v) = lse − logit_v.
pub(crate) fn log_normaliser(logits: &[f32]) -> f64 {
    let max = max(logits);
    f64::from(max) + sum_of(logits, |&logit| exp_of_nonpositive(logit - max)).ln()
}

/// Entries added up in f32 before the sum goes on in f64.
const BLOCK: usize = 1024;
/// Partial sums side by side, so that the compiler may use vector registers; their order is fixed.
const LANES: usize = 16;

fn sum_of(values: &[f32], term: impl Fn(&f32) -> f32) -> f64 {
    values.chunks(BLOCK).map(|block| block_sum(block.len(), |i| term(&block[i]))).sum()
}

#[inline(always)]
fn block_sum(n: usize, term: impl Fn(usize) -> f32) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let n_whole = n / LANES * LANES;
    for start in (0..n_whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    for i in n_whole..n {
        lanes[i - n_whole] += term(i);
    }
    lanes.iter().copied().map(f64::from).sum()
}

fn max(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = logits.chunks_exact(LANES);
    let rest = blocks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &logit)| *lane = lane.max(logit));
    }
    lanes.iter().copied().fold(rest, f32::max)
}

/// exp(x) for x ≤ 0 within 2e-7 of its value; 0 below −87. The library's function is exact to the last bit and cannot be
/// put in vector registers, and there are 49,152 of them a position. Source: the expf of the Cephes library.
#[inline(always)]
fn exp_of_nonpositive(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.0;
    // A comparison, and not `max`, so that NaN goes through.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let n = clamped * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut polynomial = 1.987_569_1e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        polynomial = polynomial * r + coefficient;
    }
    let exp_r = polynomial * r * r + r + 1.0;
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < LOWEST { 0.0 } else { exp_r * power }
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
    fn exponentials_are_right_to_seven_digits() {
        for i in 0..=870_000 {
            let x = -1e-4 * i as f32;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_of_nonpositive(x)) - expected).abs() / expected;
            assert!(error <= 2e-7, "exp({x}): off by {error}");
        }
        assert_eq!(exp_of_nonpositive(-100.0), 0.0);
        assert_eq!(exp_of_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_of_nonpositive(0.0), 1.0);
    }

    #[test]
    fn nan_is_passed_on() {
        let mut a = logits(3, 100);
        a[40] = f32::NAN;
        assert!(log_normaliser(&a).is_nan());
    }
}
