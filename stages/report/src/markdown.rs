//! Tables that read well as text too: columns padded to one width.

use std::fmt::Write;

use crate::figures::{Figures, Mode};
use crate::measures::{Better, Column};

pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn render(&self) -> String {
        let n_columns = self.header.len();
        let cell = |row: &[String], i: usize| row.get(i).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..n_columns)
            .map(|i| self.rows.iter().chain([&self.header]).map(|row| cell(row, i).chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        let mut line = |row: &[String]| {
            for (i, &width) in widths.iter().enumerate() {
                let _ = write!(out, "| {:<width$} ", cell(row, i));
            }
            out.push_str("|\n");
        };
        line(&self.header);
        line(&widths.iter().map(|&width| "-".repeat(width.max(3))).collect::<Vec<_>>());
        self.rows.iter().for_each(|row| line(row));
        out
    }
}

/// A row a mode, a column a figure; the best value of each column is bold. Columns that hold nothing are left out.
///
/// Modes in `unfair` (their L0 is not the wanted one) are shown, and compete only where no other mode does. Modes outside
/// `competes` are shown and never compete.
pub(crate) fn compare(
    figures: &Figures,
    modes: &[Mode],
    columns: &[Column],
    unfair: &dyn Fn(&Mode) -> bool,
    competes: &dyn Fn(&Mode) -> bool,
) -> Option<Table> {
    let has = |column: &&Column| modes.iter().any(|mode| figures.get(mode, &column.name).is_some());
    let columns: Vec<&Column> = columns.iter().filter(has).collect();
    if columns.is_empty() {
        return None;
    }
    let competing: Vec<Mode> = modes.iter().filter(|mode| competes(mode)).cloned().collect();
    let best: Vec<Option<String>> = columns.iter().map(|column| best_of(figures, &competing, column, unfair)).collect();
    let none_is_fair = competing.iter().all(unfair);
    let row = |mode: &Mode| {
        let mark = if unfair(mode) { " †" } else { "" };
        let may_win = competes(mode) && (!unfair(mode) || none_is_fair);
        let cells = columns.iter().zip(&best).map(|(column, best)| match figures.get(mode, &column.name) {
            Some(figure) => {
                let is_best = may_win && Some(column.format.write(figure.value)) == *best;
                column.format.write_figure(figure, is_best)
            }
            None => "–".into(),
        });
        std::iter::once(format!("{}{mark}", label(mode))).chain(cells).collect()
    };
    let shown = modes.iter().filter(|mode| columns.iter().any(|column| figures.get(mode, &column.name).is_some()));
    Some(Table {
        header: std::iter::once("SAE".into()).chain(columns.iter().map(|column| column.heading())).collect(),
        rows: shown.map(row).collect(),
    })
}

/// The best value as it is written, so that rows which read the same are marked the same. `None` where all do: a single
/// competitor beats nobody.
fn best_of(figures: &Figures, modes: &[Mode], column: &Column, unfair: &dyn Fn(&Mode) -> bool) -> Option<String> {
    let values = |fair_only: bool| -> Vec<f64> {
        let modes = modes.iter().filter(|mode| !fair_only || !unfair(mode));
        modes.filter_map(|mode| figures.get(mode, &column.name)).map(|figure| figure.value).collect()
    };
    best_of_values(values, column)
}

/// The same of values, those that compete fairly if there are any.
pub(crate) fn best_of_values(values: impl Fn(bool) -> Vec<f64>, column: &Column) -> Option<String> {
    let fair = values(true);
    let values = if fair.is_empty() { values(false) } else { fair };
    let extreme = match column.better {
        Better::Higher => values.iter().copied().reduce(f64::max),
        Better::Lower => values.iter().copied().reduce(f64::min),
        Better::Neither => None,
    };
    let best = column.format.write(extreme?);
    values.iter().any(|&value| column.format.write(value) != best).then_some(best)
}

/// `hiersae, gated`; flat is what an SAE without a tree is, and need not be said of it.
pub(crate) fn label(mode: &Mode) -> String {
    if mode.view == "flat" { mode.sae.clone() } else { format!("{}, {}", mode.sae, mode.view) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_padded_to_one_width() {
        let table = Table {
            header: vec!["SAE".into(), "EV ↑".into()],
            rows: vec![vec!["vanilla".into(), "0.5".into()], vec!["x".into()]],
        };
        assert_eq!(table.render(), "| SAE     | EV ↑ |\n| ------- | ---- |\n| vanilla | 0.5  |\n| x       |      |\n");
    }
}
