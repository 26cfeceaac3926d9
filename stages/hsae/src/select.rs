//! Which latents are active: z = select(pre), with the tree's soft gate (science.md §2).
//!
//! The gate lowers the *score* of a latent whose parent is silent; the activation keeps its value. Whether a parent is
//! silent is decided without the gate.

mod budget;

use rayon::prelude::*;

pub(crate) use budget::{Budget, OfLevels, Scope};
use budget::{Chosen, choose};

use crate::kernels::{Bounds, EncoderInput, TokenBounds, Top, collect, collect_blocks, dot};
use crate::sparse::SparseRows;

/// A soft gate: latent j's score is lowered by `strength` where `parent[j]` is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate<'a> {
    /// [d_sae].
    pub(crate) parent: &'a [Option<u32>],
    /// In pre-activation units.
    pub(crate) strength: f32,
}

/// What training needs of a batch.
pub(crate) struct Selection {
    /// The active latents and their pre-activations.
    pub(crate) pre_acts: SparseRows,
    /// What would be active without the gate: the firing that the tree is learned from. None: the same.
    pub(crate) ungated: Option<SparseRows>,
    /// The lowest ungated score that is active, over the batch; −∞ where the budget was not used up.
    pub(crate) threshold: f32,
    /// Where the next batch may start to look.
    pub(crate) guess: OfLevels,
}

#[cfg(test)]
impl Selection {
    pub(crate) fn ungated(&self) -> &SparseRows {
        self.ungated.as_ref().unwrap_or(&self.pre_acts)
    }
}

/// Tokens that tell where to start looking when there is no batch before.
const N_SAMPLED: usize = 64;
/// Thresholds drift from batch to batch: the next look starts at this share of the last one.
const DRIFT: f32 = 0.96;
/// Share of tokens that need a second look, about: a lower guess for all would cost more than they do.
const SECOND_LOOKS: f64 = 0.01;
/// A bound that no pre-activation exceeds. An infinite one would make rounding margins infinite.
const NOTHING: f32 = f32::MAX;
/// A look that found too little is followed by one from this share of its bound, and after so many by one from zero.
const LOWER: f32 = 0.6;
const LOOKS: usize = 6;

/// Selects the active latents of a batch. `guess` holds lower bounds on the scores worth looking at, from the batch
/// before, 0 for none: wrong ones cost a second look and change nothing. Token by token only the first counts.
pub(crate) fn select_batch(
    input: EncoderInput,
    budget: &Budget,
    scope: Scope,
    gate: Option<Gate>,
    guess: OfLevels,
) -> Selection {
    let gate = gate.filter(|gate| gate.strength > 0.0);
    match (budget, scope) {
        (Budget::All, _) => {
            let candidates = collect(input, Bounds::above(0.0));
            select_from(&candidates, budget, Scope::Batch, gate).selection([0.0; 2])
        }
        (_, Scope::Batch) => of_batch(input, budget, gate, guess),
        (_, Scope::Token) => of_tokens(input, budget, gate, guess[0]),
    }
}

/// The latents of a JumpReLU SAE: those above `lower`, of which only those above `threshold` are active, both [d_sae].
/// With a gate, what it silences is left out.
pub(crate) fn select_above(input: EncoderInput, lower: &[f32], threshold: &[f32], gate: Option<Gate>) -> Selection {
    let candidates = collect(input, Bounds { tokens: TokenBounds::All(0.0), shift: Some(lower), top: None });
    let threshold_of = |j: u32| threshold[j as usize];
    let is_active = |(&j, &score): (&u32, &f32)| score > threshold_of(j);
    let active: Vec<bool> = candidates.idx.iter().zip(&candidates.vals).map(is_active).collect();
    let mut selection = Selection { pre_acts: SparseRows::new(0), ungated: None, threshold: 0.0, guess: [0.0; 2] };
    match gate {
        None if active.iter().all(|&active| active) => selection.pre_acts = candidates,
        None => {
            // The tree is learned from what fires.
            selection.ungated = Some(candidates.filtered_by(&active));
            selection.pre_acts = candidates;
        }
        Some(gate) => {
            let ungated = candidates.filtered_by(&active);
            let scores = gated_scores(&candidates, &ungated, gate);
            let survives = |((&j, &score), &was_active): ((&u32, &f32), &bool)| !was_active || score > threshold_of(j);
            let keep: Vec<bool> = candidates.idx.iter().zip(&scores).zip(&active).map(survives).collect();
            selection.pre_acts = candidates.filtered_by(&keep);
            selection.ungated = Some(ungated);
        }
    }
    selection
}

fn of_batch(input: EncoderInput, budget: &Budget, gate: Option<Gate>, guess: OfLevels) -> Selection {
    let allows = match budget.levels() {
        Some(_) => budget.allows(input.n_rows()),
        None => [true, false],
    };
    let mut bounds = guess;
    if (0..2).any(|level| allows[level] && bounds[level] <= 0.0) {
        let sampled = sampled(input, budget, Scope::Batch, gate);
        bounds
            .iter_mut()
            .zip(sampled)
            .filter(|(bound, _)| **bound <= 0.0)
            .for_each(|(bound, low)| *bound = DRIFT * low);
    }
    for (bound, _) in bounds.iter_mut().zip(allows).filter(|(_, allows)| !allows) {
        *bound = NOTHING;
    }
    for look in 1.. {
        let from = select_from(&candidates(input, budget, bounds), budget, Scope::Batch, gate);
        let lowest = from.lowest();
        let is_too_high = [0, 1].map(|level| allows[level] && bounds[level] > 0.0 && lowest[level] <= bounds[level]);
        if is_too_high == [false; 2] {
            return from.selection(lowest.map(|low| if low.is_finite() { DRIFT * low } else { 0.0 }));
        }
        for (bound, _) in bounds.iter_mut().zip(is_too_high).filter(|(_, is_too_high)| *is_too_high) {
            *bound = if look < LOOKS { LOWER * *bound } else { 0.0 };
        }
    }
    unreachable!("a bound of zero ends the search")
}

/// All that lies above the bound of its level. Where the budget keeps few fine latents, most of those that exceed the coarse
/// bound would be looked at for nothing.
fn candidates(input: EncoderInput, budget: &Budget, bounds: OfLevels) -> SparseRows {
    let d_sae = input.b_enc.len();
    match budget.levels() {
        Some(n_coarse) if budget.allows(input.n_rows())[1] => {
            let lower: Vec<f32> = (0..d_sae).map(|j| bounds[usize::from(j >= n_coarse)]).collect();
            collect(input, Bounds { tokens: TokenBounds::All(0.0), shift: Some(&lower), top: None })
        }
        _ => collect_in_use(input, budget, input.n_rows(), bounds[0]),
    }
}

/// Of the latents that so many tokens may use, all above the bound.
fn collect_in_use(input: EncoderInput, budget: &Budget, n_tokens: usize, bound: f32) -> SparseRows {
    let found = collect(in_use(input, budget, n_tokens), Bounds::above(bound));
    SparseRows { n_cols: input.b_enc.len(), ..found }
}

/// The latents that so many tokens may use: while these are coarse ones, no others are looked at.
fn in_use<'a>(input: EncoderInput<'a>, budget: &Budget, n_tokens: usize) -> EncoderInput<'a> {
    match budget.levels() {
        Some(n_coarse) if n_coarse > 0 && !budget.allows(n_tokens)[1] => input.first(n_coarse),
        _ => input,
    }
}

fn of_tokens(input: EncoderInput, budget: &Budget, gate: Option<Gate>, guess: f32) -> Selection {
    let (n_rows, d_model) = (input.n_rows(), input.d_model);
    // Thresholds go with the length of a token, so the guess is a share of that.
    let lengths: Vec<f32> = input.x_centered.par_chunks_exact(d_model).map(|x| dot(x, x).sqrt()).collect();
    let guess = if guess > 0.0 { guess } else { DRIFT * sampled(input, budget, Scope::Token, gate)[0] };
    // A token so long that its length overflows is looked at from zero.
    let bound = |length: &f32| Some(guess * length).filter(|bound| bound.is_finite()).unwrap_or(0.0);
    let mut bounds: Vec<f32> = lengths.iter().map(bound).collect();
    let top = only_top(budget, gate);
    let look = |input: EncoderInput, bounds: &[f32]| {
        let bounds = Bounds { tokens: TokenBounds::Each(bounds), shift: None, top };
        let d_sae = input.b_enc.len();
        From::joined(collect_blocks(in_use(input, budget, 1), bounds, |_, found| {
            select_from(&SparseRows { n_cols: d_sae, ..found }, budget, Scope::Token, gate)
        }))
    };
    let mut from = look(input, &bounds);
    let mut looks = 1;
    let too_high = |from: &From, bounds: &[f32]| -> Vec<u32> {
        let is_too_high = |&t: &u32| bounds[t as usize] > 0.0 && least(&from.lowest[t as usize]) <= bounds[t as usize];
        (0..n_rows as u32).filter(is_too_high).collect()
    };
    let mut again = too_high(&from, &bounds);
    while !again.is_empty() {
        let lower = if looks < LOOKS { LOWER } else { 0.0 };
        again.iter().for_each(|&t| bounds[t as usize] *= lower);
        let x = input.gather(&again);
        let few = EncoderInput { x_centered: &x, ..input };
        let bounds_of_few: Vec<f32> = again.iter().map(|&t| bounds[t as usize]).collect();
        from.replace(&again, &look(few, &bounds_of_few));
        again = too_high(&from, &bounds);
        looks += 1;
    }
    let guess = DRIFT * low_ratio(&from.lowest, &lengths);
    from.selection([guess, 0.0])
}

/// With one budget for all latents, nothing matters that lies far below a token's k-th largest: a gated score is at most
/// the gate's strength below its pre-activation.
fn only_top(budget: &Budget, gate: Option<Gate>) -> Option<Top> {
    match *budget {
        Budget::Shared { k, fine, .. } if fine >= k => {
            Some(Top { k: k.round() as usize, slack: gate.map_or(0.0, |gate| gate.strength) })
        }
        _ => None,
    }
}

/// Where a few tokens say that the lowest scores lie; per token, the first is a share of the token's length, of both levels.
fn sampled(input: EncoderInput, budget: &Budget, scope: Scope, gate: Option<Gate>) -> OfLevels {
    let n = N_SAMPLED.min(input.n_rows());
    let few = EncoderInput { x_centered: &input.x_centered[..n * input.d_model], ..input };
    let lowest = match scope {
        Scope::Batch => {
            // So few tokens may have no fine latent to their share.
            let is_fine_wanted = budget.allows(input.n_rows())[1];
            let budget = if is_fine_wanted { budget.allowing_fine(n) } else { budget.clone() };
            select_from(&candidates(few, &budget, [0.0; 2]), &budget, scope, gate).lowest()
        }
        Scope::Token => {
            let from = select_from(&collect_in_use(few, budget, 1, 0.0), budget, scope, gate);
            let lengths: Vec<f32> = few.x_centered.chunks_exact(few.d_model).map(|x| dot(x, x).sqrt()).collect();
            [low_ratio(&from.lowest, &lengths), f32::INFINITY]
        }
    };
    lowest.map(|low| if low.is_finite() { low.max(0.0) } else { 0.0 })
}

/// The share of its length at which all but a few tokens have their lowest score; 0 where many have none.
fn low_ratio(lowest: &[OfLevels], lengths: &[f32]) -> f32 {
    let mut ratios: Vec<f32> =
        lowest.iter().zip(lengths).map(|(low, length)| least(low) / length.max(f32::MIN_POSITIVE)).collect();
    let at = (SECOND_LOOKS * ratios.len() as f64) as usize;
    let (_, ratio, _) = ratios.select_nth_unstable_by(at, f32::total_cmp);
    if ratio.is_finite() { ratio.max(0.0) } else { 0.0 }
}

/// A selection, and the lowest scores that it keeps: one per token, or one for the batch.
struct From {
    /// Its threshold and guess are still to be found.
    selection: Selection,
    lowest: Vec<OfLevels>,
    /// The same without the gate, of both levels.
    lowest_ungated: Vec<f32>,
}

impl From {
    /// Over the batch.
    fn lowest(&self) -> OfLevels {
        self.lowest.iter().fold([f32::INFINITY; 2], |least, &low| lower_of(least, low))
    }

    fn selection(self, guess: OfLevels) -> Selection {
        Selection { threshold: least(&self.lowest_ungated), guess, ..self.selection }
    }

    /// The selections of neighbouring blocks of tokens in one.
    fn joined(parts: Vec<Self>) -> Self {
        let n_cols = parts.first().map_or(0, |part| part.selection.pre_acts.n_cols);
        let has_gate = parts.iter().any(|part| part.selection.ungated.is_some());
        let ungated = || parts.iter().filter_map(|part| part.selection.ungated.as_ref());
        let selection = Selection {
            pre_acts: SparseRows::concatenated(n_cols, parts.iter().map(|part| &part.selection.pre_acts)),
            ungated: has_gate.then(|| SparseRows::concatenated(n_cols, ungated())),
            threshold: f32::NEG_INFINITY,
            guess: [0.0; 2],
        };
        let lowest = parts.iter().flat_map(|part| &part.lowest).copied().collect();
        let lowest_ungated = parts.iter().flat_map(|part| &part.lowest_ungated).copied().collect();
        Self { selection, lowest, lowest_ungated }
    }

    /// Takes some tokens, ascending, from `new`, where they stand one after another.
    fn replace(&mut self, tokens: &[u32], new: &Self) {
        let selection = &mut self.selection;
        selection.pre_acts = selection.pre_acts.with_rows_replaced(tokens, &new.selection.pre_acts);
        if let (Some(ungated), Some(new)) = (&mut selection.ungated, &new.selection.ungated) {
            *ungated = ungated.with_rows_replaced(tokens, new);
        }
        for (i, &t) in tokens.iter().enumerate() {
            self.lowest[t as usize] = new.lowest[i];
            self.lowest_ungated[t as usize] = new.lowest_ungated[i];
        }
    }
}

/// The selection among candidates: the right one where `lowest` lies above the bound that they were collected with.
fn select_from(candidates: &SparseRows, budget: &Budget, scope: Scope, gate: Option<Gate>) -> From {
    let Chosen { kept, mut lowest } = choose(candidates, budget, scope, &candidates.vals);
    let lowest_ungated = lowest.iter().map(|low| least(low)).collect();
    let mut selection = Selection { pre_acts: kept, ungated: None, threshold: f32::NEG_INFINITY, guess: [0.0; 2] };
    if let Some(gate) = gate {
        let scores = gated_scores(candidates, &selection.pre_acts, gate);
        let gated = choose(candidates, budget, scope, &scores);
        lowest.iter_mut().zip(gated.lowest).for_each(|(low, gated)| *low = lower_of(*low, gated));
        selection.ungated = Some(std::mem::replace(&mut selection.pre_acts, gated.kept));
    }
    From { selection, lowest, lowest_ungated }
}

fn lower_of(a: OfLevels, b: OfLevels) -> OfLevels {
    [a[0].min(b[0]), a[1].min(b[1])]
}

fn least(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::INFINITY, f32::min)
}

/// Scores of the candidates: the pre-activation, less the gate's strength where the parent is not among `active`.
pub(crate) fn gated_scores(candidates: &SparseRows, active: &SparseRows, gate: Gate) -> Vec<f32> {
    const BLOCK_ROWS: usize = 256;
    let mut scores = candidates.vals.clone();
    let n_rows = candidates.n_rows();
    let offsets: Vec<usize> =
        (0..n_rows).step_by(BLOCK_ROWS).chain([n_rows]).map(|row| candidates.indptr[row]).collect();
    let parts = crate::kernels::split_at_offsets(&mut scores, &offsets);
    parts.into_par_iter().enumerate().for_each(|(block, scores)| {
        let mut is_on = vec![false; candidates.n_cols];
        let mut scores = scores.iter_mut();
        for t in block * BLOCK_ROWS..((block + 1) * BLOCK_ROWS).min(n_rows) {
            let active = active.row(t).0;
            active.iter().for_each(|&j| is_on[j as usize] = true);
            for (&j, score) in candidates.row(t).0.iter().zip(&mut scores) {
                if gate.parent[j as usize].is_some_and(|parent| !is_on[parent as usize]) {
                    *score -= gate.strength;
                }
            }
            active.iter().for_each(|&j| is_on[j as usize] = false);
        }
    });
    scores
}

#[cfg(test)]
#[path = "select/tests.rs"]
mod tests;
