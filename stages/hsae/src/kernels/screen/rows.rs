//! Activations as the screen wants them.

use super::encoder::PackedEncoder;
use super::rounding::{length, to_bf16, to_int8};
use super::{BLOCK_WORDS, Format, TILE, TILE_ROWS};

/// Some tokens, padded with zeros to whole tiles.
pub(crate) struct PackedRows {
    /// bf16: tile by tile, each in one piece, [rows / TILE_ROWS][words / BLOCK_WORDS][TILE_ROWS][BLOCK_WORDS].
    /// 8 bits: row by row. Empty on the f32 path.
    pub(super) rows: Vec<u32>,
    /// Length of each row, and of what packing took away.
    pub(super) length: Vec<f32>,
    pub(super) error: Vec<f32>,
    /// 8 bits only: what a unit stands for, and the sum of the integers.
    pub(super) scale: Vec<f32>,
    pub(super) sum: Vec<i32>,
}

impl PackedRows {
    /// For products with `encoder`. Shapes: x [n, d_model].
    pub(crate) fn new(encoder: &PackedEncoder, x: &[f32]) -> Self {
        let n = (x.len() / encoder.d_model()).next_multiple_of(TILE);
        let mut packed = Self {
            rows: vec![0; n * encoder.words()],
            length: vec![0.0; n],
            error: vec![0.0; n],
            scale: vec![0.0; n],
            sum: vec![0; n],
        };
        pack(encoder, x, &mut packed);
        packed
    }
}

vectorised! {
    fn pack(encoder: &PackedEncoder, x: &[f32], packed: &mut PackedRows) {
        let (d_model, n_words) = (encoder.d_model(), encoder.words());
        let (mut row_now, mut scratch) = (vec![0f32; d_model], vec![0f32; d_model]);
        let mut words = vec![0u32; n_words];
        for (i, row) in x.chunks_exact(d_model).enumerate() {
            match encoder.path().format() {
                Format::None => packed.length[i] = length(row),
                Format::Bf16 => {
                    let norms = to_bf16(row, &mut scratch, &mut words);
                    (packed.length[i], packed.error[i]) = (norms.length, norms.error);
                    let tiles = &mut packed.rows[i / TILE_ROWS * TILE_ROWS * n_words..][..TILE_ROWS * n_words];
                    let blocks = tiles.chunks_exact_mut(TILE_ROWS * BLOCK_WORDS);
                    for (tile, words) in blocks.zip(words.chunks_exact(BLOCK_WORDS)) {
                        tile[i % TILE_ROWS * BLOCK_WORDS..][..BLOCK_WORDS].copy_from_slice(words);
                    }
                }
                Format::Int8 => {
                    let balance = row_now.iter_mut().zip(row).zip(encoder.inverse_balance());
                    balance.for_each(|((out, x), factor)| *out = x * factor);
                    let words = &mut packed.rows[i * n_words..(i + 1) * n_words];
                    let int8 = to_int8(&row_now, &mut scratch, 0, words);
                    (packed.length[i], packed.error[i]) = (int8.norms.length, int8.norms.error);
                    (packed.scale[i], packed.sum[i]) = (int8.scale, int8.sum);
                }
            }
        }
    }
}
