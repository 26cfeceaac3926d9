//! Means over the edges of a tree, from `recover/summary.json`. Source: science.md §6.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::figures::{Figure, Mode, Source};

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
}
