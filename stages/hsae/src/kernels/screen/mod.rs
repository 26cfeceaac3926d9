//! The screen: a fast product that says which pre-activations *can* lie above a bound. It reads bf16 copies of the
//! activations and of W_enc where the processor multiplies bf16 much faster than f32, and f32 elsewhere; each token and
//! each latent knows how far its copy is off, so that what the screen lets pass is a superset of the truth. What passes is
//! computed again in f32. The result is that of an f32 encoder, bit for bit, on every processor.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;

use rayon::prelude::*;

use super::dot;
use super::product::{Mat, multiply_here};

/// Latents per panel: the packed matrix holds them side by side.
pub(crate) const PANEL: usize = 16;
/// Values of the inner dimension per block of a panel.
const DEPTH: usize = 32;
/// Tokens whose blocks lie together.
const TILE_ROWS: usize = 16;
/// Tokens and latents that a hardware kernel does at once.
pub(super) const TILE: usize = 32;

/// How the product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Intel AMX: tiles of bf16.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// AVX-512 BF16: dot products of pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// f32, by the `gemm` crate, with whatever vectors there are.
    F32,
}

impl Path {
    /// The fastest that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            return Self::Amx;
        }
        #[cfg(target_arch = "x86_64")]
        if avx512_bf16::is_available() {
            return Self::Avx512Bf16;
        }
        Self::F32
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512-bf16",
            Self::F32 => "f32",
        }
    }

    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::F32];
        #[cfg(target_arch = "x86_64")]
        if avx512_bf16::is_available() {
            all.push(Self::Avx512Bf16);
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            all.push(Self::Amx);
        }
        all
    }
}

/// W_enc as the screen wants it.
#[derive(Clone, Debug)]
pub(crate) struct PackedEncoder {
    path: Path,
    d_model: usize,
    d_sae: usize,
    /// bf16 bits, zero-padded: [d_sae / PANEL][d_model / DEPTH][DEPTH / 2][PANEL][2]. Empty on the f32 path.
    panels: Vec<u16>,
    /// Length of each packed row, and of what packing took away, [d_sae].
    length: Vec<f32>,
    error: Vec<f32>,
}

impl PackedEncoder {
    /// Room for W_enc; nothing is packed yet.
    pub(crate) fn new(path: Path, d_model: usize, d_sae: usize) -> Self {
        let n_values = match path {
            Path::F32 => 0,
            #[cfg(target_arch = "x86_64")]
            _ => d_sae.next_multiple_of(TILE) * d_model.next_multiple_of(DEPTH),
        };
        Self { path, d_model, d_sae, panels: vec![0; n_values], length: vec![0.0; d_sae], error: vec![0.0; d_sae] }
    }

    /// Shapes: w_enc [d_sae, d_model].
    pub(crate) fn pack(path: Path, w_enc: &[f32], d_model: usize) -> Self {
        let mut packed = Self::new(path, d_model, w_enc.len() / d_model);
        packed.update(w_enc);
        packed
    }

    /// Packs anew, in the room that is there.
    pub(crate) fn update(&mut self, w_enc: &[f32]) {
        let d_model = self.d_model;
        self.blocks().zip(w_enc.par_chunks(PANEL * d_model)).for_each(|(mut block, w)| block.pack(w));
    }

    /// The panels one by one, each with its norms, for packing by whoever has just changed these rows.
    pub(crate) fn blocks(&mut self) -> impl IndexedParallelIterator<Item = PanelMut<'_>> {
        let d_model = self.d_model;
        let n_panels = self.d_sae.div_ceil(PANEL);
        let panel_len = if self.panels.is_empty() { 0 } else { PANEL * d_model.next_multiple_of(DEPTH) };
        let mut rest = self.panels.as_mut_slice();
        let panels: Vec<&mut [u16]> = (0..n_panels)
            .map(|_| {
                let (panel, after) = std::mem::take(&mut rest).split_at_mut(panel_len);
                rest = after;
                panel
            })
            .collect();
        panels
            .into_par_iter()
            .zip(self.length.par_chunks_mut(PANEL).zip(self.error.par_chunks_mut(PANEL)))
            .map(move |(panel, (length, error))| PanelMut { d_model, panel, length, error })
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Length and packing error of a latent.
    #[inline(always)]
    pub(super) fn norms(&self, latent: usize) -> (f32, f32) {
        (self.length[latent], self.error[latent])
    }

    /// Largest length and packing error among some latents.
    pub(super) fn worst(&self, latents: std::ops::Range<usize>) -> (f32, f32) {
        let max = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
        (max(&self.length[latents.clone()]), max(&self.error[latents]))
    }
}

/// PANEL rows of W_enc in their packed place.
pub(crate) struct PanelMut<'a> {
    d_model: usize,
    panel: &'a mut [u16],
    length: &'a mut [f32],
    error: &'a mut [f32],
}

impl PanelMut<'_> {
    /// Shapes: w [at most PANEL, d_model].
    pub(crate) fn pack(&mut self, w: &[f32]) {
        pack_panel(w, self.d_model, self.panel, self.length, self.error);
    }
}

vectorised! {
    fn pack_panel(w: &[f32], d_model: usize, panel: &mut [u16], length: &mut [f32], error: &mut [f32]) {
        if panel.is_empty() {
            for (row, length) in w.chunks_exact(d_model).zip(length) {
                *length = length_of(row);
            }
            return;
        }
        let n_pairs = panel.len() / (2 * PANEL);
        let mut rounded = vec![0f32; d_model];
        let mut pairs = vec![0u32; PANEL * n_pairs];
        for (i, row) in w.chunks_exact(d_model).enumerate() {
            (length[i], error[i]) = round_to_bf16(row, &mut rounded);
            write_pairs(&rounded, &mut pairs[i * n_pairs..(i + 1) * n_pairs]);
        }
        // Transposed: pair by pair, the latents of the panel side by side.
        for (p, out) in panel.chunks_exact_mut(2 * PANEL).enumerate() {
            for i in 0..PANEL {
                let pair = pairs[i * n_pairs + p];
                out[2 * i] = pair as u16;
                out[2 * i + 1] = (pair >> 16) as u16;
            }
        }
    }
}

/// Activations as the screen wants them.
pub(super) struct PackedRows {
    /// bf16 bits, zero-padded to whole tiles, each of which lies in one piece: [rows / TILE_ROWS][d_model / DEPTH]
    /// [TILE_ROWS][DEPTH]. Empty on the f32 path.
    pub(super) rows: Vec<u16>,
    /// Length of each row, and of what rounding took away.
    pub(super) length: Vec<f32>,
    pub(super) error: Vec<f32>,
}

impl PackedRows {
    /// Shapes: x [n, d_model].
    pub(super) fn new(path: Path, x: &[f32], d_model: usize) -> Self {
        let n = x.len() / d_model;
        let depth = d_model.next_multiple_of(DEPTH);
        let mut packed = Self { rows: Vec::new(), length: vec![0.0; n], error: vec![0.0; n] };
        if path != Path::F32 {
            packed.rows = vec![0; n.next_multiple_of(TILE) * depth];
        }
        pack_rows(x, d_model, &mut packed.rows, &mut packed.length, &mut packed.error);
        packed
    }
}

vectorised! {
    fn pack_rows(x: &[f32], d_model: usize, tiles: &mut [u16], length: &mut [f32], error: &mut [f32]) {
        let depth = d_model.next_multiple_of(DEPTH);
        let mut rounded = vec![0f32; d_model];
        let mut pairs = vec![0u32; depth / 2];
        for (i, row) in x.chunks_exact(d_model).enumerate() {
            if tiles.is_empty() {
                length[i] = length_of(row);
                continue;
            }
            (length[i], error[i]) = round_to_bf16(row, &mut rounded);
            write_pairs(&rounded, &mut pairs);
            let tiles = &mut tiles[i / TILE_ROWS * TILE_ROWS * depth..][..TILE_ROWS * depth];
            for (tile, pairs) in tiles.chunks_exact_mut(TILE_ROWS * DEPTH).zip(pairs.chunks_exact(DEPTH / 2)) {
                let row = &mut tile[i % TILE_ROWS * DEPTH..][..DEPTH];
                for (out, pair) in row.chunks_exact_mut(2).zip(pairs) {
                    out[0] = *pair as u16;
                    out[1] = (*pair >> 16) as u16;
                }
            }
        }
    }
}

/// One task of the screen: some tokens against some latents.
pub(super) struct Screen<'a> {
    pub(super) encoder: &'a PackedEncoder,
    /// Unpacked, for the f32 path. [d_sae, d_model].
    pub(super) w_enc: &'a [f32],
    /// Unpacked, for the f32 path. [n, d_model].
    pub(super) x: &'a [f32],
    pub(super) rows: &'a PackedRows,
}

impl Screen<'_> {
    /// x·W_encᵀ, about, for `rows` × `latents` into out [rows, stride].
    /// Both ranges start at multiples of TILE; `out` has room for whole tiles.
    pub(super) fn product(
        &self,
        rows: std::ops::Range<usize>,
        latents: std::ops::Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        let (n_rows, n_latents) = (rows.len().next_multiple_of(TILE), latents.len().next_multiple_of(TILE));
        assert!(stride >= n_latents && out.len() >= n_rows * stride, "room for whole tiles");
        assert!(rows.start.is_multiple_of(TILE) && latents.start.is_multiple_of(TILE), "whole tiles");
        match self.encoder.path {
            Path::F32 => {
                let d_model = self.encoder.d_model;
                let x = Mat::rows(&self.x[rows.start * d_model..], d_model);
                let w = Mat::rows(&self.w_enc[latents.start * d_model..], d_model).transposed();
                multiply_here(rows.len(), d_model, latents.len(), x, w, out, stride);
            }
            #[cfg(target_arch = "x86_64")]
            path => {
                let depth = self.encoder.d_model.next_multiple_of(DEPTH);
                let panel_len = PANEL * depth;
                let x = &self.rows.rows[rows.start * depth..(rows.start + n_rows) * depth];
                let w = &self.encoder.panels[latents.start / PANEL * panel_len..][..n_latents / PANEL * panel_len];
                match path {
                    #[cfg(target_os = "linux")]
                    Path::Amx => amx::product(x, w, depth, out, stride),
                    _ => avx512_bf16::product(x, w, depth, out, stride),
                }
            }
        }
    }

    /// How far a screened value may lie from the f32 one, for a token and latents of at most this length and packing
    /// error: ‖δx‖·‖w‖ + ‖x‖·‖δw‖ by Cauchy and Schwarz, and the rounding of both sums, whose worst case is d_model
    /// half-units of the products' lengths. Norms are themselves sums of floats, hence the last factor.
    #[inline(always)]
    pub(super) fn margin(&self, row: usize, length: f32, error: f32) -> f32 {
        let d_model = self.encoder.d_model as f32;
        let rounding = (d_model + 32.0) * f32::EPSILON;
        let (x_length, x_error) = (self.rows.length[row], self.rows.error[row]);
        let margin = (x_error * length + x_length * error + rounding * x_length * length) * 1.001;
        // Products that underflow are lost one by one. What has no finite margin passes the screen.
        let margin = margin + d_model * f32::MIN_POSITIVE;
        if margin.is_finite() { margin } else { f32::INFINITY }
    }
}

/// Rounds to the nearest bf16, ties to even. Returns the length of the row (a little over the rounded one's too) and that
/// of the difference.
#[inline(always)]
fn round_to_bf16(row: &[f32], rounded: &mut [f32]) -> (f32, f32) {
    for (out, value) in rounded.iter_mut().zip(row) {
        let bits = value.to_bits();
        *out = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    }
    let mut sums = [0f32; LANES];
    for (a, b) in row.chunks(LANES).zip(rounded.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += (a - b) * (a - b);
        }
    }
    let squares: f32 = sums.iter().sum();
    let error = if squares >= LEAST_SQUARES {
        squares.sqrt()
    } else {
        let largest = row.iter().zip(rounded.iter()).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        largest * (row.len() as f32).sqrt()
    };
    // |w̃| ≤ |w| (1 + 2⁻⁸), elementwise.
    (length_of(row) * (1.0 + 1.0 / 256.0), error)
}

/// Below this, squares may have underflowed.
const LEAST_SQUARES: f32 = 1e-30;
const LANES: usize = 16;

/// The length of a row, or more where its squares are too small to be added.
#[inline(always)]
fn length_of(row: &[f32]) -> f32 {
    let squares = dot(row, row);
    if squares >= LEAST_SQUARES {
        return squares.sqrt();
    }
    row.iter().fold(0f32, |max, value| max.max(value.abs())) * (row.len() as f32).sqrt()
}

/// The upper halves of neighbouring values in one word, the first one low.
#[inline(always)]
fn write_pairs(rounded: &[f32], pairs: &mut [u32]) {
    for (pair, values) in pairs.iter_mut().zip(rounded.chunks(2)) {
        let high = values.get(1).map_or(0, |value| value.to_bits() & 0xffff_0000);
        *pair = values[0].to_bits() >> 16 | high;
    }
}
