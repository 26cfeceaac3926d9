//! Percentile intervals from resampling groups: synsets, reviews or documents, since what they hold is not independent.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// How often each group is drawn in each resample. One set of resamples serves all scores of a task, so that their
/// differences are paired.
pub(crate) struct Resamples {
    n_groups: usize,
    /// [n_resamples, n_groups]
    n_draws: Vec<u32>,
}

impl Resamples {
    /// Draws as many groups as there are, with replacement, `n_resamples` times.
    pub(crate) fn draw(n_groups: usize, n_resamples: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut n_draws = vec![0; n_resamples * n_groups];
        for resample in n_draws.chunks_exact_mut(n_groups.max(1)) {
            for _ in 0..n_groups {
                resample[rng.random_range(0..n_groups)] += 1;
            }
        }
        Self { n_groups, n_draws }
    }

    /// The central 95 % of `statistic` over the resamples. It is given each column of `sums` [n_groups, N] summed over
    /// the groups drawn.
    pub(crate) fn interval<const N: usize>(
        &self,
        sums: &[[f64; N]],
        statistic: impl Fn([f64; N]) -> f64,
    ) -> (f64, f64) {
        let mut values: Vec<f64> = self
            .n_draws
            .chunks_exact(self.n_groups.max(1))
            .map(|resample| {
                let mut total = [0.0; N];
                for (&n, sums) in resample.iter().zip(sums) {
                    for (total, sum) in total.iter_mut().zip(sums) {
                        *total += f64::from(n) * sum;
                    }
                }
                statistic(total)
            })
            .collect();
        values.sort_by(f64::total_cmp);
        (quantile(&values, 0.025), quantile(&values, 0.975))
    }
}

/// Linear between the two nearest of the sorted values.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_the_normal_one() {
        // 400 groups of one, half of them 1: the mean's standard error is .025.
        let sums: Vec<[f64; 2]> = (0..400).map(|i| [f64::from(i % 2), 1.0]).collect();
        let resamples = Resamples::draw(400, 4000, &mut artifact::random::stream(0, "test", 0, 0));
        let (low, high) = resamples.interval(&sums, |[sum, n]| sum / n);
        assert!((low - (0.5 - 1.96 * 0.025)).abs() <= 0.004, "{low}");
        assert!((high - (0.5 + 1.96 * 0.025)).abs() <= 0.004, "{high}");
    }

    #[test]
    fn groups_are_drawn_whole() {
        // Two groups of 50: a resample holds both, or one of them twice.
        let sums = [[0.0, 50.0], [50.0, 50.0]];
        let resamples = Resamples::draw(2, 200, &mut artifact::random::stream(0, "test", 0, 0));
        assert_eq!(resamples.interval(&sums, |[sum, n]| sum / n), (0.0, 1.0));
    }

    #[test]
    fn quantiles_lie_between_the_values() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[5.0], 0.025), 5.0);
    }
}
