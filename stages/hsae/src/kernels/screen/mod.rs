//! The screen: a fast product that says which pre-activations *can* lie above a bound. It reads copies of the activations
//! and of W_enc in 8 or 16 bits where the processor multiplies those much faster than f32, and f32 elsewhere; each token
//! and each latent knows how far its copy is off, so that what the screen lets pass is a superset of the truth. What
//! passes is computed again in f32. The result is that of an f32 encoder, bit for bit, on every processor.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
mod encoder;
mod rounding;
mod rows;

pub(crate) use encoder::PackedEncoder;
pub(super) use rows::PackedRows;

use slices::{Mat, Onto, multiply};

/// Latents per panel: the packed matrix holds them side by side.
pub(crate) const PANEL: usize = 16;
/// Rows are packed into words of 32 bits, which hold two or four neighbouring values: so many words to a block.
const BLOCK_WORDS: usize = 16;
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
    /// AVX-512 VNNI: dot products of four 8-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
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
        if avx512_vnni::is_available() {
            return Self::Avx512Vnni;
        }
        #[cfg(target_arch = "x86_64")]
        if avx512_bf16::is_available() {
            return Self::Avx512Bf16;
        }
        Self::F32
    }

    /// The fastest that reads more than 8 bits.
    fn of_more_bits() -> Self {
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
            Self::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512-bf16",
            Self::F32 => "f32",
        }
    }

    /// How rows are packed.
    fn format(self) -> Format {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Format::Bf16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => Format::Int8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Format::Bf16,
            Self::F32 => Format::None,
        }
    }

    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::F32];
        #[cfg(target_arch = "x86_64")]
        if avx512_bf16::is_available() {
            all.push(Self::Avx512Bf16);
        }
        #[cfg(target_arch = "x86_64")]
        if avx512_vnni::is_available() {
            all.push(Self::Avx512Vnni);
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_available() {
            all.push(Self::Amx);
        }
        all
    }
}

/// What packed rows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Two bf16 values a word.
    Bf16,
    /// Four 8-bit integers a word, each row with a scale of its own.
    Int8,
    /// Nothing is packed.
    None,
}

impl Format {
    /// Words of a packed row: whole blocks, zeros at the end.
    fn words(self, d_model: usize) -> usize {
        let values_per_word = match self {
            Self::Bf16 => 2,
            Self::Int8 => 4,
            Self::None => return 0,
        };
        d_model.div_ceil(values_per_word).next_multiple_of(BLOCK_WORDS)
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
        match self.encoder.path() {
            Path::F32 => {
                let d_model = self.encoder.d_model();
                let x = Mat::rows(&self.x[rows.start * d_model..], d_model);
                let w = Mat::rows(&self.w_enc[latents.start * d_model..], d_model).transposed();
                multiply((rows.len(), d_model, latents.len()), 1.0, x, w, Onto::Nothing, out, stride);
            }
            #[cfg(target_arch = "x86_64")]
            path => {
                let words = self.encoder.words();
                let x = &self.rows.rows[rows.start * words..(rows.start + n_rows) * words];
                let w = self.encoder.panels(latents.start..latents.start + n_latents);
                match path {
                    #[cfg(target_os = "linux")]
                    Path::Amx => amx::product(x, w, words, out, stride),
                    Path::Avx512Vnni => {
                        let rows = rows.start..rows.start + n_rows;
                        let x = avx512_vnni::Rows {
                            words: x,
                            scale: &self.rows.scale[rows.clone()],
                            sum: &self.rows.sum[rows],
                        };
                        let scale = self.encoder.scales(latents.start..latents.start + n_latents);
                        avx512_vnni::product(x, w, scale, words, out, stride);
                    }
                    _ => avx512_bf16::product(x, w, words, out, stride),
                }
            }
        }
    }

    /// How far a screened value of a token may lie from the f32 one: a · length + b · error of the latent, and what is
    /// lost where products underflow. That is ‖δx‖·‖w‖ + ‖x‖·‖δw‖ by Cauchy and Schwarz, and the rounding of both sums,
    /// whose worst case is d_model half-units of the products' lengths. Norms are themselves sums of floats, hence the
    /// last factor.
    #[inline(always)]
    pub(super) fn factors(&self, row: usize) -> (f32, f32) {
        let rounding = (self.encoder.d_model() as f32 + 32.0) * f32::EPSILON;
        let (length, error) = (self.rows.length[row], self.rows.error[row]);
        ((error + rounding * length) * 1.001, length * 1.001)
    }

    /// Rounding near a bound and with offsets up to some size: values are offset, widened by their margins and compared,
    /// and products that underflow are lost one by one.
    #[inline(always)]
    pub(super) fn rounding(&self, bound: f32, offset: f32) -> f32 {
        8.0 * f32::EPSILON * (bound.abs() + offset) + (self.encoder.d_model() as f32 + 1.0) * f32::MIN_POSITIVE
    }
}
