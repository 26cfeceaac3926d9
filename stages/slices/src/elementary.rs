//! Functions of a value, written so that the compiler turns them into vector code.

/// eˣ to within 3 units in the last place; 0 below −87.3, e⁸⁸ above 88, and NaN for NaN.
///
/// The library's `exp` is a call for each value and differs between systems. x = n·ln 2 + r with n whole, and a
/// polynomial for eʳ on |r| ≤ ln 2 / 2 (coefficients: Cephes, `expf`). Products are fused with sums, which x86 before AVX2
/// does by calls, slowly, and to the same bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that n · LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2²³ rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.0;

    // Written as comparisons that let NaN through.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let n = clamped.mul_add(LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4_f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let e_r = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ, put together from its exponent bits; n is between −126 and 127.
    let bits = ((n + ROUND).to_bits() << 23).wrapping_add(127 << 23);
    let y = e_r * f32::from_bits(bits);
    if x < LOWEST { 0.0 } else { y }
}

/// To within 3e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Near 0 the quotient would lose what is left after 1 − 1: there the series.
    let squared = x * x;
    let series = x * (1.0 + squared * (-1.0 / 3.0 + squared * (2.0 / 15.0 - squared * (17.0 / 315.0))));
    let quotient = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if squared < 0.02 { series } else { quotient }
}

/// The error function, to within 3e-7. Coefficients: Cephes, `erff` and `erfcf`.
#[inline(always)]
fn erf(x: f32) -> f32 {
    #[inline(always)]
    fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
        let mut sum = 0.0;
        for c in coefficients {
            sum = sum * x + c;
        }
        sum
    }
    const NEAR: [f32; 7] = [
        7.853_861_4e-5,
        -8.010_193_6e-4,
        5.188_327_7e-3,
        -2.685_381_2e-2,
        1.128_358_5e-1,
        -3.761_262_6e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const MIDDLE: [f32; 9] = [
        2.326_82e-2,
        -1.387_039_4e-1,
        3.687_424_7e-1,
        -5.824_733e-1,
        6.210_004_6e-1,
        -4.944_515_3e-1,
        3.404_88e-1,
        -2.741_127e-1,
        5.638_259_4e-1,
    ];
    // Beyond 2 what is missing to 1 is so small that the middle's polynomial, clamped, does for all.
    let size = x.abs();
    let near = x * polynomial(x * x, NEAR);
    let clamped = if size > 1.0 { size } else { 1.0 };
    let inverse = 1.0 / (clamped * clamped);
    let missing = exp(-clamped * clamped) / clamped * polynomial(inverse, MIDDLE);
    let far = if x < 0.0 { missing - 1.0 } else { 1.0 - missing };
    // NaN is not far.
    if size > 1.0 { far } else { near }
}

/// x / (1 + e⁻ˣ).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x Φ(x). Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The same by tanh, as GPT-2 has it.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(ROOT_TWO_OVER_PI * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_the_last_places() {
        let mut worst: f64 = 0.0;
        for step in 0..=1_760_000 {
            let x = (f64::from(step) * 1e-4 - 88.0) as f32;
            if x < -87.3 {
                continue;
            }
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst <= 2.5e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    /// By its series, and further out by the continued fraction of its distance to 1.
    fn erf_of(x: f64) -> f64 {
        let root_pi = std::f64::consts::PI.sqrt();
        if x.abs() > 2.0 {
            let size = x.abs();
            let fraction = (1..=100).rev().fold(size, |fraction, k| size + f64::from(k) / 2.0 / fraction);
            return x.signum() * (1.0 - (-size * size).exp() / root_pi / fraction);
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / root_pi
    }

    #[test]
    fn tanh_and_erf_are_those_of_their_definitions() {
        for step in -100_000..=100_000 {
            let x = f64::from(step) * 1e-4;
            for (name, found, expected) in [("tanh", tanh(x as f32), x.tanh()), ("erf", erf(x as f32), erf_of(x))] {
                let off = (f64::from(found) - expected).abs();
                assert!(off <= 4e-7 * expected.abs().max(1.0), "{name}({x}) = {found}, expected {expected}");
            }
        }
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_those_of_their_definitions() {
        for step in -100_000..=100_000 {
            let x = f64::from(step) * 1e-4;
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            for (name, found, expected) in [
                ("silu", silu(x as f32), x / (1.0 + (-x).exp())),
                ("gelu", gelu(x as f32), 0.5 * x * (1.0 + erf_of(x / 2f64.sqrt()))),
                ("gelu_tanh", gelu_tanh(x as f32), 0.5 * x * (1.0 + inner.tanh())),
            ] {
                let off = (f64::from(found) - expected).abs();
                assert!(off <= 4e-7 * expected.abs().max(1.0), "{name}({x}) = {found}, expected {expected}");
            }
        }
        assert!(gelu(f32::NAN).is_nan() && gelu_tanh(f32::NAN).is_nan() && silu(f32::NAN).is_nan());
    }
}
