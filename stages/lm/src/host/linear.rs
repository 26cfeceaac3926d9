//! A dense layer without bias, on slices.

/// y = x W. Every row of the product is computed alone and by one thread, so it has the same bits
/// whatever rows stand beside it.
#[derive(Debug)]
pub(crate) struct Linear {
    /// [d_in, d_out].
    weight: Vec<f32>,
    d_in: usize,
    d_out: usize,
}

impl Linear {
    /// From the file's arrangement: weight [d_out, d_in].
    pub(crate) fn new(rows: &[f32], d_in: usize) -> Self {
        let d_out = rows.len() / d_in;
        Self { weight: transposed(rows, d_in), d_in, d_out }
    }

    pub(crate) fn d_out(&self) -> usize {
        self.d_out
    }

    /// Shapes: x [T, d_in] → [T, d_out].
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let n_rows = x.len() / self.d_in;
        let mut out = Vec::with_capacity(n_rows * self.d_out);
        let (d_in, d_out) = (self.d_in, self.d_out);
        let x = Matrix { values: x, row_stride: d_in, column_stride: 1 };
        let weight = Matrix { values: &self.weight, row_stride: d_out, column_stride: 1 };
        // SAFETY: the sizes below are those of the buffers, and with `beta` 0 the product is written and never read,
        // so the buffer needs no zeros: they would cost a pass over memory for each product.
        unsafe {
            multiply(n_rows, d_out, d_in, x, weight, out.as_mut_ptr(), d_out);
            out.set_len(n_rows * d_out);
        }
        out
    }
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
fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
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
