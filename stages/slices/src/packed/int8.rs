//! Products of 8-bit integers with a scale for every 192 inputs.
//!
//! What a scale costs is decided by its largest value, and activations have a few that are very large. So both sides of a
//! product are first turned by a Hadamard matrix within each 64, which spreads such a value over all of them and leaves the
//! product as it was: on residual streams that halves the error of the same integers.
//! Source: Ashkboos et al. 2024, "QuaRot", equation 2, here with rotations of single blocks.

use rayon::prelude::*;

use super::PANEL;
use crate::product::Out;

/// Raised when the same operands come to other products.
pub const INT8_RECIPE: u32 = 2;
/// The same of gradients of weights.
pub const INT8_GRADIENT_RECIPE: u32 = 1;

/// Inputs that are turned together.
pub(super) const BLOCK: usize = 64;
/// Blocks that share a scale, on both sides: their integers are summed as they are, which is most of the speed.
pub(super) const SHARING: usize = 3;
/// Four bytes: what one lane of an instruction multiplies and adds.
pub(super) const WORD: usize = 4;
/// Words of a block.
pub(super) const WORDS: usize = BLOCK / WORD;
/// The largest integer; −128 is not used, so that a sign has no say.
const LARGEST: f32 = 127.0;
/// Outputs whose weights lie together, in panels, and rows that a kernel takes at once: 24 sums of integers, which leaves
/// registers for what they are made of.
pub(super) const PANELS: usize = 4;
const OUTPUTS: usize = PANELS * PANEL;
pub(super) const TILE: usize = 6;
/// What is added to weights: the instruction wants one side without a sign.
const EXCESS: i32 = 128;

/// W of y = x W, d_in padded with zeros to whole blocks, d_out to whole OUTPUTS.
#[derive(Debug, Default)]
pub(crate) struct Int8Weights {
    /// [d_out / OUTPUTS, n_blocks, WORDS, PANELS]: weights / scale + 128.
    pub(super) words: Vec<PanelWords>,
    /// [d_out / OUTPUTS, n_scales, OUTPUTS].
    pub(super) scales: Vec<f32>,
    d_in: usize,
    d_out: usize,
}

/// A word of each output of a panel: a register, and a line of the cache, across whose border no load is to go.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct PanelWords(pub(super) [[u8; WORD]; PANEL]);

/// Rows, rounded: tiles of TILE rows, the last of what is left, in which the same block of all rows lies together.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// For each tile of N rows [n_blocks, N].
    pub(super) blocks: Vec<[i8; BLOCK]>,
    /// For each tile of N rows [n_scales, N]; and −128 times the sum of the integers, for what was added to weights.
    scales: Vec<f32>,
    corrections: Vec<i32>,
}

impl Int8Weights {
    /// Shapes: rows [d_out, d_in].
    pub(crate) fn new(rows: &[f32], d_in: usize) -> Self {
        let (n_blocks, n_scales) = (d_in.div_ceil(BLOCK), d_in.div_ceil(SHARING * BLOCK));
        let n_groups = (rows.len() / d_in).div_ceil(OUTPUTS);
        let mut words = vec![PanelWords([[EXCESS as u8; WORD]; PANEL]); n_groups * n_blocks * WORDS * PANELS];
        let mut scales = vec![0.0; n_groups * n_scales * OUTPUTS];
        let rounded = best_rounded();
        let groups = words.par_chunks_mut(n_blocks * WORDS * PANELS).zip(scales.par_chunks_mut(n_scales * OUTPUTS));
        groups.zip(rows.par_chunks(OUTPUTS * d_in)).for_each(|((words, scales), rows)| {
            for (output, row) in rows.chunks_exact(d_in).enumerate() {
                let (panel, lane) = (output / PANEL, output % PANEL);
                for (i, values) in row.chunks(SHARING * BLOCK).enumerate() {
                    let mut blocks = [[0; BLOCK]; SHARING];
                    let (unit, _) = rounded(values, &mut blocks, 1);
                    // Turning both sides makes the product BLOCK times as large.
                    scales[i * OUTPUTS + output] = unit / BLOCK as f32;
                    let words = words[i * SHARING * WORDS * PANELS..].chunks_exact_mut(PANELS);
                    for (of_panels, word) in words.zip(blocks.as_flattened().as_chunks::<WORD>().0) {
                        of_panels[panel].0[lane] = word.map(excess);
                    }
                }
            }
        });
        Self { words, scales, d_in, d_out: rows.len() / d_in }
    }

    /// Shapes: x [n, x_stride], of which a row's first d_in values are read → out [n, d_out].
    pub(crate) fn multiply(&self, x: &[f32], x_stride: usize, out: Out, rows: &mut Rows) {
        let n_rows = x.len() / x_stride;
        assert!(x_stride >= self.d_in && out.len() == n_rows * self.d_out, "out is [n, d_out]");
        self.round_rows(x, x_stride, best_rounded(), rows);
        self.multiply_rounded(rows, n_rows, out);
    }

    /// Shapes: rows [n, d_in] → out [n, d_out].
    pub(super) fn multiply_rounded(&self, rows: &Rows, n_rows: usize, out: Out) {
        #[cfg(target_arch = "x86_64")]
        if avx512::is_available() {
            return avx512::multiply(self, rows, n_rows, out);
        }
        assert!(out.len() == n_rows * self.d_out, "out is [n, d_out]");
        self.multiply_anywhere(rows, out);
    }

    /// Makes room for a matrix of these sizes. What is there is whatever was there.
    pub(super) fn set_shape(&mut self, d_in: usize, d_out: usize) {
        (self.d_in, self.d_out) = (d_in, d_out);
        let n_groups = d_out.div_ceil(OUTPUTS);
        let nothing = PanelWords([[excess(0); WORD]; PANEL]);
        self.words.resize(n_groups * self.n_blocks() * WORDS * PANELS, nothing);
        self.scales.resize(n_groups * self.n_scales() * OUTPUTS, 0.0);
    }

    pub(super) fn n_blocks(&self) -> usize {
        self.d_in.div_ceil(BLOCK)
    }

    pub(super) fn n_scales(&self) -> usize {
        self.n_blocks().div_ceil(SHARING)
    }

    pub(super) fn round_rows(&self, x: &[f32], x_stride: usize, rounded: Rounding, rows: &mut Rows) {
        let (n_blocks, n_scales, n_rows) = (self.n_blocks(), self.n_scales(), x.len() / x_stride);
        rows.set_shape(n_rows, n_blocks, n_scales);
        for (row, x) in x.chunks_exact(x_stride).enumerate() {
            let first = row / TILE * TILE;
            let (n, at) = (TILE.min(n_rows - first), row % TILE);
            for (i, values) in x[..self.d_in].chunks(SHARING * BLOCK).enumerate() {
                let (unit, sum) = rounded(values, &mut rows.blocks[first * n_blocks + i * SHARING * n + at..], n);
                rows.set_scale(first * n_scales + i * n + at, unit, sum);
            }
        }
    }

    /// The same sums in the same order without the instruction. Integers are exact, and what is fused there is fused here:
    /// all processors give the same bits.
    pub(super) fn multiply_anywhere(&self, rows: &Rows, mut out: Out) {
        let (n_blocks, n_scales) = (self.n_blocks(), self.n_scales());
        let n_rows = out.len().checked_div(self.d_out).unwrap_or(0);
        for row in 0..n_rows {
            let first = row / TILE * TILE;
            let (n, at) = (TILE.min(n_rows - first), row % TILE);
            let blocks = &rows.blocks[first * n_blocks..][..n * n_blocks];
            for first_output in (0..self.d_out).step_by(PANEL) {
                let (group, panel) = (first_output / OUTPUTS, first_output % OUTPUTS / PANEL);
                let end = self.d_out.min(first_output + PANEL);
                let place = row * self.d_out + first_output..row * self.d_out + end;
                let weights = &self.words[group * n_blocks * WORDS * PANELS..][..n_blocks * WORDS * PANELS];
                let mut sums = [0.0; PANEL];
                if let Out::Sum(out) = &out {
                    sums[..place.len()].copy_from_slice(&out[place.clone()]);
                }
                for scale in 0..n_scales {
                    let of_x = first * n_scales + scale * n + at;
                    let mut whole = [rows.corrections[of_x]; PANEL];
                    for block in scale * SHARING..n_blocks.min((scale + 1) * SHARING) {
                        let x = blocks[block * n + at].as_chunks::<WORD>().0;
                        let w = weights[block * WORDS * PANELS + panel..].iter().step_by(PANELS);
                        for (x, PanelWords(w)) in x.iter().zip(w) {
                            for (whole, w) in whole.iter_mut().zip(w) {
                                *whole += w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum::<i32>();
                            }
                        }
                    }
                    let w_scales = &self.scales[(group * n_scales + scale) * OUTPUTS + panel * PANEL..];
                    for ((sum, whole), w_scale) in sums.iter_mut().zip(whole).zip(w_scales) {
                        *sum = (whole as f32).mul_add(rows.scales[of_x] * w_scale, *sum);
                    }
                }
                match &mut out {
                    Out::Fresh(out) => _ = out[place.clone()].write_copy_of_slice(&sums[..place.len()]),
                    Out::Sum(out) => out[place.clone()].copy_from_slice(&sums[..place.len()]),
                }
            }
        }
    }
}

impl Rows {
    /// Makes room for so many rows. What is there is whatever was there.
    pub(super) fn set_shape(&mut self, n_rows: usize, n_blocks: usize, n_scales: usize) {
        self.blocks.resize(n_rows * n_blocks, [0; BLOCK]);
        self.scales.resize(n_rows * n_scales, 0.0);
        self.corrections.resize(n_rows * n_scales, 0);
    }

    pub(super) fn set_scale(&mut self, at: usize, unit: f32, sum: i32) {
        self.scales[at] = unit;
        // What is not finite has a sum of no meaning, and its unit says so.
        self.corrections[at] = sum.wrapping_mul(-EXCESS);
    }
}

/// An integer as the side without a sign has it.
pub(super) fn excess(integer: i8) -> u8 {
    (i32::from(integer) + EXCESS) as u8
}

/// What rounds at most SHARING blocks of values: turned, and divided by a unit, they become whole numbers in every so many
/// places. Gives the unit, NaN where a value was infinite or none, and the sum of the integers.
pub(super) type Rounding = fn(&[f32], &mut [[i8; BLOCK]], usize) -> (f32, i32);

/// The fastest that this processor has. All give the same bits.
fn best_rounded() -> Rounding {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_available() {
        return avx512::rounded;
    }
    rounded
}

pub(super) fn rounded(values: &[f32], places: &mut [[i8; BLOCK]], every: usize) -> (f32, i32) {
    let mut blocks = [[0.0; BLOCK]; SHARING];
    let blocks = &mut blocks[..values.len().div_ceil(BLOCK)];
    for (values, block) in values.chunks(BLOCK).zip(&mut *blocks) {
        block[..values.len()].copy_from_slice(values);
        *block = turned(*block);
    }
    // The bits of what has no sign are in the order of the numbers, infinity and NaN behind all others.
    let largest = blocks.as_flattened().iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let (unit, inverse) = unit_of(largest);
    let mut sum = 0;
    for (block, place) in blocks.iter().zip(places.iter_mut().step_by(every)) {
        // Adding 1.5 · 2²³ rounds to a whole number, ties to even, which stands in the last bits.
        *place = block.map(|value| (value * inverse + ROUND).to_bits() as i8);
        sum += place.iter().map(|&integer| i32::from(integer)).sum::<i32>();
    }
    (unit, sum)
}

/// What the integers of values up to one with these bits are units of, and what makes values integers.
pub(super) fn unit_of(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, 0.0);
    }
    // Values so small that the inverse is infinite become zeros, as they nearly are.
    let inverse = LARGEST / largest;
    (largest / LARGEST, if inverse.is_finite() { inverse } else { 0.0 })
}

pub(super) const ROUND: f32 = 12_582_912.0;

/// The bits of a place in a block, in the order in which vectors of neighbours like them.
pub(super) const BITS: [usize; 6] = [16, 32, 1, 2, 4, 8];

/// A block times the Hadamard matrix of its size, which is symmetric, and BLOCK times its own inverse: for each bit of the
/// places, pairs that differ in it become their sum and difference.
fn turned(mut block: [f32; BLOCK]) -> [f32; BLOCK] {
    for bit in BITS {
        for i in (0..BLOCK).filter(|i| i & bit == 0) {
            (block[i], block[i + bit]) = (block[i] + block[i + bit], block[i] - block[i + bit]);
        }
    }
    block
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::super::group::Group;
    use super::{BLOCK, Int8Weights, OUTPUTS, PANEL, PANELS, Rows, SHARING, TILE, WORDS, unit_of};
    use crate::product::Out;

    /// Of a group, the scales whose weights stay in the first cache while all rows go past: of nine blocks, 36 KiB.
    const SCALES_IN_CACHE: usize = 3;
    /// Registers of a block of floats.
    const QUARTERS: usize = BLOCK / PANEL;

    pub(super) fn is_available() -> bool {
        std::arch::is_x86_feature_detected!("avx512vnni") && std::arch::is_x86_feature_detected!("avx512f")
    }

    /// The same as `super::rounded`, to the bit.
    pub(super) fn rounded(values: &[f32], places: &mut [[i8; BLOCK]], every: usize) -> (f32, i32) {
        assert!(values.len() <= SHARING * BLOCK, "blocks that share a scale");
        // SAFETY: this is called where `is_available` was asked.
        unsafe { rounded_blocks(values, places, every) }
    }

    /// # Safety
    /// The processor has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn rounded_blocks(values: &[f32], places: &mut [[i8; BLOCK]], every: usize) -> (f32, i32) {
        let mut turned = [[_mm512_setzero_ps(); QUARTERS]; SHARING];
        let mut largest = _mm512_setzero_si512();
        for (values, turned) in values.chunks(BLOCK).zip(&mut turned) {
            let mut padded = [0.0; BLOCK];
            let block: &[f32; BLOCK] = values.try_into().unwrap_or_else(|_| {
                padded[..values.len()].copy_from_slice(values);
                &padded
            });
            // SAFETY: each loads 16 values of 64.
            let load = |quarter: usize| unsafe { _mm512_loadu_ps(block.as_ptr().add(quarter * PANEL)) };
            let (a, b, c, d) = (load(0), load(1), load(2), load(3));
            let (s, t, u, v) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b), _mm512_add_ps(c, d), _mm512_sub_ps(c, d));
            let quarters = [_mm512_add_ps(s, u), _mm512_add_ps(t, v), _mm512_sub_ps(s, u), _mm512_sub_ps(t, v)];
            *turned = quarters.map(|x| turned_lanes(x));
            for x in turned {
                largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(*x)));
            }
        }
        let (unit, inverse) = unit_of(_mm512_reduce_max_epu32(largest));
        let (inverse, mut sums) = (_mm512_set1_ps(inverse), _mm512_setzero_si512());
        let n_blocks = values.len().div_ceil(BLOCK);
        for (turned, place) in turned.into_iter().take(n_blocks).zip(places.iter_mut().step_by(every)) {
            for (x, bytes) in turned.into_iter().zip(place.chunks_exact_mut(PANEL)) {
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
                // SAFETY: 16 bytes are stored in 16.
                unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) };
                sums = _mm512_add_epi32(sums, whole);
            }
        }
        (unit, _mm512_reduce_add_epi32(sums))
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

    pub(super) fn multiply(weights: &Int8Weights, rows: &Rows, n_rows: usize, mut out: Out) {
        let (n_blocks, n_scales, d_out) = (weights.n_blocks(), weights.n_scales(), weights.d_out);
        assert!(rows.blocks.len() == n_rows * n_blocks, "rows [n, d_in]");
        assert!(rows.scales.len() == n_rows * n_scales && rows.corrections.len() == n_rows * n_scales, "a scale each");
        assert!(out.len() == n_rows * d_out, "out is [n, d_out]");
        let n_groups = d_out.div_ceil(OUTPUTS);
        assert!(weights.words.len() == n_groups * n_blocks * WORDS * PANELS, "whole groups of outputs");
        assert!(weights.scales.len() == n_groups * n_scales * OUTPUTS, "a scale each");
        let (is_sum, out) = (out.is_sum(), out.as_mut_ptr());
        let parts = |group| (0..n_scales).step_by(SCALES_IN_CACHE).map(move |first| (group, first));
        for (group, first) in (0..n_groups).flat_map(parts) {
            for row in (0..n_rows).step_by(TILE) {
                let n = TILE.min(n_rows - row);
                let first_block = first * SHARING;
                let of_x = row * n_scales + first * n;
                let tile = Tile {
                    x: rows.blocks[row * n_blocks + first_block * n..].as_ptr().cast(),
                    x_scales: rows.scales[of_x..].as_ptr(),
                    x_corrections: rows.corrections[of_x..].as_ptr(),
                    w: weights.words[(group * n_blocks + first_block) * WORDS * PANELS..].as_ptr().cast(),
                    w_scales: weights.scales[(group * n_scales + first) * OUTPUTS..].as_ptr(),
                    n_blocks: (SCALES_IN_CACHE * SHARING).min(n_blocks - first_block),
                    out: Group::new(out.wrapping_add(row * d_out), d_out, group * OUTPUTS, is_sum || first > 0),
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
        /// [n_blocks, N, WORDS] words, at any address.
        x: *const i32,
        x_scales: *const f32,
        x_corrections: *const i32,
        /// [n_blocks, WORDS, PANELS].
        w: *const __m512i,
        w_scales: *const f32,
        n_blocks: usize,
        out: Group<PANELS>,
    }

    /// N rows against a group's panels.
    ///
    /// # Safety
    /// The processor has AVX-512 VNNI; the tile's pointers lead to what it says.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn kernel<const N: usize>(mut tile: Tile) {
        // SAFETY: as promised by the caller.
        unsafe {
            for scale in 0..tile.n_blocks.div_ceil(SHARING) {
                let mut whole = [[_mm512_setzero_si512(); PANELS]; N];
                for (row, whole) in whole.iter_mut().enumerate() {
                    *whole = [_mm512_set1_epi32(*tile.x_corrections.add(scale * N + row)); PANELS];
                }
                for block in scale * SHARING..tile.n_blocks.min((scale + 1) * SHARING) {
                    let (x, w) = (tile.x.add(block * N * WORDS), tile.w.add(block * WORDS * PANELS));
                    for word in 0..WORDS {
                        let w: [_; PANELS] = std::array::from_fn(|panel| *w.add(word * PANELS + panel));
                        for (row, whole) in whole.iter_mut().enumerate() {
                            let x = _mm512_set1_epi32(x.add(row * WORDS + word).read_unaligned());
                            for (whole, w) in whole.iter_mut().zip(w) {
                                *whole = _mm512_dpbusd_epi32(*whole, w, x);
                            }
                        }
                    }
                }
                let w_scales = tile.w_scales.add(scale * OUTPUTS);
                let w_scales: [_; PANELS] = std::array::from_fn(|panel| _mm512_loadu_ps(w_scales.add(panel * PANEL)));
                for (row, whole) in whole.into_iter().enumerate() {
                    let x_scale = _mm512_set1_ps(*tile.x_scales.add(scale * N + row));
                    for (panel, (whole, w_scale)) in whole.into_iter().zip(w_scales).enumerate() {
                        let (whole, scale) = (_mm512_cvtepi32_ps(whole), _mm512_mul_ps(x_scale, w_scale));
                        tile.out.store(row, panel, _mm512_fmadd_ps(whole, scale, tile.out.load(row, panel)));
                    }
                }
                tile.out.goes_on = true;
            }
        }
    }
}
