//! Tensor types and their dequantisation. Layouts: ggml's `ggml-common.h`, `block_q4_0` to `block_q6_K`.

use anyhow::{Result, bail};
use half::{bf16, f16};
use rayon::prelude::*;

/// The tensor types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// The same, for who has another one.
const SUPPORTED: &str = "only F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are";

/// Values of a block of blocks.
const SUPER: usize = 256;

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
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => match NAMES.get(other as usize) {
                Some(name) => bail!("type {name} is not supported ({SUPPORTED})"),
                None => bail!("type {other} is not supported ({SUPPORTED})"),
            },
        })
    }

    /// Values in a block.
    pub(crate) const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + SUPER / 2,
            Self::Q5K => 2 + 2 + 12 + SUPER / 8 + SUPER / 2,
            Self::Q6K => SUPER / 2 + SUPER / 4 + SUPER / 16 + 2,
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
            Self::Bf16 => bf16_block,
            Self::Q4_0 => q4_0_block,
            Self::Q4_1 => q4_1_block,
            Self::Q5_0 => q5_0_block,
            Self::Q5_1 => q5_1_block,
            Self::Q8_0 => q8_0_block,
            Self::Q4K => q4_k_block,
            Self::Q5K => q5_k_block,
            Self::Q6K => q6_k_block,
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

fn bf16_block(block: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// 32 values of 4 bits with a scale: value = scale · (q − 8), arranged as below.
fn q4_0_block(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = scale * (f32::from(byte & 0x0f) - 8.0);
        *high = scale * (f32::from(byte >> 4) - 8.0);
    }
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

/// 32 values of 5 bits with a scale: value = scale · (q − 16).
fn q5_0_block(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    five_bits(&block[2..6], &block[6..], out);
    out.iter_mut().for_each(|value| *value = scale * (*value - 16.0));
}

/// 32 values of 5 bits with a scale and a minimum: value = scale · q + minimum.
fn q5_1_block(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..8], &block[8..], out);
    out.iter_mut().for_each(|value| *value = scale * *value + minimum);
}

/// Four bits of each as in the types of four; bit i of the first four bytes is the fifth of value i.
fn five_bits(fifths: &[u8], quants: &[u8], out: &mut [f32]) {
    let fifth = |i: usize| (fifths[i / 8] >> (i % 8) & 1) << 4;
    for (i, &byte) in quants.iter().enumerate() {
        out[i] = f32::from(byte & 0x0f | fifth(i));
        out[i + 16] = f32::from(byte >> 4 | fifth(i + 16));
    }
}

/// 32 values of 8 bits, signed, with a scale: value = scale · q.
fn q8_0_block(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(byte.cast_signed());
    }
}

/// Eight times 32 values of 4 bits, with a scale and a minimum of 6 bits each, in units of the block's own:
/// value = scale · q − minimum. Of each 32 bytes the low halves come first and then the high ones.
fn q4_k_block(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[4..16], &block[16..]);
    for (pair, (out, quants)) in out.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let [(scale, minimum), (high_scale, high_minimum)] =
            [2 * pair, 2 * pair + 1].map(|part| scale_and_minimum(block, scales, part));
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(quants) {
            *low = scale * f32::from(byte & 0x0f) - minimum;
            *high = high_scale * f32::from(byte >> 4) - high_minimum;
        }
    }
}

/// The same with 5 bits: the fifth of value l of part i is bit i of byte l in front of the others.
fn q5_k_block(block: &[u8], out: &mut [f32]) {
    let (scales, fifths, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (pair, (out, quants)) in out.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let [(scale, minimum), (high_scale, high_minimum)] =
            [2 * pair, 2 * pair + 1].map(|part| scale_and_minimum(block, scales, part));
        for (((low, high), &byte), &fifth) in low.iter_mut().zip(high).zip(quants).zip(fifths) {
            let [first, second] = [2 * pair, 2 * pair + 1].map(|part| (fifth >> part & 1) << 4);
            *low = scale * f32::from(byte & 0x0f | first) - minimum;
            *high = high_scale * f32::from(byte >> 4 | second) - high_minimum;
        }
    }
}

/// Of one of eight parts. Six bits each in twelve bytes: the first four parts' in the low bits of bytes 0 to 7, those of the
/// others in bytes 8 to 11 and in the two bits that are left above.
fn scale_and_minimum(block: &[u8], scales: &[u8], part: usize) -> (f32, f32) {
    let (scale, minimum) = if part < 4 {
        (scales[part] & 63, scales[part + 4] & 63)
    } else {
        let both = scales[part + 4];
        (both & 0x0f | scales[part - 4] >> 6 << 4, both >> 4 | scales[part] >> 6 << 4)
    };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(minimum))
}

/// Sixteen times 16 values of 6 bits, each with a signed scale of 8 bits in units of the block's own:
/// value = scale · (q − 32). Of each half of the block, four values share two bytes of low bits and one of high ones.
fn q6_k_block(block: &[u8], out: &mut [f32]) {
    let (lows, rest) = block.split_at(SUPER / 2);
    let (highs, rest) = rest.split_at(SUPER / 4);
    let unit = half_at(rest, SUPER / 16);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (lows, highs, scales) = (&lows[half * 64..], &highs[half * 32..], &rest[half * 8..]);
        for l in 0..32 {
            let (first, second, high) = (lows[l], lows[l + 32], highs[l]);
            let quants = [first & 0x0f, second & 0x0f, first >> 4, second >> 4];
            for (part, low) in quants.into_iter().enumerate() {
                let quant = low | (high >> (2 * part) & 3) << 4;
                let scale = unit * f32::from(scales[2 * part + l / 16].cast_signed());
                out[32 * part + l] = scale * (f32::from(quant) - 32.0);
            }
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// `tests/reference/lm_quants.py` made the file.
    #[test]
    fn blocks_are_read_as_the_python_package_reads_them() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lm/quants.safetensors");
        let file = std::fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        for (code, name) in NAMES.iter().enumerate() {
            let Ok(bytes) = tensors.tensor(&format!("{name}.bytes")) else { continue };
            let kind = TensorType::from_code(code as u32).unwrap();
            assert_eq!(bytes.data().len(), 3 * kind.block_bytes(), "{name}");
            let expected = tensors.tensor(&format!("{name}.values")).unwrap();
            let expected = expected.data().as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four));
            let found = kind.dequantise(bytes.data());
            assert_eq!(found.len(), expected.len(), "{name}");
            for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                // ggml rounds in another order in some types.
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{name} {i}: {found} {expected}");
            }
        }
        assert_eq!(tensors.len(), 16);
    }
}
