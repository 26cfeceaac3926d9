//! `train.saes`: one SAE. Every architecture is the same model with terms switched on or off, so they share this struct;
//! `arch` says which terms an SAE has when its own keys stay silent.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TreeSae;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sae {
    /// Its folder under `train/`.
    pub name: String,
    /// A finished SAE to take as it is, instead of training one: a folder in SAELens' format (version 6 or later), or in
    /// dictionary_learning's. A relative path starts in the folder in which the stage is started. It goes with `name`,
    /// `family`, `prior_kappa` and `refine_sweeps` alone.
    pub import: Option<PathBuf>,
    /// What it is called in comparisons, where SAEs of one family differ in seed or k. It changes the report and nothing
    /// else. Unset: its name, and with `train.seeds` or `train.ks` the name that stands here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    pub arch: Arch,
    /// How active latents are chosen. Unset: relu for vanilla, topk for topk and tree-sae, batchtopk for the others.
    pub select: Option<Select>,
    /// Latents of the coarse level, first in every matrix; 0 for a flat SAE.
    pub n_coarse: usize,
    /// Latents of the fine level, or all of them in a flat SAE.
    pub n_fine: usize,
    /// The wanted L0: active latents per token, over both levels. Unset: 32, or each of `train.ks`.
    pub k: usize,
    /// A larger budget at first, for SAEs that select by topk or batchtopk. Unset: `k` throughout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_anneal: Option<KAnneal>,
    /// Of which coarse. Unset: both levels compete for one budget, but 13 of 16 for tree-sae, as published (26 of 32).
    pub k_coarse: Option<usize>,
    /// Weight of the sparsity penalty (vanilla, gated, panneal, jumprelu). Unset: steered during training until L0 is `k`,
    /// then kept.
    pub l1: Option<f64>,
    /// Share of training over which the penalty rises from zero.
    pub sparsity_warmup: f64,
    /// vanilla only: what an activation weighs in the penalty.
    pub l1_weighting: L1Weighting,
    /// Length of decoder rows. Unset: unit, but free where the penalty is weighted by it.
    pub decoder_norms: Option<DecoderNorms>,
    /// Whether b_dec is taken from the encoder's input too.
    pub apply_b_dec_to_input: bool,
    /// jumprelu only.
    pub jumprelu: JumpRelu,
    /// panneal only.
    pub panneal: PAnneal,
    /// vanilla and panneal: dead latents start anew at tokens that are reconstructed badly. Unset: they stay dead.
    pub resample: Option<Resample>,
    /// Inner reconstructions. Unset: none, but for matryoshka (`[n_coarse]`) and hiersae (random ones as well).
    pub prefixes: Option<Prefixes>,
    /// The soft tree. Unset: none, but for hiersae.
    pub tree: Option<Tree>,
    /// tree-sae only. Unset: near the published values.
    pub tree_sae: Option<TreeSae>,
    /// Coarse first, then fine. Unset: both levels from the first step, but for hiersae.
    pub curriculum: Option<Curriculum>,
    pub aux_k: AuxK,
    /// Strength of the prior threshold, θ_j = t − κ·logit(q_j). Unset: noise variance over mean magnitude. 0: none. This key
    /// and `refine_sweeps` act after training: where they change, a finished SAE keeps its weights.
    pub prior_kappa: Option<f64>,
    /// Sweeps of the refined modes, in which latents are judged by what the others leave of a token: 2 are enough; they
    /// take as long to measure as all other modes together. 0: no such modes.
    pub refine_sweeps: usize,
    /// Unset: the pipeline's seed, or each of `train.seeds`.
    pub seed: Option<u64>,
    /// Unset: `train.lr`.
    pub lr: Option<f64>,
    /// Unset: `train.adam_beta1`, but 0 for gated and jumprelu, as published.
    pub adam_beta1: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// Flat ReLU with an L1 penalty: the baseline.
    Vanilla,
    /// One encoder for whether, another for how much.
    Gated,
    Topk,
    Batchtopk,
    /// A trained threshold for each latent.
    Jumprelu,
    /// ReLU, its penalty moving from Σ z to Σ z^p.
    Panneal,
    /// One latent after the other, each the one that explains most of what is left; `k` of them.
    #[serde(rename = "matching-pursuit")]
    MatchingPursuit,
    /// Nested prefixes, no tree.
    Matryoshka,
    /// A hard tree: a fine latent is active only where its coarse parent is.
    #[serde(rename = "tree-sae")]
    TreeSae,
    #[default]
    Hiersae,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// Every positive pre-activation.
    Relu,
    /// The k largest of each token.
    Topk,
    /// The k·B largest of the batch.
    Batchtopk,
    /// Those above their own thresholds.
    Jumprelu,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum L1Weighting {
    /// Σ z_j.
    #[default]
    Plain,
    /// Σ z_j ‖W_dec[j]‖: Conerly et al. 2024, "Update on how we train SAEs".
    DecoderNorm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DecoderNorms {
    /// Length 1 after every step, and no gradient along the row.
    Unit,
    /// As Adam leaves them; folded into the encoder at export.
    Free,
}

/// Thresholds trained through a window around them: Rajamanoharan et al. 2024, "Jumping Ahead".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JumpRelu {
    /// Every threshold's first value, in units of normalised activations.
    pub threshold: f64,
    /// Width of the window.
    pub bandwidth: f64,
    pub sparsity: JumpReluSparsity,
    /// tanh only: how soon it counts a latent as one.
    pub tanh_scale: f64,
    /// The window's gradient reaches the encoder too, not the threshold alone.
    pub reaches_input: bool,
    /// Weight of the loss that pulls dead latents up to their thresholds; 0 switches it off.
    pub pre_act_loss: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JumpReluSparsity {
    /// The number of active latents.
    #[default]
    Step,
    /// Σ tanh(scale · z · ‖W_dec‖).
    Tanh,
    /// 2/k · (number of active latents − k)².
    Quadratic,
}

/// Karvonen et al. 2024, "Measuring Progress in Dictionary Learning", §4.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PAnneal {
    /// The exponent falls from 1 to this …
    pub p_end: f64,
    /// … between these shares of training, the second of which takes the last value …
    pub from: f64,
    pub to: f64,
    /// … in so many values, 1 and `p_end` among them.
    pub n_values: usize,
}

/// Bricken et al. 2023, "Towards Monosemanticity", appendix on resampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resample {
    /// Steps between two looks for latents that were silent for the latter half of them.
    pub every: u64,
    /// None after this share of training.
    pub until: f64,
}

/// A budget that starts above `k` and falls to it. While many latents are active all learn from every token, which is how an
/// L1 penalty begins too. `k_anneal_steps` of dictionary_learning is another such schedule, which falls along a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KAnneal {
    /// The budget of the first step, in multiples of `k`.
    pub times: f64,
    /// It falls by the same factor in each step, and is `k` from this share of training on; above 0.
    pub until: f64,
}

/// Reconstructions from the first m latents, each with its own squared error in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefixes {
    /// Lengths used in every step.
    pub fixed: Vec<usize>,
    /// Lengths drawn anew each step, log-uniform between `random_min` and d_sae.
    pub n_random: usize,
    pub random_min: usize,
    /// At this share of training latents are put in the order of how often they fire, the most frequent first: prefixes, and
    /// the coarse level, are of others from there on. The tree goes along; with `parents: coarse` it begins again. It is made
    /// for a `beta` that rises from 0 at `anneal_from`, no earlier than this. Not on a GPU. Unset: they stay as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_at: Option<f64>,
    /// Weight of each inner reconstruction's error.
    pub beta: f64,
    /// Weight of the full one's.
    pub beta_full: f64,
    /// What `beta` becomes, along a line between the shares of training `anneal_from` and `anneal_to`. Unset: it stays.
    pub beta_end: Option<f64>,
    /// Share of the gradient of each longer reconstruction that reaches the latents of the next shorter one; it rises to 1,
    /// all of it, between the same two shares of training. Below 1, short prefixes learn as if the rest were not there. It
    /// compounds: of n reconstructions, the full one among them, a latent that the i-th is the first to have gets
    /// reach^(n − i) of the full one's gradient.
    pub reach: f64,
    pub anneal_from: f64,
    pub anneal_to: f64,
}

/// The tree chosen by mutual information of firing, and its gate (science.md §2 and §3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tree {
    pub parents: ParentSet,
    /// How a latent gets its parent. Unset: mi, of which the others are controls.
    pub rule: TreeRule,
    /// What a silent parent costs its child's score, in mean activations of an active latent.
    pub gate: f64,
    /// The gate rises from zero to full between these shares of training.
    pub gate_from: f64,
    pub gate_to: f64,
    /// Parents are chosen anew every so many steps …
    pub update_every: u64,
    /// … until this share of training.
    pub freeze_from: f64,
    /// Decay of the moving averages of firing and co-firing, per step.
    pub decay: f64,
    /// An edge needs (P(parent|child) − P(parent)) / (1 − P(parent)) above this.
    pub min_excess: f64,
    /// An edge needs about this many co-firings in the moving average's window.
    pub min_count: f64,
    /// Firings of a latent that are counted in a step; of more, so many speak for all.
    pub firings_per_step: usize,
    /// Rows on which parents are chosen once more after training, at most one epoch of them, by the firing of the finished
    /// SAE behind its gate, with the prior's thresholds (those of the measured κ, whatever `prior_kappa` is). Every row
    /// counts alike and an edge needs more than 20 co-firings; `min_excess` is as in training. 0: the tree stays as it was
    /// trained.
    pub recount_rows: u64,
    /// Weight of the mutual-information surrogate. It hurts; it is here for the ablation.
    pub w_mi: f64,
    /// Weight of the coverage term: a child on with its parent off pulls the parent up.
    pub w_coverage: f64,
    /// Weight of the geometry term: squared cosine of child and parent decoder rows.
    pub w_geometry: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParentSet {
    /// Any latent that fires more often.
    Any,
    /// Fine latents take coarse parents, coarse latents none.
    Coarse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TreeRule {
    /// The parent of greatest mutual information.
    #[default]
    Mi,
    /// The parents that `mi` chooses, dealt out to the same children anew.
    Permuted,
    /// For the same children, any of the more frequent latents that fire about as often as what `mi` chooses.
    Random,
}

/// Phases, as shares of training, and a learning rate for each level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Curriculum {
    /// Only coarse latents are used before this share of training.
    pub coarse_until: f64,
    /// The fine latents' share of the budget rises until here.
    pub fine_full_at: f64,
    /// Factors on the learning rate.
    pub lr_coarse: f64,
    pub lr_fine: f64,
}

/// Dead latents reconstruct the residual: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuxK {
    /// Weight of the auxiliary error; 0 switches it off. Unset: 1, as SAELens has it, but 1/32 where the error is divided by
    /// the residual's variance, as Gao et al. have it.
    pub weight: Option<f64>,
    /// Dead latents used per token. Unset: half of d_model.
    pub k: Option<usize>,
    /// A latent that has not fired for this many tokens is dead, for every use of the word.
    pub dead_after: u64,
    /// false: the error is weighted by the share of `k` that is dead, as SAELens does. true: it is divided by the
    /// residual's variance, as Gao et al. and dictionary_learning do.
    pub normalise: bool,
}

impl Prefixes {
    /// The step, of so many, before which latents are put in order.
    pub fn sorted_before(&self, n_steps: u64) -> Option<u64> {
        self.sort_at.map(|share| ((share * n_steps as f64).round() as u64).max(1))
    }
}

impl Sae {
    /// Keys that have a meaning for a finished SAE too.
    pub(super) const BESIDE_IMPORT: [&str; 5] = ["name", "import", "family", "prior_kappa", "refine_sweeps"];

    /// The folder of a finished SAE by its own name: where it lies means nothing elsewhere.
    pub fn import_name(&self) -> Option<&Path> {
        self.import.as_deref().map(|path| path.file_name().map_or(Path::new("."), Path::new))
    }

    pub fn d_sae(&self) -> usize {
        self.n_coarse + self.n_fine
    }

    pub fn select(&self) -> Select {
        self.select.unwrap_or(match self.arch {
            Arch::Vanilla | Arch::Gated | Arch::Panneal => Select::Relu,
            Arch::Jumprelu => Select::Jumprelu,
            Arch::Topk | Arch::MatchingPursuit | Arch::TreeSae => Select::Topk,
            Arch::Batchtopk | Arch::Matryoshka | Arch::Hiersae => Select::Batchtopk,
        })
    }

    /// The weight of AuxK.
    pub fn aux_weight(&self) -> f64 {
        let is_normalised = self.aux_k.normalise || self.arch == Arch::TreeSae;
        self.aux_k.weight.unwrap_or(if is_normalised { 1.0 / 32.0 } else { 1.0 })
    }

    /// The coarse level's own budget, if it has one.
    pub fn k_coarse(&self) -> Option<usize> {
        let published = || ((self.k * 13 + 8) / 16).clamp(1, self.k.saturating_sub(1).max(1));
        self.k_coarse.or_else(|| (self.arch == Arch::TreeSae).then(published))
    }

    pub fn prefixes(&self) -> Option<Prefixes> {
        self.prefixes.clone().or_else(|| match self.arch {
            Arch::Matryoshka | Arch::TreeSae => {
                Some(Prefixes { fixed: vec![self.n_coarse], n_random: 0, ..Prefixes::default() })
            }
            Arch::Hiersae => Some(Prefixes { fixed: vec![self.n_coarse], ..Prefixes::default() }),
            _ => None,
        })
    }

    /// Whether decoder rows have length 1 after every step.
    pub fn has_unit_rows(&self) -> bool {
        let default = match (self.arch, self.l1_weighting) {
            // Its rows are brought to length 1 before the step.
            (Arch::TreeSae, _) => return false,
            (_, L1Weighting::Plain) => DecoderNorms::Unit,
            (_, L1Weighting::DecoderNorm) => DecoderNorms::Free,
        };
        self.decoder_norms.unwrap_or(default) == DecoderNorms::Unit
    }

    /// Whether L0 follows from a penalty, and not from a budget.
    pub fn has_penalty(&self) -> bool {
        matches!(self.select(), Select::Relu | Select::Jumprelu)
    }

    pub fn tree(&self) -> Option<Tree> {
        self.tree.clone().or_else(|| (self.arch == Arch::Hiersae).then(Tree::default))
    }

    pub fn curriculum(&self) -> Option<Curriculum> {
        self.curriculum.clone().or_else(|| (self.arch == Arch::Hiersae).then(Curriculum::default))
    }
}

impl Default for Sae {
    fn default() -> Self {
        Self {
            name: String::new(),
            import: None,
            family: None,
            arch: Arch::default(),
            select: None,
            n_coarse: 0,
            n_fine: 4608,
            k: 32,
            k_anneal: None,
            k_coarse: None,
            l1: None,
            sparsity_warmup: 0.0,
            l1_weighting: L1Weighting::default(),
            decoder_norms: None,
            apply_b_dec_to_input: true,
            jumprelu: JumpRelu::default(),
            panneal: PAnneal::default(),
            resample: None,
            prefixes: None,
            tree: None,
            tree_sae: None,
            curriculum: None,
            aux_k: AuxK::default(),
            prior_kappa: None,
            refine_sweeps: 0,
            seed: None,
            lr: None,
            adam_beta1: None,
        }
    }
}

impl Default for JumpRelu {
    fn default() -> Self {
        Self {
            threshold: 0.1,
            bandwidth: 0.1,
            sparsity: JumpReluSparsity::default(),
            tanh_scale: 4.0,
            reaches_input: false,
            pre_act_loss: 0.0,
        }
    }
}

impl Default for PAnneal {
    fn default() -> Self {
        Self { p_end: 0.2, from: 0.3, to: 0.9, n_values: 10 }
    }
}

impl Default for Resample {
    fn default() -> Self {
        Self { every: 250, until: 0.7 }
    }
}

impl Default for KAnneal {
    fn default() -> Self {
        Self { times: 6.0, until: 0.95 }
    }
}

impl Default for Prefixes {
    fn default() -> Self {
        Self {
            fixed: Vec::new(),
            n_random: 3,
            random_min: 4,
            sort_at: None,
            beta: 1.0,
            beta_full: 1.0,
            beta_end: None,
            reach: 1.0,
            anneal_from: 0.4,
            anneal_to: 0.8,
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            parents: ParentSet::Any,
            rule: TreeRule::default(),
            gate: 0.5,
            gate_from: 0.2,
            gate_to: 0.4,
            update_every: 50,
            freeze_from: 0.85,
            decay: 0.995,
            min_excess: 0.5,
            min_count: 5.0,
            firings_per_step: 4,
            recount_rows: 131_072,
            w_mi: 0.0,
            w_coverage: 0.0,
            w_geometry: 0.0,
        }
    }
}

impl Default for Curriculum {
    fn default() -> Self {
        Self { coarse_until: 0.1, fine_full_at: 0.3, lr_coarse: 1.0, lr_fine: 1.0 }
    }
}

impl Default for AuxK {
    fn default() -> Self {
        Self { weight: None, k: None, dead_after: 150_000, normalise: false }
    }
}
