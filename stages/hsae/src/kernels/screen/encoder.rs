//! W_enc as the screen wants it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::rounding::{length, to_bf16, to_int8};
use super::{Format, PANEL, Path, TILE};

/// Integers of this many products fit the kernel's 32-bit sums.
const MOST_INT8_COLUMNS: usize = 65_536;
/// Rows that tell how large columns are.
const N_BALANCE_ROWS: usize = 512;
/// Factors of balance stay within this power of two, so that no value leaves its range.
const LARGEST_BALANCE: f64 = 12.0;

/// Above this share of latents that have to be computed again, a product of more bits is cheaper.
const MOST_SETTLED: f64 = 0.08;

#[derive(Debug)]
pub(crate) struct PackedEncoder {
    path: Path,
    d_model: usize,
    d_sae: usize,
    /// Words of 32 bits, zero-padded: [d_sae / PANEL][words][PANEL]. Empty on the f32 path.
    panels: Vec<u32>,
    /// Length of each packed row, and of what packing took away, [d_sae].
    length: Vec<f32>,
    error: Vec<f32>,
    /// 8 bits only: what a unit of each row stands for, padded to whole tiles.
    scale: Vec<f32>,
    /// 8 bits only: W_enc's columns are multiplied by these powers of two and the activations' divided, so that no column
    /// takes all of the 8 bits for itself. All 1 until `balance`.
    balance: Vec<f32>,
    inverse_balance: Vec<f32>,
    is_balanced: bool,
    /// Pre-activations that were computed again since `reconsider`, and those that were looked at.
    n_settled: AtomicU64,
    n_screened: AtomicU64,
}

impl PackedEncoder {
    /// Room for W_enc; nothing is packed yet.
    fn new(path: Path, d_model: usize, d_sae: usize) -> Self {
        let path = match path.format() {
            Format::Int8 if d_model > MOST_INT8_COLUMNS => Path::F32,
            _ => path,
        };
        let n_padded = d_sae.next_multiple_of(TILE);
        let n_balance = if path.format() == Format::Int8 { d_model } else { 0 };
        Self {
            path,
            d_model,
            d_sae,
            panels: vec![0; n_padded * path.format().words(d_model)],
            length: vec![0.0; d_sae],
            error: vec![0.0; d_sae],
            scale: vec![0.0; n_padded],
            balance: vec![1.0; n_balance],
            inverse_balance: vec![1.0; n_balance],
            is_balanced: n_balance == 0,
            n_settled: AtomicU64::new(0),
            n_screened: AtomicU64::new(0),
        }
    }

    /// Shapes: w_enc [d_sae, d_model].
    pub(crate) fn pack(path: Path, w_enc: &[f32], d_model: usize) -> Self {
        let mut packed = Self::new(path, d_model, w_enc.len() / d_model);
        packed.update(w_enc);
        packed
    }

    /// Other latents for the same activations. Shapes: w_enc [n, d_model].
    pub(crate) fn packed_alike(&self, w_enc: &[f32]) -> Self {
        let mut packed = Self::new(self.path, self.d_model, w_enc.len() / self.d_model);
        packed.balance.clone_from(&self.balance);
        packed.inverse_balance.clone_from(&self.inverse_balance);
        packed.update(w_enc);
        packed
    }

    /// Packs anew, in the room that is there.
    pub(crate) fn update(&mut self, w_enc: &[f32]) {
        let d_model = self.d_model;
        self.blocks().zip(w_enc.par_chunks(PANEL * d_model)).for_each(|(mut block, w)| block.pack(w));
    }

    /// Sees how large the columns of both matrices are, and packs anew so that neither has columns that stand out, if that
    /// takes less from some rows than rounding them as they are. What is selected does not depend on it, only how much has
    /// to be computed again.
    /// Shapes: x [n, d_model] the encoder's input, w_enc [d_sae, d_model].
    /// Source: Xiao et al. 2023, "SmoothQuant", equation 4 with α = 1/2, from mean squares in place of maxima.
    pub(crate) fn balance(&mut self, x: &[f32], w_enc: &[f32]) {
        if self.is_balanced || x.is_empty() {
            return;
        }
        self.is_balanced = true;
        let (x, w) = (some_rows(x, self.d_model), some_rows(w_enc, self.d_model));
        let columns = mean_squares(&x, self.d_model).into_iter().zip(mean_squares(&w, self.d_model));
        let exponents = columns.map(|(x, w)| match (x / w).log2() / 4.0 {
            exponent if exponent.is_finite() => exponent.round().clamp(-LARGEST_BALANCE, LARGEST_BALANCE) as i32,
            _ => 0,
        });
        let balance: Vec<f32> = exponents.map(|exponent| 2f32.powi(exponent)).collect();
        let inverse: Vec<f32> = balance.iter().map(|factor| 1.0 / factor).collect();
        let error =
            |x_factors: &[f32], w_factors: &[f32]| relative_error(&x, x_factors) + relative_error(&w, w_factors);
        if error(&inverse, &balance) < error(&self.inverse_balance, &self.balance) {
            (self.balance, self.inverse_balance) = (balance, inverse);
            self.update(w_enc);
        }
    }

    /// Notes how much passed the screen, of all latents of so many tokens: while a curriculum looks at the first alone, their
    /// share says nothing about later steps, and fewer bits are seldom tried again.
    pub(crate) fn note(&self, n_settled: usize, n_rows: usize) {
        self.n_settled.fetch_add(n_settled as u64, Ordering::Relaxed);
        self.n_screened.fetch_add((n_rows * self.d_sae) as u64, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn n_settled(&self) -> u64 {
        self.n_settled.load(Ordering::Relaxed)
    }

    /// Goes over to more bits where the activations are such that 8 let too much pass. What is selected stays the same.
    pub(crate) fn reconsider(&mut self, w_enc: &[f32]) {
        let (n_settled, n_screened) =
            (std::mem::take(self.n_settled.get_mut()), std::mem::take(self.n_screened.get_mut()));
        if self.path.format() == Format::Int8 && n_settled as f64 > MOST_SETTLED * n_screened as f64 {
            *self = Self::pack(Path::of_more_bits(), w_enc, self.d_model);
        }
    }

    /// Goes back to as few bits as the processor has, to be reconsidered by what passes them from here on.
    pub(crate) fn try_fewer_bits(&mut self, w_enc: &[f32]) {
        if self.path != Path::detect() {
            *self = Self::pack(Path::detect(), w_enc, self.d_model);
        }
    }

    /// The panels one by one, each with its norms, for packing by whoever has just changed these rows.
    pub(crate) fn blocks(&mut self) -> impl IndexedParallelIterator<Item = PanelMut<'_>> {
        let (d_model, format, balance) = (self.d_model, self.path.format(), &self.balance);
        let panel_len = PANEL * format.words(d_model);
        let mut rest = self.panels.as_mut_slice();
        let panels: Vec<&mut [u32]> = (0..self.d_sae.div_ceil(PANEL))
            .map(|_| {
                let (panel, after) = std::mem::take(&mut rest).split_at_mut(panel_len);
                rest = after;
                panel
            })
            .collect();
        let norms = self.length.par_chunks_mut(PANEL).zip(self.error.par_chunks_mut(PANEL));
        panels.into_par_iter().zip(norms.zip(self.scale.par_chunks_mut(PANEL))).map(
            move |(panel, ((length, error), scale))| PanelMut { d_model, format, balance, panel, length, error, scale },
        )
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    pub(super) fn d_model(&self) -> usize {
        self.d_model
    }

    /// Words of a packed row.
    pub(super) fn words(&self) -> usize {
        self.path.format().words(self.d_model)
    }

    /// What activations are multiplied by before they are packed, [d_model].
    pub(super) fn inverse_balance(&self) -> &[f32] {
        &self.inverse_balance
    }

    /// The panels of some latents, whole ones.
    pub(super) fn panels(&self, latents: Range<usize>) -> &[u32] {
        &self.panels[latents.start * self.words()..latents.end * self.words()]
    }

    pub(super) fn scales(&self, latents: Range<usize>) -> &[f32] {
        &self.scale[latents]
    }

    /// Lengths and packing errors, [d_sae].
    #[inline(always)]
    pub(crate) fn norms(&self) -> (&[f32], &[f32]) {
        (&self.length, &self.error)
    }
}

/// Some evenly spaced rows.
fn some_rows(rows: &[f32], d_model: usize) -> Vec<f32> {
    let every = (rows.len() / d_model / N_BALANCE_ROWS).max(1);
    rows.chunks_exact(d_model).step_by(every).flatten().copied().collect()
}

/// The mean square of each column, of rows brought to length 1: a row has a scale of its own, so its length means nothing.
fn mean_squares(rows: &[f32], d_model: usize) -> Vec<f64> {
    let mut sums = vec![0f64; d_model];
    for row in rows.chunks_exact(d_model) {
        let square = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        if square > 0.0 && square.is_finite() {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value).powi(2) / square);
        }
    }
    sums.iter().map(|sum| sum / (rows.len() / d_model) as f64).collect()
}

/// What 8 bits take from rows, over their lengths, in the mean. Shapes: rows [n, d_model], factors [d_model].
fn relative_error(rows: &[f32], factors: &[f32]) -> f64 {
    let (mut row_now, mut scratch) = (factors.to_vec(), factors.to_vec());
    let mut words = vec![0u32; Format::Int8.words(factors.len())];
    let mut error_of = |row: &[f32]| {
        row_now.iter_mut().zip(row).zip(factors).for_each(|((out, value), factor)| *out = value * factor);
        let norms = to_int8(&row_now, &mut scratch, 0, &mut words).norms;
        f64::from(norms.error) / f64::from(norms.length.max(f32::MIN_POSITIVE))
    };
    let errors = rows.chunks_exact(factors.len()).map(&mut error_of).filter(|error| error.is_finite());
    errors.sum::<f64>() / (rows.len() / factors.len()) as f64
}

/// PANEL rows of W_enc in their packed place.
pub(crate) struct PanelMut<'a> {
    d_model: usize,
    format: Format,
    balance: &'a [f32],
    panel: &'a mut [u32],
    length: &'a mut [f32],
    error: &'a mut [f32],
    scale: &'a mut [f32],
}

impl PanelMut<'_> {
    /// Shapes: w [at most PANEL, d_model].
    pub(crate) fn pack(&mut self, w: &[f32]) {
        pack_panel(self, w);
    }
}

vectorised! {
    fn pack_panel(out: &mut PanelMut, w: &[f32]) {
        let (d_model, n_words) = (out.d_model, out.panel.len() / PANEL);
        let (mut row_now, mut scratch) = (vec![0f32; d_model], vec![0f32; d_model]);
        let mut words = vec![0u32; PANEL * n_words];
        for (i, row) in w.chunks_exact(d_model).enumerate() {
            let words = &mut words[i * n_words..(i + 1) * n_words];
            match out.format {
                Format::None => out.length[i] = length(row),
                Format::Bf16 => {
                    let norms = to_bf16(row, &mut scratch, words);
                    (out.length[i], out.error[i]) = (norms.length, norms.error);
                }
                Format::Int8 => {
                    let balance = row_now.iter_mut().zip(row).zip(out.balance);
                    balance.for_each(|((out, w), factor)| *out = w * factor);
                    // Latents are the unsigned side of the product: 128 more than the integer.
                    let int8 = to_int8(&row_now, &mut scratch, 0x80, words);
                    (out.length[i], out.error[i]) = (int8.norms.length, int8.norms.error);
                    out.scale[i] = int8.scale;
                }
            }
        }
        // Transposed: word by word, the latents of the panel side by side.
        for (at, out) in out.panel.chunks_exact_mut(PANEL).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = words[i * n_words + at];
            }
        }
    }
}
