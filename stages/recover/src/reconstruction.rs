//! How well an SAE reconstructs the held-out split, and with how many latents (science.md §1).

use anyhow::{Result, ensure};
use artifact::tables::DensityBin;
use hsae::{Mode, SparseRows, TrainedSae};
use rayon::prelude::*;

use crate::heldout::Heldout;
use crate::measure::Measure;
use crate::resampling::Resamples;

/// log10 firing rates from 1e-6 to 1, in steps of a quarter; rarer latents are in the first bin.
const LOG10_LOWEST: f64 = -6.0;
const BINS_PER_DECADE: usize = 4;
const N_BINS: usize = 6 * BINS_PER_DECADE;

/// Rows no longer than this have no ratio of norms.
const MIN_NORM: f64 = 1e-6;

/// The held-out split as an SAE sees it. Sums are per document, for the bootstrap.
pub(crate) struct Encoded {
    pub(crate) acts: SparseRows,
    /// Σ‖x − x̂‖².
    pub(crate) squared_error: Vec<f64>,
    /// The same with x̂ from the coarse latents alone; empty where there is no coarse level beside another.
    pub(crate) squared_error_coarse: Vec<f64>,
    /// Σ‖x̂‖/‖x‖ over the rows that are not zero, and their number.
    norm_ratio: Vec<f64>,
    n_with_norm: Vec<f64>,
}

/// Encodes and decodes the whole split.
///
/// Errors: a reconstruction is not finite (SAE, mode and row are named).
pub(crate) fn encode(sae: &TrainedSae, mode: Mode, heldout: &Heldout) -> Result<Encoded> {
    let has_levels = sae.n_coarse > 0 && sae.n_coarse < sae.d_sae;
    let of_rows = heldout.documents.of_rows();
    let n_docs = heldout.documents.n_docs();
    let mut encoded = Encoded {
        acts: SparseRows::new(sae.d_sae),
        squared_error: vec![0.0; n_docs],
        squared_error_coarse: if has_levels { vec![0.0; n_docs] } else { Vec::new() },
        norm_ratio: vec![0.0; n_docs],
        n_with_norm: vec![0.0; n_docs],
    };
    heldout.for_each_chunk(|first_row, x| {
        let acts = sae.encode(x, mode);
        let Mode { view, threshold } = mode;
        let add_errors = |reconstruction: &[f32], sums: &mut [f64]| -> Result<()> {
            for (i, error) in squared_errors(x, reconstruction, sae.d_model).into_iter().enumerate() {
                let row = first_row + i;
                let name = &sae.config.name;
                ensure!(error.is_finite(), "SAE {name}, {view} {threshold}: held-out row {row} reconstructs to NaN");
                sums[of_rows[row] as usize] += error;
            }
            Ok(())
        };
        let x_hat = sae.decode(&acts);
        add_errors(&x_hat, &mut encoded.squared_error)?;
        for (i, ratio) in norm_ratios(x, &x_hat, sae.d_model).into_iter().enumerate() {
            let doc = of_rows[first_row + i] as usize;
            encoded.norm_ratio[doc] += ratio.unwrap_or(0.0);
            encoded.n_with_norm[doc] += f64::from(u8::from(ratio.is_some()));
        }
        if has_levels {
            add_errors(&sae.decode_prefix(&acts, sae.n_coarse), &mut encoded.squared_error_coarse)?;
        }
        encoded.acts.append(&acts);
        Ok(())
    })?;
    Ok(encoded)
}

/// ‖x − x̂‖² of each row. Shapes: x, x_hat [n, d_model] → [n].
fn squared_errors(x: &[f32], x_hat: &[f32], d_model: usize) -> Vec<f64> {
    let rows = x.par_chunks_exact(d_model).zip(x_hat.par_chunks_exact(d_model));
    let error = |(x, x_hat): (&[f32], &[f32])| {
        x.iter().zip(x_hat).map(|(&x, &x_hat)| (f64::from(x) - f64::from(x_hat)).powi(2)).sum()
    };
    rows.map(error).collect()
}

/// ‖x̂‖/‖x‖ of each row, None where x is next to zero. Shapes: x, x_hat [n, d_model] → [n].
fn norm_ratios(x: &[f32], x_hat: &[f32], d_model: usize) -> Vec<Option<f64>> {
    let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let rows = x.par_chunks_exact(d_model).zip(x_hat.par_chunks_exact(d_model));
    rows.map(|(x, x_hat)| Some(norm(x)).filter(|&length| length > MIN_NORM).map(|length| norm(x_hat) / length))
        .collect()
}

/// FVU = Σ‖x − x̂‖² / Σ‖x − mean‖², both sums and the mean over the whole split, and EV = 1 − FVU; level `coarse` from
/// the coarse latents alone. Intervals: bootstrap over documents, the mean kept.
pub(crate) fn explained(encoded: &Encoded, heldout: &Heldout, resamples: &Resamples) -> Vec<Measure> {
    let of = |level, errors: &[f64]| {
        let fvu = errors.iter().sum::<f64>() / heldout.variation.iter().sum::<f64>();
        let interval = resamples.ratio_interval(errors, &heldout.variation);
        let ev_interval = interval.map(|(low, high)| (1.0 - high, 1.0 - low));
        [
            Measure::new("fvu", fvu).at(level).within(interval),
            Measure::new("ev", 1.0 - fvu).at(level).within(ev_interval),
        ]
    };
    let mut measures = of("all", &encoded.squared_error).to_vec();
    if !encoded.squared_error_coarse.is_empty() {
        measures.extend(of("coarse", &encoded.squared_error_coarse));
    }
    measures
}

/// `norm_ratio`: the mean of ‖x̂‖/‖x‖ over rows, which the published benchmark calls shrinkage; ours is per latent. None
/// where all rows are zero. Source: arXiv 2602.14687.
pub(crate) fn norm_ratio(encoded: &Encoded, resamples: &Resamples) -> Option<Measure> {
    let n: f64 = encoded.n_with_norm.iter().sum();
    let interval = resamples.ratio_interval(&encoded.norm_ratio, &encoded.n_with_norm);
    (n > 0.0).then(|| Measure::new("norm_ratio", encoded.norm_ratio.iter().sum::<f64>() / n).within(interval))
}

/// Levels of an SAE and their latents: all, and coarse and fine where it has both.
pub(crate) fn levels(n_coarse: usize, d_sae: usize) -> Vec<(&'static str, std::ops::Range<usize>)> {
    let mut levels = vec![("all", 0..d_sae)];
    if n_coarse > 0 && n_coarse < d_sae {
        levels.extend([("coarse", 0..n_coarse), ("fine", n_coarse..d_sae)]);
    }
    levels
}

/// L0: active latents of the level over rows. Interval: bootstrap over documents.
pub(crate) fn l0(acts: &SparseRows, n_coarse: usize, heldout: &Heldout, resamples: &Resamples) -> Vec<Measure> {
    let docs = 0..heldout.documents.n_docs();
    let n_rows: Vec<f64> = docs.clone().map(|doc| heldout.documents.rows(doc).len() as f64).collect();
    let of = |(level, latents): (&'static str, std::ops::Range<usize>)| {
        let in_level = |latent: &&u32| latents.contains(&(**latent as usize));
        let of_row = |row: usize| acts.row(row).0.iter().filter(in_level).count() as f64;
        let n_active: Vec<f64> = docs.clone().map(|doc| heldout.documents.rows(doc).map(of_row).sum()).collect();
        let value = n_active.iter().sum::<f64>() / n_rows.iter().sum::<f64>();
        Measure::new("l0", value).at(level).within(resamples.ratio_interval(&n_active, &n_rows))
    };
    levels(n_coarse, acts.n_cols).into_iter().map(of).collect()
}

/// Dead share: latents of the level that never fire on the split, over the latents of the level.
pub(crate) fn dead(n_firings: &[u64], n_coarse: usize) -> Vec<Measure> {
    let of = |(level, latents): (&'static str, std::ops::Range<usize>)| {
        let n_dead = n_firings[latents.clone()].iter().filter(|&&n| n == 0).count();
        Measure::new("dead", n_dead as f64 / latents.len() as f64).at(level)
    };
    levels(n_coarse, n_firings.len()).into_iter().map(of).collect()
}

/// How many latents fire how often; every bin, empty ones too. `name` holds the columns that say whose.
pub(crate) fn density(n_firings: &[u64], n_rows: usize, n_coarse: usize, name: &DensityBin) -> Vec<DensityBin> {
    let mut bins = Vec::new();
    for (level, latents) in levels(n_coarse, n_firings.len()) {
        let mut n_latents = [0; N_BINS];
        for &n in n_firings[latents].iter().filter(|&&n| n > 0) {
            let place = ((n as f64 / n_rows as f64).log10() - LOG10_LOWEST) * BINS_PER_DECADE as f64;
            // A latent that always fires stands on the upper edge of the last bin.
            n_latents[(place.max(0.0) as usize).min(N_BINS - 1)] += 1;
        }
        let edge = |bin: usize| LOG10_LOWEST + bin as f64 / BINS_PER_DECADE as f64;
        bins.extend(n_latents.into_iter().enumerate().map(|(bin, n_latents)| DensityBin {
            level: level.into(),
            log10_low: edge(bin),
            log10_high: edge(bin + 1),
            n_latents,
            ..name.clone()
        }));
    }
    bins
}
