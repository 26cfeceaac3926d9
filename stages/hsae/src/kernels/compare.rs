//! Finding the few values above a bound, by comparisons of whole vectors.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::Vectors;

/// Values that are compared at once.
pub(super) const CHUNK: usize = 32;

/// Bit i tells whether values\[i\] + offsets\[i\] > lower.
#[inline(always)]
pub(super) fn above(values: &[f32; CHUNK], offsets: &[f32; CHUNK], lower: f32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    match Vectors::detect() {
        // SAFETY: the processor has these instructions, as was found.
        Vectors::Avx512 => return unsafe { avx512(values, offsets, lower) },
        // SAFETY: as above.
        Vectors::Avx2 => return unsafe { avx2(values, offsets, lower) },
        Vectors::Baseline => (),
    }
    portable(values, offsets, lower)
}

/// The same for the last few values of a row.
#[inline(always)]
pub(super) fn portable(values: &[f32], offsets: &[f32], lower: f32) -> u32 {
    let bits = values.iter().zip(offsets).enumerate().map(|(i, (v, offset))| u32::from(v + offset > lower) << i);
    bits.fold(0, |all, bit| all | bit)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn avx512(values: &[f32; CHUNK], offsets: &[f32; CHUNK], lower: f32) -> u32 {
    let lower = _mm512_set1_ps(lower);
    let half = |i: usize| {
        // SAFETY: both hold 32 values, and i is 0 or 16.
        let (v, offset) =
            unsafe { (_mm512_loadu_ps(values.as_ptr().add(i)), _mm512_loadu_ps(offsets.as_ptr().add(i))) };
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_add_ps(v, offset), lower)
    };
    u32::from(half(0)) | u32::from(half(16)) << 16
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn avx2(values: &[f32; CHUNK], offsets: &[f32; CHUNK], lower: f32) -> u32 {
    let lower = _mm256_set1_ps(lower);
    let mut bits = 0;
    for i in 0..4 {
        // SAFETY: both hold four times eight values.
        let (v, offset) =
            unsafe { (_mm256_loadu_ps(values.as_ptr().add(8 * i)), _mm256_loadu_ps(offsets.as_ptr().add(8 * i))) };
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_add_ps(v, offset), lower);
        bits |= (_mm256_movemask_ps(above) as u32) << (8 * i);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_finds_the_same() {
        let values: [f32; CHUNK] = std::array::from_fn(|i| (i as f32 * 0.7).sin());
        let offsets: [f32; CHUNK] = std::array::from_fn(|i| (i as f32 * 1.3).cos());
        for lower in [-3.0, -0.5, 0.0, values[5] + offsets[5], 1.0, f32::NAN] {
            let expected = portable(&values, &offsets, lower);
            assert_eq!(above(&values, &offsets, lower), expected);
            #[cfg(target_arch = "x86_64")]
            if matches!(Vectors::detect(), Vectors::Avx512 | Vectors::Avx2) {
                // SAFETY: AVX-512 comes with AVX2.
                assert_eq!(unsafe { avx2(&values, &offsets, lower) }, expected);
            }
        }
    }
}
