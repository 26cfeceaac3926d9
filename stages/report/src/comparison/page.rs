//! The comparison as tables: means over seeds, then differences from the reference.

use std::collections::{BTreeMap, BTreeSet};

use super::statistics::Estimate;
use super::{Comparison, Group, GroupDifference, HEADLINES};
use crate::figures::Name;
use crate::markdown::{Table, best_of_values};
use crate::measures::{self, Better, Column, Format};
use crate::plots::Plot;

/// The section of the page. Pictures are named by what they are of.
pub(crate) fn render(comparison: &Comparison, plots: &[Plot]) -> String {
    let mut out = String::from("## Comparison over seeds\n\n");
    out.push_str(
        "A row is a family: SAEs that differ in their seed alone. Figures are means over its seeds, *n* of them, and \
         brackets hold 95 % t-intervals of that mean; a family of one seed has none. A cell over fewer seeds than its row \
         says so. † marks a row of which a seed has an L0 more than 5 % from the wanted one: it competes only with its like. \
         ↑, ↓, **bold**, *native*, *prior* and *gated* mean what they mean everywhere in this \
         report. `results.json` has every metric, seed by seed, under `comparison`.\n\n",
    );
    let data: BTreeSet<&str> = comparison.groups.iter().map(|group| group.data.as_str()).collect();
    if data.len() > 1 {
        out.push_str(
            "Not all families are of the same activations: a column has a best among those that are, and so it may have \
             several.\n\n",
        );
    }
    if let Some(sentence) = unlike_in_words(comparison) {
        out.push_str(&sentence);
    }
    let settings = comparison.settings();
    let n_ks = settings.iter().map(|(k, _)| k).collect::<BTreeSet<_>>().len();
    for (k, threshold) in &settings {
        if n_ks > 1 {
            out.push_str(&format!("### k = {k}, {threshold} threshold\n\n"));
        }
        let groups: Vec<&Group> =
            comparison.groups.iter().filter(|group| (group.k, &group.threshold) == (*k, threshold)).collect();
        for columns in
            [measures::features(), planted_tree(), measures::absorption(), measures::found_tree(), reconstruction()]
        {
            if let Some(table) = means(&groups, &columns, threshold) {
                out.push_str(&table.render());
                out.push('\n');
            }
        }
        if let Some(table) = differences(comparison, &groups, threshold) {
            out.push_str(&introduction(comparison, &groups));
            out.push_str(&table.render());
            out.push('\n');
        }
    }
    for plot in plots.iter().filter(|plot| plot.path.starts_with("compare-")) {
        out.push_str(&format!("![{}]({})\n\n", plot.title, plot.path));
    }
    out
}

fn reconstruction() -> Vec<Column> {
    let columns = [measures::reconstruction(), measures::levels()].concat();
    // It is 1 − EV, and its interval is EV's.
    columns.into_iter().filter(|column| column.name.metric != "fvu").collect()
}

/// The tree of both origins, then the parts of the first one's score.
fn planted_tree() -> Vec<Column> {
    let named = |metric: &str, title: &str| Column::new(Name::new(metric, "all"), title, Better::Higher, Format::Plain);
    let mut columns = vec![named("edge_f1_own", "edge F1, own"), named("edge_f1_posthoc", "edge F1, post-hoc")];
    columns.extend(measures::planted_tree().into_iter().filter(|column| column.name.metric != "edge_f1"));
    columns
}

/// Columns that hold nothing are left out.
fn means(groups: &[&Group], columns: &[Column], threshold: &str) -> Option<Table> {
    let has = |column: &&Column| groups.iter().any(|group| group.get(&column.name).is_some());
    let columns: Vec<&Column> = columns.iter().filter(has).collect();
    if columns.is_empty() {
        return None;
    }
    // Figures of other activations are no competition.
    let data: BTreeSet<&str> = groups.iter().map(|group| group.data.as_str()).collect();
    let rivals = |data: &str| groups.iter().copied().filter(|group| group.data == data).collect::<Vec<_>>();
    let bests: BTreeMap<&str, Vec<Option<String>>> = data
        .into_iter()
        .map(|data| (data, columns.iter().map(|column| best_of(&rivals(data), column)).collect()))
        .collect();
    let row = |group: &&Group| {
        let none_is_fair = !rivals(&group.data).iter().any(|group| group.is_fair());
        let may_win = group.is_fair() || (none_is_fair && group.unlike_reference.is_empty());
        let best = &bests[group.data.as_str()];
        let cell = |(column, best): (&&Column, &Option<String>)| match group.get(&column.name) {
            Some(figure) => {
                let is_best = may_win && Some(column.format.write(figure.estimate.mean)) == *best;
                in_words(&figure.estimate, column.format, is_best, group.seeds.len())
            }
            None => "–".into(),
        };
        let first = [label(group), group.seeds.len().to_string()];
        first.into_iter().chain(columns.iter().zip(best).map(cell)).collect()
    };
    let first = [format!("{threshold} threshold"), "n".into()];
    let header = first.into_iter().chain(columns.iter().map(|column| column.heading())).collect();
    let shown = groups.iter().filter(|group| columns.iter().any(|column| group.get(&column.name).is_some()));
    Some(Table { header, rows: shown.map(row).collect() })
}

/// The best mean as it is written; `None` where all are written alike.
fn best_of(groups: &[&Group], column: &Column) -> Option<String> {
    let values = |fair_only: bool| -> Vec<f64> {
        let groups = groups.iter().filter(|group| !fair_only || group.is_fair());
        groups.filter_map(|group| Some(group.get(&column.name)?.estimate.mean)).collect()
    };
    best_of_values(values, column)
}

fn in_words(estimate: &Estimate, format: Format, is_best: bool, n_seeds: usize) -> String {
    let value = format.write(estimate.mean);
    let value = if is_best { format!("**{value}**") } else { value };
    let end = |value: f64| format.write(value).replace(" %", "");
    let interval = match (estimate.ci_low, estimate.ci_high) {
        (Some(low), Some(high)) if format != Format::Count => format!(" [{}, {}]", end(low), end(high)),
        _ => String::new(),
    };
    let fewer = if estimate.n_seeds < n_seeds { format!(" (n = {})", estimate.n_seeds) } else { String::new() };
    format!("{value}{interval}{fewer}")
}

fn introduction(comparison: &Comparison, groups: &[&Group]) -> String {
    let of_groups = |difference: &&GroupDifference| groups.iter().any(|group| difference.is_of(group));
    let references: BTreeSet<&str> =
        comparison.differences.iter().filter(of_groups).map(|difference| difference.reference.as_str()).collect();
    let references = references.into_iter().collect::<Vec<_>>().join(" or ");
    format!(
        "Each family less {references}, read flat, seed by seed: equal seeds saw the same data in the same order. Brackets \
         hold the 95 % t-interval of the mean difference over *n* pairs, g is its size in standard deviations of the \
         differences (d_z with Hedges' correction for few pairs), p is the paired t-test's with Holm's correction over the \
         rows of the column. **Bold**: p below 0.05.\n\n"
    )
}

/// `None` where no row is compared. Columns that hold nothing are left out.
fn differences(comparison: &Comparison, groups: &[&Group], threshold: &str) -> Option<Table> {
    let of_group = |group: &Group| -> Vec<&GroupDifference> {
        comparison.differences.iter().filter(|difference| difference.is_of(group)).collect()
    };
    let all: Vec<_> = groups.iter().flat_map(|group| of_group(group)).collect();
    let is_known = |metric: &&&str| all.iter().any(|difference| difference.metric == ***metric);
    let metrics: Vec<&str> = HEADLINES.iter().filter(is_known).copied().collect();
    let mut rows = Vec::new();
    for group in groups {
        let mine = of_group(group);
        let Some(first) = mine.first() else { continue };
        let cell = |metric: &&str| match mine.iter().find(|difference| difference.metric == **metric) {
            Some(difference) => difference_in_words(difference),
            None => "–".into(),
        };
        let n_pairs = mine.iter().map(|difference| difference.difference.estimate.n_seeds).max().unwrap_or_default();
        let start = [label(group), first.reference.clone(), n_pairs.to_string()];
        rows.push(start.into_iter().chain(metrics.iter().map(cell)).collect());
    }
    let start = [format!("{threshold} threshold"), "less".into(), "n".into()];
    let header = start.into_iter().chain(metrics.iter().map(|metric| heading(metric))).collect();
    (!rows.is_empty()).then_some(Table { header, rows })
}

/// Of a headline figure.
fn heading(metric: &str) -> String {
    let first_trees = [
        Column::of("tree_mi_over_nested", "I / I_nested", Better::Higher, Format::Plain),
        Column::of("wordnet_hierarchy", "WordNet", Better::Higher, Format::Plain),
    ];
    let titles = [measures::features(), measures::planted_tree(), measures::absorption(), measures::reconstruction()];
    let mut titles = titles.into_iter().flatten().chain(first_trees);
    let column = titles.find(|column| column.name == Name::new(metric, "all"));
    column.map_or(metric.to_owned(), |column| column.heading())
}

fn difference_in_words(difference: &GroupDifference) -> String {
    let Estimate { mean, ci_low, ci_high, .. } = difference.difference.estimate;
    let value = measures::difference(mean);
    let is_sure = difference.p_holm.is_some_and(|p| p < 0.05);
    let mut text = if is_sure { format!("**{value}**") } else { value };
    if let (Some(low), Some(high)) = (ci_low, ci_high) {
        text += &format!(" [{}, {}]", measures::difference(low), measures::difference(high));
    }
    if let Some(g_z) = difference.difference.g_z {
        text += &format!(", g {}", Format::Tenths.write(g_z));
    }
    if let Some(p) = difference.p_holm {
        text += &if p < 0.001 { ", p < 0.001".into() } else { format!(", p {}", Format::Plain.write(p)) };
    }
    text
}

fn label(group: &Group) -> String {
    let l0 = if group.l0_is_off { " †" } else { "" };
    let training = if group.unlike_reference.is_empty() { "" } else { " ‡" };
    format!("{}{l0}{training}", group.label())
}

/// Which families do not compare with the reference, and why.
fn unlike_in_words(comparison: &Comparison) -> Option<String> {
    let mut families: Vec<String> = Vec::new();
    for group in comparison.groups.iter().filter(|group| !group.unlike_reference.is_empty()) {
        let family = format!("{} ({})", group.family, group.unlike_reference.join("; "));
        if !families.contains(&family) {
            families.push(family);
        }
    }
    (!families.is_empty()).then(|| {
        format!(
            "‡ marks families that were not trained as the reference was, so that no difference is taken of them and none of \
             their figures is bold: {}.\n\n",
            families.join(", ")
        )
    })
}
