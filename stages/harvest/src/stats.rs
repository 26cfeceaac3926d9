//! Mean and mean norm of the training rows, by which training normalises and the final SAE is folded.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// A row is an outlier above this many times the median norm.
const OUTLIER: f32 = 10.0;

/// Running sums, in the order of the rows.
pub(crate) struct Stats {
    n: u64,
    sum: Vec<f64>,
    sum_of_norms: f64,
    norms: Vec<f32>,
}

impl Stats {
    pub(crate) fn new(d_model: usize) -> Self {
        Self { n: 0, sum: vec![0.0; d_model], sum_of_norms: 0.0, norms: Vec::new() }
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
            self.norms.push(squares.sqrt() as f32);
            self.n += 1;
        }
    }

    /// Rows whose norm is more than ten times the median, and their share of Σ‖x‖²: attention sinks that slipped in. A
    /// few of them can be most of the variance, and so decide every figure that is a share of it.
    pub(crate) fn outliers(&self) -> (usize, f64) {
        let mut sorted = self.norms.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let squares = |norms: &mut dyn Iterator<Item = f32>| norms.map(|norm| f64::from(norm).powi(2)).sum::<f64>();
        let beyond = || self.norms.iter().copied().filter(|&norm| norm > OUTLIER * median);
        let share = squares(&mut beyond()) / squares(&mut self.norms.iter().copied()).max(f64::MIN_POSITIVE);
        (beyond().count(), share)
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
