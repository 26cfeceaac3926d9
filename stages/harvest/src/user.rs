//! The user's own activations: checked, split by document, and written as every other source's are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use artifact::config::Activations;
use artifact::random::stream;
use artifact::stage::{ACTIVATIONS, Stage};
use artifact::tables::{self, ForeignRows, read_foreign_activations, read_foreign_doc_ids, write_rows};
use rand::seq::SliceRandom;
use serde_json::json;

use crate::dataset::{Dataset, Rows, Split};

const RECIPE: u32 = 2;

/// Rewrites the user's files, in the order of their names.
///
/// Errors: a file is not as the README describes it; documents are out of order; there is a single document.
pub(crate) fn harvest(stage: &Stage, config: &Activations) -> Result<()> {
    let harvest = &stage.pipeline.harvest;
    let input = stage.source_input(ACTIVATIONS)?;
    let key = json!({"source": {"activations": config}, "harvest": {
        "heldout_fraction": harvest.heldout_fraction,
        "dtype": harvest.dtype,
        "rows_per_part": harvest.rows_per_part,
    }});
    let Some(mut task) = stage.task("harvest", RECIPE, key, &[&input])? else { return Ok(()) };
    let files = input.paths("").iter().map(|path| input.file(path)).collect::<Result<Vec<_>>>()?;

    let (doc_ids, n_rows) = documents(&files)?;
    let heldout = choose_heldout(&doc_ids, harvest.heldout_fraction, stage.pipeline.seed)?;
    let mut dataset: Option<Dataset> = None;
    let mut progress = stage.log.progress(n_rows, "rows");
    let mut n_done = 0;
    for file in &files {
        read_foreign_activations(file, &mut |rows| {
            let d_model = rows.d_model;
            let dataset = dataset.get_or_insert_with(|| Dataset::new(d_model, harvest));
            ensure!(
                dataset.d_model() == d_model,
                "activations are {d_model} wide, {} in what came before",
                dataset.d_model()
            );
            n_done += rows.doc_id.len() as u64;
            let (train, held) = split(rows, &heldout);
            dataset.write(&mut task, Split::Train, train)?;
            dataset.write(&mut task, Split::Heldout, held)?;
            progress.set(n_done, String::new);
            Ok(())
        })?;
    }
    progress.finish(n_done);
    let dataset = dataset.context("source.activations: the files hold no rows")?;
    task.write("contexts.parquet", |file| write_rows::<tables::Context>(file, &[])).context("contexts.parquet")?;
    dataset.finish(&mut task, &stage.log, json!({"hook": "activations", "context_length": null}))?;
    task.finish()?;
    Ok(())
}

/// The documents' ids, ascending, and the number of rows.
///
/// Errors: a document's rows do not stand together, or documents do not ascend (file and row are named).
fn documents(files: &[PathBuf]) -> Result<(Vec<u32>, u64)> {
    let mut doc_ids: Vec<u32> = Vec::new();
    let mut n_rows = 0;
    for file in files {
        for (row, doc_id) in read_foreign_doc_ids(file)?.into_iter().enumerate() {
            n_rows += 1;
            match doc_ids.last() {
                Some(&last) if doc_id == last => {}
                Some(&last) if doc_id < last => bail!(
                    "{}: row {row} has doc_id {doc_id} after {last}; sort the rows by doc_id, over all files",
                    file.display()
                ),
                _ => doc_ids.push(doc_id),
            }
        }
    }
    Ok((doc_ids, n_rows))
}

/// A random `fraction` of the documents, at least one, and never all.
fn choose_heldout(doc_ids: &[u32], fraction: f64, seed: u64) -> Result<BTreeSet<u32>> {
    ensure!(
        doc_ids.len() >= 2,
        "source.activations: {} document(s) by doc_id; it takes two to hold one out for evaluation",
        doc_ids.len()
    );
    let mut order = doc_ids.to_vec();
    order.shuffle(&mut stream(seed, "harvest/heldout", 0, 0));
    let n_heldout = ((doc_ids.len() as f64 * fraction).round() as usize).clamp(1, doc_ids.len() - 1);
    Ok(order.into_iter().take(n_heldout).collect())
}

fn split(rows: ForeignRows, heldout: &BTreeSet<u32>) -> (Rows, Rows) {
    let (mut train, mut held) = (Rows::default(), Rows::default());
    for (i, activation) in rows.activation.chunks_exact(rows.d_model).enumerate() {
        let side = if heldout.contains(&rows.doc_id[i]) { &mut held } else { &mut train };
        side.doc_id.push(rows.doc_id[i]);
        side.pos.push(rows.pos[i]);
        side.token_id.push(rows.token_id[i]);
        side.activation.extend_from_slice(activation);
    }
    (train, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heldout_share_is_random_and_right() {
        let doc_ids: Vec<u32> = (0..100).map(|i| 3 * i).collect();
        let heldout = choose_heldout(&doc_ids, 0.15, 0).unwrap();
        assert_eq!(heldout.len(), 15);
        assert_ne!(heldout, choose_heldout(&doc_ids, 0.15, 1).unwrap());
        assert_eq!(choose_heldout(&doc_ids[..2], 0.01, 0).unwrap().len(), 1);
        assert!(choose_heldout(&doc_ids[..1], 0.5, 0).is_err());
    }

    #[test]
    fn a_document_is_whole_on_one_side() {
        let rows = ForeignRows {
            d_model: 2,
            doc_id: vec![1, 1, 4, 4, 4, 7],
            pos: vec![1, 2, 1, 2, 3, 1],
            token_id: vec![9; 6],
            activation: (0..12).map(|i| i as f32).collect(),
        };
        let (train, held) = split(rows, &BTreeSet::from([4]));
        assert_eq!((train.doc_id, held.doc_id), (vec![1, 1, 7], vec![4, 4, 4]));
        assert_eq!(held.activation, [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    }
}
