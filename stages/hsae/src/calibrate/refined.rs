//! Thresholds of the refined modes: one per sweep, each so that the wanted L0 is reached with what the sweep before left.

use crate::calibrate::threshold_for;
use crate::refine::{Refinement, Refiner};
use crate::rows::centered;
use crate::sparse::SparseRows;
use crate::trained::{Mode, Rule, Threshold, TrainedSae, TreeGate, View, apply};

/// Rows that tell where the thresholds lie, about.
const N_FEW: usize = 1024;
/// So many looks from lower and lower bounds, then one from the lowest.
const LOOKS: i32 = 4;
/// Least squares leave some latents out; so often is the threshold lowered to make up for them.
const CORRECTIONS: usize = 3;
/// Candidates are collected from so far below that, in parts of the rows' mean score; further below at each further look.
const MARGIN: f32 = 0.1;

/// Finds the refinements that start from the SAE's rules. Shapes: rows [n, d_model], shift [d_sae] (what the prior adds).
pub(super) fn set_refinements(sae: &mut TrainedSae, rows: &[f32], shift: &[f32]) {
    if sae.config.refine_sweeps == 0 {
        return;
    }
    sae.rules.flat_refined = Some(refinement(sae, rows, View::Flat, shift));
    // A hard gate is no matter of scores.
    let has_soft_gate = matches!(sae.gate, TreeGate::Soft(_)) && sae.parent.iter().any(Option::is_some);
    sae.rules.gated_refined = has_soft_gate.then(|| refinement(sae, rows, View::Gated, shift));
}

fn refinement(sae: &TrainedSae, rows: &[f32], view: View, shift: &[f32]) -> Refinement {
    let x = centered(rows, &sae.b_dec);
    let refiner = sae.refiner(view, &x);
    let mut acts = refiner.solve(&x, &sae.encode(rows, Mode { view, threshold: Threshold::Prior }));
    let mut refinement = Refinement { shift: shift.to_vec(), thresholds: Vec::new() };
    for _ in 0..sae.config.refine_sweeps {
        let sweep = Sweep { refiner, refinement: &refinement, k: sae.config.k as f64 };
        let (threshold, next) = sweep.threshold(&x, &acts);
        refinement.thresholds.push(threshold);
        acts = next;
    }
    refinement
}

struct Sweep<'a> {
    refiner: Refiner<'a>,
    refinement: &'a Refinement,
    /// The wanted L0.
    k: f64,
}

impl Sweep<'_> {
    /// The threshold, and the activations after the sweep. Shapes: x [n, d_model], acts [n, d_sae] sparse.
    fn threshold(&self, x: &[f32], acts: &SparseRows) -> (f32, SparseRows) {
        let wanted = self.k * acts.n_rows() as f64;
        let n_few = N_FEW.min(acts.n_rows());
        let few = &x[..n_few * self.refiner.d_model];
        let start = self.above(few, &acts.first_rows(n_few), f32::MIN, self.k * n_few as f64).0;
        let mean = acts.vals.iter().map(|&act| f64::from(act)).sum::<f64>() / acts.nnz().max(1) as f64;
        let mut bound = start - MARGIN * mean as f32;
        let mut n = wanted;
        let mut corrections = 0;
        for look in 1.. {
            let (threshold, active) = self.above(x, acts, bound, n);
            if threshold < bound && bound > f32::MIN {
                bound = if look < LOOKS { bound - 4f32.powi(look) * MARGIN * mean as f32 } else { f32::MIN };
                continue;
            }
            let solved = self.refiner.solve(x, &active);
            let n_missing = wanted - solved.nnz() as f64;
            // Where all candidates are active, a lower threshold finds no more.
            if corrections == CORRECTIONS || n_missing <= 1e-3 * wanted || threshold <= f32::MIN {
                return (threshold, solved);
            }
            corrections += 1;
            n += n_missing;
        }
        unreachable!("bounds and corrections come to an end")
    }

    /// The threshold above which `n` of the candidates above a bound lie, and what is active by it.
    fn above(&self, x: &[f32], acts: &SparseRows, bound: f32, n: f64) -> (f32, SparseRows) {
        let (candidates, scores) = self.refiner.scores(x, acts, &self.refinement.lower(bound));
        let shift = &self.refinement.shift;
        let shifted: Vec<f32> = candidates.idx.iter().zip(&scores).map(|(&j, s)| s + shift[j as usize]).collect();
        // What is published has to be a number: no threshold at all is the lowest one.
        let threshold = threshold_for(&candidates, &shifted, n, |_| true).max(f32::MIN);
        (threshold, apply(&Rule::Above(self.refinement.lower(threshold)), &candidates, &scores))
    }
}
