//! Mutual information of two latents' firing (science.md §6), from counts.

use std::f64::consts::LN_2;

/// Over some tokens: how often parent and child fire, together and in all.
///
/// Invariant: n11 ≤ n_parent, n_child and n_parent + n_child − n11 ≤ n. Counts over disjoint tokens add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PairCounts {
    pub(crate) n11: u64,
    pub(crate) n_parent: u64,
    pub(crate) n_child: u64,
    pub(crate) n: u64,
}

impl PairCounts {
    /// Tokens with both, only the parent, only the child, and neither.
    pub(crate) fn cells(&self) -> [u64; 4] {
        let Self { n11, n_parent, n_child, n } = *self;
        [n11, n_parent - n11, n_child - n11, n + n11 - n_parent - n_child]
    }

    /// The same rates with the rarer one perfectly nested in the other.
    fn nested(&self) -> Self {
        Self { n11: self.n_parent.min(self.n_child), ..*self }
    }
}

/// I(parent; child) in bits: plug-in plus the Miller–Madow correction of its three entropies, which is
/// (m_p + m_c − m_pc − 1) / (2N ln 2) bits with m the numbers of non-empty cells: −1/(2N ln 2) for a full table, 0 for
/// a perfectly nested pair, +1/(2N ln 2) for duplicates. May therefore be slightly negative. 0 for no tokens.
///
/// Source: Miller 1955, "Note on the bias of information estimates".
pub(crate) fn mi_bits(counts: PairCounts) -> f64 {
    if counts.n == 0 {
        return 0.0;
    }
    let m_parent = n_non_empty(&[counts.n_parent, counts.n - counts.n_parent]);
    let m_child = n_non_empty(&[counts.n_child, counts.n - counts.n_child]);
    let m_pair = n_non_empty(&counts.cells());
    plug_in_mi_bits(counts) + (m_parent + m_child - m_pair - 1.0) / (2.0 * counts.n as f64 * LN_2)
}

/// I(parent; child) in bits, of the empirical distribution. 0 for no tokens.
pub(crate) fn plug_in_mi_bits(counts: PairCounts) -> f64 {
    let PairCounts { n_parent, n_child, n, .. } = counts;
    let [both, parent_only, child_only, neither] = counts.cells();
    let terms = [
        (both, n_parent, n_child),
        (parent_only, n_parent, n - n_child),
        (child_only, n - n_parent, n_child),
        (neither, n - n_parent, n - n_child),
    ];
    let n = n as f64;
    let term = |(joint, row, column): (u64, u64, u64)| match joint {
        0 => 0.0,
        _ => joint as f64 / n * (joint as f64 * n / (row as f64 * column as f64)).log2(),
    };
    // Rounding may leave an independent pair a hair below zero.
    terms.map(term).iter().sum::<f64>().max(0.0)
}

/// H of a gate that is on in `n_on` of `n` tokens, in bits, with the Miller–Madow correction (m − 1) / (2N ln 2).
pub(crate) fn entropy_bits(n_on: u64, n: u64) -> f64 {
    if n == 0 {
        return 0.0;
    }
    let term = |count: u64| match count {
        0 => 0.0,
        _ => -(count as f64 / n as f64) * (count as f64 / n as f64).log2(),
    };
    term(n_on) + term(n - n_on) + (n_non_empty(&[n_on, n - n_on]) - 1.0) / (2.0 * n as f64 * LN_2)
}

/// I / H(child): the share of the child's information that the parent carries. 0 for a child without information,
/// which is always on or always off.
pub(crate) fn mi_over_h_child(counts: PairCounts) -> f64 {
    ratio(mi_bits(counts), entropy_bits(counts.n_child, counts.n))
}

/// I over what a pair of these rates would have were the rarer latent perfectly nested in the other. 1 for nesting and
/// for duplicates; 0 where nesting itself carries no information (a latent that is always on or always off).
pub(crate) fn mi_over_nested(counts: PairCounts) -> f64 {
    ratio(mi_bits(counts), mi_bits(counts.nested()))
}

/// P(parent | child): over the tokens with the child; none of them, none.
pub(crate) fn p_parent_given_child(counts: PairCounts) -> Option<f64> {
    (counts.n_child > 0).then(|| counts.n11 as f64 / counts.n_child as f64)
}

/// P(child | parent): over the tokens with the parent; none of them, none.
pub(crate) fn p_child_given_parent(counts: PairCounts) -> Option<f64> {
    (counts.n_parent > 0).then(|| counts.n11 as f64 / counts.n_parent as f64)
}

/// (P(parent | child) − P(parent)) / (1 − P(parent)): 1 for nesting, 0 for chance, negative for exclusion. None where
/// the child never or the parent always fires.
pub(crate) fn excess(counts: PairCounts) -> Option<f64> {
    let p = counts.n_parent as f64 / counts.n as f64;
    (counts.n_parent < counts.n).then_some(())?;
    Some((p_parent_given_child(counts)? - p) / (1.0 - p))
}

/// ln of the odds ratio, ½ added to every cell so that empty ones stay finite (Haldane 1956, Anscombe 1956). Negative
/// for absorption.
pub(crate) fn log_odds(counts: PairCounts) -> f64 {
    let [both, parent_only, child_only, neither] = counts.cells().map(|count| count as f64 + 0.5);
    (both * neither / (parent_only * child_only)).ln()
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

fn n_non_empty(cells: &[u64]) -> f64 {
    cells.iter().filter(|&&count| count > 0).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn counts(n11: u64, n_parent: u64, n_child: u64, n: u64) -> PairCounts {
        PairCounts { n11, n_parent, n_child, n }
    }

    fn check(found: f64, expected: f64, tolerance: f64, what: &str) {
        assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
    }

    /// The table of science.md §6, at a size where the correction does not show.
    #[test]
    fn the_listed_examples_have_the_listed_values() {
        let n = 1_000_000_000;
        let rows = [
            ("nested", 0.01, 0.001, 1.0, 0.589, 1.0),
            ("duplicate", 0.001, 0.001, 1.0, 1.0, 1.0),
            ("dense parent", 0.5, 0.001, 1.0, 0.088, 1.0),
            ("partly nested", 0.01, 0.001, 0.769, 0.384, 0.651),
            ("absorbed", 0.01, 0.001, 0.0, 0.001, 0.002),
        ];
        for (what, p, q, p_given_c, over_h, over_nested) in rows {
            let share = |rate: f64| (rate * n as f64).round() as u64;
            let pair = counts(share(q * p_given_c), share(p), share(q), n);
            check(mi_over_h_child(pair), over_h, 5e-4, what);
            check(mi_over_nested(pair), over_nested, 5e-4, what);
            check(p_parent_given_child(pair).unwrap(), p_given_c, 1e-9, what);
            assert_eq!(log_odds(pair) < 0.0, what == "absorbed", "{what}");
        }
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let cases = golden::pairs();
        assert!(cases.len() >= 20, "{}", cases.len());
        for (pair, golden) in cases {
            let what = format!("{pair:?}");
            check(plug_in_mi_bits(pair), golden.mi_plug_in_bits, 1e-12, &what);
            check(mi_bits(pair), golden.mi_bits, 1e-12, &what);
            check(log_odds(pair), golden.log_odds, 1e-10, &what);
        }
    }

    #[test]
    fn roles_can_be_swapped() {
        for (pair, _) in golden::pairs() {
            let swapped = counts(pair.n11, pair.n_child, pair.n_parent, pair.n);
            check(mi_bits(swapped), mi_bits(pair), 1e-14, "mutual information");
            check(mi_over_nested(swapped), mi_over_nested(pair), 1e-12, "over nested");
        }
    }

    #[test]
    fn a_latent_that_never_or_always_fires_carries_nothing() {
        for pair in [counts(0, 0, 5, 10), counts(5, 10, 5, 10), counts(0, 4, 0, 10), counts(4, 4, 10, 10)] {
            check(mi_bits(pair), 0.0, 1e-15, "mutual information");
            check(mi_over_nested(pair), 0.0, 1e-15, "over nested");
            assert!(mi_over_h_child(pair).is_finite() && log_odds(pair).is_finite());
        }
        assert_eq!(mi_bits(counts(0, 0, 0, 0)), 0.0);
        assert_eq!(excess(counts(5, 10, 5, 10)), None);
        assert_eq!(excess(counts(0, 5, 0, 10)), None);
        check(excess(counts(5, 5, 5, 10)).unwrap(), 1.0, 1e-15, "excess");
    }

    /// Over many samples of an independent pair the plug-in estimate is too high by 1/(2N ln 2), the corrected one is
    /// not.
    #[test]
    fn the_correction_takes_the_bias_away() {
        use rand::Rng;
        let (n, n_samples) = (400_u64, 4000);
        let mut rng = artifact::random::stream(0, "recover/test/bias", 0, 0);
        let (mut plain, mut corrected) = (0.0, 0.0);
        for _ in 0..n_samples {
            let mut pair = PairCounts { n, ..PairCounts::default() };
            for _ in 0..n {
                let (parent, child) = (rng.next_u32().is_multiple_of(4), rng.next_u32().is_multiple_of(5));
                pair.n_parent += u64::from(parent);
                pair.n_child += u64::from(child);
                pair.n11 += u64::from(parent && child);
            }
            plain += plug_in_mi_bits(pair) / f64::from(n_samples);
            corrected += mi_bits(pair) / f64::from(n_samples);
        }
        let bias = 1.0 / (2.0 * n as f64 * LN_2);
        check(plain, bias, 0.1 * bias, "plug-in");
        check(corrected, 0.0, 0.1 * bias, "corrected");
    }
}
