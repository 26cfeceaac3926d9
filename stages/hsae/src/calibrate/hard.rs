//! Thresholds behind a hard gate. Which children are open depends on which parents are active, so the coarse level is
//! settled first, and the fine one on what is open behind it.

use super::{Fit, START, threshold_for};
use crate::archs::Keep;
use crate::sparse::SparseRows;
use crate::trained::{Rule, Rules, TrainedSae, apply};

/// The flat rules as they are; gated as trained, and with thresholds from the same prior. Where fewer children are open
/// than the budget allows, all are active.
pub(super) fn rules(sae: &TrainedSae, rows: &[f32], fit: Fit, active_above: f32) -> Rules {
    let config = &sae.config;
    let k_coarse = config.k_coarse().unwrap_or(config.k);
    let x = sae.input(rows);
    let input = sae.encoder(&x);
    let levels = sae.levels(input, active_above);
    let n_rows = input.n_rows() as f64;
    let is_coarse = |j: u32| (j as usize) < sae.n_coarse;
    let of_prior = |candidates: &SparseRows, n: f64, is_coarse_wanted: bool| {
        let shifted: Vec<f32> =
            candidates.idx.iter().zip(&candidates.vals).map(|(&j, score)| score + fit.shift[j as usize]).collect();
        threshold_for(candidates, &shifted, n, |j| is_coarse(j) == is_coarse_wanted)
    };

    // Lower bounds of what has to be looked at, [d_sae]: a share of the flat thresholds, and lower where that is too high.
    let flat = fit.rules.flat_prior.thresholds().unwrap_or(&fit.lowest);
    let mut lower: Vec<f32> = flat.iter().map(|threshold| START * threshold.max(0.0)).collect();
    loop {
        let coarse = levels.coarse(Keep::Above(&lower), &mut 0.0);
        let t_coarse = of_prior(&coarse, k_coarse as f64 * n_rows, true);
        let of = |t: f32| fit.shift.iter().map(move |shift| (t - shift).max(0.0));
        let mut thresholds: Vec<f32> = of(t_coarse).collect();
        let coarse = apply(&Rule::Above(thresholds.clone()), &coarse, &coarse.vals);
        let both = levels.with_fine(&coarse, Keep::Above(&lower), &mut 0.0);
        let t_fine = of_prior(&both, config.k as f64 * n_rows - coarse.nnz() as f64, false);
        thresholds.truncate(sae.n_coarse);
        thresholds.extend(of(t_fine).skip(sae.n_coarse));

        let mut is_low_enough = true;
        for (lower, &threshold) in lower.iter_mut().zip(&thresholds) {
            if threshold < *lower {
                (*lower, is_low_enough) = (START * threshold, false);
            }
        }
        if is_low_enough {
            return Rules { gated_native: Rule::TopK(config.k), gated_prior: Rule::Above(thresholds), ..fit.rules };
        }
    }
}
