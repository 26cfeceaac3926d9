//! Tensor types and their dequantisation. Layouts: ggml's `ggml-common.h`, `block_q4_1` and `block_q8_0`.

use anyhow::{Result, bail};
use half::f16;
use rayon::prelude::*;

/// The tensor types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32,
    F16,
    Q4_1,
    Q8_0,
}

/// Names of ggml's types by code, to refuse the others by name.
const NAMES: [&str; 31] = [
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32",
    "I64", "F64", "IQ1_M", "BF16",
];

/// Blocks a thread dequantises at a time: a cache-sized piece, whatever the number of threads.
const BLOCKS_PER_PIECE: usize = 1024;

impl TensorType {
    pub(crate) fn from_code(code: u32) -> Result<Self> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            other => match NAMES.get(other as usize) {
                Some(name) => bail!("type {name} is not supported (only F32, F16, Q4_1 and Q8_0 are)"),
                None => bail!("type {other} is not supported (only F32, F16, Q4_1 and Q8_0 are)"),
            },
        })
    }

    /// Values in a block.
    pub(crate) const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q8_0 => 2 + 32,
        }
    }

    /// Whole blocks to values. Bytes beyond the last whole block are left out.
    pub(crate) fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        let (block_values, block_bytes) = (self.block_values(), self.block_bytes());
        let n_blocks = bytes.len() / block_bytes;
        let mut values = vec![0.0; n_blocks * block_values];
        let dequantise_block = match self {
            Self::F32 => f32_block,
            Self::F16 => f16_block,
            Self::Q4_1 => q4_1_block,
            Self::Q8_0 => q8_0_block,
        };
        values
            .par_chunks_mut(BLOCKS_PER_PIECE * block_values)
            .zip(bytes.par_chunks(BLOCKS_PER_PIECE * block_bytes))
            .for_each(|(values, bytes)| {
                for (out, block) in values.chunks_exact_mut(block_values).zip(bytes.chunks_exact(block_bytes)) {
                    dequantise_block(block, out);
                }
            });
        values
    }
}

fn f32_block(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn f16_block(block: &[u8], out: &mut [f32]) {
    out[0] = half_at(block, 0);
}

/// 32 values of 4 bits with a scale and a minimum: value = scale · q + minimum.
/// Byte j holds value j in its low half and value j + 16 in its high half.
fn q4_1_block(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = scale * f32::from(byte & 0x0f) + minimum;
        *high = scale * f32::from(byte >> 4) + minimum;
    }
}

/// 32 values of 8 bits, signed, with a scale: value = scale · q.
fn q8_0_block(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(byte.cast_signed());
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
