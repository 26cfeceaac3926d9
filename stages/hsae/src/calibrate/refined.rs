//! Thresholds of the refined modes: one per sweep, each so that the wanted L0 is reached with what the sweep before left.

use crate::calibrate::threshold_for;
use crate::refine::{Refinement, Refiner};
use crate::rows::centered;
use crate::sparse::SparseRows;
use crate::trained::{Mode, Rule, Rules, Threshold, TrainedSae, TreeGate, View, apply};

/// Rows that tell where the thresholds lie, about.
const N_FEW: usize = 1024;
/// Candidates are collected from so far below that, in parts of the rows' mean score; further below at each further look.
const MARGIN: f32 = 0.1;

/// `rules` and the refinements that start from them. Shapes: rows [n, d_model], shift [d_sae] (what the prior adds).
pub(super) fn with_refinements(sae: &TrainedSae, rows: &[f32], rules: Rules, shift: &[f32]) -> Rules {
    if sae.config.refine_sweeps == 0 {
        return rules;
    }
    let sae = TrainedSae { rules, ..sae.clone() };
    let flat_refined = Some(refinement(&sae, rows, View::Flat, shift));
    // A hard gate is no matter of scores.
    let has_soft_gate = matches!(sae.gate, TreeGate::Soft(_)) && sae.parent.iter().any(Option::is_some);
    let gated_refined = has_soft_gate.then(|| refinement(&sae, rows, View::Gated, shift));
    Rules { flat_refined, gated_refined, ..sae.rules }
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
        let n_few = N_FEW.min(acts.n_rows());
        let lowest = f32::NEG_INFINITY;
        let start = self.above(&x[..n_few * self.refiner.d_model], &acts.first_rows(n_few), lowest).0;
        let mean = acts.vals.iter().map(|&act| f64::from(act)).sum::<f64>() / acts.nnz().max(1) as f64;
        let mut bound = start - MARGIN * mean as f32;
        for look in 1.. {
            let (threshold, active) = self.above(x, acts, bound);
            if threshold >= bound || bound == lowest {
                return (threshold, self.refiner.solve(x, &active));
            }
            bound = if look < 4 { bound - 4f32.powi(look) * MARGIN * mean as f32 } else { lowest };
        }
        unreachable!("the last look is from the lowest bound")
    }

    /// The threshold for the wanted L0 among candidates above a bound, and what is active by it.
    fn above(&self, x: &[f32], acts: &SparseRows, bound: f32) -> (f32, SparseRows) {
        let (candidates, scores) = self.refiner.scores(x, acts, &self.refinement.lower(bound));
        let shift = &self.refinement.shift;
        let shifted: Vec<f32> = candidates.idx.iter().zip(&scores).map(|(&j, s)| s + shift[j as usize]).collect();
        let n = self.k * acts.n_rows() as f64;
        let threshold = threshold_for(&candidates, &shifted, n, |_| true);
        (threshold, apply(&Rule::Above(self.refinement.lower(threshold)), &candidates, &scores))
    }
}
