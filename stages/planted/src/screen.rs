//! Which features may fire, told from the first eight bits of their random numbers.
//!
//! A feature fires where u < Q(a), u uniform in [0, 1) and Q the upper tail of the standard normal distribution. Most of
//! some thousand features do not, and to most of those neither the exact Q nor the rest of u matters.

use std::sync::LazyLock;

use pulp::{Arch, NullaryFnOnce};
use statrs::function::erf::erfc;

/// Beyond it Q is 0 or 1 in f32; no argument needs to be larger.
pub(crate) const FAR: f32 = 1e3;

/// 1 where a feature may fire whose u begins with the given eight bits, 0 where it does not, whatever follows them.
pub(crate) fn screen(arguments: &[f32], first_bits: &[u8], may_fire: &mut [u8]) {
    Arch::new().dispatch(Screen { arguments, first_bits, may_fire });
}

/// A closure would not be inlined into the vector instructions.
struct Screen<'a> {
    arguments: &'a [f32],
    first_bits: &'a [u8],
    may_fire: &'a mut [u8],
}

impl NullaryFnOnce for Screen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((&a, &bits), may_fire) in self.arguments.iter().zip(self.first_bits).zip(self.may_fire) {
            // u ≥ bits / 256.
            *may_fire = u8::from(f32::from(bits) <= 256.0 * bound(a));
        }
    }
}

/// At least Q(a), and less than four times it where Q is above 10⁻³: ½ exp(−a²/2) where a is positive, 1
/// elsewhere; 0 beyond 13.2, where Q is below any number that 8 bits can begin but 0.
#[inline(always)]
fn bound(a: f32) -> f32 {
    // 2^y is at most (1 + the fraction of y) · 2^(the whole of y): the bits of an f32 read as a number, which is linear
    // in y.
    const ONE: f32 = 8_388_608.0; // 2^23, what an exponent of one more adds to the bits
    let bits = (ONE * 126.0 - a * a * (0.5 * std::f32::consts::LOG2_E * ONE)).max(0.0);
    // SAFETY: `max` has seen to it that it is no NaN and not negative, and a square is positive, so it is below 2³¹.
    let bits: i32 = unsafe { bits.to_int_unchecked() };
    // A thousandth more covers all rounding.
    let tail = 1.001 * f32::from_bits(bits as u32);
    if a < 0.01 { 1.0 } else { tail }
}

/// Whether u < Q(a).
pub(crate) fn fires(u: f64, a: f32) -> bool {
    // Between two arguments, Q is between its values there: what lies outside is decided without computing Q.
    static TAILS: LazyLock<Vec<f64>> =
        LazyLock::new(|| (0..=N_TAILS).map(|i| upper_tail(FIRST_TAIL + i as f32 / TAILS_PER_UNIT)).collect());
    let at = (a - FIRST_TAIL) * TAILS_PER_UNIT;
    if at >= 0.0 && at < N_TAILS as f32 {
        let next = at as usize;
        if u >= TAILS[next] {
            return false;
        }
        if u < TAILS[next + 1] {
            return true;
        }
    }
    u < upper_tail(a)
}

/// Arguments at which Q is tabulated, from −4 to 8; powers of two, so that they are exact.
const FIRST_TAIL: f32 = -4.0;
const TAILS_PER_UNIT: f32 = 128.0;
const N_TAILS: usize = 1536;

/// Q(a): the probability of a standard normal number above a.
fn upper_tail(a: f32) -> f64 {
    0.5 * erfc(f64::from(a) * std::f64::consts::FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_above_the_tail_and_close_to_it() {
        for i in -4000..4000 {
            let a = i as f32 * 1e-3;
            let (bound, exact) = (f64::from(bound(a)), upper_tail(a));
            assert!(bound >= exact, "{a}: {bound} is below {exact}");
            assert!(a < 0.01 || bound <= (1.5 + 1.4 * f64::from(a)) * exact, "{a}: {bound}, the tail is {exact}");
        }
        for a in [5.0, 9.0, 13.0, -FAR] {
            assert!(f64::from(bound(a)) >= upper_tail(a), "{a}");
        }
    }

    #[test]
    fn the_tail_is_that_of_the_normal_distribution() {
        for (a, expected) in
            [(0.0, 0.5), (1.0, 0.158_655_253_931), (3.0, 1.349_898_031_63e-3), (-2.0, 0.977_249_868_05)]
        {
            assert!((upper_tail(a) / expected - 1.0).abs() <= 1e-9, "{a}: {}", upper_tail(a));
        }
    }

    #[test]
    fn the_table_decides_as_the_tail_does() {
        for i in 0..200_000u32 {
            let a = -5.0 + 14.0 * (i as f32 * 0.618_034).fract();
            let u = f64::from(i.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
            for u in [u, u * u * u * u, upper_tail(a), upper_tail(a) * (1.0 - 1e-9)] {
                assert_eq!(fires(u, a), u < upper_tail(a), "{u}, {a}");
            }
        }
    }

    #[test]
    fn what_is_screened_out_could_not_have_fired() {
        let arguments: Vec<f32> = (0..512).map(|i| -1.0 + i as f32 * 0.01).collect();
        for bits in 0..=255u8 {
            let mut may_fire = vec![0; arguments.len()];
            screen(&arguments, &vec![bits; arguments.len()], &mut may_fire);
            for (&a, &may_fire) in arguments.iter().zip(&may_fire) {
                let least = f64::from(bits) / 256.0;
                assert!(may_fire == 1 || least >= upper_tail(a), "{a}, {bits}");
            }
        }
    }
}
