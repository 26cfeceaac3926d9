//! `pretrain`: a small GPT on characters that the pipeline trains itself, as a language model that needs no download.

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::validate::{at_least, inside, not_negative, positive};
use super::{Pipeline, Products, Source};

/// The name that asks for it.
pub(super) const PRETRAINED: &str = "pretrained";

/// The model and its training. The defaults are the usual small GPT on characters: 10.7 million parameters, for a GPU, or
/// for a night on two cores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pretrain {
    pub n_layers: usize,
    pub n_heads: usize,
    /// Width of the residual stream; the feed-forward parts are four times as wide.
    pub d_model: usize,
    /// Tokens in a context, of training and of what the model can read at all.
    pub context_length: usize,
    /// Share of the embeddings, of the attention weights and of each part's output that a step of training drops.
    pub dropout: f64,
    /// Contexts in a step.
    pub batch_size: usize,
    pub n_steps: u64,
    /// AdamW's learning rate, after `warmup_steps` in which it rises in a line; it falls to `lr_min` as a cosine.
    pub lr: f64,
    pub lr_min: f64,
    pub warmup_steps: u64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    /// Of matrices; gains do not decay.
    pub weight_decay: f64,
    /// Largest L2 norm of the whole gradient; longer ones are scaled down.
    pub max_grad_norm: f64,
    /// Share of the texts, from their end, that is not trained on: what the validation loss is of.
    pub validation_fraction: f64,
    /// Steps between two measurements of the validation loss. The weights with the lowest one are published.
    pub eval_every: u64,
    /// Contexts, spread evenly over the validation texts, of a measurement during training. At the end all are measured.
    pub eval_contexts: usize,
    /// Steps between two checkpoints; 0 keeps none.
    pub checkpoint_every: u64,
    /// Steps between two rows of the curve.
    pub log_every: u64,
    /// What the operands of the layers' products are rounded to in training, on the CPU. With bf16 the gradients of weights are
    /// made in f32; validation losses always are.
    #[serde(skip_serializing_if = "Products::is_f32")]
    pub products: Products,
    pub sample: Sample,
}

/// What the trained model writes, in `pretrain/sample/samples.txt`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// 0: it writes nothing behind the prompt.
    pub n_tokens: usize,
    /// Logits are divided by this: below 1 the likely becomes likelier.
    pub temperature: f64,
    /// Only the so many likeliest tokens are drawn.
    pub top_k: usize,
    /// What it goes on from; its characters must occur in the texts. Unset: the end of a line, or of a word where the
    /// texts have no lines.
    pub prompt: Option<String>,
}

impl Default for Pretrain {
    fn default() -> Self {
        Self {
            n_layers: 6,
            n_heads: 6,
            d_model: 384,
            context_length: 256,
            dropout: 0.2,
            batch_size: 64,
            n_steps: 5000,
            lr: 1e-3,
            lr_min: 1e-4,
            warmup_steps: 100,
            adam_beta1: 0.9,
            adam_beta2: 0.99,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            validation_fraction: 0.1,
            eval_every: 250,
            eval_contexts: 512,
            checkpoint_every: 250,
            log_every: 10,
            products: Products::F32,
            sample: Sample::default(),
        }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self { n_tokens: 1000, temperature: 0.8, top_k: 200, prompt: None }
    }
}

impl Pipeline {
    /// How the model is trained, where the pipeline trains it.
    pub fn pretrained(&self) -> Option<Pretrain> {
        let model = self.source.model.as_ref().filter(|model| model.name == PRETRAINED);
        model.map(|_| self.pretrain.clone().unwrap_or_default())
    }

    pub(super) fn validate_pretrain(&self) -> Result<()> {
        let Some(pretrain) = self.pretrained() else {
            ensure!(
                self.pretrain.is_none(),
                "pretrain has no meaning with {}: set source.model.name: {PRETRAINED}, or leave it out",
                told(&self.source)
            );
            return Ok(());
        };
        if let Some(model) = &self.source.model {
            ensure!(model.revision.is_none(), "source.model.revision has no meaning with name: {PRETRAINED}");
        }
        pretrain.validate()?;
        ensure!(
            self.harvest.context_length <= pretrain.context_length,
            "harvest.context_length = {} exceeds pretrain.context_length = {}",
            self.harvest.context_length,
            pretrain.context_length
        );
        // Better said before the model is trained than by the harvest behind it.
        for hook in [&self.harvest.hook].into_iter().chain(&self.harvest.also) {
            let block = hook.split('.').nth(1).and_then(|block| block.parse::<usize>().ok());
            ensure!(
                block.is_none_or(|block| block < pretrain.n_layers),
                "harvest reads {hook}, but pretrain.n_layers = {}: blocks are counted from 0",
                pretrain.n_layers
            );
        }
        Ok(())
    }
}

fn told(source: &Source) -> String {
    match &source.model {
        Some(model) => format!("source.model.name = {}", model.name),
        None => "a source that is no model".into(),
    }
}

/// A machine that has more trains no small model.
const MOST_GIB: f64 = 64.0;

impl Pretrain {
    /// What training holds on the CPU: weights, moments and the best weights, gradients of each of eight shards, and what
    /// each shard keeps of a pass, of 512 tokens or one context.
    fn memory_gib(&self) -> f64 {
        let [layers, heads, d, length] =
            [self.n_layers, self.n_heads, self.d_model, self.context_length].map(|n| n as f64);
        let parameters = 12.0 * layers * d * d + (256.0 + length) * d;
        let tokens = length.max(512.0);
        let kept = layers * tokens * (14.0 * d + heads * length);
        4.0 * (4.0 * parameters + 8.0 * (parameters + kept)) / f64::from(1u32 << 30)
    }

    fn validate(&self) -> Result<()> {
        at_least("pretrain.n_layers", self.n_layers, 1)?;
        at_least("pretrain.n_heads", self.n_heads, 1)?;
        at_least("pretrain.d_model", self.d_model, 2)?;
        ensure!(
            self.d_model.is_multiple_of(self.n_heads),
            "pretrain.d_model = {} does not divide into n_heads = {}",
            self.d_model,
            self.n_heads
        );
        // Far beyond what is small, and no size of a tensor overflows.
        for (key, value, most) in [
            ("n_layers", self.n_layers, 1000),
            ("d_model", self.d_model, 1 << 14),
            ("context_length", self.context_length, 1 << 14),
            ("batch_size", self.batch_size, 1 << 16),
        ] {
            ensure!(value <= most, "pretrain.{key} = {value} exceeds {most}");
        }
        at_least("pretrain.context_length", self.context_length, 2)?;
        let gib = self.memory_gib();
        ensure!(
            gib <= MOST_GIB,
            "pretrain: this training takes about {gib:.0} GiB of memory, and at most {MOST_GIB} are allowed: lower n_layers, \
             d_model or context_length"
        );
        at_least("pretrain.batch_size", self.batch_size, 1)?;
        ensure!((0.0..1.0).contains(&self.dropout), "pretrain.dropout = {} must lie in [0, 1)", self.dropout);
        ensure!(self.n_steps >= 1, "pretrain.n_steps = 0 must be at least 1");
        positive("pretrain.lr", self.lr)?;
        not_negative("pretrain.lr_min", self.lr_min)?;
        ensure!(self.lr_min <= self.lr, "pretrain.lr_min = {} exceeds lr = {}", self.lr_min, self.lr);
        ensure!(
            self.warmup_steps < self.n_steps,
            "pretrain.warmup_steps = {} leaves none of n_steps = {}",
            self.warmup_steps,
            self.n_steps
        );
        for (key, value) in
            [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2), ("dropout", self.dropout)]
        {
            // Training computes in f32.
            ensure!((value as f32) < 1.0, "pretrain.{key} = {value} is 1 when it is rounded to 32 bits");
        }
        inside("pretrain.adam_beta1", self.adam_beta1, 0.0, 1.0)?;
        inside("pretrain.adam_beta2", self.adam_beta2, 0.0, 1.0)?;
        not_negative("pretrain.weight_decay", self.weight_decay)?;
        positive("pretrain.max_grad_norm", self.max_grad_norm)?;
        inside("pretrain.validation_fraction", self.validation_fraction, 0.0, 1.0)?;
        ensure!(self.eval_every >= 1, "pretrain.eval_every = 0 must be at least 1");
        at_least("pretrain.eval_contexts", self.eval_contexts, 1)?;
        ensure!(self.log_every >= 1, "pretrain.log_every = 0 must be at least 1");
        positive("pretrain.sample.temperature", self.sample.temperature)?;
        at_least("pretrain.sample.top_k", self.sample.top_k, 1)?;
        ensure!(self.sample.prompt.as_deref() != Some(""), "pretrain.sample.prompt is empty: leave it out");
        Ok(())
    }
}
