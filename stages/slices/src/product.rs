//! Products of matrices in f32, by the `gemm` crate.

use std::mem::MaybeUninit;

/// A matrix in a slice, from its first value on, by the distances of its rows and columns.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    values: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows that start `stride` values apart.
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row_stride: stride, col_stride: 1 }
    }

    /// Rows become columns.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || last(rows, self.row_stride, cols, self.col_stride) < self.values.len()
    }
}

/// What becomes of the values that stand in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// They are overwritten.
    Nothing,
    /// They are added to.
    Sum,
}

/// Where the last value of a matrix lies; beyond all memory where that is no number.
fn last(rows: usize, row_stride: usize, cols: usize, col_stride: usize) -> usize {
    (rows - 1).saturating_mul(row_stride).saturating_add((cols - 1).saturating_mul(col_stride))
}

/// (m, k, n): the sizes of a [m, k] · [k, n].
type Sizes = (usize, usize, usize);

/// out = scale · a · b, on what stands there or on nothing, on this thread alone. Shapes: a [m, k], b [k, n] → out [m, n] in
/// rows of `stride`.
///
/// Panics where a slice is too short for its shape.
pub fn multiply(sizes: Sizes, scale: f32, a: Mat, b: Mat, onto: Onto, out: &mut [f32], stride: usize) {
    product(sizes, scale, a, b, Out::new(onto, out), stride, gemm::Parallelism::None);
}

/// The same on all threads.
pub fn multiply_on_all_threads(sizes: Sizes, scale: f32, a: Mat, b: Mat, onto: Onto, out: &mut [f32], stride: usize) {
    product(sizes, scale, a, b, Out::new(onto, out), stride, gemm::Parallelism::Rayon(0));
}

/// out = a · b on this thread alone, into memory that nothing has been written to. All of the m rows' n values are written.
pub(crate) fn multiply_into(sizes: Sizes, a: Mat, b: Mat, out: &mut [MaybeUninit<f32>], stride: usize) {
    product(sizes, 1.0, a, b, Out::Fresh(out), stride, gemm::Parallelism::None);
}

/// Where a product goes.
pub(crate) enum Out<'a> {
    /// Memory that is written, all of it, and not read before.
    Fresh(&'a mut [MaybeUninit<f32>]),
    /// Values that are added to.
    Sum(&'a mut [f32]),
}

impl<'a> Out<'a> {
    pub(crate) fn new(onto: Onto, out: &'a mut [f32]) -> Self {
        match onto {
            // SAFETY: the layouts are the same, and no product makes a value uninitialised.
            Onto::Nothing => Self::Fresh(unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) }),
            Onto::Sum => Self::Sum(out),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Fresh(out) => out.len(),
            Self::Sum(out) => out.len(),
        }
    }

    pub(crate) fn is_sum(&self) -> bool {
        matches!(self, Self::Sum(_))
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        match self {
            Self::Fresh(out) => out.as_mut_ptr().cast(),
            Self::Sum(out) => out.as_mut_ptr(),
        }
    }
}

fn product((m, k, n): Sizes, scale: f32, a: Mat, b: Mat, mut out: Out, stride: usize, parallelism: gemm::Parallelism) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0 && a.holds(m, k) && b.holds(k, n), "operands hold their shapes");
    assert!(out.len() > last(m, stride, n, 1) && stride >= n, "out is [m, stride]");
    let is_sum = out.is_sum();
    // SAFETY: the three pointers are valid for the shapes and strides given, as asserted above, and `out` is borrowed
    // mutably, so nothing aliases it. It is read where it is added to, and only there.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            is_sum,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            if is_sum { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "operands hold their shapes")]
    fn strides_that_overflow_are_refused() {
        let far = Mat::rows(&[1.0], 1 << 63);
        multiply((3, 1, 1), 1.0, far, Mat::rows(&[1.0], 1), Onto::Nothing, &mut [0.0; 3], 1);
    }

    /// Whole numbers, whose sums are exact.
    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn products_are_the_naive_ones_whatever_the_strides() {
        let (m, k, n, a_stride, b_stride, stride) = (5, 7, 9, 8, 12, 10);
        let (a, b) = (numbers(m * a_stride), numbers(n * b_stride));
        let before = numbers(m * stride);
        let naive = |i: usize, j: usize| (0..k).map(|l| a[i * a_stride + l] * b[j * b_stride + l]).sum::<f32>();
        let (mat_a, mat_b) = (Mat::rows(&a, a_stride), Mat::rows(&b, b_stride).transposed());
        for (onto, scale) in [(Onto::Nothing, 2.0), (Onto::Sum, 0.5)] {
            for multiply in [multiply, multiply_on_all_threads] {
                let mut out = before.clone();
                multiply((m, k, n), scale, mat_a, mat_b, onto, &mut out, stride);
                for (at, (&found, &before)) in out.iter().zip(&before).enumerate() {
                    let (i, j) = (at / stride, at % stride);
                    let on = if onto == Onto::Sum { before } else { 0.0 };
                    assert_eq!(found, if j < n { on + scale * naive(i, j) } else { before }, "{i} {j}");
                }
            }
        }
    }
}
