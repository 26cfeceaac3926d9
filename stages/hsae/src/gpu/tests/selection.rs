//! Lists of active latents.

use super::super::lists::{Lists, Scores, Shape, gate, select};
use super::*;
use crate::select::{Budget, Scope};
use crate::sparse::SparseRows;

/// Few different values, so that many are equal.
fn tied_scores(n: usize) -> Vec<f32> {
    random(1, n).into_iter().map(|score| (score * 8.0).round() / 8.0).collect()
}

/// Sorts, and takes the first n of the group; of equal ones the first.
fn keep_best(scores: &mut [f32], n: usize, in_group: impl Fn(usize) -> bool) {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&e| in_group(e) && scores[e] > 0.0).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.iter().skip(n).for_each(|&e| scores[e] = 0.0);
}

fn naive(scores: &[f32], shape: Shape, budget: &Budget, scope: Scope) -> SparseRows {
    let Shape { n_rows, n_cols } = shape;
    let mut scores = scores.to_vec();
    let n_at_once = if scope == Scope::Token { 1 } else { n_rows };
    for rows in scores.chunks_exact_mut(n_at_once * n_cols) {
        let n_of = |k: f64| (k * n_at_once as f64).round() as usize;
        match *budget {
            Budget::All => (),
            Budget::Shared { k, fine, n_coarse } => {
                if fine < k {
                    keep_best(rows, n_of(fine), |e| e % n_cols >= n_coarse);
                }
                keep_best(rows, n_of(k), |_| true);
            }
            Budget::PerLevel { coarse, fine, n_coarse } => {
                keep_best(rows, n_of(fine), |e| e % n_cols >= n_coarse);
                keep_best(rows, n_of(coarse), |e| e % n_cols < n_coarse);
            }
        }
    }
    let mut lists = SparseRows::new(n_cols);
    for row in scores.chunks_exact(n_cols) {
        lists.push_row(row.iter().enumerate().filter(|&(_, &score)| score > 0.0).map(|(j, _)| (j as u32, 0.0)));
    }
    lists
}

fn assert_same(client: &Client, found: &Lists, expected: &SparseRows, what: &str) {
    let row_ptr: Vec<usize> = read_u32(client, &found.row_ptr).into_iter().map(|at| at as usize).collect();
    assert_eq!(row_ptr, expected.indptr, "{what}");
    assert_eq!(read_u32(client, &found.idx)[..expected.nnz()], expected.idx, "{what}");
}

fn check(shape: Shape, budget: &Budget, scope: Scope) {
    let (gpu, n) = (gpu(), shape.n_rows * shape.n_cols);
    let client = gpu.client();
    // Sums of halves and eighths are exact.
    let b_enc: Vec<f32> = (0..shape.n_cols).map(|j| 0.5 * (j % 3) as f32 - 0.5).collect();
    let without_bias = tied_scores(n);
    let with_bias: Vec<f32> = without_bias.iter().zip(b_enc.iter().cycle()).map(|(score, b)| score + b).collect();
    let (values, b_enc) = (Buffer::new(client, &without_bias), Buffer::new(client, &b_enc));
    let found = select(client, &Scores { values: &values, b_enc: &b_enc, shape }, budget, scope);
    let expected = naive(&with_bias, shape, budget, scope);
    assert_same(client, &found, &expected, &format!("{budget:?} {scope:?}"));

    let columns = found.columns(client);
    let expected_columns = expected.columns();
    let col_ptr: Vec<usize> = read_u32(client, &columns.col_ptr).into_iter().map(|at| at as usize).collect();
    assert_eq!(col_ptr, expected_columns.colptr);
    assert_eq!(read_u32(client, &columns.row)[..expected.nnz()], expected_columns.row);
    assert_eq!(read_u32(client, &columns.entry)[..expected.nnz()], expected_columns.entry);
}

#[test]
fn lists_are_those_of_a_sort() {
    let (n_rows, n_cols, _) = ODD;
    // The second has several segments and blocks of tokens, the third is one latent wide.
    for (n_rows, n_cols) in [(n_rows, n_cols), (131, 8200), (5, 1)] {
        let shape = Shape { n_rows, n_cols };
        let n_coarse = n_cols / 4;
        for scope in [Scope::Token, Scope::Batch] {
            check(shape, &Budget::Shared { k: 9.0, fine: 9.0, n_coarse }, scope);
            check(shape, &Budget::Shared { k: 7.4, fine: 2.6, n_coarse }, scope);
            check(shape, &Budget::PerLevel { coarse: 3.0, fine: 5.0, n_coarse }, scope);
            check(shape, &Budget::PerLevel { coarse: 3.0, fine: 0.0, n_coarse }, scope);
        }
    }
    // More than there are, and all that there are.
    let shape = Shape { n_rows: 33, n_cols: 40 };
    check(shape, &Budget::Shared { k: 39.0, fine: 39.0, n_coarse: 0 }, Scope::Batch);
    check(shape, &Budget::All, Scope::Batch);
}

#[test]
fn values_that_differ_in_their_last_bits_are_told_apart() {
    let shape = Shape { n_rows: 4, n_cols: 500 };
    let gpu = gpu();
    let client = gpu.client();
    let scores: Vec<f32> = (0..2000u32).map(|i| f32::from_bits(0x3F80_0000 + i * 7919 % 2003)).collect();
    let (values, b_enc) = (Buffer::new(client, &scores), Buffer::zeros(client, 500));
    for scope in [Scope::Token, Scope::Batch] {
        let budget = Budget::Shared { k: 17.0, fine: 17.0, n_coarse: 0 };
        let found = select(client, &Scores { values: &values, b_enc: &b_enc, shape }, &budget, scope);
        assert_same(client, &found, &naive(&scores, shape, &budget, scope), "last bits");
    }
}

#[test]
fn scores_that_are_no_numbers_are_never_active() {
    let shape = Shape { n_rows: 2, n_cols: 3 };
    let gpu = gpu();
    let client = gpu.client();
    let values = Buffer::new(client, &[f32::NAN, 1.0, f32::NEG_INFINITY, -0.0, 0.0, f32::NAN]);
    let scores = Scores { values: &values, b_enc: &Buffer::zeros(client, 3), shape };
    let found = select(client, &scores, &Budget::Shared { k: 2.0, fine: 2.0, n_coarse: 0 }, Scope::Batch);
    assert_eq!(read_u32(client, &found.row_ptr), [0, 1, 1]);
    assert_eq!(read_u32(client, &found.idx)[0], 1);
}

#[test]
fn the_gate_lowers_latents_whose_parent_is_silent() {
    let (n_rows, n_cols, _) = ODD;
    let shape = Shape { n_rows, n_cols };
    let gpu = gpu();
    let client = gpu.client();
    let scores = tied_scores(n_rows * n_cols);
    let budget = Budget::Shared { k: 20.0, fine: 20.0, n_coarse: 0 };
    let parent: Vec<u32> = (0..n_cols as u32).map(|j| if j % 3 == 0 { u32::MAX } else { j / 3 }).collect();
    let active = naive(&scores, shape, &budget, Scope::Batch);
    let mut gated = scores.clone();
    for (t, row) in gated.chunks_exact_mut(n_cols).enumerate() {
        for (j, score) in row.iter_mut().enumerate() {
            if parent[j] != u32::MAX && !active.row(t).0.contains(&parent[j]) {
                *score -= 0.25;
            }
        }
    }
    let (values, b_enc) = (Buffer::new(client, &scores), Buffer::zeros(client, n_cols));
    let on_device = Scores { values: &values, b_enc: &b_enc, shape };
    let ungated = select(client, &on_device, &budget, Scope::Batch);
    gate(client, &on_device, &ungated, &Buffer::new(client, &parent), 0.25);
    let found = select(client, &on_device, &budget, Scope::Batch);
    let expected = naive(&gated, shape, &budget, Scope::Batch);
    assert!(expected != active, "the gate changes something");
    assert_same(client, &found, &expected, "gated");
}
