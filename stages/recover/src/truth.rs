//! What was planted, for synthetic sources, and how well latents stand for it one by one (science.md §7).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use artifact::stage::Input;
use artifact::tables::{TrueFeature, TrueFiring, read_rows};
use hsae::SparseRows;
use rayon::prelude::*;

use crate::firing::Firing;
use crate::heldout::Heldout;
use crate::matching::Matching;
use crate::measure::{Measure, mean, share};

pub(crate) struct Truth {
    /// [n_features, d_model], unit rows.
    pub(crate) directions: Vec<f32>,
    pub(crate) parent: Vec<Option<usize>>,
    /// Ascending, [n_features].
    pub(crate) children: Vec<Vec<usize>>,
    pub(crate) firing_rate: Vec<f64>,
    /// Over the held-out rows.
    pub(crate) firing: Firing,
    /// Rows in which a feature is on and none of its children is, ascending. [n_features]
    pub(crate) alone: Vec<Vec<u32>>,
}

impl Truth {
    /// None where nothing was planted.
    ///
    /// Errors: the tables contradict each other or the held-out rows (the row is named).
    pub(crate) fn read(harvest: &Input, heldout: &Heldout) -> Result<Option<Self>> {
        if !harvest.has("truth.parquet") {
            return Ok(None);
        }
        let features: Vec<TrueFeature> = read_rows(&harvest.file("truth.parquet")?)?;
        let rows: Vec<TrueFiring> = read_rows(&harvest.file("firing.parquet")?)?;
        check_features(&features, heldout.d_model).context("harvest/truth.parquet")?;
        let firing = firing_of(&rows, features.len(), &heldout.places).context("harvest/firing.parquet")?;
        let directions = features.iter().flat_map(|feature| &feature.direction).copied().collect();
        let parent = features.iter().map(|feature| feature.parent.map(|parent| parent as usize)).collect();
        Ok(Some(Self::new(directions, parent, features.iter().map(|feature| feature.firing_rate).collect(), firing)))
    }

    /// Shapes: directions [n_features, d_model], parent and firing_rate [n_features].
    pub(crate) fn new(directions: Vec<f32>, parent: Vec<Option<usize>>, firing_rate: Vec<f64>, firing: Firing) -> Self {
        let mut children = vec![Vec::new(); parent.len()];
        for (child, parent) in parent.iter().enumerate() {
            parent.iter().for_each(|&parent| children[parent].push(child));
        }
        let alone = alone(&firing, &parent);
        Self { directions, parent, children, firing_rate, firing, alone }
    }

    pub(crate) fn n_features(&self) -> usize {
        self.parent.len()
    }

    pub(crate) fn d_model(&self) -> usize {
        self.directions.len() / self.n_features()
    }

    pub(crate) fn direction(&self, feature: usize) -> &[f32] {
        &self.directions[feature * self.d_model()..(feature + 1) * self.d_model()]
    }

    /// Those that have the same parent.
    pub(crate) fn siblings(&self, feature: usize) -> Vec<usize> {
        let of_parent = self.parent[feature].iter().flat_map(|&parent| &self.children[parent]);
        of_parent.copied().filter(|&sibling| sibling != feature).collect()
    }

    /// Features with neither parent nor child.
    pub(crate) fn lone(&self) -> Vec<usize> {
        let is_lone = |&feature: &usize| self.parent[feature].is_none() && self.children[feature].is_empty();
        (0..self.n_features()).filter(is_lone).collect()
    }
}

fn check_features(features: &[TrueFeature], d_model: usize) -> Result<()> {
    let n = features.len();
    ensure!(n >= 1, "no features");
    for (i, feature) in features.iter().enumerate() {
        ensure!(feature.feature as usize == i, "row {i} holds feature {}", feature.feature);
        ensure!(feature.direction.len() == d_model, "feature {i} is not {d_model} wide");
        ensure!(feature.parent.is_none_or(|parent| (parent as usize) < n), "the parent of feature {i} is not there");
    }
    Ok(())
}

/// Rows in which a feature is on and no feature whose parent it is: [n_features], rows ascending.
fn alone(firing: &Firing, parent: &[Option<usize>]) -> Vec<Vec<u32>> {
    let mut alone = vec![Vec::new(); parent.len()];
    for row in 0..firing.n_rows() {
        let on = firing.row(row).0;
        let has_child: BTreeSet<usize> = on.iter().filter_map(|&feature| parent[feature as usize]).collect();
        let is_alone = |feature: &usize| !has_child.contains(feature);
        on.iter().map(|&feature| feature as usize).filter(is_alone).for_each(|i| alone[i].push(row as u32));
    }
    alone
}

/// `places`: document and position of each held-out row.
fn firing_of(rows: &[TrueFiring], n_features: usize, places: &[(u32, u16)]) -> Result<Firing> {
    ensure!(rows.len() == places.len(), "{} rows, but {} held-out ones", rows.len(), places.len());
    let mut firing = SparseRows::new(n_features);
    for (i, row) in rows.iter().enumerate() {
        ensure!((row.doc_id, row.pos) == places[i], "row {i} is not the held-out row of that number");
        ensure!(row.features.len() == row.magnitudes.len(), "row {i}: features and magnitudes differ in number");
        ensure!(row.features.iter().all(|&feature| (feature as usize) < n_features), "row {i}: an unknown feature");
        let mut active: Vec<(u32, f32)> = row.features.iter().copied().zip(row.magnitudes.iter().copied()).collect();
        active.sort_by_key(|&(feature, _)| feature);
        firing.push_row(active);
    }
    Ok(Firing::new(firing))
}

/// A latent as a detector of a feature, over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Detector {
    /// Of the rows in which the latent fires; 0 for one that never does.
    pub(crate) precision: f64,
    /// Of the rows in which the feature is on; 0 for one that never is.
    pub(crate) recall: f64,
    /// Harmonic mean, 0 where both are 0.
    pub(crate) f1: f64,
}

/// All measures of features that need no tree. `firing` over the rows of `truth.firing`; w_dec [d_sae, d_model].
pub(crate) fn of_features(truth: &Truth, matching: &Matching, firing: &Firing, w_dec: &[f32]) -> Vec<Measure> {
    let best = matching.best.par_iter().enumerate();
    let detectors: Vec<Detector> =
        best.map(|(latent, &feature)| detector(firing, latent, &truth.firing, feature)).collect();
    let n_taking = n_taking(matching);
    let measures = [
        ("f1_of_features", f1_of_features(truth, matching, firing)),
        ("mcc", mcc(matching)),
        ("mmcs", mmcs(matching)),
        ("uniqueness", uniqueness(matching, &n_taking)),
        ("distinct_features", share(n_taking.iter().filter(|&&n| n > 0).count(), matching.n_latents)),
        ("matched_features", share(matching.latent.iter().flatten().count(), truth.n_features())),
        ("shrinkage", shrinkage(truth, matching, firing, w_dec)),
    ];
    let measures = measures.into_iter().filter_map(|(metric, value)| Some(Measure::new(metric, value?)));
    of_detectors(&detectors, "").into_iter().chain(measures).collect()
}

/// Means over all latents, dead ones included; `suffix` ends every name.
pub(crate) fn of_detectors(detectors: &[Detector], suffix: &str) -> Vec<Measure> {
    let over_latents = |name: &str, of: fn(&Detector) -> f64| {
        Some(Measure::new(format!("{name}{suffix}"), mean(detectors.iter().map(of))?))
    };
    let measures = [
        over_latents("f1", |detector| detector.f1),
        over_latents("precision", |detector| detector.precision),
        over_latents("recall", |detector| detector.recall),
    ];
    measures.into_iter().flatten().collect()
}

fn detector(firing: &Firing, latent: usize, truth: &Firing, feature: usize) -> Detector {
    let (on, planted) = (firing.latent(latent).0, truth.latent(feature).0);
    Detector::new(n_common(on, planted), on.len(), planted.len())
}

impl Detector {
    /// Rows in which both are on, in which the latent is, and in which the feature is.
    pub(crate) fn new(n_hits: usize, n_firings: usize, n_planted: usize) -> Self {
        let share_of = |n: usize| share(n_hits, n).unwrap_or(0.0);
        let (precision, recall) = (share_of(n_firings), share_of(n_planted));
        let f1 = if n_hits > 0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
        Self { precision, recall, f1 }
    }
}

/// Rows in both of two ascending lists.
pub(crate) fn n_common(a: &[u32], b: &[u32]) -> usize {
    let (short, mut long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let is_in_long = |row: &&u32| {
        long = &long[long.partition_point(|other| other < *row)..];
        long.first() == Some(row)
    };
    short.iter().filter(is_in_long).count()
}

/// Mean F1 of each planted feature's matched latent, over all features; 0 for one without a match.
fn f1_of_features(truth: &Truth, matching: &Matching, firing: &Firing) -> Option<f64> {
    let f1 = |(feature, latent): (usize, &Option<usize>)| {
        latent.map_or(0.0, |latent| detector(firing, latent, &truth.firing, feature).f1)
    };
    mean(matching.latent.iter().enumerate().map(f1))
}

/// Mean |cosine| over the pairs of the one-to-one assignment, as many as the shorter side.
pub(crate) fn mcc(matching: &Matching) -> Option<f64> {
    let assigned = matching.assigned.iter().enumerate();
    mean(assigned.filter_map(|(latent, feature)| Some(matching.cosine(latent, (*feature)?).abs())))
}

/// Features to latents: mean over all planted features of the largest cosine with any decoder row; a latent may serve
/// several.
fn mmcs(matching: &Matching) -> Option<f64> {
    mean(matching.best_cosines().into_iter().map(f64::from))
}

/// Latents whose best feature this is, [n_features].
fn n_taking(matching: &Matching) -> Vec<usize> {
    let mut n_taking = vec![0; matching.n_features];
    matching.best.iter().for_each(|&feature| n_taking[feature] += 1);
    n_taking
}

/// Share of all latents whose best feature is no other latent's best. The published benchmark's uniqueness is another
/// one, `distinct_features`: features that are some latent's best, over all latents.
/// Source of the latter: arXiv 2602.14687.
fn uniqueness(matching: &Matching, n_taking: &[usize]) -> Option<f64> {
    share(matching.best.iter().filter(|&&feature| n_taking[feature] == 1).count(), matching.n_latents)
}

/// Σ activation · ‖decoder row‖ over Σ planted magnitude, both over the rows in which a matched latent and its feature
/// are on; 1 is none.
fn shrinkage(truth: &Truth, matching: &Matching, firing: &Firing, w_dec: &[f32]) -> Option<f64> {
    let d_model = w_dec.len() / matching.n_latents;
    let (mut found, mut planted) = (0.0, 0.0);
    for (latent, feature) in matching.feature.iter().enumerate() {
        let Some(feature) = *feature else { continue };
        let row = &w_dec[latent * d_model..(latent + 1) * d_model];
        let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let (rows, magnitudes) = firing.latent(latent);
        let (true_rows, true_magnitudes) = truth.firing.latent(feature);
        for (row, &magnitude) in rows.iter().zip(magnitudes) {
            if let Ok(place) = true_rows.binary_search(row) {
                found += f64::from(magnitude) * length;
                planted += f64::from(true_magnitudes[place]);
            }
        }
    }
    (planted > 0.0).then(|| found / planted)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::planted;

    /// Orthogonal directions, so that a perfect SAE's decoder is the planted one.
    pub(crate) fn forest_truth(n_rows: usize, seed: u64) -> (Truth, planted::Dense) {
        let (gates, parent) = planted::forest(n_rows, 6, 3, seed);
        let n = parent.len();
        let directions = (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect();
        let firing = planted::firing(&gates);
        let firing_rate = (0..n).map(|feature| firing.n_firings(feature) as f64 / n_rows as f64).collect();
        let parent = parent.iter().map(|parent| parent.map(|parent| parent as usize)).collect();
        (Truth::new(directions, parent, firing_rate, firing), gates)
    }

    fn value(measures: &[Measure], metric: &str) -> f64 {
        measures.iter().find(|measure| measure.metric == metric).unwrap().value
    }

    fn check(measures: &[Measure], metric: &str, expected: f64) {
        let found = value(measures, metric);
        assert!((found - expected).abs() <= 1e-6, "{metric}: {found}, expected {expected}");
    }

    #[test]
    fn a_perfect_sae_has_perfect_scores_in_any_order_of_latents() {
        let (truth, gates) = forest_truth(2000, 0);
        let n = truth.n_features();
        let to = |latent: usize| (7 * latent + 2) % n;
        let mut w_dec = vec![0.0; n * n];
        let mut permuted = vec![vec![0.0; n]; gates.len()];
        for feature in 0..n {
            // Rows twice as long, activations half as large: the same reconstruction.
            w_dec[to(feature) * n + feature] = 2.0;
            gates.iter().zip(&mut permuted).for_each(|(gates, row)| row[to(feature)] = gates[feature] / 2.0);
        }
        let matching = Matching::new(&w_dec, &truth.directions, n, 0.5).unwrap();
        assert!((0..n).all(|feature| matching.latent[feature] == Some(to(feature))));
        let measures = of_features(&truth, &matching, &planted::firing(&permuted), &w_dec);
        assert_eq!(measures.len(), 10);
        for metric in ["f1", "precision", "recall", "f1_of_features", "mcc", "mmcs", "uniqueness", "shrinkage"] {
            check(&measures, metric, 1.0);
        }
        check(&measures, "distinct_features", 1.0);
    }

    #[test]
    fn tables_that_do_not_fit_are_refused_by_row() {
        let row = |doc_id, features: &[u32]| TrueFiring {
            doc_id,
            pos: 1,
            features: features.to_vec(),
            magnitudes: vec![1.0; features.len()],
        };
        let refuse = |rows: &[TrueFiring], places: &[(u32, u16)], expected: &str| {
            let error = firing_of(rows, 3, places).err().expect("expected an error").to_string();
            assert!(error.contains(expected), "{error}");
        };
        refuse(&[row(0, &[1])], &[(0, 1), (1, 1)], "1 rows, but 2");
        refuse(&[row(0, &[1]), row(2, &[])], &[(0, 1), (1, 1)], "row 1 is not the held-out row");
        refuse(&[row(0, &[3])], &[(0, 1)], "row 0: an unknown feature");
        let firing = firing_of(&[row(0, &[2, 0]), row(1, &[])], 3, &[(0, 1), (1, 1)]).unwrap();
        assert_eq!(firing.row(0).0, [0, 2]);
        let feature = |feature, parent| TrueFeature {
            feature,
            parent,
            firing_rate: 0.1,
            mean_magnitude: 1.0,
            p_draw: 0.1,
            magnitude_mean: 1.0,
            magnitude_std: 0.0,
            children_exclude: false,
            children_scale: false,
            factor: vec![],
            direction: vec![1.0, 0.0],
        };
        assert!(check_features(&[feature(0, None), feature(1, Some(0))], 2).is_ok());
        for (features, d_model) in
            [(vec![feature(1, None)], 2), (vec![feature(0, Some(1))], 2), (vec![feature(0, None)], 3)]
        {
            assert!(check_features(&features, d_model).is_err());
        }
    }

    #[test]
    fn each_measure_has_its_own_denominator() {
        // Four features in the plane's axes; latents: feature 0, feature 0 again at 60°, a dead one at feature 2.
        let directions: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i / 4 == i % 4))).collect();
        let gates: planted::Dense =
            (0..100).map(|row| [20, 40, 10, 50].map(|n| f32::from(u8::from(row < n))).to_vec()).collect();
        let truth = Truth::new(directions, vec![None; 4], vec![0.2, 0.4, 0.1, 0.5], planted::firing(&gates));
        let (cos, sin) = (0.5_f32, 0.75_f32.sqrt());
        let w_dec = [1.0, 0.0, 0.0, 0.0, sin, cos, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0];
        // Latent 0 fires in rows 0..10 of the feature's 0..20, latent 1 in 0..40, latent 2 never.
        let acts = (0..100).map(|row| vec![on(row < 10) * 0.9, on(row < 40), 0.0]).collect();
        let matching = Matching::new(&w_dec, &truth.directions, 4, 0.55).unwrap();
        assert_eq!(matching.assigned, [Some(0), Some(1), Some(2)]);
        assert_eq!(matching.feature, [Some(0), None, Some(2)]);
        let measures = of_features(&truth, &matching, &planted::firing(&acts), &w_dec);
        check(&measures, "precision", (1.0 + 0.5 + 0.0) / 3.0);
        check(&measures, "recall", (0.5 + 1.0 + 0.0) / 3.0);
        check(&measures, "f1", (2.0 / 3.0 + 2.0 / 3.0) / 3.0);
        check(&measures, "f1_of_features", 2.0 / 3.0 / 4.0);
        check(&measures, "mcc", (1.0 + 0.5 + 1.0) / 3.0);
        check(&measures, "mmcs", (1.0 + 0.5 + 0.0 + 0.0) / 4.0);
        check(&measures, "uniqueness", 1.0 / 3.0);
        check(&measures, "distinct_features", 2.0 / 3.0);
        check(&measures, "matched_features", 0.5);
        check(&measures, "shrinkage", 0.9);
    }

    fn on(on: bool) -> f32 {
        f32::from(u8::from(on))
    }
}
