//! A step's parts on the device, for all latents or for the dead ones alone: activations, reconstructions, gradients.

use cubecl::client::Client;

use super::buffers::{Buffer, cubes, cubes_of_blocks, cubes_of_units, units};
use super::kernels::matrix::{self, ROWS_PER_SUM};
use super::kernels::{latents, tokens};
use super::lists::{ColumnLists, Lists};
use crate::kernels::Prefixes;

/// Latents' parameters: W_enc and W_dec [n, d_model], b_enc [n].
pub(super) struct Dictionary {
    pub(super) w_enc: Buffer<f32>,
    pub(super) b_enc: Buffer<f32>,
    pub(super) w_dec: Buffer<f32>,
}

/// Gradients shaped like them, and how often each latent is active, and how strongly in sum, [n].
pub(super) struct Grads {
    pub(super) w_enc: Buffer<f32>,
    pub(super) b_enc: Buffer<f32>,
    pub(super) w_dec: Buffer<f32>,
    pub(super) firings: Buffer<u32>,
    pub(super) act_sums: Buffer<f32>,
}

/// Nested reconstructions of a batch.
pub(super) struct Reconstruction {
    /// What flows back into each, [n_prefixes, B, d_model].
    pub(super) flow: Buffer<f32>,
    /// ‖x − x̂_m‖² of every token, [n_prefixes, B].
    pub(super) errors: Buffer<f32>,
    /// x − x̂ of the last, [B, d_model]; empty if it is not wanted.
    pub(super) residual: Buffer<f32>,
    ends: Buffer<u32>,
}

/// Tokens of a batch, and d_model.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) n_rows: usize,
    pub(super) d_model: usize,
}

impl Grads {
    pub(super) fn zeros(client: &Client, n: usize, d_model: usize) -> Self {
        Self {
            w_enc: Buffer::zeros(client, n * d_model),
            b_enc: Buffer::zeros(client, n),
            w_dec: Buffer::zeros(client, n * d_model),
            firings: Buffer::of(client, vec![0u32; n.max(1)]),
            act_sums: Buffer::zeros(client, n),
        }
    }

    /// What they hold is arbitrary.
    pub(super) fn empty(client: &Client, n: usize, d_model: usize) -> Self {
        Self {
            w_enc: Buffer::empty(client, n * d_model),
            b_enc: Buffer::empty(client, n),
            w_dec: Buffer::empty(client, n * d_model),
            firings: Buffer::empty(client, n),
            act_sums: Buffer::empty(client, n),
        }
    }
}

impl Dictionary {
    /// The rows of some latents.
    pub(super) fn of(&self, client: &Client, chosen: &[u32], d_model: usize) -> Self {
        let (n, latents) = (chosen.len(), Buffer::new(client, chosen));
        let gathered = |matrix: &Buffer<f32>, d: usize| {
            let rows = Buffer::empty(client, n * d);
            // SAFETY: the latents are rows of the matrix, and there is a row for each.
            unsafe {
                latents::gather::launch_unchecked(
                    client,
                    cubes(n),
                    units(),
                    matrix.arg(),
                    latents.arg(),
                    rows.arg(),
                    n,
                    d,
                );
            }
            rows
        };
        Self {
            w_enc: gathered(&self.w_enc, d_model),
            b_enc: gathered(&self.b_enc, 1),
            w_dec: gathered(&self.w_dec, d_model),
        }
    }

    /// Pre-activations of the listed entries in f32, at least 0. Shapes: x [B, d_model] → [nnz].
    pub(super) fn acts(&self, client: &Client, x: &Buffer<f32>, lists: &Lists, size: Size) -> Buffer<f32> {
        let acts = Buffer::empty(client, lists.idx.len);
        let (no_acts, no_ends) = (Buffer::<f32>::empty(client, 1), Buffer::new(client, &[u32::MAX]));
        // SAFETY: lists name tokens of x and rows of this dictionary.
        unsafe {
            tokens::entry_products::launch_unchecked(
                client,
                cubes(size.n_rows),
                units(),
                x.arg(),
                self.w_enc.arg(),
                self.b_enc.arg(),
                lists.row_ptr.arg(),
                lists.idx.arg(),
                no_acts.arg(),
                no_ends.arg(),
                acts.arg(),
                size.n_rows,
                size.d_model,
                true,
            );
        }
        acts
    }

    /// Shapes: target [B, d_model] without b_dec, acts [nnz]. The loss is the mean over tokens of what the prefixes weigh.
    #[expect(clippy::too_many_arguments, reason = "the arrays of a product")]
    pub(super) fn reconstruct(
        &self,
        client: &Client,
        target: &Buffer<f32>,
        lists: &Lists,
        acts: &Buffer<f32>,
        prefixes: &Prefixes,
        wants_residual: bool,
        size: Size,
    ) -> Reconstruction {
        let Size { n_rows, d_model } = size;
        let n_prefixes = prefixes.len();
        let ends: Vec<u32> = prefixes.ends.iter().map(|&end| end as u32).collect();
        let factors: Vec<f32> = prefixes.weights.iter().map(|weight| weight * (2.0 / n_rows as f32)).collect();
        let found = Reconstruction {
            flow: Buffer::empty(client, n_prefixes * n_rows * d_model),
            errors: Buffer::empty(client, n_prefixes * n_rows),
            residual: Buffer::empty(client, if wants_residual { n_rows * d_model } else { 1 }),
            ends: Buffer::new(client, &ends),
        };
        let factors = Buffer::new(client, &factors);
        // SAFETY: buffers are as large as the shapes say; the last prefix holds all latents.
        unsafe {
            tokens::reconstruct::launch_unchecked(
                client,
                cubes(n_rows),
                units(),
                target.arg(),
                lists.row_ptr.arg(),
                lists.idx.arg(),
                acts.arg(),
                self.w_dec.arg(),
                found.ends.arg(),
                factors.arg(),
                found.flow.arg(),
                found.errors.arg(),
                found.residual.arg(),
                n_rows,
                d_model,
                n_prefixes,
                wants_residual,
            );
        }
        found
    }

    /// Gradients of the first `n_latents`, those that the lists are about, written to `grads`.
    /// Shapes: x [B, d_model], acts [nnz].
    #[expect(clippy::too_many_arguments, reason = "the arrays of a product, and where its results go")]
    pub(super) fn gradients(
        &self,
        client: &Client,
        x: &Buffer<f32>,
        lists: &Lists,
        columns: &ColumnLists,
        acts: &Buffer<f32>,
        reconstruction: &Reconstruction,
        n_latents: usize,
        size: Size,
        grads: &Grads,
    ) {
        let Size { n_rows, d_model } = size;
        let grad_acts = Buffer::<f32>::empty(client, lists.idx.len);
        // SAFETY: lists name tokens of x and rows of this dictionary; grads have at least n_latents rows.
        unsafe {
            tokens::entry_products::launch_unchecked(
                client,
                cubes(n_rows),
                units(),
                reconstruction.flow.arg(),
                self.w_dec.arg(),
                self.b_enc.arg(),
                lists.row_ptr.arg(),
                lists.idx.arg(),
                acts.arg(),
                reconstruction.ends.arg(),
                grad_acts.arg(),
                n_rows,
                d_model,
                false,
            );
            latents::gradients::launch_unchecked(
                client,
                cubes_of_blocks(n_latents, d_model, latents::COLUMNS),
                units(),
                x.arg(),
                reconstruction.flow.arg(),
                acts.arg(),
                grad_acts.arg(),
                columns.col_ptr.arg(),
                columns.row.arg(),
                columns.entry.arg(),
                reconstruction.ends.arg(),
                grads.w_enc.arg(),
                grads.w_dec.arg(),
                grads.b_enc.arg(),
                grads.firings.arg(),
                grads.act_sums.arg(),
                n_rows,
                n_latents,
                d_model,
            );
        }
    }
}

/// Adds gradients of some latents to those of all. Shapes: chosen [n], extra [n, …].
pub(super) fn add_grads(client: &Client, grads: &Grads, extra: &Grads, chosen: &[u32], d_model: usize) {
    let (n, latents) = (chosen.len(), Buffer::new(client, chosen));
    let parts =
        [(&extra.w_enc, &grads.w_enc, d_model), (&extra.b_enc, &grads.b_enc, 1), (&extra.w_dec, &grads.w_dec, d_model)];
    for (rows, matrix, d) in parts {
        // SAFETY: the latents are rows of the matrix, each named once, and there is a row for each.
        unsafe {
            latents::add_rows::launch_unchecked(
                client,
                cubes(n),
                units(),
                rows.arg(),
                latents.arg(),
                matrix.arg(),
                n,
                d,
            );
        }
    }
}

/// Σ of the first `n_rows` rows, each times its weight where there are weights, in blocks that are summed in turn.
/// Shapes: matrix [n_rows, d], weights [n_rows] → [d].
pub(super) fn sum_rows(
    client: &Client,
    matrix: &Buffer<f32>,
    weights: Option<&Buffer<f32>>,
    n_rows: usize,
    d: usize,
) -> Buffer<f32> {
    let none = Buffer::empty(client, 1);
    let (mut from, mut weights, mut n_rows) = (matrix.clone(), weights, n_rows);
    loop {
        let n_blocks = n_rows.div_ceil(ROWS_PER_SUM).max(1);
        let sums = Buffer::empty(client, n_blocks * d);
        // SAFETY: there are n_rows rows and as many weights, and a row of sums for each block.
        unsafe {
            matrix::sum_rows::launch_unchecked(
                client,
                cubes(n_blocks),
                units(),
                from.arg(),
                weights.unwrap_or(&none).arg(),
                sums.arg(),
                n_rows,
                n_blocks,
                d,
                weights.is_some(),
            );
        }
        if n_blocks == 1 {
            return sums;
        }
        (from, weights, n_rows) = (sums, None, n_blocks);
    }
}

/// a −= b. Shapes: both [n].
pub(super) fn subtract(client: &Client, a: &Buffer<f32>, b: &Buffer<f32>, n: usize) {
    // SAFETY: both hold n values.
    unsafe { matrix::subtract::launch_unchecked(client, cubes_of_units(n), units(), a.arg(), b.arg(), n) };
}
