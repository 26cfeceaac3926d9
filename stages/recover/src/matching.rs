//! Which latent stands for which planted feature. Decoder rows are the same in all modes, so this is made once for an SAE.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::assignment::assign;
use crate::cosine::cosines;

/// Latents against features.
pub(crate) struct Matching {
    pub(crate) n_latents: usize,
    pub(crate) n_features: usize,
    /// cos(decoder row, feature direction), [n_latents, n_features].
    cosines: Vec<f32>,
    /// The feature of largest |cosine| for each latent, several latents to one if need be; of equals, the first.
    /// [n_latents]
    pub(crate) best: Vec<usize>,
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
        ensure!(
            cosines.par_iter().all(|cosine| cosine.is_finite()),
            "a decoder row or a planted feature is not finite"
        );
        let (n_latents, n_features) = (w_dec.len() / d_model, directions.len() / d_model);
        let sizes: Vec<f32> = cosines.par_iter().map(|cosine| cosine.abs()).collect();
        let assigned = assign(&sizes, n_latents, n_features);
        let best = sizes.par_chunks_exact(n_features).map(largest).collect();
        let is_match = |latent: usize, feature: usize| f64::from(sizes[latent * n_features + feature]) > match_cosine;
        let matched = assigned.iter().enumerate().map(|(i, feature)| feature.filter(|&feature| is_match(i, feature)));
        let feature: Vec<Option<usize>> = matched.collect();
        let mut latent = vec![None; n_features];
        feature
            .iter()
            .enumerate()
            .for_each(|(i, feature)| feature.iter().for_each(|&feature| latent[feature] = Some(i)));
        Ok(Self { n_latents, n_features, cosines, best, assigned, feature, latent })
    }

    pub(crate) fn cosine(&self, latent: usize, feature: usize) -> f64 {
        f64::from(self.cosines[latent * self.n_features + feature])
    }

    /// The largest cosine of each feature with any latent, [n_features].
    pub(crate) fn best_cosines(&self) -> Vec<f32> {
        let mut best = vec![f32::NEG_INFINITY; self.n_features];
        for cosines in self.cosines.chunks_exact(self.n_features) {
            best.iter_mut().zip(cosines).for_each(|(best, &cosine)| *best = best.max(cosine));
        }
        best
    }
}

/// Where the largest value stands; of equals, the first.
fn largest(values: &[f32]) -> usize {
    let most = values.iter().fold(f32::NEG_INFINITY, |most, &value| most.max(value));
    values.iter().position(|&value| value == most).unwrap_or(0)
}
