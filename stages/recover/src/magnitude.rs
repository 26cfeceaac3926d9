//! How much the child's magnitude tells of the parent's, where both fire: the second part of the hurdle, after the gates.

use std::f64::consts::LN_2;

use statrs::distribution::{ContinuousCDF, Normal};

/// Fewer co-active tokens give no estimate.
pub(crate) const MIN_CO_ACTIVE: usize = 200;

/// 1 − r² is taken to be at least this, so that equal ranks give a large and finite figure (about 20 bits).
const MIN_UNEXPLAINED: f64 = 1e-12;

/// Gaussian-copula mutual information in bits: −½ log2(1 − r²) with r the correlation of the normal scores of the
/// ranks (ties share their mean rank), minus its leading bias 1/(2n ln 2). None below [`MIN_CO_ACTIVE`] pairs.
///
/// Source: Ince et al. 2017, "A statistical framework for neuroimaging data analysis based on mutual information
/// estimated via a Gaussian copula".
pub(crate) fn copula_mi_bits(parent: &[f32], child: &[f32]) -> Option<f64> {
    let n = parent.len();
    (n >= MIN_CO_ACTIVE && child.len() == n).then_some(())?;
    let (parent, child) = (normal_scores(parent)?, normal_scores(child)?);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let spread = dot(&parent, &parent) * dot(&child, &child);
    // A constant magnitude tells nothing.
    let r2 = if spread > 0.0 { dot(&parent, &child).powi(2) / spread } else { 0.0 };
    Some(-0.5 * (1.0 - r2).max(MIN_UNEXPLAINED).log2() - 1.0 / (2.0 * n as f64 * LN_2))
}

/// Φ⁻¹(rank / (n + 1)), which has mean 0 by symmetry up to ties; centred all the same.
fn normal_scores(values: &[f32]) -> Option<Vec<f64>> {
    let normal = Normal::new(0.0, 1.0).ok()?;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut scores = vec![0.0; values.len()];
    let mut n_before = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = n_before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        let score = normal.inverse_cdf(rank / (values.len() as f64 + 1.0));
        tied.iter().for_each(|&i| scores[i] = score);
        n_before += tied.len();
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    scores.iter_mut().for_each(|score| *score -= mean);
    Some(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn agrees_with_scipy() {
        let cases = golden::copulas();
        assert_eq!(cases.len(), 3);
        for (parent, child, expected) in cases {
            let found = copula_mi_bits(&parent, &child).unwrap();
            assert!((found - expected).abs() <= 1e-8, "{found}, expected {expected}");
        }
    }

    #[test]
    fn few_pairs_have_no_estimate_and_equal_ranks_a_finite_one() {
        let values: Vec<f32> = (0..200).map(|i| i as f32).collect();
        assert_eq!(copula_mi_bits(&values[..199], &values[..199]), None);
        assert!(copula_mi_bits(&values, &values).unwrap().is_finite());
        assert!(copula_mi_bits(&values, &[1.0; 200]).unwrap() < 0.0);
    }
}
