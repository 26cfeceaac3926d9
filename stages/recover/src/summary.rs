//! Means over the edges of a tree: what `summary.json` says, and what the report compares.

use serde_json::{Map, Value, json};

use crate::edges::Measured;
use crate::information::{self, log_odds};
use crate::measure::{mean, share};
use crate::resampling::centred_interval;

/// Below this false discovery rate an edge counts as significant.
const MAX_Q: f64 = 0.05;

/// Of one edge: an estimate, and what it is in each resample.
type Estimate = fn(&Measured) -> f64;
type InResamples = fn(&Measured) -> &Vec<f64>;

/// How `summary.json` is to be read; it opens the file.
pub(crate) fn notes() -> Value {
    json!({
        "measured_on": "the half of the held-out documents that had no part in choosing edges",
        "n_edges": "edges of the tree; n_measured of them have a child that fires at least recover.min_firings times on \
                    the choosing half and both ends fire on the measuring half; means are over these",
        "interval": "95 %, bootstrap over documents, the resamples centred on the estimate",
        "significant": "share with q < 0.05, Benjamini-Hochberg over the measured edges of this tree of this SAE in this \
                        mode; above_null: mutual information above the 97.5 % quantile of circular shifts",
    })
}

/// A number of edges and means over the measured ones, each `{value, ci_low, ci_high}`; null where there are none.
pub(crate) fn of_edges(n_edges: usize, edges: &[Measured]) -> Map<String, Value> {
    let p_parent = mean(edges.iter().filter_map(|edge| information::p_parent_given_child(edge.counts)));
    let p_child = mean(edges.iter().filter_map(|edge| information::p_child_given_parent(edge.counts)));
    let mean_of = |of_edge: Estimate| mean(edges.iter().map(of_edge));
    let means: [(&str, Option<f64>, InResamples); 5] = [
        ("p_parent_given_child", p_parent, |edge| &edge.resampled.p_parent_given_child),
        ("p_child_given_parent", p_child, |edge| &edge.resampled.p_child_given_parent),
        ("mi_bits", mean_of(|edge| edge.mi_bits), |edge| &edge.resampled.mi_bits),
        ("mi_over_nested", mean_of(|edge| information::mi_over_nested(edge.counts)), |edge| {
            &edge.resampled.mi_over_nested
        }),
        ("mi_over_h_child", mean_of(|edge| information::mi_over_h_child(edge.counts)), |edge| {
            &edge.resampled.mi_over_h_child
        }),
    ];
    // Resamples are means over the edges defined there, rare children more often missing than others, and mutual
    // information has its bias twice: either way they lie off the estimate, on which the interval is centred.
    let resampled = means.map(|(name, value, of_edge)| {
        (name, value, value.and_then(|value| centred_interval(of_resamples(edges, of_edge), value)))
    });
    let share_of = |holds: fn(&Measured) -> bool| share(edges.iter().filter(|edge| holds(edge)).count(), edges.len());
    let plain = [
        ("significant", share_of(|edge| edge.q_value < MAX_Q)),
        ("significant_positive", share_of(|edge| edge.q_value < MAX_Q && log_odds(edge.counts) > 0.0)),
        ("above_null", share_above_null(edges)),
        ("mi_null_bits", mean(edges.iter().filter_map(|edge| edge.mi_null_bits))),
        ("mi_magnitude_bits", mean(edges.iter().filter_map(|edge| edge.mi_magnitude_bits))),
    ];
    let mut summary = Map::new();
    summary.insert("n_edges".into(), json!(n_edges));
    summary.insert("n_measured".into(), json!(edges.len()));
    for (name, value, interval) in resampled {
        let (ci_low, ci_high) = interval.unzip();
        summary.insert(name.into(), json!({"value": value, "ci_low": ci_low, "ci_high": ci_high}));
    }
    for (name, value) in plain {
        summary.insert(name.into(), json!({"value": value}));
    }
    summary
}

/// Of the edges that have a null.
fn share_above_null(edges: &[Measured]) -> Option<f64> {
    let above = edges.iter().filter_map(|edge| Some(f64::from(u8::from(edge.mi_bits > edge.mi_null_high_bits?))));
    mean(above)
}

/// The mean over edges in each resample, there over the edges that have a value.
fn of_resamples(edges: &[Measured], of_edge: InResamples) -> Vec<f64> {
    let n_resamples = edges.first().map_or(0, |edge| of_edge(edge).len());
    let of_resample = |i: usize| mean(edges.iter().map(|edge| of_edge(edge)[i]).filter(|value| !value.is_nan()));
    (0..n_resamples).filter_map(of_resample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edges::Resampled;
    use crate::information::PairCounts;

    fn edge(n11: u64, p_resampled: Vec<f64>) -> Measured {
        let counts = PairCounts { n11, n_parent: 50, n_child: 20, n: 1000 };
        let resampled = Resampled { p_parent_given_child: p_resampled, ..Resampled::default() };
        Measured {
            parent: 0,
            child: 1,
            counts,
            mi_bits: information::mi_bits(counts),
            mi_interval: Some((0.0, 1.0)),
            null_mi_bits: vec![0.0, 0.002],
            mi_null_bits: Some(0.001),
            mi_null_high_bits: Some(0.002),
            p_value: 0.01,
            q_value: if n11 == 0 { 0.2 } else { 0.01 },
            mi_magnitude_bits: None,
            resampled,
        }
    }

    #[test]
    fn means_and_shares_are_over_measured_edges() {
        let edges = [edge(20, vec![1.0, f64::NAN]), edge(10, vec![0.4, 0.5]), edge(0, vec![0.1, 0.1])];
        let summary = of_edges(5, &edges);
        assert_eq!((&summary["n_edges"], &summary["n_measured"]), (&json!(5), &json!(3)));
        let number = |name: &str, key: &str| summary[name][key].as_f64().unwrap();
        assert!((number("p_parent_given_child", "value") - 0.5).abs() <= 1e-12);
        assert!((number("significant", "value") - 2.0 / 3.0).abs() <= 1e-12);
        // Resample means .5 and .3, the second without the first edge: quantiles .305 and .495, moved from .4 to .5.
        assert!((number("p_parent_given_child", "ci_low") - 0.405).abs() <= 1e-12);
        assert!((number("p_parent_given_child", "ci_high") - 0.595).abs() <= 1e-12);
        assert_eq!(summary["mi_magnitude_bits"]["value"], Value::Null);
    }

    #[test]
    fn no_edges_no_means() {
        let summary = of_edges(0, &[]);
        assert_eq!(summary["mi_bits"]["value"], Value::Null);
        assert_eq!(summary["significant"]["value"], Value::Null);
    }
}
