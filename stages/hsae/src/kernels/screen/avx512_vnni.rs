//! The product by AVX-512 VNNI: sixteen dot products of four 8-bit integers in one instruction, exact in 32 bits.

use std::arch::x86_64::{
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_storeu_ps, _mm512_sub_epi32,
};

use super::{PANEL, TILE};

/// Rows at once: with two panels that makes 16 sums, which leaves registers for what they are made of.
const ROWS: usize = 8;

pub(super) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx512vnni") && std::arch::is_x86_feature_detected!("avx512f")
}

/// Packed tokens: signed bytes [n, words], what a unit of each row stands for, and the sum of its integers, [n].
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) words: &'a [u32],
    pub(super) scale: &'a [f32],
    pub(super) sum: &'a [i32],
}

/// Shapes: x [n, words], w packed panels of PANEL latents, unsigned bytes 128 above the integers, w_scale [latents] →
/// out [n, stride]; n and the latents are whole tiles.
pub(super) fn product(x: Rows, w: &[u32], w_scale: &[f32], words: usize, out: &mut [f32], stride: usize) {
    let (n, n_panels) = (x.words.len() / words, w.len() / (PANEL * words));
    assert!(n.is_multiple_of(TILE) && n_panels.is_multiple_of(2), "whole tiles");
    assert!(x.scale.len() == n && x.sum.len() == n && w_scale.len() == n_panels * PANEL, "a scale each");
    assert!(out.len() >= n * stride && stride >= n_panels * PANEL, "out is [n, stride]");
    for pair in 0..n_panels / 2 {
        for row in (0..n).step_by(ROWS) {
            let x = Rows { words: &x.words[row * words..], scale: &x.scale[row..], sum: &x.sum[row..] };
            // SAFETY: `is_available` was asked before this path was chosen, and the slices are long enough, as asserted.
            unsafe {
                let w = w.as_ptr().add(pair * 2 * PANEL * words);
                let w_scale = w_scale.as_ptr().add(pair * 2 * PANEL);
                kernel(x, w, w_scale, words, out.as_mut_ptr().add(row * stride + pair * 2 * PANEL), stride);
            }
        }
    }
}

/// ROWS rows against two panels.
///
/// # Safety
/// The processor has AVX-512 VNNI; x starts with ROWS rows, w points to two panels, w_scale to their scales, out to ROWS
/// rows of `stride`.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn kernel(x: Rows, w: *const u32, w_scale: *const f32, words: usize, out: *mut f32, stride: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        let rows = x.words.as_ptr();
        for word in 0..words {
            let first = _mm512_loadu_si512(w.add(word * PANEL).cast());
            let second = _mm512_loadu_si512(w.add((words + word) * PANEL).cast());
            for (row, sums) in sums.iter_mut().enumerate() {
                let values = _mm512_set1_epi32(rows.add(row * words + word).read() as i32);
                sums[0] = _mm512_dpbusd_epi32(sums[0], first, values);
                sums[1] = _mm512_dpbusd_epi32(sums[1], second, values);
            }
        }
        let w_scale = [_mm512_loadu_ps(w_scale), _mm512_loadu_ps(w_scale.add(PANEL))];
        for (row, sums) in sums.iter().enumerate() {
            // Σ (w + 128)·x = Σ w·x + 128·Σ x.
            let excess = _mm512_set1_epi32(x.sum.get_unchecked(row).wrapping_mul(128));
            let scale = _mm512_set1_ps(*x.scale.get_unchecked(row));
            for (panel, &sum) in sums.iter().enumerate() {
                let value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, excess));
                let value = _mm512_mul_ps(_mm512_mul_ps(value, scale), w_scale[panel]);
                _mm512_storeu_ps(out.add(row * stride + panel * PANEL), value);
            }
        }
    }
}
