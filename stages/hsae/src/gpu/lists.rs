//! Which latents are active: the launches behind `select`, with the same budgets and the same gate.

use cubecl::client::Client;

use super::buffers::{Buffer, cubes, cubes_of_units, units};
use super::kernels::columns::{self, ROWS_PER_BLOCK};
use super::kernels::lists::{self as kernels, SEGMENT};
use super::kernels::select::{self, N_BINS, N_DIGITS, STATE};
use crate::select::{Budget, Scope};

/// Cubes that count digits of a batch.
const N_COUNTING: usize = 1024;

/// What is active on each token, ascending.
pub(super) struct Lists {
    /// [B + 1].
    pub(super) row_ptr: Buffer<u32>,
    /// [capacity], of which the first `row_ptr[B]` count.
    pub(super) idx: Buffer<u32>,
    /// The same as bits, and the place of each word's first entry, [B, n_words].
    kept: Buffer<u32>,
    word_start: Buffer<u32>,
    shape: Shape,
}

/// The same latent by latent.
pub(super) struct ColumnLists {
    /// [n_cols + 1].
    pub(super) col_ptr: Buffer<u32>,
    /// Tokens, and places in the lists, [capacity].
    pub(super) row: Buffer<u32>,
    pub(super) entry: Buffer<u32>,
}

/// Pre-activations without b_enc, [B, n_cols], and b_enc.
pub(super) struct Scores<'a> {
    pub(super) values: &'a Buffer<f32>,
    pub(super) b_enc: &'a Buffer<f32>,
    pub(super) shape: Shape,
}

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
}

impl Shape {
    fn n_segments(self) -> usize {
        self.n_cols.div_ceil(SEGMENT)
    }

    fn n_words(self) -> usize {
        self.n_cols.div_ceil(32)
    }
}

/// The n best of the latents `from..to`, per token or of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    from: usize,
    to: usize,
    n: usize,
}

/// A budget as cuts: what each leaves out is out of the running for the next. Without a last cut all positive scores that
/// are left are active.
struct Cuts {
    first: Vec<Cut>,
    last: Option<Cut>,
    /// No selection has more entries.
    capacity: usize,
}

fn cuts(budget: &Budget, scope: Scope, shape: Shape) -> Cuts {
    let Shape { n_rows, n_cols } = shape;
    let (n_tokens, n_lists) = match scope {
        Scope::Token => (1.0, n_rows),
        Scope::Batch => (n_rows as f64, 1),
    };
    let n_of = |k: f64| (k * n_tokens).round() as usize;
    let is_proper = |cut: &Cut| cut.from < cut.to;
    let (first, last, n): (Vec<Cut>, Option<Cut>, usize) = match *budget {
        Budget::All => (vec![], None, n_cols * n_rows),
        Budget::Shared { k, fine, n_coarse } => {
            let fine_cut = (fine < k).then_some(Cut { from: n_coarse, to: n_cols, n: n_of(fine) });
            let all = Cut { from: 0, to: n_cols, n: n_of(k) };
            (fine_cut.into_iter().collect(), Some(all), n_of(k).max(n_of(fine)))
        }
        Budget::PerLevel { coarse, fine, n_coarse } => {
            let fine_cut = Cut { from: n_coarse, to: n_cols, n: n_of(fine) };
            let coarse_cut = Cut { from: 0, to: n_coarse.min(n_cols), n: n_of(coarse) };
            (vec![fine_cut, coarse_cut], None, n_of(coarse) + n_of(fine))
        }
    };
    let first = first.into_iter().filter(is_proper).collect();
    Cuts { first, last, capacity: (n * n_lists).min(n_rows * n_cols).max(1) }
}

/// Whether a selection leaves scores behind that are not those it was given.
pub(super) fn alters_scores(budget: &Budget) -> bool {
    match *budget {
        Budget::All => false,
        Budget::Shared { k, fine, .. } => fine < k,
        Budget::PerLevel { .. } => true,
    }
}

/// Positive scores within the budget; of equal ones the first. Scores that the budget's first cuts leave out are lost.
pub(super) fn select(client: &Client, scores: &Scores, budget: &Budget, scope: Scope) -> Lists {
    let cuts = cuts(budget, scope, scores.shape);
    let Shape { n_rows, n_cols } = scores.shape;
    for cut in &cuts.first {
        let threshold = Threshold::of(client, scores, cut, scope);
        let lists = listed(client, scores, &threshold, (cut.from, cut.to), cuts.capacity);
        // SAFETY: kept and scores are as large as the shapes say.
        unsafe {
            kernels::drop_others::launch_unchecked(
                client,
                cubes(n_rows),
                units(),
                lists.kept.arg(),
                scores.values.arg(),
                n_rows,
                n_cols,
                cut.from,
                cut.to,
                scores.shape.n_words(),
            );
        }
    }
    let threshold = match &cuts.last {
        Some(cut) => Threshold::of(client, scores, cut, scope),
        None => Threshold::fixed(client, 0),
    };
    listed(client, scores, &threshold, (0, n_cols), cuts.capacity)
}

/// Lowers scores of latents whose parent is not in the lists. `parent` [n_cols].
pub(super) fn gate(client: &Client, scores: &Scores, active: &Lists, parent: &Buffer<u32>, strength: f32) {
    let Shape { n_rows, n_cols } = scores.shape;
    // SAFETY: one parent per column, lists and scores of the same tokens.
    unsafe {
        kernels::gate::launch_unchecked(
            client,
            cubes(n_rows),
            units(),
            parent.arg(),
            active.row_ptr.arg(),
            active.idx.arg(),
            scores.values.arg(),
            n_rows,
            n_cols,
            strength,
        );
    }
}

/// Bits that scores have to be above, and how many equal ones are kept: one of each per token, or one for the batch.
struct Threshold {
    bits: Buffer<u32>,
    quota: Buffer<u32>,
    is_per_token: bool,
}

impl Threshold {
    fn fixed(client: &Client, bits: u32) -> Self {
        Self { bits: Buffer::new(client, &[bits]), quota: Buffer::new(client, &[0u32]), is_per_token: false }
    }

    fn of(client: &Client, scores: &Scores, cut: &Cut, scope: Scope) -> Self {
        if cut.n == 0 {
            return Self::fixed(client, u32::MAX);
        }
        let Shape { n_rows, n_cols } = scores.shape;
        let n_thresholds = if scope == Scope::Token { n_rows } else { 1 };
        let (bits, quota) = (Buffer::empty(client, n_thresholds), Buffer::empty(client, n_thresholds));
        if scope == Scope::Token {
            // SAFETY: one threshold per token; scores and b_enc are as large as the shapes say.
            unsafe {
                select::nth_of_token::launch_unchecked(
                    client,
                    cubes(n_rows),
                    units(),
                    scores.values.arg(),
                    scores.b_enc.arg(),
                    bits.arg(),
                    quota.arg(),
                    n_rows,
                    n_cols,
                    cut.from,
                    cut.to,
                    cut.n as u32,
                );
            }
            return Self { bits, quota, is_per_token: true };
        }
        let state = Buffer::new(client, &[0, cut.n as u32, 0] as &[u32; STATE]);
        let counts = Buffer::new(client, &vec![0u32; N_BINS]);
        for digit in 0..N_DIGITS {
            // SAFETY: as above; the counts have a place for every digit.
            unsafe {
                select::count_digit_of_batch::launch_unchecked(
                    client,
                    cubes(n_rows.min(N_COUNTING)),
                    units(),
                    scores.values.arg(),
                    scores.b_enc.arg(),
                    state.arg(),
                    counts.arg(),
                    n_rows,
                    n_cols,
                    cut.from,
                    cut.to,
                    digit,
                );
                select::settle_digit_of_batch::launch_unchecked(
                    client,
                    cubes(1),
                    units(),
                    counts.arg(),
                    state.arg(),
                    bits.arg(),
                    quota.arg(),
                    digit,
                );
            }
        }
        Self { bits, quota, is_per_token: false }
    }
}

fn listed(
    client: &Client,
    scores: &Scores,
    threshold: &Threshold,
    (from, to): (usize, usize),
    capacity: usize,
) -> Lists {
    let shape = scores.shape;
    let Shape { n_rows, n_cols } = shape;
    let (n_segments, n_words) = (shape.n_segments(), shape.n_words());
    let words = || Buffer::<u32>::empty(client, n_rows * n_words);
    let segments = || Buffer::<u32>::empty(client, n_rows * n_segments);
    let (above, equal, kept, word_start) = (words(), words(), words(), words());
    let (n_above, n_equal, n_equal_kept, start) = (segments(), segments(), segments(), segments());
    // Who walks a list looks at the entry after its last one, and then lets it be.
    let (row_ptr, idx) = (Buffer::empty(client, n_rows + 1), Buffer::empty(client, capacity + 1));
    // SAFETY: buffers are as large as the shapes say, and the threshold leaves no more than `capacity` entries.
    unsafe {
        kernels::mark::launch_unchecked(
            client,
            cubes(n_rows * n_segments),
            units(),
            scores.values.arg(),
            scores.b_enc.arg(),
            threshold.bits.arg(),
            above.arg(),
            equal.arg(),
            n_above.arg(),
            n_equal.arg(),
            n_rows,
            n_cols,
            from,
            to,
            n_segments,
            n_words,
            threshold.is_per_token,
        );
        kernels::place::launch_unchecked(
            client,
            cubes(1),
            units(),
            n_above.arg(),
            n_equal.arg(),
            threshold.quota.arg(),
            n_equal_kept.arg(),
            start.arg(),
            row_ptr.arg(),
            n_rows,
            n_segments,
            threshold.is_per_token,
        );
        kernels::collect::launch_unchecked(
            client,
            cubes(n_rows * n_segments),
            units(),
            above.arg(),
            equal.arg(),
            n_equal_kept.arg(),
            start.arg(),
            kept.arg(),
            word_start.arg(),
            idx.arg(),
            n_rows,
            n_segments,
            n_words,
        );
    }
    Lists { row_ptr, idx, kept, word_start, shape }
}

impl Lists {
    /// The same entries latent by latent.
    pub(super) fn columns(&self, client: &Client) -> ColumnLists {
        let Shape { n_rows, n_cols } = self.shape;
        let (n_blocks, n_words) = (n_rows.div_ceil(ROWS_PER_BLOCK), self.shape.n_words());
        let block_counts = Buffer::<u32>::empty(client, n_blocks * n_cols);
        let (totals, col_ptr) = (Buffer::<u32>::empty(client, n_cols), Buffer::<u32>::empty(client, n_cols + 1));
        let (row, entry) = (Buffer::empty(client, self.idx.len), Buffer::empty(client, self.idx.len));
        let line = cubes_of_units(n_cols);
        let grid = cubecl::prelude::CubeCount::Static(n_cols.div_ceil(units().x as usize) as u32, n_blocks as u32, 1);
        // SAFETY: buffers are as large as the shapes say; there are as many entries as in the lists.
        unsafe {
            columns::count_blocks::launch_unchecked(
                client,
                grid.clone(),
                units(),
                self.kept.arg(),
                block_counts.arg(),
                n_rows,
                n_cols,
                n_words,
            );
            columns::sum_blocks::launch_unchecked(
                client,
                line,
                units(),
                block_counts.arg(),
                totals.arg(),
                n_blocks,
                n_cols,
            );
            columns::start_columns::launch_unchecked(client, cubes(1), units(), totals.arg(), col_ptr.arg(), n_cols);
            columns::fill_columns::launch_unchecked(
                client,
                grid,
                units(),
                self.kept.arg(),
                self.word_start.arg(),
                block_counts.arg(),
                col_ptr.arg(),
                row.arg(),
                entry.arg(),
                n_rows,
                n_cols,
                n_words,
            );
        }
        ColumnLists { col_ptr, row, entry }
    }
}
