//! Which latent stands for which planted feature.

use anyhow::{Result, ensure};
use pathfinding::matrix::Matrix;
use pathfinding::prelude::kuhn_munkres;

use crate::cosine::cosines;

/// Cosines are matched as whole multiples of this, since the matching wants integers.
const COSINE_STEP: f64 = 1e-9;

/// Latents against features.
pub(crate) struct Matching {
    pub(crate) n_latents: usize,
    pub(crate) n_features: usize,
    /// cos(decoder row, feature direction), [n_latents, n_features].
    cosines: Vec<f32>,
    /// One latent, one feature: the assignment of largest total |cosine|. [n_latents]; a latent beyond the number of
    /// features has none.
    pub(crate) assigned: Vec<Option<usize>>,
    /// The assigned feature where |cosine| exceeds the bar for a match, [n_latents].
    pub(crate) feature: Vec<Option<usize>>,
    /// The same, [n_features].
    pub(crate) latent: Vec<Option<usize>>,
}

impl Matching {
    /// Shapes: w_dec [n_latents, d_model], directions [n_features, d_model]. A match needs |cosine| > `match_cosine`.
    pub(crate) fn new(w_dec: &[f32], directions: &[f32], d_model: usize, match_cosine: f64) -> Result<Self> {
        let cosines = cosines(w_dec, directions, d_model);
        ensure!(cosines.iter().all(|cosine| cosine.is_finite()), "a decoder row or a planted feature is not finite");
        let (n_latents, n_features) = (w_dec.len() / d_model, directions.len() / d_model);
        let size: Vec<f64> = cosines.iter().map(|&cosine| f64::from(cosine.abs())).collect();
        let assigned = assign(&size, n_latents, n_features);
        let is_match = |latent: usize, feature: usize| size[latent * n_features + feature] > match_cosine;
        let matched = assigned.iter().enumerate().map(|(i, feature)| feature.filter(|&feature| is_match(i, feature)));
        let feature: Vec<Option<usize>> = matched.collect();
        let mut latent = vec![None; n_features];
        feature
            .iter()
            .enumerate()
            .for_each(|(i, feature)| feature.iter().for_each(|&feature| latent[feature] = Some(i)));
        Ok(Self { n_latents, n_features, cosines, assigned, feature, latent })
    }

    pub(crate) fn cosine(&self, latent: usize, feature: usize) -> f64 {
        f64::from(self.cosines[latent * self.n_features + feature])
    }

    /// The feature of largest |cosine| for each latent, several latents to one if need be; of equals, the first.
    pub(crate) fn best_feature(&self, latent: usize) -> usize {
        let size = |feature: usize| self.cosine(latent, feature).abs();
        (1..self.n_features).fold(0, |best, next| if size(next) > size(best) { next } else { best })
    }
}

/// The assignment of rows to columns, one to one, with the largest total weight: the Hungarian algorithm. `weights` is
/// row-major [n_rows, n_columns]; of the longer side some stay without a partner. Returns the column of each row.
///
/// Source: Kuhn 1955; Munkres 1957.
fn assign(weights: &[f64], n_rows: usize, n_columns: usize) -> Vec<Option<usize>> {
    let step = |weight: f64| (weight / COSINE_STEP).round() as i64;
    if n_rows <= n_columns {
        let weights = Matrix::from_fn(n_rows, n_columns, |(i, j)| step(weights[i * n_columns + j]));
        return kuhn_munkres(&weights).1.into_iter().map(Some).collect();
    }
    let weights = Matrix::from_fn(n_columns, n_rows, |(j, i)| step(weights[i * n_columns + j]));
    let mut columns = vec![None; n_rows];
    kuhn_munkres(&weights).1.into_iter().enumerate().for_each(|(column, row)| columns[row] = Some(column));
    columns
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::planted::uniform;

    fn brute_force(weights: &[f64], n: usize, row: usize, used: &mut Vec<bool>) -> f64 {
        if row == n {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for column in 0..n {
            if !used[column] {
                used[column] = true;
                best = best.max(weights[row * n + column] + brute_force(weights, n, row + 1, used));
                used[column] = false;
            }
        }
        best
    }

    fn total(weights: &[f64], n_columns: usize, columns: &[Option<usize>]) -> f64 {
        let pairs = columns.iter().enumerate().filter_map(|(row, column)| Some((row, (*column)?)));
        pairs.map(|(row, column)| weights[row * n_columns + column]).sum()
    }

    #[test]
    fn the_assignment_is_the_best_of_all() {
        let mut rng = artifact::random::stream(0, "recover/test/assign", 0, 0);
        for _ in 0..50 {
            let mut weights: Vec<f64> = (0..36).map(|_| uniform(&mut rng)).collect();
            if rng.next_u32().is_multiple_of(2) {
                // Ties.
                weights.iter_mut().for_each(|weight| *weight = (*weight * 3.0).floor());
            }
            let found = total(&weights, 6, &assign(&weights, 6, 6));
            let expected = brute_force(&weights, 6, 0, &mut vec![false; 6]);
            assert!((found - expected).abs() <= 1e-8, "{found}, expected {expected}");
        }
    }

    #[test]
    fn the_longer_side_keeps_some_without_a_partner() {
        let weights = [0.1, 0.9, 0.8, 0.7, 0.2, 0.3];
        assert_eq!(assign(&weights, 3, 2), [Some(1), Some(0), None]);
        assert_eq!(assign(&weights, 2, 3), [Some(1), Some(0)]);
    }
}
