//! A small random Llama as a GGUF file, with its weights at hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::f16;

pub(super) const D_MODEL: usize = 32;
pub(super) const N_LAYERS: usize = 3;
pub(super) const N_HEADS: usize = 4;
pub(super) const N_KV_HEADS: usize = 2;
pub(super) const D_HEAD: usize = 8;
pub(super) const D_FFN: usize = 64;
pub(super) const CONTEXT_LENGTH: usize = 700;
pub(super) const ROPE_BASE: f32 = 1000.0;
pub(super) const RMS_EPS: f32 = 1e-5;

/// A GGUF file being put together, and what its tensors mean.
#[derive(Clone)]
pub(super) struct Tiny {
    pub(super) metadata: Vec<(String, Meta)>,
    pub(super) tensors: Vec<TensorBytes>,
    /// The values that the file's bytes stand for, [d_out, d_in]; queries and keys in the order of published weights
    /// (rotary pairs i and i + d_head / 2), not the file's.
    pub(super) weights: BTreeMap<String, Vec<f64>>,
}

#[derive(Clone)]
pub(super) enum Meta {
    U32(u32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
}

#[derive(Clone)]
pub(super) struct TensorBytes {
    pub(super) name: String,
    pub(super) dims: Vec<u64>,
    pub(super) code: u32,
    pub(super) bytes: Vec<u8>,
}

impl Tiny {
    pub(super) fn new() -> Self {
        let (tokens, kinds, merges) = vocabulary();
        let n_vocab = tokens.len();
        let text = |text: &str| Meta::Text(text.to_owned());
        let size = |n: usize| Meta::U32(n as u32);
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.block_count", size(N_LAYERS)),
            ("llama.context_length", size(CONTEXT_LENGTH)),
            ("llama.embedding_length", size(D_MODEL)),
            ("llama.feed_forward_length", size(D_FFN)),
            ("llama.attention.head_count", size(N_HEADS)),
            ("llama.attention.head_count_kv", size(N_KV_HEADS)),
            ("llama.rope.freq_base", Meta::F32(ROPE_BASE)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::F32(RMS_EPS)),
            ("llama.rope.dimension_count", size(D_HEAD)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
            ("tokenizer.ggml.token_type", Meta::Ints(kinds)),
            ("tokenizer.ggml.merges", Meta::Texts(merges)),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut tiny = Self { metadata, tensors: Vec::new(), weights: BTreeMap::new() };

        let mut random = Random(7);
        tiny.push("token_embd.weight", D_MODEL, n_vocab, 8, 1.0, &mut random, None);
        tiny.push("output_norm.weight", D_MODEL, 1, 0, 1.0, &mut random, None);
        for n in 0..N_LAYERS {
            let mut push = |part: &str, d_in, d_out, code, n_heads| {
                let size = if d_out == 1 { 1.0 } else { 2.0 / (d_in as f64).sqrt() };
                tiny.push(&format!("blk.{n}.{part}.weight"), d_in, d_out, code, size, &mut random, n_heads);
            };
            push("attn_norm", D_MODEL, 1, 0, None);
            push("attn_q", D_MODEL, N_HEADS * D_HEAD, 3, Some(N_HEADS));
            push("attn_k", D_MODEL, N_KV_HEADS * D_HEAD, 8, Some(N_KV_HEADS));
            push("attn_v", D_MODEL, N_KV_HEADS * D_HEAD, 3, None);
            push("attn_output", N_HEADS * D_HEAD, D_MODEL, 1, None);
            push("ffn_norm", D_MODEL, 1, 0, None);
            push("ffn_gate", D_MODEL, D_FFN, 3, None);
            push("ffn_up", D_MODEL, D_FFN, 1, None);
            push("ffn_down", D_FFN, D_MODEL, 3, None);
        }
        tiny
    }

    /// Adds a random tensor of ggml type `code`; `n_heads` where the file holds its rows permuted.
    #[expect(clippy::too_many_arguments, reason = "one row of the table above")]
    fn push(
        &mut self,
        name: &str,
        d_in: usize,
        d_out: usize,
        code: u32,
        size: f64,
        random: &mut Random,
        n_heads: Option<usize>,
    ) {
        let values: Vec<f64> = (0..d_in * d_out).map(|_| size * (2.0 * random.next() - 1.0)).collect();
        let (bytes, values) = quantise(code, &values);
        let published = match n_heads {
            None => values,
            Some(n_heads) => published_order(&values, n_heads, d_in),
        };
        let dims = if d_out == 1 { vec![d_in as u64] } else { vec![d_in as u64, d_out as u64] };
        self.tensors.push(TensorBytes { name: name.to_owned(), dims, code, bytes });
        self.weights.insert(name.to_owned(), published);
    }

    pub(super) fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut TensorBytes {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// The file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let offsets: Vec<u64> = self
            .tensors
            .iter()
            .scan(0_u64, |end, tensor| {
                let start = end.next_multiple_of(32);
                *end = start + tensor.bytes.len() as u64;
                Some(start)
            })
            .collect();
        self.bytes_with_offsets(&offsets)
    }

    /// The file, its tensors at the given offsets from the start of the data.
    pub(super) fn bytes_with_offsets(&self, offsets: &[u64]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key);
            put_meta(&mut out, value);
        }
        for (tensor, offset) in self.tensors.iter().zip(offsets) {
            put_text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.code.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        let data_start = out.len();
        for (tensor, &offset) in self.tensors.iter().zip(offsets) {
            let start = data_start + offset as usize;
            out.resize(out.len().max(start + tensor.bytes.len()), 0);
            out[start..start + tensor.bytes.len()].copy_from_slice(&tensor.bytes);
        }
        out
    }
}

/// A file in a folder of its own that goes away with it.
pub(super) struct TempFile {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl TempFile {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, bytes).unwrap();
        Self { path, _folder: folder }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn overwrite(&self, bytes: &[u8]) {
        std::fs::write(&self.path, bytes).unwrap();
    }
}

/// SplitMix64, as numbers in [0, 1).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The separator, the printable ASCII characters, the symbols of space, newline and the bytes 0x80 to 0xbf, and a few
/// words. Every other byte has no token.
fn vocabulary() -> (Vec<String>, Vec<i32>, Vec<String>) {
    let mut tokens = vec!["<|endoftext|>".to_owned(), "<|im_start|>".to_owned()];
    let mut kinds = vec![3, 3];
    tokens.extend((0x21..0x7f_u8).map(|byte| char::from(byte).to_string()));
    tokens.extend(["Ġ", "Ċ", "Ã", "©", "â", "Ģ", "Ļ", "£"].map(str::to_owned));
    let merges = ["t h", "th e", "Ġ the", "Ã ©", "â Ģ", "c a", "ca f"].map(str::to_owned).to_vec();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    kinds.resize(tokens.len(), 1);
    (tokens, kinds, merges)
}

/// The file's bytes, and the values they stand for.
fn quantise(code: u32, values: &[f64]) -> (Vec<u8>, Vec<f64>) {
    let mut bytes = Vec::new();
    let mut out = Vec::new();
    match code {
        0 => {
            for &value in values {
                bytes.extend((value as f32).to_le_bytes());
                out.push(f64::from(value as f32));
            }
        }
        1 => {
            for &value in values {
                bytes.extend(f16::from_f64(value).to_le_bytes());
                out.push(f16::from_f64(value).to_f64());
            }
        }
        3 => {
            for block in values.chunks_exact(32) {
                let low = block.iter().copied().fold(f64::INFINITY, f64::min);
                let high = block.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let (scale, minimum) = (f16::from_f64((high - low) / 15.0), f16::from_f64(low));
                let quant = |x: f64| ((x - minimum.to_f64()) / scale.to_f64()).round().clamp(0.0, 15.0) as u8;
                bytes.extend(scale.to_le_bytes());
                bytes.extend(minimum.to_le_bytes());
                bytes.extend((0..16).map(|j| quant(block[j]) | (quant(block[j + 16]) << 4)));
                out.extend(block.iter().map(|&x| scale.to_f64() * f64::from(quant(x)) + minimum.to_f64()));
            }
        }
        8 => {
            for block in values.chunks_exact(32) {
                let largest = block.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
                let scale = f16::from_f64(largest / 127.0);
                let quant = |x: f64| (x / scale.to_f64()).round().clamp(-127.0, 127.0) as i8;
                bytes.extend(scale.to_le_bytes());
                bytes.extend(block.iter().map(|&x| quant(x).cast_unsigned()));
                out.extend(block.iter().map(|&x| scale.to_f64() * f64::from(quant(x))));
            }
        }
        other => panic!("no quantiser for type {other}"),
    }
    (bytes, out)
}

/// From the file's order of query or key rows to that of published weights: the inverse of the converter's
/// `weights.reshape(n_heads, 2, d_head / 2, d_in).swapaxes(1, 2)`.
fn published_order(rows: &[f64], n_heads: usize, d_in: usize) -> Vec<f64> {
    let d_head = rows.len() / d_in / n_heads;
    let mut out = vec![0.0; rows.len()];
    for head in 0..n_heads {
        for half in 0..2 {
            for i in 0..d_head / 2 {
                let (published, file) = (half * d_head / 2 + i, 2 * i + half);
                for column in 0..d_in {
                    out[(head * d_head + published) * d_in + column] = rows[(head * d_head + file) * d_in + column];
                }
            }
        }
    }
    out
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_meta(out: &mut Vec<u8>, value: &Meta) {
    let array = |out: &mut Vec<u8>, element: u32, n: usize| {
        out.extend(9_u32.to_le_bytes());
        out.extend(element.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
    };
    match value {
        Meta::U32(n) => {
            out.extend(4_u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Meta::F32(x) => {
            out.extend(6_u32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Meta::Text(text) => {
            out.extend(8_u32.to_le_bytes());
            put_text(out, text);
        }
        Meta::Texts(texts) => {
            array(out, 8, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Meta::Ints(ints) => {
            array(out, 5, ints.len());
            ints.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}
