//! Whole trainings on small planted data: what a run gives may depend on nothing but its configuration.

use artifact::config::{Arch, Curriculum, KAnneal, Select, Tree, TreeRule, TreeSae};
use rand::RngExt;

use super::*;
use crate::kernels::axpy;
use crate::trained::{Mode, Threshold, TrainedSae, View};
use crate::{checkpoint, finish};

const D_MODEL: usize = 16;

/// Sparse sums of 8 planted directions, the second four of which fire only with the first four.
fn planted(n_rows: usize, seed: u64) -> Vec<f32> {
    let mut rng = artifact::random::stream(seed, "test/rows", 0, 0);
    let directions = Weights::init(99, D_MODEL, 8, &[0.0; D_MODEL]).w_dec;
    let mut rows = vec![0f32; n_rows * D_MODEL];
    for row in rows.chunks_exact_mut(D_MODEL) {
        for j in 0..4 {
            if rng.random_bool(0.25) {
                axpy(row, 2.0 + rng.random::<f32>(), &directions[j * D_MODEL..][..D_MODEL]);
                if rng.random_bool(0.5) {
                    axpy(row, 2.0 + rng.random::<f32>(), &directions[(j + 4) * D_MODEL..][..D_MODEL]);
                }
            }
        }
        row.iter_mut().for_each(|value| *value += 0.02 * (rng.random::<f32>() - 0.5));
    }
    rows
}

fn train() -> Train {
    Train { batch_size: 256, n_tokens: 256 * 200, lr: 3e-3, ..Train::default() }
}

fn config(arch: Arch) -> Sae {
    let n_coarse = if matches!(arch, Arch::Matryoshka | Arch::TreeSae | Arch::Hiersae) { 5 } else { 0 };
    let tree = (arch == Arch::Hiersae).then(|| Tree { update_every: 5, ..Tree::default() });
    Sae { name: "test".into(), arch, n_coarse, n_fine: 12 - n_coarse, k: 2, tree, refine_sweeps: 2, ..Sae::default() }
}

#[test]
fn a_penalty_rises_above_what_l0_may_be_falls_below_k_and_rests_between() {
    let of = |l0: f64, change: f64, share: f64| steer(l0, change, 10.0, 2000.0, share);
    assert!((of(1000.0, 0.0, 0.25) - L1_GAIN).abs() <= 1e-12);
    assert_eq!(of(20.0, 0.0, 0.25), 0.0);
    assert!(of(20.0, 0.0, 0.5) > 0.0);
    assert!((of(1.0, 0.0, 0.25) + L1_GAIN).abs() <= 1e-12 && of(0.0, 0.0, 0.7) < 0.0);
    // While L0 comes down by itself nothing pushes, and while it comes back nothing lets go.
    assert_eq!((of(1000.0, -0.1, 0.25), of(1.0, 0.1, 0.25)), (0.0, 0.0));
}

fn run(trainer: &mut Trainer, until: u64) -> Vec<CurveRow> {
    let mut rows = Vec::new();
    while trainer.state.step < until {
        rows.push(trainer.step(planted(256, trainer.state.step)).unwrap());
    }
    rows
}

fn trained(config: &Sae) -> (Trainer, TrainedSae) {
    let mut trainer = Trainer::new(config, &train(), 7, &[0.0; D_MODEL]);
    run(&mut trainer, 200);
    let sae = finish(&trainer, 1.0, &planted(8192, 500));
    (trainer, sae)
}

fn ev(sae: &TrainedSae, x: &[f32], mode: Mode) -> f64 {
    let x_hat = sae.decode(&sae.encode(x, mode));
    let error: f64 = x.iter().zip(&x_hat).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    1.0 - error / total_variance(x, D_MODEL)
}

#[test]
fn every_architecture_learns_and_keeps_its_budget() {
    let x = planted(4096, 600);
    let penalised = [Arch::Vanilla, Arch::Gated, Arch::Jumprelu, Arch::Panneal];
    for arch in penalised.into_iter().chain([
        Arch::Topk,
        Arch::Batchtopk,
        Arch::MatchingPursuit,
        Arch::Matryoshka,
        Arch::TreeSae,
        Arch::Hiersae,
    ]) {
        let (_, sae) = trained(&config(arch));
        for mode in sae.modes() {
            let l0 = sae.encode(&x, mode).nnz() as f64 / 4096.0;
            let ev = ev(&sae, &x, mode);
            // A penalty on the activation shrinks it, which costs EV.
            let least = match (arch, mode) {
                // One latent a level on every token, whatever its features are; and made for its own gate.
                (Arch::TreeSae, Mode { view: View::Gated, threshold: Threshold::Native }) => 0.7,
                (Arch::TreeSae, _) => 0.45,
                _ if penalised.contains(&arch) => 0.7,
                _ => 0.8,
            };
            assert!(ev >= least, "{arch:?} {mode:?}: EV {ev}");
            // Where a penalty decides L0, it is steered in training and not set after it.
            let is_steered = penalised.contains(&arch) && mode.threshold == Threshold::Native;
            // A threshold moves by the learning rate a step at most, and 200 steps are few.
            let slack = if arch == Arch::Jumprelu { 1.0 } else { 0.3 };
            let tolerance = if is_steered { slack } else { 0.05 };
            assert!(l0 <= 2.0 * (1.0 + tolerance), "{arch:?} {mode:?}: L0 {l0}");
        }
    }
}

#[test]
fn resampling_brings_dead_latents_back() {
    let resample = Some(artifact::config::Resample { every: 20, until: 0.9 });
    let aux_k = artifact::config::AuxK { dead_after: 2000, ..Default::default() };
    let dead_share = |resample| {
        let config = Sae { resample, aux_k: aux_k.clone(), l1: Some(0.5), n_fine: 24, ..config(Arch::Vanilla) };
        let mut trainer = Trainer::new(&config, &train(), 7, &[0.0; D_MODEL]);
        // Half of the latents can never fire.
        trainer.state.weights.b_enc[..12].fill(-100.0);
        trainer.repack();
        run(&mut trainer, 100).last().unwrap().dead
    };
    let (without, with) = (dead_share(None), dead_share(resample));
    assert!(without >= 0.5 && with <= 0.2, "{without} {with}");
}

#[test]
fn thresholds_reach_the_wanted_l0_on_the_rows_they_were_set_on() {
    // 1.5 features are active per row, so that one latent per row is always to be had.
    for arch in [Arch::Topk, Arch::Batchtopk, Arch::Matryoshka, Arch::Hiersae] {
        let (_, sae) = trained(&Sae { k: 1, ..config(arch) });
        for mode in sae.modes() {
            let acts = sae.encode(&planted(8192, 500), mode);
            let is_topk = matches!(sae.rule(mode), crate::Rule::TopK(_));
            // Of 8192 rows; a TopK leaves out rows without a positive pre-activation.
            let missing = 8192 - acts.nnz() as i64;
            // Least squares leave out what they make negative.
            let is_refined = mode.threshold == Threshold::Refined;
            let most = if is_topk && !is_refined { 8192 / 3 } else { 1 + i64::from(is_refined) * 8192 / 500 };
            assert!((0..=most).contains(&missing), "{arch:?} {mode:?}: {missing} of 8192 missing");
        }
    }
}

#[test]
fn a_strong_prior_still_reaches_the_wanted_l0() {
    // With a κ like this all scores are far below zero once the prior is added, and thresholds differ widely.
    let rows = planted(8192, 500);
    for arch in [Arch::Topk, Arch::Batchtopk, Arch::Matryoshka, Arch::Hiersae] {
        let (_, sae) = trained(&Sae { k: 1, prior_kappa: Some(0.6), ..config(arch) });
        for view in [View::Flat, View::Gated] {
            let acts = sae.encode(&rows, Mode { view, threshold: Threshold::Prior });
            let missing = 8192 - acts.nnz() as i64;
            assert!((0..=1).contains(&missing), "{arch:?} {view:?}: {missing} of 8192 missing");
        }
    }
}

/// The widest gap between an L0 and the wanted one, and whether every active child has an active parent.
fn budgets_of_tree_sae(sae: &TrainedSae, mode: Mode, rows: &[f32]) -> (f64, bool) {
    let acts = sae.encode(rows, mode);
    let crate::TreeGate::Hard { active_above } = sae.gate else { panic!("{:?}", sae.gate) };
    let has_parent = |t: usize| {
        let (idx, vals) = acts.row(t);
        let is_active = |parent: u32| idx.iter().position(|&j| j == parent).is_some_and(|at| vals[at] > active_above);
        idx.iter().filter_map(|&j| sae.parent[j as usize]).all(is_active)
    };
    let l0 = acts.nnz() as f64 / acts.n_rows() as f64;
    (l0, (0..acts.n_rows()).all(has_parent))
}

#[test]
fn a_hard_gate_is_kept_in_both_thresholds_and_gone_in_the_flat_view() {
    let rows = planted(8192, 500);
    let (_, sae) = trained(&config(Arch::TreeSae));
    assert!(sae.parent[5..].iter().any(Option::is_some) && sae.parent[..5].iter().all(Option::is_none));
    for mode in sae.modes() {
        let (l0, keeps_the_gate) = budgets_of_tree_sae(&sae, mode, &rows);
        match mode.view {
            // What is exported has thresholds: see `export::cfg`.
            View::Flat if mode.threshold == Threshold::Refined => assert!((l0 - 2.0).abs() <= 0.05, "{mode:?}: {l0}"),
            View::Flat => {
                assert!(matches!(sae.rule(mode), crate::Rule::Above(_)) && (l0 - 2.0).abs() <= 1e-3, "{mode:?}: {l0}");
                assert!(!keeps_the_gate, "{mode:?}");
            }
            View::Gated => assert!(keeps_the_gate && (1.0..=2.0).contains(&l0), "{mode:?}: {l0}"),
        }
    }
    let native = Mode { view: View::Gated, threshold: Threshold::Native };
    let acts = sae.encode(&rows, native);
    let is_within =
        |t: usize| [true, false].iter().all(|&c| acts.row(t).0.iter().filter(|&&j| (j < 5) == c).count() <= 1);
    assert!((0..8192).all(is_within));
}

#[test]
fn a_tree_sae_that_gave_all_children_to_the_root_still_has_both_views() {
    let mut trainer = Trainer::new(&config(Arch::TreeSae), &train(), 7, &[0.0; D_MODEL]);
    run(&mut trainer, 20);
    trainer.state.family.as_mut().unwrap().parent.fill(5);
    let sae = finish(&trainer, 1.0, &planted(2048, 500));
    assert_eq!(sae.modes().len(), 5);
    for mode in sae.modes() {
        let (l0, _) = budgets_of_tree_sae(&sae, mode, &planted(2048, 500));
        assert!((l0 - 2.0).abs() <= 0.2, "{mode:?}: {l0}");
        let thresholds = sae.rule(mode).thresholds().unwrap_or_default();
        assert!(thresholds.iter().all(|t| t.is_finite()), "{mode:?}: {thresholds:?}");
    }
}

#[test]
fn latents_that_are_not_in_use_yet_are_not_dead() {
    let mut trainer = Trainer::new(&config(Arch::Hiersae), &train(), 7, &[0.0; D_MODEL]);
    run(&mut trainer, 15);
    assert!(trainer.state.tokens_since_fired[5..].iter().all(|&tokens| tokens == 0));
}

#[test]
fn hiersae_runs_on_every_selection() {
    let x = planted(4096, 600);
    for select in [Select::Relu, Select::Topk, Select::Batchtopk, Select::Jumprelu] {
        let (trainer, sae) = trained(&Sae { select: Some(select), ..config(Arch::Hiersae) });
        assert!(trainer.state.tree.as_ref().is_some_and(|tree| tree.edges.iter().any(Option::is_some)), "{select:?}");
        let mode = Mode { view: View::Gated, threshold: Threshold::Prior };
        let ev = ev(&sae, &x, mode);
        assert!(ev >= 0.7, "{select:?}: EV {ev}");
    }
}

#[test]
fn a_control_of_the_tree_is_the_same_at_any_thread_count_and_after_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    for rule in [TreeRule::Permuted, TreeRule::Random] {
        let mut config = config(Arch::Hiersae);
        config.tree = config.tree.map(|tree| Tree { rule, ..tree });
        let new = || Trainer::new(&config, &train(), 7, &[0.0; D_MODEL]);
        let pool = |n_threads| rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut whole = new();
        pool(1).install(|| run(&mut whole, 160));
        let edges = whole.state.tree.iter().flat_map(|tree| &tree.edges).flatten();
        let is_control = |edge: &&crate::ParentEdge| edge.runner_up.is_some_and(|(_, best)| best > edge.mi_bits);
        assert!(edges.filter(is_control).count() >= 2, "{rule:?}");
        for stop in [50, 120] {
            let mut first = new();
            pool(2).install(|| run(&mut first, stop));
            checkpoint::save(folder.path(), "key", &first, &[]).unwrap();
            let mut second = new();
            checkpoint::resume(folder.path(), "key", &mut second).unwrap().unwrap();
            pool(3).install(|| run(&mut second, 160));
            assert!(second.state == whole.state, "{rule:?}, stopped at {stop}");
        }
    }
}

/// Begins with three times its budget and without prefixes, and is put in order at step 80.
fn sorted(arch: Arch) -> Sae {
    Sae {
        k_anneal: Some(KAnneal { times: 3.0, until: 0.9 }),
        prefixes: Some(artifact::config::Prefixes {
            n_random: 2,
            random_min: 1,
            sort_at: Some(0.4),
            beta: 0.0,
            beta_end: Some(0.5),
            anneal_from: 0.4,
            anneal_to: 0.6,
            ..Default::default()
        }),
        curriculum: Some(Curriculum { coarse_until: 0.0, fine_full_at: 0.0, ..Curriculum::default() }),
        ..config(arch)
    }
}

#[test]
fn sorting_brings_the_frequent_to_the_front_and_changes_nothing_else() {
    // Without decay the tree's counts are plain ones, of what the gate has not touched.
    let tree = Some(Tree { decay: 1.0, update_every: 5, ..Tree::default() });
    let mut trainer = Trainer::new(&Sae { tree, ..sorted(Arch::Hiersae) }, &train(), 7, &[0.0; D_MODEL]);
    let n1 = |trainer: &Trainer| trainer.state.tree.as_ref().unwrap().n1.clone();
    let mut curve = run(&mut trainer, 16);
    let n1_before = n1(&trainer);
    curve.extend(run(&mut trainer, 79));
    assert!(curve[0].l0_coarse + curve[0].l0_fine > 4.0 && curve.iter().all(|row| row.mse_prefixes == 0.0));
    let before = trainer.state.clone();
    for (j, (n1, n1_before)) in n1(&trainer).into_iter().zip(n1_before).enumerate() {
        assert_eq!(before.recent_firings[j] as f32, n1 - n1_before, "{j}");
    }
    let coarse: u64 = before.recent_firings[..5].iter().sum();
    let gated: f64 = curve[16..].iter().map(|row| 256.0 * row.l0_coarse).sum();
    assert!((coarse as f64 - gated).abs() >= 1.0, "the gate acts: {coarse} {gated}");

    trainer.sort();
    let after = &trainer.state;
    let row = |weights: &[f32], j: usize| weights[j * D_MODEL..][..D_MODEL].to_vec();
    let from: Vec<usize> = (0..12)
        .map(|to| (0..12).find(|&j| row(&before.weights.w_dec, j) == row(&after.weights.w_dec, to)).unwrap())
        .collect();
    assert!(!from.is_sorted() && from.is_sorted_by_key(|&j| std::cmp::Reverse(before.recent_firings[j])), "{from:?}");
    let pairs = [
        (&before.weights, &after.weights),
        (&before.adam.first, &after.adam.first),
        (&before.adam.second, &after.adam.second),
    ];
    for (to, &j) in from.iter().enumerate() {
        for (before, after) in pairs {
            assert_eq!(row(&before.w_enc, j), row(&after.w_enc, to));
            assert_eq!(row(&before.w_dec, j), row(&after.w_dec, to));
            assert_eq!(before.b_enc[j], after.b_enc[to]);
        }
        assert_eq!(before.tokens_since_fired[j], after.tokens_since_fired[to]);
    }
    assert_eq!(before.weights.b_dec, after.weights.b_dec);
    let (old, new) = (before.tree.as_ref().unwrap().parents(), after.tree.as_ref().unwrap().parents());
    assert!(old.iter().flatten().count() >= 2, "{old:?}");
    let number =
        |parent: Option<u32>| parent.map(|parent| from.iter().position(|&j| j == parent as usize).unwrap() as u32);
    assert!((0..12).all(|to| new[to] == number(old[from[to]])), "{old:?} {new:?} {from:?}");
    // The packed encoder follows: the next loss goes on from where it was.
    let loss = trainer.step(planted(256, 79)).unwrap().mse;
    assert!((loss / curve[78].mse - 1.0).abs() <= 0.2, "{loss} after {}", curve[78].mse);
}

#[test]
fn a_tree_of_coarse_parents_begins_again_where_others_are_coarse() {
    let tree = Tree { parents: artifact::config::ParentSet::Coarse, gate_from: 0.5, gate_to: 0.6, ..Tree::default() };
    let config = Sae { tree: Some(Tree { update_every: 5, ..tree }), ..sorted(Arch::Hiersae) };
    let mut trainer = Trainer::new(&config, &train(), 7, &[0.0; D_MODEL]);
    run(&mut trainer, 79);
    let edges = |trainer: &Trainer| trainer.state.tree.as_ref().unwrap().parents();
    assert!(edges(&trainer).iter().flatten().count() >= 1);
    run(&mut trainer, 80);
    assert!(edges(&trainer).iter().all(Option::is_none));
    run(&mut trainer, 200);
    let edges = edges(&trainer);
    assert!(edges[..5].iter().all(Option::is_none) && edges.iter().flatten().count() >= 1, "{edges:?}");
}

#[test]
fn the_own_parameters_of_an_sae_are_sorted_too() {
    let config = Sae { select: Some(Select::Jumprelu), k_anneal: None, ..sorted(Arch::Hiersae) };
    let mut trainer = Trainer::new(&config, &train(), 7, &[0.0; D_MODEL]);
    run(&mut trainer, 79);
    let before = trainer.state.clone();
    trainer.sort();
    let w_dec = |state: &TrainerState, j: usize| state.weights.w_dec[j * D_MODEL..][..D_MODEL].to_vec();
    for j in 0..12 {
        let to = (0..12).find(|&to| w_dec(&trainer.state, to) == w_dec(&before, j)).unwrap();
        assert_eq!(before.weights.own[0][j], trainer.state.weights.own[0][to]);
        assert_eq!(before.adam.second.own[0][j], trainer.state.adam.second.own[0][to]);
    }
    assert!(w_dec(&trainer.state, 0) != w_dec(&before, 0));
    let thresholds = &before.weights.own[0];
    assert!(thresholds.iter().any(|&threshold| threshold != thresholds[0]), "they tell latents apart");
}

#[test]
fn a_sorted_training_ends_at_its_budget_the_same_after_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let by = |rule| Tree { rule, update_every: 5, ..Tree::default() };
    let trees = [TreeRule::Mi, TreeRule::Random, TreeRule::Permuted].map(|rule| (Arch::Hiersae, Some(by(rule))));
    for (arch, tree) in [(Arch::Matryoshka, None)].into_iter().chain(trees) {
        let config = Sae { tree, ..sorted(arch) };
        let new = || Trainer::new(&config, &train(), 7, &[0.0; D_MODEL]);
        let mut whole = new();
        let curve = run(&mut whole, 200);
        let last = &curve[199];
        assert!((last.l0_coarse + last.l0_fine - 2.0).abs() <= 0.01 && last.mse_prefixes > 0.0);
        assert!(last.l0_coarse > last.l0_fine, "{} coarse, {} fine", last.l0_coarse, last.l0_fine);
        for stop in [10, 40, 79, 80, 81] {
            let mut first = new();
            run(&mut first, stop);
            // Counted from step 16 on, and sorted before step 80.
            let is_counting = first.state.recent_firings.iter().any(|&n| n > 0);
            assert_eq!(is_counting, (16..80).contains(&stop), "{:?}, after {stop} steps", config.tree);
            checkpoint::save(folder.path(), "key", &first, &[]).unwrap();
            let mut second = new();
            checkpoint::resume(folder.path(), "key", &mut second).unwrap().unwrap();
            run(&mut second, 200);
            assert!(second.state == whole.state, "{:?}, stopped at {stop}", config.tree);
        }
    }
}

#[test]
fn eight_bits_are_tried_again_as_the_budget_falls() {
    let mut trainer = Trainer::new(&sorted(Arch::Matryoshka), &train(), 7, &[0.0; D_MODEL]);
    run(&mut trainer, 20);
    trainer.packed = PackedEncoder::pack(Path::F32, &trainer.state.weights.w_enc, D_MODEL);
    run(&mut trainer, 21);
    assert_eq!(trainer.packed.path(), Path::detect());
}

/// Sizes at which every kernel has several blocks of everything, and none is full.
fn large(arch: Arch) -> (Sae, Train) {
    let n_coarse = if matches!(arch, Arch::Matryoshka | Arch::TreeSae | Arch::Hiersae) { 90 } else { 0 };
    let is_hiersae = arch == Arch::Hiersae;
    let sae = Sae {
        n_coarse,
        n_fine: 700 - n_coarse,
        k: 9,
        aux_k: match arch {
            Arch::Topk | Arch::Batchtopk | Arch::Matryoshka | Arch::TreeSae | Arch::Hiersae => {
                artifact::config::AuxK { dead_after: 1500, ..Default::default() }
            }
            _ => Default::default(),
        },
        tree: is_hiersae.then(|| Tree { gate_from: 0.2, gate_to: 0.3, update_every: 2, ..Tree::default() }),
        // Children move twice, and dead ones go to the root before the end.
        tree_sae: (arch == Arch::TreeSae).then(|| TreeSae {
            interval: 0.25,
            max_interval: 0.3,
            root_reset: 0.7,
            eligible_within: 1300,
            ..TreeSae::default()
        }),
        resample: (arch == Arch::Vanilla).then_some(artifact::config::Resample { every: 4, until: 1.0 }),
        panneal: match arch {
            Arch::Panneal => artifact::config::PAnneal { from: 0.1, to: 0.8, n_values: 4, p_end: 0.3 },
            _ => Default::default(),
        },
        ..config(arch)
    };
    let n_steps = 14;
    (sae, Train { batch_size: 600, n_tokens: 600 * n_steps, lr: 3e-3, lr_warmup: 0.0, ..Train::default() })
}

const LARGE_D_MODEL: usize = 100;

fn large_batch(step: u64) -> Vec<f32> {
    let mut rng = artifact::random::stream(3, "test/large", 0, step);
    (0..600 * LARGE_D_MODEL).map(|_| rng.random_range(-1.0f32..1.0).powi(3) * 3.0).collect()
}

fn run_large(trainer: &mut Trainer, until: u64) -> Vec<CurveRow> {
    let mut rows = Vec::new();
    while trainer.state.step < until {
        // From the middle on entries take over from dense products, whatever their number.
        if trainer.state.step == 7 {
            trainer.state.density = 0.0;
        }
        rows.push(trainer.step(large_batch(trainer.state.step)).unwrap());
    }
    rows
}

const ALL: [Arch; 10] = [
    Arch::Vanilla,
    Arch::Gated,
    Arch::Topk,
    Arch::Batchtopk,
    Arch::Jumprelu,
    Arch::Panneal,
    Arch::MatchingPursuit,
    Arch::Matryoshka,
    Arch::TreeSae,
    Arch::Hiersae,
];

#[test]
fn the_number_of_threads_changes_no_bit() {
    for arch in ALL {
        let run_with = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let (sae, train) = large(arch);
                let mut trainer = Trainer::new(&sae, &train, 7, &[0.0; LARGE_D_MODEL]);
                let curve = run_large(&mut trainer, 14);
                (trainer.state.clone(), curve)
            })
        };
        let one = run_with(1);
        for n_threads in [2, 8] {
            assert!(run_with(n_threads) == one, "{arch:?}, {n_threads} threads");
        }
    }
}

#[test]
fn an_interrupted_training_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for arch in ALL {
        let (sae, train) = large(arch);
        let new = || Trainer::new(&sae, &train, 7, &[0.0; LARGE_D_MODEL]);
        let mut whole = new();
        let curve = run_large(&mut whole, 14);
        for stop in [1, 5, 7, 10] {
            let mut first = new();
            let begun = run_large(&mut first, stop);
            checkpoint::save(folder.path(), "key", &first, &begun).unwrap();
            let mut second = new();
            let mut resumed = checkpoint::resume(folder.path(), "key", &mut second).unwrap().unwrap();
            resumed.extend(run_large(&mut second, 14));
            assert!(second.state == whole.state, "{arch:?}, stopped at {stop}");
            assert!(resumed == curve, "{arch:?}, stopped at {stop}");
        }
    }
}

#[test]
fn a_checkpoint_of_something_else_is_passed_over_and_a_damaged_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(&config(Arch::Hiersae), &train(), 7, &[0.0; D_MODEL]);
    checkpoint::save(folder.path(), "key", &trainer, &[]).unwrap();
    assert!(checkpoint::resume(folder.path(), "another key", &mut trainer).unwrap().is_none());
    let path = folder.path().join("state.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = format!("{:#}", checkpoint::resume(folder.path(), "key", &mut trainer).unwrap_err());
    assert!(error.contains("state.safetensors") && error.contains("delete it"), "{error}");
}

#[test]
fn a_diverging_training_stops_with_its_name() {
    let mut trainer = Trainer::new(&config(Arch::Batchtopk), &train(), 7, &[0.0; D_MODEL]);
    let mut x = planted(256, 0);
    x[5] = f32::NAN;
    let error = format!("{:#}", trainer.step(x).unwrap_err());
    assert!(error.contains("no longer finite at step 1"), "{error}");
}

#[test]
fn normalisation_is_folded_in() {
    let (trainer, plain) = trained(&config(Arch::Batchtopk));
    // The same SAE for rows that are stored four times as large and scaled down for training.
    let rows: Vec<f32> = planted(8192, 500).iter().map(|x| 4.0 * x).collect();
    let folded = finish(&trainer, 0.25, &rows);
    let mode = Mode { view: View::Flat, threshold: Threshold::Native };
    let x = planted(64, 700);
    let large: Vec<f32> = x.iter().map(|x| 4.0 * x).collect();
    let (small, large) = (plain.encode(&x, mode), folded.encode(&large, mode));
    assert_eq!(small.idx, large.idx);
    for (small, large) in small.vals.iter().zip(&large.vals) {
        assert!((4.0 * small - large).abs() <= 1e-4, "{small} {large}");
    }
}
