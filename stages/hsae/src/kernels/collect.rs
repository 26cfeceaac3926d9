//! From tokens to the few pre-activations that can matter, without ever holding the dense matrix: the screen looks at a
//! tile, what passes is noted, and the tile is forgotten. What was noted is then computed in f32 (`settle`).

use std::ops::Range;

use rayon::prelude::*;

use super::compare::{CHUNK, Chunk, Token, passes};
use super::dot;
use super::screen::{PackedEncoder, PackedRows, Path, Screen, TILE};
use super::settle::settle;
use crate::sparse::SparseRows;

/// Tokens of a parallel piece of work: they stay in the second-level cache while latents go by.
const TASK_ROWS: usize = 256;
/// Its latents, where there are too few tokens to go round.
const TASK_LATENTS: usize = 4096;
/// Room for what passes the screen of a token, before it has to grow.
const N_NOTED: usize = 128;
/// Where only a token's k largest matter, one part in so many of the latents tells first where they may lie.
const FIRST_PART: usize = 8;
/// From so many times k noted latents on.
const WORTH_RAISING: usize = 2;

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
    /// Where only the k largest of each token matter, those surely more than `slack` below the k-th may be left out.
    pub(crate) top: Option<Top>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Top {
    pub(crate) k: usize,
    pub(crate) slack: f32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum TokenBounds<'a> {
    All(f32),
    /// [B].
    Each(&'a [f32]),
}

impl Bounds<'_> {
    pub(crate) fn above(bound: f32) -> Self {
        Self { tokens: TokenBounds::All(bound), shift: None, top: None }
    }

    pub(super) fn of(&self, token: usize) -> f32 {
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

    /// Its first latents.
    pub(crate) fn first(self, n_latents: usize) -> Self {
        let n_latents = n_latents.min(self.b_enc.len());
        Self { w_enc: &self.w_enc[..n_latents * self.d_model], b_enc: &self.b_enc[..n_latents], ..self }
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
    let blocks = collect_blocks(input, bounds, |_, found| found);
    SparseRows::concatenated(input.b_enc.len(), blocks.iter())
}

/// The same in blocks of neighbouring tokens, each handed to `of_block` on the thread that found it.
pub(crate) fn collect_blocks<T: Send>(
    input: EncoderInput,
    bounds: Bounds,
    of_block: impl Fn(Range<usize>, SparseRows) -> T + Sync,
) -> Vec<T> {
    let (n_rows, d_sae) = (input.n_rows(), input.b_enc.len());
    let n_blocks = n_rows.div_ceil(TASK_ROWS);
    // A few tokens are shared among threads by latents.
    let n_latents = if n_blocks >= 2 * rayon::current_num_threads() { d_sae } else { TASK_LATENTS };
    (0..n_blocks)
        .into_par_iter()
        .map(|block| {
            let rows = block * TASK_ROWS..((block + 1) * TASK_ROWS).min(n_rows);
            let x = &input.x_centered[rows.start * input.d_model..rows.end * input.d_model];
            let packed = PackedRows::new(input.packed, x);
            let task = Task { input, bounds, x, packed: &packed, first_row: rows.start, n_rows: rows.len() };
            let noted = (0..d_sae.div_ceil(n_latents))
                .into_par_iter()
                .map(|group| task.run(group * n_latents..((group + 1) * n_latents).min(d_sae)))
                .reduce_with(|mut before, after| {
                    before.iter_mut().zip(after).for_each(|(before, after)| before.extend(after));
                    before
                });
            of_block(rows, settle(&task, &noted.unwrap_or_default()))
        })
        .collect()
}

/// A latent that passed the screen of a token, and its pre-activation less the bounds' shift, about.
pub(super) type Noted = (u32, f32);

/// The k-th largest of at least k values; their order is lost.
pub(super) fn kth_largest(values: &mut [f32], k: usize) -> f32 {
    *values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Some tokens against some latents.
pub(super) struct Task<'a> {
    pub(super) input: EncoderInput<'a>,
    pub(super) bounds: Bounds<'a>,
    /// The task's tokens, plain and packed.
    x: &'a [f32],
    packed: &'a PackedRows,
    pub(super) first_row: usize,
    pub(super) n_rows: usize,
}

impl Task<'_> {
    /// What passes the screen, token by token and ascending in latent.
    fn run(&self, latents: Range<usize>) -> Vec<Vec<Noted>> {
        let screen = self.screen();
        // Tiles of few bits are small enough for the first-level cache; f32 ones large enough to be worth their packing.
        let (step_rows, step_latents) = match self.input.packed.path() {
            Path::F32 => (TASK_ROWS.min(self.n_rows.next_multiple_of(TILE)), 512),
            #[cfg(target_arch = "x86_64")]
            _ => (TILE, 256),
        };
        let mut tile = vec![0f32; step_rows * step_latents];
        let mut noted: Vec<Vec<Noted>> = (0..self.n_rows).map(|_| Vec::with_capacity(N_NOTED)).collect();
        let mut bounds: Vec<f32> = (0..self.n_rows).map(|row| self.bounds.of(self.first_row + row)).collect();
        // Tokens' bounds are raised after a first part of the latents, then each time that as many again are done.
        let mut raise_at = latents.start + (latents.len() / FIRST_PART).max(step_latents);
        for start in latents.clone().step_by(step_latents) {
            let panel_latents = start..(start + step_latents).min(latents.end);
            let panel = self.panel(panel_latents.clone());
            for row in (0..self.n_rows).step_by(step_rows) {
                let rows = row..(row + step_rows).min(self.n_rows);
                screen.product(rows.clone(), panel_latents.clone(), &mut tile, step_latents);
                scan_tile(&screen, &tile, step_latents, rows, &bounds, &panel, &mut noted);
            }
            if let Some(top) = self.bounds.top.filter(|top| top.k > 0 && panel_latents.end >= raise_at) {
                raise(self, &mut bounds, top, &mut noted);
                raise_at = latents.start + 2 * (panel_latents.end - latents.start);
            }
        }
        noted
    }

    pub(super) fn screen(&self) -> Screen<'_> {
        Screen { encoder: self.input.packed, w_enc: self.input.w_enc, x: self.x, rows: self.packed }
    }

    /// The task's token `row`.
    #[inline(always)]
    pub(super) fn token(&self, row: usize) -> &[f32] {
        &self.x[row * self.input.d_model..(row + 1) * self.input.d_model]
    }

    /// What is taken from a latent's pre-activation before it is compared.
    #[inline(always)]
    pub(super) fn shift(&self, latent: usize) -> f32 {
        self.bounds.shift.map_or(0.0, |shift| shift[latent])
    }

    fn offset(&self, latent: usize) -> f32 {
        self.input.b_enc[latent] - self.shift(latent)
    }

    /// How large the parts of the offset are: the f32 encoder rounds after adding each.
    fn offset_size(&self, latent: usize) -> f32 {
        self.input.b_enc[latent].abs() + self.shift(latent).abs()
    }

    fn panel(&self, latents: Range<usize>) -> Panel<'_> {
        let (length, error) = self.input.packed.norms();
        Panel {
            start: latents.start,
            offset: latents.clone().map(|j| self.offset(j)).collect(),
            largest_offset: latents.clone().fold(0.0, |max, j| self.offset_size(j).max(max)),
            length: &length[latents.clone()],
            error: &error[latents],
        }
    }

    /// Margins of a token's screened scores.
    #[inline(always)]
    pub(super) fn margins<'b>(&'b self, screen: &'b Screen<'b>, row: usize) -> Margins<'b> {
        Margins { task: self, screen, factors: screen.factors(row) }
    }
}

/// How far screened scores of one token may lie from the f32 ones.
pub(super) struct Margins<'a> {
    task: &'a Task<'a>,
    screen: &'a Screen<'a>,
    factors: (f32, f32),
}

impl Margins<'_> {
    #[inline(always)]
    pub(super) fn of(&self, latent: u32, score: f32) -> f32 {
        let (length, error) = self.task.input.packed.norms();
        let ((a, b), j) = (self.factors, latent as usize);
        let margin = a * length[j] + b * error[j] + self.screen.rounding(score, self.task.offset_size(j));
        if margin.is_finite() { margin } else { f32::INFINITY }
    }
}

vectorised! {
    /// Raises bounds of tokens of which much was noted, and forgets what was noted below: nothing matters that surely lies
    /// more than the slack below the k-th largest so far.
    fn raise(task: &Task, bounds: &mut [f32], top: Top, noted: &mut [Vec<Noted>]) {
        let (screen, mut margins_now, mut lower_ends) = (task.screen(), Vec::new(), Vec::new());
        for (row, (bound, noted)) in bounds.iter_mut().zip(noted).enumerate() {
            if noted.len() <= WORTH_RAISING * top.k {
                continue;
            }
            let margins = task.margins(&screen, row);
            margins_now.clear();
            margins_now.extend(noted.iter().map(|&(latent, score)| margins.of(latent, score)));
            lower_ends.clear();
            let lower_end = |(&(_, score), margin): (&Noted, &f32)| match score - margin {
                end if end.is_finite() => end,
                _ => f32::NEG_INFINITY,
            };
            lower_ends.extend(noted.iter().zip(&margins_now).map(lower_end));
            *bound = bound.max(kth_largest(&mut lower_ends, top.k) - top.slack);
            let mut n = 0;
            for (i, margin) in margins_now.iter().enumerate() {
                // Written in any case, and kept if it counts: which it does is hard to foresee.
                noted[n] = noted[i];
                n += usize::from(noted[n].1 + margin >= *bound);
            }
            noted.truncate(n);
        }
    }
}

vectorised! {
    /// What of a tile passes the screen goes to `noted`, by row of the task.
    fn scan_tile(
        screen: &Screen,
        tile: &[f32],
        stride: usize,
        rows: Range<usize>,
        bounds: &[f32],
        panel: &Panel,
        noted: &mut [Vec<Noted>],
    ) {
        for (values, row) in tile.chunks_exact(stride).zip(rows) {
            let ((a, b), bound) = (screen.factors(row), bounds[row]);
            let token = Token { a, b, lower: bound - screen.rounding(bound, panel.largest_offset) };
            panel.scan(&values[..panel.offset.len()], token, &mut noted[row]);
        }
    }
}

/// Some neighbouring latents, prepared for all tokens.
struct Panel<'a> {
    start: usize,
    /// b_enc less the bounds' shift.
    offset: Vec<f32>,
    largest_offset: f32,
    /// Length and packing error.
    length: &'a [f32],
    error: &'a [f32],
}

impl Panel<'_> {
    /// One token's values. Most chunks hold nothing, which one comparison of vectors tells.
    #[inline(always)]
    fn scan(&self, values: &[f32], token: Token, noted: &mut Vec<Noted>) {
        let norms = self.length.chunks(CHUNK).zip(self.error.chunks(CHUNK));
        let chunks = values.chunks(CHUNK).zip(self.offset.chunks(CHUNK).zip(norms));
        for (c, (values, (offset, (length, error)))) in chunks.enumerate() {
            let mut passing = passes(values, Chunk { offset, length, error }, token);
            while passing != 0 {
                let i = passing.trailing_zeros() as usize;
                passing &= passing - 1;
                noted.push(((self.start + c * CHUNK + i) as u32, values[i] + offset[i]));
            }
        }
    }
}

#[cfg(test)]
#[path = "collect/tests.rs"]
mod tests;
