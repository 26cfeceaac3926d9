mod naive;
mod saelens;

use artifact::config::{Recipe, Synthetic};
use artifact::random::stream;

use crate::world::World;
use crate::{BLOCK_ROWS, Firing, Stream};

const ROWS: Stream = Stream { seed: 7, purpose: "test" };

/// Three trees of 1 + 3 + 9 features, of which two thirds of the parents' children exclude each other, and 21 others.
fn config() -> Synthetic {
    Synthetic {
        n_features: Some(60),
        d_model: Some(24),
        n_roots: Some(3),
        branching: Some(3),
        depth: Some(2),
        exclusive: Some(0.67),
        p_min: Some(0.02),
        correlation_rank: Some(4),
        correlation_scale: Some(0.3),
        ..Synthetic::default()
    }
}

fn independent() -> Recipe {
    Synthetic { correlation_rank: Some(0), ..config() }.recipe()
}

fn firing_of(world: &World, n_blocks: u64) -> Firing {
    world.draws.draw(&mut stream(3, "test", 0, 0), (n_blocks * BLOCK_ROWS) as usize)
}

/// Rows in which all of these fire.
fn n_with(firing: &Firing, features: &[u32]) -> usize {
    firing.rows().filter(|(on, _)| features.iter().all(|feature| on.contains(feature))).count()
}

/// |observed − n·p| within five standard deviations of a binomial.
fn is_binomial(observed: usize, n: usize, p: f64) -> bool {
    let (n, expected) = (n as f64, n as f64 * p);
    (observed as f64 - expected).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt()
}

#[test]
fn features_without_a_parent_are_drawn_with_their_probability_whatever_the_correlation() {
    for correlation_scale in [0.0, 0.1, 0.3, 5.0] {
        let world = World::plant(&Recipe { correlation_scale, magnitude_std_mean: 0.0, ..config().recipe() }, 1);
        let firing = firing_of(&world, 400);
        for feature in (0..60).filter(|&feature| world.parent(feature).is_none()) {
            let p = f64::from(world.features.p_draw[feature as usize]);
            let n = n_with(&firing, &[feature]);
            assert!(is_binomial(n, firing.n_rows(), p), "scale {correlation_scale}, feature {feature}: {n}, rate {p}");
        }
    }
}

#[test]
fn children_fire_as_often_as_exclusion_leaves_them() {
    // Without correlation; probabilities that all children share, so that the closed form is short.
    let config = Synthetic {
        loose: true,
        p_child: Some(0.3),
        p_min: None,
        correlation_rank: Some(0),
        magnitude_std_mean: Some(0.0),
        magnitude_std_std: Some(0.0),
        ..config()
    };
    let world = World::plant(&config.recipe(), 1);
    let firing = firing_of(&world, 800);
    for child in (0..60).filter(|&feature| world.parent(feature).is_some()) {
        let parent = world.parent(child).unwrap();
        let n_parent = n_with(&firing, &[parent]);
        // Of three drawn at .3 each, one stays: (1 − .7³) / 3 for each.
        let excludes = world.features.children_exclude[parent as usize];
        let p = if excludes { (1.0 - 0.7f64.powi(3)) / 3.0 } else { 0.3 };
        assert!(is_binomial(n_with(&firing, &[parent, child]), n_parent, p), "child {child}, {p}");
    }
    let n_excluding = world.features.children_exclude.iter().filter(|&&excludes| excludes).count();
    assert_eq!(n_excluding, 8, "two thirds of twelve parents");
}

#[test]
fn independent_features_fire_together_by_chance() {
    let world = World::plant(&independent(), 1);
    let firing = firing_of(&world, 400);
    let p = |feature: u32| f64::from(world.features.p_draw[feature as usize]);
    for (a, b) in [(0, 1), (0, 2), (1, 39), (40, 41)] {
        let n = n_with(&firing, &[a, b]);
        assert!(is_binomial(n, firing.n_rows(), p(a) * p(b)), "{a}, {b}: {n}");
    }
}

#[test]
fn children_fire_under_their_parent_and_siblings_exclude_each_other() {
    for recipe in [config().recipe(), independent()] {
        let world = World::plant(&recipe, 2);
        let mut n_together = 0;
        for (features, magnitudes) in firing_of(&world, 100).rows() {
            assert!(features.is_sorted() && magnitudes.iter().all(|&magnitude| magnitude > 0.0));
            for (i, &a) in features.iter().enumerate() {
                let Some(parent) = world.parent(a) else { continue };
                assert!(features.contains(&parent));
                let n_siblings = features[..i].iter().filter(|&&b| world.parent(b) == Some(parent)).count();
                assert!(n_siblings == 0 || !world.features.children_exclude[parent as usize]);
                n_together += n_siblings;
            }
        }
        assert!(n_together > 0, "siblings that do not exclude each other meet");
    }
}

#[test]
fn a_childs_magnitude_follows_its_parents() {
    let world = World::plant(&config().recipe(), 2);
    let mut world = World { features: world.features, ..world };
    for feature in 0..60 {
        // Only roots vary.
        let is_root = feature < 3;
        world.features.magnitude_std[feature] = f32::from(u8::from(is_root));
    }
    let world = World::of_truth(world.truth(&[(0.0, 0.0); 60]), world.shared).unwrap();
    let mean = |feature: u32| world.features.magnitude_mean[feature as usize];
    for (features, magnitudes) in firing_of(&world, 20).rows() {
        for (&feature, &magnitude) in features.iter().zip(magnitudes) {
            let Some(parent) = world.parent(feature) else { continue };
            let of_parent = magnitudes[features.binary_search(&parent).unwrap()];
            let expected = mean(feature) * of_parent / mean(parent);
            assert!((magnitude - expected).abs() <= 1e-5 * expected, "{feature}: {magnitude}, expected {expected}");
        }
    }
}

#[test]
fn rows_are_the_sum_of_what_fires_the_bias_and_noise() {
    let n = BLOCK_ROWS as usize;
    let (silent, noisy) =
        [0.0, 0.5].map(|noise_std| World::plant(&Recipe { noise_std, ..config().recipe() }, 4)).into();
    let firing = silent.firing(ROWS, 5);
    let (mut x, mut with_noise) = (vec![0f32; n * 24], vec![0f32; n * 24]);
    silent.activations(ROWS, 5, &firing, 0, 2.0, &mut x);
    noisy.activations(ROWS, 5, &firing, 0, 2.0, &mut with_noise);
    for (i, (features, magnitudes)) in firing.rows().enumerate() {
        for column in 0..24 {
            let of_feature = |(&f, &m): (&u32, &f32)| m * silent.features.directions[f as usize * 24 + column];
            let expected = silent.shared.bias[column] + features.iter().zip(magnitudes).map(of_feature).sum::<f32>();
            let found = x[i * 24 + column];
            assert!((found - 2.0 * expected).abs() <= 1e-4, "row {i}, column {column}: {found}, expected {expected}");
        }
    }
    let norm = silent.shared.bias.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((norm - 0.5).abs() <= 1e-6);
    // A variance of 1 over 6144 numbers: within five of its standard deviations.
    let noise: f64 = x.iter().zip(&with_noise).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / x.len() as f64;
    assert!((noise - 1.0).abs() <= 5.0 * (2.0 / x.len() as f64).sqrt(), "{noise}");
}

#[test]
fn any_part_of_a_stream_is_the_same_rows_on_any_number_of_threads() {
    let world = World::plant(&Recipe { noise_std: 0.1, ..config().recipe() }, 4);
    let rows_of = |n_threads: usize, positions: std::ops::Range<u64>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut out = vec![0f32; (positions.end - positions.start) as usize * 24];
        pool.install(|| world.fill(ROWS, positions, 0.7, &mut out));
        out
    };
    let all = rows_of(1, 0..5 * BLOCK_ROWS);
    for n_threads in 1..=3 {
        for (start, end) in [(0, 5 * BLOCK_ROWS), (3, 4), (200, 300), (BLOCK_ROWS, 2 * BLOCK_ROWS), (100, 1200)] {
            assert!(rows_of(n_threads, start..end) == all[start as usize * 24..end as usize * 24], "{start}..{end}");
        }
    }
    for other in [Stream { seed: 8, ..ROWS }, Stream { purpose: "other", ..ROWS }] {
        assert_ne!(world.firing(ROWS, 0), world.firing(other, 0));
    }
    assert_ne!(world.firing(ROWS, 0), world.firing(ROWS, 1));
}

#[test]
fn a_world_comes_back_from_what_is_published_of_it() {
    let world = World::plant(&Recipe { noise_std: 0.1, ..config().recipe() }, 4);
    let truth = world.truth(&[(0.1, 2.0); 60]);
    let shared = serde_json::to_string(world.shared()).unwrap();
    let rebuilt = World::of_truth(truth.clone(), serde_json::from_str(&shared).unwrap()).unwrap();
    assert_eq!(rebuilt.features, world.features);
    assert_eq!(rebuilt.shared, world.shared);
    assert_eq!(rebuilt.firing(ROWS, 3), world.firing(ROWS, 3));
    let refuse = |edit: fn(&mut artifact::tables::TrueFeature), expected: &str| {
        let mut truth = truth.clone();
        edit(&mut truth[40]);
        let error = World::of_truth(truth, world.shared.clone()).err().expect("expected an error").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(|feature| feature.feature = 2, "row 40 holds feature 2");
    refuse(|feature| feature.parent = Some(40), "feature 40 comes before its parent");
    refuse(|feature| feature.p_draw = f32::NAN, "feature 40: p_draw");
    refuse(|feature| feature.magnitude_mean = 0.0, "feature 40: magnitude_mean");
    refuse(|feature| feature.direction.truncate(3), "feature 40 is not 24 wide");
    refuse(|feature| feature.factor.clear(), "feature 40 has a factor of another length");
}
