//! Products of 8-bit integers with a scale for every 64 inputs.
//!
//! What a scale costs is decided by its largest value, and activations have a few that are very large. So both sides of a
//! product are first turned by a Hadamard matrix within each 64, which spreads such a value over all of them and leaves the
//! product as it was: on residual streams that halves the error of the same integers.
//! Source: Ashkboos et al. 2024, "QuaRot", equation 2, here with rotations of single blocks.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{OUTPUTS, PANEL};

/// Inputs that share a scale, on both sides.
const BLOCK: usize = 64;
/// Four bytes: what one lane of an instruction multiplies and adds.
const WORD: usize = 4;
/// Words of a block.
const WORDS: usize = BLOCK / WORD;
/// The largest integer; −128 is not used, so that a sign has no say.
const LARGEST: f32 = 127.0;
/// Rows that a kernel takes at once: with two panels 12 sums of integers and 12 of their values, which leaves registers for
/// what they are made of.
const TILE: usize = 6;
/// What is added to weights: the instruction wants one side without a sign.
const EXCESS: i32 = 128;

/// W of y = x W, d_in padded with zeros to whole blocks, d_out to whole OUTPUTS.
#[derive(Debug)]
pub(crate) struct Int8Weights {
    /// [d_out / OUTPUTS, n_blocks, WORDS, OUTPUTS, WORD]: weights / scale + 128.
    bytes: Vec<u8>,
    /// [d_out / OUTPUTS, n_blocks, OUTPUTS].
    scales: Vec<f32>,
    d_in: usize,
    d_out: usize,
}

/// Rows, rounded: tiles of TILE rows, the last of what is left, in which the same block of all rows lies together.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// For each tile of N rows [n_blocks, WORDS, N, WORD].
    bytes: Vec<i8>,
    /// For each tile of N rows [n_blocks, N]; and −128 times the sum of a block's integers, for what was added to weights.
    scales: Vec<f32>,
    corrections: Vec<i32>,
}

impl Int8Weights {
    /// Shapes: rows [d_out, d_in].
    pub(crate) fn new(rows: &[f32], d_in: usize) -> Self {
        let (d_out, n_blocks) = (rows.len() / d_in, d_in.div_ceil(BLOCK));
        let n_groups = d_out.div_ceil(OUTPUTS);
        let mut bytes = vec![EXCESS as u8; n_groups * n_blocks * BLOCK * OUTPUTS];
        let mut scales = vec![0.0; n_groups * n_blocks * OUTPUTS];
        let rounded = best_rounded();
        let groups = bytes.par_chunks_mut(n_blocks * BLOCK * OUTPUTS).zip(scales.par_chunks_mut(n_blocks * OUTPUTS));
        groups.zip(rows.par_chunks(OUTPUTS * d_in)).for_each(|((bytes, scales), rows)| {
            for (output, row) in rows.chunks_exact(d_in).enumerate() {
                for (block, values) in row.chunks(BLOCK).enumerate() {
                    let (scale, integers) = rounded(values);
                    // Turning both sides makes the product BLOCK times as large.
                    scales[block * OUTPUTS + output] = scale / BLOCK as f32;
                    for (i, &integer) in integers.iter().enumerate() {
                        let word = block * WORDS + i / WORD;
                        bytes[(word * OUTPUTS + output) * WORD + i % WORD] = (i32::from(integer) + EXCESS) as u8;
                    }
                }
            }
        });
        Self { bytes, scales, d_in, d_out }
    }

    /// Shapes: x [n, x_stride], of which a row's first d_in values are read → out [n, d_out], all of it written.
    pub(crate) fn product(&self, x: &[f32], x_stride: usize, out: &mut [MaybeUninit<f32>]) {
        let n_rows = x.len() / x_stride;
        assert!(x_stride >= self.d_in && out.len() == n_rows * self.d_out, "out is [n, d_out]");
        let rows = self.round_rows(x, x_stride, best_rounded());
        #[cfg(target_arch = "x86_64")]
        if avx512::is_available() {
            return avx512::product(self, &rows, n_rows, out);
        }
        self.product_anywhere(&rows, out);
    }

    fn n_blocks(&self) -> usize {
        self.d_in.div_ceil(BLOCK)
    }

    pub(super) fn round_rows(&self, x: &[f32], x_stride: usize, rounded: Rounding) -> Rows {
        let (d_in, n_blocks) = (self.d_in, self.n_blocks());
        let n_rows = x.len() / x_stride;
        let mut rows = Rows {
            bytes: vec![0; n_rows * n_blocks * BLOCK],
            scales: vec![0.0; n_rows * n_blocks],
            corrections: vec![0; n_rows * n_blocks],
        };
        for (row, x) in x.chunks_exact(x_stride).enumerate() {
            let first = row / TILE * TILE;
            let (n, at) = (TILE.min(n_rows - first), row % TILE);
            for (block, values) in x[..d_in].chunks(BLOCK).enumerate() {
                let (scale, bytes) = rounded(values);
                let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
                let tile = &mut rows.bytes[(first * n_blocks + block * n) * BLOCK..][..n * BLOCK];
                for (word, bytes) in tile.chunks_exact_mut(n * WORD).zip(bytes.chunks_exact(WORD)) {
                    word[at * WORD..][..WORD].copy_from_slice(bytes);
                }
                rows.scales[first * n_blocks + block * n + at] = scale;
                rows.corrections[first * n_blocks + block * n + at] = -EXCESS * sum;
            }
        }
        rows
    }

    /// The same sums in the same order without the instruction. Integers are exact, and what is fused there is fused here:
    /// all processors give the same bits.
    pub(super) fn product_anywhere(&self, rows: &Rows, out: &mut [MaybeUninit<f32>]) {
        let (n_blocks, n_rows) = (self.n_blocks(), out.len() / self.d_out);
        for (row, out) in out.chunks_exact_mut(self.d_out).enumerate() {
            let first = row / TILE * TILE;
            let (n, at) = (TILE.min(n_rows - first), row % TILE);
            for (group, out) in out.chunks_mut(OUTPUTS).enumerate() {
                let mut sums = [0.0f32; OUTPUTS];
                for block in 0..n_blocks {
                    let (at_x, at_w) = (first * n_blocks + block * n, group * n_blocks + block);
                    let x = rows.bytes[at_x * BLOCK..][..n * BLOCK].chunks_exact(n * WORD);
                    let w = self.bytes[at_w * BLOCK * OUTPUTS..][..BLOCK * OUTPUTS].chunks_exact(OUTPUTS * WORD);
                    let mut whole = [rows.corrections[at_x + at]; OUTPUTS];
                    for (x, w) in x.zip(w) {
                        for (whole, w) in whole.iter_mut().zip(w.chunks_exact(WORD)) {
                            let products = w.iter().zip(&x[at * WORD..]).map(|(&w, &x)| i32::from(w) * i32::from(x));
                            *whole += products.sum::<i32>();
                        }
                    }
                    let x_scale = rows.scales[at_x + at];
                    for ((sum, whole), w_scale) in sums.iter_mut().zip(whole).zip(&self.scales[at_w * OUTPUTS..]) {
                        *sum = (whole as f32).mul_add(x_scale * w_scale, *sum);
                    }
                }
                out.write_copy_of_slice(&sums[..out.len()]);
            }
        }
    }
}

/// What rounds a block.
pub(super) type Rounding = fn(&[f32]) -> (f32, [i8; BLOCK]);

/// The fastest that this processor has. All give the same bits.
fn best_rounded() -> Rounding {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_available() {
        return avx512::rounded;
    }
    rounded
}

/// A block of at most BLOCK values, zeros behind them: turned, and in units of what is returned first. A NaN or an infinity
/// comes through: the unit is NaN.
pub(super) fn rounded(values: &[f32]) -> (f32, [i8; BLOCK]) {
    let mut block = [0.0; BLOCK];
    block[..values.len()].copy_from_slice(values);
    let block = turned(block);
    // The bits of what has no sign are in the order of the numbers, infinity and NaN behind all others.
    let largest = block.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 && largest.is_finite() { LARGEST / largest } else { 0.0 };
    // Adding 1.5 · 2²³ rounds to a whole number, ties to even, which stands in the last bits.
    let integers = block.map(|value| (value * inverse + ROUND).to_bits() as i8);
    (if largest.is_finite() { largest / LARGEST } else { f32::NAN }, integers)
}

const ROUND: f32 = 12_582_912.0;

/// A block times the Hadamard matrix of its size, which is symmetric, and BLOCK times its own inverse: for each bit of the
/// places, pairs that differ in it become their sum and difference. The order of the bits is the one that vectors like.
fn turned(mut block: [f32; BLOCK]) -> [f32; BLOCK] {
    for bit in [16, 32, 1, 2, 4, 8] {
        for i in (0..BLOCK).filter(|i| i & bit == 0) {
            (block[i], block[i + bit]) = (block[i] + block[i + bit], block[i] - block[i + bit]);
        }
    }
    block
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::mem::MaybeUninit;

    use super::super::group::Group;
    use super::{BLOCK, Int8Weights, OUTPUTS, PANEL, Rows, TILE, WORDS};

    /// Blocks of a group's weights that stay in the first cache while all rows go past: 24 KiB.
    const BLOCKS_IN_CACHE: usize = 12;

    pub(super) fn is_available() -> bool {
        std::arch::is_x86_feature_detected!("avx512vnni") && std::arch::is_x86_feature_detected!("avx512f")
    }

    /// The same as `super::rounded`, to the bit.
    pub(super) fn rounded(values: &[f32]) -> (f32, [i8; BLOCK]) {
        let mut padded = [0.0; BLOCK];
        let block = values.try_into().unwrap_or_else(|_| {
            padded[..values.len()].copy_from_slice(values);
            &padded
        });
        // SAFETY: this is called where `is_available` was asked.
        unsafe { rounded_block(block) }
    }

    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    unsafe fn rounded_block(block: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
        // SAFETY: as promised by the caller; loads and stores are of 16 values each of 64.
        unsafe {
            let load = |quarter: usize| _mm512_loadu_ps(block.as_ptr().add(quarter * PANEL));
            let (a, b, c, d) = (load(0), load(1), load(2), load(3));
            let (s, t, u, v) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b), _mm512_add_ps(c, d), _mm512_sub_ps(c, d));
            let quarters = [_mm512_add_ps(s, u), _mm512_add_ps(t, v), _mm512_sub_ps(s, u), _mm512_sub_ps(t, v)];
            let quarters = quarters.map(|x| turned_lanes(x));
            let [a, b, c, d] = quarters.map(|x| _mm512_castps_si512(_mm512_abs_ps(x)));
            let largest = _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d));
            let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
            let inverse = if largest > 0.0 && largest.is_finite() { super::LARGEST / largest } else { 0.0 };
            let mut bytes = [0; BLOCK];
            for (x, bytes) in quarters.into_iter().zip(bytes.chunks_exact_mut(PANEL)) {
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
                _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole));
            }
            (if largest.is_finite() { largest / super::LARGEST } else { f32::NAN }, bytes)
        }
    }

    /// For each bit of a lane's place: 1 where it is 0, and else −1.
    static SIGNS: [[f32; PANEL]; 4] = {
        let mut signs = [[1.0; PANEL]; 4];
        let mut i = 0;
        while i < 4 * PANEL {
            if (i % PANEL) >> (i / PANEL) & 1 == 1 {
                signs[i / PANEL][i % PANEL] = -1.0;
            }
            i += 1;
        }
        signs
    };

    /// The four bits of a place within a quarter: each lane's partner, and plus or minus the lane itself. The product with
    /// ± 1 is exact, so that the sum is rounded once.
    #[target_feature(enable = "avx512f")]
    fn turned_lanes(x: __m512) -> __m512 {
        // SAFETY: 16 values are loaded from 16.
        let sign = |bit: usize| unsafe { _mm512_loadu_ps(SIGNS[bit].as_ptr()) };
        let x = _mm512_fmadd_ps(x, sign(0), _mm512_permute_ps::<0b10_11_00_01>(x));
        let x = _mm512_fmadd_ps(x, sign(1), _mm512_permute_ps::<0b01_00_11_10>(x));
        let x = _mm512_fmadd_ps(x, sign(2), _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
        _mm512_fmadd_ps(x, sign(3), _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x))
    }

    pub(super) fn product(weights: &Int8Weights, rows: &Rows, n_rows: usize, out: &mut [MaybeUninit<f32>]) {
        let (n_blocks, d_out) = (weights.n_blocks(), weights.d_out);
        assert!(rows.bytes.len() == n_rows * n_blocks * BLOCK, "rows [n, d_in]");
        assert!(rows.scales.len() == n_rows * n_blocks && rows.corrections.len() == n_rows * n_blocks, "a scale each");
        assert!(out.len() == n_rows * d_out, "out is [n, d_out]");
        let n_outputs = d_out.next_multiple_of(OUTPUTS);
        assert!(weights.bytes.len() == n_outputs * n_blocks * BLOCK, "whole groups of outputs");
        assert!(weights.scales.len() == n_outputs * n_blocks, "a scale each");
        let out = out.as_mut_ptr().cast::<f32>();
        let parts = |group| (0..n_blocks).step_by(BLOCKS_IN_CACHE).map(move |first| (group, first));
        for (group, first) in (0..d_out.div_ceil(OUTPUTS)).flat_map(parts) {
            for row in (0..n_rows).step_by(TILE) {
                let n = TILE.min(n_rows - row);
                let (at_x, at_w) = (row * n_blocks + first * n, group * n_blocks + first);
                let tile = Tile {
                    x: rows.bytes[at_x * BLOCK..].as_ptr().cast(),
                    x_scales: rows.scales[at_x..].as_ptr(),
                    x_corrections: rows.corrections[at_x..].as_ptr(),
                    w: weights.bytes[at_w * BLOCK * OUTPUTS..].as_ptr().cast(),
                    w_scales: weights.scales[at_w * OUTPUTS..].as_ptr(),
                    n_blocks: BLOCKS_IN_CACHE.min(n_blocks - first),
                    out: Group::new(out.wrapping_add(row * d_out), d_out, group * OUTPUTS, first > 0),
                };
                // SAFETY: `is_available` was asked, the slices hold what the tile points to, as asserted, and `out` is ours.
                unsafe { KERNELS[n - 1](tile) };
            }
        }
    }

    /// For 1, 2, … rows at once: as many sums as there are registers for.
    const KERNELS: [unsafe fn(Tile); TILE] =
        [kernel::<1>, kernel::<2>, kernel::<3>, kernel::<4>, kernel::<5>, kernel::<6>];

    /// Some rows against a group of outputs.
    struct Tile {
        /// [n_blocks, WORDS, N] words, at any address.
        x: *const i32,
        x_scales: *const f32,
        x_corrections: *const i32,
        /// [n_blocks, WORDS, OUTPUTS] words.
        w: *const i32,
        w_scales: *const f32,
        n_blocks: usize,
        out: Group,
    }

    /// N rows against two panels.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI; the tile's pointers lead to what it says.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn kernel<const N: usize>(tile: Tile) {
        // SAFETY: as promised by the caller.
        unsafe {
            let mut sums = tile.out.load::<N>();
            for block in 0..tile.n_blocks {
                let mut whole = [[_mm512_setzero_si512(); 2]; N];
                for (row, whole) in whole.iter_mut().enumerate() {
                    *whole = [_mm512_set1_epi32(*tile.x_corrections.add(block * N + row)); 2];
                }
                let (x, w) = (tile.x.add(block * WORDS * N), tile.w.add(block * WORDS * OUTPUTS));
                for word in 0..WORDS {
                    let first = _mm512_loadu_si512(w.add(word * OUTPUTS).cast());
                    let second = _mm512_loadu_si512(w.add(word * OUTPUTS + PANEL).cast());
                    for (row, whole) in whole.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(x.add(word * N + row).read_unaligned());
                        whole[0] = _mm512_dpbusd_epi32(whole[0], first, x);
                        whole[1] = _mm512_dpbusd_epi32(whole[1], second, x);
                    }
                }
                let w_scales = tile.w_scales.add(block * OUTPUTS);
                let w_scales = [_mm512_loadu_ps(w_scales), _mm512_loadu_ps(w_scales.add(PANEL))];
                for (row, (sums, whole)) in sums.iter_mut().zip(whole).enumerate() {
                    let x_scale = _mm512_set1_ps(*tile.x_scales.add(block * N + row));
                    for ((sum, whole), w_scale) in sums.iter_mut().zip(whole).zip(w_scales) {
                        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(x_scale, w_scale), *sum);
                    }
                }
            }
            tile.out.store(sums);
        }
    }
}
