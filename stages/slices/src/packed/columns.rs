//! Columns rounded along rows, for products whose inner dimension is the rows: gradients of weights, over tokens. A panel of
//! columns at a time, a register a row, so that turning and rounding move no value to another lane; what comes out is as
//! `int8`'s kernel reads it.

use super::PANEL;
use super::int8::{BITS, BLOCK, PANELS, ROUND, SHARING, TILE, WORD, WORDS, unit_of};
use super::int8::{Int8Weights, PanelWords, Rows};

/// A block of rows of a panel of columns.
type PanelBlock = [[f32; PANEL]; BLOCK];

/// Of each column of a panel, in a block of rows: whole numbers of 8 bits, four rows a word, the first of them lowest.
type Words = [[u32; PANEL]; WORDS];

/// Calls `take` with each panel of columns and blocks of rows that share a scale: (panel, number of the scale, units, sums of
/// the integers, words of each block). Rows and columns behind the last are zeros.
/// Shapes: x [n, width].
fn round_columns(x: &[f32], width: usize, mut take: impl FnMut(usize, usize, [f32; PANEL], [i32; PANEL], &[Words])) {
    let mut blocks = [[[0.0; PANEL]; BLOCK]; SHARING];
    let mut words = [[[0; PANEL]; WORDS]; SHARING];
    for first_column in (0..width).step_by(PANEL) {
        let n_columns = PANEL.min(width - first_column);
        for (scale, rows) in x.chunks(SHARING * BLOCK * width).enumerate() {
            let n_blocks = (rows.len() / width).div_ceil(BLOCK);
            let (blocks, words) = (&mut blocks[..n_blocks], &mut words[..n_blocks]);
            let places = blocks.as_flattened_mut();
            places[rows.len() / width..].fill([0.0; PANEL]);
            for (row, place) in rows.chunks_exact(width).zip(places) {
                let row = &row[first_column..];
                // A copy of known length is one instruction, and of any other a call.
                match row.first_chunk() {
                    Some(whole) => *place = *whole,
                    None => *place = std::array::from_fn(|lane| if lane < n_columns { row[lane] } else { 0.0 }),
                }
            }
            let (units, sums) = round_panel(blocks, words);
            take(first_column / PANEL, scale, units, sums, words);
        }
    }
}

/// The units, and the sums of the integers. All ways give the same bits.
fn round_panel(blocks: &mut [PanelBlock], words: &mut [Words]) -> ([f32; PANEL], [i32; PANEL]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: as was just asked.
        return unsafe { avx512::round_panel(blocks, words) };
    }
    round_panel_anywhere(blocks, words)
}

fn round_panel_anywhere(blocks: &mut [PanelBlock], words: &mut [Words]) -> ([f32; PANEL], [i32; PANEL]) {
    // The bits of what has no sign are in the order of the numbers, infinity and NaN behind all others.
    let mut largest = [0u32; PANEL];
    for block in &mut *blocks {
        turn_rows(block);
        for row in block {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = (*largest).max(value.abs().to_bits());
            }
        }
    }
    let (units, inverses) = units_of(largest);
    let mut sums = [0i32; PANEL];
    for (block, words) in blocks.iter().zip(words) {
        for (rows, word) in block.as_chunks::<WORD>().0.iter().zip(words) {
            for lane in 0..PANEL {
                // Adding it rounds to a whole number, which stands in the last bits.
                let four: [i8; WORD] =
                    std::array::from_fn(|i| (rows[i][lane] * inverses[lane] + ROUND).to_bits() as i8);
                word[lane] = u32::from_le_bytes(four.map(|integer| integer as u8));
                sums[lane] += four.iter().map(|&integer| i32::from(integer)).sum::<i32>();
            }
        }
    }
    (units, sums)
}

/// What a panel's words say of each column.
fn rows_of(words: &Words) -> [[i8; BLOCK]; PANEL] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: as was just asked.
        return unsafe { avx512::rows_of(words) };
    }
    let mut rows = [[0; BLOCK]; PANEL];
    for (i, word) in words.iter().enumerate() {
        for (row, word) in rows.iter_mut().zip(word) {
            row[i * WORD..][..WORD].copy_from_slice(&word.to_le_bytes().map(|byte| byte as i8));
        }
    }
    rows
}

fn units_of(largest: [u32; PANEL]) -> ([f32; PANEL], [f32; PANEL]) {
    let (mut units, mut inverses) = ([0.0; PANEL], [0.0; PANEL]);
    for (i, &largest) in largest.iter().enumerate() {
        (units[i], inverses[i]) = unit_of(largest);
    }
    (units, inverses)
}

/// Each column times the Hadamard matrix, with the sums that a row of such values gets.
fn turn_rows(block: &mut PanelBlock) {
    for bit in BITS {
        for i in (0..BLOCK).filter(|i| i & bit == 0) {
            let (low, high) = (block[i], block[i + bit]);
            for lane in 0..PANEL {
                (block[i][lane], block[i + bit][lane]) = (low[lane] + high[lane], low[lane] - high[lane]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::super::int8::{BITS, WORD};
    use super::{BLOCK, PANEL, PanelBlock, WORDS, Words, units_of};

    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn round_panel(blocks: &mut [PanelBlock], words: &mut [Words]) -> ([f32; PANEL], [i32; PANEL]) {
        const { assert!(matches!(BITS, [16, 32, 1, 2, 4, 8])) };
        let mut largest = _mm512_setzero_si512();
        for block in &mut *blocks {
            turn_by::<16, 32, 1>(block);
            largest = _mm512_max_epu32(largest, turn_by::<2, 4, 8>(block));
        }
        let mut bits = [0; PANEL];
        // SAFETY: a register is 16 values, here and below.
        unsafe { _mm512_storeu_si512(bits.as_mut_ptr().cast(), largest) };
        let (units, inverses) = units_of(bits);
        let inverses = unsafe { _mm512_loadu_ps(inverses.as_ptr()) };
        let (mut sums, byte) = (_mm512_setzero_si512(), _mm512_set1_epi32(255));
        for (block, words) in blocks.iter().zip(words) {
            for (rows, word) in block.as_chunks::<WORD>().0.iter().zip(words) {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| {
                    let row = unsafe { _mm512_loadu_ps(rows[i].as_ptr()) };
                    _mm512_cvtps_epi32(_mm512_mul_ps(row, inverses))
                });
                sums = _mm512_add_epi32(sums, _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
                let (a, b, c) = (_mm512_and_epi32(a, byte), _mm512_and_epi32(b, byte), _mm512_and_epi32(c, byte));
                let low = _mm512_or_epi32(a, _mm512_slli_epi32::<8>(b));
                let high = _mm512_or_epi32(_mm512_slli_epi32::<16>(c), _mm512_slli_epi32::<24>(d));
                unsafe { _mm512_storeu_si512(word.as_mut_ptr().cast(), _mm512_or_epi32(low, high)) };
            }
        }
        let mut of_columns = [0; PANEL];
        unsafe { _mm512_storeu_si512(of_columns.as_mut_ptr().cast(), sums) };
        (units, of_columns)
    }

    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn rows_of(words: &Words) -> [[i8; BLOCK]; PANEL] {
        // Pairs of words, then fours, then of four and four: the usual transposition.
        // SAFETY: a register is 16 words, and a row 64 bytes.
        let r: [_; WORDS] = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(words[i].as_ptr().cast()) });
        let pairs: [_; WORDS] = std::array::from_fn(|i| {
            let (a, b) = (r[i & !1], r[i | 1]);
            if i & 1 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
        });
        let fours: [_; WORDS] = std::array::from_fn(|i| {
            let (a, b) = (pairs[(i & !3) + (i >> 1 & 1)], pairs[(i & !3) + (i >> 1 & 1) + 2]);
            if i & 1 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
        });
        let mut rows = [[0; BLOCK]; PANEL];
        for k in 0..4 {
            let even = |a, b| _mm512_shuffle_i32x4::<0x88>(a, b);
            let odd = |a, b| _mm512_shuffle_i32x4::<0xdd>(a, b);
            let (low, high) = ((fours[k], fours[4 + k]), (fours[8 + k], fours[12 + k]));
            let (a, b) = (even(low.0, low.1), even(high.0, high.1));
            let (c, d) = (odd(low.0, low.1), odd(high.0, high.1));
            for (column, row) in [(k, even(a, b)), (4 + k, even(c, d)), (8 + k, odd(a, b)), (12 + k, odd(c, d))] {
                unsafe { _mm512_storeu_si512(rows[column].as_mut_ptr().cast(), row) };
            }
        }
        rows
    }

    /// By three bits of the rows' places, eight rows at a time, so that memory is passed over twice and not six times. Returns
    /// the largest values' bits, without their signs.
    #[target_feature(enable = "avx512f")]
    fn turn_by<const A: usize, const B: usize, const C: usize>(block: &mut PanelBlock) -> __m512i {
        let mut largest = _mm512_setzero_si512();
        for i in (0..BLOCK).filter(|i| i & (A | B | C) == 0) {
            let places = [i, i + A, i + B, i + A + B, i + C, i + A + C, i + B + C, i + A + B + C];
            // SAFETY: a row is a register.
            let [a, b, c, d, e, f, g, h] = places.map(|place| unsafe { _mm512_loadu_ps(block[place].as_ptr()) });
            let pair = |x, y| (_mm512_add_ps(x, y), _mm512_sub_ps(x, y));
            let ((a, b), (c, d), (e, f), (g, h)) = (pair(a, b), pair(c, d), pair(e, f), pair(g, h));
            let ((a, c), (b, d), (e, g), (f, h)) = (pair(a, c), pair(b, d), pair(e, g), pair(f, h));
            let ((a, e), (b, f), (c, g), (d, h)) = (pair(a, e), pair(b, f), pair(c, g), pair(d, h));
            for (place, row) in places.into_iter().zip([a, b, c, d, e, f, g, h]) {
                largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(row)));
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(block[place].as_mut_ptr(), row) };
            }
        }
        largest
    }
}

impl Int8Weights {
    /// x as the matrix of a product over its rows, in the place of what was there. Shapes: x [n, width].
    pub(crate) fn take_columns(&mut self, x: &[f32], width: usize) {
        self.set_shape(x.len() / width, width);
        let (n_blocks, n_scales) = (self.n_blocks(), self.n_scales());
        round_columns(x, width, |panel, scale, units, _, blocks| {
            let (group, panel) = (panel / PANELS, panel % PANELS);
            let at = (group * n_blocks + scale * SHARING) * WORDS * PANELS;
            let places = self.words[at..][..blocks.len() * WORDS * PANELS].iter_mut().skip(panel).step_by(PANELS);
            for (place, words) in places.zip(blocks.as_flattened()) {
                // 128 more in each byte: its highest bit the other way.
                *place = PanelWords(words.map(|word| (word ^ 0x8080_8080).to_le_bytes()));
            }
            let at = (group * n_scales + scale) * PANELS * PANEL + panel * PANEL;
            self.scales[at..][..PANEL].copy_from_slice(&units.map(|unit| unit / BLOCK as f32));
        });
    }
}

impl Rows {
    /// The columns of x as rows, in the place of what was there. Shapes: x [n, width] → rows [width, n].
    pub(crate) fn take_columns(&mut self, x: &[f32], width: usize) {
        let n_blocks = (x.len() / width).div_ceil(BLOCK);
        let n_scales = n_blocks.div_ceil(SHARING);
        self.set_shape(width, n_blocks, n_scales);
        round_columns(x, width, |panel, scale, units, sums, blocks| {
            let places = (panel * PANEL..width).take(PANEL).map(|row| {
                let first = row / TILE * TILE;
                (first, TILE.min(width - first), row % TILE)
            });
            for (i, words) in blocks.iter().enumerate() {
                let block = scale * SHARING + i;
                for ((first, n, at), row) in places.clone().zip(rows_of(words)) {
                    self.blocks[first * n_blocks + block * n + at] = row;
                }
            }
            for (((first, n, at), unit), sum) in places.zip(units).zip(sums) {
                self.set_scale(first * n_scales + scale * n + at, unit, sum);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_have_the_same_bits_on_every_processor() {
        let value = |i: usize| ((i * i * 7 + 3 * i) % 1013) as f32 / 500.0 - 1.0;
        let mut blocks = vec![[[0.0; PANEL]; BLOCK]; 2];
        blocks.as_flattened_mut().as_flattened_mut().iter_mut().enumerate().for_each(|(i, x)| *x = value(i));
        blocks[1][63][3] = f32::INFINITY;
        let (mut best, mut anywhere) = (vec![[[0; PANEL]; WORDS]; 2], vec![[[0; PANEL]; WORDS]; 2]);
        let of_best = round_panel(&mut blocks.clone(), &mut best);
        let of_anywhere = round_panel_anywhere(&mut blocks.clone(), &mut anywhere);
        for lane in (0..PANEL).filter(|&lane| lane != 3) {
            assert_eq!((of_best.0[lane], of_best.1[lane]), (of_anywhere.0[lane], of_anywhere.1[lane]));
            for (best, anywhere) in best.as_flattened().iter().zip(anywhere.as_flattened()) {
                assert_eq!(best[lane], anywhere[lane]);
            }
        }
        assert!(of_best.0[3].is_nan() && of_anywhere.0[3].is_nan());
        for (column, row) in rows_of(&best[0]).iter().enumerate() {
            let expected: Vec<i8> =
                best[0].iter().flat_map(|word| word[column].to_le_bytes()).map(|b| b as i8).collect();
            assert_eq!(row[..], expected);
        }
    }
}
