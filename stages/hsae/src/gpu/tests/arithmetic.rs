//! Products, reconstructions, gradients and Adam.

use artifact::config::GpuPrecision;

use super::super::buffers::{cubes, cubes_of_units, units};
use super::super::dictionary::{Dictionary, Grads, Size, add_grads, sum_rows};
use super::super::kernels::{adam, latents};
use super::super::lists::{Scores, Shape, select};
use super::super::product::Product;
use super::*;
use crate::kernels::Prefixes;
use crate::select::{Budget, Scope};

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// x · wᵀ.
fn naive_product(x: &[f32], w: &[f32], d: usize) -> Vec<f64> {
    x.chunks_exact(d).flat_map(|x| w.chunks_exact(d).map(|w| dot(x, w))).collect()
}

#[test]
fn products_are_those_of_naive_sums() {
    let gpu = gpu();
    let client = gpu.client();
    for (n_rows, n_cols, d) in [ODD, (1, 1, 1), (70, 130, 65), (64, 256, 128)] {
        let (x, w) = (random(1, n_rows * d), random(2, n_cols * d));
        let product = Product::new(client, GpuPrecision::F32).unwrap();
        let (on_device, w_on_device) = (Buffer::new(client, &x), Buffer::new(client, &w));
        let found = product.run(client, &on_device, &w_on_device, n_rows, n_cols, d).unwrap();
        assert_close(&read_f32(client, &found).unwrap(), &naive_product(&x, &w, d), 1e-5, "product");
    }
}

/// The kernel, and with it the bits, depend on the shapes alone, not on what was multiplied before.
#[test]
fn products_do_not_remember_others() {
    let gpu = gpu();
    let client = gpu.client();
    let product_of = |product: &Product, (n_rows, n_cols, d): (usize, usize, usize)| {
        let (x, w) = (random(1, n_rows * d), random(2, n_cols * d));
        let (x, w) = (Buffer::new(client, &x), Buffer::new(client, &w));
        let found = product.run(client, &x, &w, n_rows, n_cols, d).unwrap();
        read_f32(client, &found).unwrap()
    };
    let used = Product::new(client, GpuPrecision::F32).unwrap();
    for shape in [(64, 256, 128), ODD, (1, 1, 1), (64, 256, 128)] {
        let fresh = Product::new(client, GpuPrecision::F32).unwrap();
        assert_eq!(product_of(&used, shape), product_of(&fresh, shape), "{shape:?}");
    }
}

/// What a GPU cannot do is refused by name; what it can, is as close as its mantissa lets it.
#[test]
fn rounded_products_are_close_or_refused() {
    let gpu = gpu();
    let client = gpu.client();
    let (n_rows, n_cols, d) = (64, 256, 128);
    let (x, w) = (random(1, n_rows * d), random(2, n_cols * d));
    for (precision, tolerance) in [(GpuPrecision::Tf32, 2e-3), (GpuPrecision::Bf16, 2e-2)] {
        match Product::new(client, precision) {
            Ok(product) => {
                let (on_device, w_on_device) = (Buffer::new(client, &x), Buffer::new(client, &w));
                let found = product.run(client, &on_device, &w_on_device, n_rows, n_cols, d).unwrap();
                let found = read_f32(client, &found).unwrap();
                assert_close(&found, &naive_product(&x, &w, d), tolerance, "rounded product");
            }
            Err(error) => assert!(error.to_string().contains("set train.gpu_precision: f32"), "{error}"),
        }
    }
}

#[test]
fn sums_of_rows_are_those_of_naive_sums() {
    let gpu = gpu();
    let client = gpu.client();
    for (n_rows, d) in [(1, 3), (301, 7), (20_000, 5)] {
        let (matrix, weights) = (random(1, n_rows * d), random(2, n_rows));
        let (on_device, weights_there) = (Buffer::new(client, &matrix), Buffer::new(client, &weights));
        for weights_there in [None, Some(&weights_there)] {
            let mut expected = vec![0f64; d];
            for (row, &weight) in matrix.chunks_exact(d).zip(&weights) {
                let weight = if weights_there.is_some() { f64::from(weight) } else { 1.0 };
                expected.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
            }
            let found = sum_rows(client, &on_device, weights_there, n_rows, d);
            assert_close(&read_f32(client, &found).unwrap(), &expected, 1e-4, "sums");
        }
    }
}

#[test]
fn a_pass_is_that_of_naive_sums() {
    // Less than a block of columns, and several of them.
    for shape in [ODD, (33, 301, 2 * latents::COLUMNS + 3)] {
        check_pass(shape);
    }
}

/// Activations, errors, what flows back, and gradients of all parameters, against sums over everything.
fn check_pass((n_rows, n, d): (usize, usize, usize)) {
    let gpu = gpu();
    let client = gpu.client();
    let size = Size { n_rows, d_model: d };
    let (x, w_enc, b_enc, w_dec) = (random(1, n_rows * d), random(2, n * d), random(3, n), random(4, n * d));
    let prefixes = Prefixes::nested(vec![10, 77, n], vec![0.5, 1.0, 0.75]);
    let row = |matrix: &'_ [f32], i: usize| -> Vec<f32> { matrix[i * d..(i + 1) * d].to_vec() };

    let dictionary = Dictionary {
        w_enc: Buffer::new(client, &w_enc),
        b_enc: Buffer::new(client, &b_enc),
        w_dec: Buffer::new(client, &w_dec),
    };
    let on_device = Buffer::new(client, &x);
    let product = Product::new(client, GpuPrecision::F32)
        .unwrap()
        .run(client, &on_device, &dictionary.w_enc, n_rows, n, d)
        .unwrap();
    let scores = Scores { values: &product, b_enc: &dictionary.b_enc, shape: Shape { n_rows, n_cols: n } };
    let lists = select(client, &scores, &Budget::Shared { k: 12.0, fine: 12.0, n_coarse: 0 }, Scope::Batch);
    let acts = dictionary.acts(client, &on_device, &lists, size);
    let found = dictionary.reconstruct(client, &on_device, &lists, &acts, &prefixes, true, size);
    let grads = Grads::zeros(client, n, d);
    let columns = lists.columns(client);
    dictionary.gradients(client, &on_device, &lists, &columns, &acts, &found, n, size, &grads);

    let (row_ptr, idx) = (read_u32(client, &lists.row_ptr), read_u32(client, &lists.idx));
    let acts = read_f32(client, &acts).unwrap();
    let mut expected_acts = vec![];
    let mut errors = vec![0f64; 3 * n_rows];
    let mut residual = vec![0f64; n_rows * d];
    let (mut g_enc, mut g_b, mut g_dec) = (vec![0f64; n * d], vec![0f64; n], vec![0f64; n * d]);
    let (mut firings, mut act_sums) = (vec![0u32; n], vec![0f64; n]);
    for t in 0..n_rows {
        let entries: Vec<(usize, f64)> = (row_ptr[t]..row_ptr[t + 1])
            .map(|e| idx[e as usize] as usize)
            .map(|j| (j, (dot(&row(&x, t), &row(&w_enc, j)) + f64::from(b_enc[j])).max(0.0)))
            .collect();
        expected_acts.extend(entries.iter().map(|&(_, act)| act));
        let error = |end: usize| -> Vec<f64> {
            let mut error: Vec<f64> = row(&x, t).iter().map(|&x| -f64::from(x)).collect();
            for &(j, act) in entries.iter().filter(|&&(j, _)| j < end) {
                error.iter_mut().zip(row(&w_dec, j)).for_each(|(e, w)| *e += act * f64::from(w));
            }
            error
        };
        let all: Vec<Vec<f64>> = prefixes.ends.iter().map(|&end| error(end)).collect();
        for (p, error) in all.iter().enumerate() {
            errors[p * n_rows + t] = error.iter().map(|e| e * e).sum();
        }
        residual[t * d..(t + 1) * d].iter_mut().zip(&all[2]).for_each(|(r, e)| *r = -e);
        for &(j, act) in &entries {
            firings[j] += u32::from(act > 0.0);
            act_sums[j] += act;
            let mut g = 0.0;
            for c in 0..d {
                // Every prefix that holds the latent.
                let flow: f64 = (0..3)
                    .filter(|&p| j < prefixes.ends[p])
                    .map(|p| all[p][c] * f64::from(prefixes.weights[p]) * 2.0 / n_rows as f64)
                    .sum();
                g_dec[j * d + c] += act * flow;
                g += flow * f64::from(w_dec[j * d + c]);
            }
            g_b[j] += g;
            (0..d).for_each(|c| g_enc[j * d + c] += g * f64::from(x[t * d + c]));
        }
    }
    assert_close(&acts[..expected_acts.len()], &expected_acts, 1e-5, "acts");
    for (buffer, expected, what) in [
        (&found.errors, &errors, "errors"),
        (&found.residual, &residual, "residual"),
        (&grads.w_enc, &g_enc, "w_enc"),
        (&grads.b_enc, &g_b, "b_enc"),
        (&grads.w_dec, &g_dec, "w_dec"),
        (&grads.act_sums, &act_sums, "act_sums"),
    ] {
        assert_close(&read_f32(client, buffer).unwrap(), expected, 1e-5, what);
    }
    assert_eq!(read_u32(client, &grads.firings), firings);

    // Gradients of some latents, added once more to their own.
    let chosen = [3u32, 5, 300];
    let some = Grads::zeros(client, 3, d);
    let gathered = dictionary.of(client, &chosen, d);
    let rows: Vec<f32> = chosen.iter().flat_map(|&j| row(&w_enc, j as usize)).collect();
    assert_eq!(read_f32(client, &gathered.w_enc).unwrap(), rows);
    let some = Grads { w_enc: gathered.w_enc, ..some };
    add_grads(client, &grads, &some, &chosen, d);
    for &j in &chosen {
        (0..d).for_each(|c| g_enc[j as usize * d + c] += f64::from(w_enc[j as usize * d + c]));
    }
    assert_close(&read_f32(client, &grads.w_enc).unwrap(), &g_enc, 1e-5, "added");
}

#[test]
fn adam_is_that_of_its_definition() {
    let gpu = gpu();
    let client = gpu.client();
    let (_, n, d) = ODD;
    let (n_coarse, max_norm) = (100, 0.5f32);
    let (w, m, grad) = (random(1, n * d), random(2, n * d), random(3, n * d));
    let v: Vec<f32> = random(4, n * d).into_iter().map(f32::abs).collect();
    let (g_enc, g_b, g_b_dec) = (random(5, n * d), random(6, n), random(7, d));
    let numbers = [1e-3f32, 2e-3, 3e-3, 0.9, 0.999, 1.3, 1.7];
    for is_constrained in [true, false] {
        let on = |values: &[f32]| Buffer::new(client, values);
        let (w_there, m_there, v_there, grad_there) = (on(&w), on(&m), on(&v), on(&grad));
        let (along, squares) = (Buffer::zeros(client, n), Buffer::zeros(client, n));
        let (clip, numbers_there, b_dec_there) = (Buffer::zeros(client, 2), on(&numbers), on(&g_b_dec));
        let (g_enc_there, g_b_there) = (on(&g_enc), on(&g_b));
        let b_there = [on(&w[..d]), on(&m[..d]), on(&v[..d])];
        // SAFETY: all are as large as n and d say.
        unsafe {
            latents::measure::launch_unchecked(
                client,
                cubes(n),
                units(),
                g_enc_there.arg(),
                grad_there.arg(),
                g_b_there.arg(),
                w_there.arg(),
                along.arg(),
                squares.arg(),
                n,
                d,
                is_constrained,
            );
            adam::clip::launch_unchecked(
                client,
                cubes(1),
                units(),
                squares.arg(),
                b_dec_there.arg(),
                clip.arg(),
                n,
                d,
                max_norm,
            );
            adam::update_rows::launch_unchecked(
                client,
                cubes(n),
                units(),
                w_there.arg(),
                m_there.arg(),
                v_there.arg(),
                grad_there.arg(),
                along.arg(),
                clip.arg(),
                numbers_there.arg(),
                n_coarse,
                n,
                d,
                is_constrained,
            );
            adam::update_vector::launch_unchecked(
                client,
                cubes_of_units(d),
                units(),
                b_there[0].arg(),
                b_there[1].arg(),
                b_there[2].arg(),
                b_dec_there.arg(),
                clip.arg(),
                numbers_there.arg(),
                n_coarse,
                d,
                false,
            );
        }
        let rows = |j: usize| j * d..(j + 1) * d;
        let across: Vec<f64> = (0..n)
            .flat_map(|j| {
                let along = if is_constrained { dot(&grad[rows(j)], &w[rows(j)]) } else { 0.0 };
                // The definition takes ‖g‖² − (g·w)² for the rest of a row of length 1.
                rows(j).map(move |i| (i, along))
            })
            .map(|(i, along)| f64::from(grad[i]) - along * f64::from(w[i]))
            .collect();
        let mut square = dot(&g_enc, &g_enc) + dot(&g_b, &g_b) + dot(&g_b_dec, &g_b_dec);
        for j in 0..n {
            let along = if is_constrained { dot(&grad[rows(j)], &w[rows(j)]) } else { 0.0 };
            square += (dot(&grad[rows(j)], &grad[rows(j)]) - along * along).max(0.0);
        }
        let factor = f64::from(max_norm) / square.sqrt();
        assert_close(&read_f32(client, &clip).unwrap(), &[square.sqrt(), factor], 1e-5, "norm and clip");
        let updated = |w: f32, m: f32, v: f32, g: f64, lr: f32| {
            let first = 0.9 * f64::from(m) + 0.1 * g;
            let second = 0.999 * f64::from(v) + 0.001 * g * g;
            f64::from(w) - f64::from(lr) * 1.3 * first / (second.sqrt() * 1.7 + 1e-8)
        };
        let mut expected: Vec<f64> = (0..n * d)
            .map(|i| updated(w[i], m[i], v[i], across[i] * factor, if i / d < n_coarse { 1e-3 } else { 2e-3 }))
            .collect();
        if is_constrained {
            for row in expected.chunks_exact_mut(d) {
                let length = row.iter().map(|w| w * w).sum::<f64>().sqrt();
                row.iter_mut().for_each(|w| *w /= length);
            }
        }
        assert_close(&read_f32(client, &w_there).unwrap(), &expected, 1e-5, "w");
        let b_dec: Vec<f64> = (0..d).map(|i| updated(w[i], m[i], v[i], f64::from(g_b_dec[i]) * factor, 3e-3)).collect();
        assert_close(&read_f32(client, &b_there[0]).unwrap(), &b_dec, 1e-5, "b_dec");
    }
}
