//! Means over the edges of a tree. Source: science.md §6.

use std::collections::BTreeMap;

use artifact::tables::Edge;

use crate::figures::{Figure, Mode, Source};

/// A false-discovery rate below which an edge counts as significant.
const MAX_Q: f64 = 0.05;

/// A measure of one edge, and where it comes from: (name, SQL, value).
type Measure = (&'static str, &'static str, fn(&Edge) -> f64);

/// What is averaged over edges.
const MEASURES: [Measure; 5] = [
    ("p_parent_given_child", "avg(p_parent_given_child)", |edge| edge.p_parent_given_child),
    ("p_child_given_parent", "avg(p_child_given_parent)", |edge| edge.p_child_given_parent),
    ("mi_over_nested", "avg(mi_over_nested)", |edge| edge.mi_over_nested),
    ("mi_over_h_child", "avg(mi_over_h_child)", |edge| edge.mi_over_h_child),
    ("significant_edges", "avg(q_value <= 0.05 and log_odds > 0)", |edge| {
        f64::from(edge.q_value <= MAX_Q && edge.log_odds > 0.0)
    }),
];

/// For every tree of every mode: the number of edges and the mean of each measure, metric names as in [`MEASURES`] with
/// `tree_` in front.
pub(crate) fn summarise(edges: &[Edge]) -> Vec<Figure> {
    let mut trees: BTreeMap<(Mode, &str), Vec<&Edge>> = BTreeMap::new();
    for edge in edges {
        let mode =
            Mode { sae: edge.sae.clone(), seed: edge.seed, view: edge.view.clone(), threshold: edge.threshold.clone() };
        trees.entry((mode, &edge.tree)).or_default().push(edge);
    }
    trees.into_iter().flat_map(|((mode, tree), edges)| of_tree(&mode, tree, &edges)).collect()
}

fn of_tree(mode: &Mode, tree: &str, edges: &[&Edge]) -> Vec<Figure> {
    let figure = |metric: &str, column: &str, value: f64, half_width: Option<f64>| Figure {
        metric: format!("tree_{metric}"),
        level: "all".into(),
        tree: Some(tree.into()),
        value,
        ci_low: half_width.map(|half_width| value - half_width),
        ci_high: half_width.map(|half_width| value + half_width),
        ..Figure::empty(
            mode.clone(),
            Source {
                artifact: "recover/edges.parquet".into(),
                column: column.into(),
                filter: format!("{} and tree = '{tree}'", mode.filter()),
            },
        )
    };
    let mut figures = vec![figure("n_edges", "count(*)", edges.len() as f64, None)];
    for (metric, column, measure) in MEASURES {
        let values: Vec<(u32, f64)> = edges.iter().map(|edge| (edge.parent, measure(edge))).collect();
        let (mean, half_width) = mean_by_parent(&values);
        figures.push(figure(metric, column, mean, half_width));
    }
    figures
}

/// The mean over edges x_i, and the half width of its 95 % interval, edges of one parent counted as one observation since
/// they share its firing: 1.96 · sqrt(G/(G − 1) · Σ_parents (Σ_i (x_i − mean))²) / n, G parents. No interval for a single
/// parent. `values` is not empty.
fn mean_by_parent(values: &[(u32, f64)]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().map(|(_, x)| x).sum::<f64>() / n;
    let mut by_parent: BTreeMap<u32, f64> = BTreeMap::new();
    for (parent, x) in values {
        *by_parent.entry(*parent).or_default() += x - mean;
    }
    let n_parents = by_parent.len() as f64;
    let squares: f64 = by_parent.values().map(|sum| sum * sum).sum();
    let half_width = 1.96 * (n_parents / (n_parents - 1.0) * squares).sqrt() / n;
    (mean, (by_parent.len() > 1).then_some(half_width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_edge_a_parent_gives_the_usual_standard_error() {
        let values = [(0, 0.2), (1, 0.4), (2, 0.9), (3, 0.5)];
        let (mean, half_width) = mean_by_parent(&values);
        let variance = values.iter().map(|(_, x)| (x - mean).powi(2)).sum::<f64>() / 3.0;
        assert!((mean - 0.5).abs() <= 1e-12);
        assert!((half_width.unwrap() - 1.96 * (variance / 4.0).sqrt()).abs() <= 1e-12);
    }

    #[test]
    fn copies_of_an_edge_under_its_parent_add_no_certainty() {
        let once = [(0, 0.2), (1, 0.4), (2, 0.9)];
        let thrice: Vec<_> = once.iter().flat_map(|value| [*value; 3]).collect();
        let (a, b) = (mean_by_parent(&once), mean_by_parent(&thrice));
        assert!((a.0 - b.0).abs() <= 1e-12);
        assert!((a.1.unwrap() - b.1.unwrap()).abs() <= 1e-12);
    }

    #[test]
    fn a_single_parent_has_no_interval() {
        assert_eq!(mean_by_parent(&[(7, 0.25), (7, 0.75)]), (0.5, None));
    }
}
