//! A tree of latents against the planted tree of features (science.md §7).

use std::collections::BTreeSet;

use crate::firing::Firing;
use crate::matching::Matching;
use crate::measure::{Measure, mean, share};
use crate::tree::Tree;
use crate::truth::{Truth, n_common};

/// Fewer rows give no rate.
const MIN_ROWS: usize = 20;

/// Scores of predicted edges. A predicted edge counts as right when both its ends are matched and the parent's feature is
/// the planted parent of the child's. `suffix` ends every metric's name.
pub(crate) fn of_edges(tree: &Tree, truth: &Truth, matching: &Matching, suffix: &str) -> Vec<Measure> {
    let holdable = holdable_edges(truth, matching.n_latents);
    let predicted = tree.edges();
    let feature = |latent: u32| matching.feature[latent as usize];
    let ends = || predicted.iter().map(|&(child, parent)| (feature(child), feature(parent)));
    let both_matched: Vec<(usize, usize)> = ends().filter_map(|(child, parent)| Some((child?, parent?))).collect();
    let right: BTreeSet<usize> = both_matched
        .iter()
        .filter(|&&(child, parent)| truth.parent[child] == Some(parent))
        .map(|&(child, _)| child)
        .collect();
    let n_right_holdable = right.intersection(&holdable).count();
    let child_matched: Vec<_> = ends().filter_map(|(child, parent)| Some((child?, parent))).collect();
    let is_ancestor = |&&(child, parent): &&(usize, Option<usize>)| {
        parent.is_some_and(|parent| ancestors(truth, child).contains(&parent))
    };
    let n_ancestors = child_matched.iter().filter(is_ancestor).count();
    let could_be_right = |child: &&usize| {
        let parent = truth.parent[**child];
        matching.latent[**child].is_some() && parent.is_some_and(|parent| matching.latent[parent].is_some())
    };
    let n_in_reach = holdable.iter().filter(could_be_right).count();

    // Of all predicted edges: one with an unmatched end is a miss.
    let precision = share(right.len(), predicted.len());
    // Of the planted edges that an SAE of this width could hold.
    let recall = share(n_right_holdable, holdable.len());
    let f1 = recall.map(|recall| match precision.unwrap_or(0.0) {
        precision if precision + recall > 0.0 => 2.0 * precision * recall / (precision + recall),
        _ => 0.0,
    });
    let measures = [
        ("edge_precision", precision),
        ("edge_recall", recall),
        ("edge_f1", f1),
        // Predicted edges with both ends matched, of all predicted ones.
        ("match_coverage", share(both_matched.len(), predicted.len())),
        // Right edges, of those with both ends matched.
        ("edge_accuracy_matched", share(right.len(), both_matched.len())),
        // Planted edges whose both features have a latent, of those an SAE of this width could hold: recall's ceiling.
        // It is the same for all trees, and told with the unnamed one.
        ("edge_ceiling", share(n_in_reach, holdable.len()).filter(|_| suffix.is_empty())),
        // Edges whose parent stands for an ancestor of the child's feature, of those whose child is matched.
        ("ancestor_accuracy", share(n_ancestors, child_matched.len())),
        ("n_predicted_edges", Some(predicted.len() as f64)),
    ];
    let named = |(metric, value): (&str, Option<f64>)| Some(Measure::new(format!("{metric}{suffix}"), value?));
    measures.into_iter().filter_map(named).collect()
}

/// True absorption: P(parent's latent off | child feature on) − P(parent's latent off | parent feature on, no child on),
/// the mean over planted edges whose parent is matched, whose child is on in [`MIN_ROWS`] rows and whose parent fires
/// alone in as many. Where parents hardly ever fire alone the second rate is a guess, so the first, the miss rate, is
/// given too, over all edges that have one, and how many edges each is over.
pub(crate) fn absorption(truth: &Truth, matching: &Matching, firing: &Firing) -> Vec<Measure> {
    let (mut misses, mut differences) = (Vec::new(), Vec::new());
    for child in holdable_edges(truth, matching.n_latents) {
        let Some(parent) = truth.parent[child] else { continue };
        let Some(latent) = matching.latent[parent] else { continue };
        let on = firing.latent(latent).0;
        let off_rate = |rows: &[u32]| {
            let n_off = rows.len() - n_common(on, rows);
            (rows.len() >= MIN_ROWS).then(|| n_off as f64 / rows.len() as f64)
        };
        let Some(miss) = off_rate(truth.firing.latent(child).0) else { continue };
        misses.push(miss);
        differences.extend(off_rate(&rows_alone(truth, parent)).map(|base| miss - base));
    }
    let measures = [
        ("absorption_n_edges", Some(differences.len() as f64)),
        ("absorption_miss_n_edges", Some(misses.len() as f64)),
        ("absorption", mean(differences)),
        ("absorption_miss", mean(misses)),
    ];
    measures.into_iter().filter_map(|(metric, value)| Some(Measure::new(metric, value?))).collect()
}

/// Children of the planted edges among the `n_latents` most frequent features: what a dictionary of that width could
/// hold. Of equally frequent features, the first.
fn holdable_edges(truth: &Truth, n_latents: usize) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..truth.n_features()).collect();
    order.sort_by(|&a, &b| truth.firing_rate[b].total_cmp(&truth.firing_rate[a]).then(a.cmp(&b)));
    let held: BTreeSet<usize> = order.into_iter().take(n_latents).collect();
    held.iter().copied().filter(|&child| truth.parent[child].is_some_and(|parent| held.contains(&parent))).collect()
}

/// Its parent, its parent's parent and so on; stops where planted parents run in a circle.
fn ancestors(truth: &Truth, feature: usize) -> BTreeSet<usize> {
    let mut ancestors = BTreeSet::new();
    let mut next = truth.parent[feature];
    while let Some(parent) = next.filter(|&parent| ancestors.insert(parent)) {
        next = truth.parent[parent];
    }
    ancestors
}

/// Rows in which a feature is on and none of its children is.
fn rows_alone(truth: &Truth, feature: usize) -> Vec<u32> {
    let is_child = |other: &u32| truth.parent[*other as usize] == Some(feature);
    let is_alone = |row: &u32| !truth.firing.row(*row as usize).0.iter().any(is_child);
    truth.firing.latent(feature).0.iter().copied().filter(is_alone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::{self, Dense};
    use crate::truth::tests::forest_truth;

    fn perfect(truth: &Truth) -> Matching {
        Matching::new(&truth.directions, &truth.directions, truth.n_features(), 0.5).unwrap()
    }

    fn true_edges(truth: &Truth) -> Vec<(u32, u32)> {
        let edges = truth.parent.iter().enumerate();
        edges.filter_map(|(child, parent)| Some((child as u32, (*parent)? as u32))).collect()
    }

    fn check(measures: &[Measure], expected: &[(&str, f64)]) {
        for (metric, expected) in expected {
            let found = measures.iter().find(|measure| measure.metric == *metric).unwrap().value;
            assert!((found - expected).abs() <= 1e-12, "{metric}: {found}, expected {expected}");
        }
    }

    #[test]
    fn the_planted_tree_itself_is_perfect() {
        let (truth, gates) = forest_truth(4000, 0);
        let tree = Tree::from_edges("own", &true_edges(&truth), &planted::firing(&gates));
        let measures = of_edges(&tree, &truth, &perfect(&truth), "");
        for metric in
            ["edge_precision", "edge_recall", "edge_f1", "match_coverage", "edge_ceiling", "ancestor_accuracy"]
        {
            check(&measures, &[(metric, 1.0)]);
        }
        let absorbed = absorption(&truth, &perfect(&truth), &planted::firing(&gates));
        check(&absorbed, &[("absorption", 0.0), ("absorption_miss", 0.0), ("absorption_n_edges", 18.0)]);
    }

    #[test]
    fn unmatched_ends_are_misses_and_grandparents_only_ancestors() {
        let (mut truth, gates) = forest_truth(4000, 1);
        let n = truth.n_features();
        // A chain 0 → 6 → 7, so that 0 is an ancestor of 7 and no longer its parent.
        truth.parent[7] = Some(6);
        let mut w_dec = truth.directions.clone();
        // Feature 1 has no latent: its row becomes nothing.
        w_dec[n..2 * n].fill(0.0);
        let matching = Matching::new(&w_dec, &truth.directions, n, 0.5).unwrap();
        // Predicted: 6 → 0 right, 7 → 0 an ancestor, 9 → 1 with an unmatched parent, 12 → 3 wrong.
        let tree = Tree::from_edges("own", &[(6, 0), (7, 0), (9, 1), (12, 3)], &planted::firing(&gates));
        check(
            &of_edges(&tree, &truth, &matching, ""),
            &[
                ("edge_precision", 1.0 / 4.0),
                ("edge_recall", 1.0 / 18.0),
                ("edge_f1", 2.0 / (4.0 + 18.0)),
                ("match_coverage", 3.0 / 4.0),
                ("edge_accuracy_matched", 1.0 / 3.0),
                // The three edges under feature 1 are out of reach.
                ("edge_ceiling", 15.0 / 18.0),
                ("ancestor_accuracy", 2.0 / 4.0),
            ],
        );
        let named = of_edges(&tree, &truth, &matching, "_cosine");
        check(&named, &[("edge_precision_cosine", 1.0 / 4.0)]);
        assert!(!named.iter().any(|measure| measure.metric.starts_with("edge_ceiling")));
    }

    #[test]
    fn only_edges_that_fit_the_width_count_for_recall() {
        let (truth, _) = forest_truth(4000, 2);
        // The six parents and the six lone latents fire more often than any child.
        assert!(holdable_edges(&truth, 12).is_empty());
        assert_eq!(holdable_edges(&truth, 13).len(), 1);
        assert_eq!(holdable_edges(&truth, truth.n_features()).len(), 18);
    }

    #[test]
    fn a_parent_that_is_silent_under_one_child_is_absorbed_there() {
        let (truth, gates) = forest_truth(6000, 3);
        // Latent 0 is off wherever feature 6, its first child, is on.
        let mut absorbed: Dense = gates;
        absorbed.iter_mut().filter(|row| row[6] > 0.0).for_each(|row| row[0] = 0.0);
        let measures = absorption(&truth, &perfect(&truth), &planted::firing(&absorbed));
        check(&measures, &[("absorption", 1.0 / 18.0), ("absorption_miss", 1.0 / 18.0)]);
    }
}
