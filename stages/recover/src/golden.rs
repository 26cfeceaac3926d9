//! The table that tests/reference/recover_stats.py makes with scipy and scikit-learn.

use crate::information::PairCounts;

const TABLE: &str = include_str!("../../../tests/golden/recover_stats.txt");

pub(crate) struct Pair {
    pub(crate) mi_plug_in_bits: f64,
    pub(crate) mi_bits: f64,
    pub(crate) g: f64,
    pub(crate) p_g: f64,
    pub(crate) p_fisher: f64,
    pub(crate) smallest_expected: f64,
    pub(crate) log_odds: f64,
}

pub(crate) fn pairs() -> Vec<(PairCounts, Pair)> {
    lines("pair").map(|fields| (counts(&fields), pair(&fields[4..]))).collect()
}

/// P-values and their q-values.
pub(crate) fn families() -> Vec<(Vec<f64>, Vec<f64>)> {
    let halves = |fields: Vec<f64>| {
        let (p_values, q_values) = fields.split_at(fields.len() / 2);
        (p_values.to_vec(), q_values.to_vec())
    };
    lines("bh").map(halves).collect()
}

/// Magnitudes of parent and child, and the Gaussian-copula mutual information in bits.
pub(crate) fn copulas() -> Vec<(Vec<f32>, Vec<f32>, f64)> {
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
    lines("copula")
        .map(|fields| {
            let (mi_bits, values) = fields.split_first().unwrap();
            let (parent, child) = values.split_at(values.len() / 2);
            (narrow(parent), narrow(child), *mi_bits)
        })
        .collect()
}

fn lines(kind: &'static str) -> impl Iterator<Item = Vec<f64>> {
    let lines = TABLE.lines().filter_map(move |line| line.strip_prefix(kind)?.strip_prefix(' '));
    lines.map(|line| line.split_whitespace().map(|field| field.parse().unwrap()).collect())
}

fn counts(fields: &[f64]) -> PairCounts {
    let count = |i: usize| fields[i] as u64;
    PairCounts { n11: count(0), n_parent: count(1), n_child: count(2), n: count(3) }
}

fn pair(fields: &[f64]) -> Pair {
    let [mi_plug_in_bits, mi_bits, g, p_g, p_fisher, smallest_expected, log_odds] = fields.try_into().unwrap();
    Pair { mi_plug_in_bits, mi_bits, g, p_g, p_fisher, smallest_expected, log_odds }
}
