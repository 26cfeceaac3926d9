//! The arithmetic on plain slices. Every function fixes the order of its sums by the shapes alone, so results do not
//! depend on the number of threads. Vector instructions are chosen at run time.

mod decode;
mod encode;

pub(crate) use decode::{decode_rows, prefix_errors, prefix_errors_backward};
#[cfg(test)]
pub(crate) use encode::pre_acts_at;
pub(crate) use encode::{acts_backward, for_each_block};

/// Runs `f` compiled for the best vector instructions of this processor.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Op<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Op(f))
}

/// y += a·x.
#[inline(always)]
pub(crate) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// x·y, summed in 32 lanes so that it vectorises; the order depends on the length alone.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0f32; LANES];
    let (x_chunks, y_chunks) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail: f32 = x_chunks.remainder().iter().zip(y_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x_chunks.zip(y_chunks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0] + tail
}

/// Splits `data` at the given ascending offsets (the first 0, the last its length), so that each part can go to a thread.
pub(crate) fn split_at_offsets<'a, T>(mut data: &'a mut [T], offsets: &[usize]) -> Vec<&'a mut [T]> {
    offsets
        .windows(2)
        .map(|pair| {
            let (part, rest) = std::mem::take(&mut data).split_at_mut(pair[1] - pair[0]);
            data = rest;
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_agrees_with_f64_at_every_length() {
        for n in 0..200 {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let exact: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let found = f64::from(vectorised(|| dot(&x, &y)));
            assert!((found - exact).abs() <= 1e-5 * (1.0 + n as f64), "{n}: {found} {exact}");
        }
    }
}
