//! The products against plain ones of the same rounded operands, in 64-bit floats.

use super::int8::rounded;
use super::{Bf16Weights, Columns, Int8Weights, Rows, to_bf16};
use crate::product::Out;

/// Shapes that fill tiles, panels and blocks, and that leave some of each empty: (rows, d_in, d_out).
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (6, 64, 32),
    (12, 192, 64),
    (5, 63, 31),
    (13, 65, 33),
    (7, 200, 17),
    (29, 576, 128),
    (11, 2, 150),
    (8, 1300, 100),
];

/// Values between −1 and 1, some of them small.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (2.0 * next() - 1.0) * if next() < 0.2 { 0.01 } else { 1.0 }).collect()
}

fn found(n: usize, product: impl FnOnce(Out)) -> Vec<f32> {
    let mut out = Vec::with_capacity(n);
    product(Out::Fresh(&mut out.spare_capacity_mut()[..n]));
    // SAFETY: the product writes all of it; a value that it forgot would be some number, and fail the comparison.
    unsafe { out.set_len(n) };
    out
}

/// x wᵀ with operands as they are. Shapes: x [n, stride], w [d_out, d_in] → [n, d_out].
fn plain(x: &[f64], stride: usize, w: &[f64], d_in: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(stride).flat_map(|x| w.chunks_exact(d_in).map(move |w| dot(&x[..d_in], w))).collect()
}

fn off(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = expected.iter().map(|y| y * y).sum::<f64>().sqrt();
    found.iter().zip(expected).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>().sqrt() / norm
}

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Row i of the Hadamard matrix of 64, over its length.
fn hadamard(i: usize) -> impl Fn(usize) -> f64 {
    move |j| if (i & j).count_ones().is_multiple_of(2) { 0.125 } else { -0.125 }
}

/// Each row of `width`: its blocks of 64 turned, three of them rounded to 255 steps of their largest value, and turned back.
fn in_steps(rows: &[f32], stride: usize, width: usize) -> Vec<f64> {
    let turned = |block: &[f64]| -> Vec<f64> {
        (0..64).map(|i| block.iter().enumerate().map(|(j, x)| x * hadamard(i)(j)).sum()).collect()
    };
    let mut out = as_f64(rows);
    for row in out.chunks_exact_mut(stride) {
        for sharing in row[..width].chunks_mut(3 * 64) {
            let mut blocks: Vec<Vec<f64>> = sharing.chunks(64).map(turned).collect();
            let step = blocks.iter().flatten().fold(0.0f64, |max, x| max.max(x.abs())) / 127.0;
            let in_steps = |x: f64| if step > 0.0 { (x / step).round() * step } else { 0.0 };
            blocks.iter_mut().flatten().for_each(|x| *x = in_steps(*x));
            for (values, block) in sharing.chunks_mut(64).zip(&blocks) {
                values.copy_from_slice(&turned(block)[..values.len()]);
            }
        }
    }
    out
}

#[test]
fn int8_products_are_those_of_values_in_steps() {
    for (n, d_in, d_out) in SHAPES {
        for stride in [d_in, d_in + 3] {
            let (x, w) = (random(n * stride, 1), random(d_out * d_in, 2));
            let weights = Int8Weights::new(&w, d_in);
            let found = found(n * d_out, |out| weights.multiply(&x, stride, out, &mut Rows::default()));
            let (x_steps, w_steps) = (in_steps(&x, stride, d_in), in_steps(&w, d_in, d_in));
            let in_steps = off(&found, &plain(&x_steps, stride, &w_steps, d_in));
            // A value halfway between two steps may go the other way: one in some hundred thousand.
            assert!(in_steps <= 1e-3, "{n} {d_in} {d_out}: off by {in_steps:e} from the rounded product");
            let exact = off(&found, &plain(&as_f64(&x), stride, &as_f64(&w), d_in));
            assert!(exact <= 0.014, "{n} {d_in} {d_out}: off by {exact:e}");
        }
    }
}

#[test]
fn int8_products_have_the_same_bits_on_every_processor() {
    for (n, d_in, d_out) in SHAPES {
        let (x, w) = (random(n * d_in, 3), random(d_out * d_in, 4));
        let weights = Int8Weights::new(&w, d_in);
        let best = found(n * d_out, |out| weights.multiply(&x, d_in, out, &mut Rows::default()));
        let mut rows = Rows::default();
        weights.round_rows(&x, d_in, rounded, &mut rows);
        let anywhere = found(n * d_out, |out| weights.multiply_anywhere(&rows, out));
        assert_eq!(best, anywhere, "{n} {d_in} {d_out}");
    }
}

#[test]
fn bf16_products_are_those_of_rounded_values() {
    for (n, d_in, d_out) in SHAPES {
        for stride in [d_in, d_in + 3] {
            let (x, w) = (random(n * stride, 5), random(d_out * d_in, 6));
            let Some(weights) = Bf16Weights::new(&w, d_in) else { continue };
            let expected = plain(&as_f64(&to_bf16(&x)), stride, &as_f64(&to_bf16(&w)), d_in);
            let off = off(&found(n * d_out, |out| weights.multiply(&x, stride, out)), &expected);
            assert!(off <= 1e-6, "{n} {d_in} {d_out}: off by {off:e}");
        }
    }
}

#[test]
fn a_row_is_the_same_whatever_stands_beside_it() {
    let (d_in, d_out) = (130, 70);
    let (x, w) = (random(13 * d_in, 7), random(d_out * d_in, 8));
    let (int8, bf16) = (Int8Weights::new(&w, d_in), Bf16Weights::new(&w, d_in));
    let of = |x: &[f32]| {
        let n = x.len() / d_in * d_out;
        let int8 = found(n, |out| int8.multiply(x, d_in, out, &mut Rows::default()));
        let bf16 = bf16.iter().map(|bf16| found(n, |out| bf16.multiply(x, d_in, out)));
        std::iter::once(int8).chain(bf16).collect::<Vec<_>>()
    };
    let together = of(&x);
    for (i, row) in x.chunks_exact(d_in).enumerate() {
        for (together, alone) in together.iter().zip(of(row)) {
            assert_eq!(together[i * d_out..][..d_out], alone, "row {i}");
        }
    }
}

#[test]
fn what_is_not_finite_comes_through() {
    let (d_in, d_out) = (70, 40);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = random(2 * d_in, 9);
        x[d_in + 66] = bad;
        let w = random(d_out * d_in, 10);
        let int8 = found(2 * d_out, |out| Int8Weights::new(&w, d_in).multiply(&x, d_in, out, &mut Rows::default()));
        let bf16 = Bf16Weights::new(&w, d_in);
        let bf16 = bf16.map(|weights| found(2 * d_out, |out| weights.multiply(&x, d_in, out)));
        for found in std::iter::once(int8).chain(bf16) {
            assert!(found[..d_out].iter().all(|y| y.is_finite()));
            assert!(found[d_out..].iter().all(|y| !y.is_finite()), "{bad}: {found:?}");
        }
    }
}

/// The parts of a product that fit the first cache go on from each other, and from what is added to.
#[test]
fn sums_go_on_from_what_stands_there_on_every_processor() {
    let mut rows = Rows::default();
    for (n, d_in, d_out) in [(29, 1300, 150), (8, 700, 64), (3, 100, 33), (1, 65, 7)] {
        let (x, w, before) = (random(n * d_in, 11), random(d_out * d_in, 12), random(n * d_out, 13));
        let weights = Int8Weights::new(&w, d_in);
        let product = found(n * d_out, |out| weights.multiply(&x, d_in, out, &mut Rows::default()));
        // Room that a larger product has left.
        let (mut best, mut anywhere) = (before.clone(), before.clone());
        weights.multiply(&x, d_in, Out::Sum(&mut best), &mut rows);
        weights.round_rows(&x, d_in, rounded, &mut rows);
        weights.multiply_anywhere(&rows, Out::Sum(&mut anywhere));
        assert_eq!(best, anywhere, "{n} {d_in} {d_out}");
        let summed = |product: &[f32]| -> Vec<f64> {
            product.iter().zip(&before).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect()
        };
        assert!(off(&best, &summed(&product)) <= 1e-6, "{n} {d_in} {d_out}");
        let Some(weights) = Bf16Weights::new(&w, d_in) else { continue };
        let product = found(n * d_out, |out| weights.multiply(&x, d_in, out));
        let mut best = before.clone();
        weights.multiply(&x, d_in, Out::Sum(&mut best));
        assert!(off(&best, &summed(&product)) <= 1e-6, "bf16: {n} {d_in} {d_out}");
    }
}

#[test]
fn no_rows_are_no_product() {
    let weights = Int8Weights::new(&random(40 * 70, 14), 70);
    weights.multiply(&[], 70, Out::Sum(&mut []), &mut Rows::default());
    weights.multiply_anywhere(&Rows::default(), Out::Sum(&mut []));
}

/// Rows that fill blocks and groups of blocks or not, columns that fill panels and tiles or not.
#[test]
fn products_over_rows_are_those_of_columns_as_rows() {
    let mut columns = Columns::default();
    for (n, d_in, d_out) in [(512, 96, 130), (200, 17, 70), (64, 6, 64), (5, 40, 33), (1, 1, 1), (400, 100, 200)] {
        let (x, dy, before) = (random(n * d_in, 15), random(n * d_out, 16), random(d_in * d_out, 17));
        let mut found = before.clone();
        columns.add_product(&x, d_in, &dy, d_out, &mut found);
        // Rounded where they lie, or as rows: the same integers, and so the same bits.
        let (x_rows, dy_rows) = (crate::transposed(&x, d_in), crate::transposed(&dy, d_out));
        let mut expected = before.clone();
        let weights = Int8Weights::new(&dy_rows, n);
        weights.multiply(&x_rows, n, Out::Sum(&mut expected), &mut Rows::default());
        assert_eq!(found, expected, "{n} {d_in} {d_out}");
        let mut anywhere = before.clone();
        columns.weights.multiply_anywhere(&columns.rows, Out::Sum(&mut anywhere));
        assert_eq!(anywhere, expected, "{n} {d_in} {d_out}");
        let exact = plain(&as_f64(&x_rows), n, &as_f64(&dy_rows), n);
        let product: Vec<f32> = found.iter().zip(&before).map(|(found, before)| found - before).collect();
        assert!(off(&product, &exact) <= 0.014, "{n} {d_in} {d_out}");
    }
}

/// Also where sums of finite values are beyond all numbers.
#[test]
fn what_is_not_finite_comes_through_a_product_over_rows() {
    let (n, d_in, d_out) = (70, 20, 40);
    for bad in [f32::NAN, f32::INFINITY, 1e37] {
        let (mut x, dy) = (random(n * d_in, 18), random(n * d_out, 19));
        x.iter_mut().skip(7).step_by(d_in).for_each(|x| *x = bad);
        let mut found = vec![0.0; d_in * d_out];
        Columns::default().add_product(&x, d_in, &dy, d_out, &mut found);
        for (row, values) in found.chunks_exact(d_out).enumerate() {
            assert!(values.iter().all(|value| value.is_finite() == (row != 7)), "{bad}, row {row}");
        }
    }
}
