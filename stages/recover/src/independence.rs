//! Planted independent pairs: features with neither parent nor child. Their latents' mutual information must lie within
//! the null, or the null is wrong.

use crate::documents::Documents;
use crate::edges::{Ground, Measuring};
use crate::matching::Matching;
use crate::measure::{Measure, mean, share};
use crate::resampling::interval;
use crate::truth::Truth;

/// Pairs are looked at up to this number.
const MAX_PAIRS: usize = 2000;

/// Shifts for the null of these pairs: enough for a 97.5 % quantile.
const MIN_SHIFTS: usize = 200;

/// Of all pairs of matched lone features whose latents fire: the share whose mutual information does not exceed the
/// 97.5 % quantile of their own circular shifts (.975 is what the null itself gives), the mean of their mutual
/// information, and what the shifts give for that mean, with its 95 % interval over shifts.
pub(crate) fn of_lone_pairs(measuring: &Measuring, truth: &Truth, matching: &Matching) -> Vec<Measure> {
    let latents: Vec<u32> =
        truth.lone().into_iter().filter_map(|feature| Some(matching.latent[feature]? as u32)).collect();
    let n = latents.len();
    // Neighbours first, then those two apart and so on, so that a cut leaves every latent in.
    let pairs = (1..n).flat_map(|apart| (0..n - apart).map(move |i| (i, i + apart)));
    let pairs: Vec<(u32, u32)> = pairs.take(MAX_PAIRS).map(|(i, j)| (latents[i], latents[j])).collect();
    let measured = measuring.pairs(&pairs);
    let n_within = measured.iter().filter(|pair| Some(pair.mi_bits) <= pair.mi_null_high_bits).count();
    let n_shifts = measured.first().map_or(0, |pair| pair.null_mi_bits.len());
    let of_shift = |shift: usize| mean(measured.iter().map(|pair| pair.null_mi_bits[shift]));
    let null = interval((0..n_shifts).filter_map(of_shift).collect());
    let measures = [
        ("independent_pairs_within_null", share(n_within, measured.len()), None),
        ("independent_pairs_n", Some(measured.len() as f64), None),
        ("independent_pairs_mi_bits", mean(measured.iter().map(|pair| pair.mi_bits)), None),
        ("independent_pairs_null_bits", mean(measured.iter().filter_map(|pair| pair.mi_null_bits)), null),
    ];
    let measure =
        |(metric, value, interval): (&str, Option<f64>, _)| Some(Measure::new(metric, value?).within(interval));
    measures.into_iter().filter_map(measure).collect()
}

/// All held-out documents, with shifts enough and no more resamples than needed.
pub(crate) fn ground(documents: &Documents, seed: u64, n_shifts: usize) -> Ground {
    Ground::new(documents, seed, 2, n_shifts.max(MIN_SHIFTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted;
    use crate::truth::tests::forest_truth;

    #[test]
    fn lone_features_lie_within_the_null() {
        let n_rows = 12_000;
        let (truth, gates) = forest_truth(n_rows, 4);
        let matching = Matching::new(&truth.directions, &truth.directions, truth.n_features(), 0.5).unwrap();
        let documents = Documents::new(&planted::doc_ids(n_rows, 40)).unwrap();
        let ground = ground(&documents, 0, 20);
        let measures = of_lone_pairs(&Measuring::new(&ground, planted::firing(&gates)), &truth, &matching);
        let value = |i: usize, metric: &str| {
            assert_eq!(measures[i].metric, metric);
            measures[i].value
        };
        assert_eq!(value(1, "independent_pairs_n"), 15.0);
        assert!(value(0, "independent_pairs_within_null") >= 13.0 / 15.0);
        let (found, null) = (value(2, "independent_pairs_mi_bits"), value(3, "independent_pairs_null_bits"));
        let (low, high) = measures[3].interval.unwrap();
        assert!(low < null && null < high && high - low < 1e-4, "{low} {null} {high}");
        assert!(low <= found && found <= high, "{found}, null {low} to {high}");
    }
}
