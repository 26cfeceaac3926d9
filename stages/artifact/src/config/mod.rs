//! `pipeline.yaml`, typed: one section per stage, every key with a default, no unknown key accepted.
//!
//! A stage's manifest keeps its section whole, so these structs are also what decides whether a stage is up to date.

mod expand;
mod load;
mod pretrain;
mod sae;
mod source;
mod stages;
mod synthetic;
mod tree_sae;
mod validate;

pub use load::{json_schema, load};
pub use pretrain::{Pretrain, Sample};
pub use sae::*;
pub use source::{Activations, ModelSource, Source, Text, TextSource};
pub use stages::{ActivationDtype, GpuPrecision, Harvest, Probe, ProbeTask, Products, Recover, Report, Splice, Train};
pub use synthetic::{Preset, Probabilities, Recipe, Synthetic};
pub use tree_sae::TreeSae;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The whole of `pipeline.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pipeline {
    /// Another pipeline file, relative to this one, on which this one is laid: maps are merged key by key, lists and single
    /// values replaced. A null here takes back what that file says, so that the key has its default; but where null is a
    /// value of its own, as of `probe.splice`, it is that value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extends: Option<PathBuf>,
    /// Every random stream is ChaCha keyed by this seed, the stage, the shard and the step.
    pub seed: u64,
    /// Where SAEs are trained. `auto` takes CUDA when it was compiled in and a GPU answers, else the CPU. All else runs on
    /// the CPU.
    pub device: DeviceChoice,
    /// Where activations come from: exactly one of `model`, `synthetic`, `activations`.
    pub source: Source,
    /// Only with `source.model.name: pretrained`: the language model is trained here, on the texts that it then reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretrain: Option<Pretrain>,
    pub harvest: Harvest,
    pub train: Train,
    pub recover: Recover,
    pub probe: Probe,
    pub report: Report,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Cuda,
}
