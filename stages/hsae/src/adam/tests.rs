use super::*;
use crate::kernels::screen::Path;

/// Updates with the gradient's true norm.
fn update(adam: &mut Adam, weights: &mut Weights, grads: &Gradients, lr_rows: &[f32], lr: f32) -> f32 {
    let mut packed = PackedEncoder::pack(Path::detect(), &weights.w_enc, weights.d_model);
    let all = grads.w_enc.iter().chain(&grads.b_enc).chain(&grads.w_dec).chain(&grads.b_dec);
    let sum_of_squares = all.map(|&g| f64::from(g) * f64::from(g)).sum();
    let rows = grads.w_dec.chunks(weights.d_model).zip(weights.w_dec.chunks(weights.d_model));
    let along: Vec<f32> = rows.map(|(g, w)| if adam.lengths == Lengths::UnitAfter { dot(g, w) } else { 0.0 }).collect();
    adam.update(weights, &mut packed, grads, sum_of_squares, &along, lr_rows, lr)
}

/// Three steps written out as the paper has them, in f64.
#[test]
fn agrees_with_the_paper() {
    let (d_model, d_sae) = (3, 2);
    let mut weights = Weights::init(1, d_model, d_sae, &[0.1, 0.2, 0.3]);
    let mut expected: Vec<f64> = weights.w_enc.iter().map(|&w| f64::from(w)).collect();
    let (mut m, mut v) = (vec![0f64; 6], vec![0f64; 6]);
    let mut adam = Adam::new(&weights, 0.9, 0.999, 1e9, Lengths::UnitAfter);
    let lr = [0.01, 0.002];
    for step in 1..=3usize {
        let g: Vec<f32> = (0..6).map(|i| ((i + step) as f32).sin()).collect();
        let grads = Gradients { w_enc: g.clone(), ..Gradients::zeros(d_model, d_sae) };
        update(&mut adam, &mut weights, &grads, &lr, 0.01);
        for i in 0..6 {
            let g = f64::from(g[i]);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.999f64.powi(step as i32)));
            expected[i] -= f64::from(lr[i / 3]) * m_hat / (v_hat.sqrt() + 1e-8);
        }
    }
    for (found, expected) in weights.w_enc.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= 1e-6, "{found} {expected}");
    }
}

#[test]
fn constrained_decoder_rows_keep_their_length_and_free_ones_do_not() {
    for (lengths, is_constrained) in [(Lengths::UnitAfter, true), (Lengths::Free, false)] {
        let mut weights = Weights::init(2, 8, 5, &[0.0; 8]);
        let mut adam = Adam::new(&weights, 0.9, 0.999, 1e9, lengths);
        let grads = Gradients { w_dec: weights.w_dec.clone(), ..Gradients::zeros(8, 5) };
        update(&mut adam, &mut weights, &grads, &[0.1; 5], 0.0);
        for row in weights.w_dec.chunks(8) {
            assert_eq!((dot(row, row) - 1.0).abs() <= 1e-6, is_constrained);
        }
        // A gradient along the rows and nothing else moves no constrained row.
        let moved = adam.first.w_dec.iter().any(|m| m.abs() > 1e-6);
        assert_eq!(moved, !is_constrained);
    }
}

#[test]
fn long_gradients_are_clipped() {
    let mut weights = Weights::init(3, 2, 1, &[0.0; 2]);
    let mut adam = Adam::new(&weights, 0.9, 0.999, 1.0, Lengths::UnitAfter);
    let grads = Gradients { w_enc: vec![30.0, 40.0], ..Gradients::zeros(2, 1) };
    let norm = update(&mut adam, &mut weights, &grads, &[0.1], 0.1);
    assert!((norm - 50.0).abs() <= 1e-4, "{norm}");
    assert!((adam.first.w_enc[0] - 0.1 * 0.6).abs() <= 1e-6);
}

#[test]
fn rows_of_length_one_before_the_step_are_scaled_and_keep_what_the_step_makes_of_them() {
    let mut weights = Weights::init(2, 8, 5, &[0.0; 8]);
    let unit = weights.w_dec.clone();
    weights.w_dec.iter_mut().for_each(|w| *w *= 3.0);
    let mut adam = Adam::new(&weights, 0.9, 0.999, 1e9, Lengths::UnitBefore);
    // Along the rows goes nothing; across them a coordinate moves by the learning rate.
    let mut grads = Gradients { w_dec: weights.w_dec.clone(), ..Gradients::zeros(8, 5) };
    update(&mut adam, &mut weights, &grads, &[1e-4; 5], 0.0);
    let moved = weights.w_dec.iter().zip(&unit).map(|(w, unit)| (w - unit).abs()).fold(0.0, f32::max);
    assert!(moved <= 1.1e-4, "{moved}");
    grads.w_dec.iter_mut().enumerate().for_each(|(i, g)| *g = (i as f32).sin());
    update(&mut adam, &mut weights, &grads, &[0.1; 5], 0.0);
    for row in weights.w_dec.chunks(8) {
        assert!((dot(row, row) - 1.0).abs() >= 1e-3);
    }
}
