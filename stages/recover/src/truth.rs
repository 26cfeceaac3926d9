//! What was planted, for synthetic sources, and how well latents stand for it one by one (science.md §7).

use anyhow::{Context, Result, ensure};
use artifact::stage::Input;
use artifact::tables::{TrueFeature, TrueFiring, read_rows};
use hsae::SparseRows;

use crate::firing::Firing;
use crate::heldout::Heldout;
use crate::matching::Matching;
use crate::measure::{Measure, mean, share};

pub(crate) struct Truth {
    /// [n_features, d_model], unit rows.
    pub(crate) directions: Vec<f32>,
    pub(crate) parent: Vec<Option<usize>>,
    pub(crate) firing_rate: Vec<f64>,
    /// Over the held-out rows.
    pub(crate) firing: Firing,
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
        let truth = Self::of_features(&features, heldout.d_model).context("harvest/truth.parquet")?;
        let firing = firing_of(&rows, features.len(), &heldout.places).context("harvest/firing.parquet")?;
        Ok(Some(Self { firing, ..truth }))
    }

    fn of_features(features: &[TrueFeature], d_model: usize) -> Result<Self> {
        let n = features.len();
        ensure!(n >= 1, "no features");
        for (i, feature) in features.iter().enumerate() {
            ensure!(feature.feature as usize == i, "row {i} holds feature {}", feature.feature);
            ensure!(feature.direction.len() == d_model, "feature {i} is not {d_model} wide");
            ensure!(
                feature.parent.is_none_or(|parent| (parent as usize) < n),
                "the parent of feature {i} is not there"
            );
        }
        Ok(Self {
            directions: features.iter().flat_map(|feature| &feature.direction).copied().collect(),
            parent: features.iter().map(|feature| feature.parent.map(|parent| parent as usize)).collect(),
            firing_rate: features.iter().map(|feature| feature.firing_rate).collect(),
            firing: Firing::new(SparseRows::new(n)),
        })
    }

    pub(crate) fn n_features(&self) -> usize {
        self.parent.len()
    }

    /// Features with neither parent nor child.
    pub(crate) fn lone(&self) -> Vec<usize> {
        let mut is_lone: Vec<bool> = self.parent.iter().map(Option::is_none).collect();
        self.parent.iter().flatten().for_each(|&parent| is_lone[parent] = false);
        (0..self.n_features()).filter(|&feature| is_lone[feature]).collect()
    }
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
struct Detector {
    /// Of the rows in which the latent fires; 0 for one that never does.
    precision: f64,
    /// Of the rows in which the feature is on; 0 for one that never is.
    recall: f64,
    /// Harmonic mean, 0 where both are 0.
    f1: f64,
}

/// All measures of features that need no tree. `firing` over the rows of `truth.firing`; w_dec [d_sae, d_model].
pub(crate) fn of_features(truth: &Truth, matching: &Matching, firing: &Firing, w_dec: &[f32]) -> Vec<Measure> {
    let best: Vec<usize> = (0..matching.n_latents).map(|latent| matching.best_feature(latent)).collect();
    let detectors: Vec<Detector> =
        best.iter().enumerate().map(|(latent, &feature)| detector(firing, latent, &truth.firing, feature)).collect();
    // Over all latents, dead ones included.
    let over_latents = |of: fn(&Detector) -> f64| mean(detectors.iter().map(of));
    let measures = [
        ("f1", over_latents(|detector| detector.f1)),
        ("precision", over_latents(|detector| detector.precision)),
        ("recall", over_latents(|detector| detector.recall)),
        ("f1_of_features", f1_of_features(truth, matching, firing)),
        ("mcc", mcc(matching)),
        ("mmcs", mmcs(matching)),
        ("uniqueness", uniqueness(&best)),
        ("matched_features", share(matching.latent.iter().flatten().count(), truth.n_features())),
        ("shrinkage", shrinkage(truth, matching, firing, w_dec)),
    ];
    measures.into_iter().filter_map(|(metric, value)| Some(Measure::new(metric, value?))).collect()
}

fn detector(firing: &Firing, latent: usize, truth: &Firing, feature: usize) -> Detector {
    let (on, planted) = (firing.latent(latent).0, truth.latent(feature).0);
    let n_hits = n_common(on, planted) as f64;
    let precision = if on.is_empty() { 0.0 } else { n_hits / on.len() as f64 };
    let recall = if planted.is_empty() { 0.0 } else { n_hits / planted.len() as f64 };
    let f1 = if n_hits > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
    Detector { precision, recall, f1 }
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
fn mcc(matching: &Matching) -> Option<f64> {
    let assigned = matching.assigned.iter().enumerate();
    mean(assigned.filter_map(|(latent, feature)| Some(matching.cosine(latent, (*feature)?).abs())))
}

/// Features to latents: mean over all planted features of the largest cosine with any decoder row; a latent may serve
/// several.
fn mmcs(matching: &Matching) -> Option<f64> {
    let best = |feature: usize| {
        (0..matching.n_latents).map(|latent| matching.cosine(latent, feature)).fold(f64::NEG_INFINITY, f64::max)
    };
    mean((0..matching.n_features).map(best))
}

/// Share of all latents whose best feature is no other latent's best.
fn uniqueness(best: &[usize]) -> Option<f64> {
    let n_taking = |feature: usize| best.iter().filter(|&&other| other == feature).count();
    share(best.iter().filter(|&&feature| n_taking(feature) == 1).count(), best.len())
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
        (Truth { directions, parent, firing_rate, firing }, gates)
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
        assert_eq!(measures.len(), 9);
        for metric in ["f1", "precision", "recall", "f1_of_features", "mcc", "mmcs", "uniqueness", "shrinkage"] {
            check(&measures, metric, 1.0);
        }
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
        assert!(Truth::of_features(&[feature(0, None), feature(1, Some(0))], 2).is_ok());
        for (features, d_model) in
            [(vec![feature(1, None)], 2), (vec![feature(0, Some(1))], 2), (vec![feature(0, None)], 3)]
        {
            assert!(Truth::of_features(&features, d_model).is_err());
        }
    }

    #[test]
    fn each_measure_has_its_own_denominator() {
        // Four features in the plane's axes; latents: feature 0, feature 0 again at 60°, a dead one at feature 2.
        let directions: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i / 4 == i % 4))).collect();
        let gates: planted::Dense =
            (0..100).map(|row| [20, 40, 10, 50].map(|n| f32::from(u8::from(row < n))).to_vec()).collect();
        let truth = Truth {
            directions,
            parent: vec![None; 4],
            firing_rate: vec![0.2, 0.4, 0.1, 0.5],
            firing: planted::firing(&gates),
        };
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
        check(&measures, "matched_features", 0.5);
        check(&measures, "shrinkage", 0.9);
    }

    fn on(on: bool) -> f32 {
        f32::from(u8::from(on))
    }
}
