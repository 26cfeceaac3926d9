//! What is planted.

use anyhow::{Result, ensure};
use artifact::config::Recipe;
use artifact::random::stream;
use artifact::tables::TrueFeature;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::directions::near_orthogonal;
use crate::firing::Draws;
use crate::forest::Forest;
use crate::probabilities::probabilities;

/// What is left of a Gaussian's variance for itself alone, at the least.
const LEAST_OWN_VARIANCE: f64 = 0.01;

/// Features and what is added to all rows.
pub struct World {
    pub(crate) features: Features,
    pub(crate) shared: Shared,
    /// How to draw them.
    pub(crate) draws: Draws,
}

/// A value each, in the order of the features, parents before their children. The columns of [`TrueFeature`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Features {
    pub(crate) parent: Vec<Option<u32>>,
    pub(crate) p_draw: Vec<f32>,
    pub(crate) magnitude_mean: Vec<f32>,
    pub(crate) magnitude_std: Vec<f32>,
    pub(crate) children_exclude: Vec<bool>,
    pub(crate) children_scale: Vec<bool>,
    pub(crate) rank: usize,
    /// [n_features, rank], row-major.
    pub(crate) factors: Vec<f32>,
    /// [n_features, d_model], row-major, unit rows.
    pub(crate) directions: Vec<f32>,
}

/// `harvest/truth.json`: what is the same for all features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Added to every row, [d_model].
    pub bias: Vec<f32>,
    /// Standard deviation of isotropic Gaussian noise, per coordinate.
    pub noise_std: f32,
}

impl World {
    /// Plants a world; half a minute for the largest preset on two cores.
    pub fn plant(recipe: &Recipe, seed: u64) -> Self {
        let forest = Forest::new(recipe, seed);
        let (rank, factors) = factors(recipe, seed);
        let features = Features {
            p_draw: probabilities(recipe, &forest),
            magnitude_mean: magnitude_means(recipe, seed),
            magnitude_std: magnitude_stds(recipe, seed),
            children_scale: forest
                .is_parent()
                .into_iter()
                .map(|is_parent| is_parent && recipe.scale_by_parent)
                .collect(),
            children_exclude: forest.excludes,
            parent: forest.parent,
            rank,
            factors,
            directions: near_orthogonal(recipe.n_features, recipe.d_model, recipe.orthogonal_steps, seed),
        };
        let shared = Shared { bias: bias(recipe, seed), noise_std: recipe.noise_std as f32 };
        Self { draws: Draws::new(&features), features, shared }
    }

    /// The world that these were published of, to the bit.
    ///
    /// Errors: they contradict each other (the feature is named).
    pub fn of_truth(truth: Vec<TrueFeature>, shared: Shared) -> Result<Self> {
        let d_model = shared.bias.len();
        let rank = truth.first().map_or(0, |feature| feature.factor.len());
        ensure!(!truth.is_empty() && d_model > 0, "no features");
        for (i, feature) in truth.iter().enumerate() {
            ensure!(feature.feature as usize == i, "row {i} holds feature {}", feature.feature);
            ensure!(feature.direction.len() == d_model, "feature {i} is not {d_model} wide, as the bias is");
            ensure!(feature.factor.len() == rank, "feature {i} has a factor of another length than the first");
            ensure!(feature.parent.is_none_or(|parent| (parent as usize) < i), "feature {i} comes before its parent");
            ensure!((0.0..=1.0).contains(&feature.p_draw), "feature {i}: p_draw is not between 0 and 1");
            ensure!(feature.magnitude_mean > 0.0, "feature {i}: magnitude_mean is not positive");
        }
        let features = Features {
            parent: truth.iter().map(|feature| feature.parent).collect(),
            p_draw: truth.iter().map(|feature| feature.p_draw).collect(),
            magnitude_mean: truth.iter().map(|feature| feature.magnitude_mean).collect(),
            magnitude_std: truth.iter().map(|feature| feature.magnitude_std).collect(),
            children_exclude: truth.iter().map(|feature| feature.children_exclude).collect(),
            children_scale: truth.iter().map(|feature| feature.children_scale).collect(),
            rank,
            factors: truth.iter().flat_map(|feature| &feature.factor).copied().collect(),
            directions: truth.iter().flat_map(|feature| &feature.direction).copied().collect(),
        };
        Ok(Self { draws: Draws::new(&features), features, shared })
    }

    /// The columns of `truth.parquet`. `measured`: of each feature, its firing rate and its mean magnitude where it fires.
    pub fn truth(&self, measured: &[(f64, f64)]) -> Vec<TrueFeature> {
        let Features { rank, factors, directions, .. } = &self.features;
        let d_model = self.d_model();
        let feature = |(i, &(firing_rate, mean_magnitude)): (usize, &(f64, f64))| TrueFeature {
            feature: i as u32,
            parent: self.features.parent[i],
            firing_rate,
            mean_magnitude,
            p_draw: self.features.p_draw[i],
            magnitude_mean: self.features.magnitude_mean[i],
            magnitude_std: self.features.magnitude_std[i],
            children_exclude: self.features.children_exclude[i],
            children_scale: self.features.children_scale[i],
            factor: factors[i * rank..(i + 1) * rank].to_vec(),
            direction: directions[i * d_model..(i + 1) * d_model].to_vec(),
        };
        measured.iter().enumerate().map(feature).collect()
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    pub fn d_model(&self) -> usize {
        self.shared.bias.len()
    }

    pub fn n_features(&self) -> usize {
        self.features.parent.len()
    }

    pub fn parent(&self, feature: u32) -> Option<u32> {
        self.features.parent[feature as usize]
    }

    pub fn has_children(&self, feature: u32) -> bool {
        self.draws.has_children(feature)
    }
}

/// Rank and [n_features, rank]: normal entries, rows shortened where they leave a feature less than
/// [`LEAST_OWN_VARIANCE`] of its own.
fn factors(recipe: &Recipe, seed: u64) -> (usize, Vec<f32>) {
    let rank = if recipe.correlation_scale > 0.0 { recipe.correlation_rank } else { 0 };
    let mut rng = stream(seed, "planted/correlation", 0, 0);
    let mut factors = Vec::with_capacity(recipe.n_features * rank);
    for _ in 0..recipe.n_features * usize::from(rank > 0) {
        let row: Vec<f64> = (0..rank)
            .map(|_| recipe.correlation_scale * Distribution::<f64>::sample(&StandardNormal, &mut rng))
            .collect();
        let squares: f64 = row.iter().map(|value| value * value).sum();
        let most = 1.0 - LEAST_OWN_VARIANCE;
        let shortened = if squares > most { (most / squares).sqrt() } else { 1.0 };
        factors.extend(row.into_iter().map(|value| (shortened * value) as f32));
    }
    (rank, factors)
}

fn magnitude_means(recipe: &Recipe, seed: u64) -> Vec<f32> {
    let (n, first, last) = (recipe.n_features, recipe.magnitude_first, recipe.magnitude_last);
    let mean = |i: usize| (first + (last - first) * i as f64 / (n.max(2) - 1) as f64) as f32;
    let mut means: Vec<f32> = (0..n).map(mean).collect();
    if recipe.magnitude_shuffled {
        means.shuffle(&mut stream(seed, "planted/magnitude-means", 0, 0));
    }
    means
}

fn magnitude_stds(recipe: &Recipe, seed: u64) -> Vec<f32> {
    let mut rng = stream(seed, "planted/magnitude-stds", 0, 0);
    let mut std = || {
        let normal: f64 = StandardNormal.sample(&mut rng);
        (recipe.magnitude_std_mean + recipe.magnitude_std_std * normal).abs() as f32
    };
    (0..recipe.n_features).map(|_| std()).collect()
}

fn bias(recipe: &Recipe, seed: u64) -> Vec<f32> {
    let mut rng = stream(seed, "planted/bias", 0, 0);
    let normal: Vec<f64> = (0..recipe.d_model).map(|_| StandardNormal.sample(&mut rng)).collect();
    let norm = normal.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-8);
    normal.into_iter().map(|value| (recipe.bias * value / norm) as f32).collect()
}
