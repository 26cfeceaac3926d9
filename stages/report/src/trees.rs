//! Means over the edges of a tree, from `recover/summary.json`. Source: science.md §6.

use anyhow::{Context, Result};
use artifact::tables::Metric;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::figures::{Figure, Mode, Name, Source};
use crate::measures::COMPETING_TREES;

/// Of these, families of SAEs are compared by.
const COMPARED: [&str; 2] = ["mi_over_nested", "n_measured"];

/// A tree's own columns in the summary; whatever else stands there is a mean over its edges.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TreeSummary {
    sae: String,
    seed: u64,
    view: String,
    threshold: String,
    tree: String,
    #[serde(flatten)]
    figures: Map<String, Value>,
}

#[derive(Deserialize)]
struct Mean {
    /// Null where no edge has been measured.
    value: Option<f64>,
    ci_low: Option<f64>,
    ci_high: Option<f64>,
}

/// For every tree of every mode, each number and each mean of the summary, with `tree_` in front of its name.
///
/// Errors: a mean is not of the form `{value, ci_low, ci_high}`.
pub(crate) fn of_summary(trees: &[TreeSummary]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for tree in trees {
        for (name, value) in &tree.figures {
            let figure = tree.figure(name, value).with_context(|| format!("recover/summary.json: {name}"))?;
            figures.extend(figure);
        }
    }
    Ok(figures)
}

/// What families of SAEs are compared by: I / I_nested over the edges of each tree that competes, `…_own` and `…_posthoc`,
/// with the number of edges that it is a mean of, and without a name that of the SAE's first tree, its own or else the
/// post-hoc one. Flat rows alone, since gated ones show what the gate enforces.
///
/// Errors: as of [`of_summary`].
pub(crate) fn compared(trees: &[TreeSummary]) -> Result<Vec<Metric>> {
    let has_own = |of: &TreeSummary| {
        trees.iter().any(|tree| tree.tree == "own" && (&tree.sae, &tree.threshold) == (&of.sae, &of.threshold))
    };
    let mut metrics = Vec::new();
    let competes = |tree: &&TreeSummary| tree.view == "flat" && COMPETING_TREES.contains(&tree.tree.as_str());
    for tree in trees.iter().filter(competes) {
        let is_first = tree.tree == "own" || !has_own(tree);
        for (name, value) in tree.figures.iter().filter(|(name, _)| COMPARED.contains(&name.as_str())) {
            let figure = tree.figure(name, value).with_context(|| format!("recover/summary.json: {name}"))?;
            let Some(Figure { metric, level, value, ci_low, ci_high, .. }) = figure else { continue };
            let named = Metric {
                sae: tree.sae.clone(),
                seed: tree.seed,
                view: tree.view.clone(),
                threshold: tree.threshold.clone(),
                metric: format!("{metric}_{}", tree.tree),
                level,
                value,
                ci_low,
                ci_high,
            };
            let has_plain_name = is_first && !Name::new(&metric, &named.level).is_count();
            metrics.extend(has_plain_name.then(|| Metric { metric, ..named.clone() }));
            metrics.push(named);
        }
    }
    Ok(metrics)
}

impl TreeSummary {
    fn figure(&self, name: &str, value: &Value) -> Result<Option<Figure>> {
        let (mean, column) = match value {
            // Which tree's children a control shares; no figure.
            Value::String(_) => return Ok(None),
            Value::Number(number) => (Mean { value: number.as_f64(), ci_low: None, ci_high: None }, name.to_owned()),
            _ => (Mean::deserialize(value)?, format!("{name}.value")),
        };
        let Some(value) = mean.value else { return Ok(None) };
        let mode =
            Mode { sae: self.sae.clone(), seed: self.seed, view: self.view.clone(), threshold: self.threshold.clone() };
        let filter = format!("trees: {} and tree = '{}'", mode.filter(), self.tree);
        let source = Source { artifact: "recover/summary.json".into(), column, filter };
        Ok(Some(Figure {
            metric: format!("tree_{name}"),
            level: "all".into(),
            tree: Some(self.tree.clone()),
            value,
            ci_low: mean.ci_low,
            ci_high: mean.ci_high,
            ..Figure::empty(mode, source)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn summary(figures: Value) -> Result<Vec<Figure>> {
        let mut tree = json!({"sae": "a", "seed": 0, "view": "flat", "threshold": "native", "tree": "own"});
        tree.as_object_mut().unwrap().extend(figures.as_object().unwrap().clone());
        of_summary(&[serde_json::from_value(tree)?])
    }

    #[test]
    fn numbers_and_means_become_figures_and_words_do_not() {
        let figures =
            summary(json!({"base": "own", "n_edges": 3, "mi_bits": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}}));
        let figures = figures.unwrap();
        let found: Vec<_> = figures.iter().map(|f| (f.metric.as_str(), f.value, f.ci_low)).collect();
        assert_eq!(found, [("tree_n_edges", 3.0, None), ("tree_mi_bits", 0.5, Some(0.4))]);
        assert_eq!(figures[1].source.column, "mi_bits.value");
    }

    #[test]
    fn a_mean_over_no_edges_is_no_figure() {
        assert!(summary(json!({"mi_bits": {"value": null}})).unwrap().is_empty());
    }

    #[test]
    fn another_form_is_refused_by_name() {
        let error = format!("{:#}", summary(json!({"mi_bits": [1]})).unwrap_err());
        assert!(error.contains("recover/summary.json: mi_bits"), "{error}");
    }

    #[test]
    fn families_are_compared_by_the_flat_trees_that_compete() {
        let tree = |sae: &str, view: &str, tree: &str, value: Value| -> TreeSummary {
            serde_json::from_value(json!({
                "sae": sae, "seed": 0, "view": view, "threshold": "prior", "tree": tree, "base": tree, "n_edges": 3,
                "n_measured": 2, "mi_over_nested": {"value": value, "ci_low": null, "ci_high": null},
            }))
            .unwrap()
        };
        let trees = [
            tree("flat", "flat", "posthoc", json!(0.4)),
            tree("flat", "flat", "cosine", json!(0.1)),
            tree("tree", "flat", "own", json!(0.6)),
            tree("tree", "flat", "posthoc", json!(0.5)),
            tree("tree", "gated", "own", json!(0.9)),
            tree("empty", "flat", "posthoc", json!(null)),
            tree("rare", "flat", "own", json!(0.7)),
            tree("rare", "flat", "posthoc", json!(null)),
            tree("late", "flat", "own", json!(null)),
            tree("late", "flat", "posthoc", json!(0.8)),
        ];
        let metrics = compared(&trees).unwrap();
        let (counts, metrics): (Vec<_>, Vec<_>) = metrics.into_iter().partition(|row| row.metric.contains("_n_"));
        // Of each flat tree that competes, measured or not; and never without the tree's name.
        let names: Vec<_> = counts.iter().map(|row| row.metric.as_str()).collect();
        let (own, posthoc) = ("tree_n_measured_own", "tree_n_measured_posthoc");
        assert_eq!(names, [posthoc, own, posthoc, posthoc, own, posthoc, own, posthoc]);
        assert!(counts.iter().all(|row| row.value == 2.0));
        let found: Vec<_> = metrics.iter().map(|row| (row.sae.as_str(), row.metric.as_str(), row.value)).collect();
        let expected = [
            ("flat", "tree_mi_over_nested", 0.4),
            ("flat", "tree_mi_over_nested_posthoc", 0.4),
            ("tree", "tree_mi_over_nested", 0.6),
            ("tree", "tree_mi_over_nested_own", 0.6),
            ("tree", "tree_mi_over_nested_posthoc", 0.5),
            ("rare", "tree_mi_over_nested", 0.7),
            ("rare", "tree_mi_over_nested_own", 0.7),
            ("late", "tree_mi_over_nested_posthoc", 0.8),
        ];
        assert_eq!(found, expected);
    }
}
