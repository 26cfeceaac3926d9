//! The weights of a folder in Hugging Face format: names and arrangements of each family.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use slices::transposed;

use super::{BlockWeights, LinearWeights, NormWeights, Weights};
use crate::config::{Described, Family, ModelConfig, NormKind};
use crate::safetensors::TensorFiles;

#[derive(Debug)]
pub(crate) struct FolderWeights<'a> {
    files: &'a TensorFiles,
    described: &'a Described,
    /// What stands before every name of the model without its unembedding: a base model saved alone lacks it.
    prefix: &'static str,
    names: Names,
}

/// What a family calls its tensors.
#[derive(Debug)]
struct Names {
    prefix: &'static str,
    embedding: &'static str,
    positions: Option<&'static str>,
    blocks: &'static str,
    final_norm: &'static str,
    unembedding: &'static str,
    attn_norm: &'static str,
    attn_post_norm: Option<&'static str>,
    ffn_norm: &'static str,
    ffn_post_norm: Option<&'static str>,
    attn_out: &'static str,
    down: &'static str,
    /// Buffers of older versions, which follow from the configuration.
    buffers: &'static [&'static str],
}

const LLAMA: Names = Names {
    prefix: "model.",
    embedding: "embed_tokens",
    positions: None,
    blocks: "layers",
    final_norm: "norm",
    unembedding: "lm_head",
    attn_norm: "input_layernorm",
    attn_post_norm: None,
    ffn_norm: "post_attention_layernorm",
    ffn_post_norm: None,
    attn_out: "self_attn.o_proj",
    down: "mlp.down_proj",
    buffers: &["self_attn.rotary_emb.inv_freq"],
};

fn names(family: Family) -> Names {
    match family {
        Family::GptNeox => Names {
            prefix: "gpt_neox.",
            embedding: "embed_in",
            final_norm: "final_layer_norm",
            unembedding: "embed_out",
            attn_out: "attention.dense",
            down: "mlp.dense_4h_to_h",
            buffers: &["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
            ..LLAMA
        },
        Family::Gpt2 => Names {
            prefix: "transformer.",
            embedding: "wte",
            positions: Some("wpe"),
            blocks: "h",
            final_norm: "ln_f",
            attn_norm: "ln_1",
            ffn_norm: "ln_2",
            attn_out: "attn.c_proj",
            down: "mlp.c_proj",
            buffers: &["attn.bias", "attn.masked_bias"],
            ..LLAMA
        },
        Family::Llama | Family::Qwen2 | Family::Qwen3 => LLAMA,
        Family::Gemma2 => Names {
            attn_post_norm: Some("post_attention_layernorm"),
            ffn_norm: "pre_feedforward_layernorm",
            ffn_post_norm: Some("post_feedforward_layernorm"),
            ..LLAMA
        },
    }
}

impl<'a> FolderWeights<'a> {
    /// Errors: there is a tensor that would not be used.
    pub(crate) fn new(files: &'a TensorFiles, described: &'a Described) -> Result<Self> {
        let names = names(described.family);
        let has_prefix = files.names().any(|(name, _)| name.starts_with(names.prefix));
        let prefix = if has_prefix { names.prefix } else { "" };
        let weights = Self { files, described, prefix, names };
        weights.refuse_unknown_tensors()?;
        Ok(weights)
    }

    fn config(&self) -> &ModelConfig {
        &self.described.config
    }

    fn outer(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    fn inner(&self, block: usize, part: &str) -> String {
        format!("{}{}.{block}.{part}", self.prefix, self.names.blocks)
    }

    fn norm(&self, name: &str, d: usize) -> Result<NormWeights> {
        let mut gain = self.files.read(&format!("{name}.weight"), &[d])?;
        if self.described.family == Family::Gemma2 {
            // Its gains are what is added to 1.
            gain.iter_mut().for_each(|gain| *gain += 1.0);
        }
        let bias = match self.config().norm.kind {
            NormKind::Layer => self.files.read(&format!("{name}.bias"), &[d])?,
            NormKind::Rms => Vec::new(),
        };
        Ok(NormWeights { gain, bias })
    }

    /// A dense layer with its bias, if it has one.
    fn linear(&self, name: &str, d_out: usize, d_in: usize) -> Result<LinearWeights> {
        let weight = format!("{name}.weight");
        let rows = if self.described.family == Family::Gpt2 {
            // Its layers are stored the other way round.
            transposed(&self.files.read(&weight, &[d_in, d_out])?, d_out)
        } else {
            self.files.read(&weight, &[d_out, d_in])?
        };
        let bias = format!("{name}.bias");
        let bias = if self.files.has(&bias) { self.files.read(&bias, &[d_out])? } else { Vec::new() };
        Ok(LinearWeights { rows, bias })
    }

    fn qkv(&self, block: usize) -> Result<LinearWeights> {
        let config = self.config();
        let &ModelConfig { d_model, n_heads, n_kv_heads, d_head, .. } = config;
        match self.described.family {
            Family::Gpt2 => self.linear(&self.inner(block, "attn.c_attn"), config.d_qkv(), d_model),
            Family::GptNeox => {
                let stacked = self.linear(&self.inner(block, "attention.query_key_value"), config.d_qkv(), d_model)?;
                Ok(LinearWeights {
                    rows: by_kind(&stacked.rows, n_heads, d_head * d_model),
                    bias: by_kind(&stacked.bias, n_heads, d_head),
                })
            }
            _ => {
                let of = |name: &str, n: usize| self.linear(&self.inner(block, name), n * d_head, d_model);
                stack(
                    of("self_attn.q_proj", n_heads)?,
                    [of("self_attn.k_proj", n_kv_heads)?, of("self_attn.v_proj", n_kv_heads)?],
                )
                .with_context(|| self.inner(block, "self_attn"))
            }
        }
    }

    fn up(&self, block: usize) -> Result<LinearWeights> {
        let &ModelConfig { d_model, d_ffn, .. } = self.config();
        let of = |name: &str| self.linear(&self.inner(block, name), d_ffn, d_model);
        match self.described.family {
            Family::Gpt2 => of("mlp.c_fc"),
            Family::GptNeox => of("mlp.dense_h_to_4h"),
            _ => stack(of("mlp.gate_proj")?, [of("mlp.up_proj")?]).with_context(|| self.inner(block, "mlp")),
        }
    }

    /// What would not be used makes a model that runs, and is wrong.
    fn refuse_unknown_tensors(&self) -> Result<()> {
        let known = self.known_outside_blocks();
        let blocks = format!("{}{}.", self.prefix, self.names.blocks);
        let parts = self.known_in_blocks();
        for (name, file) in self.files.names() {
            let in_block = name.strip_prefix(&blocks).and_then(|rest| rest.split_once('.'));
            let is_known = match in_block {
                Some((block, part)) => {
                    block.parse().is_ok_and(|block: usize| block < self.config().n_layers) && parts.contains(part)
                }
                None => known.contains(name),
            };
            if !is_known {
                bail!("{}: tensor {name} is not known for this model_type", file.display());
            }
        }
        Ok(())
    }

    fn known_outside_blocks(&self) -> BTreeSet<String> {
        let names = &self.names;
        let mut known = BTreeSet::from([
            self.outer(&format!("{}.weight", names.embedding)),
            self.outer(&format!("{}.weight", names.final_norm)),
            format!("{}.weight", names.unembedding),
            self.outer("rotary_emb.inv_freq"),
        ]);
        known.extend(names.positions.map(|positions| self.outer(&format!("{positions}.weight"))));
        if self.config().norm.kind == NormKind::Layer {
            known.insert(self.outer(&format!("{}.bias", names.final_norm)));
        }
        known
    }

    fn known_in_blocks(&self) -> BTreeSet<String> {
        let names = &self.names;
        let mut known: BTreeSet<String> = names.buffers.iter().map(|&buffer| buffer.to_owned()).collect();
        let inputs: &[&str] = match self.described.family {
            Family::Gpt2 => &["attn.c_attn", "mlp.c_fc"],
            Family::GptNeox => &["attention.query_key_value", "mlp.dense_h_to_4h"],
            _ => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"],
        };
        for layer in inputs.iter().chain([&names.attn_out, &names.down]) {
            known.extend([format!("{layer}.weight"), format!("{layer}.bias")]);
        }
        let norms = [Some(names.attn_norm), names.attn_post_norm, Some(names.ffn_norm), names.ffn_post_norm];
        for norm in norms.into_iter().flatten() {
            known.insert(format!("{norm}.weight"));
            if self.config().norm.kind == NormKind::Layer {
                known.insert(format!("{norm}.bias"));
            }
        }
        if self.config().attention.has_qk_norm {
            known.extend(["self_attn.q_norm.weight".to_owned(), "self_attn.k_norm.weight".to_owned()]);
        }
        known
    }
}

impl Weights for FolderWeights<'_> {
    fn embedding(&self) -> Result<Vec<f32>> {
        let &ModelConfig { n_vocab, d_model, .. } = self.config();
        self.files.read(&self.outer(&format!("{}.weight", self.names.embedding)), &[n_vocab, d_model])
    }

    fn positions(&self) -> Result<Vec<f32>> {
        let &ModelConfig { context_length, d_model, .. } = self.config();
        match self.names.positions {
            None => Ok(Vec::new()),
            Some(positions) => self.files.read(&self.outer(&format!("{positions}.weight")), &[context_length, d_model]),
        }
    }

    fn block(&self, n: usize) -> Result<BlockWeights> {
        let config = self.config();
        let &ModelConfig { d_model, n_heads, d_head, d_ffn, .. } = config;
        let norm = |part: &str| self.norm(&self.inner(n, part), d_model);
        let head_norm = |part: &str| {
            if config.attention.has_qk_norm {
                self.files.read(&self.inner(n, &format!("{part}.weight")), &[d_head])
            } else {
                Ok(Vec::new())
            }
        };
        Ok(BlockWeights {
            attn_norm: norm(self.names.attn_norm)?,
            qkv: self.qkv(n)?,
            query_norm: head_norm("self_attn.q_norm")?,
            key_norm: head_norm("self_attn.k_norm")?,
            attn_out: self.linear(&self.inner(n, self.names.attn_out), d_model, n_heads * d_head)?,
            attn_post_norm: self.names.attn_post_norm.map(norm).transpose()?,
            ffn_norm: norm(self.names.ffn_norm)?,
            up: self.up(n)?,
            down: self.linear(&self.inner(n, self.names.down), d_model, d_ffn)?,
            ffn_post_norm: self.names.ffn_post_norm.map(norm).transpose()?,
        })
    }

    fn final_norm(&self) -> Result<NormWeights> {
        self.norm(&self.outer(self.names.final_norm), self.config().d_model)
    }

    fn unembedding(&self) -> Result<Option<LinearWeights>> {
        let &ModelConfig { n_vocab, d_model, .. } = self.config();
        if self.described.is_tied {
            return Ok(None);
        }
        let rows = self.files.read(&format!("{}.weight", self.names.unembedding), &[n_vocab, d_model])?;
        Ok(Some(LinearWeights { rows, bias: Vec::new() }))
    }
}

/// Layers of the same input one above the other. Errors: some have a bias and some have none.
fn stack<const N: usize>(mut first: LinearWeights, others: [LinearWeights; N]) -> Result<LinearWeights> {
    for other in others {
        if other.bias.is_empty() != first.bias.is_empty() {
            bail!("some of these layers have a bias and some have none");
        }
        first.rows.extend(other.rows);
        first.bias.extend(other.bias);
    }
    Ok(first)
}

/// From queries, keys and values head by head to all queries, all keys, all values. Each head's part has `size` values.
/// Shapes: [n_heads, 3, size] → [3, n_heads, size].
fn by_kind(values: &[f32], n_heads: usize, size: usize) -> Vec<f32> {
    if values.is_empty() {
        return Vec::new();
    }
    let part = |kind: usize| (0..n_heads).flat_map(move |head| &values[(3 * head + kind) * size..][..size]);
    (0..3).flat_map(part).copied().collect()
}
