//! A model described by a `config.json` in Hugging Face format, as `transformers` writes it or older versions of it did.
//!
//! Every key of the file is either read, or known to change nothing here, or refused by its name.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{Activation, Attention, FeedForward, MAX_SIZE, ModelConfig, Norm, NormKind, Positions, Rotary, Stretch};

/// More blocks than any model has.
const MAX_LAYERS: usize = 4096;

/// Models whose weights have the same names and arrangement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    GptNeox,
    Gpt2,
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
}

/// What a folder's `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Described {
    pub(crate) family: Family,
    pub(crate) config: ModelConfig,
    /// The unembedding is the embedding.
    pub(crate) is_tied: bool,
    /// The token that begins a text, or else the first of those that end one.
    pub(crate) separator: Option<u32>,
}

/// What says nothing about a forward pass: training, generation, other software, and how the file came about.
const WITHOUT_MEANING: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "begin_suppress_tokens",
    "cache_implementation",
    "classifier_dropout",
    "do_sample",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "max_length",
    "max_window_layers",
    "model_type",
    "n_special",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "predict_special_tokens",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "resid_pdrop",
    "return_dict",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

impl Described {
    /// Errors name the key; the caller names the file.
    pub(crate) fn read(text: &[u8]) -> Result<Self> {
        let json: Value = serde_json::from_slice(text).context("not readable as JSON")?;
        let Value::Object(map) = &json else { bail!("expected an object of keys") };
        let keys = Keys { map, used: RefCell::default() };
        let model_type = keys.text("model_type")?.context("model_type is missing: it says which family this is")?;
        let described = match model_type {
            "gpt_neox" => gpt_neox(&keys),
            "gpt2" => gpt2(&keys),
            "llama" => llama(&keys, Family::Llama),
            "qwen2" => llama(&keys, Family::Qwen2),
            "qwen3" => llama(&keys, Family::Qwen3),
            "gemma2" => gemma2(&keys),
            other => {
                bail!("model_type = {other:?} is not supported, only gpt_neox, gpt2, llama, qwen2, qwen3 and gemma2")
            }
        }?;
        keys.refuse_unknown()?;
        Ok(described)
    }
}

fn gpt_neox(keys: &Keys<'_>) -> Result<Described> {
    let d_model = keys.size("hidden_size")?;
    let n_heads = keys.size("num_attention_heads")?;
    let d_head = divided(d_model, n_heads)?;
    let n_layers = keys.layers("num_hidden_layers")?;
    keys.must_be("attention_bias", true)?;
    let pct = keys.float("rotary_pct")?;
    let base = keys.float("rotary_emb_base")?;
    let config = ModelConfig {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_ffn: keys.size("intermediate_size")?,
        n_vocab: keys.size("vocab_size")?,
        context_length: keys.size("max_position_embeddings")?,
        norm: Norm { kind: NormKind::Layer, eps: keys.eps("layer_norm_eps", 1e-5)? },
        positions: keys.rotary(d_head, base, Some(pct.unwrap_or(0.25)))?,
        attention: attention(d_head, Vec::new()),
        feed_forward: FeedForward { activation: keys.activation("hidden_act", "gelu")?, is_gated: false },
        is_parallel: keys.flag("use_parallel_residual")?.unwrap_or(true),
        embedding_scale: 1.0,
        logit_softcap: None,
    };
    keys.describe(Family::GptNeox, config, false)
}

fn gpt2(keys: &Keys<'_>) -> Result<Described> {
    let d_model = keys.size("n_embd")?;
    let n_heads = keys.size("n_head")?;
    let d_head = divided(d_model, n_heads)?;
    let n_layers = keys.layers("n_layer")?;
    keys.must_be("scale_attn_weights", true)?;
    keys.must_be("scale_attn_by_inverse_layer_idx", false)?;
    // It changes the order of sums, and nothing else.
    keys.flag("reorder_and_upcast_attn")?;
    keys.must_be("add_cross_attention", false)?;
    let context_length = keys.size("n_positions")?;
    if let Some(n_ctx) = keys.optional_size("n_ctx")? {
        ensure!(n_ctx == context_length, "n_ctx = {n_ctx} differs from n_positions = {context_length}");
    }
    let config = ModelConfig {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_ffn: keys.optional_size("n_inner")?.unwrap_or(4 * d_model),
        n_vocab: keys.size("vocab_size")?,
        context_length,
        norm: Norm { kind: NormKind::Layer, eps: keys.eps("layer_norm_epsilon", 1e-5)? },
        positions: Positions::Learned,
        attention: attention(d_head, Vec::new()),
        feed_forward: FeedForward { activation: keys.activation("activation_function", "gelu_new")?, is_gated: false },
        is_parallel: false,
        embedding_scale: 1.0,
        logit_softcap: None,
    };
    keys.describe(Family::Gpt2, config, true)
}

/// Llama, and what differs from it in biases and norms alone.
fn llama(keys: &Keys<'_>, family: Family) -> Result<Described> {
    keys.flag("mlp_bias")?;
    keys.must_be("rope_interleaved", false)?;
    keys.must_be("use_mrope", false)?;
    let is_sliding = keys.flag("use_sliding_window")?.unwrap_or(false);
    let window = keys.optional_size("sliding_window")?.filter(|_| is_sliding);
    ensure!(window.is_none(), "use_sliding_window = true is not supported for this family");
    let d_head = (family == Family::Qwen3).then_some(128);
    let mut config = like_llama(keys, d_head, None, ("hidden_act", "silu"))?;
    config.attention.has_qk_norm = family == Family::Qwen3;
    keys.describe(family, config, false)
}

fn gemma2(keys: &Keys<'_>) -> Result<Described> {
    keys.must_be("use_bidirectional_attention", false)?;
    let window = keys.optional_size("sliding_window")?;
    if let Some(size) = keys.optional_size("sliding_window_size")? {
        ensure!(window == Some(size), "sliding_window_size = {size} differs from sliding_window");
    }
    let scalar = keys.float("query_pre_attn_scalar")?.unwrap_or(256.0);
    ensure!(scalar.is_finite() && scalar > 0.0, "query_pre_attn_scalar = {scalar} must be a positive number");
    // Older files have both; the second is what counts.
    let name = if keys.map.contains_key("hidden_activation") { "hidden_activation" } else { "hidden_act" };
    keys.use_key("hidden_act");
    let mut config = like_llama(keys, Some(256), window, (name, "gelu_pytorch_tanh"))?;
    config.attention.scale = (1.0 / scalar.sqrt()) as f32;
    config.attention.softcap = keys.cap("attn_logit_softcapping", 50.0)?;
    config.embedding_scale = (config.d_model as f64).sqrt() as f32;
    config.logit_softcap = keys.cap("final_logit_softcapping", 30.0)?;
    keys.describe(Family::Gemma2, config, true)
}

/// What Llama and all that came of it have alike. `d_head` is a head's width where the file does not say it; unset: the heads
/// share the stream's. `window` is what every other block sees, from the first on, where `layer_types` does not say which.
fn like_llama(
    keys: &Keys<'_>,
    d_head: Option<usize>,
    window: Option<usize>,
    (activation, default): (&str, &str),
) -> Result<ModelConfig> {
    let d_model = keys.size("hidden_size")?;
    let n_heads = keys.size("num_attention_heads")?;
    let d_head = match keys.optional_size("head_dim")?.or(d_head) {
        Some(d_head) => d_head,
        None => divided(d_model, n_heads)?,
    };
    let n_layers = keys.layers("num_hidden_layers")?;
    // Biases that are there are read, whatever this says.
    keys.flag("attention_bias")?;
    Ok(ModelConfig {
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: keys.optional_size("num_key_value_heads")?.unwrap_or(n_heads),
        d_head,
        d_ffn: keys.size("intermediate_size")?,
        n_vocab: keys.size("vocab_size")?,
        context_length: keys.size("max_position_embeddings")?,
        norm: Norm { kind: NormKind::Rms, eps: keys.eps("rms_norm_eps", 1e-6)? },
        positions: keys.rotary(d_head, None, None)?,
        attention: attention(d_head, keys.windows(n_layers, window)?),
        feed_forward: FeedForward { activation: keys.activation(activation, default)?, is_gated: true },
        is_parallel: false,
        embedding_scale: 1.0,
        logit_softcap: None,
    })
}

fn attention(d_head: usize, windows: Vec<Option<usize>>) -> Attention {
    Attention { scale: 1.0 / (d_head as f32).sqrt(), softcap: None, windows, has_qk_norm: false }
}

fn divided(d_model: usize, n_heads: usize) -> Result<usize> {
    ensure!(d_model.is_multiple_of(n_heads), "a width of {d_model} does not divide into {n_heads} heads");
    Ok(d_model / n_heads)
}

/// The keys of a file, and which of them were asked for. A key that is null is one that is not there.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn use_key(&self, key: &str) {
        self.used.borrow_mut().insert(key.to_owned());
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.use_key(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_SIZE).contains(n));
        size.map(Some).with_context(|| format!("{key} = {value}, expected a whole number from 1 to {MAX_SIZE}"))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.with_context(|| format!("{key} is missing"))
    }

    fn layers(&self, key: &str) -> Result<usize> {
        let n = self.size(key)?;
        ensure!(n <= MAX_LAYERS, "{key} = {n} exceeds {MAX_LAYERS}");
        Ok(n)
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).with_context(|| format!("{key} = {value}, expected a number"))
    }

    fn eps(&self, key: &str, default: f64) -> Result<f32> {
        Ok(self.float(key)?.unwrap_or(default) as f32)
    }

    /// A bound that is switched off by null, and is `default` where the key is not there at all.
    fn cap(&self, key: &str, default: f32) -> Result<Option<f32>> {
        if !self.map.contains_key(key) {
            return Ok(Some(default));
        }
        Ok(self.float(key)?.map(|cap| cap as f32))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).with_context(|| format!("{key} = {value}, expected true or false"))
    }

    /// What is the default of these, and the only one that is supported.
    fn must_be(&self, key: &str, expected: bool) -> Result<()> {
        match self.flag(key)? {
            Some(found) if found != expected => bail!("{key} = {found} is not supported"),
            _ => Ok(()),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).with_context(|| format!("{key} = {value}, expected a text"))
    }

    fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        Ok(match self.text(key)?.unwrap_or(default) {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            other => bail!("{key} = {other:?} is not supported, only silu, gelu, gelu_new and gelu_pytorch_tanh"),
        })
    }

    /// The rotary embedding, as `rope_parameters` have it or the older keys `rope_theta` and `rope_scaling`.
    /// `base` and `share` are what the family's own keys say.
    fn rotary(&self, d_head: usize, base: Option<f64>, share: Option<f64>) -> Result<Positions> {
        let old_base = self.float("rope_theta")?;
        let new = self.object("rope_parameters")?;
        let old = self.object("rope_scaling")?;
        let (name, map) = match (new, old) {
            (Some(_), Some(_)) => bail!("rope_parameters and rope_scaling are both given: leave one out"),
            (Some(new), None) => ("rope_parameters", Some(new)),
            (None, old) => ("rope_scaling", old),
        };
        let inner = map.map(|map| Keys { map, used: RefCell::default() });
        let of = |key: &str| match &inner {
            Some(keys) => keys.float(key).with_context(|| name.to_owned()),
            None => Ok(None),
        };
        let base = of("rope_theta")?.or(old_base).or(base).unwrap_or(10_000.0);
        let share = of("partial_rotary_factor")?.or(self.float("partial_rotary_factor")?).or(share).unwrap_or(1.0);
        ensure!((0.0..=1.0).contains(&share), "a rotary share of {share} must lie between 0 and 1");
        let mut rotary = Rotary {
            base,
            n_rotary: (d_head as f64 * share) as usize,
            factor: 1.0,
            stretch: None,
            divisors: Vec::new(),
        };
        if let Some(keys) = &inner {
            let kind = keys.text("rope_type")?.or(keys.text("type")?).unwrap_or("default");
            let positive = |key: &str| -> Result<f64> {
                let value = keys.float(key)?.with_context(|| format!("{name}.{key} is missing"))?;
                ensure!(value.is_finite() && value > 0.0, "{name}.{key} = {value} must be a positive number");
                Ok(value)
            };
            match kind {
                "default" => {}
                "linear" => rotary.factor = positive("factor")?,
                "llama3" => {
                    let stretch = Stretch {
                        factor: positive("factor")?,
                        low: positive("low_freq_factor")?,
                        high: positive("high_freq_factor")?,
                        original_context: positive("original_max_position_embeddings")?,
                    };
                    ensure!(stretch.low < stretch.high, "{name}.low_freq_factor must lie below high_freq_factor");
                    rotary.stretch = Some(stretch);
                }
                other => bail!("{name}.rope_type = {other:?} is not supported, only default, linear and llama3"),
            }
            keys.refuse_unknown().with_context(|| name.to_owned())?;
        }
        Ok(Positions::Rotary(rotary))
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_object().map(Some).with_context(|| format!("{key} = {value}, expected an object"))
    }

    /// How far each block sees: by `layer_types` where the file has them, or else every other one `window` alone.
    fn windows(&self, n_layers: usize, window: Option<usize>) -> Result<Vec<Option<usize>>> {
        let Some(types) = self.get("layer_types") else {
            return Ok((0..n_layers).map(|block| window.filter(|_| block % 2 == 0)).collect());
        };
        let types = types.as_array().context("layer_types: expected a list")?;
        ensure!(types.len() == n_layers, "layer_types has {} entries for {n_layers} blocks", types.len());
        let of = |(block, kind): (usize, &Value)| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") if window.is_some() => Ok(window),
            _ => bail!("layer_types[{block}] = {kind} is not supported here"),
        };
        types.iter().enumerate().map(of).collect()
    }

    fn describe(&self, family: Family, config: ModelConfig, is_tied: bool) -> Result<Described> {
        let config = config.check(|name| match (name, family) {
            ("n_heads", Family::Gpt2) => "n_head".to_owned(),
            ("n_heads", _) => "num_attention_heads".to_owned(),
            ("n_kv_heads", _) => "num_key_value_heads".to_owned(),
            ("rope_base", _) => "rope_theta".to_owned(),
            ("attention_softcap", _) => "attn_logit_softcapping".to_owned(),
            ("logit_softcap", _) => "final_logit_softcapping".to_owned(),
            (_, Family::GptNeox) => "layer_norm_eps".to_owned(),
            (_, Family::Gpt2) => "layer_norm_epsilon".to_owned(),
            _ => "rms_norm_eps".to_owned(),
        })?;
        let is_tied = self.flag("tie_word_embeddings")?.unwrap_or(is_tied);
        let begin = self.token("bos_token_id")?;
        let end = self.token("eos_token_id")?;
        let separator = begin.or(end);
        if let Some(id) = separator {
            ensure!((id as usize) < config.n_vocab, "token {id} begins texts, and vocab_size is {}", config.n_vocab);
        }
        Ok(Described { family, config, is_tied, separator })
    }

    /// A token's number, or the first of a list.
    fn token(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let first = value.as_array().map_or(Some(value), |list| list.first());
        let id = first.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        id.map(Some).with_context(|| format!("{key} = {value}, expected a token's number"))
    }

    fn refuse_unknown(&self) -> Result<()> {
        let used = self.used.borrow();
        let is_known = |key: &&String| used.contains(*key) || WITHOUT_MEANING.contains(&key.as_str());
        match self.map.iter().find(|(key, value)| !is_known(key) && !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => bail!(
                "{key} = {value} is not known here, and may change what the model computes; if it does not, take it out of a \
                 copy of the folder"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Described {
        Described::read(text.as_bytes()).unwrap()
    }

    fn error_of(text: &str) -> String {
        format!("{:#}", Described::read(text.as_bytes()).unwrap_err())
    }

    /// As the hub has it.
    const PYTHIA_70M: &str = r#"{
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304}"#;

    #[test]
    fn pythia_is_read_as_published() {
        let found = read(PYTHIA_70M);
        assert_eq!((found.family, found.is_tied, found.separator), (Family::GptNeox, false, Some(0)));
        let config = found.config;
        assert_eq!((config.d_model, config.n_layers, config.n_heads, config.d_head), (512, 6, 8, 64));
        assert_eq!((config.d_ffn, config.n_vocab, config.context_length), (2048, 50_304, 2048));
        assert_eq!(
            config.positions,
            Positions::Rotary(Rotary {
                base: 10_000.0,
                n_rotary: 16,
                factor: 1.0,
                stretch: None,
                divisors: Vec::new()
            })
        );
        assert!(config.is_parallel && config.feed_forward.activation == Activation::Gelu);
        assert_eq!(config.norm, Norm { kind: NormKind::Layer, eps: 1e-5 });
    }

    #[test]
    fn newer_files_say_the_same_in_other_keys() {
        let newer = PYTHIA_70M.replace(
            r#""rotary_emb_base": 10000, "rotary_pct": 0.25"#,
            r#""rope_parameters": {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 0.25}"#,
        );
        assert_eq!(read(&newer), read(PYTHIA_70M));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        let with = |key: &str, value: &str| PYTHIA_70M.replacen('{', &format!("{{\"{key}\": {value}, "), 1);
        for (key, value, expected) in [
            ("quantization_config", r#"{"bits": 4}"#, "quantization_config = "),
            ("attention_bias", "false", "attention_bias = false is not supported"),
            (
                "rope_scaling",
                r#"{"type": "yarn", "factor": 4.0}"#,
                r#"rope_scaling.rope_type = "yarn" is not supported"#,
            ),
            (
                "rope_scaling",
                r#"{"type": "linear", "factor": -1}"#,
                "rope_scaling.factor = -1 must be a positive number",
            ),
            ("rope_scaling", r#"{"type": "default", "odd": 1}"#, "rope_scaling: odd = 1 is not known"),
        ] {
            let error = error_of(&with(key, value));
            assert!(error.contains(expected), "{error}");
        }
        let changed = |from: &str, to: &str| error_of(&PYTHIA_70M.replace(from, to));
        assert!(
            changed(r#""hidden_act": "gelu""#, r#""hidden_act": "relu""#).contains(r#"hidden_act = "relu" is not"#)
        );
        assert!(changed(r#""hidden_size": 512"#, r#""hidden_size": 0"#).contains("hidden_size = 0, expected"));
        assert!(changed(r#""hidden_size": 512"#, r#""hidden_size": 9e99"#).contains("hidden_size = 9e+99, expected"));
        assert!(changed(r#""hidden_size": 512"#, r#""hidden_size": 513"#).contains("does not divide into 8 heads"));
        assert!(changed(r#""num_hidden_layers": 6,"#, "").contains("num_hidden_layers is missing"));
        assert!(changed("gpt_neox", "bert").contains("model_type = \"bert\" is not supported"));
        assert!(changed(r#""bos_token_id": 0"#, r#""bos_token_id": 60000"#).contains("token 60000 begins texts"));
        assert!(error_of("[1]").contains("expected an object") && error_of("{").contains("JSON"));
    }

    /// Keys of files on the hub, as far as they differ from what transformers 5 writes.
    #[test]
    fn published_files_are_read() {
        let llama = |rest: &str| {
            format!(
                r#"{{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.02, "intermediate_size": 1536,
                "max_position_embeddings": 2048, "num_attention_heads": 9, "num_hidden_layers": 30,
                "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
                "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152, {rest}}}"#
            )
        };
        let read_llama = |rest: &str| read(&llama(rest));
        let smollm2 = read_llama(
            r#""model_type": "llama", "bos_token_id": 0, "eos_token_id": 0, "is_llama_config": true, "pretraining_tp": 1,
            "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000"#,
        );
        assert_eq!((smollm2.config.d_head, smollm2.is_tied), (64, true));
        let qwen = read_llama(
            r#""model_type": "qwen2", "bos_token_id": 151, "eos_token_id": 151, "max_window_layers": 24,
            "rope_theta": 1000000.0, "sliding_window": 32768, "use_mrope": false, "use_sliding_window": false"#,
        );
        assert_eq!(qwen.separator, Some(151));
        let mirrored = read_llama(
            r#""model_type": "llama", "pad_token_id": 1, "unsloth_fixed": true, "unsloth_version": "2025.1",
            "head_dim": 64, "mlp_bias": false"#,
        );
        assert_eq!(mirrored.separator, None);
        let gpt2 = read(
            r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48,
            "n_positions": 1024, "output_past": true, "resid_pdrop": 0.1, "summary_activation": null,
            "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
            "summary_use_proj": true, "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
            "vocab_size": 50257}"#,
        );
        assert_eq!((gpt2.config.d_ffn, gpt2.config.d_head, gpt2.is_tied), (6400, 64, true));
        assert_eq!(gpt2.config.feed_forward.activation, Activation::GeluTanh);
        let gemma = read(
            r#"{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
            "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
            "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
            "sliding_window_size": 4096, "torch_dtype": "float32", "transformers_version": "4.42.0", "use_cache": true,
            "vocab_size": 256000}"#,
        );
        assert_eq!((gemma.config.attention.window(0), gemma.config.attention.window(1)), (Some(4096), None));
        assert_eq!(gemma.config.attention.scale, 0.0625);
    }

    #[test]
    fn gemma_alternates_and_llama_3_stretches() {
        let gemma = read(
            r#"{"model_type": "gemma2", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "num_hidden_layers": 3, "intermediate_size": 64, "vocab_size": 100, "sliding_window": 8,
            "max_position_embeddings": 64, "query_pre_attn_scalar": 16, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": null, "rope_theta": 10000.0}"#,
        );
        assert_eq!(gemma.config.attention.windows, [Some(8), None, Some(8)]);
        assert_eq!((gemma.config.attention.softcap, gemma.config.logit_softcap), (Some(50.0), None));
        assert!(gemma.is_tied && (gemma.config.embedding_scale - 32f32.sqrt()).abs() <= 1e-6);
        let llama = read(
            r#"{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1,
            "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64, "eos_token_id": [7, 8],
            "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16, "rope_type": "llama3"}}"#,
        );
        let Positions::Rotary(rotary) = llama.config.positions else { panic!("it turns") };
        let stretch = Stretch { factor: 8.0, low: 1.0, high: 4.0, original_context: 16.0 };
        assert_eq!((rotary.base, rotary.stretch), (500_000.0, Some(stretch)));
        assert_eq!((llama.separator, llama.config.n_kv_heads, llama.is_tied), (Some(7), 4, false));
    }
}
