//! The held-out split: activations in chunks, so that memory stays bounded, and what is known of it before any SAE.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use artifact::stage::Input;
use artifact::tables::activations::Activations;

use crate::documents::Documents;

/// Rows given out at once.
const N_ROWS_AT_ONCE: usize = 2048;

/// A split whose parts are no larger than this in all, bytes on disk, is kept in memory, where its activations take about
/// as much: every SAE reads them once for each mode, and once more for each block of latents.
const MAX_KEPT: u64 = 1 << 30;

pub(crate) struct Heldout {
    parts: Vec<PathBuf>,
    /// A split of one part or of no more than [`MAX_KEPT`] is kept; a larger one is read part by part, each time.
    kept: Option<Activations>,
    pub(crate) d_model: usize,
    pub(crate) documents: Documents,
    /// Document and position of each row.
    pub(crate) places: Vec<(u32, u16)>,
    /// Σ‖x − mean‖² over the rows of each document, the mean being that of the whole split.
    pub(crate) variation: Vec<f64>,
}

impl Heldout {
    /// Reads the split twice over: for its mean, then for its variation about it.
    ///
    /// Errors: a part is damaged or holds NaN (it is named), the parts differ in width, or all rows are equal.
    pub(crate) fn read(harvest: &Input) -> Result<Self> {
        let paths = harvest.paths("heldout/");
        let parts: Vec<PathBuf> = paths.iter().map(|path| harvest.file(path)).collect::<Result<_>>()?;
        Self::of_parts(parts)
    }

    pub(crate) fn of_parts(parts: Vec<PathBuf>) -> Result<Self> {
        Self::of_parts_up_to(parts, MAX_KEPT)
    }

    fn of_parts_up_to(parts: Vec<PathBuf>, max_kept: u64) -> Result<Self> {
        let sizes = parts.iter().map(|part| Ok(std::fs::metadata(part)?.len())).collect::<Result<Vec<u64>>>()?;
        let is_small = !parts.is_empty() && sizes.iter().sum::<u64>() <= max_kept;
        let kept = if is_small || parts.len() == 1 { Some(Activations::read(&parts)?) } else { None };
        let nothing = Documents::new(&[0])?;
        let (places, variation) = Default::default();
        let mut heldout = Self { parts, kept, d_model: 0, documents: nothing, places, variation };
        let mut sums: Vec<f64> = Vec::new();
        heldout.for_each_part(|first_row, part| {
            ensure!(first_row == 0 || part.d_model == sums.len(), "the parts differ in the width of their activations");
            sums.resize(part.d_model, 0.0);
            for_each_chunk_of(part, |_, x| {
                x.chunks_exact(part.d_model).for_each(|row| add(&mut sums, row));
                Ok(())
            })
        })?;
        heldout.d_model = sums.len();
        let mut places = Vec::new();
        heldout.for_each_part(|_, part| {
            places.extend(part.doc_id.iter().copied().zip(part.pos.iter().copied()));
            Ok(())
        })?;
        let doc_ids: Vec<u32> = places.iter().map(|&(doc_id, _)| doc_id).collect();
        heldout.documents = Documents::new(&doc_ids).context("harvest/heldout")?;
        let mean: Vec<f64> = sums.iter().map(|sum| sum / doc_ids.len() as f64).collect();
        let of_rows = heldout.documents.of_rows();
        let mut variation = vec![0.0; heldout.documents.n_docs()];
        heldout.for_each_chunk(|first_row, x| {
            for (i, row) in x.chunks_exact(mean.len()).enumerate() {
                let of_row: f64 = row.iter().zip(&mean).map(|(&x, mean)| (f64::from(x) - mean).powi(2)).sum();
                variation[of_rows[first_row + i] as usize] += of_row;
            }
            Ok(())
        })?;
        ensure!(variation.iter().any(|&of_doc| of_doc > 0.0), "harvest/heldout: all rows are equal");
        Ok(Self { places, variation, ..heldout })
    }

    /// Gives out all rows in order: the first row's number, and activations [n, d_model].
    pub(crate) fn for_each_chunk(&self, mut visit: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.for_each_part(|first_row, part| for_each_chunk_of(part, |row, x| visit(first_row + row, x)))
    }

    fn for_each_part(&self, mut visit: impl FnMut(usize, &Activations) -> Result<()>) -> Result<()> {
        if let Some(kept) = &self.kept {
            return visit(0, kept);
        }
        ensure!(!self.parts.is_empty(), "harvest/heldout has no parts; run `make again-harvest`");
        let mut first_row = 0;
        for path in &self.parts {
            let part = Activations::read(&[path])?;
            visit(first_row, &part)?;
            first_row += part.n_rows();
        }
        Ok(())
    }
}

fn for_each_chunk_of(part: &Activations, mut visit: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
    let starts = (0..part.n_rows()).step_by(N_ROWS_AT_ONCE);
    starts.into_iter().try_for_each(|start| {
        let end = (start + N_ROWS_AT_ONCE).min(part.n_rows());
        visit(start, &part.rows(start, end))
    })
}

fn add(sums: &mut [f64], row: &[f32]) {
    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use artifact::config::ActivationDtype;
    use artifact::tables::activations::PartWriter;

    use super::*;

    #[test]
    fn several_parts_read_as_one_and_variation_is_about_the_mean_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let (n, d) = (5000, 3);
        let x: Vec<f32> = (0..n * d).map(|i| 100.0 + ((i * i) % 11) as f32).collect();
        let doc_id: Vec<u32> = (0..n).map(|row| row as u32 / 70).collect();
        let write = |name: &str, rows: std::ops::Range<usize>| {
            let path = folder.path().join(name);
            let mut writer = PartWriter::new(File::create(&path).unwrap(), d, ActivationDtype::F32).unwrap();
            let zeros = vec![0; rows.len()];
            let token_id = vec![0; rows.len()];
            writer.write(&doc_id[rows.clone()], &zeros, &token_id, &x[rows.start * d..rows.end * d]).unwrap();
            writer.finish().unwrap();
            path
        };
        let one = Heldout::of_parts(vec![write("a", 0..n)]).unwrap();
        let parts = vec![write("b", 0..2100), write("c", 2100..2101), write("d", 2101..n)];
        let three = Heldout::of_parts_up_to(parts.clone(), 0).unwrap();
        let kept = Heldout::of_parts(parts).unwrap();
        assert!(kept.kept.is_some() && three.kept.is_none());
        for several in [&three, &kept] {
            assert_eq!(one.places, several.places);
            assert_eq!(one.variation, several.variation);
        }
        let mut rows = Vec::new();
        three
            .for_each_chunk(|first_row, chunk| {
                assert_eq!(rows.len(), first_row * d);
                rows.extend_from_slice(chunk);
                Ok(())
            })
            .unwrap();
        assert_eq!(rows, x);
        let column = |j: usize| x.iter().skip(j).step_by(d).map(|&x| f64::from(x)).collect::<Vec<_>>();
        let spread = |x: Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>()
        };
        let expected: f64 = (0..d).map(|j| spread(column(j))).sum();
        let found: f64 = one.variation.iter().sum();
        assert!((found - expected).abs() <= 1e-9 * expected, "{found}, expected {expected}");
    }
}
