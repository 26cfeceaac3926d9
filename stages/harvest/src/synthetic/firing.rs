//! Which planted features fire in a row, and how strongly.

use artifact::config::Synthetic;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};

/// The features that fire in one row, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Firing {
    pub(super) features: Vec<u32>,
    pub(super) magnitudes: Vec<f32>,
}

/// Features: parents first, then children parent by parent, then lone ones.
pub(super) struct Tree {
    config: Synthetic,
}

impl Tree {
    pub(super) fn new(config: &Synthetic) -> Self {
        Self { config: config.clone() }
    }

    pub(super) fn parent(&self, feature: usize) -> Option<usize> {
        let Synthetic { n_parents, children_per_parent, .. } = self.config;
        let is_child = (n_parents..n_parents * (1 + children_per_parent)).contains(&feature);
        is_child.then(|| (feature - n_parents) / children_per_parent)
    }

    /// Children fire only under their parent, at most one of them; everything else is independent.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> Firing {
        let Synthetic { n_parents, children_per_parent, n_lone, p_parent, p_child_given_parent, p_lone, .. } =
            self.config;
        let mut features = Vec::new();
        for parent in 0..n_parents {
            if rng.random::<f64>() >= p_parent {
                continue;
            }
            features.push(parent as u32);
            // Siblings share one draw: each owns a stretch of length p_child_given_parent, and the rest is "no child".
            let at = rng.random::<f64>();
            let child = (0..children_per_parent).find(|&i| at < (i + 1) as f64 * p_child_given_parent);
            features.extend(child.map(|i| (n_parents + parent * children_per_parent + i) as u32));
        }
        let first_lone = n_parents * (1 + children_per_parent);
        features.extend((first_lone..first_lone + n_lone).filter(|_| rng.random::<f64>() < p_lone).map(|f| f as u32));
        features.sort_unstable();
        let magnitudes = features.iter().map(|_| self.magnitude(rng)).collect();
        Firing { features, magnitudes }
    }

    /// Normal, cut at zero: drawn again until positive, which takes two draws at the worst on average, the mean being
    /// positive.
    fn magnitude(&self, rng: &mut impl Rng) -> f32 {
        loop {
            let normal: f64 = StandardNormal.sample(rng);
            let magnitude = (self.config.magnitude_mean + self.config.magnitude_std * normal) as f32;
            if magnitude > 0.0 {
                return magnitude;
            }
        }
    }
}
