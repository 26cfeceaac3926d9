//! Tree SAE: two levels, and a hard gate: a fine latent may be active only where its parent is, which is a coarse latent
//! or the root, always active. Level by level, per token:
//!
//! z_c = the k_coarse largest of pre_c,    z_f = the k − k_coarse largest of pre_f · 1[z_parent > active_above],    ReLU,
//! x̂_m = b_dec + z[:m] W_dec[:m],    m: n_coarse, d_sae
//! L = Σ_m mean (x − x̂_m)² / Var x + w_aux · aux (see `aux`),    means over all elements
//!
//! pre = (x − b_dec) W_enc, without b_enc. No gradient goes through the gate. Parents are no parameters: see `family`.
//! At inference the same gate stands behind the same budgets, or behind thresholds.
//!
//! Source: Cao et al. 2026, "Tree SAE: Learning Hierarchical Feature Structures in Sparse Autoencoders", arXiv 2605.07922,
//! §4; what the paper leaves open as in the authors' code (github.com/tue147/tree-sae). tests/reference/training.py has it
//! written out plainly.

mod aux;
mod family;

pub(crate) use aux::CoarseAux;
pub use family::Family;
pub(crate) use family::Signs;
use rayon::prelude::*;

use crate::kernels::screen::PackedEncoder;
use crate::kernels::{Bounds, EncoderInput, TokenBounds, collect, vectorised};
use crate::select::{Budget, Scope, select_batch};
use crate::sparse::SparseRows;

/// Adam's ε, as published.
pub(crate) const EPSILON: f32 = 6.25e-10;
/// Tokens per parallel piece of work.
const BLOCK_ROWS: usize = 64;

/// Which fine latents may be active.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HardGate<'a> {
    /// [d_sae]; None: the root, as for all coarse latents.
    pub(crate) parent: &'a [Option<u32>],
    pub(crate) n_coarse: usize,
    /// A parent is active above this activation.
    pub(crate) active_above: f32,
}

/// Which of the open latents are active; never at or below zero.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep<'a> {
    /// So many of each level, the largest of a token.
    Largest { coarse: usize, fine: usize },
    /// Above their own thresholds, [d_sae].
    Above(&'a [f32]),
}

/// The encoder, cut by who decides over whom, so that nothing closed is ever looked at: the coarse level and the root's
/// children are screened, each as an encoder of its own, and the few others one by one.
pub(crate) struct Parts {
    coarse: Part,
    of_root: Part,
    /// Of each coarse latent, ascending.
    children: Vec<Vec<u32>>,
}

impl Parts {
    pub(crate) fn new(input: &EncoderInput, gate: HardGate) -> Self {
        let (n_coarse, d_sae) = (gate.n_coarse, input.b_enc.len());
        let mut children = vec![Vec::new(); n_coarse];
        let mut of_root = Vec::new();
        for j in n_coarse..d_sae {
            match gate.parent[j] {
                Some(parent) => children[parent as usize].push(j as u32),
                None => of_root.push(j as u32),
            }
        }
        let coarse = Part::new(input, (0..n_coarse as u32).collect());
        Self { coarse, of_root: Part::new(input, of_root), children }
    }
}

/// Some tokens before the encoder's parts, which were made for the same gate.
pub(crate) struct Levels<'a> {
    pub(crate) input: EncoderInput<'a>,
    pub(crate) gate: HardGate<'a>,
    pub(crate) parts: &'a Parts,
}

impl Levels<'_> {
    /// The active latents of both levels and their pre-activations. `guesses` are where to start looking, as in
    /// `select_batch`; they are brought up to date.
    pub(crate) fn active(&self, keep: Keep, guesses: &mut [f32; 2]) -> SparseRows {
        let coarse = self.coarse(keep, &mut guesses[0]);
        self.with_fine(&coarse, keep, &mut guesses[1])
    }

    /// The fine latents that `keep` leaves of those that are open behind these coarse ones, together with the latter.
    pub(crate) fn with_fine(&self, coarse: &SparseRows, keep: Keep, guess: &mut f32) -> SparseRows {
        let of_root = match keep {
            Keep::Largest { fine, .. } => self.parts.of_root.largest(&self.input, fine, guess),
            Keep::Above(thresholds) => self.parts.of_root.above(&self.input, thresholds),
        };
        let blocks: Vec<SparseRows> = (0..self.input.n_rows())
            .into_par_iter()
            .step_by(BLOCK_ROWS)
            .map(|first| self.block(coarse, &of_root, keep, first))
            .collect();
        SparseRows::concatenated(self.input.b_enc.len(), blocks.iter())
    }

    pub(crate) fn coarse(&self, keep: Keep, guess: &mut f32) -> SparseRows {
        match keep {
            Keep::Largest { coarse, .. } => self.parts.coarse.largest(&self.input, coarse, guess),
            Keep::Above(thresholds) => self.parts.coarse.above(&self.input, thresholds),
        }
    }

    /// Some tokens of the result.
    fn block(&self, coarse: &SparseRows, of_root: &SparseRows, keep: Keep, first: usize) -> SparseRows {
        let mut rows = SparseRows::new(self.input.b_enc.len());
        let mut open: Vec<(u32, f32)> = Vec::new();
        for t in first..(first + BLOCK_ROWS).min(self.input.n_rows()) {
            let (idx, acts) = coarse.row(t);
            let is_parent = |&(_, &act): &(&u32, &f32)| act > self.gate.active_above;
            let parents = idx.iter().zip(acts).filter(is_parent);
            open.clear();
            for (&parent, _) in parents {
                pre_acts_of(&self.input, t, &self.parts.children[parent as usize], &mut open);
            }
            if let Keep::Above(thresholds) = keep {
                open.retain(|&(j, pre)| pre > thresholds[j as usize]);
            }
            let (idx_of_root, pre_of_root) = of_root.row(t);
            open.extend(idx_of_root.iter().copied().zip(pre_of_root.iter().copied()));
            if let Keep::Largest { fine, .. } = keep
                && open.len() > fine
            {
                open.select_nth_unstable_by(fine, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                open.truncate(fine);
            }
            open.sort_unstable_by_key(|&(j, _)| j);
            rows.push_row(idx.iter().copied().zip(acts.iter().copied()).chain(open.iter().copied()));
        }
        rows
    }
}

vectorised! {
    /// Appends those of the latents with a positive pre-activation on the token.
    fn pre_acts_of(input: &EncoderInput, token: usize, latents: &[u32], open: &mut Vec<(u32, f32)>) {
        let pre_acts = latents.iter().map(|&j| (j, input.pre_act(token, j as usize)));
        open.extend(pre_acts.filter(|&(_, pre)| pre > 0.0));
    }
}

/// Some latents as an encoder of their own.
struct Part {
    /// Ascending, [n].
    latents: Vec<u32>,
    /// [n, d_model].
    w_enc: Vec<f32>,
    /// [n].
    b_enc: Vec<f32>,
    packed: PackedEncoder,
}

impl Part {
    fn new(input: &EncoderInput, latents: Vec<u32>) -> Self {
        let d_model = input.d_model;
        let row = |&j: &u32| &input.w_enc[j as usize * d_model..(j as usize + 1) * d_model];
        let w_enc: Vec<f32> = latents.iter().flat_map(row).copied().collect();
        let b_enc = latents.iter().map(|&j| input.b_enc[j as usize]).collect();
        let packed = input.packed.packed_alike(&w_enc);
        Self { latents, w_enc, b_enc, packed }
    }

    /// The k largest of each token.
    fn largest(&self, input: &EncoderInput, k: usize, guess: &mut f32) -> SparseRows {
        if self.latents.is_empty() {
            return self.named(none(input.n_rows()), input);
        }
        let budget = Budget::Shared { k: k as f64, fine: k as f64, n_coarse: 0 };
        let selection = select_batch(self.encoder(input), &budget, Scope::Token, None, [*guess, 0.0]);
        *guess = selection.guess[0];
        self.named(selection.pre_acts, input)
    }

    /// Those above their thresholds, [d_sae].
    fn above(&self, input: &EncoderInput, thresholds: &[f32]) -> SparseRows {
        if self.latents.is_empty() {
            return self.named(none(input.n_rows()), input);
        }
        let thresholds: Vec<f32> = self.latents.iter().map(|&j| thresholds[j as usize].max(0.0)).collect();
        let bounds = Bounds { tokens: TokenBounds::All(0.0), shift: Some(&thresholds), top: None };
        self.named(collect(self.encoder(input), bounds), input)
    }

    fn encoder<'a>(&'a self, input: &EncoderInput<'a>) -> EncoderInput<'a> {
        EncoderInput { w_enc: &self.w_enc, b_enc: &self.b_enc, packed: &self.packed, ..*input }
    }

    /// The same by the names that the latents have outside.
    fn named(&self, mut rows: SparseRows, input: &EncoderInput) -> SparseRows {
        rows.n_cols = input.b_enc.len();
        rows.idx.iter_mut().for_each(|j| *j = self.latents[*j as usize]);
        rows
    }
}

fn none(n_rows: usize) -> SparseRows {
    SparseRows { indptr: vec![0; n_rows + 1], ..SparseRows::new(0) }
}

#[cfg(test)]
mod tests;
