//! The weights of a Llama-family model in a GGUF file.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::{BlockWeights, LinearWeights, NormWeights, Weights};
use crate::config::ModelConfig;
use crate::gguf::Gguf;
use crate::rope::unpermute;

#[derive(Debug)]
pub(crate) struct GgufWeights<'a> {
    gguf: &'a Gguf,
    config: &'a ModelConfig,
}

impl<'a> GgufWeights<'a> {
    /// Errors: a tensor is missing, or there is one that would not be used.
    pub(crate) fn new(gguf: &'a Gguf, config: &'a ModelConfig) -> Result<Self> {
        refuse_unknown_tensors(gguf, config)?;
        Ok(Self { gguf, config })
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
        let without_bias = |rows| LinearWeights { rows, bias: Vec::new() };

        let mut qkv = unpermute(&gguf.read(&name("attn_q"), &[d_model, d_queries])?, d_head, d_model);
        qkv.extend(unpermute(&gguf.read(&name("attn_k"), &[d_model, d_keys])?, d_head, d_model));
        qkv.extend(gguf.read(&name("attn_v"), &[d_model, d_keys])?);
        let mut up = gguf.read(&name("ffn_gate"), &[d_model, d_ffn])?;
        up.extend(gguf.read(&name("ffn_up"), &[d_model, d_ffn])?);
        Ok(BlockWeights {
            attn_norm: self.norm(&name("attn_norm"))?,
            qkv: without_bias(qkv),
            attn_out: without_bias(gguf.read(&name("attn_output"), &[d_queries, d_model])?),
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
        Ok(None)
    }
}

const BLOCK_PARTS: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

/// Refuses a file with tensors that this forward pass would not use (biases, an unembedding of its own, rotary
/// factors): such a model would run, and be wrong.
fn refuse_unknown_tensors(gguf: &Gguf, config: &ModelConfig) -> Result<()> {
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
