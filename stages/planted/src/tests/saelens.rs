//! Beside SAELens's own generator: `tests/reference/synthetic_stats.py` measures it, and the same is measured here.

use std::collections::BTreeMap;

use artifact::config::{Preset, Synthetic};

use crate::world::World;
use crate::{BLOCK_ROWS, Stream};

const N_ROWS: u64 = 65_536;
const N_WORLDS: u64 = 6;

/// Features without a parent that fire this often are paired.
const FREQUENT: f32 = 0.03;

type Statistics = BTreeMap<String, f64>;

fn statistics(config: &Synthetic, seed: u64) -> Statistics {
    let world = World::plant(&config.recipe(), seed);
    let n = world.n_features();
    let level: Vec<i32> = levels(&world);
    let rows = Stream { seed, purpose: "test" };
    let (mut n_on, mut sums, mut n_alone) = (vec![0f64; n], vec![0f64; n], vec![0f64; n]);
    let (mut l0, mut norms, mut n_cofirings) = (Vec::new(), Vec::new(), 0.0);
    let lone: Vec<usize> = (0..n).filter(|&f| level[f] < 1 && world.features.p_draw[f] >= FREQUENT).collect();
    let mut together = vec![0f64; n * n];
    let mut x = vec![0f32; BLOCK_ROWS as usize * world.d_model()];
    for block in 0..N_ROWS / BLOCK_ROWS {
        let firing = world.firing(rows, block);
        world.activations(rows, block, &firing, 0, 1.0, &mut x);
        norms
            .extend(x.chunks(world.d_model()).map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()));
        for (features, magnitudes) in firing.rows() {
            l0.push(features.len() as f64);
            let mut n_children = BTreeMap::new();
            for (&feature, &magnitude) in features.iter().zip(magnitudes) {
                n_on[feature as usize] += 1.0;
                sums[feature as usize] += f64::from(magnitude);
                if let Some(parent) = world.parent(feature) {
                    *n_children.entry(parent).or_insert(0) += 1;
                }
            }
            for &parent in features.iter().filter(|&&feature| world.has_children(feature)) {
                n_alone[parent as usize] += f64::from(u8::from(!n_children.contains_key(&parent)));
            }
            n_cofirings += n_children.values().filter(|&&n| n > 1).count() as f64;
            let frequent: Vec<usize> = features.iter().map(|&f| f as usize).filter(|f| lone.contains(f)).collect();
            for (i, &a) in frequent.iter().enumerate() {
                frequent[..i].iter().for_each(|&b| together[a * n + b] += 1.0);
            }
        }
    }
    let mut found = Statistics::new();
    let mut add = |name: String, value: f64| {
        found.insert(name, value);
    };
    for (name, values) in [("l0", &l0), ("norm", &norms)] {
        let (mean, std) = moments(values);
        add(name.into(), mean);
        add(format!("{name}_std"), std);
    }
    add("sibling_cofirings".into(), n_cofirings);
    add("magnitude".into(), sums.iter().sum::<f64>() / n_on.iter().sum::<f64>());
    for depth in -1..=level.iter().copied().max().unwrap_or(0) {
        let name = if depth < 0 { "outside".into() } else { format!("level{depth}") };
        let here = || (0..n).filter(|&feature| level[feature] == depth);
        let total = |of: &[f64]| here().map(|feature| of[feature]).sum::<f64>();
        let mut rates: Vec<f64> = here().map(|feature| n_on[feature] / N_ROWS as f64).collect();
        rates.sort_by(f64::total_cmp);
        for q in [0.1, 0.5, 0.9] {
            add(format!("{name}_rate_{q}"), quantile(&rates, q));
        }
        add(format!("{name}_magnitude"), total(&sums) / total(&n_on));
        if here().any(|feature| world.has_children(feature as u32)) {
            add(format!("{name}_alone"), total(&n_alone) / total(&n_on));
        }
    }
    let mut odds = Vec::new();
    for (i, &a) in lone.iter().enumerate() {
        for &b in &lone[..i] {
            let both = together[a * n + b];
            let (first, second) = (n_on[a] - both, n_on[b] - both);
            let neither = N_ROWS as f64 - both - first - second;
            odds.push(((both + 0.5) * (neither + 0.5) / ((first + 0.5) * (second + 0.5))).ln());
        }
    }
    add("log_odds_std".into(), moments(&odds).1);
    add("largest_cosine".into(), largest_cosine(&world));
    found
}

/// −1 outside the trees.
fn levels(world: &World) -> Vec<i32> {
    let mut levels: Vec<i32> = Vec::new();
    for feature in 0..world.n_features() as u32 {
        let root = if world.has_children(feature) { 0 } else { -1 };
        levels.push(world.parent(feature).map_or(root, |parent| levels[parent as usize] + 1));
    }
    levels
}

/// Mean and standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

/// Linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let low = at.floor() as usize;
    sorted[low] + (at - low as f64) * (sorted[at.ceil() as usize] - sorted[low])
}

/// Mean over features of the largest |cosine| with any other.
fn largest_cosine(world: &World) -> f64 {
    let rows: Vec<&[f32]> = world.features.directions.chunks(world.d_model()).collect();
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>().abs();
    let largest = |i: usize| {
        let others = rows.iter().enumerate().filter(|&(j, _)| j != i);
        others.map(|(_, row)| cosine(rows[i], row)).fold(0.0, f32::max)
    };
    (0..rows.len()).map(|i| f64::from(largest(i))).sum::<f64>() / rows.len() as f64
}

/// Means over worlds agree within four standard errors of their difference, both spreads estimated, and two in a thousand
/// for what hardly varies between worlds.
fn check(name: &str, config: &Synthetic) {
    let golden = include_str!("saelens.tsv").lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    let golden: BTreeMap<&str, (f64, f64)> = golden
        .filter(|cells| cells[0] == name)
        .map(|cells| (cells[1], (cells[2].parse().unwrap(), cells[3].parse().unwrap())))
        .collect();
    let worlds: Vec<Statistics> = (0..N_WORLDS).map(|seed| statistics(config, seed)).collect();
    assert_eq!(golden.keys().copied().collect::<Vec<_>>(), worlds[0].keys().map(String::as_str).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (&statistic, &(expected, std)) in &golden {
        let (found, of_found) = moments(&worlds.iter().map(|world| world[statistic]).collect::<Vec<_>>());
        let error = ((std * std + of_found * of_found) / N_WORLDS as f64).sqrt();
        let is_right = (found - expected).abs() <= 4.0 * error + 2e-3 * expected.abs();
        if !is_right {
            wrong.push(format!("{statistic}: {found} ± {of_found}, SAELens {expected} ± {std}"));
        }
    }
    assert!(wrong.is_empty(), "{name}: {wrong:#?}");
}

#[test]
fn our_small_world_is_saelens_s() {
    check("small", &Synthetic { preset: Preset::Small, ..Synthetic::default() });
}

#[test]
fn our_loose_small_world_is_saelens_s() {
    check("small loose", &Synthetic { preset: Preset::Small, loose: true, ..Synthetic::default() });
}
