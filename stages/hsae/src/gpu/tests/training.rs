//! Fifty steps beside the CPU's, loss by loss.

use artifact::config::{Arch, AuxK, Curriculum, GpuPrecision, Sae, Select, Train, Tree};

use super::*;
use crate::checkpoint;
use crate::trainer::Trainer;

const N_STEPS: u64 = 50;
/// Of losses, relative.
const TOLERANCE: f64 = 1e-4;

fn sae(arch: Arch) -> Sae {
    let (_, d_sae, _) = ODD;
    let n_coarse = if matches!(arch, Arch::Matryoshka | Arch::Hiersae) { 40 } else { 0 };
    Sae { name: "test".into(), arch, n_coarse, n_fine: d_sae - n_coarse, k: 5, ..Sae::default() }
}

fn train() -> Train {
    let (batch_size, ..) = ODD;
    let gpu_precision = GpuPrecision::F32;
    Train { batch_size, n_tokens: batch_size as u64 * N_STEPS, lr: 1e-3, gpu_precision, ..Train::default() }
}

fn batch(step: u64) -> Vec<f32> {
    let (n_rows, _, d_model) = ODD;
    random(1000 + step, n_rows * d_model).into_iter().map(|x| 3.0 * x.powi(3)).collect()
}

fn trainer(sae: &Sae) -> Trainer {
    let (_, _, d_model) = ODD;
    Trainer::new(sae, &train(), 7, &random(5, d_model))
}

fn check(sae: &Sae) {
    let (mut on_cpu, mut on_gpu) = (trainer(sae), trainer(sae));
    on_gpu.move_to(&gpu()).unwrap();
    let mut was_dead = false;
    for step in 0..N_STEPS {
        let (expected, found) = (on_cpu.step(batch(step)).unwrap(), on_gpu.step(batch(step)).unwrap());
        was_dead |= expected.aux > 0.0;
        let numbers = [
            ("loss", expected.loss, found.loss, TOLERANCE),
            ("fvu", expected.fvu, found.fvu, TOLERANCE),
            ("aux", expected.aux, found.aux, TOLERANCE),
            ("grad_norm", expected.grad_norm, found.grad_norm, 10.0 * TOLERANCE),
            ("l0_coarse", expected.l0_coarse, found.l0_coarse, 0.02),
            ("l0_fine", expected.l0_fine, found.l0_fine, 0.02),
            ("gate", expected.gate, found.gate, TOLERANCE),
            ("dead", expected.dead, found.dead, 0.05),
        ];
        for (what, expected, found, tolerance) in numbers {
            let is_close = (expected - found).abs() <= tolerance * expected.abs().max(1e-6);
            assert!(is_close, "{:?}, step {step}, {what}: {found}, expected {expected}", sae.arch);
        }
        assert_eq!((found.step, found.tokens, found.lr_fine), (expected.step, expected.tokens, expected.lr_fine));
    }
    assert_eq!(was_dead, sae.aux_k.dead_after < 1000, "dead latents are asked to help where the test wants it");
    on_gpu.sync().unwrap();
    let (found, expected) = (on_gpu.state.weights.named(), on_cpu.state.weights.named());
    for ((name, found), (_, expected)) in found.into_iter().zip(expected) {
        let square = |values: &[f32]| values.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        let (found, expected) = (square(found), square(expected));
        assert!((found - expected).abs() <= 1e-3 * expected.max(1e-6), "{:?}, {name}: {found} {expected}", sae.arch);
    }
}

#[test]
fn topk() {
    check(&sae(Arch::Topk));
    check(&Sae { apply_b_dec_to_input: false, ..sae(Arch::Topk) });
}

#[test]
fn batchtopk() {
    check(&sae(Arch::Batchtopk));
}

#[test]
fn matryoshka() {
    check(&sae(Arch::Matryoshka));
    check(&Sae { k_coarse: Some(2), select: Some(Select::Topk), ..sae(Arch::Matryoshka) });
}

#[test]
fn dead_latents_in_both_normalisations() {
    for (normalise, arch) in [(false, Arch::Topk), (false, Arch::Matryoshka), (true, Arch::Batchtopk)] {
        check(&Sae { aux_k: AuxK { dead_after: 200, normalise, ..AuxK::default() }, ..sae(arch) });
    }
}

#[test]
fn hiersae_with_its_tree_and_curriculum() {
    let tree = || Some(Tree { gate_from: 0.3, gate_to: 0.5, update_every: 5, min_excess: 0.1, ..Tree::default() });
    let config = |select| Sae { tree: tree(), select: Some(select), ..sae(Arch::Hiersae) };
    for select in [Select::Batchtopk, Select::Topk] {
        check(&config(select));
    }
    let curriculum = Some(Curriculum { coarse_until: 0.0, fine_full_at: 0.0, ..Curriculum::default() });
    check(&Sae { curriculum, k_coarse: Some(2), ..config(Select::Batchtopk) });
}

#[test]
fn an_interrupted_training_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let aux_k = AuxK { dead_after: 200, ..AuxK::default() };
    let tree = Some(Tree { gate_from: 0.2, gate_to: 0.3, update_every: 2, ..Tree::default() });
    let sae = Sae { aux_k, tree, ..sae(Arch::Hiersae) };
    let run = |trainer: &mut Trainer, until: u64| {
        let mut rows = vec![];
        while trainer.state.step < until {
            rows.push(trainer.step(batch(trainer.state.step)).unwrap());
        }
        trainer.sync().unwrap();
        rows
    };
    let on_gpu = || {
        let mut trainer = trainer(&sae);
        trainer.move_to(&gpu()).unwrap();
        trainer
    };
    let mut whole = on_gpu();
    let curve = run(&mut whole, 30);
    for stop in [2, 17] {
        let mut first = on_gpu();
        let begun = run(&mut first, stop);
        checkpoint::save(folder.path(), "key", &first, &begun).unwrap();
        let mut second = trainer(&sae);
        let mut resumed = checkpoint::resume(folder.path(), "key", &mut second).unwrap().unwrap();
        second.move_to(&gpu()).unwrap();
        resumed.extend(run(&mut second, 30));
        assert!(resumed == curve && second.state == whole.state, "stopped at {stop}");
    }
}

#[test]
fn what_a_gpu_does_not_train_is_refused_by_name() {
    let refused = |sae: Sae| trainer(&sae).move_to(&gpu()).unwrap_err().to_string();
    for arch in [Arch::Vanilla, Arch::Gated, Arch::Jumprelu, Arch::Panneal, Arch::MatchingPursuit] {
        let error = refused(sae(arch));
        assert!(error.starts_with("test: ") && error.ends_with("set device: cpu"), "{error}");
    }
    let error = refused(Sae { select: Some(Select::Relu), ..sae(Arch::Hiersae) });
    assert!(error.contains("select is topk or batchtopk"), "{error}");
    let tree = Some(Tree { w_mi: 0.1, ..Tree::default() });
    assert!(refused(Sae { tree, ..sae(Arch::Hiersae) }).contains("w_mi"));
}

#[test]
fn a_diverging_training_stops_with_its_name() {
    let mut trainer = trainer(&sae(Arch::Batchtopk));
    trainer.move_to(&gpu()).unwrap();
    let mut x = batch(0);
    x[5] = f32::NAN;
    let error = format!("{:#}", trainer.step(x).unwrap_err());
    assert!(error.contains("no longer finite at step 1"), "{error}");
}
