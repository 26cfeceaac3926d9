//! Products of operands rounded to bf16, 8 bits of mantissa, with sums in f32.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::PANEL;
use crate::product::Out;

/// Outputs whose weights lie together, in panels, and rows that a kernel takes at once: 24 sums, which leaves registers for
/// what they are made of.
const PANELS: usize = 2;
const OUTPUTS: usize = PANELS * PANEL;
const TILE: usize = 12;

/// W of y = x W, d_in padded with a zero to whole pairs and d_out to whole OUTPUTS, for processors with AVX-512 BF16.
#[derive(Debug)]
pub(crate) struct Bf16Weights {
    /// [d_out / OUTPUTS, n_pairs, OUTPUTS] pairs of inputs.
    pairs: Vec<[bf16; 2]>,
    d_in: usize,
    d_out: usize,
}

impl Bf16Weights {
    /// None where the processor has not what it takes. Shapes: rows [d_out, d_in].
    pub(crate) fn new(rows: &[f32], d_in: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if avx512::is_available() {
            return Some(Self { pairs: pairs(rows, d_in), d_in, d_out: rows.len() / d_in });
        }
        None
    }

    /// Shapes: x [n, x_stride], of which a row's first d_in values are read → out [n, d_out].
    pub(crate) fn multiply(&self, x: &[f32], x_stride: usize, out: Out) {
        let n_rows = x.len() / x_stride;
        assert!(x_stride >= self.d_in && out.len() == n_rows * self.d_out, "out is [n, d_out]");
        #[cfg(target_arch = "x86_64")]
        avx512::multiply(&self.pairs, &self.tiles(x, x_stride), self.d_in.div_ceil(2), self.d_out, out);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("made on x86-64 alone");
    }

    /// Rows, rounded: tiles of TILE rows, the last of what is left, in which the same pair of all rows lies together.
    /// Shapes: x [n, x_stride] → for each tile of N rows [n_pairs, N] pairs.
    #[cfg(target_arch = "x86_64")]
    fn tiles(&self, x: &[f32], x_stride: usize) -> Vec<[bf16; 2]> {
        let n_pairs = self.d_in.div_ceil(2);
        let mut tiles = vec![[bf16::ZERO; 2]; x.len() / x_stride * n_pairs];
        let mut rounded = vec![bf16::ZERO; n_pairs * 2];
        for (x, tile) in x.chunks(TILE * x_stride).zip(tiles.chunks_mut(TILE * n_pairs)) {
            let n = x.len() / x_stride;
            for (row, x) in x.chunks_exact(x_stride).enumerate() {
                rounded[..self.d_in].convert_from_f32_slice(&x[..self.d_in]);
                for (of_rows, &pair) in tile.chunks_exact_mut(n).zip(rounded.as_chunks::<2>().0) {
                    of_rows[row] = pair;
                }
            }
        }
        tiles
    }
}

#[cfg(target_arch = "x86_64")]
fn pairs(rows: &[f32], d_in: usize) -> Vec<[bf16; 2]> {
    let (n_groups, n_pairs) = ((rows.len() / d_in).div_ceil(OUTPUTS), d_in.div_ceil(2));
    let mut pairs = vec![[bf16::ZERO; 2]; n_groups * n_pairs * OUTPUTS];
    pairs.par_chunks_mut(n_pairs * OUTPUTS).zip(rows.par_chunks(OUTPUTS * d_in)).for_each(|(pairs, rows)| {
        for (output, row) in rows.chunks_exact(d_in).enumerate() {
            for (i, &value) in row.iter().enumerate() {
                pairs[i / 2 * OUTPUTS + output][i % 2] = bf16::from_f32(value);
            }
        }
    });
    pairs
}

/// For products on any processor: values that bf16 has, to the nearest, ties to even.
pub(crate) fn to_bf16(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::super::group::Group;
    use super::{OUTPUTS, PANEL, PANELS, TILE};
    use crate::product::Out;

    /// Pairs of a group's weights that stay in the first cache while all rows go past: 24 KiB.
    const PAIRS_IN_CACHE: usize = 192;

    pub(super) fn is_available() -> bool {
        std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512f")
    }

    /// Shapes: weights as in `Bf16Weights`, rows as `tiles` makes them → out [n, d_out].
    pub(super) fn multiply(weights: &[[bf16; 2]], rows: &[[bf16; 2]], n_pairs: usize, d_out: usize, mut out: Out) {
        let n_rows = rows.len() / n_pairs;
        assert!(out.len() == n_rows * d_out, "out is [n, d_out]");
        assert!(weights.len() == d_out.div_ceil(OUTPUTS) * n_pairs * OUTPUTS, "whole groups of outputs");
        let (is_sum, out) = (out.is_sum(), out.as_mut_ptr());
        let parts = |group| (0..n_pairs).step_by(PAIRS_IN_CACHE).map(move |first| (group, first));
        for (group, first) in (0..d_out.div_ceil(OUTPUTS)).flat_map(parts) {
            for row in (0..n_rows).step_by(TILE) {
                let n = TILE.min(n_rows - row);
                let tile = Tile {
                    x: rows[row * n_pairs + first * n..].as_ptr().cast(),
                    w: weights[(group * n_pairs + first) * OUTPUTS..].as_ptr().cast(),
                    n_pairs: PAIRS_IN_CACHE.min(n_pairs - first),
                    out: Group::new(out.wrapping_add(row * d_out), d_out, group * OUTPUTS, is_sum || first > 0),
                };
                // SAFETY: weights are there because `is_available` was asked; the slices hold what the tile points to, as
                // asserted, and `out` is ours.
                unsafe { KERNELS[n - 1](tile) };
            }
        }
    }

    /// For 1, 2, … rows at once: as many sums as there are registers for.
    const KERNELS: [unsafe fn(Tile); TILE] = [
        kernel::<1>,
        kernel::<2>,
        kernel::<3>,
        kernel::<4>,
        kernel::<5>,
        kernel::<6>,
        kernel::<7>,
        kernel::<8>,
        kernel::<9>,
        kernel::<10>,
        kernel::<11>,
        kernel::<12>,
    ];

    /// Some rows against a group of outputs.
    struct Tile {
        /// [n_pairs, N] pairs, at any address.
        x: *const i32,
        /// [n_pairs, OUTPUTS] pairs.
        w: *const i32,
        n_pairs: usize,
        out: Group<PANELS>,
    }

    /// N rows against two panels.
    ///
    /// # Safety
    /// The processor has AVX-512 BF16; the tile's pointers lead to what it says.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn kernel<const N: usize>(tile: Tile) {
        // SAFETY: as promised by the caller. A register of bits has one meaning more as one of pairs.
        unsafe {
            let as_pairs = |bits: __m512i| std::mem::transmute::<_, __m512bh>(bits);
            let out = &tile.out;
            let mut sums: [[_; PANELS]; N] = [[_mm512_setzero_ps(); PANELS]; N];
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [out.load(row, 0), out.load(row, 1)];
            }
            for pair in 0..tile.n_pairs {
                let w = tile.w.add(pair * OUTPUTS);
                let first = as_pairs(_mm512_loadu_si512(w.cast()));
                let second = as_pairs(_mm512_loadu_si512(w.add(PANEL).cast()));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = as_pairs(_mm512_set1_epi32(tile.x.add(pair * N + row).read_unaligned()));
                    sums[0] = _mm512_dpbf16_ps(sums[0], first, x);
                    sums[1] = _mm512_dpbf16_ps(sums[1], second, x);
                }
            }
            for (row, [first, second]) in sums.into_iter().enumerate() {
                out.store(row, 0, first);
                out.store(row, 1, second);
            }
        }
    }
}
