//! A Llama-family model described by a GGUF file's metadata.

use anyhow::{Context, Result, bail, ensure};

use super::{Activation, Attention, FeedForward, MAX_SIZE, ModelConfig, Norm, NormKind, Positions, Rotary};
use crate::gguf::{Gguf, Value};

impl ModelConfig {
    /// Reads and checks the metadata. Errors name the file and the key.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::read(gguf).with_context(|| gguf.path().display().to_string())
    }

    fn read(gguf: &Gguf) -> Result<Self> {
        let architecture = string(gguf, "general.architecture")?;
        ensure!(architecture == "llama", "architecture {architecture} is not supported, only llama");
        refuse_variants(gguf)?;

        let d_model = size(gguf, "llama.embedding_length")?;
        let n_heads = size(gguf, "llama.attention.head_count")?;
        let n_kv_heads = optional_size(gguf, "llama.attention.head_count_kv")?.unwrap_or(n_heads);
        let d_head = match optional_size(gguf, "llama.attention.key_length")? {
            Some(d_head) => d_head,
            None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
            None => bail!("llama.embedding_length = {d_model} does not divide into {n_heads} heads"),
        };
        ensure!(d_head.is_multiple_of(2), "heads of odd width {d_head} have no rotary pairs");
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(n) = optional_size(gguf, key)? {
                ensure!(n == d_head, "{key} = {n} differs from the heads' width {d_head}: not supported");
            }
        }

        let base = optional_float(gguf, "llama.rope.freq_base")?.unwrap_or(10_000.0);
        let eps = float(gguf, "llama.attention.layer_norm_rms_epsilon")? as f32;
        let embedding = gguf.info("token_embd.weight").context("tensor token_embd.weight is missing")?;
        let n_vocab = *embedding.dims.get(1).context("tensor token_embd.weight is not a matrix")?;
        if let Some(n) = optional_size(gguf, "llama.vocab_size")? {
            ensure!(n == n_vocab, "llama.vocab_size = {n}, but token_embd.weight has {n_vocab} rows");
        }
        let config = Self {
            d_model,
            n_layers: size(gguf, "llama.block_count")?,
            n_heads,
            n_kv_heads,
            d_head,
            d_ffn: size(gguf, "llama.feed_forward_length")?,
            n_vocab,
            context_length: size(gguf, "llama.context_length")?,
            norm: Norm { kind: NormKind::Rms, eps },
            positions: Positions::Rotary(Rotary { base, n_rotary: d_head, factor: 1.0, stretch: None }),
            attention: Attention {
                scale: 1.0 / (d_head as f32).sqrt(),
                softcap: None,
                windows: Vec::new(),
                has_qk_norm: false,
            },
            feed_forward: FeedForward { activation: Activation::Silu, is_gated: true },
            is_parallel: false,
            embedding_scale: 1.0,
            logit_softcap: None,
        };
        config.check(|name| {
            let key = match name {
                "n_heads" => "attention.head_count",
                "n_kv_heads" => "attention.head_count_kv",
                "rope_base" => "rope.freq_base",
                _ => "attention.layer_norm_rms_epsilon",
            };
            format!("llama.{key}")
        })
    }
}

/// Variants of the architecture that would run and be wrong.
fn refuse_variants(gguf: &Gguf) -> Result<()> {
    if let Some(n) = optional_integer(gguf, "llama.expert_count")? {
        ensure!(n == 0, "llama.expert_count = {n}: mixtures of experts are not supported");
    }
    match gguf.get("llama.rope.scaling.type") {
        None => {}
        Some(Value::String(kind)) if kind == "none" => {}
        Some(value) => bail!("llama.rope.scaling.type = {value:?} is not supported"),
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        if let Some(factor) = optional_float(gguf, key)? {
            ensure!(factor == 1.0, "{key} = {factor} is not supported");
        }
    }
    for key in ["llama.attention.sliding_window", "llama.attention.clamp_kqv", "llama.attention.max_alibi_bias"] {
        ensure!(gguf.get(key).is_none(), "{key} is not supported");
    }
    Ok(())
}

fn size(gguf: &Gguf, key: &str) -> Result<usize> {
    optional_size(gguf, key)?.with_context(|| format!("{key} is missing"))
}

fn optional_size(gguf: &Gguf, key: &str) -> Result<Option<usize>> {
    let Some(n) = optional_integer(gguf, key)? else { return Ok(None) };
    match usize::try_from(n) {
        Ok(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n)),
        _ => bail!("{key} = {n}, expected 1 to {MAX_SIZE}"),
    }
}

fn optional_integer(gguf: &Gguf, key: &str) -> Result<Option<i128>> {
    match gguf.get(key) {
        None => Ok(None),
        Some(Value::Integer(n)) => Ok(Some(*n)),
        Some(other) => bail!("{key} is {}, expected an integer", other.kind()),
    }
}

fn float(gguf: &Gguf, key: &str) -> Result<f64> {
    optional_float(gguf, key)?.with_context(|| format!("{key} is missing"))
}

fn optional_float(gguf: &Gguf, key: &str) -> Result<Option<f64>> {
    match gguf.get(key) {
        None => Ok(None),
        Some(Value::Float(x)) => Ok(Some(*x)),
        Some(other) => bail!("{key} is {}, expected a float", other.kind()),
    }
}

fn string<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a str> {
    match gguf.get(key) {
        None => bail!("{key} is missing"),
        Some(Value::String(text)) => Ok(text),
        Some(other) => bail!("{key} is {}, expected a string", other.kind()),
    }
}
