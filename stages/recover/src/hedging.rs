//! Whether a decoder row mixes the features of one family: what a narrow SAE does with features that occur together, or
//! exclude each other.
//!
//! Source of the idea: Chanin et al. 2025, "Feature Hedging: Correlated Features Break Narrow Sparse Autoencoders".

use artifact::random;
use rand::RngExt;
use rayon::prelude::*;

use crate::matching::Matching;
use crate::measure::{Measure, mean};
use crate::reconstruction::levels;
use crate::truth::Truth;

/// Added to the diagonal of the normal equations, so that directions which are not independent still have weights.
const RIDGE: f64 = 1e-6;

/// Of one latent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mixing {
    siblings: Option<Share>,
    children: Option<Share>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    /// Squared weight on these features over the squared weight on the whole family.
    of_family: f64,
    /// The same for as many random features.
    of_random: f64,
}

/// A latent's family is its best feature, that feature's parent, siblings and children. The decoder row is fitted by least
/// squares on their directions; `hedging` is the squared weight on the siblings over that on the whole family, the mean
/// over the latents that fire and whose best feature has siblings, and `hedging_n` how many these are.
/// `hedging_children` is the same for the children of the best feature, over the latents whose best feature has any.
///
/// The nulls put as many random features from outside the family beside it and take the squared weight on these, over the
/// same denominator. Weights count by their squares: a row that has learnt to subtract a sibling mixes it as well.
pub(crate) fn hedging(
    truth: &Truth,
    matching: &Matching,
    n_coarse: usize,
    seed: u64,
    fires: impl Fn(usize) -> bool + Sync,
) -> Vec<Measure> {
    let latents = (0..matching.n_latents).into_par_iter();
    let mixing = |latent| if fires(latent) { mixing(truth, matching, latent, seed) } else { Mixing::default() };
    let all: Vec<Mixing> = latents.map(mixing).collect();
    let mut measures = Vec::new();
    for (level, latents) in levels(n_coarse, matching.n_latents) {
        let of_level = &all[latents];
        let siblings: Vec<Share> = of_level.iter().filter_map(|mixing| mixing.siblings).collect();
        let children: Vec<Share> = of_level.iter().filter_map(|mixing| mixing.children).collect();
        for (name, shares) in [("hedging", siblings), ("hedging_children", children)] {
            let values = [
                (name.to_owned(), mean(shares.iter().map(|share| share.of_family))),
                (format!("{name}_null"), mean(shares.iter().map(|share| share.of_random))),
                (format!("{name}_n"), Some(shares.len() as f64)),
            ];
            let measure = |(metric, value): (String, Option<f64>)| Some(Measure::new(metric, value?).at(level));
            measures.extend(values.into_iter().filter_map(measure));
        }
    }
    measures
}

fn mixing(truth: &Truth, matching: &Matching, latent: usize, seed: u64) -> Mixing {
    let best = matching.best[latent];
    let (siblings, children) = (truth.siblings(best), &truth.children[best]);
    let family: Vec<usize> =
        [best].into_iter().chain(truth.parent[best]).chain(siblings.iter().chain(children).copied()).collect();
    if family.len() == 1 {
        return Mixing::default();
    }
    let n_random = siblings.len().max(children.len());
    let random =
        random_features(truth, &family, n_random, &mut random::stream(seed, "recover/hedging", 0, latent as u64));
    let squares = |features: &[usize]| -> Vec<f64> {
        weights(truth, matching, latent, features).into_iter().map(|weight| weight * weight).collect()
    };
    let of_family = squares(&family);
    let with_random = squares(&family.iter().chain(&random).copied().collect::<Vec<_>>());
    let total: f64 = of_family.iter().sum();
    let of_random = &with_random[family.len()..];
    let share = |first: usize, n: usize| {
        let of_random: f64 = of_random.iter().take(n).sum();
        let of_family: f64 = of_family[first..first + n].iter().sum();
        (n > 0 && total > 0.0).then(|| Share { of_family: of_family / total, of_random: of_random / total })
    };
    let first = family.len() - siblings.len() - children.len();
    Mixing { siblings: share(first, siblings.len()), children: share(first + siblings.len(), children.len()) }
}

/// Up to `n` different features from outside the family.
fn random_features(truth: &Truth, family: &[usize], n: usize, rng: &mut impl rand::Rng) -> Vec<usize> {
    let n = n.min(truth.n_features() - family.len());
    let mut random = Vec::new();
    while random.len() < n {
        let feature = rng.random_range(0..truth.n_features() as u32) as usize;
        if !family.contains(&feature) && !random.contains(&feature) {
            random.push(feature);
        }
    }
    random
}

/// Least squares of a unit decoder row on the directions of some features: (G + ridge) w = c, with G their cosines among
/// each other and c their cosines with the row. [features]
fn weights(truth: &Truth, matching: &Matching, latent: usize, features: &[usize]) -> Vec<f64> {
    let n = features.len();
    let dot = |a: usize, b: usize| -> f64 {
        truth.direction(a).iter().zip(truth.direction(b)).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            lower[i * n + j] = dot(features[i], features[j]) + if i == j { RIDGE } else { 0.0 };
        }
    }
    let mut weights: Vec<f64> = features.iter().map(|&feature| matching.cosine(latent, feature)).collect();
    solve(&mut lower, &mut weights);
    weights
}

/// Solves A x = b in place, A positive definite [n, n] and given by its lower half, by Cholesky's decomposition.
fn solve(lower: &mut [f64], b: &mut [f64]) {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
            let rest = lower[i * n + j] - known;
            lower[i * n + j] = if i == j { rest.max(RIDGE).sqrt() } else { rest / lower[j * n + j] };
        }
        let known: f64 = (0..i).map(|k| lower[i * n + k] * b[k]).sum();
        b[i] = (b[i] - known) / lower[i * n + i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| lower[k * n + i] * b[k]).sum();
        b[i] = (b[i] - known) / lower[i * n + i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted;
    use crate::truth::tests::forest_truth;

    fn check(measures: &[Measure], metric: &str, level: &str, expected: f64) {
        let found = measures.iter().find(|measure| measure.metric == metric && measure.level == level);
        let found = found.unwrap_or_else(|| panic!("no {metric} {level}")).value;
        assert!((found - expected).abs() <= 1e-5, "{metric} {level}: {found}, expected {expected}");
    }

    /// Latents 0..6 stand for the parents, 6..24 for three children of each, 24..30 for lone features.
    #[test]
    fn mixed_siblings_and_children_are_seen_where_they_are() {
        let (truth, _) = forest_truth(200, 0);
        let n = truth.n_features();
        let perfect = Matching::new(&truth.directions, &truth.directions, n, 0.5).unwrap();
        let measures = hedging(&truth, &perfect, 6, 0, |_| true);
        for (metric, level, expected) in [
            ("hedging", "all", 0.0),
            ("hedging_null", "all", 0.0),
            ("hedging_n", "all", 18.0),
            ("hedging_n", "coarse", 0.0),
            ("hedging_n", "fine", 18.0),
            ("hedging_children", "coarse", 0.0),
            ("hedging_children_n", "all", 6.0),
            ("hedging_children_n", "fine", 0.0),
        ] {
            check(&measures, metric, level, expected);
        }
        assert!(!measures.iter().any(|measure| measure.metric == "hedging" && measure.level == "coarse"));
        let mut w_dec = truth.directions.clone();
        // Latent 6 is a mixture of its feature with half of each of two siblings: ½ / 1½ of the squared weight.
        w_dec[6 * n + 7] = 0.5;
        w_dec[6 * n + 8] = -0.5;
        // Latent 1 holds its three children at a third each, 9 and a lone one do not matter, 12 does not fire.
        (9..12).for_each(|child| w_dec[n + child] = 1.0 / 3.0);
        w_dec[9 * n + 25] = 0.5;
        w_dec[12 * n + 13] = 0.9;
        let mixed = Matching::new(&w_dec, &truth.directions, n, 0.5).unwrap();
        let measures = hedging(&truth, &mixed, 6, 0, |latent| latent != 12);
        check(&measures, "hedging_n", "fine", 17.0);
        check(&measures, "hedging", "fine", 0.5 / 1.5 / 17.0);
        check(&measures, "hedging_children", "coarse", (1.0 / 3.0) / (4.0 / 3.0) / 6.0);
        check(&measures, "hedging_children_null", "coarse", 0.0);
    }

    /// Rows of noise put as much weight on siblings as on any other features.
    #[test]
    fn noise_mixes_siblings_no_more_than_random_features() {
        let (truth, _) = forest_truth(200, 1);
        let n = truth.n_features();
        let mut rng = random::stream(0, "recover/test/hedging", 0, 0);
        let mut noise = || (planted::uniform(&mut rng) - 0.5) as f32;
        let (mut siblings, mut null) = (0.0, 0.0);
        for repeat in 0..40 {
            let w_dec: Vec<f32> = truth.directions.iter().map(|&x| x + 0.3 * noise()).collect();
            let matching = Matching::new(&w_dec, &truth.directions, n, 0.5).unwrap();
            let measures = hedging(&truth, &matching, 0, repeat, |_| true);
            let value = |metric: &str| measures.iter().find(|measure| measure.metric == metric).unwrap().value;
            siblings += value("hedging") / 40.0;
            null += value("hedging_null") / 40.0;
        }
        assert!(siblings > 0.01 && (siblings / null - 1.0).abs() <= 0.2, "{siblings}, null {null}");
    }

    #[test]
    fn normal_equations_are_solved() {
        // Lower half of [[4, 2, 0], [2, 5, 1], [0, 1, 3]]; x = (1, −2, 3).
        let mut lower = [4.0, 0.0, 0.0, 2.0, 5.0, 0.0, 0.0, 1.0, 3.0];
        let mut b = [0.0, -5.0, 7.0];
        solve(&mut lower, &mut b);
        for (found, expected) in b.iter().zip([1.0, -2.0, 3.0]) {
            assert!((found - expected).abs() <= 1e-12, "{b:?}");
        }
    }
}
