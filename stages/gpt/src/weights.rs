//! How a model begins.

use artifact::random::stream;
use rand_distr::{Distribution, Normal};

use crate::shape::{Kind, Shape};

/// Gains are 1; matrices are normal with a standard deviation of 0.02, those whose products are added to the residual
/// stream divided by √(2 · n_layers).
/// Source: Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3.
pub fn initial(shape: &Shape, seed: u64) -> Vec<f32> {
    let mut weights = Vec::with_capacity(shape.n_parameters());
    for (i, parameter) in shape.parameters().into_iter().enumerate() {
        let std = match parameter.kind {
            Kind::Gain => {
                weights.resize(parameter.place.end, 1.0);
                continue;
            }
            Kind::Matrix => 0.02,
            Kind::ToResidual => 0.02 / (2.0 * shape.n_layers as f32).sqrt(),
        };
        let normal = Normal::new(0.0, std).expect("a standard deviation is positive");
        let mut random = stream(seed, "pretrain/weights", i as u64, 0);
        weights.extend(normal.sample_iter(&mut random).take(parameter.place.len()));
    }
    weights
}
