//! The scalar product, written out in vector instructions: left to itself, the compiler sees what becomes of the lanes
//! and adds them in pairs all along, which takes five times as long.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::Vectors;

/// Sums that are kept apart until the end, so that they fit registers of every size. They decide the order of the sum.
const LANES: usize = 32;

/// x·y of two slices of equal length. The order of the sum depends on the length alone, on every processor.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len(), "rows of one length");
    let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let tail: f32 = x_tail.iter().zip(y_tail).map(|(x, y)| x * y).sum();
    #[cfg(target_arch = "x86_64")]
    match Vectors::detect() {
        // SAFETY: the processor has these instructions, as was found.
        Vectors::Avx512 => return unsafe { avx512(x, y) } + tail,
        // SAFETY: as above.
        Vectors::Avx2 => return unsafe { avx2(x, y) } + tail,
        Vectors::Baseline => (),
    }
    portable(x, y) + tail
}

/// The scalar products of N rows with one, each as `dot` gives it: what is shared is read once. `ahead` is what will be
/// wanted soon: as many values as y has are brought nearer on the way.
#[inline(always)]
pub(crate) fn dots<const N: usize>(rows: [&[f32]; N], y: &[f32], ahead: &[f32]) -> [f32; N] {
    #[cfg(target_arch = "x86_64")]
    if let Vectors::Avx512 = Vectors::detect() {
        assert!(rows.iter().all(|x| x.len() == y.len()), "rows of one length");
        let (y, y_tail) = y.as_chunks::<LANES>();
        // SAFETY: the processor has these instructions, as was found; the rows have as many chunks as y.
        let sums = unsafe { avx512_many(rows.map(|x| x.as_chunks().0), y, ahead.as_chunks().0) };
        let tail = |x: &[f32]| x.as_chunks::<LANES>().1.iter().zip(y_tail).map(|(x, y)| x * y).sum::<f32>();
        return std::array::from_fn(|i| sums[i] + tail(rows[i]));
    }
    let _ = ahead;
    rows.map(|x| dot(x, y))
}

/// Lane by lane, then the upper half onto the lower until one is left.
fn portable(x: &[[f32; LANES]], y: &[[f32; LANES]]) -> f32 {
    let mut sums = [0f32; LANES];
    for (x, y) in x.iter().zip(y) {
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
    sums[0]
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
fn avx512(x: &[[f32; LANES]], y: &[[f32; LANES]]) -> f32 {
    let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for (x, y) in x.iter().zip(y) {
        // SAFETY: both chunks hold 32 values.
        unsafe {
            low = _mm512_add_ps(low, _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(y.as_ptr())));
            let (x, y) = (_mm512_loadu_ps(x.as_ptr().add(16)), _mm512_loadu_ps(y.as_ptr().add(16)));
            high = _mm512_add_ps(high, _mm512_mul_ps(x, y));
        }
    }
    fold_512(_mm512_add_ps(low, high))
}

/// # Safety
/// Every row has at least as many chunks as y.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
unsafe fn avx512_many<const N: usize>(
    rows: [&[[f32; LANES]]; N],
    y: &[[f32; LANES]],
    ahead: &[[f32; LANES]],
) -> [f32; N] {
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    let mut ahead = ahead.iter();
    for (i, y) in y.iter().enumerate() {
        if let Some(ahead) = ahead.next() {
            // A few lines at a time, since a whole row at once would keep what is wanted now waiting.
            // SAFETY: fetching ahead has no effect but on time.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().add(16).cast());
            }
        }
        // SAFETY: chunks hold 32 values, and there are as many of them, as promised by the caller.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(y.as_ptr()), _mm512_loadu_ps(y.as_ptr().add(16)));
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = row.get_unchecked(i).as_ptr();
                sums[0] = _mm512_add_ps(sums[0], _mm512_mul_ps(_mm512_loadu_ps(x), low));
                sums[1] = _mm512_add_ps(sums[1], _mm512_mul_ps(_mm512_loadu_ps(x.add(16)), high));
            }
        }
    }
    sums.map(|[low, high]| fold_512(_mm512_add_ps(low, high)))
}

/// The sum of sixteen lanes, the upper half onto the lower.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
pub(super) fn fold_512(sum: __m512) -> f32 {
    fold(_mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum)))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn avx2(x: &[[f32; LANES]], y: &[[f32; LANES]]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    for (x, y) in x.iter().zip(y) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold four times eight values.
            let (x, y) = unsafe { (_mm256_loadu_ps(x.as_ptr().add(8 * i)), _mm256_loadu_ps(y.as_ptr().add(8 * i))) };
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(x, y));
        }
    }
    fold(_mm256_add_ps(_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3])))
}

/// The sum of eight lanes, the upper half onto the lower.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn fold(sums: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of which no sum is exact, so that another order would show.
    fn made_up(n: usize) -> (Vec<f32>, Vec<f32>) {
        let x = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        (x, (0..n).map(|i| (i as f32 * 0.11).cos()).collect())
    }

    #[test]
    fn agrees_with_f64_at_every_length() {
        for n in 0..200 {
            let (x, y) = made_up(n);
            let exact: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let found = f64::from(dot(&x, &y));
            assert!((found - exact).abs() <= 1e-5 * (1.0 + n as f64), "{n}: {found} {exact}");
        }
    }

    #[test]
    fn several_rows_at_once_give_what_each_gives_alone() {
        for n in [0, 1, 31, 32, 100, 512, 577] {
            let (x, y) = made_up(4 * n + 4);
            let rows: [&[f32]; 4] = std::array::from_fn(|i| &x[i * n..(i + 1) * n]);
            let alone = rows.map(|row| dot(row, &y[..n]).to_bits());
            assert_eq!(dots(rows, &y[..n], &x[..n]).map(f32::to_bits), alone, "{n}");
            assert_eq!(dots([rows[3]], &y[..n], &[]).map(f32::to_bits), [alone[3]], "{n}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (x, y) = made_up(32 * 37);
        let (x, y) = (x.as_chunks::<LANES>().0, y.as_chunks::<LANES>().0);
        let expected = portable(x, y).to_bits();
        #[cfg(target_arch = "x86_64")]
        {
            if matches!(Vectors::detect(), Vectors::Avx512 | Vectors::Avx2) {
                // SAFETY: AVX-512 comes with AVX2.
                assert_eq!(unsafe { avx2(x, y) }.to_bits(), expected);
            }
            if matches!(Vectors::detect(), Vectors::Avx512) {
                // SAFETY: as was just asked.
                assert_eq!(unsafe { avx512(x, y) }.to_bits(), expected);
            }
        }
        let flat = |chunks: &[[f32; LANES]]| chunks.as_flattened().to_vec();
        assert_eq!(dot(&flat(x), &flat(y)).to_bits(), expected);
    }
}
