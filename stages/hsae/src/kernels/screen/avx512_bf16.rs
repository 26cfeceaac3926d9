//! The product by AVX-512 BF16: sixteen dot products of pairs in one instruction.

use std::arch::x86_64::{
    __m512bh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{BLOCK_WORDS, PANEL, TILE, TILE_ROWS};

/// Rows at once: with two panels that makes 16 sums, which leaves registers for what they are made of.
const ROWS: usize = 8;

pub(super) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512f")
}

/// Shapes: x packed [n, words] of two bf16 values, w packed panels of PANEL latents → out [n, stride]; n and the latents
/// are whole tiles.
pub(super) fn product(x: &[u32], w: &[u32], words: usize, out: &mut [f32], stride: usize) {
    let (n, n_panels) = (x.len() / words, w.len() / (PANEL * words));
    assert!(n.is_multiple_of(TILE) && n_panels.is_multiple_of(2) && words.is_multiple_of(BLOCK_WORDS), "whole tiles");
    assert!(out.len() >= n * stride && stride >= n_panels * PANEL, "out is [n, stride]");
    for pair in 0..n_panels / 2 {
        for row in (0..n).step_by(ROWS) {
            // SAFETY: `is_available` was asked before this path was chosen, and the slices are long enough, as asserted.
            unsafe {
                let w = w.as_ptr().add(pair * 2 * PANEL * words);
                let out = out.as_mut_ptr().add(row * stride + pair * 2 * PANEL);
                let x = x.as_ptr().add(row / TILE_ROWS * TILE_ROWS * words + row % TILE_ROWS * BLOCK_WORDS);
                kernel(x, w, words, out, stride);
            }
        }
    }
}

/// ROWS rows against two panels.
///
/// # Safety
/// The processor has AVX-512 BF16; x is the first of ROWS rows of a tile, w two panels, out ROWS rows of `stride`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn kernel(x: *const u32, w: *const u32, words: usize, out: *mut f32, stride: usize) {
    // SAFETY: as promised by the caller. A vector register of bits has one meaning more as one of bf16 pairs.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for word in 0..words {
            let load = |panel: usize| {
                let bits = _mm512_loadu_si512(w.add((panel * words + word) * PANEL).cast());
                std::mem::transmute::<_, __m512bh>(bits)
            };
            let (first, second) = (load(0), load(1));
            for (row, sums) in sums.iter_mut().enumerate() {
                let block = word / BLOCK_WORDS * TILE_ROWS * BLOCK_WORDS;
                let bits = x.add(block + row * BLOCK_WORDS + word % BLOCK_WORDS).read() as i32;
                let value: __m512bh = std::mem::transmute(_mm512_set1_epi32(bits));
                sums[0] = _mm512_dpbf16_ps(sums[0], value, first);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, second);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(out.add(row * stride), sums[0]);
            _mm512_storeu_ps(out.add(row * stride + PANEL), sums[1]);
        }
    }
}
