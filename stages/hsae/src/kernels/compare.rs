//! Finding the few values that may lie above a bound, by comparisons of whole vectors.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::Vectors;

/// Values that are compared at once.
pub(super) const CHUNK: usize = 32;

/// Some neighbouring latents: what is added to a screened value, and what its margin depends on. At most CHUNK of each.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) offset: &'a [f32],
    /// Length and packing error.
    pub(super) length: &'a [f32],
    pub(super) error: &'a [f32],
}

/// A token's side: a value passes unless value + offset + (a · length + b · error) is at most `lower`. What is not a
/// number passes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) a: f32,
    pub(super) b: f32,
    pub(super) lower: f32,
}

/// Bit i tells whether value i passes.
#[inline(always)]
pub(super) fn passes(values: &[f32], chunk: Chunk, token: Token) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let (Ok(values), Ok(offset), Ok(length), Ok(error)) =
        (values.try_into(), chunk.offset.try_into(), chunk.length.try_into(), chunk.error.try_into())
    {
        match Vectors::detect() {
            // SAFETY: the processor has these instructions, as was found.
            Vectors::Avx512 => return unsafe { avx512([values, offset, length, error], token) },
            // SAFETY: as above.
            Vectors::Avx2 => return unsafe { avx2([values, offset, length, error], token) },
            Vectors::Baseline => (),
        }
    }
    portable(values, chunk, token)
}

#[inline(always)]
fn portable(values: &[f32], chunk: Chunk, Token { a, b, lower }: Token) -> u32 {
    let margins = chunk.length.iter().zip(chunk.error).map(|(length, error)| a * length + b * error);
    let ends = values.iter().zip(chunk.offset).zip(margins).map(|((value, offset), margin)| value + offset + margin);
    ends.enumerate().fold(0, |all, (i, end)| all | u32::from(end > lower || end.is_nan() || lower.is_nan()) << i)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn avx512(chunk: [&[f32; CHUNK]; 4], token: Token) -> u32 {
    let [a, b, lower] = [token.a, token.b, token.lower].map(|value| _mm512_set1_ps(value));
    let half = |i: usize| {
        // SAFETY: all hold 32 values, and i is 0 or 16.
        let [value, offset, length, error] = chunk.map(|part| unsafe { _mm512_loadu_ps(part.as_ptr().add(i)) });
        let margin = _mm512_add_ps(_mm512_mul_ps(a, length), _mm512_mul_ps(b, error));
        let end = _mm512_add_ps(_mm512_add_ps(value, offset), margin);
        _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(end, lower)
    };
    u32::from(half(0)) | u32::from(half(16)) << 16
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn avx2(chunk: [&[f32; CHUNK]; 4], token: Token) -> u32 {
    let [a, b, lower] = [token.a, token.b, token.lower].map(|value| _mm256_set1_ps(value));
    let mut bits = 0;
    for i in 0..4 {
        // SAFETY: all hold four times eight values.
        let [value, offset, length, error] = chunk.map(|part| unsafe { _mm256_loadu_ps(part.as_ptr().add(8 * i)) });
        let margin = _mm256_add_ps(_mm256_mul_ps(a, length), _mm256_mul_ps(b, error));
        let end = _mm256_add_ps(_mm256_add_ps(value, offset), margin);
        bits |= (_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(end, lower)) as u32) << (8 * i);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_finds_the_same() {
        let made_up = |frequency: f32| -> [f32; CHUNK] { std::array::from_fn(|i| (i as f32 * frequency).sin()) };
        let [values, offset, length, error] = [0.7, 1.3, 0.2, 0.4].map(made_up);
        let (length, error) = (length.map(f32::abs), error.map(|value| 0.01 * value.abs()));
        let chunk = Chunk { offset: &offset, length: &length, error: &error };
        let infinity = f32::INFINITY;
        for lower in [-3.0, -0.5, 0.0, values[5] + offset[5], 1.0, f32::NAN] {
            for (a, b) in [(0.0, 0.0), (0.1, 2.0), (infinity, 1.0), (0.0, f32::NAN)] {
                let token = Token { a, b, lower };
                let expected = portable(&values, chunk, token);
                assert_eq!(passes(&values, chunk, token), expected, "{token:?}");
                #[cfg(target_arch = "x86_64")]
                if matches!(Vectors::detect(), Vectors::Avx512 | Vectors::Avx2) {
                    // SAFETY: AVX-512 comes with AVX2.
                    assert_eq!(unsafe { avx2([&values, &offset, &length, &error], token) }, expected, "{token:?}");
                }
                // The last few latents of a panel.
                let few = Chunk { offset: &offset[..7], length: &length[..7], error: &error[..7] };
                assert_eq!(passes(&values[..7], few, token), expected & 0x7f, "{token:?}");
            }
        }
    }
}
