//! What each metric is called in the report, which way is better, and how it is written.

use Better::{Higher, Lower, Neither};
use Format::{Count, Percent, Plain, Scientific, Tenths};

use crate::figures::{Figure, Name};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
    /// Neither: it says where a figure stands, not how good it is.
    Neither,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Three decimals.
    Plain,
    /// One decimal, two below ten.
    Tenths,
    Percent,
    Count,
    /// Two digits and a power of ten.
    Scientific,
}

/// A column of a table: one metric at one level.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: Name,
    pub(crate) title: String,
    pub(crate) better: Better,
    pub(crate) format: Format,
}

impl Column {
    pub(crate) fn new(name: Name, title: &str, better: Better, format: Format) -> Self {
        Self { name, title: title.into(), better, format }
    }

    /// A metric of `recovery.parquet` over all latents.
    pub(crate) fn of(metric: &str, title: &str, better: Better, format: Format) -> Self {
        Self::new(Name::new(metric, "all"), title, better, format)
    }

    /// The title with the direction in which it improves.
    pub(crate) fn heading(&self) -> String {
        match self.better {
            Higher => format!("{} ↑", self.title),
            Lower => format!("{} ↓", self.title),
            Neither => self.title.clone(),
        }
    }
}

/// How well a budget of latents reconstructs, and what that does to the model.
pub(crate) fn reconstruction() -> Vec<Column> {
    let level =
        |metric: &str, level: &str, title: &str, format| Column::new(Name::new(metric, level), title, Neither, format);
    vec![
        Column::of("ev", "EV", Higher, Plain),
        Column::of("fvu", "FVU", Lower, Plain),
        Column::of("l0", "L0", Neither, Tenths),
        level("l0", "coarse", "L0 coarse", Tenths),
        level("l0", "fine", "L0 fine", Tenths),
        Column::of("dead", "dead", Lower, Percent),
        Column::of("ce_recovered", "CE recovered", Higher, Plain),
        Column::of("kl", "KL, nats", Lower, Plain),
    ]
}

/// What the first level does by itself, and where dead latents are.
pub(crate) fn levels() -> Vec<Column> {
    let level = |metric: &str, level: &str, title: &str, better, format| {
        Column::new(Name::new(metric, level), title, better, format)
    };
    vec![
        level("ev", "coarse", "EV of coarse alone", Higher, Plain),
        level("fvu", "coarse", "FVU of coarse alone", Lower, Plain),
        level("dead", "coarse", "dead, coarse", Lower, Percent),
        level("dead", "fine", "dead, fine", Lower, Percent),
    ]
}

/// Latents against planted features.
pub(crate) fn features() -> Vec<Column> {
    vec![
        Column::of("f1", "F1", Higher, Plain),
        Column::of("precision", "precision", Higher, Plain),
        Column::of("recall", "recall", Higher, Plain),
        Column::of("f1_of_features", "F1 of features", Higher, Plain),
        Column::of("matched_features", "matched", Higher, Plain),
        Column::of("mcc", "MCC", Higher, Plain),
        Column::of("mmcs", "MMCS", Higher, Plain),
        Column::of("uniqueness", "unique", Higher, Plain),
        Column::of("shrinkage", "shrinkage", Neither, Plain),
    ]
}

/// Trees against the planted one.
pub(crate) fn planted_tree() -> Vec<Column> {
    vec![
        Column::of("edge_f1", "edge F1", Higher, Plain),
        Column::of("edge_precision", "precision", Higher, Plain),
        Column::of("edge_recall", "recall", Higher, Plain),
        Column::of("edge_accuracy_matched", "given both matched", Higher, Plain),
        Column::of("match_coverage", "coverage", Higher, Plain),
        Column::of("edge_ceiling", "ceiling", Neither, Plain),
        Column::of("ancestor_accuracy", "ancestor", Higher, Plain),
        Column::of("n_predicted_edges", "edges", Neither, Count),
    ]
}

/// Whether parents keep firing when their children do.
pub(crate) fn absorption() -> Vec<Column> {
    vec![
        Column::of("absorption", "absorption", Lower, Plain),
        Column::of("absorption_n_edges", "over edges", Neither, Count),
        Column::of("absorption_miss", "misses", Lower, Plain),
        Column::of("absorption_miss_n_edges", "over edges", Neither, Count),
        Column::of("absorption_miss_all", "misses, all edges", Lower, Plain),
    ]
}

/// Planted pairs that have nothing to do with each other.
pub(crate) fn independence() -> Vec<Column> {
    vec![
        Column::of("independent_pairs_within_null", "within null", Neither, Percent),
        Column::of("independent_pairs_n", "pairs", Neither, Count),
        Column::new(Name::new("independent_pairs_mi_bits", "all"), "MI, bits", Neither, Scientific),
        Column::new(Name::new("independent_pairs_null_bits", "all"), "null, bits", Neither, Scientific),
    ]
}

/// Edge F1 of other trees over the same latents; [`planted_tree`] has that of the SAE's first tree.
pub(crate) fn other_planted_trees() -> Vec<Column> {
    of_trees("edge_f1", "edge F1")
}

/// The SAE's first tree against WordNet's hypernyms, then what its latents detect.
pub(crate) fn wordnet() -> Vec<Column> {
    vec![
        Column::of("wordnet_hierarchy", "parent above", Higher, Plain),
        Column::of("wordnet_hierarchy_n", "of edges", Neither, Count),
        Column::of("wordnet_same_class", "same class", Neither, Plain),
        Column::of("wordnet_reversed", "parent below", Neither, Plain),
        Column::of("wordnet_parent_detects", "parent detects", Neither, Plain),
        Column::of("wordnet_ancestor_kappa", "κ of parent", Higher, Plain),
        Column::of("wordnet_ancestor_gain", "less child's", Higher, Plain),
        Column::of("wordnet_detectors", "detectors", Neither, Percent),
        Column::of("wordnet_detected_classes", "classes detected", Higher, Count),
        Column::of("wordnet_classes", "of classes", Neither, Count),
    ]
}

/// Of other trees over the same latents, how many parents stand above in WordNet.
pub(crate) fn other_wordnet_trees() -> Vec<Column> {
    of_trees("wordnet_hierarchy", "parent above")
}

fn of_trees(metric: &str, title: &str) -> Vec<Column> {
    let column =
        |&(tree, of): &(&str, &str)| Column::of(&format!("{metric}_{tree}"), &format!("{of} {title}"), Neither, Plain);
    TREES.iter().map(column).collect()
}

/// Trees where nothing was planted, as families are compared by them: of both origins.
pub(crate) fn found_tree() -> Vec<Column> {
    vec![
        Column::of("tree_mi_over_nested_own", "I / I_nested, own", Higher, Plain),
        Column::of("tree_n_measured_own", "over edges", Neither, Count),
        Column::of("tree_mi_over_nested_posthoc", "I / I_nested, post-hoc", Higher, Plain),
        Column::of("tree_n_measured_posthoc", "over edges", Neither, Count),
        Column::of("wordnet_hierarchy_own", "WordNet, own", Higher, Plain),
        Column::of("wordnet_hierarchy_posthoc", "WordNet, post-hoc", Higher, Plain),
        Column::of("wordnet_hierarchy_n", "of edges", Neither, Count),
    ]
}

/// Means over the edges of a tree: (metric, title, better, format, caption).
pub(crate) const TREE: [(&str, &str, Better, Format, &str); 4] = [
    (
        "tree_p_parent_given_child",
        "P(parent | child)",
        Higher,
        Plain,
        "How often the parent fires where its child does. A dense parent gets it for free, so read it beside the next one.",
    ),
    (
        "tree_mi_over_nested",
        "I / I_nested",
        Higher,
        Plain,
        "Mutual information of firing, over what perfect nesting at the same two rates would give: 1 is nested, 0 is chance.",
    ),
    (
        "tree_mi_over_h_child",
        "I / H(child)",
        Higher,
        Plain,
        "Share of the child's uncertainty that its parent removes; 1 means a duplicate rather than a parent.",
    ),
    (
        "tree_significant_positive",
        "significant edges",
        Higher,
        Percent,
        "Share of edges with positive dependence at a false-discovery rate of 5 %.",
    ),
];

/// The other trees are controls.
pub(crate) const COMPETING_TREES: [&str; 2] = ["own", "posthoc"];

/// Trees in the order of their columns.
pub(crate) const TREES: [(&str, &str); 5] = [
    ("own", "own"),
    ("posthoc", "post-hoc"),
    ("rate-matched", "rate-matched"),
    ("cosine", "cosine"),
    ("permuted", "permuted"),
];

/// Three decimals and always a sign.
pub(crate) fn difference(value: f64) -> String {
    format!("{value:+.3}").replace('-', "−")
}

impl Format {
    pub(crate) fn write(self, value: f64) -> String {
        let text = match self {
            Plain => format!("{value:.3}"),
            // A budget of a few latents needs its hundredths.
            Tenths if value.abs() < 10.0 => format!("{value:.2}"),
            Tenths => format!("{value:.1}"),
            Percent => format!("{:.1} %", 100.0 * value),
            Count => format!("{value:.0}"),
            Scientific => format!("{value:.1e}"),
        };
        // −0.000 says less than 0.000.
        let is_zero = text.chars().all(|c| !c.is_ascii_digit() || c == '0');
        if is_zero { text.replace('-', "") } else { text.replace('-', "−") }
    }

    /// The value, and its interval in brackets where there is one.
    pub(crate) fn write_figure(self, figure: &Figure, is_best: bool) -> String {
        let value = self.write(figure.value);
        let value = if is_best { format!("**{value}**") } else { value };
        match (figure.ci_low, figure.ci_high) {
            (Some(low), Some(high)) => {
                let unit = |x: f64| self.write(x).replace(" %", "");
                format!("{value} [{}, {}]", unit(low), unit(high))
            }
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_reading() {
        let check = |format: Format, value: f64, expected: &str| assert_eq!(format.write(value), expected);
        check(Plain, 0.81249, "0.812");
        check(Plain, -0.0001, "0.000");
        check(Plain, -0.25, "−0.250");
        check(Tenths, 31.96, "32.0");
        check(Tenths, 1.54, "1.54");
        check(Percent, 0.0123, "1.2 %");
        check(Count, 512.0, "512");
        check(Scientific, 0.00012, "1.2e−4");
    }
}
