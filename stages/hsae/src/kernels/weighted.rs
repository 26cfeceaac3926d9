//! Sums and products over a slice's rows in no order: what the backward pass does for every entry. Written out in vector
//! instructions, so that sums stay in registers. The order of every sum is the same on every processor.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::Vectors;
use super::dot;
use super::sliced::WIDTH;

/// One row of a slice.
pub(super) type Slice = [f32; WIDTH];

/// Σ_i weights\[i\] · rows\[tokens\[i\]\], and in `products` rows\[tokens\[i\]\] · w added to what is there.
/// Shapes: rows [n, WIDTH], tokens, weights and products [entries].
pub(super) fn sum_and_products(
    rows: &[Slice],
    tokens: &[u32],
    weights: &[f32],
    w: &Slice,
    products: &mut [f32],
) -> Slice {
    assert!(tokens.len() == weights.len() && tokens.len() == products.len(), "one of each for each entry");
    #[cfg(target_arch = "x86_64")]
    if let Vectors::Avx512 = Vectors::detect() {
        // SAFETY: the processor has these instructions, as was found.
        return unsafe { avx512_sum_and_products(rows, tokens, weights, w, products) };
    }
    products.iter_mut().zip(tokens).for_each(|(product, &t)| *product += dot(&rows[t as usize], w));
    sum(rows, tokens, weights)
}

/// Σ_i weights\[i\] · rows\[tokens\[i\]\]. Shapes: rows [n, WIDTH], tokens and weights [entries].
pub(super) fn sum(rows: &[Slice], tokens: &[u32], weights: &[f32]) -> Slice {
    assert!(tokens.len() == weights.len(), "a weight for each entry");
    #[cfg(target_arch = "x86_64")]
    match Vectors::detect() {
        // SAFETY: the processor has these instructions, as was found.
        Vectors::Avx512 => return unsafe { avx512_sum(rows, tokens, weights) },
        // SAFETY: as above.
        Vectors::Avx2 => return unsafe { avx2_sum(rows, tokens, weights) },
        Vectors::Baseline => (),
    }
    portable_sum(rows, tokens, weights)
}

#[inline(always)]
fn portable_sum(rows: &[Slice], tokens: &[u32], weights: &[f32]) -> Slice {
    let mut sum = [0f32; WIDTH];
    for (&t, &weight) in tokens.iter().zip(weights) {
        sum.iter_mut().zip(&rows[t as usize]).for_each(|(sum, x)| *sum += weight * x);
    }
    sum
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2_sum(rows: &[Slice], tokens: &[u32], weights: &[f32]) -> Slice {
    portable_sum(rows, tokens, weights)
}

#[cfg(target_arch = "x86_64")]
const VECTORS: usize = WIDTH / 16;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
fn avx512_sum(rows: &[Slice], tokens: &[u32], weights: &[f32]) -> Slice {
    let mut sums = [_mm512_setzero_ps(); VECTORS];
    for (&t, &weight) in tokens.iter().zip(weights) {
        let (row, weight) = (load(&rows[t as usize]), _mm512_set1_ps(weight));
        for i in 0..VECTORS {
            sums[i] = _mm512_add_ps(sums[i], _mm512_mul_ps(weight, row[i]));
        }
    }
    store(sums)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2")]
fn avx512_sum_and_products(rows: &[Slice], tokens: &[u32], weights: &[f32], w: &Slice, products: &mut [f32]) -> Slice {
    let mut sums = [_mm512_setzero_ps(); VECTORS];
    let w = load(w);
    for ((&t, &weight), product) in tokens.iter().zip(weights).zip(products) {
        let (row, weight) = (load(&rows[t as usize]), _mm512_set1_ps(weight));
        for i in 0..VECTORS {
            sums[i] = _mm512_add_ps(sums[i], _mm512_mul_ps(weight, row[i]));
        }
        // In the order of `dot`: even and odd vectors apart, then the upper half onto the lower.
        let mut halves = [_mm512_setzero_ps(); 2];
        for i in 0..VECTORS {
            halves[i % 2] = _mm512_add_ps(halves[i % 2], _mm512_mul_ps(row[i], w[i]));
        }
        *product += dot::fold_512(_mm512_add_ps(halves[0], halves[1]));
    }
    store(sums)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &Slice) -> [__m512; VECTORS] {
    // SAFETY: the row holds so many vectors.
    std::array::from_fn(|i| unsafe { _mm512_loadu_ps(row.as_ptr().add(16 * i)) })
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: [__m512; VECTORS]) -> Slice {
    let mut slice = [0f32; WIDTH];
    // SAFETY: the slice holds so many vectors.
    (0..VECTORS).for_each(|i| unsafe { _mm512_storeu_ps(slice.as_mut_ptr().add(16 * i), sums[i]) });
    slice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_one_entry_after_the_other_bit_for_bit() {
        let value = |i: usize| (i as f32 * 0.37).sin();
        let rows: Vec<Slice> = (0..50).map(|t| std::array::from_fn(|c| value(t * WIDTH + c))).collect();
        let w: Slice = std::array::from_fn(|c| value(9999 + c));
        for n in [0, 1, 2, 7, 40] {
            let tokens: Vec<u32> = (0..n).map(|i| (i * 17 % 50) as u32).collect();
            let weights: Vec<f32> = (0..n).map(|i| value(777 + i)).collect();
            let mut products = vec![0.25f32; n];
            let found = sum_and_products(&rows, &tokens, &weights, &w, &mut products);
            assert_eq!(found.map(f32::to_bits), portable_sum(&rows, &tokens, &weights).map(f32::to_bits), "{n}");
            assert_eq!(sum(&rows, &tokens, &weights).map(f32::to_bits), found.map(f32::to_bits), "{n}");
            for (product, &t) in products.iter().zip(&tokens) {
                assert_eq!(product.to_bits(), (0.25 + dot(&rows[t as usize], &w)).to_bits(), "{n}");
            }
        }
    }
}
