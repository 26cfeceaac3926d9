//! Rows in fewer bits, and how much that takes from them.

use crate::kernels::dot;

/// Below this, squares may have underflowed.
const LEAST_SQUARES: f32 = 1e-30;
/// Rows without a larger value are not worth a scale: their packed copy is zero, and their error their length.
const LEAST_MAXIMUM: f32 = 1e-20;
/// Adding it leaves a small number rounded to the nearest integer, ties to even, in the low bits.
const ROUNDER: f32 = 12_582_912.0;
const LANES: usize = 16;

/// The length of a row and of its packed copy, whichever is larger, and that of what packing took away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Norms {
    pub(super) length: f32,
    pub(super) error: f32,
}

/// What an 8-bit row needs beside its integers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Int8 {
    pub(super) norms: Norms,
    /// What one unit stands for.
    pub(super) scale: f32,
    /// Of the integers.
    pub(super) sum: i32,
}

/// Rounds to the nearest bf16, ties to even, two values a word, the first one low. `scratch` has the row's length.
#[inline(always)]
pub(super) fn to_bf16(row: &[f32], scratch: &mut [f32], words: &mut [u32]) -> Norms {
    for (out, value) in scratch.iter_mut().zip(row) {
        let bits = value.to_bits();
        *out = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    }
    for (word, values) in words.iter_mut().zip(scratch.chunks(2)) {
        let high = values.get(1).map_or(0, |value| value.to_bits() & 0xffff_0000);
        *word = values[0].to_bits() >> 16 | high;
    }
    // |w̃| ≤ |w| (1 + 2⁻⁸), elementwise.
    Norms { length: length(row) * (1.0 + 1.0 / 256.0), error: distance(row, scratch) }
}

/// Rounds to multiples of the row's largest value over 127, four a word, the first one lowest; `flip` is xor-ed to every
/// byte. `scratch` has the row's length.
#[inline(always)]
pub(super) fn to_int8(row: &[f32], scratch: &mut [f32], flip: u8, words: &mut [u32]) -> Int8 {
    let largest = row.iter().fold(0f32, |max, value| max.max(value.abs()));
    let is_usable = largest > LEAST_MAXIMUM && largest.is_finite();
    let (scale, inverse) = if is_usable { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
    let mut sum = 0i32;
    for (out, value) in scratch.iter_mut().zip(row) {
        *out = if is_usable { value * inverse + ROUNDER } else { ROUNDER };
        sum = sum.wrapping_add(out.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32);
    }
    let byte = |value: f32| u32::from(value.to_bits() as u8 ^ flip);
    let (whole, rest) = scratch.as_chunks::<4>();
    for (word, values) in words.iter_mut().zip(whole) {
        let [a, b, c, d] = values.map(byte);
        *word = a | b << 8 | c << 16 | d << 24;
    }
    if let (Some(word), false) = (words.get_mut(whole.len()), rest.is_empty()) {
        *word = rest.iter().enumerate().fold(0, |word, (i, &value)| word | byte(value) << (8 * i));
    }
    scratch.iter_mut().for_each(|value| *value = (*value - ROUNDER) * scale);
    let (length, error) = (length(row), distance(row, scratch));
    Int8 { norms: Norms { length: length + error, error }, scale, sum }
}

/// ‖a − b‖, or more where the squares are too small to be added.
#[inline(always)]
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += (a - b) * (a - b);
        }
    }
    root(sums.iter().sum(), a.len(), || a.iter().zip(b).fold(0f32, |max, (a, b)| max.max((a - b).abs())))
}

/// The length of a row, or more where its squares are too small to be added.
#[inline(always)]
pub(super) fn length(row: &[f32]) -> f32 {
    root(dot(row, row), row.len(), || row.iter().fold(0f32, |max, value| max.max(value.abs())))
}

/// What is not a number has no bound.
#[inline(always)]
fn root(squares: f32, n: usize, largest: impl Fn() -> f32) -> f32 {
    if squares >= LEAST_SQUARES {
        squares.sqrt()
    } else if squares.is_nan() {
        f32::INFINITY
    } else {
        largest() * (n as f32).sqrt()
    }
}
