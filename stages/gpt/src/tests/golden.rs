//! Steps of training against PyTorch's: `tests/reference/pretrain_steps.py`, whose formulas these are.

use artifact::config::Products;
use std::collections::BTreeMap;

use crate::{AdamW, HostPass, Kind, Schedule, Shape, State};

const SHAPE: Shape = Shape { n_layers: 2, n_heads: 3, d_model: 24, context_length: 20, n_vocab: 17 };
const BATCH: usize = 9;

fn weights() -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + 13) % 1009) as f64 / 1009.0 * 0.3 - 0.15;
    let mut weights: Vec<f32> = (0..SHAPE.n_parameters()).map(|i| value(i) as f32).collect();
    for gain in SHAPE.parameters().into_iter().filter(|parameter| parameter.kind == Kind::Gain) {
        weights[gain.place].iter_mut().for_each(|w| *w += 1.0);
    }
    weights
}

fn tokens(step: usize) -> (Vec<u32>, Vec<u32>) {
    let id = |i: usize| ((i * i * 31 + i * 7 + step * 101) % 1013 % SHAPE.n_vocab) as u32;
    let row = |row: usize, from: usize| {
        (0..SHAPE.context_length).map(move |i| id(row * (SHAPE.context_length + 1) + from + i))
    };
    let rows = |from: usize| (0..BATCH).flat_map(|i| row(i, from)).collect();
    (rows(0), rows(1))
}

#[test]
fn five_steps_are_those_of_pytorch() {
    let table = include_str!("../../../../tests/golden/pretrain_steps.txt");
    let expected: BTreeMap<&str, f64> = table
        .lines()
        .skip(1)
        .map(|line| line.split_once('\t').unwrap())
        .map(|(what, x)| (what, x.parse().unwrap()))
        .collect();
    let check = |what: String, found: f64, tolerance: f64| {
        let off = (found - expected[what.as_str()]).abs();
        assert!(off <= tolerance, "{what}: {found} against {}", expected[what.as_str()]);
    };
    let adam = AdamW { beta1: 0.9, beta2: 0.99, weight_decay: 0.1, max_grad_norm: 1.0 };
    let schedule = Schedule { lr: 1e-2, lr_min: 1e-3, warmup_steps: 3, n_steps: 10 };
    let mut pass = HostPass::new(SHAPE, SHAPE.context_length, Products::F32);
    let mut state = State::new(weights());
    for step in 0..5 {
        let (inputs, targets) = tokens(step);
        let outcome = pass.train(&state.weights, (&inputs, &targets), None);
        let norm = outcome.sum_of_squares.sqrt();
        adam.update(&SHAPE, &mut state, pass.gradient(), schedule.lr(step as u64), norm);
        check(format!("loss {step}"), outcome.loss, 1e-5);
        check(format!("norm {step}"), norm, 1e-4);
    }
    for parameter in SHAPE.parameters() {
        let values = || state.weights[parameter.place.clone()].iter().map(|&w| f64::from(w));
        // Adam divides by the gradient's own size, so that what is near zero there is far apart here.
        let tolerance = 3e-5 * parameter.place.len() as f64;
        check(format!("sum {}", parameter.name), values().sum(), tolerance);
        check(format!("size {}", parameter.name), values().map(f64::abs).sum(), tolerance);
    }
}
