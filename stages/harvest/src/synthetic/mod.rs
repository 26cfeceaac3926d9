//! Planted ground truth: a two-level tree whose parents also fire alone, and features outside the tree.
//!
//! x = Σ_f m_f · u_f + noise, over the features f that fire in the row; u_f are unit vectors, m_f magnitudes.

mod directions;
mod firing;

use anyhow::{Context, Result, ensure};
use artifact::config::Synthetic;
use artifact::random::stream;
use artifact::stage::{Stage, Task};
use artifact::tables::{self, TrueFeature, TrueFiring, write_rows};
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde_json::json;

use crate::dataset::{Dataset, Rows, Split};
use firing::{Firing, Tree};

const RECIPE: u32 = 1;

/// Rows that share a random stream, at the least: whole documents, so that blocks can be made in any order.
const ROWS_PER_BLOCK: u64 = 4096;

/// Blocks made at a time. It bounds memory; the rows do not depend on it.
const BLOCKS_AT_A_TIME: u64 = 16;

/// Makes the rows and publishes them with `truth.parquet` and `firing.parquet`.
pub(crate) fn harvest(stage: &Stage, config: &Synthetic) -> Result<()> {
    let key = json!({"source": {"synthetic": config}, "harvest": {
        "dtype": stage.pipeline.harvest.dtype,
        "rows_per_part": stage.pipeline.harvest.rows_per_part,
    }});
    let Some(mut task) = stage.task("harvest", RECIPE, key, &[])? else { return Ok(()) };
    let n_docs = config.n_train.div_ceil(config.rows_per_doc) + config.n_heldout.div_ceil(config.rows_per_doc);
    ensure!(n_docs <= u64::from(u32::MAX), "source.synthetic: more than 2^32 documents");
    ensure!(config.rows_per_doc <= u64::from(u16::MAX), "source.synthetic.rows_per_doc exceeds 65535 positions");

    let planted = Planted::new(config, stage.pipeline.seed);
    let mut dataset = Dataset::new(config.d_model, &stage.pipeline.harvest);
    let mut progress = stage.log.progress(config.n_train + config.n_heldout, "rows");
    let mut totals = vec![(0u64, 0f64); config.n_features()];
    let mut true_firing = Vec::new();
    for (split, n_rows) in [(Split::Train, config.n_train), (Split::Heldout, config.n_heldout)] {
        let n_blocks = n_rows.div_ceil(planted.rows_per_block());
        let blocks: Vec<u64> = (0..n_blocks).collect();
        for blocks in blocks.chunks(BLOCKS_AT_A_TIME as usize) {
            let made: Vec<_> = blocks.par_iter().map(|&block| planted.block(split, block, n_rows)).collect();
            for (rows, firing) in made {
                if split == Split::Train {
                    count(&mut totals, &firing);
                } else {
                    note(&mut true_firing, &rows, firing);
                }
                dataset.write(&mut task, split, rows)?;
            }
            progress.set(dataset.n_rows(Split::Train) + dataset.n_rows(Split::Heldout), String::new);
        }
    }
    progress.finish(config.n_train + config.n_heldout);

    publish_truth(&mut task, &planted, &totals, config.n_train)?;
    task.write("firing.parquet", |file| write_rows(file, &true_firing)).context("firing.parquet")?;
    task.write("contexts.parquet", |file| write_rows::<tables::Context>(file, &[])).context("contexts.parquet")?;
    dataset.finish(&mut task, &stage.log, json!({"hook": "planted", "context_length": config.rows_per_doc + 1}))?;
    task.finish()?;
    Ok(())
}

fn publish_truth(task: &mut Task, planted: &Planted, totals: &[(u64, f64)], n_train: u64) -> Result<()> {
    let d_model = planted.config.d_model;
    let features = totals.iter().enumerate().map(|(feature, &(n, sum))| TrueFeature {
        feature: feature as u32,
        parent: planted.tree.parent(feature).map(|parent| parent as u32),
        firing_rate: n as f64 / n_train as f64,
        mean_magnitude: if n == 0 { 0.0 } else { sum / n as f64 },
        direction: planted.directions[feature * d_model..(feature + 1) * d_model].to_vec(),
    });
    let features: Vec<_> = features.collect();
    task.write("truth.parquet", |file| write_rows(file, &features)).context("truth.parquet")
}

/// Adds firings and magnitudes, per feature.
fn count(totals: &mut [(u64, f64)], firing: &[Firing]) {
    for row in firing {
        for (&feature, &magnitude) in row.features.iter().zip(&row.magnitudes) {
            let (n, sum) = &mut totals[feature as usize];
            *n += 1;
            *sum += f64::from(magnitude);
        }
    }
}

fn note(true_firing: &mut Vec<TrueFiring>, rows: &Rows, firing: Vec<Firing>) {
    let places = rows.doc_id.iter().zip(&rows.pos);
    true_firing.extend(places.zip(firing).map(|((&doc_id, &pos), Firing { features, magnitudes })| TrueFiring {
        doc_id,
        pos,
        features,
        magnitudes,
    }));
}

/// What is the same for all rows.
struct Planted<'a> {
    config: &'a Synthetic,
    seed: u64,
    tree: Tree,
    /// [n_features, d_model], row-major, unit rows.
    directions: Vec<f32>,
}

impl<'a> Planted<'a> {
    fn new(config: &'a Synthetic, seed: u64) -> Self {
        let directions = directions::near_orthogonal(config.n_features(), config.d_model, seed);
        Self { config, seed, tree: Tree::new(config), directions }
    }

    fn rows_per_block(&self) -> u64 {
        self.config.rows_per_doc * ROWS_PER_BLOCK.div_ceil(self.config.rows_per_doc)
    }

    /// The rows of one block of a split that has `n_rows` in all. Document ids of the held-out split follow those of the
    /// training split.
    fn block(&self, split: Split, block: u64, n_rows: u64) -> (Rows, Vec<Firing>) {
        let Synthetic { d_model, rows_per_doc, .. } = *self.config;
        let shard = u64::from(split == Split::Heldout);
        let first_doc = if split == Split::Heldout { self.config.n_train.div_ceil(rows_per_doc) } else { 0 };
        let mut rng = stream(self.seed, "harvest/synthetic/rows", shard, block);
        let start = block * self.rows_per_block();
        let end = n_rows.min(start + self.rows_per_block());
        let mut rows = Rows::default();
        let mut firing = Vec::new();
        for i in start..end {
            rows.doc_id.push((first_doc + i / rows_per_doc) as u32);
            rows.pos.push((1 + i % rows_per_doc) as u16);
            rows.token_id.push(0);
            let fired = self.tree.draw(&mut rng);
            let at = rows.activation.len();
            let noise = |_| self.config.noise_std as f32 * Distribution::<f32>::sample(&StandardNormal, &mut rng);
            rows.activation.extend((0..d_model).map(noise));
            let x = &mut rows.activation[at..];
            for (&feature, &magnitude) in fired.features.iter().zip(&fired.magnitudes) {
                let direction = &self.directions[feature as usize * d_model..][..d_model];
                x.iter_mut().zip(direction).for_each(|(x, u)| *x += magnitude * u);
            }
            firing.push(fired);
        }
        (rows, firing)
    }
}

#[cfg(test)]
mod tests;
