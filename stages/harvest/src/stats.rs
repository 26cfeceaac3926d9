//! Mean and mean norm of the training rows, by which training normalises and the final SAE is folded.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// A row is an outlier above this many times the median norm.
const OUTLIER: f32 = 10.0;

/// Norms are counted as far as these bits of an f32 tell them apart: to within 1 in 2,048. So memory does not grow with
/// the rows.
const NORM_BITS: u32 = !0 << 12;

/// Running sums, in the order of the rows.
pub(crate) struct Stats {
    n: u64,
    sum: Vec<f64>,
    sum_of_norms: f64,
    /// By norm, rounded down: its bits, which are in the order of the numbers; rows, and their Σ‖x‖².
    norms: BTreeMap<u32, (u64, f64)>,
}

impl Stats {
    pub(crate) fn new(d_model: usize) -> Self {
        Self { n: 0, sum: vec![0.0; d_model], sum_of_norms: 0.0, norms: BTreeMap::new() }
    }

    pub(crate) fn n_rows(&self) -> u64 {
        self.n
    }

    /// x: [n, d_model], row-major.
    pub(crate) fn add(&mut self, x: &[f32]) {
        for row in x.chunks_exact(self.sum.len()) {
            let mut squares = 0.0;
            for (sum, &value) in self.sum.iter_mut().zip(row) {
                let value = f64::from(value);
                *sum += value;
                squares += value * value;
            }
            self.sum_of_norms += squares.sqrt();
            let (n_rows, sum_of_squares) = self.norms.entry((squares.sqrt() as f32).to_bits() & NORM_BITS).or_default();
            *n_rows += 1;
            *sum_of_squares += squares;
            self.n += 1;
        }
    }

    /// Rows whose norm is more than ten times the median, and their share of Σ‖x‖²: attention sinks that slipped in. A
    /// few of them can be most of the variance, and so decide every figure that is a share of it.
    pub(crate) fn outliers(&self) -> (u64, f64) {
        let mut n_below = 0;
        let median = self.norms.iter().find_map(|(&norm, (n_rows, _))| {
            n_below += n_rows;
            (n_below > self.n / 2).then_some(f32::from_bits(norm))
        });
        let limit = (OUTLIER * median.unwrap_or(0.0)).to_bits();
        let beyond = self.norms.range(limit + 1..).fold((0, 0.0), |sum, (_, of)| (sum.0 + of.0, sum.1 + of.1));
        let all: f64 = self.norms.values().map(|(_, squares)| squares).sum();
        (beyond.0, beyond.1 / all.max(f64::MIN_POSITIVE))
    }

    /// `mean` [d_model], `mean_norm` = mean ‖x‖, and `scale`, by which x has a mean norm of √d_model.
    ///
    /// Errors: there are no rows, or all are zero.
    pub(crate) fn finish(&self) -> Result<Value> {
        ensure!(self.n > 0, "no rows to train on");
        let n = self.n as f64;
        let mean_norm = self.sum_of_norms / n;
        ensure!(mean_norm > 0.0, "all activations are zero");
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / n).collect();
        let scale = (mean.len() as f64).sqrt() / mean_norm;
        let (n_outliers, outlier_share) = self.outliers();
        Ok(json!({
            "mean": mean,
            "mean_norm": mean_norm,
            "scale": scale,
            "n_outliers": n_outliers,
            "outlier_share": outlier_share,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_rows_have_the_wanted_norm() {
        let mut stats = Stats::new(2);
        stats.add(&[3.0, 4.0, 0.0, 1.0]);
        stats.add(&[0.0, -3.0]);
        let stats = stats.finish().unwrap();
        assert_eq!(stats["mean"], json!([1.0, 2.0 / 3.0]));
        assert_eq!(stats["mean_norm"], json!(3.0));
        assert!((stats["scale"].as_f64().unwrap() * 3.0 - 2f64.sqrt()).abs() <= 1e-15);
    }

    #[test]
    fn outliers_are_counted() {
        let mut stats = Stats::new(1);
        stats.add(&[1.0, -1.1, 0.9, 1.0, 9.0, -11.0, 1.0]);
        let (n_outliers, share) = stats.outliers();
        assert_eq!(n_outliers, 1);
        assert!((share - 121.0 / (121.0 + 81.0 + 1.21 + 0.81 + 3.0)).abs() <= 1e-6, "{share}");
    }

    #[test]
    fn no_rows_and_no_activation_are_errors() {
        assert!(Stats::new(2).finish().is_err());
        let mut zeros = Stats::new(2);
        zeros.add(&[0.0; 4]);
        assert!(zeros.finish().is_err());
    }
}
