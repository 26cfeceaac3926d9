//! Products of matrices on one thread, by the `gemm` crate. Threads share out contexts, not products.

/// A matrix by the distances of its rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    values: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows one after another, each of `width` values.
    pub(crate) fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row_stride: width, col_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// What becomes of the values that stand in the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    Nothing,
    /// They are added to.
    Sum,
}

/// out [m, n] = scale · a [m, k] · b [k, n], on what stands there or on nothing; `out` has rows of `stride`.
pub(crate) fn multiply(
    (m, k, n): (usize, usize, usize),
    scale: f32,
    a: Mat,
    b: Mat,
    onto: Onto,
    out: &mut [f32],
    stride: usize,
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
            onto == Onto::Sum,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
