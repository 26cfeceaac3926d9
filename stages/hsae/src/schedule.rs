//! What changes over training: learning rates, the curriculum's budgets, the gate, the prefixes of a step. All of it is a
//! function of the step alone, so that a resumed training needs no memory of it.

use artifact::config::{KAnneal, Prefixes, Sae, Select, Train};
use rand::RngExt;

use crate::select::{Budget, Scope};

/// Budget of the coarse-only phase, as a share of k: in the study behind science.md the coarse latents of a finished SAE
/// used about this share.
const COARSE_ONLY_SHARE: f64 = 0.6;
/// Firings that put latents in order are counted over so many steps.
const N_COUNTED: u64 = 64;
/// Packing an encoder for nothing is to be rare.
const LEAST_STEPS_BETWEEN_LOOKS: u64 = 20;

/// One step's settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Phase {
    pub(crate) lr_coarse: f64,
    pub(crate) lr_fine: f64,
    /// Of b_dec.
    pub(crate) lr: f64,
    pub(crate) budget: Budget,
    pub(crate) scope: Scope,
    /// Whether fine latents are used at all yet.
    pub(crate) fine_is_on: bool,
    /// The gate's strength as a share of its full one.
    pub(crate) gate: f64,
    /// The tree may still change.
    pub(crate) tree_is_open: bool,
    /// Factor on the sparsity penalty.
    pub(crate) sparsity: f64,
}

/// `step` counts from 0 to `n_steps` − 1.
pub(crate) fn phase(train: &Train, sae: &Sae, step: u64, n_steps: u64) -> Phase {
    let share = step as f64 / n_steps as f64;
    let lr = sae.lr.unwrap_or(train.lr) * warmup_and_decay(train, step, n_steps);
    let (fine_share, lr_coarse, lr_fine) = match sae.curriculum() {
        Some(c) => (ramp(share, c.coarse_until, c.fine_full_at), c.lr_coarse, c.lr_fine),
        None => (1.0, 1.0, 1.0),
    };
    let tree = sae.tree();
    Phase {
        lr_coarse: lr * lr_coarse,
        lr_fine: lr * lr_fine,
        lr,
        budget: budget(sae, fine_share, times_k(sae, share)),
        scope: if sae.select() == Select::Topk { Scope::Token } else { Scope::Batch },
        fine_is_on: fine_share > 0.0,
        gate: tree.as_ref().map_or(0.0, |tree| ramp(share, tree.gate_from, tree.gate_to)),
        tree_is_open: tree.as_ref().is_some_and(|tree| share < tree.freeze_from),
        sparsity: ramp(share, 0.0, sae.sparsity_warmup),
    }
}

/// The budget once all latents take part.
pub(crate) fn full_budget(sae: &Sae) -> Budget {
    budget(sae, 1.0, 1.0)
}

/// The step before which latents are put in order, if they are.
pub(crate) fn sorted_before(sae: &Sae, n_steps: u64) -> Option<u64> {
    sae.prefixes.as_ref()?.sorted_before(n_steps)
}

/// Of an annealed budget, once in a twentieth of training until it rests.
pub(crate) fn budget_has_fallen(sae: &Sae, step: u64, n_steps: u64) -> bool {
    let every = (n_steps / 20).max(LEAST_STEPS_BETWEEN_LOOKS);
    let is_falling = |anneal: &KAnneal| (step.saturating_sub(every) as f64) < anneal.until * n_steps as f64;
    step > 0 && step.is_multiple_of(every) && sae.k_anneal.as_ref().is_some_and(is_falling)
}

/// Whether a step's firings say in which order latents will be put.
pub(crate) fn counts_for_order(sae: &Sae, step: u64, n_steps: u64) -> bool {
    let is_just_before = |end: u64| (end.saturating_sub(N_COUNTED)..end).contains(&step);
    // While the fine level has less than its budget, the coarse one fires more than it will.
    let full_from = sae.curriculum().map_or(0.0, |curriculum| curriculum.fine_full_at * n_steps as f64);
    sorted_before(sae, n_steps).is_some_and(is_just_before) && step as f64 >= full_from
}

/// Inner prefix lengths of a step, ascending, each below the number of latents in use.
pub(crate) fn prefixes(config: Option<&Prefixes>, seed: u64, step: u64, n_in_use: usize) -> Vec<usize> {
    let Some(config) = config else { return Vec::new() };
    let mut lengths = config.fixed.clone();
    if config.random_min < n_in_use {
        let mut rng = artifact::random::stream(seed, "train/prefixes", 0, step);
        let (low, high) = ((config.random_min as f64).ln(), (n_in_use as f64).ln());
        lengths.extend((0..config.n_random).map(|_| (low + rng.random::<f64>() * (high - low)).exp() as usize));
    }
    lengths.retain(|&length| length < n_in_use);
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// Weight of inner reconstructions, and the share of longer ones' gradients that reaches them.
pub(crate) fn annealed(config: &Prefixes, step: u64, n_steps: u64) -> (f32, f32) {
    let done = ramp(step as f64 / n_steps as f64, config.anneal_from, config.anneal_to);
    let beta_end = config.beta_end.unwrap_or(config.beta);
    let between = |start: f64, end: f64| (start + done * (end - start)) as f32;
    (between(config.beta, beta_end), between(config.reach, 1.0))
}

/// The budget of a share of training, in multiples of the last one.
fn times_k(sae: &Sae, share: f64) -> f64 {
    sae.k_anneal.as_ref().map_or(1.0, |anneal| anneal.times.powf(1.0 - ramp(share, 0.0, anneal.until)))
}

fn budget(sae: &Sae, fine_share: f64, times_k: f64) -> Budget {
    let (k, n_coarse) = (sae.k as f64 * times_k, sae.n_coarse);
    match (sae.select(), sae.k_coarse()) {
        (Select::Relu | Select::Jumprelu, _) => Budget::All,
        (_, Some(k_coarse)) => {
            let coarse = k_coarse as f64 * times_k;
            Budget::PerLevel { coarse, fine: (k - coarse) * fine_share, n_coarse }
        }
        (_, None) if fine_share < 1.0 => {
            let k = k * (COARSE_ONLY_SHARE + (1.0 - COARSE_ONLY_SHARE) * fine_share);
            Budget::Shared { k, fine: k * fine_share, n_coarse }
        }
        (_, None) => Budget::Shared { k, fine: k, n_coarse },
    }
}

fn warmup_and_decay(train: &Train, step: u64, n_steps: u64) -> f64 {
    let n_warmup = train.lr_warmup * n_steps as f64;
    let n_decay = train.lr_decay * n_steps as f64;
    let rise = if n_warmup > 0.0 { ((step + 1) as f64 / n_warmup).min(1.0) } else { 1.0 };
    let fall = if n_decay > 0.0 { ((n_steps - step) as f64 / n_decay).min(1.0) } else { 1.0 };
    rise * fall
}

/// 0 before `from`, 1 after `to`, a line in between.
fn ramp(share: f64, from: f64, to: f64) -> f64 {
    if share >= to { 1.0 } else { ((share - from) / (to - from)).max(0.0) }
}

#[cfg(test)]
mod tests {
    use artifact::config::{Arch, Curriculum};

    use super::*;

    fn hiersae() -> Sae {
        let curriculum = Some(Curriculum { coarse_until: 0.2, fine_full_at: 0.4, ..Curriculum::default() });
        Sae { arch: Arch::Hiersae, n_coarse: 10, n_fine: 30, k: 10, curriculum, ..Sae::default() }
    }

    #[test]
    fn the_fine_level_comes_in_after_the_coarse_one() {
        let at = |step| phase(&Train::default(), &hiersae(), step, 100);
        assert_eq!(at(10).budget, Budget::Shared { k: 6.0, fine: 0.0, n_coarse: 10 });
        assert!(!at(10).fine_is_on && at(30).fine_is_on);
        let Budget::Shared { k, fine, .. } = at(30).budget else { panic!("one budget for both levels") };
        assert!((k - 8.0).abs() <= 1e-9 && (fine - 4.0).abs() <= 1e-9);
        assert_eq!(at(40).budget, Budget::Shared { k: 10.0, fine: 10.0, n_coarse: 10 });
        assert_eq!((at(10).gate, at(40).gate), (0.0, 1.0));
        assert!((at(30).gate - 0.5).abs() <= 1e-9);
        assert!(at(84).tree_is_open && !at(85).tree_is_open);
    }

    #[test]
    fn an_annealed_budget_falls_by_equal_factors_to_k() {
        let k_anneal = Some(KAnneal { times: 16.0, until: 0.8 });
        let flat = Sae { arch: Arch::Batchtopk, n_fine: 400, k: 10, k_anneal: k_anneal.clone(), ..Sae::default() };
        let total = |step| match phase(&Train::default(), &flat, step, 100).budget {
            Budget::Shared { k, fine, .. } if k == fine => k,
            other => panic!("{other:?}"),
        };
        for (step, k) in [(0, 160.0), (20, 80.0), (40, 40.0), (60, 20.0), (80, 10.0), (99, 10.0)] {
            assert!((total(step) - k).abs() <= 1e-9, "step {step}: {}", total(step));
        }
        assert_eq!(full_budget(&flat), Budget::Shared { k: 10.0, fine: 10.0, n_coarse: 0 });
        // Each level's share of it stays.
        let levels = Sae { arch: Arch::Matryoshka, n_coarse: 40, k_coarse: Some(6), ..flat };
        let at = |step| phase(&Train::default(), &levels, step, 100).budget;
        let Budget::PerLevel { coarse, fine, .. } = at(40) else { panic!("a budget for each level") };
        assert!((coarse - 24.0).abs() <= 1e-9 && (fine - 16.0).abs() <= 1e-9);
        assert_eq!(at(80), Budget::PerLevel { coarse: 6.0, fine: 4.0, n_coarse: 40 });
    }

    #[test]
    fn firings_are_counted_just_before_the_sort_and_after_the_curriculum() {
        let prefixes = Some(Prefixes { sort_at: Some(0.5), ..Prefixes::default() });
        let counted = |fine_full_at, n_steps: u64| {
            let curriculum = Some(Curriculum { coarse_until: 0.0, fine_full_at, ..Curriculum::default() });
            let sae = Sae { prefixes: prefixes.clone(), curriculum, ..hiersae() };
            (0..n_steps).filter(|&step| counts_for_order(&sae, step, n_steps)).collect::<Vec<_>>()
        };
        assert_eq!(counted(0.0, 400), (136..200).collect::<Vec<_>>());
        assert_eq!(counted(0.4, 400), (160..200).collect::<Vec<_>>());
        assert_eq!(counted(0.0, 20), (0..10).collect::<Vec<_>>());
        assert!((0..400).all(|step| !counts_for_order(&hiersae(), step, 400)));
    }

    #[test]
    fn a_falling_budget_is_looked_at_twenty_times_and_once_when_it_rests() {
        let sae = |until| Sae { k_anneal: Some(KAnneal { times: 4.0, until }), ..Sae::default() };
        let looks =
            |sae: &Sae, n_steps| (0..n_steps).filter(|&step| budget_has_fallen(sae, step, n_steps)).collect::<Vec<_>>();
        assert_eq!(looks(&sae(0.3), 1000), [50, 100, 150, 200, 250, 300]);
        // Between two looks it may come to rest: the next is the last.
        assert_eq!(looks(&sae(0.12), 1000), [50, 100, 150]);
        assert!(looks(&Sae::default(), 1000).is_empty());
        assert_eq!(looks(&sae(1.0), 50), [20, 40]);
    }

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let at = |step| phase(&Train::default(), &hiersae(), step, 100).lr / Train::default().lr;
        assert!((at(0) - 0.2).abs() <= 1e-12 && (at(4) - 1.0).abs() <= 1e-12);
        assert!((at(50) - 1.0).abs() <= 1e-12);
        assert!((at(85) - 0.5).abs() <= 1e-12 && at(99) > 0.0);
    }

    #[test]
    fn random_prefixes_are_log_uniform_and_the_same_for_the_same_step() {
        let config = Prefixes { fixed: vec![10], n_random: 3, random_min: 4, ..Prefixes::default() };
        let mut below_the_middle = 0;
        for step in 0..1000 {
            let lengths = prefixes(Some(&config), 5, step, 4096);
            assert_eq!(lengths, prefixes(Some(&config), 5, step, 4096));
            assert!(lengths.is_sorted() && lengths.iter().all(|&m| (4..4096).contains(&m)));
            assert!(lengths.contains(&10));
            // The middle of 4 … 4096 on a logarithmic scale.
            below_the_middle += lengths.iter().filter(|&&m| m < 128 && m != 10).count();
        }
        assert!((below_the_middle as f64 / 3000.0 - 0.5).abs() <= 0.05, "{below_the_middle}");
    }
}
