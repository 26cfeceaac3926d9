//! Is a pair's dependence more than chance? G-test, Fisher's exact test, and the false discovery rate over many pairs.
//!
//! Both take tokens as independent, which they are not; the null by circular shifts does not. At millions of tokens
//! nearly everything is significant, so effect sizes lead.

use std::f64::consts::LN_2;

use statrs::function::erf::erfc;
use statrs::function::factorial::ln_factorial;

use crate::information::{PairCounts, plug_in_mi_bits};

/// Below this expected count in any cell, χ² is no good approximation.
const MIN_EXPECTED: f64 = 5.0;

/// Tables this much more probable than the observed one still count as equally probable: the probabilities carry the
/// rounding of four log-factorials. R's `fisher.test` uses the same.
const EQUALLY_PROBABLE: f64 = 1e-7;

/// P-value of independence: the G-test where every expected cell is at least 5, Fisher's exact test otherwise.
pub(crate) fn p_value(counts: PairCounts) -> f64 {
    if smallest_expected(counts) >= MIN_EXPECTED { g_test(counts) } else { fisher_exact(counts) }
}

/// G = 2 N I(nats), of the plug-in estimate; P(χ²₁ ≥ G) = erfc(√(G/2)).
pub(crate) fn g_test(counts: PairCounts) -> f64 {
    erfc((g_statistic(counts) / 2.0).sqrt())
}

pub(crate) fn g_statistic(counts: PairCounts) -> f64 {
    2.0 * counts.n as f64 * plug_in_mi_bits(counts) * LN_2
}

/// Two-sided: the probability, at fixed margins, of all tables that are no more probable than this one.
pub(crate) fn fisher_exact(counts: PairCounts) -> f64 {
    let PairCounts { n11, n_parent, n_child, n } = counts;
    if n_parent == 0 || n_child == 0 || n_parent == n || n_child == n {
        return 1.0;
    }
    let ln_probability = |k: u64| {
        let cells = PairCounts { n11: k, ..counts }.cells();
        -cells.map(ln_factorial).iter().sum::<f64>()
    };
    // The margins' factor is common to all tables and falls out of the ratio to the sum over all of them.
    let range = (n_parent + n_child).saturating_sub(n)..=n_parent.min(n_child);
    let logs: Vec<f64> = range.clone().map(ln_probability).collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let observed = ln_probability(n11) + EQUALLY_PROBABLE;
    let total: f64 = logs.iter().map(|log| (log - largest).exp()).sum();
    let tail: f64 = logs.iter().filter(|&&log| log <= observed).map(|log| (log - largest).exp()).sum();
    (tail / total).min(1.0)
}

/// Benjamini–Hochberg q-values, in the order of `p_values`: the smallest false discovery rate at which each would be
/// called. Source: Benjamini and Hochberg 1995.
pub(crate) fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[b].total_cmp(&p_values[a]));
    let n = p_values.len() as f64;
    let mut q_values = vec![1.0; p_values.len()];
    let mut smallest = 1.0_f64;
    for (n_larger, &i) in order.iter().enumerate() {
        let rank = n - n_larger as f64;
        smallest = smallest.min(p_values[i] * n / rank);
        q_values[i] = smallest;
    }
    q_values
}

fn smallest_expected(counts: PairCounts) -> f64 {
    let PairCounts { n_parent, n_child, n, .. } = counts;
    let rarer_row = n_parent.min(n - n_parent) as f64;
    let rarer_column = n_child.min(n - n_child) as f64;
    if n == 0 { 0.0 } else { rarer_row * rarer_column / n as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    /// Relative, since p-values span hundreds of orders of magnitude.
    fn check(found: f64, expected: f64, what: &str) {
        let tolerance = 1e-8 * expected.abs() + 1e-300;
        assert!((found - expected).abs() <= tolerance, "{what}: {found:e}, expected {expected:e}");
    }

    #[test]
    fn agrees_with_scipy() {
        let (mut n_g, mut n_fisher) = (0, 0);
        for (pair, golden) in golden::pairs() {
            let what = format!("{pair:?}");
            let tolerance = 1e-9 * golden.g + 1e-9;
            assert!((g_statistic(pair) - golden.g).abs() <= tolerance, "{what}: {}", g_statistic(pair));
            check(fisher_exact(pair), golden.p_fisher, &format!("fisher {what}"));
            if golden.smallest_expected >= 5.0 {
                n_g += 1;
                check(g_test(pair), golden.p_g, &format!("g {what}"));
                assert_eq!(p_value(pair), g_test(pair));
            } else {
                n_fisher += 1;
                assert_eq!(p_value(pair), fisher_exact(pair));
            }
        }
        assert!(n_g >= 5 && n_fisher >= 5, "{n_g} and {n_fisher}");
    }

    #[test]
    fn false_discovery_rate_agrees_with_scipy() {
        let families = golden::families();
        assert!(families.len() >= 3);
        for (p_values, expected) in families {
            let found = benjamini_hochberg(&p_values);
            for (found, expected) in found.iter().zip(&expected) {
                check(*found, *expected, "q");
            }
        }
    }

    #[test]
    fn no_pairs_no_q_values() {
        assert!(benjamini_hochberg(&[]).is_empty());
    }
}
