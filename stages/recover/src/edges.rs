//! What an edge is worth, measured on documents that had no part in choosing it (science.md §6).

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::documents::Documents;
use crate::firing::Firing;
use crate::information::{self, PairCounts, mi_bits};
use crate::magnitude::copula_mi_bits;
use crate::measure::mean;
use crate::resampling::{Resamples, Shifts, centred_interval, firings_per_doc, quantile, resampled_firings};
use crate::significance::{benjamini_hochberg, p_value};
use crate::tree::Tree;

/// The half of the documents that measures, with its resamples and shifts: made once for all SAEs.
pub(crate) struct Ground {
    resamples: Resamples,
    shifts: Shifts,
    of_rows: Vec<u32>,
    /// Rows in each resample.
    n: Vec<u64>,
}

impl Ground {
    pub(crate) fn new(documents: &Documents, seed: u64, n_bootstrap: usize, n_shifts: usize) -> Self {
        let resamples = Resamples::draw(seed, "recover/bootstrap-edges", documents.n_docs(), n_bootstrap);
        let shifts = Shifts::draw(seed, documents, n_shifts);
        let n = resamples.counts((0..documents.n_docs()).map(|doc| (doc, documents.rows(doc).len() as u64)));
        Self { of_rows: documents.of_rows(), resamples, shifts, n }
    }
}

/// One SAE's firing on the measuring half.
pub(crate) struct Measuring<'a> {
    ground: &'a Ground,
    firing: Firing,
    /// [d_sae, n_resamples]
    resampled_firings: Vec<Vec<u64>>,
}

/// An edge that could be measured: parent and child both fire on the measuring half.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    pub(crate) parent: u32,
    pub(crate) child: u32,
    pub(crate) counts: PairCounts,
    pub(crate) mi_bits: f64,
    /// None without resamples.
    pub(crate) mi_interval: Option<(f64, f64)>,
    /// In each circular shift.
    pub(crate) null_mi_bits: Vec<f64>,
    /// Their mean and their 97.5 % quantile; None without shifts.
    pub(crate) mi_null_bits: Option<f64>,
    pub(crate) mi_null_high_bits: Option<f64>,
    pub(crate) p_value: f64,
    /// Benjamini–Hochberg over all measured edges of one tree of one SAE in one mode.
    pub(crate) q_value: f64,
    pub(crate) mi_magnitude_bits: Option<f64>,
    pub(crate) resampled: Resampled,
}

/// Of an edge, in each resample of the documents. NaN where the child (or the parent) is silent in the resample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resampled {
    pub(crate) mi_bits: Vec<f64>,
    pub(crate) mi_over_h_child: Vec<f64>,
    pub(crate) mi_over_nested: Vec<f64>,
    pub(crate) p_parent_given_child: Vec<f64>,
    pub(crate) p_child_given_parent: Vec<f64>,
}

impl<'a> Measuring<'a> {
    /// `firing` over the rows of `ground`'s documents.
    pub(crate) fn new(ground: &'a Ground, firing: Firing) -> Self {
        let resampled_firings = resampled_firings(&firing, &ground.of_rows, &ground.resamples);
        Self { ground, firing, resampled_firings }
    }

    /// The edges of a tree whose child is `eligible`, children ascending; those with a silent end have nothing to
    /// measure and are left out.
    pub(crate) fn edges(&self, tree: &Tree, eligible: impl Fn(usize) -> bool) -> Vec<Measured> {
        let edges: Vec<_> = tree.edges().into_iter().filter(|&(child, _)| eligible(child as usize)).collect();
        let mut measured = self.pairs(&edges);
        measured.sort_by_key(|edge| edge.child);
        let p_values: Vec<f64> = measured.iter().map(|edge| edge.p_value).collect();
        for (edge, q_value) in measured.iter_mut().zip(benjamini_hochberg(&p_values)) {
            edge.q_value = q_value;
        }
        measured
    }

    /// Pairs given as (child, parent), parent by parent: its magnitudes are laid out by row once for all its children.
    pub(crate) fn pairs(&self, edges: &[(u32, u32)]) -> Vec<Measured> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        edges.iter().for_each(|&(child, parent)| children.entry(parent).or_default().push(child));
        let children: Vec<(u32, Vec<u32>)> = children.into_iter().collect();
        let by_row = || vec![0.0; self.firing.n_rows()];
        let measured = children.par_iter().map_init(by_row, |by_row, (parent, children)| {
            let (rows, magnitudes) = self.firing.latent(*parent as usize);
            rows.iter().zip(magnitudes).for_each(|(&row, &magnitude)| by_row[row as usize] = magnitude);
            let measured: Vec<_> = children.iter().filter_map(|&child| self.edge(*parent, child, by_row)).collect();
            rows.iter().for_each(|&row| by_row[row as usize] = 0.0);
            measured
        });
        measured.collect::<Vec<_>>().concat()
    }

    /// `by_row`: the parent's magnitude in each row, 0 where it is silent.
    fn edge(&self, parent: u32, child: u32, by_row: &[f32]) -> Option<Measured> {
        let (rows, magnitudes) = self.firing.latent(child as usize);
        let together = |row: u32| by_row[row as usize] > 0.0;
        let both: Vec<u32> = rows.iter().copied().filter(|&row| together(row)).collect();
        let counts = PairCounts {
            n11: both.len() as u64,
            n_parent: self.firing.n_firings(parent as usize),
            n_child: rows.len() as u64,
            n: self.firing.n_rows() as u64,
        };
        (counts.n_parent > 0 && counts.n_child > 0).then_some(())?;
        let resampled = self.resample(parent, child, &both);
        let null_mi_bits = self.null(counts, rows, by_row);
        let mut sorted = null_mi_bits.clone();
        sorted.sort_by(f64::total_cmp);
        let of_parent: Vec<f32> = both.iter().map(|&row| by_row[row as usize]).collect();
        let pairs = rows.iter().zip(magnitudes).filter(|(row, _)| together(**row));
        let of_child: Vec<f32> = pairs.map(|(_, &magnitude)| magnitude).collect();
        Some(Measured {
            parent,
            child,
            counts,
            mi_bits: mi_bits(counts),
            mi_interval: centred_interval(resampled.mi_bits.clone(), mi_bits(counts)),
            mi_null_bits: mean(null_mi_bits.iter().copied()),
            mi_null_high_bits: quantile(&sorted, 0.975),
            null_mi_bits,
            p_value: p_value(counts),
            q_value: 1.0,
            mi_magnitude_bits: copula_mi_bits(&of_parent, &of_child),
            resampled,
        })
    }

    /// Mutual information in each circular shift: the margins stay, the meetings change.
    fn null(&self, counts: PairCounts, child_rows: &[u32], by_row: &[f32]) -> Vec<f64> {
        let n11 = self.ground.shifts.n11(child_rows, |row| by_row[row] > 0.0);
        n11.into_iter().map(|n11| mi_bits(PairCounts { n11, ..counts })).collect()
    }

    fn resample(&self, parent: u32, child: u32, both: &[u32]) -> Resampled {
        let n11 = self.ground.resamples.counts(firings_per_doc(both, &self.ground.of_rows));
        let (n_parent, n_child) = (&self.resampled_firings[parent as usize], &self.resampled_firings[child as usize]);
        let mut resampled = Resampled::default();
        for (i, n11) in n11.into_iter().enumerate() {
            let counts = PairCounts { n11, n_parent: n_parent[i], n_child: n_child[i], n: self.ground.n[i] };
            let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
            let if_child = |value: f64| if counts.n_child > 0 { value } else { f64::NAN };
            resampled.mi_bits.push(mi_bits(counts));
            resampled.mi_over_h_child.push(if_child(information::mi_over_h_child(counts)));
            resampled.mi_over_nested.push(if_child(information::mi_over_nested(counts)));
            resampled.p_parent_given_child.push(or_nan(information::p_parent_given_child(counts)));
            resampled.p_child_given_parent.push(or_nan(information::p_child_given_parent(counts)));
        }
        resampled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::{self, Dense};

    fn documents(n_rows: usize) -> Documents {
        Documents::new(&planted::doc_ids(n_rows, 20)).unwrap()
    }

    fn ground(n_rows: usize, n_bootstrap: usize, n_shifts: usize) -> Ground {
        Ground::new(&documents(n_rows), 0, n_bootstrap, n_shifts)
    }

    fn measure(ground: &Ground, gates: &Dense, edges: &[(u32, u32)]) -> Vec<Measured> {
        let measuring = Measuring::new(ground, planted::firing(gates));
        measuring.edges(&Tree::from_edges("own", edges, &measuring.firing), |_| true)
    }

    fn check(found: f64, expected: f64, tolerance: f64, what: &str) {
        assert!((found - expected).abs() <= tolerance, "{what}: {found}, expected {expected}");
    }

    #[test]
    fn nested_duplicate_dense_and_absorbed_pairs_have_their_values() {
        // Rows 0..1000 of 100 000: the listed rates of science.md §6, exactly.
        let n = 100_000;
        let on = |on: bool| f32::from(u8::from(on));
        let gates = (0..n)
            .map(|row| {
                let child = on(row % 1000 == 0);
                vec![child, child, on(row % 100 == 0), on(row % 2 == 0), on(row % 100 == 1)]
            })
            .collect();
        let ground = ground(n, 50, 2);
        for (parent, what, over_h, over_nested, p_given_c) in [
            (1, "duplicate", 1.0, 1.0, 1.0),
            (2, "nested", 0.589, 1.0, 1.0),
            (3, "dense parent", 0.088, 1.0, 1.0),
            (4, "absorbed", 0.001, 0.002, 0.0),
        ] {
            let edge = &measure(&ground, &gates, &[(0, parent)])[0];
            let counts = edge.counts;
            check(information::mi_over_h_child(counts), over_h, 1.5e-3, what);
            check(information::mi_over_nested(counts), over_nested, 1.5e-3, what);
            check(information::p_parent_given_child(counts).unwrap(), p_given_c, 1e-12, what);
            assert_eq!(information::log_odds(counts) < 0.0, what == "absorbed", "{what}");
            assert_eq!(edge.q_value < 0.05, what != "absorbed", "{what}: {}", edge.q_value);
            let (low, high) = edge.mi_interval.unwrap();
            assert!(low <= edge.mi_bits && edge.mi_bits <= high, "{what}: {low} {high}");
        }
    }

    #[test]
    fn planted_edges_stand_above_their_null_and_independent_pairs_within_it() {
        let (gates, parents) = planted::forest(8000, 8, 3, 5);
        let ground = ground(8000, 50, 200);
        let planted_edges: Vec<(u32, u32)> =
            parents.iter().enumerate().filter_map(|(child, parent)| Some((child as u32, (*parent)?))).collect();
        let edges = measure(&ground, &gates, &planted_edges);
        assert_eq!(edges.len(), 24);
        for edge in &edges {
            assert!(edge.mi_interval.unwrap().0 > edge.mi_null_high_bits.unwrap() && edge.q_value < 1e-6, "{edge:?}");
        }
        // Each lone latent, at 32.., with each planted parent.
        let independent: Vec<(u32, u32)> = (0..8).map(|i| (32 + i, (i + 3) % 8)).collect();
        let edges = measure(&ground, &gates, &independent);
        let n_within = edges.iter().filter(|edge| Some(edge.mi_bits) <= edge.mi_null_high_bits).count();
        assert!(n_within >= 7, "{n_within} of 8");
        let mean_of = |of: fn(&Measured) -> f64| mean(edges.iter().map(of)).unwrap();
        check(mean_of(|edge| edge.mi_bits), mean_of(|edge| edge.mi_null_bits.unwrap()), 3e-4, "null");
    }

    #[test]
    fn firing_that_clusters_by_document_is_part_of_the_null() {
        // Both latents fire in every other document, each in a random half of its rows: dependent over the whole, and
        // only because of the documents.
        let mut gates = planted::random_gates(8000, 6, 9);
        for (row, gates) in gates.iter_mut().enumerate() {
            let is_quiet = (row / 20) % 2 == 1;
            gates.iter_mut().for_each(|gate| *gate *= f32::from(u8::from(!is_quiet)));
        }
        let edge = &measure(&ground(8000, 50, 200), &gates, &[(5, 0)])[0];
        assert!(edge.q_value < 1e-6 && edge.mi_bits > 0.02, "{edge:?}");
        assert!(Some(edge.mi_bits) <= edge.mi_null_high_bits, "{edge:?}");
    }

    #[test]
    fn silent_ends_are_left_out() {
        let mut gates = planted::random_gates(400, 4, 1);
        gates.iter_mut().for_each(|row| row[2] = 0.0);
        let edges = measure(&ground(400, 10, 2), &gates, &[(0, 1), (2, 1), (3, 2)]);
        assert_eq!(edges.iter().map(|edge| (edge.child, edge.parent)).collect::<Vec<_>>(), [(0, 1)]);
    }

    #[test]
    fn without_resamples_and_shifts_there_are_no_intervals_and_no_null() {
        let (gates, _) = planted::forest(2000, 6, 2, 8);
        let (bare, full) =
            (measure(&ground(2000, 0, 0), &gates, &[(6, 0)]), measure(&ground(2000, 5, 5), &gates, &[(6, 0)]));
        assert_eq!((bare[0].mi_interval, bare[0].mi_null_bits, bare[0].mi_null_high_bits), (None, None, None));
        assert!(full[0].mi_interval.is_some() && full[0].mi_null_bits.is_some());
        assert_eq!(
            (bare[0].counts, bare[0].mi_bits, bare[0].p_value),
            (full[0].counts, full[0].mi_bits, full[0].p_value)
        );
    }

    #[test]
    fn resampled_counts_are_those_of_the_resampled_documents() {
        let gates = planted::random_gates(200, 3, 4);
        let ground = ground(200, 5, 2);
        let edge = &measure(&ground, &gates, &[(1, 0)])[0];
        for resample in 0..5 {
            let mut pair = PairCounts::default();
            let documents = documents(200);
            for doc in 0..documents.n_docs() {
                for row in documents.rows(doc) {
                    let weight = u64::from(ground.resamples.weights(doc)[resample]);
                    let (parent, child) = (gates[row][0] > 0.0, gates[row][1] > 0.0);
                    pair.n += weight;
                    pair.n_parent += weight * u64::from(parent);
                    pair.n_child += weight * u64::from(child);
                    pair.n11 += weight * u64::from(parent && child);
                }
            }
            check(edge.resampled.mi_bits[resample], mi_bits(pair), 1e-15, "resample");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let (gates, _) = planted::forest(2000, 6, 2, 8);
        let edges = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let firing = planted::firing(&gates);
                let tree = crate::tree::posthoc(&firing, crate::tree::Rule { min_excess: 0.5, min_firings: 20 });
                Measuring::new(&ground(2000, 20, 5), firing).edges(&tree, |_| true)
            })
        };
        let single = edges(1);
        assert_eq!(single.len(), 12);
        assert!(single == edges(3));
    }
}
