//! What a latent's pre-activation knows of its feature when nobody has to guess the threshold. F1 is largely a matter of
//! thresholds (science.md §7); this is what is left when they are as good as can be.

use anyhow::Result;
use hsae::TrainedSae;
use rayon::prelude::*;

use crate::firing::Firing;
use crate::heldout::Heldout;
use crate::matching::Matching;
use crate::measure::Measure;
use crate::truth::{Detector, Truth, of_detectors};

/// Pre-activations held at once: 128 MiB.
const N_SCORES_AT_ONCE: usize = 1 << 25;

/// The half of the held-out rows that chooses thresholds and the one that measures them.
pub(crate) struct Halves {
    is_choosing: Vec<bool>,
    choosing: Vec<usize>,
    measuring: Vec<usize>,
}

impl Halves {
    /// `choosing`: ascending, some of the rows 0..n_rows.
    pub(crate) fn new(choosing: &[usize], n_rows: usize) -> Self {
        let mut is_choosing = vec![false; n_rows];
        choosing.iter().for_each(|&row| is_choosing[row] = true);
        let measuring = (0..n_rows).filter(|&row| !is_choosing[row]).collect();
        Self { is_choosing, choosing: choosing.to_vec(), measuring }
    }
}

/// `f1_oracle`, `precision_oracle` and `recall_oracle`: means over all latents, each as a detector of its best feature with
/// the threshold that gives the greatest F1 on one half of the documents, measured on the other. The gate has no part in
/// it, and a threshold may lie below zero, where the SAE itself would not fire.
///
/// Latents are taken in blocks, so that not all pre-activations of all rows are in memory.
pub(crate) fn of_thresholds(
    sae: &TrainedSae,
    heldout: &Heldout,
    truth: &Truth,
    matching: &Matching,
    halves: &Halves,
) -> Result<Vec<Measure>> {
    let n_rows = halves.is_choosing.len();
    let n_at_once = (N_SCORES_AT_ONCE / n_rows).clamp(1, sae.d_sae);
    let mut detectors = Vec::new();
    for first in (0..sae.d_sae).step_by(n_at_once) {
        let latents = first..(first + n_at_once).min(sae.d_sae);
        let mut scores = vec![0.0; latents.len() * n_rows];
        heldout.for_each_chunk(|first_row, x| {
            let n = x.len() / sae.d_model;
            let of_chunk = sae.pre_acts(x, latents.clone());
            for (of_latent, all) in of_chunk.chunks_exact(n).zip(scores.chunks_exact_mut(n_rows)) {
                all[first_row..first_row + n].copy_from_slice(of_latent);
            }
            Ok(())
        })?;
        let of_latent =
            |(i, scores): (usize, &[f32])| detector(scores, &truth.firing, matching.best[latents.start + i], halves);
        detectors.extend(scores.par_chunks_exact(n_rows).enumerate().map(of_latent).collect::<Vec<_>>());
    }
    Ok(of_detectors(&detectors, "_oracle"))
}

/// Shapes: scores [n_rows].
fn detector(scores: &[f32], truth: &Firing, feature: usize, halves: &Halves) -> Detector {
    let planted = truth.latent(feature).0;
    let on = |half: bool| planted.iter().filter(move |&&row| halves.is_choosing[row as usize] == half);
    let of_rows = |rows: &[usize]| -> Vec<f32> { rows.iter().map(|&row| scores[row]).collect() };
    let score = |&row: &u32| scores[row as usize];
    let n_planted = on(false).count();
    let Some(threshold) = threshold(on(true).map(score).collect(), &of_rows(&halves.choosing)) else {
        return Detector::new(0, 0, n_planted);
    };
    let n_hits = on(false).map(score).filter(|&score| score >= threshold).count();
    Detector::new(n_hits, n_reaching(threshold, &of_rows(&halves.measuring)), n_planted)
}

/// The score from which a latent has to fire for the greatest F1 = 2·hits / (firings + planted); of equals, the highest.
/// `planted` are the scores of the rows in which the feature is on, `all` those of all rows. The threshold is one of
/// `planted`, since below one of these nothing is won before the next. None where the feature is never on.
fn threshold(mut planted: Vec<f32>, all: &[f32]) -> Option<f32> {
    planted.sort_unstable_by(f32::total_cmp);
    planted.first()?;
    let lowest = planted[first_worth_trying(&planted, all)];
    // Rows whose score reaches the first i planted ones and no more, at i.
    let mut n_reaching = vec![0; planted.len() + 1];
    for &score in all.iter().filter(|&&score| score >= lowest) {
        n_reaching[planted.partition_point(|&other| other <= score)] += 1;
    }
    let (mut n_firings, mut best, mut most) = (0, None, 0.0);
    for (i, &score) in planted.iter().enumerate().rev().take_while(|&(_, &score)| score >= lowest) {
        n_firings += n_reaching[i + 1];
        // Equal scores fire together; the first of them has all of them above it.
        let is_first = i == 0 || planted[i - 1] < score;
        let f1 = f1(planted.len() - i, n_firings, planted.len());
        if is_first && f1 > most {
            (best, most) = (Some(score), f1);
        }
    }
    best
}

/// No place in `planted`, ascending, before this one can be the best threshold: with so many firings, even all hits would
/// give less than a threshold that was tried. It saves sorting in the bulk of the rows, where the feature is off.
fn first_worth_trying(planted: &[f32], all: &[f32]) -> usize {
    let (mut place, mut most) = (planted.len() / 2, 0.0_f64);
    loop {
        let n_firings = n_reaching(planted[place], all);
        most = most.max(f1(planted.len() - place, n_firings, planted.len()));
        if place == 0 || f1(planted.len(), n_firings, planted.len()) < most {
            return place;
        }
        place /= 2;
    }
}

fn f1(n_hits: usize, n_firings: usize, n_planted: usize) -> f64 {
    2.0 * n_hits as f64 / (n_firings + n_planted) as f64
}

fn n_reaching(threshold: f32, scores: &[f32]) -> usize {
    scores.iter().map(|&score| usize::from(score >= threshold)).sum()
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::planted;

    fn f1_at(threshold: f32, scores: &[f32], is_on: &[bool]) -> f64 {
        let fires = |row: &usize| scores[*row] >= threshold;
        let n_hits = (0..scores.len()).filter(fires).filter(|&row| is_on[row]).count();
        let n_firings = (0..scores.len()).filter(fires).count();
        Detector::new(n_hits, n_firings, is_on.iter().filter(|&&on| on).count()).f1
    }

    #[test]
    fn no_other_threshold_gives_more() {
        let mut rng = artifact::random::stream(0, "recover/test/oracle", 0, 0);
        for round in 0..40 {
            let is_on: Vec<bool> = (0..60).map(|_| rng.next_u32().is_multiple_of(4)).collect();
            // Rounded to quarters in every other round, for ties.
            let score = |on: bool, noise: f64| {
                let score = f64::from(u8::from(on)) + 1.5 * noise - 2.0;
                (if round % 2 == 0 { score } else { (4.0 * score).round() / 4.0 }) as f32
            };
            let scores: Vec<f32> = is_on.iter().map(|&on| score(on, planted::uniform(&mut rng))).collect();
            let of_planted = (0..60).filter(|&row| is_on[row]).map(|row| scores[row]).collect();
            let found = threshold(of_planted, &scores).unwrap();
            let most = scores.iter().map(|&threshold| f1_at(threshold, &scores, &is_on)).fold(0.0, f64::max);
            assert!((f1_at(found, &scores, &is_on) - most).abs() <= 1e-12, "{found}");
            let higher = scores.iter().filter(|&&score| score > found);
            assert!(higher.into_iter().all(|&score| f1_at(score, &scores, &is_on) < most - 1e-12));
        }
        assert_eq!(threshold(Vec::new(), &[1.0, 2.0]), None);
    }

    #[test]
    fn one_half_chooses_and_the_other_measures() {
        // The feature is on in every other row. In the half that chooses, the score tells it perfectly from 2 on; in the
        // other half a quarter of its rows lie below, and a quarter of the others above.
        let n = 80;
        let halves = Halves::new(&(0..n / 2).collect::<Vec<_>>(), n);
        let is_on = |row: usize| row.is_multiple_of(2);
        let score = |row: usize| {
            let is_wrong = row >= n / 2 && row % 8 < 2;
            if is_on(row) != is_wrong { 2.0 } else { 1.0 }
        };
        let scores: Vec<f32> = (0..n).map(score).collect();
        let gates = (0..n).map(|row| vec![f32::from(u8::from(is_on(row)))]).collect();
        let found = detector(&scores, &planted::firing(&gates), 0, &halves);
        assert_eq!(found, Detector { precision: 0.75, recall: 0.75, f1: 0.75 });
        let silent = vec![vec![0.0]; n];
        assert_eq!(detector(&scores, &planted::firing(&silent), 0, &halves), Detector::default());
    }
}
