//! The weights of a Llama-family model by name, read from a GGUF file as plain f32.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::config::ModelConfig;
use crate::gguf::Gguf;
use crate::rope::unpermute;

/// One block's weights. Matrices are [d_out, d_in], as in the file.
pub(crate) struct BlockWeights {
    /// [d_model].
    pub(crate) attn_norm: Vec<f32>,
    /// Queries, keys and values stacked: [(n_heads + 2 · n_kv_heads) · d_head, d_model].
    /// Rotary pairs are rows i and i + d_head / 2 of a head.
    pub(crate) qkv: Vec<f32>,
    /// [d_model, n_heads · d_head].
    pub(crate) attn_out: Vec<f32>,
    /// [d_model].
    pub(crate) ffn_norm: Vec<f32>,
    /// Gate and up stacked: [2 · d_ffn, d_model].
    pub(crate) gate_up: Vec<f32>,
    /// [d_model, d_ffn].
    pub(crate) down: Vec<f32>,
}

impl BlockWeights {
    /// Reads block `n`. Errors name the file and the tensor.
    pub(crate) fn read(gguf: &Gguf, config: &ModelConfig, n: usize) -> Result<Self> {
        let &ModelConfig { d_model, n_heads, n_kv_heads, d_head, d_ffn, .. } = config;
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let (d_queries, d_keys) = (n_heads * d_head, n_kv_heads * d_head);

        let mut qkv = unpermute(&gguf.read(&name("attn_q"), &[d_model, d_queries])?, d_head, d_model);
        qkv.extend(unpermute(&gguf.read(&name("attn_k"), &[d_model, d_keys])?, d_head, d_model));
        qkv.extend(gguf.read(&name("attn_v"), &[d_model, d_keys])?);
        let mut gate_up = gguf.read(&name("ffn_gate"), &[d_model, d_ffn])?;
        gate_up.extend(gguf.read(&name("ffn_up"), &[d_model, d_ffn])?);
        Ok(Self {
            attn_norm: gguf.read(&name("attn_norm"), &[d_model])?,
            qkv,
            attn_out: gguf.read(&name("attn_output"), &[d_queries, d_model])?,
            ffn_norm: gguf.read(&name("ffn_norm"), &[d_model])?,
            gate_up,
            down: gguf.read(&name("ffn_down"), &[d_ffn, d_model])?,
        })
    }
}

const BLOCK_PARTS: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

/// Refuses a file with tensors that this forward pass would not use (biases, an unembedding of its own, rotary
/// factors): such a model would run, and be wrong.
pub(crate) fn refuse_unknown_tensors(gguf: &Gguf, config: &ModelConfig) -> Result<()> {
    let mut known = BTreeSet::from(["token_embd.weight".to_owned(), "output_norm.weight".to_owned()]);
    for name in &known {
        if gguf.info(name).is_none() {
            bail!("{}: tensor {name} is missing", gguf.path().display());
        }
    }
    for n in 0..config.n_layers {
        for part in BLOCK_PARTS {
            let name = format!("blk.{n}.{part}.weight");
            // Asked block by block, so that an absurd block count ends at the first one that is not there.
            if gguf.info(&name).is_none() {
                bail!("{}: tensor {name} is missing", gguf.path().display());
            }
            known.insert(name);
        }
    }
    if let Some(name) = gguf.tensor_names().find(|name| !known.contains(*name)) {
        bail!("{}: tensor {name} is not supported", gguf.path().display());
    }
    Ok(())
}
