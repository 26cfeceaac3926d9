//! Intervals by resampling documents, and nulls by shifting firing within them.

use artifact::random;
use rand::RngExt;

use crate::documents::Documents;
use crate::firing::Firing;

/// Bootstrap over documents: how often each document stands in each resample of as many documents.
pub(crate) struct Resamples {
    n_resamples: usize,
    /// [n_docs, n_resamples]: one document's weights lie together, since sums go document by document.
    weights: Vec<u16>,
}

impl Resamples {
    pub(crate) fn draw(seed: u64, purpose: &str, n_docs: usize, n_resamples: usize) -> Self {
        let mut weights = vec![0; n_docs * n_resamples];
        for resample in 0..n_resamples {
            let mut rng = random::stream(seed, purpose, 0, resample as u64);
            for _ in 0..n_docs {
                let doc = rng.random_range(0..n_docs as u32) as usize;
                let weight: &mut u16 = &mut weights[doc * n_resamples + resample];
                *weight = weight.saturating_add(1);
            }
        }
        Self { n_resamples, weights }
    }

    /// [n_resamples]: how often each resample holds this document.
    pub(crate) fn weights(&self, doc: usize) -> &[u16] {
        &self.weights[doc * self.n_resamples..(doc + 1) * self.n_resamples]
    }

    /// The sum of `counts`, given as (document, count), in each resample.
    pub(crate) fn counts(&self, counts: impl IntoIterator<Item = (usize, u64)>) -> Vec<u64> {
        let mut totals = vec![0; self.n_resamples];
        for (doc, count) in counts {
            totals.iter_mut().zip(self.weights(doc)).for_each(|(total, &weight)| *total += u64::from(weight) * count);
        }
        totals
    }

    /// The sum of a quantity per document in each resample, added up in the order of documents.
    pub(crate) fn sums(&self, per_doc: &[f64]) -> Vec<f64> {
        let mut totals = vec![0.0; self.n_resamples];
        for (doc, value) in per_doc.iter().enumerate() {
            totals.iter_mut().zip(self.weights(doc)).for_each(|(total, &weight)| *total += f64::from(weight) * value);
        }
        totals
    }

    /// Interval of Σ numerator / Σ denominator, both given per document. Resamples without a denominator are left out.
    pub(crate) fn ratio_interval(&self, numerator: &[f64], denominator: &[f64]) -> Option<(f64, f64)> {
        let (numerators, denominators) = (self.sums(numerator), self.sums(denominator));
        let pairs = numerators.iter().zip(&denominators).filter(|(_, denominator)| **denominator > 0.0);
        interval(pairs.map(|(numerator, denominator)| numerator / denominator).collect())
    }
}

/// Circular shifts within documents: every shift turns each document's rows by an offset of its own, which keeps how
/// often a latent fires in the document and how its firing clusters, and breaks what ties it to other latents.
pub(crate) struct Shifts {
    documents: Documents,
    of_rows: Vec<u32>,
    /// One list of offsets a shift, [n_docs]; never 0 in a document of two rows or more.
    offsets: Vec<Vec<u32>>,
}

impl Shifts {
    pub(crate) fn draw(seed: u64, documents: &Documents, n_shifts: usize) -> Self {
        let offsets_of = |shift: usize| {
            let mut rng = random::stream(seed, "recover/shifts", 0, shift as u64);
            let offset = |doc: usize| match documents.rows(doc).len() as u32 {
                ..2 => 0,
                len => rng.random_range(1..len),
            };
            (0..documents.n_docs()).map(offset).collect()
        };
        let offsets = (0..n_shifts).map(offsets_of).collect();
        Self { documents: documents.clone(), of_rows: documents.of_rows(), offsets }
    }

    /// How often a latent that fires in `child_rows`, shifted, meets a parent. `parent_is_on` tells of a row whether
    /// the parent fires there. One count a shift.
    pub(crate) fn n11(&self, child_rows: &[u32], parent_is_on: impl Fn(usize) -> bool) -> Vec<u64> {
        let meets = |row: u32, offsets: &[u32]| {
            let doc = self.of_rows[row as usize] as usize;
            let rows = self.documents.rows(doc);
            let shifted = row as usize + offsets[doc] as usize;
            parent_is_on(if shifted < rows.end { shifted } else { shifted - rows.len() })
        };
        let count = |offsets: &Vec<u32>| child_rows.iter().filter(|&&row| meets(row, offsets)).count() as u64;
        self.offsets.iter().map(count).collect()
    }
}

/// How often a latent fires in each document in which it does, documents ascending.
pub(crate) fn firings_per_doc(rows: &[u32], of_rows: &[u32]) -> Vec<(usize, u64)> {
    let runs = rows.chunk_by(|a, b| of_rows[*a as usize] == of_rows[*b as usize]);
    runs.map(|run| (of_rows[run[0] as usize] as usize, run.len() as u64)).collect()
}

/// [n_latents, n_resamples]: how often each latent fires in each resample.
pub(crate) fn resampled_firings(firing: &Firing, of_rows: &[u32], resamples: &Resamples) -> Vec<Vec<u64>> {
    use rayon::prelude::*;
    let of_latent = |latent| resamples.counts(firings_per_doc(firing.latent(latent).0, of_rows));
    (0..firing.n_latents()).into_par_iter().map(of_latent).collect()
}

/// The 2.5 % and 97.5 % quantiles. None of no values.
pub(crate) fn interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    Some((quantile(&values, 0.025)?, quantile(&values, 0.975)?))
}

/// The same for a statistic that resampling shifts, as it does mutual information (a resample's sampling noise adds its
/// bias a second time) and means over what a resample still holds. The distribution is moved so that its mean is the
/// estimate.
pub(crate) fn centred_interval(values: Vec<f64>, estimate: f64) -> Option<(f64, f64)> {
    let shift = estimate - values.iter().sum::<f64>() / values.len() as f64;
    let (low, high) = interval(values)?;
    Some((low + shift, high + shift))
}

/// Of sorted values, linear between neighbours (numpy's default). None of no values.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[low] + (place - place.floor()) * (sorted[high] - sorted[low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([1, 2, 4, 8, 16], [.025, .5, .975])
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (share, expected) in [(0.025, 1.1), (0.5, 4.0), (0.975, 15.2), (0.0, 1.0), (1.0, 16.0)] {
            assert!((quantile(&values, share).unwrap() - expected).abs() < 1e-12);
        }
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_interval_of_a_mean_is_its_normal_one() {
        let n = 400;
        let values: Vec<f64> = (0..n).map(|i| f64::from(i % 20)).collect();
        let resamples = Resamples::draw(0, "recover/test/interval", n as usize, 4000);
        let (low, high) = resamples.ratio_interval(&values, &vec![1.0; n as usize]).unwrap();
        // The standard deviation of 0..20 is 5.766, so that of the mean of 400 is 0.288.
        assert!((low - (9.5 - 1.96 * 0.288)).abs() < 0.04, "{low}");
        assert!((high - (9.5 + 1.96 * 0.288)).abs() < 0.04, "{high}");
    }

    #[test]
    fn a_centred_interval_lies_about_the_estimate() {
        let values = vec![3.0, 1.0, 2.0];
        assert_eq!(interval(values.clone()), Some((1.05, 2.95)));
        let (low, high) = centred_interval(values, 1.0).unwrap();
        assert!((low - 0.05).abs() <= 1e-12 && (high - 1.95).abs() <= 1e-12);
        assert_eq!(centred_interval(Vec::new(), 1.0), None);
    }

    #[test]
    fn every_resample_has_as_many_documents() {
        let resamples = Resamples::draw(1, "recover/test/weights", 37, 5);
        assert_eq!(resamples.counts((0..37).map(|doc| (doc, 1))), [37; 5]);
    }

    #[test]
    fn shifts_stay_within_documents_and_keep_rates() {
        let documents = Documents::new(&[0, 0, 0, 0, 1, 2, 2]).unwrap();
        let shifts = Shifts::draw(0, &documents, 50);
        let rows = [0, 4, 5];
        assert_eq!(shifts.n11(&rows, |_| true), [3; 50]);
        // A lone row stays; with two rows the other one is the only choice.
        assert_eq!(shifts.n11(&rows, |row| row == 4 || row == 6), [2; 50]);
        assert_eq!(shifts.n11(&rows, |row| row == 0 || row == 5), [0; 50]);
        let reached: Vec<u64> = (1..4).map(|target| shifts.n11(&[0], |row| row == target).iter().sum()).collect();
        assert_eq!(reached.iter().sum::<u64>(), 50);
        assert!(reached.iter().all(|&n| n > 5), "{reached:?}");
    }
}
