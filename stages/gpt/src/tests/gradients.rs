//! The passes by hand against burn's automatic differentiation and against differences of the loss.

use artifact::config::Products;
use artifact::random::stream;
use burn::tensor::Device;
use rand::RngExt;

use super::{batch, tiny};
use crate::{AdamW, DropoutOf, HostPass, Shape, State, TensorTraining};

const ADAM: AdamW = AdamW { beta1: 0.9, beta2: 0.99, weight_decay: 0.1, max_grad_norm: 1.0 };

/// Largest difference, over the largest value.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0.0f64, |max, &x| max.max(f64::from(x.abs())));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0f64, |max, (&a, &b)| max.max(f64::from((a - b).abs()))) / largest
}

#[test]
fn loss_and_every_gradient_are_those_of_automatic_differentiation() {
    let (shape, weights) = tiny();
    // One context, fewer contexts than shards, more; a context of one block of attention, and of two.
    for (n, length) in [(1, 5), (3, 64), (11, 70)] {
        let (inputs, targets) = batch(&shape, n, length, 0);
        let mut pass = HostPass::new(shape, length, Products::F32);
        let found = pass.train(&weights, (&inputs, &targets), None);
        let mut state = State::new(weights.clone());
        let mut naive = TensorTraining::new(shape, length, &state, &Device::flex());
        let expected = naive.train(&ADAM, (&inputs, &targets), 1e-3, None).unwrap();
        assert!((found.loss - expected.loss).abs() <= 2e-6, "{} against {}", found.loss, expected.loss);
        let gradient = naive.gradient().unwrap();
        for parameter in shape.parameters() {
            let place = || parameter.place.clone();
            let off = off(&pass.gradient()[place()], &gradient[place()]);
            assert!(off <= 2e-5, "{} of {n} contexts of {length}: {off:e}", parameter.name);
        }
        assert!((found.sum_of_squares / expected.sum_of_squares - 1.0).abs() <= 1e-5);
        ADAM.update(&shape, &mut state, pass.gradient(), 1e-3, found.sum_of_squares.sqrt());
        let moved: Vec<f32> = state.weights.iter().zip(&weights).map(|(after, before)| after - before).collect();
        let expected = naive.state().unwrap();
        let expected: Vec<f32> = expected.weights.iter().zip(&weights).map(|(after, before)| after - before).collect();
        // Adam's first step is lr · sign(gradient), so that a gradient near zero may go either way.
        let n_apart = moved.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 2e-5).count();
        assert!(n_apart * 1000 <= moved.len(), "{n_apart} of {}", moved.len());
    }
}

/// The dropped values are those of the keys, the same at each call, so that the loss is a function of the weights.
#[test]
fn with_dropout_the_gradient_is_the_slope_of_the_loss() {
    let (shape, weights) = tiny();
    let (inputs, targets) = batch(&shape, 9, 66, 1);
    let dropout = Some(DropoutOf { probability: 0.3, seed: 5, step: 2 });
    let mut pass = HostPass::new(shape, 66, Products::F32);
    pass.train(&weights, (&inputs, &targets), dropout);
    let gradient = pass.gradient().to_vec();
    let mut random = stream(0, "tests/directions", 0, 0);
    for parameter in shape.parameters() {
        let direction: Vec<f32> = parameter.place.clone().map(|_| random.random_range(-1.0f32..1.0)).collect();
        let mut at = |step: f32| {
            let mut moved = weights.clone();
            moved[parameter.place.clone()].iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
            pass.train(&moved, (&inputs, &targets), dropout).loss
        };
        let slope = (at(3e-4) - at(-3e-4)) / 6e-4;
        let of_gradient: f64 =
            gradient[parameter.place.clone()].iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        let length = gradient[parameter.place.clone()].iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        // Of a difference of two losses near 3 in f32 sums, and the loss is curved.
        let off = (slope - of_gradient).abs();
        assert!(off <= 1e-2 * length, "{}: {slope} against {of_gradient}", parameter.name);
    }
}

#[test]
fn dropout_changes_the_loss_and_an_evaluation_drops_nothing() {
    let (shape, weights) = tiny();
    let (inputs, targets) = batch(&shape, 4, 20, 2);
    let mut pass = HostPass::new(shape, 20, Products::F32);
    let plain = pass.train(&weights, (&inputs, &targets), None).loss;
    let dropped = |pass: &mut HostPass, step| {
        let dropout = DropoutOf { probability: 0.5, seed: 0, step };
        pass.train(&weights, (&inputs, &targets), Some(dropout)).loss
    };
    let (one, another) = (dropped(&mut pass, 0), dropped(&mut pass, 1));
    assert!(one != plain && one != another, "{plain} {one} {another}");
    assert_eq!(dropped(&mut pass, 0), one);
    assert_eq!(pass.loss(&weights, (&inputs, &targets)), plain);
}

#[test]
fn rounded_products_change_loss_and_gradients_by_little() {
    let shape = Shape { n_layers: 2, n_heads: 4, d_model: 96, context_length: 70, n_vocab: 30 };
    let weights: Vec<f32> = crate::initial(&shape, 3).into_iter().map(|w| w * 2.0).collect();
    let (inputs, targets) = batch(&shape, 11, 70, 0);
    let run = |products| {
        let mut pass = HostPass::new(shape, 70, products);
        let loss = pass.train(&weights, (&inputs, &targets), None).loss;
        (loss, pass.gradient().to_vec(), pass.loss(&weights, (&inputs, &targets)))
    };
    let (loss, gradient, validation) = run(Products::F32);
    for (products, tolerance) in [(Products::Bf16, 0.01), (Products::Int8, 0.05)] {
        let (rounded_loss, rounded, rounded_validation) = run(products);
        assert!(rounded_loss != loss && (rounded_loss - loss).abs() <= 1e-3, "{products:?}: {rounded_loss} {loss}");
        assert_eq!(rounded_validation, validation, "a loss alone is f32's");
        for parameter in shape.parameters() {
            let place = || parameter.place.clone();
            let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let differences: Vec<f32> = rounded[place()].iter().zip(&gradient[place()]).map(|(a, b)| a - b).collect();
            let off = norm(&differences) / norm(&gradient[place()]);
            assert!(off > 0.0 && off <= tolerance, "{products:?}, {}: {off}", parameter.name);
        }
    }
}

#[test]
fn the_same_bits_at_any_number_of_threads() {
    for products in [Products::F32, Products::Int8] {
        same_bits_at_any_number_of_threads(products);
    }
}

fn same_bits_at_any_number_of_threads(products: Products) {
    let shape = Shape { n_layers: 2, n_heads: 2, d_model: 32, context_length: 80, n_vocab: 20 };
    let weights = crate::initial(&shape, 0);
    let run = |n_threads: usize| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        threads.install(|| {
            let mut pass = HostPass::new(shape, 80, products);
            let mut state = State::new(weights.clone());
            for step in 0..3 {
                let (inputs, targets) = batch(&shape, 13, 80, step);
                let dropout = DropoutOf { probability: 0.1, seed: 0, step };
                let outcome = pass.train(&state.weights, (&inputs, &targets), Some(dropout));
                ADAM.update(&shape, &mut state, pass.gradient(), 1e-3, outcome.sum_of_squares.sqrt());
            }
            state
        })
    };
    let one = run(1);
    assert!(one.weights.iter().all(|weight| weight.is_finite()));
    for n_threads in [2, 3, 8] {
        assert!(run(n_threads) == one, "{products:?}, {n_threads} threads");
    }
}

#[test]
fn the_training_on_tensors_learns_and_goes_on_from_its_state() {
    let shape = Shape { n_layers: 1, n_heads: 2, d_model: 16, context_length: 16, n_vocab: 5 };
    let state = State::new(crate::initial(&shape, 0));
    let (inputs, _) = batch(&shape, 8, 16, 0);
    // What follows a token is the token after it in the alphabet.
    let targets: Vec<u32> = inputs.iter().map(|token| (token + 1) % 5).collect();
    let mut training = TensorTraining::new(shape, 16, &state, &Device::flex());
    let step = |training: &mut TensorTraining, step| {
        let dropout = DropoutOf { probability: 0.1, seed: 0, step };
        training.train(&ADAM, (&inputs, &targets), 1e-2, Some(dropout)).unwrap().loss
    };
    let first = step(&mut training, 0);
    for i in 1..60 {
        step(&mut training, i);
    }
    let last = training.loss((&inputs, &targets)).unwrap();
    assert!(first >= 1.5 && last <= 0.5, "{first} to {last}");
    let state = training.state().unwrap();
    let mut pass = HostPass::new(shape, 16, Products::F32);
    let on_host = pass.loss(&state.weights, (&inputs, &targets));
    assert!((on_host - last).abs() <= 1e-5, "{on_host} against {last}");
    let mut resumed = TensorTraining::new(shape, 16, &state, &Device::flex());
    assert_eq!(step(&mut resumed, 60), step(&mut training, 60));
}
