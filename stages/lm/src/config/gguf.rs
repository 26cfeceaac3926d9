//! A model described by a GGUF file's metadata: Llama, and what differs from it in biases and norms alone.

use anyhow::{Context, Result, bail, ensure};

use super::{Activation, Attention, FeedForward, MAX_SIZE, ModelConfig, Norm, NormKind, Positions, Rotary};
use crate::gguf::{Gguf, Value};
use crate::weights::DIVISORS;

impl ModelConfig {
    /// Reads and checks the metadata. Errors name the file and the key.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::read(gguf).with_context(|| gguf.path().display().to_string())
    }

    fn read(gguf: &Gguf) -> Result<Self> {
        let architecture = string(gguf, "general.architecture")?;
        ensure!(
            ARCHITECTURES.contains(&architecture),
            "general.architecture = {architecture:?} is not supported in this format, only {}; a folder in Hugging Face format \
             may be",
            ARCHITECTURES.join(", ")
        );
        let key = |name: &str| format!("{architecture}.{name}");
        refuse_variants(gguf, key)?;

        let d_model = size(gguf, &key("embedding_length"))?;
        let n_heads = size(gguf, &key("attention.head_count"))?;
        let n_kv_heads = optional_size(gguf, &key("attention.head_count_kv"))?.unwrap_or(n_heads);
        let d_head = match optional_size(gguf, &key("attention.key_length"))? {
            Some(d_head) => d_head,
            None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
            None => bail!("{} = {d_model} does not divide into {n_heads} heads", key("embedding_length")),
        };
        ensure!(d_head.is_multiple_of(2), "heads of odd width {d_head} have no rotary pairs");
        for key in [key("attention.value_length"), key("rope.dimension_count")] {
            if let Some(n) = optional_size(gguf, &key)? {
                ensure!(n == d_head, "{key} = {n} differs from the heads' width {d_head}: not supported");
            }
        }

        let base = optional_float(gguf, &key("rope.freq_base"))?.unwrap_or(10_000.0);
        let eps = float(gguf, &key("attention.layer_norm_rms_epsilon"))? as f32;
        let embedding = gguf.info("token_embd.weight").context("tensor token_embd.weight is missing")?;
        let n_vocab = *embedding.dims.get(1).context("tensor token_embd.weight is not a matrix")?;
        if let Some(n) = optional_size(gguf, &key("vocab_size"))? {
            ensure!(n == n_vocab, "{} = {n}, but token_embd.weight has {n_vocab} rows", key("vocab_size"));
        }
        let rotary = Rotary { base, n_rotary: d_head, factor: 1.0, stretch: None, divisors: divisors(gguf, d_head)? };
        let config = Self {
            d_model,
            n_layers: size(gguf, &key("block_count"))?,
            n_heads,
            n_kv_heads,
            d_head,
            d_ffn: size(gguf, &key("feed_forward_length"))?,
            n_vocab,
            context_length: size(gguf, &key("context_length"))?,
            norm: Norm { kind: NormKind::Rms, eps },
            positions: Positions::Rotary(rotary),
            attention: Attention {
                scale: 1.0 / (d_head as f32).sqrt(),
                softcap: None,
                windows: Vec::new(),
                has_qk_norm: architecture == QWEN3,
            },
            feed_forward: FeedForward { activation: Activation::Silu, is_gated: true },
            is_parallel: false,
            embedding_scale: 1.0,
            logit_softcap: None,
        };
        config.check(|name| {
            key(match name {
                "n_heads" => "attention.head_count",
                "n_kv_heads" => "attention.head_count_kv",
                "rope_base" => "rope.freq_base",
                _ => "attention.layer_norm_rms_epsilon",
            })
        })
    }
}

const QWEN3: &str = "qwen3";
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", QWEN3];

/// What each frequency is divided by, where the file says so: Llama 3.1's way to longer contexts, worked out.
fn divisors(gguf: &Gguf, d_head: usize) -> Result<Vec<f64>> {
    if gguf.info(DIVISORS).is_none() {
        return Ok(Vec::new());
    }
    let divisors = gguf.read(DIVISORS, &[d_head / 2])?;
    if let Some(at) = divisors.iter().position(|&divisor| divisor <= 0.0) {
        bail!("tensor {DIVISORS} holds {} at value {at}, expected positive numbers", divisors[at]);
    }
    Ok(divisors.into_iter().map(f64::from).collect())
}

/// Variants of the architecture that would run and be wrong.
fn refuse_variants(gguf: &Gguf, key: impl Fn(&str) -> String) -> Result<()> {
    let experts = key("expert_count");
    if let Some(n) = optional_integer(gguf, &experts)? {
        ensure!(n == 0, "{experts} = {n}: mixtures of experts are not supported");
    }
    match gguf.get(&key("rope.scaling.type")) {
        None => {}
        Some(Value::String(kind)) if kind == "none" => {}
        Some(value) => bail!("{} = {value:?} is not supported", key("rope.scaling.type")),
    }
    for key in [key("rope.scaling.factor"), key("rope.scale_linear")] {
        if let Some(factor) = optional_float(gguf, &key)? {
            ensure!(factor == 1.0, "{key} = {factor} is not supported");
        }
    }
    for name in [
        "attention.sliding_window",
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "attention.scale",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "logit_scale",
        "residual_scale",
        "embedding_scale",
        "rope.scaling.attn_factor",
    ] {
        ensure!(gguf.get(&key(name)).is_none(), "{} is not supported", key(name));
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
