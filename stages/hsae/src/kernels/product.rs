//! Products of matrices, by the `gemm` crate.

/// A matrix by its rows and columns' distances.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    values: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    pub(super) fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row_stride: width, col_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Inner products of rows, on all threads. Shapes: a [m, d], b [n, d] → [m, n].
pub(crate) fn products(a: &[f32], b: &[f32], d: usize) -> Vec<f32> {
    let (m, n) = (a.len() / d, b.len() / d);
    let mut out = vec![0.0; m * n];
    multiply(m, d, n, Mat::rows(a, d), Mat::rows(b, d).transposed(), 0.0, &mut out, n);
    out
}

/// out [m, n] = beta·out + a [m, k] · b [k, n], on all threads; `out` has rows of `stride`.
#[expect(clippy::too_many_arguments, reason = "the sizes and operands of a matrix product")]
pub(super) fn multiply(m: usize, k: usize, n: usize, a: Mat, b: Mat, beta: f32, out: &mut [f32], stride: usize) {
    product(m, k, n, a, b, beta, out, stride, gemm::Parallelism::Rayon(0));
}

/// The same on this thread alone, `out` overwritten.
pub(super) fn multiply_here(m: usize, k: usize, n: usize, a: Mat, b: Mat, out: &mut [f32], stride: usize) {
    product(m, k, n, a, b, 0.0, out, stride, gemm::Parallelism::None);
}

#[expect(clippy::too_many_arguments, reason = "the sizes and operands of a matrix product")]
fn product(
    m: usize,
    k: usize,
    n: usize,
    a: Mat,
    b: Mat,
    beta: f32,
    out: &mut [f32],
    stride: usize,
    parallelism: gemm::Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |mat: Mat, rows: usize, cols: usize| (rows - 1) * mat.row_stride + (cols - 1) * mat.col_stride;
    assert!(k > 0 && a.values.len() > last(a, m, k) && b.values.len() > last(b, k, n), "operands hold their shapes");
    assert!(out.len() > (m - 1) * stride + n - 1 && stride >= n, "out is [m, stride]");
    // SAFETY: the three pointers are valid for the shapes and strides given, as asserted above, and `out` is borrowed
    // mutably, so nothing aliases it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            beta != 0.0,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
