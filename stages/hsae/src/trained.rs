//! A finished SAE: encode and decode activations in the units of the model that they come from.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use artifact::config::{Arch, Sae};
use artifact::stage::Input;
use artifact::tables::{TreeNode, read_rows};
use slices::{Mat, Onto, multiply_on_all_threads};

use crate::archs::{Dictionary, HardGate, Keep, Levels, Parts};
use crate::export;
use crate::kernels::screen::{PackedEncoder, Path};
use crate::kernels::{Bounds, EncoderInput, TokenBounds, collect, decode_rows};
use crate::refine::{Refinement, Refiner};
use crate::rows::centered;
use crate::select::{Budget, Gate, Scope, gated_scores, select_batch};
use crate::sparse::SparseRows;
use crate::tensor_file::Tensors;

/// Whether the tree's gate takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// An ordinary SAE: what is exported.
    Flat,
    Gated,
}

/// How active latents are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Threshold {
    /// As trained: ReLU, TopK, or for BatchTopK one threshold per level that gives the wanted L0.
    Native,
    /// θ_j = t − κ·logit(q_j), t set to reach the wanted L0 (science.md §2).
    Prior,
    /// The prior's choice, refined: scores are leave-one-out, magnitudes least squares (`refine`).
    Refined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode {
    pub view: View,
    pub threshold: Threshold,
}

/// When a latent with a given score is active. Never at or below zero.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    Positive,
    /// The k largest scores of a token; behind a hard gate, each level's share of them.
    TopK(usize),
    /// Above its own threshold, [d_sae].
    Above(Vec<f32>),
}

/// What a silent parent does to its children.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TreeGate {
    /// It lowers their scores by so much; 0 without a tree.
    Soft(f32),
    /// They are not active. A parent is silent at or below this activation.
    Hard { active_above: f32 },
}

/// The rule of each mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub flat_native: Rule,
    pub flat_prior: Rule,
    pub gated_native: Rule,
    pub gated_prior: Rule,
    /// None where nothing is refined.
    pub flat_refined: Option<Refinement>,
    pub gated_refined: Option<Refinement>,
}

/// An SAE as published. Units are those of the activations on disk; decoder rows have length 1.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedSae {
    pub config: Sae,
    pub seed: u64,
    pub d_model: usize,
    pub d_sae: usize,
    pub n_coarse: usize,
    /// [d_sae, d_model], a row per latent.
    pub w_enc: Vec<f32>,
    /// [d_sae].
    pub b_enc: Vec<f32>,
    /// [d_sae, d_model].
    pub w_dec: Vec<f32>,
    /// [d_model].
    pub b_dec: Vec<f32>,
    /// Gated SAEs only: pre-activations say whether, this how much.
    pub magnitude: Option<Magnitude>,
    /// [d_sae]; all None for an SAE without a tree of its own.
    pub parent: Vec<Option<u32>>,
    pub gate: TreeGate,
    pub rules: Rules,
    /// Made when first needed; `Packed::default()` when an SAE is put together by hand.
    pub packed: Packed,
}

/// z = max(0, exp(r_mag)·(pre − b_enc) + b_mag) where a latent is active.
/// Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", equation 6.
#[derive(Clone, Debug, PartialEq)]
pub struct Magnitude {
    /// [d_sae].
    pub r_mag: Vec<f32>,
    /// [d_sae].
    pub b_mag: Vec<f32>,
}

/// W_enc as the kernels want it, and in parts where a hard gate cuts it, each made when it is first needed. It says nothing
/// that W_enc and the tree do not.
#[derive(Default)]
pub struct Packed {
    encoder: OnceLock<PackedEncoder>,
    /// W_dec, and as many zeros as it has rows.
    decoder: OnceLock<(PackedEncoder, Vec<f32>)>,
    parts: OnceLock<Parts>,
}

impl Clone for Packed {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Packed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Packed")
    }
}

impl TrainedSae {
    /// Reads `train/NAME`. Errors: a file is missing, damaged, or does not fit the others.
    pub fn load(input: &Input) -> Result<Self> {
        let cfg = export::read_cfg(&input.file(export::CFG)?)?;
        let (d_model, d_sae) = (cfg.d_in, cfg.d_sae);
        let path = input.file(export::WEIGHTS)?;
        let weights = Tensors::read(&path)?;
        let load = |name: &str, n: usize| weights.f32(name, n).with_context(|| path.display().to_string());
        let is_gated = cfg.config.arch == Arch::Gated;
        let w_dec = load("W_dec", d_model * d_sae)?;
        let is_tied = cfg.config.arch == Arch::MatchingPursuit;
        let w_enc = match is_tied {
            true => w_dec.clone(),
            false => export::transpose(&load("W_enc", d_model * d_sae)?, d_model, d_sae),
        };
        let path = input.file(export::TREE)?;
        let nodes: Vec<TreeNode> = read_rows(&path)?;
        ensure!(nodes.len() == d_sae, "{}: {} rows, expected {d_sae}", path.display(), nodes.len());
        let parent: Vec<_> = nodes.iter().map(|node| node.parent).collect();
        let inside = parent.iter().flatten().all(|&parent| (parent as usize) < d_sae);
        ensure!(inside, "{}: a parent lies outside the {d_sae} latents", path.display());
        let path = input.file(export::RULES)?;
        let (gate, rules) = export::read_rules(&path, d_sae).with_context(|| path.display().to_string())?;
        if let TreeGate::Hard { .. } = gate {
            let n_coarse = cfg.config.n_coarse;
            let is_coarse = parent.iter().flatten().all(|&parent| (parent as usize) < n_coarse);
            ensure!(
                is_coarse,
                "{}: a parent is none of the {n_coarse} coarse latents",
                input.file(export::TREE)?.display()
            );
        }
        Ok(Self {
            n_coarse: cfg.config.n_coarse,
            config: cfg.config,
            seed: cfg.seed,
            d_model,
            d_sae,
            w_enc,
            b_enc: match is_tied {
                true => vec![0.0; d_sae],
                false => load(if is_gated { "b_gate" } else { "b_enc" }, d_sae)?,
            },
            magnitude: match is_gated {
                true => Some(Magnitude { r_mag: load("r_mag", d_sae)?, b_mag: load("b_mag", d_sae)? }),
                false => None,
            },
            w_dec,
            b_dec: load("b_dec", d_model)?,
            parent,
            gate,
            rules,
            packed: Packed::default(),
        })
    }

    /// Flat, and gated where there is a tree; each native, with the prior threshold and, unless that is switched off,
    /// refined. A matching pursuit has no thresholds to choose.
    pub fn modes(&self) -> Vec<Mode> {
        if self.config.arch == Arch::MatchingPursuit {
            return vec![Mode { view: View::Flat, threshold: Threshold::Native }];
        }
        let has_tree = self.parent.iter().any(Option::is_some) || matches!(self.gate, TreeGate::Hard { .. });
        let views = if has_tree { &[View::Flat, View::Gated][..] } else { &[View::Flat] };
        let thresholds = [Threshold::Native, Threshold::Prior, Threshold::Refined];
        let all = views.iter().flat_map(|&view| thresholds.map(|threshold| Mode { view, threshold }));
        all.filter(|&mode| mode.threshold != Threshold::Refined || self.refinement(mode.view).is_some()).collect()
    }

    fn refinement(&self, view: View) -> Option<&Refinement> {
        match view {
            View::Flat => self.rules.flat_refined.as_ref(),
            View::Gated => self.rules.gated_refined.as_ref(),
        }
    }

    /// Shapes: x [n, d_model] → [n, d_sae] sparse.
    pub fn encode(&self, x: &[f32], mode: Mode) -> SparseRows {
        if let (Threshold::Refined, Some(refinement)) = (mode.threshold, self.refinement(mode.view)) {
            let x_centered = centered(x, &self.b_dec);
            let start = self.active(self.encoder(&self.input(x)), Mode { threshold: Threshold::Prior, ..mode });
            return self.refiner(mode.view, &x_centered).refine(&x_centered, &start, refinement);
        }
        let x = self.input(x);
        if self.config.arch == Arch::MatchingPursuit {
            let packed = self.encoder(&x).packed;
            let dictionary = Dictionary { w_dec: &self.w_dec, d_model: self.d_model, packed };
            return dictionary.pursue(&x, self.config.k, &mut Vec::new()).acts(self.d_sae);
        }
        self.with_magnitudes(self.active(self.encoder(&x), mode))
    }

    /// Pre-activations of some latents, a row of x for each. A matching pursuit's are those of its first step.
    /// Shapes: x [n, d_model] → [latents, n].
    pub fn pre_acts(&self, x: &[f32], latents: Range<usize>) -> Vec<f32> {
        let x = self.input(x);
        let w_enc = &self.w_enc[latents.start * self.d_model..latents.end * self.d_model];
        let (n, d) = (x.len() / self.d_model, self.d_model);
        let mut pre_acts = vec![0.0; latents.len() * n];
        let (rows, columns) = (Mat::rows(w_enc, d), Mat::rows(&x, d).transposed());
        multiply_on_all_threads((latents.len(), d, n), 1.0, rows, columns, Onto::Nothing, &mut pre_acts, n);
        for (pre_acts, bias) in pre_acts.chunks_exact_mut(n.max(1)).zip(&self.b_enc[latents]) {
            pre_acts.iter_mut().for_each(|pre_act| *pre_act += bias);
        }
        pre_acts
    }

    /// The active latents and their pre-activations.
    fn active(&self, input: EncoderInput, mode: Mode) -> SparseRows {
        let rule = self.rule(mode);
        if let (View::Gated, TreeGate::Hard { active_above }) = (mode.view, self.gate) {
            return self.levels(input, active_above).active(self.keep(rule), &mut [0.0; 2]);
        }
        let gate = self.soft_gate(mode.view);
        if let Rule::TopK(k) = *rule {
            let budget = Budget::Shared { k: k as f64, fine: k as f64, n_coarse: 0 };
            return select_batch(input, &budget, Scope::Token, gate, [0.0; 2]).pre_acts;
        }
        // A gated score lies at or below its pre-activation, so what is active passes its threshold ungated too.
        let candidates = collect(input, self.bounds(rule.thresholds()));
        let Some(gate) = gate else { return candidates };
        // The parents' own firing is decided by the native rule, which may reach lower.
        let ungated = self.active(input, Mode { view: View::Flat, threshold: Threshold::Native });
        let scores = gated_scores(&candidates, &ungated, gate);
        apply(rule, &candidates, &scores)
    }

    /// `x_centered` [n, d_model] tells how large columns are.
    pub(crate) fn refiner<'a>(&'a self, view: View, x_centered: &[f32]) -> Refiner<'a> {
        let (packed, zeros) = self.packed.decoder.get_or_init(|| {
            let mut packed = PackedEncoder::pack(Path::detect(), &self.w_dec, self.d_model);
            packed.balance(x_centered, &self.w_dec);
            (packed, vec![0.0; self.d_sae])
        });
        Refiner { w_dec: &self.w_dec, d_model: self.d_model, packed, zeros, gate: self.soft_gate(view) }
    }

    fn soft_gate(&self, view: View) -> Option<Gate<'_>> {
        match (view, self.gate) {
            (View::Gated, TreeGate::Soft(strength)) => Some(Gate { parent: &self.parent, strength }),
            _ => None,
        }
    }

    /// The two levels behind a hard gate.
    pub(crate) fn levels<'a>(&'a self, input: EncoderInput<'a>, active_above: f32) -> Levels<'a> {
        let gate = HardGate { parent: &self.parent, n_coarse: self.n_coarse, active_above };
        Levels { input, gate, parts: self.packed.parts.get_or_init(|| Parts::new(&input, gate)) }
    }

    /// A rule as both levels have it.
    fn keep<'a>(&self, rule: &'a Rule) -> Keep<'a> {
        match rule {
            Rule::Above(thresholds) => Keep::Above(thresholds),
            Rule::TopK(k) => {
                let coarse = self.config.k_coarse().unwrap_or(*k).min(*k);
                Keep::Largest { coarse, fine: k - coarse }
            }
            Rule::Positive => Keep::Largest { coarse: self.d_sae, fine: self.d_sae },
        }
    }

    fn with_magnitudes(&self, pre_acts: SparseRows) -> SparseRows {
        let Some(Magnitude { r_mag, b_mag }) = &self.magnitude else { return pre_acts };
        let mut acts = SparseRows::new(self.d_sae);
        for t in 0..pre_acts.n_rows() {
            let (idx, pre) = pre_acts.row(t);
            let magnitude = |j: usize, pre: f32| r_mag[j].exp() * (pre - self.b_enc[j]) + b_mag[j];
            let entries = idx.iter().zip(pre).map(|(&j, &pre)| (j, magnitude(j as usize, pre)));
            acts.push_row(entries.filter(|&(_, act)| act > 0.0));
        }
        acts
    }

    /// Shapes: acts [n, d_sae] sparse → x̂ [n, d_model].
    pub fn decode(&self, acts: &SparseRows) -> Vec<f32> {
        self.decode_prefix(acts, self.d_sae)
    }

    /// The reconstruction from latents below `n_latents`; `n_coarse` for the coarse-only one.
    pub fn decode_prefix(&self, acts: &SparseRows, n_latents: usize) -> Vec<f32> {
        decode_rows(acts, &self.w_dec, &self.b_dec, n_latents)
    }

    /// Of a refined mode, what refinement starts from.
    pub fn rule(&self, mode: Mode) -> &Rule {
        match (mode.view, mode.threshold) {
            (View::Flat, Threshold::Native) => &self.rules.flat_native,
            (View::Flat, _) => &self.rules.flat_prior,
            (View::Gated, Threshold::Native) => &self.rules.gated_native,
            (View::Gated, _) => &self.rules.gated_prior,
        }
    }

    /// All entries of which the pre-activation lies beyond a bound.
    pub(crate) fn candidates(&self, x: &[f32], bounds: Bounds) -> SparseRows {
        let x = self.input(x);
        collect(self.encoder(&x), bounds)
    }

    /// The encoder's input: x, less b_dec where that is part of it.
    pub(crate) fn input<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        if self.config.apply_b_dec_to_input { centered(x, &self.b_dec).into() } else { x.into() }
    }

    /// Shapes: x_centered [n, d_model], what `input` gives.
    pub(crate) fn encoder<'a>(&'a self, x_centered: &'a [f32]) -> EncoderInput<'a> {
        let packed = self.packed.encoder.get_or_init(|| {
            let mut packed = PackedEncoder::pack(Path::detect(), &self.w_enc, self.d_model);
            packed.balance(x_centered, &self.w_enc);
            packed
        });
        EncoderInput { x_centered, w_enc: &self.w_enc, b_enc: &self.b_enc, d_model: self.d_model, packed }
    }

    fn bounds<'a>(&self, thresholds: Option<&'a [f32]>) -> Bounds<'a> {
        Bounds { tokens: TokenBounds::All(0.0), shift: thresholds, top: None }
    }
}

impl Rule {
    /// What a pre-activation has to exceed, [d_sae]; None: zero.
    pub(crate) fn thresholds(&self) -> Option<&[f32]> {
        match self {
            Self::Above(thresholds) => Some(thresholds),
            Self::Positive | Self::TopK(_) => None,
        }
    }
}

/// The candidates that are active by their scores, with their pre-activations as values.
pub(crate) fn apply(rule: &Rule, candidates: &SparseRows, scores: &[f32]) -> SparseRows {
    let mut acts = SparseRows::new(candidates.n_cols);
    for t in 0..candidates.n_rows() {
        let entries = candidates.indptr[t]..candidates.indptr[t + 1];
        let active: Vec<usize> = match rule {
            Rule::Positive => entries.filter(|&e| scores[e] > 0.0).collect(),
            Rule::Above(thresholds) => {
                entries.filter(|&e| scores[e] > thresholds[candidates.idx[e] as usize].max(0.0)).collect()
            }
            Rule::TopK(k) => {
                let mut rivals: Vec<usize> = entries.filter(|&e| scores[e] > 0.0).collect();
                if rivals.len() > *k {
                    rivals.select_nth_unstable_by(*k, |&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
                    rivals.truncate(*k);
                    rivals.sort_unstable();
                }
                rivals
            }
        };
        acts.push_row(active.into_iter().map(|e| (candidates.idx[e], candidates.vals[e])));
    }
    acts
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Flat => "flat",
            Self::Gated => "gated",
        })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Prior => "prior",
            Self::Refined => "refined",
        })
    }
}
