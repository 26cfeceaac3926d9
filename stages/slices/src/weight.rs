//! A layer's matrix, held as its products want it.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use artifact::config::Products;

use crate::packed::{Bf16Weights, Columns, Int8Weights, Rows, to_bf16};
use crate::product::{Out, multiply_into};
use crate::{Mat, Onto, multiply, transposed};

/// W of y = x W, on one thread.
#[derive(Debug)]
pub struct Weight<'a> {
    kind: Kind<'a>,
    d_in: usize,
    d_out: usize,
}

#[derive(Debug)]
enum Kind<'a> {
    /// [d_in, d_out].
    F32(Cow<'a, [f32]>),
    /// The same of values that bf16 has, for rows of such values: where there is no `Bf16`.
    Rounded(Vec<f32>),
    Bf16(Bf16Weights),
    Int8(Int8Weights),
}

/// Room for rounded rows, which products can share one after another.
#[derive(Debug, Default)]
pub struct RoundingRoom {
    rows: Rows,
    columns: Columns,
}

/// out += xᵀ dy: what a layer's weights have for a gradient, on this thread. With bf16 it is f32's.
/// Shapes: x [n, d_in], dy [n, d_out] → out [d_in, d_out].
pub fn add_gradient(
    (x, d_in): (&[f32], usize),
    (dy, d_out): (&[f32], usize),
    products: Products,
    out: &mut [f32],
    room: &mut RoundingRoom,
) {
    let n = x.len() / d_in;
    assert!(x.len() == n * d_in && Some(dy.len()) == n.checked_mul(d_out), "x is [n, d_in], and dy [n, d_out]");
    assert!(Some(out.len()) == d_in.checked_mul(d_out), "out is [d_in, d_out]");
    if n == 0 || out.is_empty() {
        return;
    }
    match products {
        Products::Int8 => room.columns.add_product(x, d_in, dy, d_out, out),
        _ => {
            let (x, dy) = (Mat::rows(x, d_in).transposed(), Mat::rows(dy, d_out));
            multiply((d_in, n, d_out), 1.0, x, dy, Onto::Sum, out, d_out);
        }
    }
}

impl<'a> Weight<'a> {
    /// Shapes: rows [d_out, d_in].
    pub fn of_rows(rows: &[f32], d_in: usize, products: Products) -> Self {
        let kind = match products {
            Products::F32 => Kind::F32(transposed(rows, d_in).into()),
            Products::Bf16 => match Bf16Weights::new(rows, d_in) {
                Some(weights) => Kind::Bf16(weights),
                None => Kind::Rounded(rounded(rows, d_in)),
            },
            Products::Int8 => Kind::Int8(Int8Weights::new(rows, d_in)),
        };
        Self { kind, d_in, d_out: rows.len() / d_in }
    }

    /// The same of a matrix that lies as f32's products want it. Shapes: columns [d_in, d_out].
    pub fn of_columns(columns: Cow<'a, [f32]>, d_in: usize, products: Products) -> Self {
        let d_out = columns.len() / d_in;
        match products {
            Products::F32 => Self { kind: Kind::F32(columns), d_in, d_out },
            Products::Bf16 => Self::of_rows(&transposed(&columns, d_out), d_in, products),
            Products::Int8 => {
                let mut weights = Int8Weights::default();
                weights.take_columns(&columns, d_out);
                Self { kind: Kind::Int8(weights), d_in, d_out }
            }
        }
    }

    /// Outputs.
    pub fn d_out(&self) -> usize {
        self.d_out
    }

    /// x W, on what stands in `out` or on nothing.
    /// Shapes: x [n, d_in] → out [n, d_out].
    ///
    /// A product in f32 may have other bits where other rows stand beside; those on rounded operands have not.
    pub fn multiply(&self, x: &[f32], onto: Onto, out: &mut [f32], room: &mut RoundingRoom) {
        let (d_in, d_out, n) = (self.d_in, self.d_out, x.len() / self.d_in);
        assert!(x.len() == n * d_in && Some(out.len()) == n.checked_mul(d_out), "x is [n, d_in], and out [n, d_out]");
        let f32_product = |x: &[f32], weight: &[f32], out: &mut [f32]| {
            multiply((n, d_in, d_out), 1.0, Mat::rows(x, d_in), Mat::rows(weight, d_out), onto, out, d_out);
        };
        match &self.kind {
            Kind::F32(weight) => f32_product(x, weight, out),
            Kind::Rounded(weight) => f32_product(&to_bf16(x), weight, out),
            Kind::Bf16(weight) => weight.multiply(x, d_in, Out::new(onto, out)),
            Kind::Int8(weight) => weight.multiply(x, d_in, Out::new(onto, out), &mut room.rows),
        }
    }

    /// Puts the rows of x W behind those in `out`. The rows of x start `x_stride` apart; what follows a row's first d_in
    /// values is passed over. Where d_out is above 256, a row has the same bits whatever rows stand beside it (the `gemm`
    /// crate takes other paths for very small products); on rounded operands it always has.
    /// Shapes: x [n, x_stride] → [n, d_out].
    pub fn append(&self, x: &[f32], x_stride: usize, out: &mut Vec<f32>, room: &mut RoundingRoom) {
        let n = x.len() / x_stride;
        // Two rows for the single one of an f32 product.
        let n_fresh = n.max(2).checked_mul(self.d_out).expect("a product that memory can hold");
        out.reserve(n_fresh);
        let start = out.len();
        // Setting the buffer to zero before would cost a pass over memory for each product.
        let fresh = &mut out.spare_capacity_mut()[..n_fresh];
        match &self.kind {
            Kind::F32(weight) => self.append_f32(weight, x, x_stride, fresh),
            Kind::Rounded(weight) => self.append_f32(weight, &to_bf16(x), x_stride, fresh),
            Kind::Bf16(weight) => weight.multiply(x, x_stride, Out::Fresh(&mut fresh[..n * self.d_out])),
            Kind::Int8(weight) => {
                weight.multiply(x, x_stride, Out::Fresh(&mut fresh[..n * self.d_out]), &mut room.rows);
            }
        }
        // SAFETY: each of them writes all rows.
        unsafe { out.set_len(start + n * self.d_out) };
    }

    /// Shapes: x [n, x_stride] → the first n rows of `fresh`, which has two at the least.
    fn append_f32(&self, weight: &[f32], x: &[f32], x_stride: usize, fresh: &mut [MaybeUninit<f32>]) {
        let (d_in, d_out, n) = (self.d_in, self.d_out, x.len() / x_stride);
        // `gemm` takes another path for a single row, with other rounding: a row of zeros keeps it company.
        let pair = if n == 1 { [&x[..d_in], &vec![0.0; d_in]].concat() } else { Vec::new() };
        let (x, x_stride, n) = if n == 1 { (&pair[..], d_in, 2) } else { (x, x_stride, n) };
        multiply_into((n, d_in, d_out), Mat::rows(x, x_stride), Mat::rows(weight, d_out), fresh, d_out);
    }
}

/// bf16's products without the instructions. Shapes: rows [d_out, d_in] → [d_in, d_out].
fn rounded(rows: &[f32], d_in: usize) -> Vec<f32> {
    transposed(&to_bf16(rows), d_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(weight: &Weight<'_>, x: &[f32], x_stride: usize) -> Vec<f32> {
        let mut out = Vec::new();
        weight.append(x, x_stride, &mut out, &mut RoundingRoom::default());
        out
    }

    /// Numbers of no particular pattern in [-1, 1).
    fn numbers(n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn a_row_has_the_same_bits_among_any_number_of_others() {
        for (d_in, d_out) in [(576, 960), (576, 576), (1536, 576), (576, 3072), (64, 264)] {
            let weight = Weight::of_rows(&numbers(d_in * d_out), d_in, Products::F32);
            let x = numbers(512 * d_in);
            let all = product(&weight, &x, d_in);
            for n_rows in [1, 2, 3, 7, 16, 17, 33, 64, 65, 100, 128, 129, 511] {
                let some = product(&weight, &x[d_in..][..n_rows * d_in], d_in);
                assert!(some == all[d_out..][..n_rows * d_out], "{n_rows} rows of {d_in} → {d_out}");
            }
        }
    }

    #[test]
    fn a_product_is_the_naive_one_and_passes_over_what_follows_a_row() {
        let (d_in, d_out, stride) = (37, 21, 50);
        let (rows, x) = (numbers(d_in * d_out), numbers(3 * stride));
        let weight = Weight::of_rows(&rows, d_in, Products::F32);
        let mut out = vec![7.0];
        weight.append(&x, stride, &mut out, &mut RoundingRoom::default());
        assert_eq!((out.len(), out[0]), (1 + 3 * d_out, 7.0));
        for row in 0..3 {
            for column in 0..d_out {
                let terms = (0..d_in).map(|i| f64::from(x[row * stride + i]) * f64::from(rows[column * d_in + i]));
                let (found, expected) = (f64::from(out[1 + row * d_out + column]), terms.sum::<f64>());
                assert!((found - expected).abs() <= 1e-5, "row {row}, column {column}: {found}");
            }
        }
    }

    #[test]
    fn all_kinds_put_a_product_onto_a_sum_or_onto_nothing_and_take_either_layout() {
        let (n, d_in, d_out) = (13, 200, 264);
        let (rows, x, before) = (numbers(d_in * d_out), numbers(n * d_in), numbers(n * d_out));
        for (products, tolerance) in [(Products::F32, 1e-6), (Products::Bf16, 0.01), (Products::Int8, 0.02)] {
            let exact = product(&Weight::of_rows(&rows, d_in, Products::F32), &x, d_in);
            let weight = Weight::of_columns(transposed(&rows, d_in).into(), d_in, products);
            assert_eq!((weight.d_in, weight.d_out()), (d_in, d_out));
            for onto in [Onto::Nothing, Onto::Sum] {
                let mut out = before.clone();
                weight.multiply(&x, onto, &mut out, &mut RoundingRoom::default());
                let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let expected = |(exact, before): (&f32, &f32)| exact + if onto == Onto::Sum { *before } else { 0.0 };
                let expected = exact.iter().zip(&before).map(expected);
                let differences: Vec<f32> =
                    out.iter().zip(expected).map(|(found, expected)| found - expected).collect();
                let off = norm(&differences) / norm(&exact);
                assert!(off <= tolerance, "{products:?}, {onto:?}: {off}");
            }
        }
    }

    #[test]
    fn bf16_products_are_the_same_with_and_without_the_instructions() {
        let (d_in, d_out, n) = (200, 264, 13);
        let (rows, x) = (numbers(d_in * d_out), numbers(n * d_in));
        let best = Weight::of_rows(&rows, d_in, Products::Bf16);
        let plain = Weight { kind: Kind::Rounded(rounded(&rows, d_in)), d_in, d_out };
        let all = product(&plain, &x, d_in);
        for (i, row) in x.chunks_exact(d_in).enumerate() {
            assert_eq!(product(&plain, row, d_in), all[i * d_out..][..d_out], "row {i}");
        }
        for (best, plain) in product(&best, &x, d_in).iter().zip(&all) {
            assert!((best - plain).abs() <= 1e-4, "{best} {plain}");
        }
    }
}
