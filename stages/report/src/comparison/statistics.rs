//! What a few seeds say: means with t-intervals, differences seed by seed, and Holm's correction. Held to scipy in
//! `tests/golden/report_comparison.txt`.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::gamma::ln_gamma;

/// Of values that differ by the luck of the seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) mean: f64,
    /// Ends of the 95 % t-interval of the mean; none for a single value.
    pub(crate) ci_low: Option<f64>,
    pub(crate) ci_high: Option<f64>,
    pub(crate) n_seeds: usize,
}

/// A difference between two families, from pairs of equal seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    #[serde(flatten)]
    pub(crate) estimate: Estimate,
    /// Mean over standard deviation of the differences. None for one pair, or for differences that are all the same.
    pub(crate) d_z: Option<f64>,
    /// d_z times Hedges' correction for few pairs, without which three pairs show 1.8 times the effect. None below three.
    pub(crate) g_z: Option<f64>,
    /// Of the paired t-test, two-sided. None where d_z is.
    pub(crate) p: Option<f64>,
}

/// The mean and its interval, mean ± t(.975, n − 1) · s / √n. None of no values.
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    let (mean, deviation) = moments(values)?;
    let half = deviation.map(|deviation| {
        let n = values.len() as f64;
        students_t(n - 1.0).map_or(f64::NAN, |t| t.inverse_cdf(0.975)) * deviation / n.sqrt()
    });
    let (ci_low, ci_high) = (half.map(|half| mean - half), half.map(|half| mean + half));
    Some(Estimate { mean, ci_low, ci_high, n_seeds: values.len() })
}

/// Of pairs (ours, the reference's). None of no pairs.
pub(crate) fn difference(pairs: &[(f64, f64)]) -> Option<Difference> {
    let differences: Vec<f64> = pairs.iter().map(|(ours, reference)| ours - reference).collect();
    let estimate = estimate(&differences)?;
    let (mean, deviation) = moments(&differences)?;
    let d_z = deviation.filter(|&deviation| deviation > 0.0).map(|deviation| mean / deviation);
    let n = pairs.len() as f64;
    let p = d_z.and_then(|d_z| Some(2.0 * students_t(n - 1.0)?.cdf(-(d_z * n.sqrt()).abs())));
    let g_z = d_z.filter(|_| pairs.len() >= 3).map(|d_z| hedges_correction(n - 1.0) * d_z);
    Some(Difference { estimate, d_z, g_z, p })
}

/// Adjusted p-values: those below α hold at family-wise error α. Source: Holm 1979, "A Simple Sequentially Rejective
/// Multiple Test Procedure".
pub(crate) fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p_values[i] * (p_values.len() - rank) as f64).min(1.0));
        adjusted[i] = largest;
    }
    adjusted
}

/// Mean, and the sample's standard deviation (over n − 1) of two values and more.
fn moments(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / n)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() >= 2).then(|| (squares / (n - 1.0)).sqrt())))
}

/// J = Γ(df/2) / (√(df/2) Γ((df − 1)/2)). Source: Hedges 1981, "Distribution Theory for Glass's Estimator of Effect Size".
fn hedges_correction(df: f64) -> f64 {
    (ln_gamma(df / 2.0) - ln_gamma((df - 1.0) / 2.0)).exp() / (df / 2.0).sqrt()
}

fn students_t(df: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, df).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = include_str!("../../../../tests/golden/report_comparison.txt");

    /// The lists of each line of a kind.
    fn lines(kind: &'static str) -> Vec<Vec<Vec<f64>>> {
        let list = |text: &str| text.split(',').map(|value| value.parse().unwrap()).collect();
        let lines = TABLE.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
        let lines = lines.map(|line| line.split_whitespace().filter(|field| *field != "|").map(list).collect());
        let lines: Vec<_> = lines.collect();
        assert!(!lines.is_empty(), "no line of {kind}");
        lines
    }

    fn check(found: f64, expected: f64, what: &str) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{what}: {found}, expected {expected}");
    }

    #[test]
    fn means_and_their_intervals_agree_with_scipy() {
        for line in lines("mean") {
            let found = estimate(&line[0]).unwrap();
            check(found.mean, line[1][0], "mean");
            check(found.ci_low.unwrap(), line[2][0], "ci_low");
            check(found.ci_high.unwrap(), line[2][1], "ci_high");
            assert_eq!(found.n_seeds, line[0].len());
        }
    }

    #[test]
    fn paired_differences_agree_with_scipy() {
        for line in lines("paired") {
            let pairs: Vec<_> = line[0].iter().copied().zip(line[1].iter().copied()).collect();
            let found = difference(&pairs).unwrap();
            check(found.estimate.mean, line[2][0], "mean");
            check(found.estimate.ci_low.unwrap(), line[3][0], "ci_low");
            check(found.estimate.ci_high.unwrap(), line[3][1], "ci_high");
            check(found.d_z.unwrap(), line[4][0], "d_z");
            check(found.p.unwrap(), line[6][0], "p");
            match pairs.len() {
                2 => assert_eq!(found.g_z, None),
                _ => check(found.g_z.unwrap(), line[5][0], "g_z"),
            }
        }
    }

    #[test]
    fn holm_agrees_with_its_definition_in_python() {
        for line in lines("holm") {
            let found = holm(&line[0]);
            found.iter().zip(&line[1]).for_each(|(&found, &expected)| check(found, expected, "adjusted p"));
        }
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn closed_forms_of_two_and_three_values() {
        // t(.975, 1) = tan(.475 π), and s / √2 is half the distance.
        let found = estimate(&[1.0, 3.0]).unwrap();
        check(found.ci_high.unwrap() - 2.0, (0.475 * std::f64::consts::PI).tan(), "half width of two values");
        // Differences 1, 2, 3: mean 2, deviation 1; J(2) = 1/√π.
        let found = difference(&[(1.0, 0.0), (3.0, 1.0), (5.0, 2.0)]).unwrap();
        check(found.d_z.unwrap(), 2.0, "d_z");
        check(found.g_z.unwrap(), 2.0 / std::f64::consts::PI.sqrt(), "g_z");
    }

    #[test]
    fn too_few_values_have_no_interval_and_no_test() {
        assert_eq!(estimate(&[]), None);
        assert_eq!(difference(&[]), None);
        let one = difference(&[(3.0, 1.0)]).unwrap();
        assert_eq!(one.estimate, Estimate { mean: 2.0, ci_low: None, ci_high: None, n_seeds: 1 });
        assert_eq!((one.d_z, one.g_z, one.p), (None, None, None));
        let same = difference(&[(1.0, 0.5), (2.0, 1.5)]).unwrap();
        assert_eq!((same.estimate.ci_low, same.d_z, same.p), (Some(0.5), None, None));
    }
}
