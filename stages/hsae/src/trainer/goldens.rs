//! Fifty steps of each architecture beside the published PyTorch trainer's, from the same weights on the same data:
//! `tests/reference/training.py` made the curves. Each runs twice, by dense products and over entries, where both exist.

use std::collections::BTreeMap;

use artifact::config::{
    AuxK, Curriculum, DecoderNorms, JumpRelu as JumpReluConfig, PAnneal as PAnnealConfig, ParentSet,
    Prefixes as PrefixesConfig, Tree, TreeSae,
};

use super::*;

const D_MODEL: usize = 24;
const D_SAE: usize = 64;
const N_COARSE: usize = 16;
const N_FEATURES: usize = 96;
const BATCH: usize = 64;
const N_STEPS: usize = 50;
/// Of losses, relative.
const TOLERANCE: f64 = 1e-4;

fn uniform(stream: u64, i: u64) -> f64 {
    let mut z = ((stream << 40) + i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ z >> 31) >> 40) as f64 / f64::from(1u32 << 24)
}

fn unit_rows(stream: u64, n_rows: usize) -> Vec<Vec<f64>> {
    let row = |i: usize| {
        let row: Vec<f64> = (0..D_MODEL).map(|c| 2.0 * uniform(stream, (i * D_MODEL + c) as u64) - 1.0).collect();
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / length).collect()
    };
    (0..n_rows).map(row).collect()
}

fn batch(step: usize) -> Vec<f32> {
    let directions = unit_rows(1, N_FEATURES);
    let token = |t: usize| {
        let u = |i: usize| uniform(2, (t * 64 + i) as u64);
        let mut x = vec![0f64; D_MODEL];
        for m in 0..4 {
            let feature = (96.0 * u(2 * m)) as usize;
            let coefficient = 0.5 + 1.5 * u(2 * m + 1);
            x.iter_mut().zip(&directions[feature]).for_each(|(x, d)| *x += coefficient * d);
        }
        let noise = (0..D_MODEL).map(|c| 0.1 * (2.0 * u(16 + c) - 1.0)).collect::<Vec<_>>();
        x.into_iter().zip(noise).map(|(x, noise)| (2.0 * x + noise) as f32).collect::<Vec<_>>()
    };
    (step * BATCH..(step + 1) * BATCH).flat_map(token).collect()
}

/// A golden: losses by step, the other columns by name, and the sums of squares of what was trained.
struct Golden {
    losses: Vec<f64>,
    columns: BTreeMap<String, Vec<f64>>,
    finals: BTreeMap<String, f64>,
}

fn golden(name: &str) -> Golden {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training");
    let text = std::fs::read_to_string(format!("{folder}/{name}.txt")).unwrap();
    let mut golden = Golden { losses: Vec::new(), columns: BTreeMap::new(), finals: BTreeMap::new() };
    let mut names = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["#", "columns:", _, _, ..] => names = words[2..].to_vec(),
            ["#", ..] => {}
            ["final", name, value] => drop(golden.finals.insert(name.to_owned(), value.parse().unwrap())),
            [_, loss, ..] => {
                golden.losses.push(loss.parse().unwrap());
                for (&name, value) in names.iter().zip(&words) {
                    golden.columns.entry(name.to_owned()).or_default().push(value.parse().unwrap());
                }
            }
            _ => panic!("{name}: {line}"),
        }
    }
    assert_eq!(golden.losses.len(), N_STEPS);
    golden
}

/// The recipe that all share: a flat SAE, a constant learning rate, nothing clipped, nothing dead.
fn recipe(arch: Arch) -> Sae {
    Sae {
        name: "golden".into(),
        arch,
        n_fine: D_SAE,
        k: 6,
        l1: matches!(arch, Arch::Vanilla | Arch::Gated | Arch::Jumprelu | Arch::Panneal).then_some(0.1),
        aux_k: AuxK { dead_after: 256, normalise: true, ..AuxK::default() },
        ..Sae::default()
    }
}

fn two_level(arch: Arch) -> Sae {
    Sae { n_coarse: N_COARSE, n_fine: D_SAE - N_COARSE, ..recipe(arch) }
}

fn trainer(config: &Sae, max_grad_norm: f64) -> Trainer {
    let train = Train {
        batch_size: BATCH,
        n_tokens: (BATCH * N_STEPS) as u64,
        lr: 1e-3,
        lr_warmup: 0.0,
        lr_decay: 0.0,
        max_grad_norm,
        ..Train::default()
    };
    let mut trainer = Trainer::new(config, &train, 1, &[0.0; D_MODEL]);
    let rows: Vec<f32> = unit_rows(3, D_SAE).into_iter().flatten().map(|w| w as f32).collect();
    trainer.state.weights.w_enc.clone_from(&rows);
    trainer.state.weights.w_dec = rows;
    trainer
}

/// Trains, and compares every loss and the trained parameters. `dense` decides the pass where there is a choice.
fn check(name: &str, trainer: Trainer, dense: bool) {
    check_steps(name, trainer, dense, |_, _| Vec::new());
}

/// The same, and compares what else is known of a step, by the names of the golden's columns: `others` sees the trainer
/// and what it said of the step.
fn check_steps(
    name: &str,
    mut trainer: Trainer,
    dense: bool,
    mut others: impl FnMut(&Trainer, &CurveRow) -> Vec<(&'static str, f64)>,
) {
    let golden = golden(name);
    trainer.repack();
    for (step, &expected) in golden.losses.iter().enumerate() {
        trainer.state.density = if dense { 1.0 } else { 0.0 };
        let row = trainer.step(batch(step)).unwrap();
        let others =
            others(&trainer, &row).into_iter().map(|(column, value)| (column, value, golden.columns[column][step]));
        for (column, found, expected) in [("loss", row.loss, expected)].into_iter().chain(others) {
            let difference = (found - expected).abs();
            assert!(difference <= TOLERANCE * expected, "{name}, step {step}, {column}: {found}, expected {expected}");
        }
    }
    trainer.sync().unwrap();
    let weights = &trainer.state.weights;
    let is_gated = trainer.config.arch == Arch::Gated;
    for (name_of, expected) in golden.finals {
        let values = match name_of.as_str() {
            "w_enc" => &weights.w_enc,
            "b_enc" | "b_gate" => &weights.b_enc,
            "w_dec" => &weights.w_dec,
            "b_dec" => &weights.b_dec,
            "threshold" | "r_mag" => &weights.own[0],
            "b_mag" if is_gated => &weights.own[1],
            "parents" => {
                let parents = match &trainer.state.family {
                    Some(family) => family.parent.iter().copied().map(Some).collect(),
                    None => trainer.state.tree.as_ref().map(TreeLearner::parents).unwrap_or_default(),
                };
                let of =
                    |(j, parent): (usize, &Option<u32>)| parent.map_or(0, |parent| (j + 1) * (parent as usize + 1));
                let found: usize = parents.iter().enumerate().map(of).sum();
                assert_eq!(found as f64, expected, "{name}: parents");
                continue;
            }
            "l0" => continue,
            other => panic!("{name}: unknown checksum {other}"),
        };
        let found: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
        let difference = (found - expected).abs() / expected;
        assert!(difference <= 1e-3, "{name}, {name_of}: {found}, expected {expected}");
    }
}

/// Rows of the first encoder an eighth as long, so that these latents die.
fn weaken(mut trainer: Trainer, rows: std::ops::Range<usize>) -> Trainer {
    trainer.state.weights.w_enc[rows.start * D_MODEL..rows.end * D_MODEL].iter_mut().for_each(|w| *w *= 0.125);
    trainer
}

#[test]
fn the_data_are_those_of_the_script() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/training");
    let text = std::fs::read_to_string(format!("{folder}/data.txt")).unwrap();
    let x: Vec<f32> = (0..N_STEPS).flat_map(batch).collect();
    let sum_of_squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let line = text.lines().find(|line| line.starts_with("sum_sq_x")).unwrap();
    let expected: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((sum_of_squares - expected).abs() <= 1e-6 * expected, "{sum_of_squares} {expected}");
}

#[test]
fn vanilla() {
    for dense in [true, false] {
        check("vanilla", trainer(&recipe(Arch::Vanilla), 1e30), dense);
    }
}

#[test]
fn vanilla_weighted_by_decoder_norms() {
    for dense in [true, false] {
        let config = Sae { l1_weighting: L1Weighting::DecoderNorm, ..recipe(Arch::Vanilla) };
        check("vanilla_decoder_norm", trainer(&config, 1.0), dense);
    }
}

#[test]
fn gated() {
    for dense in [true, false] {
        check("gated", trainer(&recipe(Arch::Gated), 1e30), dense);
    }
}

#[test]
fn panneal() {
    for dense in [true, false] {
        let panneal = PAnnealConfig { p_end: 0.2, from: 0.2, to: 1.0, n_values: 10 };
        check("panneal", trainer(&Sae { panneal, ..recipe(Arch::Panneal) }, 1e30), dense);
    }
}

#[test]
fn topk_with_and_without_dead_latents() {
    check("topk", trainer(&recipe(Arch::Topk), 1.0), false);
    check("topk_dead", weaken(trainer(&recipe(Arch::Topk), 1.0), 48..64), false);
}

#[test]
fn batchtopk_with_and_without_dead_latents() {
    check("batchtopk", trainer(&recipe(Arch::Batchtopk), 1.0), false);
    check("batchtopk_dead", weaken(trainer(&recipe(Arch::Batchtopk), 1.0), 48..64), false);
}

fn nested() -> Sae {
    // dictionary_learning averages the groups' errors, which are weighted by one over their number already.
    let prefixes =
        PrefixesConfig { fixed: vec![N_COARSE], n_random: 0, beta: 0.25, beta_full: 0.25, ..PrefixesConfig::default() };
    Sae { prefixes: Some(prefixes), ..two_level(Arch::Matryoshka) }
}

#[test]
fn matryoshka_with_and_without_dead_latents() {
    check("matryoshka", trainer(&nested(), 1.0), false);
    check("matryoshka_dead", weaken(trainer(&nested(), 1.0), 48..64), false);
}

fn jumprelu(jumprelu: JumpReluConfig) -> Sae {
    let aux_k = AuxK { weight: Some(1.0 / 32.0), dead_after: 255, ..AuxK::default() };
    let jumprelu = JumpReluConfig { threshold: 0.05, bandwidth: 0.1, ..jumprelu };
    // SAELens trains with momentum, and leaves decoder norms free.
    let (adam_beta1, decoder_norms) = (Some(0.9), Some(DecoderNorms::Free));
    Sae { jumprelu, aux_k, adam_beta1, decoder_norms, ..recipe(Arch::Jumprelu) }
}

#[test]
fn jumprelu_counting_active_latents() {
    for dense in [true, false] {
        check("jumprelu_step", trainer(&jumprelu(JumpReluConfig::default()), 1e30), dense);
        let quadratic = JumpReluConfig { sparsity: JumpReluSparsity::Quadratic, ..JumpReluConfig::default() };
        check("jumprelu_quadratic", trainer(&jumprelu(quadratic), 1e30), dense);
    }
}

#[test]
fn jumprelu_by_tanh_with_and_without_dead_latents() {
    for dense in [true, false] {
        let config = jumprelu(JumpReluConfig {
            sparsity: JumpReluSparsity::Tanh,
            reaches_input: true,
            pre_act_loss: 3e-3,
            ..JumpReluConfig::default()
        });
        check("jumprelu_tanh", trainer(&config, 1e30), dense);
        let mut with_dead = trainer(&config, 1e30);
        with_dead.state.weights.b_enc[D_SAE - 8..].fill(-20.0);
        check("jumprelu_tanh_dead", with_dead, dense);
    }
}

#[test]
fn matching_pursuit() {
    check("matching_pursuit", trainer(&recipe(Arch::MatchingPursuit), 1.0), false);
}

fn hiersae_with(fixed: Vec<usize>, min_excess: f64) -> Sae {
    Sae {
        aux_k: AuxK { weight: Some(0.0), ..AuxK::default() },
        prefixes: Some(PrefixesConfig { fixed, n_random: 0, ..PrefixesConfig::default() }),
        curriculum: Some(Curriculum { coarse_until: 0.0, fine_full_at: 0.0, ..Curriculum::default() }),
        tree: Some(Tree {
            parents: ParentSet::Any,
            update_every: 5,
            min_excess,
            firings_per_step: BATCH,
            ..Tree::default()
        }),
        ..two_level(Arch::Hiersae)
    }
}

#[test]
fn hiersae() {
    check("hiersae", trainer(&hiersae_with(vec![4, N_COARSE, 40], 0.5), 1.0), false);
    check("hiersae_two_levels", trainer(&hiersae_with(vec![N_COARSE], 0.5), 1.0), false);
    check("hiersae_edges", trainer(&hiersae_with(vec![N_COARSE], 0.05), 1.0), false);
}

/// The same on a GPU, where there is one.
#[cfg(feature = "gpu")]
#[test]
fn what_a_gpu_trains() {
    let on_gpu = |mut trainer: Trainer| {
        trainer.train.gpu_precision = artifact::config::GpuPrecision::F32;
        trainer.move_to(&gpu::tests::gpu()).unwrap();
        trainer
    };
    for (name, arch) in [("topk", Arch::Topk), ("batchtopk", Arch::Batchtopk)] {
        check(name, on_gpu(trainer(&recipe(arch), 1.0)), false);
        check(&format!("{name}_dead"), on_gpu(weaken(trainer(&recipe(arch), 1.0), 48..64)), false);
    }
    check("matryoshka", on_gpu(trainer(&nested(), 1.0)), false);
    check("matryoshka_dead", on_gpu(weaken(trainer(&nested(), 1.0), 48..64)), false);
    check("hiersae", on_gpu(trainer(&hiersae_with(vec![4, N_COARSE, 40], 0.5), 1.0)), false);
    check("hiersae_two_levels", on_gpu(trainer(&hiersae_with(vec![N_COARSE], 0.5), 1.0)), false);
    check("hiersae_edges", on_gpu(trainer(&hiersae_with(vec![N_COARSE], 0.05), 1.0)), false);
}

#[test]
fn tree_sae() {
    let config = Sae {
        k: 3,
        aux_k: AuxK { dead_after: 4 * BATCH as u64, k: Some(3), ..AuxK::default() },
        tree_sae: Some(TreeSae {
            interval: 0.2,
            max_interval: 0.3,
            root_reset: 0.8,
            eligible_within: 3 * BATCH as u64,
            ..TreeSae::default()
        }),
        ..two_level(Arch::TreeSae)
    };
    let mut trainer = weaken(trainer(&config, 1e30), 12..16);
    let mut before: Vec<u32> =
        (0..D_SAE - N_COARSE).map(|j| ((N_COARSE + 1) as f64 * uniform(4, j as u64)) as u32).collect();
    trainer.state.family.as_mut().unwrap().parent.clone_from(&before);
    check_steps("tree_plain", trainer, false, |trainer, row| {
        let parent = &trainer.state.family.as_ref().unwrap().parent;
        let n_moved = parent.iter().zip(&before).filter(|(now, before)| now != before).count();
        before.clone_from(parent);
        let n_dead = |since: &[u64]| since.iter().filter(|&&tokens| tokens >= 4 * BATCH as u64).count() as f64;
        let (coarse, fine) = trainer.state.tokens_since_fired.split_at(N_COARSE);
        let l0 = row.l0_coarse + row.l0_fine;
        let losses = [("mse_16", row.mse_prefixes), ("mse", row.mse), ("aux", row.aux), ("l0", l0)];
        let counts = [("n_dead_16", n_dead(coarse)), ("n_dead_48", n_dead(fine)), ("n_moved", n_moved as f64)];
        losses.into_iter().chain(counts).collect()
    });
}
