//! The recipe taken literally: every feature of every row is drawn, and then what must not fire is silenced, level by
//! level.

use artifact::config::{Recipe, Synthetic};
use artifact::random::stream;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use statrs::function::erf::erfc_inv;

use super::{config, firing_of};
use crate::world::World;

/// The magnitudes of one row, 0 where nothing fires.
fn row(world: &World, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let features = &world.features;
    let (n, rank) = (features.parent.len(), features.rank);
    let mut normal = || -> f64 { StandardNormal.sample(rng) };
    let common: Vec<f64> = (0..rank).map(|_| normal()).collect();
    let mut x = vec![0.0; n];
    for (i, x) in x.iter_mut().enumerate() {
        let factor = features.factors[i * rank..(i + 1) * rank].iter().map(|&value| f64::from(value));
        let squares: f64 = factor.clone().map(|value| value * value).sum();
        let z = factor.zip(&common).map(|(a, b)| a * b).sum::<f64>() + (1.0 - squares).sqrt() * normal();
        let magnitude = f64::from(features.magnitude_mean[i]) + f64::from(features.magnitude_std[i]) * normal();
        let p = f64::from(features.p_draw[i]);
        let fires = p >= 1.0 || z > std::f64::consts::SQRT_2 * erfc_inv(2.0 * p);
        *x = if fires { magnitude.max(0.0) } else { 0.0 };
    }
    // Parents come before their children, level by level.
    for parent in 0..n {
        let children: Vec<usize> = (0..n).filter(|&i| features.parent[i] == Some(parent as u32)).collect();
        let scale = if features.children_scale[parent] {
            x[parent] / f64::from(features.magnitude_mean[parent])
        } else {
            f64::from(u8::from(x[parent] > 0.0))
        };
        children.iter().for_each(|&child| x[child] *= scale);
        let on: Vec<usize> = children.into_iter().filter(|&child| x[child] > 0.0).collect();
        if features.children_exclude[parent] && on.len() > 1 {
            let stays = on[rng.random_range(0..on.len())];
            on.into_iter().filter(|&child| child != stays).for_each(|child| x[child] = 0.0);
        }
    }
    x
}

/// How often each two features fire together (a feature with itself: how often it fires), and the sum and the sum of
/// squares of the magnitudes of each.
struct Totals {
    together: Vec<f64>,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl Totals {
    fn new(n: usize) -> Self {
        Self { together: vec![0.0; n * n], sum: vec![0.0; n], squares: vec![0.0; n] }
    }

    fn add(&mut self, row: &[(usize, f64)]) {
        let n = self.sum.len();
        for &(a, magnitude) in row {
            row.iter().for_each(|&(b, _)| self.together[a * n + b] += 1.0);
            self.sum[a] += magnitude;
            self.squares[a] += magnitude * magnitude;
        }
    }
}

/// Both give the same numbers up to chance: within five standard deviations, which chance exceeds once in two million
/// times, and there are 1830 pairs.
fn check(recipe: &Recipe) {
    const N_ROWS: usize = 60_000;
    let world = World::plant(recipe, 5);
    let n = world.n_features();
    let (mut naive, mut ours) = (Totals::new(n), Totals::new(n));
    let mut rng = stream(0, "test/naive", 0, 0);
    for _ in 0..N_ROWS {
        let row = row(&world, &mut rng);
        naive.add(&row.into_iter().enumerate().filter(|&(_, magnitude)| magnitude > 0.0).collect::<Vec<_>>());
    }
    let firing = firing_of(&world, N_ROWS as u64 / crate::BLOCK_ROWS);
    for (features, magnitudes) in firing.rows() {
        let row = features.iter().zip(magnitudes).map(|(&feature, &magnitude)| (feature as usize, magnitude.into()));
        ours.add(&row.collect::<Vec<_>>());
    }
    let (n_ours, n_naive) = (firing.n_rows() as f64, N_ROWS as f64);
    for a in 0..n {
        for b in 0..=a {
            let (ours, naive) = (ours.together[a * n + b], naive.together[a * n + b]);
            let p = (ours + naive) / (n_ours + n_naive);
            let spread = (p * (1.0 - p) * (1.0 / n_ours + 1.0 / n_naive)).sqrt();
            let difference = (ours / n_ours - naive / n_naive).abs();
            // A pair that is seen a few times is no normal number.
            assert!(difference <= 5.0 * spread + 5.0 / n_ours, "{a} and {b}: {ours} and {naive} times");
        }
        let moments = |totals: &Totals| {
            let n_on = totals.together[a * n + a];
            let mean = totals.sum[a] / n_on;
            (mean, (totals.squares[a] / n_on - mean * mean).max(0.0) / n_on)
        };
        let ((mean, variance), (expected, of_expected)) = (moments(&ours), moments(&naive));
        let spread = (variance + of_expected).sqrt();
        assert!((mean - expected).abs() <= 5.0 * spread + 1e-5, "feature {a}: magnitude {mean}, expected {expected}");
    }
}

#[test]
fn drawing_what_may_fire_is_drawing_everything_and_silencing() {
    check(&config().recipe());
}

#[test]
fn so_it_is_where_parents_fire_alone_and_nothing_scales() {
    let config = Synthetic { loose: true, p_min: None, scale_by_parent: Some(false), ..config() };
    check(&Recipe { correlation_scale: 0.4, magnitude_std_mean: 2.0, ..config.recipe() });
}
