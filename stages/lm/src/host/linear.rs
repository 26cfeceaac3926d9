//! A dense layer on slices.

use std::mem::MaybeUninit;

use artifact::config::Products;

use super::kernels::add_to_rows;
use super::packed::{Bf16Weights, Int8Weights, to_bf16};
use crate::weights::LinearWeights;

/// y = x W + b, on one thread. Where d_out is above 256, a row of the product has the same bits whatever rows stand
/// beside it (the `gemm` crate takes other paths for very small products).
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    /// [d_out]; empty where there is none.
    bias: Vec<f32>,
    d_in: usize,
    d_out: usize,
}

#[derive(Debug)]
enum Weight {
    /// [d_in, d_out].
    F32(Vec<f32>),
    /// The same of values that bf16 has, for rows of such values: where there is no `Bf16`.
    Rounded(Vec<f32>),
    Bf16(Bf16Weights),
    Int8(Int8Weights),
}

impl Linear {
    pub(crate) fn new(weights: &LinearWeights, d_in: usize, products: Products) -> Self {
        let d_out = weights.rows.len() / d_in;
        let weight = match products {
            Products::F32 => Weight::F32(transposed(&weights.rows, d_in)),
            Products::Bf16 => match Bf16Weights::new(&weights.rows, d_in) {
                Some(weights) => Weight::Bf16(weights),
                None => rounded(&weights.rows, d_in),
            },
            Products::Int8 => Weight::Int8(Int8Weights::new(&weights.rows, d_in)),
        };
        Self { weight, bias: weights.bias.clone(), d_in, d_out }
    }

    pub(crate) fn d_out(&self) -> usize {
        self.d_out
    }

    /// Puts the rows of x W + b behind those in `out`. The rows of x start `x_stride` apart; what follows a row's first
    /// d_in values is passed over.
    /// Shapes: x [T, x_stride] → [T, d_out].
    pub(crate) fn append(&self, x: &[f32], x_stride: usize, out: &mut Vec<f32>) {
        let n_rows = x.len() / x_stride;
        // A row more than there are, for the single row of an f32 product.
        out.reserve((n_rows + 1) * self.d_out);
        let start = out.len();
        // Setting the buffer to zero before would cost a pass over memory for each product.
        let room = &mut out.spare_capacity_mut()[..(n_rows + 1) * self.d_out];
        match &self.weight {
            Weight::F32(weight) => self.append_f32(weight, x, x_stride, room),
            Weight::Rounded(weight) => self.append_f32(weight, &to_bf16(x), x_stride, room),
            Weight::Bf16(weight) => weight.product(x, x_stride, &mut room[..n_rows * self.d_out]),
            Weight::Int8(weight) => weight.product(x, x_stride, &mut room[..n_rows * self.d_out]),
        }
        // SAFETY: each of them writes all rows.
        unsafe { out.set_len(start + n_rows * self.d_out) };
        if !self.bias.is_empty() {
            add_to_rows(&mut out[start..], &self.bias);
        }
    }

    /// Shapes: x [T, x_stride] → the first T rows of `room`, which has one more.
    fn append_f32(&self, weight: &[f32], x: &[f32], x_stride: usize, room: &mut [MaybeUninit<f32>]) {
        let (d_in, d_out, n_rows) = (self.d_in, self.d_out, x.len() / x_stride);
        // `gemm` takes another path for a single row, with other rounding: a row of zeros keeps it company.
        let pair = if n_rows == 1 { [&x[..d_in], &vec![0.0; d_in]].concat() } else { Vec::new() };
        let (x, x_stride, n_computed) = if n_rows == 1 { (&pair[..], d_in, 2) } else { (x, x_stride, n_rows) };
        let x = Matrix { values: x, row_stride: x_stride, column_stride: 1 };
        let weight = Matrix { values: weight, row_stride: d_out, column_stride: 1 };
        assert!(room.len() >= n_computed * d_out, "room for the product");
        // SAFETY: there is room for the product, which is written without being read first.
        unsafe { multiply(n_computed, d_out, d_in, x, weight, room.as_mut_ptr().cast(), d_out) };
    }
}

/// bf16's products without the instructions.
fn rounded(rows: &[f32], d_in: usize) -> Weight {
    Weight::Rounded(transposed(&to_bf16(rows), d_in))
}

/// A matrix in a slice, starting at its first value.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl Matrix<'_> {
    /// Whether a matrix of these sizes lies within the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.values.len()
    }
}

/// out = a b on this thread alone. Shapes: a [m, k], b [k, n] → out [m, n] with rows `out_stride` apart.
///
/// # Safety
/// `out` must be writable for `(m - 1) * out_stride + n` values. It is not read.
pub(crate) unsafe fn multiply(
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: *mut f32,
    out_stride: usize,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "matrix sizes differ from their buffers");
    // SAFETY: both operands lie within their slices, just checked; `out` is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_stride as isize,
            false,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Shapes: [n, width] → [width, n].
pub(crate) fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
    let n = rows.len() / width;
    let mut out = vec![0.0; rows.len()];
    // Tiles keep both sides in cache.
    const TILE: usize = 32;
    for row_start in (0..n).step_by(TILE) {
        for column_start in (0..width).step_by(TILE) {
            for row in row_start..(row_start + TILE).min(n) {
                for column in column_start..(column_start + TILE).min(width) {
                    out[column * n + row] = rows[row * width + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(rows: Vec<f32>, bias: Vec<f32>, d_in: usize) -> Linear {
        Linear::new(&LinearWeights { rows, bias }, d_in, Products::F32)
    }

    /// Numbers of no particular pattern in [-1, 1).
    fn numbers(n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn a_row_has_the_same_bits_among_any_number_of_others() {
        for (d_in, d_out) in [(576, 960), (576, 576), (1536, 576), (576, 3072), (64, 264)] {
            let linear = linear(numbers(d_in * d_out), numbers(d_out), d_in);
            let x = numbers(512 * d_in);
            let mut all = Vec::new();
            linear.append(&x, d_in, &mut all);
            for n_rows in [1, 2, 3, 7, 16, 17, 33, 64, 65, 100, 128, 129, 511] {
                let mut some = Vec::new();
                linear.append(&x[d_in..][..n_rows * d_in], d_in, &mut some);
                assert!(some == all[d_out..][..n_rows * d_out], "{n_rows} rows of {d_in} → {d_out}");
            }
        }
    }

    #[test]
    fn a_product_is_the_naive_one_and_passes_over_what_follows_a_row() {
        let (d_in, d_out, stride) = (37, 21, 50);
        let (weight, x) = (numbers(d_in * d_out), numbers(3 * stride));
        let mut out = vec![7.0];
        linear(weight.clone(), numbers(d_out), d_in).append(&x, stride, &mut out);
        assert_eq!((out.len(), out[0]), (1 + 3 * d_out, 7.0));
        for row in 0..3 {
            for column in 0..d_out {
                let terms = (0..d_in).map(|i| f64::from(x[row * stride + i]) * f64::from(weight[column * d_in + i]));
                let found = f64::from(out[1 + row * d_out + column]);
                let expected = terms.sum::<f64>() + f64::from(numbers(d_out)[column]);
                assert!((found - expected).abs() <= 1e-5, "row {row}, column {column}: {found}");
            }
        }
    }

    #[test]
    fn bf16_products_are_the_same_with_and_without_the_instructions() {
        let (d_in, d_out, n) = (200, 264, 13);
        let (rows, x) = (numbers(d_in * d_out), numbers(n * d_in));
        let weights = LinearWeights { rows, bias: numbers(d_out) };
        let best = Linear::new(&weights, d_in, Products::Bf16);
        let plain = Linear { weight: rounded(&weights.rows, d_in), bias: weights.bias, d_in, d_out };
        let product = |linear: &Linear, x: &[f32]| {
            let mut out = Vec::new();
            linear.append(x, d_in, &mut out);
            out
        };
        let all = product(&plain, &x);
        for (i, row) in x.chunks_exact(d_in).enumerate() {
            assert_eq!(product(&plain, row), all[i * d_out..][..d_out], "row {i}");
        }
        for (best, plain) in product(&best, &x).iter().zip(&all) {
            assert!((best - plain).abs() <= 1e-4, "{best} {plain}");
        }
    }
}
