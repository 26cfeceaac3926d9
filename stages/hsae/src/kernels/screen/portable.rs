//! The product in f32, for processors without fast bf16.

/// Shapes: x [n, d_model], w [m, d_model] → out [n, stride], its first m columns.
pub(super) fn product(x: &[f32], w: &[f32], d_model: usize, out: &mut [f32], stride: usize) {
    let (n, m) = (x.len() / d_model, w.len() / d_model);
    assert!(m <= stride && out.len() >= n * stride, "out is [n, stride]");
    // SAFETY: the three pointers are valid for the shapes and strides given, as asserted above, and `out` is borrowed
    // mutably, so nothing aliases it.
    unsafe {
        gemm::gemm(
            n,
            m,
            d_model,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            x.as_ptr(),
            1,
            d_model as isize,
            w.as_ptr(),
            d_model as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
