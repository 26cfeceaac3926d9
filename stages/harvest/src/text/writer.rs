//! Activations at one hook to its dataset: leaves attention sinks out, splits, and notes where each context's rows lie.

use anyhow::{Context as _, Result};
use artifact::config::Harvest;
use artifact::stage::{Log, OpenOutput, Task};
use artifact::tables::{Context, TableWriter};
use serde_json::json;

use super::reader::Batch;
use crate::dataset::{Dataset, Rows, Split};

/// The dataset of a hook under way.
pub(super) struct Writer {
    pub(super) hook: String,
    context_length: usize,
    task: Task,
    dataset: Dataset,
    contexts: TableWriter<OpenOutput, Context>,
    /// Tokens of contexts that wait in memory for their row group to end.
    n_waiting: usize,
    max_norm_multiple: Option<f64>,
    /// Rows beyond this norm are left out. Known once the first batch is there.
    norm_limit: Option<f64>,
    n_left_out: u64,
}

impl Writer {
    pub(super) fn new(hook: String, task: Task, d_model: usize, config: &Harvest) -> Result<Self> {
        Ok(Self {
            hook,
            context_length: config.context_length,
            dataset: Dataset::new(d_model, config),
            contexts: TableWriter::new(task.create(CONTEXTS)?)?,
            n_waiting: 0,
            task,
            max_norm_multiple: config.max_norm_multiple,
            norm_limit: None,
            n_left_out: 0,
        })
    }

    /// Shapes: activation [tokens of the batch, d_model], in the order of its contexts.
    ///
    /// Errors: a value is NaN or infinite, or the disk does not take the rows.
    pub(super) fn write(&mut self, batch: &Batch, activation: &[f32]) -> Result<()> {
        let d_model = self.dataset.d_model();
        if let (Some(multiple), None) = (self.max_norm_multiple, self.norm_limit) {
            self.norm_limit = Some(multiple * median(activation.chunks_exact(d_model).map(norm).collect()));
        }
        let limit = self.norm_limit.unwrap_or(f64::INFINITY);
        let mut at = 0;
        let (mut train, mut heldout) = (Rows::default(), Rows::default());
        let mut contexts = Vec::with_capacity(batch.len());
        for (place, piece) in batch {
            let rows = if place.split == Split::Train { &mut train } else { &mut heldout };
            let n = piece.token_ids.len();
            let first_row = self.dataset.n_rows(place.split) + rows.doc_id.len() as u64;
            for (i, row) in activation[at * d_model..(at + n) * d_model].chunks_exact(d_model).enumerate() {
                // A row that is not finite has no norm to compare; it is kept here and named when it is written.
                if norm(row) > limit && row.iter().all(|value| value.is_finite()) {
                    self.n_left_out += 1;
                    continue;
                }
                rows.doc_id.push(place.doc_id);
                rows.pos.push((i + 1) as u16);
                rows.token_id.push(piece.token_ids[i]);
                rows.activation.extend_from_slice(row);
            }
            at += n;
            contexts.push(Context {
                doc_id: place.doc_id,
                split: place.split.name().into(),
                first_row,
                source: place.source.clone(),
                name: place.name.clone(),
                text: piece.text.clone(),
                token_ids: piece.token_ids.clone(),
                token_starts: piece.token_starts.clone(),
            });
        }
        self.contexts.write(&contexts).context(CONTEXTS)?;
        self.n_waiting += at;
        if self.n_waiting >= TOKENS_PER_GROUP {
            self.contexts.flush().context(CONTEXTS)?;
            self.n_waiting = 0;
        }
        self.dataset.write(&mut self.task, Split::Train, train)?;
        self.dataset.write(&mut self.task, Split::Heldout, heldout)
    }

    /// Publishes the dataset.
    ///
    /// Errors: a split is empty, or the disk does not take it.
    pub(super) fn finish(mut self, log: &Log) -> Result<()> {
        if let Some(limit) = self.norm_limit {
            let Self { hook, n_left_out, .. } = &self;
            log.line(format!("{hook}: {n_left_out} rows left out for a norm above {limit:.0}: attention sinks"));
        }
        let (output, n_contexts) = self.contexts.into_inner().context(CONTEXTS)?;
        self.task.publish(output, Some(n_contexts)).context(CONTEXTS)?;
        let about = json!({
            "hook": self.hook,
            "context_length": self.context_length,
            "norm_limit": self.norm_limit,
            "n_left_out": self.n_left_out,
        });
        self.dataset.finish(&mut self.task, log, about)?;
        self.task.finish()?;
        Ok(())
    }
}

/// Tokens whose contexts make a row group of their table.
const TOKENS_PER_GROUP: usize = 4 << 20;

const CONTEXTS: &str = "contexts.parquet";

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

/// The middle value; 0 where there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_norms() {
        assert_eq!(median(vec![3.0, 1.0, 20_000.0]), 3.0);
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
    }
}
