//! One partner each: the assignment of rows to columns with the largest total weight.

/// The assignment of largest total weight of a matrix [n_rows, n_columns], row-major and finite. Of the longer side some
/// stay without a partner. Returns the column of each row, [n_rows]. Where several are best, the matrix decides which one
/// is returned.
///
/// Rows are assigned one after another, each by the augmenting path that costs least at the prices found so far. A row
/// whose favourite column is free costs one pass over the columns, so decoders that have found different features are
/// matched in little more than a reading of the matrix.
///
/// Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms", the shortest augmenting path algorithm.
pub(crate) fn assign(weights: &[f32], n_rows: usize, n_columns: usize) -> Vec<Option<usize>> {
    assert_eq!(weights.len(), n_rows * n_columns, "weights are [n_rows, n_columns]");
    if n_rows <= n_columns {
        return Prices::new(n_rows, n_columns).assign(weights).into_iter().map(Some).collect();
    }
    let transposed: Vec<f32> =
        (0..n_columns).flat_map(|j| weights.iter().skip(j).step_by(n_columns)).copied().collect();
    let mut columns = vec![None; n_rows];
    let rows = Prices::new(n_columns, n_rows).assign(&transposed);
    rows.into_iter().enumerate().for_each(|(column, row)| columns[row] = Some(column));
    columns
}

/// The dual of the assignment so far: weight ≤ −(row + column) everywhere, with equality for the pairs assigned. There are
/// no fewer columns than rows.
struct Prices {
    /// [n_rows]
    row: Vec<f64>,
    /// [n_columns]
    column: Vec<f64>,
    row_of: Vec<Option<usize>>,
    column_of: Vec<Option<usize>>,
    path: Path,
}

/// Shortest paths from one unassigned row, column by column.
struct Path {
    /// Length of the shortest path found to each column, −∞ once the column has been passed. [n_columns]
    length: Vec<f64>,
    /// The row by which that path reaches the column. [n_columns]
    via: Vec<u32>,
    /// Columns passed, and the lengths of their paths.
    passed: Vec<(usize, f64)>,
}

impl Prices {
    fn new(n_rows: usize, n_columns: usize) -> Self {
        Self {
            row: vec![0.0; n_rows],
            column: vec![0.0; n_columns],
            row_of: vec![None; n_columns],
            column_of: vec![None; n_rows],
            path: Path { length: vec![0.0; n_columns], via: vec![0; n_columns], passed: Vec::new() },
        }
    }

    /// The column of each row.
    fn assign(mut self, weights: &[f32]) -> Vec<usize> {
        for row in 0..self.row.len() {
            self.augment(weights, row);
        }
        // Every row was given a column in its turn, and kept one ever since.
        self.column_of.into_iter().flatten().collect()
    }

    /// Gives `start` a column, moving others on where that is worth it.
    fn augment(&mut self, weights: &[f32], start: usize) {
        let n_columns = self.column.len();
        self.path.length.fill(f64::INFINITY);
        self.path.passed.clear();
        let (mut row, mut so_far) = (start, 0.0);
        let (sink, total) = loop {
            let of_row = &weights[row * n_columns..(row + 1) * n_columns];
            self.path.extend(row, so_far - self.row[row], of_row, &self.column);
            let (column, length) = self.path.nearest(&self.row_of);
            let Some(next) = self.row_of[column] else { break (column, length) };
            self.path.pass(column, length);
            (row, so_far) = (next, length);
        };
        self.row[start] += total;
        for &(column, length) in &self.path.passed {
            self.column[column] -= total - length;
            if let Some(row) = self.row_of[column] {
                self.row[row] += total - length;
            }
        }
        let mut column = sink;
        loop {
            let row = self.path.via[column] as usize;
            self.row_of[column] = Some(row);
            let Some(before) = self.column_of[row].replace(column) else { break };
            column = before;
        }
    }
}

impl Path {
    /// Paths that go on from `row`, which lies `so_far` away at its own price.
    fn extend(&mut self, row: usize, so_far: f64, weights: &[f32], prices: &[f64]) {
        let columns = self.length.iter_mut().zip(&mut self.via).zip(weights.iter().zip(prices));
        for ((length, via), (&weight, price)) in columns {
            let new = so_far - f64::from(weight) - price;
            let is_shorter = new < *length;
            *length = if is_shorter { new } else { *length };
            *via = if is_shorter { row as u32 } else { *via };
        }
    }

    /// The column nearest of those not passed, and its distance; of equals a free one, and of these the first.
    fn nearest(&self, row_of: &[Option<usize>]) -> (usize, f64) {
        let if_open = |length: f64| if length == f64::NEG_INFINITY { f64::INFINITY } else { length };
        let least = self.length.iter().fold(f64::INFINITY, |least, &length| least.min(if_open(length)));
        let mut nearest = (0..self.length.len()).filter(|&column| self.length[column] == least);
        let first = nearest.next().expect("there are more columns than have been passed");
        let is_free = |column: &usize| row_of[*column].is_none();
        let column = std::iter::once(first).chain(nearest).find(is_free).unwrap_or(first);
        (column, least)
    }

    fn pass(&mut self, column: usize, length: f64) {
        self.length[column] = f64::NEG_INFINITY;
        self.passed.push((column, length));
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::planted::uniform;

    /// The largest total over all assignments of the rows from `row` on, each to a column of its own.
    fn brute_force(weights: &[f32], n_columns: usize, row: usize, used: &mut Vec<bool>) -> f64 {
        if (row + 1) * n_columns > weights.len() {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for column in 0..n_columns {
            if !used[column] {
                used[column] = true;
                let rest = brute_force(weights, n_columns, row + 1, used);
                best = best.max(f64::from(weights[row * n_columns + column]) + rest);
                used[column] = false;
            }
        }
        best
    }

    fn total(weights: &[f32], n_columns: usize, columns: &[Option<usize>]) -> f64 {
        let pairs = columns.iter().enumerate().filter_map(|(row, column)| Some((row, (*column)?)));
        pairs.map(|(row, column)| f64::from(weights[row * n_columns + column])).sum()
    }

    fn transposed(weights: &[f32], n_columns: usize) -> Vec<f32> {
        (0..n_columns).flat_map(|j| weights.iter().skip(j).step_by(n_columns)).copied().collect()
    }

    #[test]
    fn the_assignment_is_the_best_of_all() {
        let mut rng = artifact::random::stream(0, "recover/test/assign", 0, 0);
        for (n_rows, n_columns) in [(1, 1), (1, 5), (4, 4), (6, 6), (4, 7), (5, 8)] {
            for _ in 0..40 {
                let n = n_rows * n_columns;
                let mut weights: Vec<f32> = (0..n).map(|_| uniform(&mut rng) as f32 - 0.5).collect();
                if rng.next_u32().is_multiple_of(2) {
                    // Ties, many of them.
                    weights.iter_mut().for_each(|weight| *weight = (*weight * 3.0).floor());
                }
                let expected = brute_force(&weights, n_columns, 0, &mut vec![false; n_columns]);
                let columns = assign(&weights, n_rows, n_columns);
                let found = total(&weights, n_columns, &columns);
                assert!((found - expected).abs() <= 1e-6, "{n_rows} × {n_columns}: {found}, expected {expected}");
                let turned = assign(&transposed(&weights, n_columns), n_columns, n_rows);
                let found = total(&transposed(&weights, n_columns), n_rows, &turned);
                assert!((found - expected).abs() <= 1e-6, "{n_columns} × {n_rows}: {found}, expected {expected}");
                for (columns, n_others) in [(columns, n_columns), (turned, n_rows)] {
                    let mut taken: Vec<usize> = columns.into_iter().flatten().collect();
                    assert_eq!(taken.len(), n_rows);
                    taken.sort_unstable();
                    taken.dedup();
                    assert!(taken.len() == n_rows && taken.iter().all(|&column| column < n_others));
                }
            }
        }
    }

    /// Too large for brute force: prices under which no pair is worth more than it costs prove that none is better.
    #[test]
    fn prices_prove_a_large_assignment() {
        let (n_rows, n_columns) = (120, 400);
        let mut rng = artifact::random::stream(0, "recover/test/prices", 0, 0);
        let weights: Vec<f32> = (0..n_rows * n_columns).map(|_| (uniform(&mut rng) * 40.0).floor() as f32).collect();
        let mut prices = Prices::new(n_rows, n_columns);
        (0..n_rows).for_each(|row| prices.augment(&weights, row));
        for row in 0..n_rows {
            for column in 0..n_columns {
                let slack = -f64::from(weights[row * n_columns + column]) - prices.row[row] - prices.column[column];
                assert!(slack >= -1e-9, "row {row}, column {column}: {slack}");
                if prices.column_of[row] == Some(column) {
                    assert!(slack.abs() <= 1e-9 && prices.row_of[column] == Some(row), "{slack}");
                }
            }
        }
        let is_unpaid = |column: usize| prices.column[column] == 0.0;
        assert!((0..n_columns).all(|column| prices.column[column] <= 0.0));
        assert!((0..n_columns).filter(|&column| prices.row_of[column].is_none()).all(is_unpaid));
    }

    #[test]
    fn of_equal_assignments_the_first_is_taken() {
        assert_eq!(assign(&[1.0; 12], 3, 4), [Some(0), Some(1), Some(2)]);
        assert_eq!(assign(&[0.0; 6], 3, 2), [Some(0), Some(1), None]);
        assert_eq!(assign(&[], 0, 3), []);
        assert_eq!(assign(&[], 2, 0), [None, None]);
    }

    #[test]
    fn the_longer_side_keeps_some_without_a_partner() {
        let weights = [0.1, 0.9, 0.8, 0.7, 0.2, 0.3];
        assert_eq!(assign(&weights, 3, 2), [Some(1), Some(0), None]);
        assert_eq!(assign(&weights, 2, 3), [Some(1), Some(0)]);
    }
}
