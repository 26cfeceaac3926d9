//! Probes: one-against-rest logistic regressions on all coordinates of a text's representation, or on the k latents that
//! tell its class best.
//!
//! Source: Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing"; the choice of latents by
//! difference of means as in Karvonen et al. 2025, "SAEBench", its sparse-probing evaluation. There each class is a task of
//! its own; here the classes' probes answer together, by the largest log-odds, so that a score is an accuracy over all
//! classes. With K > 2 classes up to K · k latents take part, k for each class.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::examples::Example;
use crate::logistic::{Features, Logistic, Scaling};

/// Penalty of sparse probes, scikit-learn's default; with at most 20 columns it hardly matters.
const SPARSE_C: f64 = 1.0;
/// Penalties that a dense probe chooses from, by cross-validation.
const DENSE_CS: [f64; 4] = [0.001, 0.01, 0.1, 1.0];
const N_FOLDS: usize = 5;

/// What a probe answers for each test example.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answers {
    pub(crate) is_right: Vec<bool>,
}

/// The representations of both halves: training rows first, then test rows, with the training and test classes.
pub(crate) struct Halves<'a> {
    pub(crate) n_classes: usize,
    pub(crate) train: &'a [Example],
    pub(crate) test: &'a [Example],
}

impl Halves<'_> {
    /// A probe that sees all columns of `features` [n_train + n_test, d]. Its penalty is the one with the best accuracy
    /// in cross-validation within the training half, folds made of whole groups; the stronger one where two are equal.
    /// It is returned beside the answers.
    pub(crate) fn dense(&self, features: &Features) -> (Answers, f64) {
        let (train, test) = self.split(features);
        let fold_of = folds(self.train);
        let jobs: Vec<(usize, usize)> =
            (0..N_FOLDS).flat_map(|fold| (0..self.n_classes).map(move |class| (fold, class))).collect();
        // log_odds[fold, class][C][row held out]
        let log_odds: Vec<Vec<Vec<f64>>> = jobs
            .par_iter()
            .map(|&(fold, class)| {
                let (inside, outside): (Vec<usize>, Vec<usize>) =
                    (0..train.n_rows()).partition(|&i| fold_of[i] != fold);
                let (inside_rows, outside_rows) = scaled(train.select_rows(&inside), train.select_rows(&outside));
                let is_class: Vec<bool> = inside.iter().map(|&i| self.train[i].class == class).collect();
                path(&inside_rows, &is_class, &DENSE_CS)
                    .iter()
                    .map(|probe| all_log_odds(probe, &outside_rows))
                    .collect()
            })
            .collect();
        let n_right = |i_c: usize| -> usize {
            (0..N_FOLDS)
                .map(|fold| {
                    let outside = (0..train.n_rows()).filter(|&i| fold_of[i] == fold);
                    let of_class = |class: usize| &log_odds[fold * self.n_classes + class][i_c];
                    let right = outside.enumerate().filter(|&(row, i)| {
                        largest((0..self.n_classes).map(|class| of_class(class)[row])) == self.train[i].class
                    });
                    right.count()
                })
                .sum()
        };
        let n_right: Vec<usize> = (0..DENSE_CS.len()).map(n_right).collect();
        let best = largest(n_right.iter().map(|&n| n as f64));
        let (train, test) = scaled(train, test);
        let probes: Vec<Logistic> = (0..self.n_classes)
            .into_par_iter()
            .map(|class| Logistic::fit(&train, &self.is_class(class), DENSE_CS[best], Logistic::zero(train.n_columns)))
            .collect();
        let log_odds: Vec<Vec<f64>> = probes.iter().map(|probe| all_log_odds(probe, &test)).collect();
        (self.answers(&log_odds), DENSE_CS[best])
    }

    /// For each k, the probes that see, for each class, the k of the `allowed` columns whose means over the class's
    /// training examples and over the other training examples differ most (the lower column where two are equal; all of
    /// them where there are fewer than k).
    pub(crate) fn sparse(&self, features: &Features, allowed: std::ops::Range<usize>, ks: &[usize]) -> Vec<Answers> {
        // log_odds[class][k][test row]
        let log_odds: Vec<Vec<Vec<f64>>> = (0..self.n_classes)
            .into_par_iter()
            .map(|class| {
                let is_class = self.is_class(class);
                let ranked = by_difference_of_means(features, &is_class, allowed.clone());
                let of_k = |&k: &usize| {
                    let columns = &ranked[..k.min(ranked.len())];
                    let (train, test) = self.split(&features.select_columns(columns));
                    let (train, test) = scaled(train, test);
                    let probe = Logistic::fit(&train, &is_class, SPARSE_C, Logistic::zero(columns.len()));
                    all_log_odds(&probe, &test)
                };
                ks.iter().map(of_k).collect()
            })
            .collect();
        (0..ks.len())
            .map(|i_k| {
                let of_k: Vec<Vec<f64>> = log_odds.iter().map(|of_class| of_class[i_k].clone()).collect();
                self.answers(&of_k)
            })
            .collect()
    }

    fn split(&self, features: &Features) -> (Features, Features) {
        let (train, test) = features.values.split_at(self.train.len() * features.n_columns);
        let half = |values: &[f64]| Features { n_columns: features.n_columns, values: values.to_vec() };
        (half(train), half(test))
    }

    fn is_class(&self, class: usize) -> Vec<bool> {
        self.train.iter().map(|example| example.class == class).collect()
    }

    /// log_odds[class][test row]
    fn answers(&self, log_odds: &[Vec<f64>]) -> Answers {
        let is_right = |(i, example): (usize, &Example)| largest(log_odds.iter().map(|odds| odds[i])) == example.class;
        Answers { is_right: self.test.iter().enumerate().map(is_right).collect() }
    }
}

/// One probe for each penalty, each started from the one before.
fn path(features: &Features, is_class: &[bool], cs: &[f64]) -> Vec<Logistic> {
    let mut probes: Vec<Logistic> = Vec::with_capacity(cs.len());
    for &c in cs {
        let start = probes.last().cloned().unwrap_or_else(|| Logistic::zero(features.n_columns));
        probes.push(Logistic::fit(features, is_class, c, start));
    }
    probes
}

/// Fold of each example: groups take turns in order of first appearance, which is random already.
fn folds(examples: &[Example]) -> Vec<usize> {
    let mut fold_of_group = BTreeMap::new();
    examples
        .iter()
        .map(|example| {
            let next = fold_of_group.len() % N_FOLDS;
            *fold_of_group.entry(example.group).or_insert(next)
        })
        .collect()
}

/// Both standardised by the first's means and deviations.
fn scaled(mut train: Features, mut other: Features) -> (Features, Features) {
    let scaling = Scaling::of(&train);
    scaling.apply(&mut train);
    scaling.apply(&mut other);
    (train, other)
}

fn all_log_odds(probe: &Logistic, features: &Features) -> Vec<f64> {
    (0..features.n_rows()).map(|i| probe.log_odds(features.row(i))).collect()
}

/// The allowed columns, largest |mean over the class − mean over the rest| first. Only the first rows, those for which
/// `is_class` [n_train] tells the class, are looked at.
fn by_difference_of_means(features: &Features, is_class: &[bool], allowed: std::ops::Range<usize>) -> Vec<usize> {
    let n_class = is_class.iter().filter(|&&is_class| is_class).count();
    let n_rest = is_class.len() - n_class;
    let mut difference = vec![0.0; features.n_columns];
    for (i, &is_class) in is_class.iter().enumerate() {
        let share = if is_class { 1.0 / n_class as f64 } else { -1.0 / n_rest as f64 };
        difference.iter_mut().zip(features.row(i)).for_each(|(difference, value)| *difference += share * value);
    }
    let mut columns: Vec<usize> = allowed.collect();
    columns.sort_by(|&a, &b| difference[b].abs().total_cmp(&difference[a].abs()));
    columns
}

/// Index of the largest value, the first where several are equal.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use artifact::random::stream;
    use rand::RngExt;

    use super::*;

    fn examples(n: usize, n_classes: usize, first_group: usize) -> Vec<Example> {
        (0..n).map(|i| Example { group: first_group + i, class: i % n_classes, text: String::new() }).collect()
    }

    fn share(answers: &Answers) -> f64 {
        answers.is_right.iter().filter(|&&is_right| is_right).count() as f64 / answers.is_right.len() as f64
    }

    /// Noise, on which column 7 + 3·class stands out for its class by `signal`.
    fn planted(train: &[Example], test: &[Example], n_columns: usize, signal: f64) -> Features {
        let mut rng = stream(1, "test", 0, 0);
        let mut values = Vec::new();
        for example in train.iter().chain(test) {
            let stands_out = 7 + 3 * example.class;
            values.extend((0..n_columns).map(|j| rng.random::<f64>() + if j == stands_out { signal } else { 0.0 }));
        }
        Features { n_columns, values }
    }

    #[test]
    fn one_planted_latent_for_each_class_suffices() {
        let (train, test) = (examples(200, 4, 0), examples(200, 4, 200));
        let halves = Halves { n_classes: 4, train: &train, test: &test };
        let features = planted(&train, &test, 30, 2.0);
        for answers in halves.sparse(&features, 0..30, &[1, 2, 5]) {
            assert!(share(&answers) >= 0.99, "{}", share(&answers));
        }
        assert!(share(&halves.dense(&features).0) >= 0.99);
    }

    #[test]
    fn only_allowed_columns_are_looked_at() {
        let (train, test) = (examples(400, 4, 0), examples(400, 4, 400));
        let halves = Halves { n_classes: 4, train: &train, test: &test };
        let features = planted(&train, &test, 30, 2.0);
        for answers in halves.sparse(&features, 18..30, &[1, 50]) {
            assert!(share(&answers) <= 0.35, "{}", share(&answers));
        }
    }

    #[test]
    fn labels_without_a_signal_give_chance() {
        let (train, test) = (examples(400, 2, 0), examples(400, 2, 400));
        let halves = Halves { n_classes: 2, train: &train, test: &test };
        let features = planted(&train, &test, 20, 0.0);
        // Four standard errors of a coin thrown 400 times.
        for answers in halves.sparse(&features, 0..20, &[1, 5]).iter().chain([&halves.dense(&features).0]) {
            assert!((share(answers) - 0.5).abs() <= 0.1, "{}", share(answers));
        }
    }

    #[test]
    fn columns_are_ranked_by_the_difference_of_their_means() {
        let features = Features { n_columns: 3, values: vec![1.0, 0.0, 5.0, 3.0, 0.0, 5.0, 0.0, 9.0, 4.0] };
        // Differences: 2 − 0, 0 − 9, 5 − 4.
        assert_eq!(by_difference_of_means(&features, &[true, true, false], 0..3), [1, 0, 2]);
        assert_eq!(by_difference_of_means(&features, &[true, true, false], 1..3), [1, 2]);
    }

    #[test]
    fn a_group_lies_in_one_fold() {
        let mut examples = examples(60, 2, 0);
        examples.iter_mut().for_each(|example| example.group /= 3);
        let folds = folds(&examples);
        assert!(folds.chunks(3).all(|three| three.iter().all(|&fold| fold == three[0])));
        assert_eq!(folds.iter().filter(|&&fold| fold == 0).count(), 12);
    }
}
