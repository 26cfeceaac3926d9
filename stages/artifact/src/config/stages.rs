//! One section for each stage after `source`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Sae;

/// Text to activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Harvest {
    /// `blocks.N.hook_resid_pre`, `hook_resid_post`, `hook_mlp_out` or `hook_attn_out`.
    pub hook: String,
    /// More hooks, read in the same pass: each makes the dataset that it would make as `hook`, in a run `RUN@HOOK` beside
    /// this one, with a pipeline for the stages that follow (`make hooks`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Tokens in a context, its leading separator included.
    pub context_length: usize,
    /// Contexts in one forward pass. It changes the speed, not the result.
    pub batch_contexts: usize,
    /// What the operands of the model's matrix products are rounded to. All else is f32.
    #[serde(skip_serializing_if = "Products::is_f32")]
    pub products: Products,
    /// Share of documents kept for evaluation.
    pub heldout_fraction: f64,
    /// Rows whose norm is more than this many times the median are left out: attention sinks beyond position 0, of which a
    /// few are most of the variance. `null` keeps them. dictionary_learning's `max_activation_norm_multiple`.
    pub max_norm_multiple: Option<f64>,
    /// How activations are stored.
    pub dtype: ActivationDtype,
    /// Rows in one Parquet part.
    pub rows_per_part: usize,
}

/// What the operands of a model's matrix products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// No rounding.
    #[default]
    F32,
    /// 8 bits of mantissa. Where the processor has AVX-512 BF16 weights take half the memory, and products are faster if it
    /// has it at twice the speed of f32, as AMD's have.
    Bf16,
    /// Integers of 8 bits with a scale for every 192 values, after a rotation. Fast where the processor has AVX-512 VNNI, and
    /// slow elsewhere; weights take a quarter of the memory.
    Int8,
}

impl Products {
    pub(super) fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// As it stands in a pipeline file.
impl std::str::FromStr for Products {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            other => anyhow::bail!("{other}: expected f32, bf16 or int8"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActivationDtype {
    #[default]
    F16,
    F32,
}

impl ActivationDtype {
    /// Of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Activations to SAEs. What all SAEs share; what differs stands in `saes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Tokens in a step.
    pub batch_size: usize,
    /// Tokens each SAE sees; more than were harvested means several epochs, each in a new order.
    pub n_tokens: u64,
    /// Adam's learning rate.
    pub lr: f64,
    /// Share of training over which the learning rate rises from zero.
    pub lr_warmup: f64,
    /// Share of training over which it falls to zero, at the end.
    pub lr_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    /// Largest L2 norm of the whole gradient; longer ones are scaled down.
    pub max_grad_norm: f64,
    /// Steps between two checkpoints; 0 keeps none.
    pub checkpoint_every: u64,
    /// Steps between two rows of the curve.
    pub log_every: u64,
    /// MiB that training activations may take in memory. A train split that fits (rows × d_model × bytes of
    /// `harvest.dtype`) is kept whole and shuffled exactly, and the number then changes nothing. One that does not is read
    /// again every epoch, in windows of half as much: row groups in random order, the rows of a window shuffled. What
    /// is learnt then depends on this number.
    pub resident_mb: u64,
    /// SAEs of the same seed that train at once, on one pass over the data; all of them are in memory. It changes the
    /// speed, not the result. Unset: 8 where rows are drawn (`source.synthetic` without `n_train`); else 1 where the split
    /// is in memory, where sharing a pass saves little, 1 on a GPU, whose memory is short, and otherwise 8.
    pub together: Option<usize>,
    /// On a GPU: what the operands of the encoder's product are rounded to. It decides which latents are active where two
    /// come close; sums, and the values of what is active, are f32 in any case. The CPU selects as f32 does, always.
    pub gpu_precision: GpuPrecision,
    /// Every SAE without a `seed` of its own is trained once for each of these, in folders `train/NAME-s0` and so on. Equal
    /// seeds see equal batches, so that SAEs can be compared seed by seed. Unset: once, with the pipeline's seed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Every SAE without a `k` of its own is trained once for each of these, in folders `train/NAME-k15` and so on, or
    /// `train/NAME-k15-s0`. Unset: once, with k = 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ks: Vec<usize>,
    pub saes: Vec<Sae>,
    /// For each SAE, its number in the file; set by the reader, and empty where they are the same.
    #[serde(skip)]
    pub places: Vec<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GpuPrecision {
    /// No rounding, and no tensor cores.
    F32,
    /// 10 bits of mantissa; compute capability 8.0 or newer.
    #[default]
    Tf32,
    /// 7 bits of mantissa.
    Bf16,
}

/// Feature recovery and the tree's edges, on the held-out split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recover {
    /// Bootstrap resamples, over documents. 0: no intervals.
    pub n_bootstrap: usize,
    /// Circular shifts within documents that make the null of an edge's mutual information. 0: no nulls, and no look at
    /// planted independent pairs.
    pub n_shifts: usize,
    /// An edge needs (P(parent|child) − P(parent)) / (1 − P(parent)) above this.
    pub min_excess: f64,
    /// An edge needs its child to fire this often on the half that chooses edges.
    pub min_firings: u64,
    /// A true feature and a latent count as matched above this cosine, and so do latents of SAEs that differ in their seed.
    pub match_cosine: f64,
    /// Where WordNet's glosses are among the texts: a synset is a class that latents may detect if at least so many of the
    /// harvested glosses are its own or of what stands below it. 0: trees are not held against WordNet's.
    pub wordnet_min_glosses: usize,
}

/// What the latents are good for downstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    pub tasks: Vec<ProbeTask>,
    /// Latents a probe may look at.
    pub ks: Vec<usize>,
    /// Labelled texts per task, half of them for testing.
    pub n_examples: usize,
    /// Classes kept of the WordNet lexicographer files, the most frequent first.
    pub n_classes: usize,
    pub n_bootstrap: usize,
    /// Cross-entropy when the SAE's reconstruction replaces the activation. None leaves it out.
    pub splice: Option<Splice>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeTask {
    /// WordNet gloss to lexicographer class, split by synset.
    WordnetClass,
    /// VADER's movie sentences to positive or negative, split by review.
    MovieSentiment,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Splice {
    /// Held-out contexts to read.
    pub n_contexts: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    pub title: String,
    /// The family of SAEs, by its name, from which the comparison's differences are taken. Where runs beside this one have
    /// a family of that name too, `RUN/NAME` tells which; by its bare name, a family's differences are from the one in its
    /// own run, or else from the first that shares a seed with it. Unset: no differences.
    pub reference: Option<String>,
    /// Other runs to compare with: folders, each with the `train` and `recover` of a finished run. Relative paths start, as
    /// all in this file but `extends`, in the folder in which the stage is started: with make, that of the Makefile. With
    /// runs beside it a pipeline may have no source and no SAEs, and its report is the comparison alone.
    pub beside: Vec<PathBuf>,
    /// Leave out runs of `beside` that have not been made yet, and name them in the report. false: they are an error.
    pub skip_missing: bool,
}

impl Default for Harvest {
    fn default() -> Self {
        Self {
            hook: "blocks.15.hook_resid_post".into(),
            also: Vec::new(),
            products: Products::F32,
            context_length: 128,
            batch_contexts: 16,
            heldout_fraction: 0.15,
            max_norm_multiple: Some(10.0),
            dtype: ActivationDtype::F16,
            rows_per_part: 65_536,
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            batch_size: 4096,
            n_tokens: 4_000_000,
            lr: 1e-3,
            lr_warmup: 0.05,
            lr_decay: 0.3,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            max_grad_norm: 1.0,
            checkpoint_every: 200,
            log_every: 20,
            resident_mb: 4096,
            together: None,
            gpu_precision: GpuPrecision::default(),
            seeds: Vec::new(),
            ks: Vec::new(),
            saes: Vec::new(),
            places: Vec::new(),
        }
    }
}

impl Default for Recover {
    fn default() -> Self {
        Self {
            n_bootstrap: 200,
            n_shifts: 20,
            min_excess: 0.5,
            min_firings: 20,
            match_cosine: 0.5,
            wordnet_min_glosses: 20,
        }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            tasks: vec![ProbeTask::WordnetClass, ProbeTask::MovieSentiment],
            ks: vec![1, 2, 5, 20],
            n_examples: 2000,
            n_classes: 6,
            n_bootstrap: 1000,
            splice: Some(Splice::default()),
        }
    }
}

impl Default for Splice {
    fn default() -> Self {
        Self { n_contexts: 64 }
    }
}

impl Default for Report {
    fn default() -> Self {
        Self { title: "HierSAE".into(), reference: None, beside: Vec::new(), skip_missing: false }
    }
}
