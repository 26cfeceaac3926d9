//! The weights of a model in a GGUF file.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::{BlockWeights, LinearWeights, NormWeights, Weights};
use crate::config::ModelConfig;
use crate::gguf::{Gguf, Value};
use crate::rope::unpermute;

#[derive(Debug)]
pub(crate) struct GgufWeights<'a> {
    gguf: &'a Gguf,
    config: &'a ModelConfig,
    /// Rotary pairs are rows 2i and 2i + 1 of a head's queries and keys: the converter rearranges Llama's, and no others.
    has_pairs_side_by_side: bool,
}

impl<'a> GgufWeights<'a> {
    /// Errors: a tensor is missing, or there is one that would not be used.
    pub(crate) fn new(gguf: &'a Gguf, config: &'a ModelConfig) -> Result<Self> {
        let architecture = match gguf.get("general.architecture") {
            Some(Value::String(name)) => name.as_str(),
            _ => "",
        };
        refuse_unknown_tensors(gguf, config, architecture)?;
        Ok(Self { gguf, config, has_pairs_side_by_side: architecture == "llama" })
    }

    fn norm(&self, name: &str) -> Result<NormWeights> {
        Ok(NormWeights { gain: self.gguf.read(name, &[self.config.d_model])?, bias: Vec::new() })
    }
}

impl Weights for GgufWeights<'_> {
    fn embedding(&self) -> Result<Vec<f32>> {
        self.gguf.read("token_embd.weight", &[self.config.d_model, self.config.n_vocab])
    }

    fn positions(&self) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }

    fn block(&self, n: usize) -> Result<BlockWeights> {
        let &ModelConfig { d_model, n_heads, n_kv_heads, d_head, d_ffn, .. } = self.config;
        let gguf = self.gguf;
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let (d_queries, d_keys) = (n_heads * d_head, n_kv_heads * d_head);
        let optional = |name: String, size: usize| match gguf.info(&name) {
            Some(_) => gguf.read(&name, &[size]),
            None => Ok(Vec::new()),
        };
        let linear = |part: &str, d_in: usize, d_out: usize| {
            let rows = gguf.read(&name(part), &[d_in, d_out])?;
            Ok::<_, anyhow::Error>(LinearWeights { rows, bias: optional(format!("blk.{n}.{part}.bias"), d_out)? })
        };
        let mut qkv = LinearWeights::default();
        for (part, d_out, is_rotated) in
            [("attn_q", d_queries, true), ("attn_k", d_keys, true), ("attn_v", d_keys, false)]
        {
            let LinearWeights { rows, bias } = linear(part, d_model, d_out)?;
            let arranged = |values: Vec<f32>, d_in: usize| match is_rotated && self.has_pairs_side_by_side {
                true => unpermute(&values, d_head, d_in),
                false => values,
            };
            qkv.rows.extend(arranged(rows, d_model));
            qkv.bias.extend(arranged(bias, 1));
        }
        let n_biases = qkv.bias.len();
        ensure!(
            n_biases == 0 || n_biases == d_queries + 2 * d_keys,
            "{}: blk.{n} has biases of some of attn_q, attn_k and attn_v, expected of all or of none",
            gguf.path().display()
        );
        let mut up = gguf.read(&name("ffn_gate"), &[d_model, d_ffn])?;
        up.extend(gguf.read(&name("ffn_up"), &[d_model, d_ffn])?);
        let without_bias = |rows| LinearWeights { rows, bias: Vec::new() };
        let head_norm = |part| match self.config.attention.has_qk_norm {
            true => gguf.read(&name(part), &[d_head]),
            false => Ok(Vec::new()),
        };
        Ok(BlockWeights {
            attn_norm: self.norm(&name("attn_norm"))?,
            qkv,
            query_norm: head_norm("attn_q_norm")?,
            key_norm: head_norm("attn_k_norm")?,
            attn_out: linear("attn_output", d_queries, d_model)?,
            ffn_norm: self.norm(&name("ffn_norm"))?,
            up: without_bias(up),
            down: without_bias(gguf.read(&name("ffn_down"), &[d_ffn, d_model])?),
            ..BlockWeights::default()
        })
    }

    fn final_norm(&self) -> Result<NormWeights> {
        self.norm("output_norm.weight")
    }

    fn unembedding(&self) -> Result<Option<LinearWeights>> {
        if self.gguf.info(UNEMBEDDING).is_none() {
            return Ok(None);
        }
        let rows = self.gguf.read(UNEMBEDDING, &[self.config.d_model, self.config.n_vocab])?;
        Ok(Some(LinearWeights { rows, bias: Vec::new() }))
    }
}

/// Where it is not the embedding.
const UNEMBEDDING: &str = "output.weight";
/// What rotary frequencies are divided by.
pub(crate) const DIVISORS: &str = "rope_freqs.weight";
const BLOCK_PARTS: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
const HEAD_NORMS: [&str; 2] = ["attn_q_norm", "attn_k_norm"];
const PARTS_WITH_BIASES: [&str; 4] = ["attn_q", "attn_k", "attn_v", "attn_output"];

/// Refuses a file with tensors that this forward pass would not use (biases of feed-forward parts, norms that the architecture
/// has not): such a model would run, and be wrong.
fn refuse_unknown_tensors(gguf: &Gguf, config: &ModelConfig, architecture: &str) -> Result<()> {
    let mut known = BTreeSet::from(["token_embd.weight".to_owned(), "output_norm.weight".to_owned()]);
    for name in &known {
        if gguf.info(name).is_none() {
            bail!("{}: tensor {name} is missing", gguf.path().display());
        }
    }
    known.extend([UNEMBEDDING.to_owned(), DIVISORS.to_owned()]);
    let head_norms = if config.attention.has_qk_norm { &HEAD_NORMS[..] } else { &[] };
    for n in 0..config.n_layers {
        for part in BLOCK_PARTS.iter().chain(head_norms) {
            let name = format!("blk.{n}.{part}.weight");
            // Asked block by block, so that an absurd block count ends at the first one that is not there.
            if gguf.info(&name).is_none() {
                bail!("{}: tensor {name} is missing", gguf.path().display());
            }
            known.insert(name);
        }
        for part in PARTS_WITH_BIASES {
            let bias = |n| format!("blk.{n}.{part}.bias");
            // What the first block has the others have, and Qwen2 has them always.
            let is_expected = gguf.info(&bias(0)).is_some() || (architecture == "qwen2" && part != "attn_output");
            if is_expected && gguf.info(&bias(n)).is_none() {
                bail!("{}: tensor {} is missing", gguf.path().display(), bias(n));
            }
            if is_expected {
                known.insert(bias(n));
            }
        }
    }
    if let Some(name) = gguf.tensor_names().find(|name| !known.contains(*name)) {
        bail!("{}: tensor {name} is not supported", gguf.path().display());
    }
    Ok(())
}
