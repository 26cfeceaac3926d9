//! Planted ground truth: the world itself, held-out rows with what fires in them, and training rows where they are to be
//! on disk.

use anyhow::{Context, Result, ensure};
use artifact::config::{Recipe, Synthetic};
use artifact::stage::{Progress, Stage, Task};
use artifact::tables::{self, TrueFiring, write_rows};
use planted::{BLOCK_ROWS, Firing, Stream, World};
use rayon::prelude::*;
use serde_json::json;

use crate::dataset::{Dataset, Rows, Split};

const RECIPE: u32 = 3;

/// Blocks made at a time. It bounds memory; the rows do not depend on it.
const BLOCKS_AT_A_TIME: u64 = 128;

/// Rows that are drawn to measure how often features fire, where training rows are not written, and those of them that
/// also give the mean and the scale of activations.
const N_MEASURED: u64 = 1 << 20;
const N_SAMPLED: u64 = 1 << 17;

/// Makes the rows and publishes them with what was planted.
pub(crate) fn harvest(stage: &Stage, config: &Synthetic) -> Result<()> {
    let recipe = config.recipe();
    let key = json!({"source": {"synthetic": recipe}, "harvest": {
        "dtype": stage.pipeline.harvest.dtype,
        "rows_per_part": stage.pipeline.harvest.rows_per_part,
    }});
    let Some(mut task) = stage.task("harvest", RECIPE, key, &[])? else { return Ok(()) };
    let n_train = recipe.n_train.unwrap_or(0);
    let n_docs = n_train.div_ceil(recipe.rows_per_doc) + recipe.n_heldout.div_ceil(recipe.rows_per_doc);
    ensure!(n_docs <= u64::from(u32::MAX), "source.synthetic: more than 2^32 documents");
    ensure!(recipe.rows_per_doc <= u64::from(u16::MAX), "source.synthetic.rows_per_doc exceeds 65535 positions");

    let seed = stage.pipeline.seed;
    let world = World::plant(&recipe, seed);
    let mut dataset = Dataset::new(recipe.d_model, &stage.pipeline.harvest);
    let n_measured = recipe.n_train.unwrap_or(N_MEASURED);
    let mut progress = stage.log.progress(n_measured + recipe.n_heldout, "rows");
    let mut totals = vec![(0u64, 0f64); recipe.n_features];
    let mut true_firing = Vec::new();

    let mut write = |split: Split, first_doc: u64, n_rows: u64, progress: &mut Progress| -> Result<()> {
        let rows = Stream { seed, purpose: if split == Split::Train { "planted/train" } else { "planted/heldout" } };
        in_blocks(&world, rows, n_rows, n_rows, |at, firing, activation| {
            let rows = rows_of(&recipe, first_doc, at, &firing, activation);
            if split == Split::Train {
                count(&mut totals, &firing);
            } else {
                note(&mut true_firing, &rows, &firing);
            }
            dataset.write(&mut task, split, rows)?;
            progress.set(dataset.n_rows(Split::Train) + dataset.n_rows(Split::Heldout), String::new);
            Ok(())
        })
    };
    write(Split::Train, 0, n_train, &mut progress)?;
    // Document ids of the held-out split follow those of the training split.
    write(Split::Heldout, n_train.div_ceil(recipe.rows_per_doc), recipe.n_heldout, &mut progress)?;
    if recipe.n_train.is_none() {
        let rows = Stream { seed, purpose: "planted/measured" };
        in_blocks(&world, rows, N_MEASURED, N_SAMPLED, |at, firing, activation| {
            count(&mut totals, &firing);
            dataset.sample(&activation);
            progress.set(recipe.n_heldout + at, String::new);
            Ok(())
        })?;
    }
    progress.finish(n_measured + recipe.n_heldout);

    publish_truth(&mut task, &world, &totals, n_measured)?;
    task.write("firing.parquet", |file| write_rows(file, &true_firing)).context("firing.parquet")?;
    task.write("contexts.parquet", |file| write_rows::<tables::Context>(file, &[])).context("contexts.parquet")?;
    dataset.finish(&mut task, &stage.log, json!({"hook": "planted", "context_length": recipe.rows_per_doc + 1}))?;
    task.finish()?;
    Ok(())
}

/// Calls `take` with the first `n_rows` rows of a stream, in order and some at a time: the number of the first, which of
/// them fire what, and, of the first `n_with_activations`, activations [n, d_model].
fn in_blocks(
    world: &World,
    rows: Stream,
    n_rows: u64,
    n_with_activations: u64,
    mut take: impl FnMut(u64, Vec<Firing>, Vec<f32>) -> Result<()>,
) -> Result<()> {
    let n_blocks = n_rows.div_ceil(BLOCK_ROWS);
    for first in (0..n_blocks).step_by(BLOCKS_AT_A_TIME as usize) {
        let blocks = first..n_blocks.min(first + BLOCKS_AT_A_TIME);
        let mut firing: Vec<Firing> = blocks.clone().into_par_iter().map(|block| world.firing(rows, block)).collect();
        let at = first * BLOCK_ROWS;
        let n_missing = n_with_activations.min(blocks.end * BLOCK_ROWS).saturating_sub(at) as usize;
        let mut activation = vec![0f32; n_missing * world.d_model()];
        let parts = activation.par_chunks_mut(BLOCK_ROWS as usize * world.d_model());
        parts.zip(&firing).enumerate().for_each(|(i, (part, firing))| {
            world.activations(rows, first + i as u64, firing, 0, 1.0, part);
        });
        if let Some(last) = firing.last_mut().filter(|_| blocks.end == n_blocks) {
            last.truncate((n_rows - (n_blocks - 1) * BLOCK_ROWS) as usize);
        }
        take(at, firing, activation)?;
    }
    Ok(())
}

/// The rows of a split from row `at` on, in documents of equal length.
fn rows_of(recipe: &Recipe, first_doc: u64, at: u64, firing: &[Firing], activation: Vec<f32>) -> Rows {
    let n: u64 = firing.iter().map(|block| block.n_rows() as u64).sum();
    Rows {
        doc_id: (at..at + n).map(|i| (first_doc + i / recipe.rows_per_doc) as u32).collect(),
        pos: (at..at + n).map(|i| (1 + i % recipe.rows_per_doc) as u16).collect(),
        token_id: vec![0; n as usize],
        activation,
    }
}

fn publish_truth(task: &mut Task, world: &World, totals: &[(u64, f64)], n_rows: u64) -> Result<()> {
    let measured = totals.iter().map(|&(n, sum)| (n as f64 / n_rows as f64, if n == 0 { 0.0 } else { sum / n as f64 }));
    let features = world.truth(&measured.collect::<Vec<_>>());
    task.write("truth.parquet", |file| write_rows(file, &features)).context("truth.parquet")?;
    task.write_json("truth.json", world.shared())
}

/// Adds firings and magnitudes, per feature.
fn count(totals: &mut [(u64, f64)], firing: &[Firing]) {
    for (features, magnitudes) in firing.iter().flat_map(Firing::rows) {
        for (&feature, &magnitude) in features.iter().zip(magnitudes) {
            let (n, sum) = &mut totals[feature as usize];
            *n += 1;
            *sum += f64::from(magnitude);
        }
    }
}

fn note(true_firing: &mut Vec<TrueFiring>, rows: &Rows, firing: &[Firing]) {
    let places = rows.doc_id.iter().zip(&rows.pos);
    let firing = firing.iter().flat_map(Firing::rows);
    true_firing.extend(places.zip(firing).map(|((&doc_id, &pos), (features, magnitudes))| TrueFiring {
        doc_id,
        pos,
        features: features.to_vec(),
        magnitudes: magnitudes.to_vec(),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_whole_and_rows_are_those_of_the_stream() {
        let config = Synthetic { n_features: Some(40), n_roots: Some(2), depth: Some(1), ..Synthetic::default() };
        let recipe = Recipe { rows_per_doc: 48, ..config.recipe() };
        let world = World::plant(&recipe, 0);
        let rows = Stream { seed: 3, purpose: "test" };
        let n_rows = BLOCKS_AT_A_TIME * BLOCK_ROWS + 1000;
        let (mut all, mut n_firings) = (Rows::default(), 0);
        in_blocks(&world, rows, n_rows, n_rows, |at, firing, activation| {
            let rows = rows_of(&recipe, 7, at, &firing, activation);
            n_firings += firing.iter().map(Firing::n_rows).sum::<usize>();
            all.doc_id.extend(rows.doc_id);
            all.pos.extend(rows.pos);
            all.activation.extend(rows.activation);
            Ok(())
        })
        .unwrap();
        assert_eq!(n_firings as u64, n_rows);
        let place = |i: u64| (7 + i / 48, 1 + i % 48);
        let found = all.doc_id.iter().zip(&all.pos).map(|(&doc, &pos)| (u64::from(doc), u64::from(pos)));
        assert!(found.eq((0..n_rows).map(place)));
        let mut expected = vec![0f32; n_rows as usize * world.d_model()];
        world.fill(rows, 0..n_rows, 1.0, &mut expected);
        assert!(all.activation == expected);
    }
}
