//! How often each feature is drawn.

use artifact::config::{Probabilities, Recipe};

use crate::forest::Forest;

/// Of a feature with a parent: given that the parent is on. In the order of the features.
pub(crate) fn probabilities(recipe: &Recipe, forest: &Forest) -> Vec<f32> {
    let exponent = recipe.zipf_exponent;
    let p = match recipe.probabilities {
        Probabilities::Tight { p, compensate } => {
            let p = zipf(recipe.n_features, p, exponent);
            if compensate { compensated(&p, forest) } else { p }
        }
        Probabilities::Loose { p_child, p_root, p_alone } => {
            let mut p = zipf(forest.n_roots, p_root, exponent);
            p.resize(forest.n_in_trees, p_child);
            p.extend(zipf(recipe.n_features - forest.n_in_trees, p_alone, exponent));
            p
        }
    };
    p.into_iter().map(|p| p as f32).collect()
}

/// i^−exponent for i = 1 … n, moved and stretched so that the first is `max` and the last `min`.
fn zipf(n: usize, (max, min): (f64, f64), exponent: f64) -> Vec<f64> {
    let power = |i: usize| ((i + 1) as f64).powf(-exponent);
    let last = power(n.max(1) - 1);
    // All are equal with an exponent of 0, and a single one is both first and last: the highest, then.
    let share = |i: usize| if last < 1.0 { (power(i) - last) / (1.0 - last) } else { 1.0 };
    (0..n).map(|i| min + (max - min) * share(i)).collect()
}

/// p / p_parent · (1 + Σ p of the siblings that exclude it / p_parent), 1 at the most: what to draw a child with under its
/// parent so that it fires with about p. It is exact without exclusion, and falls short with it the more, the more
/// siblings are drawn together.
fn compensated(p: &[f64], forest: &Forest) -> Vec<f64> {
    let mut all_children = vec![0.0; p.len()];
    for (parent, p) in forest.parent.iter().zip(p) {
        if let Some(parent) = parent {
            all_children[*parent as usize] += p;
        }
    }
    let compensated = |(feature, &p_own): (usize, &f64)| {
        let Some(parent) = forest.parent[feature].map(|parent| parent as usize) else { return p_own };
        if p[parent] <= 0.0 {
            return p_own;
        }
        let others = if forest.excludes[parent] { (all_children[parent] - p_own).max(0.0) } else { 0.0 };
        (p_own / p[parent] * (1.0 + others / p[parent])).min(1.0)
    };
    p.iter().enumerate().map(compensated).collect()
}

#[cfg(test)]
mod tests {
    use artifact::config::Synthetic;

    use super::*;

    #[test]
    fn a_zipf_law_meets_its_ends() {
        let p = zipf(100, (0.4, 5e-4), 0.5);
        assert!((p[0] - 0.4).abs() <= 1e-15 && (p[99] - 5e-4).abs() <= 1e-15);
        // (4^−½ − 100^−½) / (1 − 100^−½) = .4 / .9.
        assert!((p[3] - (5e-4 + 0.3995 * 4.0 / 9.0)).abs() <= 1e-12);
        assert_eq!(zipf(3, (0.2, 0.2), 0.5), [0.2; 3]);
        assert_eq!(zipf(1, (0.2, 0.1), 0.5), [0.2]);
        assert_eq!(zipf(2, (0.2, 0.1), 0.0), [0.2; 2]);
        assert!(zipf(0, (0.2, 0.1), 0.5).is_empty());
    }

    #[test]
    fn compensation_follows_its_formula_and_stops_at_one() {
        let config = Synthetic {
            n_features: Some(8),
            n_roots: Some(1),
            branching: Some(2),
            depth: Some(2),
            p_max: Some(0.4),
            p_min: Some(0.05),
            ..Synthetic::default()
        };
        let recipe = config.recipe();
        let forest = Forest::new(&recipe, 0);
        let base = zipf(8, (0.4, 0.05), 0.5);
        let p = probabilities(&recipe, &forest);
        let expected = |own: usize, sibling: usize, parent: usize| {
            (base[own] / base[parent] * (1.0 + base[sibling] / base[parent])).min(1.0)
        };
        for (feature, expected) in [
            (0, base[0]),
            (1, expected(1, 2, 0)),
            (2, expected(2, 1, 0)),
            (3, expected(3, 4, 1)),
            (6, expected(6, 5, 2)),
            (7, base[7]),
        ] {
            assert!((f64::from(p[feature]) - expected).abs() <= 1e-7, "feature {feature}: {}", p[feature]);
        }
    }
}
