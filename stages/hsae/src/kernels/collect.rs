//! From tokens to the few pre-activations that can matter, without ever holding the dense matrix: the screen looks at a
//! tile, what passes is computed in f32, and the tile is forgotten.

use std::ops::Range;

use rayon::prelude::*;

use super::dot;
use super::screen::{PackedEncoder, PackedRows, Path, Screen, TILE};
use crate::sparse::SparseRows;

/// Tokens and latents of a parallel piece of work. Its tokens stay in the second-level cache while latents go by.
const TASK_ROWS: usize = 512;
const TASK_LATENTS: usize = 4096;
/// Latents between two looks at the margin.
const CHUNK: usize = 32;

/// The encoder and a batch. Shapes: x_centered [B, d_model] (b_dec already subtracted), w_enc [d_sae, d_model],
/// b_enc [d_sae].
#[derive(Clone, Copy)]
pub(crate) struct EncoderInput<'a> {
    pub(crate) x_centered: &'a [f32],
    pub(crate) w_enc: &'a [f32],
    pub(crate) b_enc: &'a [f32],
    pub(crate) d_model: usize,
    /// The same W_enc.
    pub(crate) packed: &'a PackedEncoder,
}

/// Which pre-activations are collected: those with pre − shift\[latent\] > bound\[token\].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    pub(crate) tokens: TokenBounds<'a>,
    /// [d_sae]; None: zero.
    pub(crate) shift: Option<&'a [f32]>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum TokenBounds<'a> {
    All(f32),
    /// [B].
    Each(&'a [f32]),
}

impl Bounds<'_> {
    pub(crate) fn above(bound: f32) -> Self {
        Self { tokens: TokenBounds::All(bound), shift: None }
    }

    fn of(&self, token: usize) -> f32 {
        match self.tokens {
            TokenBounds::All(bound) => bound,
            TokenBounds::Each(bounds) => bounds[token],
        }
    }
}

impl EncoderInput<'_> {
    pub(crate) fn n_rows(&self) -> usize {
        self.x_centered.len() / self.d_model
    }

    /// The pre-activation of one token and latent, in f32, its sum in a fixed order.
    /// Source: Bricken et al. 2023, "Towards Monosemanticity", the autoencoder's encoder.
    #[inline(always)]
    pub(crate) fn pre_act(&self, token: usize, latent: usize) -> f32 {
        let x = &self.x_centered[token * self.d_model..(token + 1) * self.d_model];
        let w = &self.w_enc[latent * self.d_model..(latent + 1) * self.d_model];
        dot(x, w) + self.b_enc[latent]
    }

    /// Some of its tokens. Shapes: rows [n] → x_centered [n, d_model].
    pub(crate) fn gather(&self, tokens: &[u32]) -> Vec<f32> {
        let row = |&t: &u32| &self.x_centered[t as usize * self.d_model..(t as usize + 1) * self.d_model];
        tokens.iter().flat_map(row).copied().collect()
    }
}

/// All pre-activations beyond their bounds, token by token and ascending in latent: exactly those that an f32 product
/// would give.
pub(crate) fn collect(input: EncoderInput, bounds: Bounds) -> SparseRows {
    let (n_rows, d_sae) = (input.n_rows(), input.b_enc.len());
    let found: Vec<Vec<Vec<Found>>> = (0..n_rows.div_ceil(TASK_ROWS))
        .into_par_iter()
        .map(|block| {
            let rows = block * TASK_ROWS..((block + 1) * TASK_ROWS).min(n_rows);
            let x = &input.x_centered[rows.start * input.d_model..rows.end * input.d_model];
            let packed = PackedRows::new(input.packed.path(), x, input.d_model);
            (0..d_sae.div_ceil(TASK_LATENTS))
                .into_par_iter()
                .map(|group| {
                    let latents = group * TASK_LATENTS..((group + 1) * TASK_LATENTS).min(d_sae);
                    Task { input, bounds, x, packed: &packed, first_row: rows.start, n_rows: rows.len() }.run(latents)
                })
                .collect()
        })
        .collect();

    let mut all = SparseRows::new(d_sae);
    for (block, groups) in found.iter().enumerate() {
        let rows = block * TASK_ROWS..((block + 1) * TASK_ROWS).min(n_rows);
        append_sorted_by_row(&mut all, groups, rows);
    }
    all
}

/// An entry of a task; rows count from the task's first.
#[derive(Clone, Copy)]
struct Found {
    row: u32,
    latent: u32,
    pre_act: f32,
}

/// Some tokens against some latents.
struct Task<'a> {
    input: EncoderInput<'a>,
    bounds: Bounds<'a>,
    /// The task's tokens, plain and packed.
    x: &'a [f32],
    packed: &'a PackedRows,
    first_row: usize,
    n_rows: usize,
}

impl Task<'_> {
    /// In the order of panels of latents, then tokens, then latents.
    fn run(&self, latents: Range<usize>) -> Vec<Found> {
        let input = &self.input;
        let screen = Screen { encoder: input.packed, w_enc: input.w_enc, x: self.x, rows: self.packed };
        // bf16 tiles are small enough for the first-level cache; f32 ones large enough to be worth their packing.
        let (step_rows, step_latents) = match input.packed.path() {
            Path::F32 => (TASK_ROWS.min(self.n_rows.next_multiple_of(TILE)), 512),
            #[cfg(target_arch = "x86_64")]
            _ => (TILE, 256),
        };
        let mut tile = vec![0f32; step_rows * step_latents];
        let mut found = Vec::new();
        for start in latents.clone().step_by(step_latents) {
            let latents = start..(start + step_latents).min(latents.end);
            let panel = self.panel(latents.clone());
            for row in (0..self.n_rows).step_by(step_rows) {
                let rows = row..(row + step_rows).min(self.n_rows);
                screen.product(rows.clone(), latents.clone(), &mut tile, step_latents);
                scan_tile(self, &screen, &tile, step_latents, rows, &panel, &mut found);
            }
        }
        found
    }

    fn panel(&self, latents: Range<usize>) -> Panel {
        let offset = |j: usize| self.input.b_enc[j] - self.bounds.shift.map_or(0.0, |shift| shift[j]);
        let offsets: Vec<f32> = latents.clone().map(offset).collect();
        let chunks = latents.clone().step_by(CHUNK).map(|j| j..(j + CHUNK).min(latents.end));
        let margins = chunks.map(|chunk| self.margin(chunk, &offsets, latents.start)).collect();
        Panel { start: latents.start, offsets, margins }
    }

    fn margin(&self, latents: Range<usize>, offsets: &[f32], start: usize) -> Margin {
        let (length, error) = self.input.packed.worst(latents.clone());
        let offsets = &offsets[latents.start - start..latents.end - start];
        Margin { length, error, offset: offsets.iter().fold(0.0, |max, offset| offset.abs().max(max)) }
    }

    /// One token against the latents of a panel. Most chunks hold nothing, which one comparison of vectors tells.
    #[inline(always)]
    fn scan(&self, screen: &Screen, values: &[f32], row: usize, panel: &Panel, found: &mut Vec<Found>) {
        let token = self.first_row + row;
        let bound = self.bounds.of(token);
        let chunks = values.chunks(CHUNK).zip(panel.offsets.chunks(CHUNK)).zip(&panel.margins);
        for (c, ((values, offsets), margin)) in chunks.enumerate() {
            // Adding the offset and comparing round too, by a few units in the last place.
            let slack = screen.margin(row, margin.length, margin.error)
                + 4.0 * f32::EPSILON * (margin.offset + bound.abs())
                + f32::MIN_POSITIVE;
            let mut above = above(values, offsets, bound - slack);
            while above != 0 {
                let latent = panel.start + c * CHUNK + above.trailing_zeros() as usize;
                above &= above - 1;
                let pre_act = self.input.pre_act(token, latent);
                let shift = self.bounds.shift.map_or(0.0, |shift| shift[latent]);
                if pre_act - shift > bound {
                    found.push(Found { row: row as u32, latent: latent as u32, pre_act });
                }
            }
        }
    }
}

vectorised! {
    fn scan_tile(
        task: &Task,
        screen: &Screen,
        tile: &[f32],
        stride: usize,
        rows: Range<usize>,
        panel: &Panel,
        found: &mut Vec<Found>,
    ) {
        for (values, row) in tile.chunks_exact(stride).zip(rows) {
            task.scan(screen, &values[..panel.offsets.len()], row, panel, found);
        }
    }
}

/// Bit i tells whether values\[i\] + offsets\[i\] > lower, for at most CHUNK values.
#[inline(always)]
fn above(values: &[f32], offsets: &[f32], lower: f32) -> u32 {
    let mut bits = 0;
    if let (Ok(values), Ok(offsets)) = (<&[f32; CHUNK]>::try_from(values), <&[f32; CHUNK]>::try_from(offsets)) {
        // The compiler makes two vector comparisons of this.
        for i in 0..CHUNK {
            bits |= u32::from(values[i] + offsets[i] > lower) << i;
        }
        return bits;
    }
    for (i, (value, offset)) in values.iter().zip(offsets).enumerate() {
        bits |= u32::from(value + offset > lower) << i;
    }
    bits
}

/// Some neighbouring latents, prepared for all tokens.
struct Panel {
    start: usize,
    /// b_enc less the bounds' shift.
    offsets: Vec<f32>,
    /// One for each chunk.
    margins: Vec<Margin>,
}

/// What the margin of a chunk of latents depends on: their largest norms and offset.
struct Margin {
    length: f32,
    error: f32,
    offset: f32,
}

/// A counting sort: groups and panels come in ascending order of latents, so rows come out ascending.
fn append_sorted_by_row(all: &mut SparseRows, groups: &[Vec<Found>], rows: Range<usize>) {
    let mut next = vec![0usize; rows.len() + 1];
    for found in groups.iter().flatten() {
        next[found.row as usize + 1] += 1;
    }
    next[0] = all.nnz();
    for row in 0..rows.len() {
        next[row + 1] += next[row];
    }
    all.indptr.extend_from_slice(&next[1..]);
    let end = next[rows.len()];
    all.idx.resize(end, 0);
    all.vals.resize(end, 0.0);
    for found in groups.iter().flatten() {
        let at = &mut next[found.row as usize];
        all.idx[*at] = found.latent;
        all.vals[*at] = found.pre_act;
        *at += 1;
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    /// Every path finds exactly what the definition says, at odd sizes too, with bounds of every kind.
    #[test]
    fn agrees_with_the_definition() {
        for (n_rows, d_model, d_sae) in [(1, 1, 1), (33, 7, 40), (70, 33, 301), (513, 64, 97), (40, 100, 600)] {
            let mut rng = artifact::random::stream(1, "test", n_rows as u64, d_sae as u64);
            let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
            let (x, w_enc, b_enc) = (random(n_rows * d_model), random(d_sae * d_model), random(d_sae));
            let (each, shift) = (random(n_rows), random(d_sae));
            for path in Path::all() {
                let packed = PackedEncoder::pack(path, &w_enc, d_model);
                let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
                for bounds in [
                    Bounds::above(0.3),
                    Bounds { tokens: TokenBounds::Each(&each), shift: None },
                    Bounds { tokens: TokenBounds::All(0.0), shift: Some(&shift) },
                ] {
                    let found = collect(input, bounds);
                    let mut expected = SparseRows::new(d_sae);
                    for t in 0..n_rows {
                        let row = (0..d_sae).map(|j| (j as u32, input.pre_act(t, j)));
                        let shift = |j: u32| bounds.shift.map_or(0.0, |shift| shift[j as usize]);
                        expected.push_row(row.filter(|&(j, pre)| pre - shift(j) > bounds.of(t)));
                    }
                    assert!(found == expected, "{path:?} {n_rows}×{d_model}×{d_sae} {bounds:?}");
                }
            }
        }
    }
}
