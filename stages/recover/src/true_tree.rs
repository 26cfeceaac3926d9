//! A tree of latents against the planted tree of features (science.md §7).

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::firing::Firing;
use crate::matching::Matching;
use crate::measure::{Measure, mean, share};
use crate::tree::Tree;
use crate::truth::{Truth, n_common};

/// Fewer rows give no rate.
const MIN_ROWS: usize = 20;

/// Scores of a tree's edges. A predicted edge counts as right when both its ends are matched and the parent's feature is
/// the planted parent of the child's. `suffix` ends every metric's name.
pub(crate) fn of_edges(tree: &Tree, truth: &Truth, matching: &Matching, suffix: &str) -> Vec<Measure> {
    let holdable = holdable_edges(truth, matching.n_latents);
    let predicted = Predicted::of(&tree.edges(), truth, matching);
    let could_be_right = |child: &&usize| {
        let parent = truth.parent[**child];
        matching.latent[**child].is_some() && parent.is_some_and(|parent| matching.latent[parent].is_some())
    };
    let n_in_reach = holdable.iter().filter(could_be_right).count();
    let parts = [
        // Predicted edges with both ends matched, of all predicted ones.
        ("match_coverage", share(predicted.n_both_matched, predicted.n)),
        // Right edges, of those with both ends matched.
        ("edge_accuracy_matched", share(predicted.right.len(), predicted.n_both_matched)),
        // Planted edges whose both features have a latent, of those an SAE of this width could hold: recall's ceiling.
        // It is the same for all trees, and told with the unnamed one.
        ("edge_ceiling", share(n_in_reach, holdable.len()).filter(|_| suffix.is_empty())),
        // Edges whose parent stands for an ancestor of the child's feature, of those whose child is matched.
        ("ancestor_accuracy", share(predicted.n_ancestors, predicted.n_child_matched)),
        ("n_predicted_edges", Some(predicted.n as f64)),
    ];
    named(predicted.scores(&holdable).into_iter().chain(parts), suffix)
}

/// The scores of an own tree's edges whose child is `eligible`, the others taken away: its children then pass the count
/// rule that a post-hoc tree's have passed, while the planted edges to be found remain all.
pub(crate) fn of_eligible_edges(
    tree: &Tree,
    truth: &Truth,
    matching: &Matching,
    eligible: impl Fn(usize) -> bool,
) -> Vec<Measure> {
    let edges: Vec<_> = tree.edges().into_iter().filter(|&(child, _)| eligible(child as usize)).collect();
    let predicted = Predicted::of(&edges, truth, matching);
    named(predicted.scores(&holdable_edges(truth, matching.n_latents)), "_eligible")
}

/// What edges come to when their ends are read as features.
struct Predicted {
    n: usize,
    n_child_matched: usize,
    n_both_matched: usize,
    n_ancestors: usize,
    /// Children, as features, of the right ones.
    right: BTreeSet<usize>,
}

impl Predicted {
    /// Edges as (child, parent).
    fn of(edges: &[(u32, u32)], truth: &Truth, matching: &Matching) -> Self {
        let feature = |latent: u32| matching.feature[latent as usize];
        let mut predicted =
            Self { n: edges.len(), n_child_matched: 0, n_both_matched: 0, n_ancestors: 0, right: BTreeSet::new() };
        for &(child, parent) in edges {
            let Some(child) = feature(child) else { continue };
            predicted.n_child_matched += 1;
            let Some(parent) = feature(parent) else { continue };
            predicted.n_both_matched += 1;
            predicted.n_ancestors += usize::from(ancestors(truth, child).contains(&parent));
            if truth.parent[child] == Some(parent) {
                predicted.right.insert(child);
            }
        }
        predicted
    }

    fn scores(&self, holdable: &BTreeSet<usize>) -> [(&'static str, Option<f64>); 3] {
        // Of all predicted edges: one with an unmatched end is a miss.
        let precision = share(self.right.len(), self.n);
        // Of the planted edges that an SAE of this width could hold.
        let recall = share(self.right.intersection(holdable).count(), holdable.len());
        let f1 = recall.map(|recall| match precision.unwrap_or(0.0) {
            precision if precision + recall > 0.0 => 2.0 * precision * recall / (precision + recall),
            _ => 0.0,
        });
        [("edge_precision", precision), ("edge_recall", recall), ("edge_f1", f1)]
    }
}

fn named(measures: impl IntoIterator<Item = (&'static str, Option<f64>)>, suffix: &str) -> Vec<Measure> {
    let named = |(metric, value): (&str, Option<f64>)| Some(Measure::new(format!("{metric}{suffix}"), value?));
    measures.into_iter().filter_map(named).collect()
}

/// True absorption: P(parent's latent off | child feature on) − P(parent's latent off | parent feature on, no child on),
/// the mean over planted edges whose parent is matched, whose child is on in [`MIN_ROWS`] rows and whose parent fires
/// alone in as many. Where parents hardly ever fire alone the second rate is a guess, so the first, the miss rate, is
/// given too, over all edges that have one, and how many edges each is over. Which edges these are differs from one SAE
/// to the next; `absorption_miss_all` is over the same ones for all, a parent without a latent being off wherever its
/// child is on. In a forest of more than one generation the others stand once more for the children of each depth, those
/// of roots being at depth 1.
pub(crate) fn absorption(truth: &Truth, matching: &Matching, firing: &Firing) -> Vec<Measure> {
    let holdable: Vec<usize> = holdable_edges(truth, matching.n_latents).into_iter().collect();
    let rates = holdable.par_iter().filter_map(|&child| absorption_of(truth, matching, firing, child));
    let rates: Vec<Absorption> = rates.collect();
    let mut measures = of_absorption(rates.iter(), "");
    let is_often_on = |child: &&usize| truth.firing.latent(**child).0.len() >= MIN_ROWS;
    let n_all = holdable.iter().filter(is_often_on).count();
    let n_without_latent = n_all - rates.len();
    let missed = rates.iter().map(|rate| rate.miss).chain(std::iter::repeat_n(1.0, n_without_latent));
    measures.extend(named([("absorption_miss_all", mean(missed))], ""));
    let deepest = rates.iter().map(|rate| rate.depth).max().unwrap_or(0);
    for depth in (1..=deepest).filter(|_| deepest > 1) {
        let at_depth = rates.iter().filter(|rate| rate.depth == depth);
        measures.extend(of_absorption(at_depth, &format!("_depth_{depth}")));
    }
    measures
}

/// Of one planted edge.
struct Absorption {
    depth: usize,
    miss: f64,
    difference: Option<f64>,
}

fn absorption_of(truth: &Truth, matching: &Matching, firing: &Firing, child: usize) -> Option<Absorption> {
    let parent = truth.parent[child]?;
    let on = firing.latent(matching.latent[parent]?).0;
    let off_rate = |rows: &[u32]| {
        let n_off = rows.len() - n_common(on, rows);
        (rows.len() >= MIN_ROWS).then(|| n_off as f64 / rows.len() as f64)
    };
    let miss = off_rate(truth.firing.latent(child).0)?;
    let difference = off_rate(&truth.alone[parent]).map(|base| miss - base);
    Some(Absorption { depth: ancestors(truth, child).len(), miss, difference })
}

fn of_absorption<'a>(rates: impl Iterator<Item = &'a Absorption> + Clone, suffix: &str) -> Vec<Measure> {
    let differences = rates.clone().filter_map(|rate| rate.difference);
    let measures = [
        ("absorption_n_edges", Some(differences.clone().count() as f64)),
        ("absorption_miss_n_edges", Some(rates.clone().count() as f64)),
        ("absorption", mean(differences)),
        ("absorption_miss", mean(rates.map(|rate| rate.miss))),
    ];
    named(measures, suffix)
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
        let expected =
            [("absorption", 0.0), ("absorption_miss", 0.0), ("absorption_miss_all", 0.0), ("absorption_n_edges", 18.0)];
        check(&absorbed, &expected);
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
        // Without the edge of child 12, which is too rare.
        check(
            &of_eligible_edges(&tree, &truth, &matching, |child| child != 12),
            &[("edge_precision_eligible", 1.0 / 3.0), ("edge_recall_eligible", 1.0 / 18.0)],
        );
        // Of 18 children the three under feature 1 have no parent that could be on, and 6 is never on with 7.
        let absorbed = absorption(&truth, &matching, &planted::firing(&gates));
        check(&absorbed, &[("absorption_miss_n_edges", 15.0), ("absorption_miss_all", 4.0 / 18.0)]);
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
        assert!(!measures.iter().any(|measure| measure.metric.contains("depth")));
    }

    /// A chain 0 → 1 → 2: 0 is on in rows 0..300, 1 in 100..300, 2 in 200..300.
    #[test]
    fn absorption_is_told_by_depth() {
        let on = |on: bool| f32::from(u8::from(on));
        let gates = |silent: std::ops::Range<usize>| -> Dense {
            (0..400)
                .map(|row| {
                    vec![
                        on(row < 300),
                        on((100..300).contains(&row) && !silent.contains(&row)),
                        on((200..300).contains(&row)),
                    ]
                })
                .collect()
        };
        let directions: Vec<f32> = (0..9).map(|i| on(i / 3 == i % 3)).collect();
        let truth =
            Truth::new(directions, vec![None, Some(0), Some(1)], vec![0.75, 0.5, 0.25], planted::firing(&gates(0..0)));
        assert_eq!(truth.alone.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 100]);
        // Latent 1 is off in a quarter of the rows of feature 2 and in a tenth of those in which 1 is on alone.
        let measures = absorption(&truth, &perfect(&truth), &planted::firing(&gates(190..225)));
        check(
            &measures,
            &[
                ("absorption_depth_1", 0.0),
                ("absorption_depth_2", 0.25 - 0.1),
                ("absorption_miss_depth_2", 0.25),
                ("absorption_n_edges_depth_2", 1.0),
                ("absorption_n_edges", 2.0),
            ],
        );
    }
}
