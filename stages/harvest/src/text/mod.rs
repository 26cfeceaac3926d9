//! A language model reads text: documents → contexts → activations at a hook.

mod contexts;
mod forward;

use anyhow::{Context as _, Result, ensure};
use artifact::config::{Harvest, ModelSource};
use artifact::random::stream;
use artifact::stage::{Input, Log, Progress, Stage, Task};
use artifact::tables::{Context, write_rows};
use lm::{Hook, LanguageModel};
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use crate::dataset::{Dataset, Rows, Split};
use contexts::Piece;
use texts::Documents;

const RECIPE: u32 = 3;

/// Tokens that are read before rows are written: enough to sort contexts by length and to know the median norm, little
/// enough to hold.
const TOKENS_AT_A_TIME: usize = 32_768;

/// Reads the texts and publishes rows, contexts and statistics.
pub(crate) fn harvest(stage: &Stage, source: &ModelSource) -> Result<()> {
    let config = &stage.pipeline.harvest;
    ensure!(config.context_length <= 1 << 16, "harvest.context_length exceeds 65536, the positions of a row");
    let hook: Hook = config.hook.parse().context("harvest.hook")?;
    let (model_input, model_path) = stage.model_input(source)?;
    let texts = source.texts.iter().enumerate().map(|(i, text)| stage.source_input(&text.source_name(i)));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Input> = std::iter::once(&model_input).chain(&texts).collect();
    let Some(mut task) = stage.task("harvest", RECIPE, key(source, config), &inputs)? else { return Ok(()) };

    let device = lm::cpu();
    let model = LanguageModel::open_up_to(&model_path, &device, hook)?;
    model.check_hook(hook).context("harvest.hook")?;
    let mut reading = Reading {
        batch_tokens: config.batch_contexts * config.context_length,
        dataset: Dataset::new(model.config().d_model, config),
        max_norm_multiple: config.max_norm_multiple,
        norm_limit: None,
        n_left_out: 0,
        model: &model,
        hook,
        contexts: Vec::new(),
        pending: Vec::new(),
        n_pending: 0,
        progress: stage.log.progress(source.texts.iter().map(|text| text.n_tokens).sum(), "tokens"),
    };
    let mut n_docs = 0;
    for (i, (text, input)) in source.texts.iter().zip(&texts).enumerate() {
        let name = text.source_name(i);
        let documents = Documents::open(input, text).with_context(|| format!("source.model.texts[{i}]"))?;
        let mut order: Vec<usize> = (0..documents.len()).collect();
        order.shuffle(&mut stream(stage.pipeline.seed, "harvest/documents", i as u64, 0));
        let mut quota = Quota::new(text.n_tokens, config.heldout_fraction);
        for document in order {
            if quota.is_met() {
                break;
            }
            let document = documents.read(document)?;
            let encoding = model.tokenizer().encode(&document.text).with_context(|| document.name.clone())?;
            if encoding.ids.is_empty() {
                continue;
            }
            let starts: Vec<usize> = encoding.offsets.iter().map(|&(start, _)| start).collect();
            let mut pieces = contexts::cut(&document.text, &encoding.ids, &starts, config.context_length);
            if let Some(most) = text.max_tokens_per_document {
                keep_first(&mut pieces, most);
            }
            let split = quota.take(&mut pieces);
            for piece in pieces {
                let (source, name) = (name.clone(), document.name.clone());
                reading.add(&mut task, Place { doc_id: n_docs, split, source, name }, piece)?;
            }
            n_docs += 1;
        }
        if !quota.is_met() {
            stage.log.line(format!("{name}: holds {} tokens, {} were asked for", quota.n_taken, quota.n_wanted));
        }
    }
    reading.finish(&mut task, &stage.log, json!({"hook": config.hook, "context_length": config.context_length}))?;
    task.finish()?;
    Ok(())
}

/// What the rows depend on; `batch_contexts` is not among it.
fn key(source: &ModelSource, config: &Harvest) -> Value {
    json!({"source": {"model": source}, "harvest": {
        "hook": config.hook,
        "context_length": config.context_length,
        "heldout_fraction": config.heldout_fraction,
        "max_norm_multiple": config.max_norm_multiple,
        "dtype": config.dtype,
        "rows_per_part": config.rows_per_part,
    }})
}

/// Keeps the contexts from the first to the one that reaches `most` tokens.
fn keep_first(pieces: &mut Vec<Piece>, most: u64) {
    let mut n_tokens = 0;
    pieces.retain(|piece| {
        let is_wanted = n_tokens < most;
        n_tokens += piece.token_ids.len() as u64;
        is_wanted
    });
}

/// How much of a text is read, and which documents of it are held out.
struct Quota {
    n_wanted: u64,
    heldout_fraction: f64,
    n_taken: u64,
    n_heldout: u64,
}

impl Quota {
    fn new(n_wanted: u64, heldout_fraction: f64) -> Self {
        Self { n_wanted, heldout_fraction, n_taken: 0, n_heldout: 0 }
    }

    fn is_met(&self) -> bool {
        self.n_taken >= self.n_wanted
    }

    /// Drops the contexts that are not needed any more, and says where the document goes. Documents come in a random
    /// order, so holding one out whenever the held-out share has fallen behind is a random split, with a share that is
    /// right to within a document even for a text of few, long documents.
    fn take(&mut self, pieces: &mut Vec<Piece>) -> Split {
        let is_behind = (self.n_heldout as f64) < self.heldout_fraction * self.n_taken as f64;
        let mut n_kept = 0;
        let mut n_tokens = 0;
        while n_kept < pieces.len() && self.n_taken + n_tokens < self.n_wanted {
            n_tokens += pieces[n_kept].token_ids.len() as u64;
            n_kept += 1;
        }
        pieces.truncate(n_kept);
        self.n_taken += n_tokens;
        if is_behind {
            self.n_heldout += n_tokens;
        }
        if is_behind { Split::Heldout } else { Split::Train }
    }
}

/// Which document a context belongs to.
struct Place {
    doc_id: u32,
    split: Split,
    source: String,
    name: String,
}

/// The model at work, and what it has read.
struct Reading<'a> {
    model: &'a LanguageModel,
    hook: Hook,
    /// Tokens in one forward pass.
    batch_tokens: usize,
    dataset: Dataset,
    max_norm_multiple: Option<f64>,
    /// Rows beyond this norm are left out. Known once the first tokens have been read.
    norm_limit: Option<f64>,
    n_left_out: u64,
    contexts: Vec<Context>,
    /// Contexts whose rows have not been made yet, in document order.
    pending: Vec<(Place, Piece)>,
    n_pending: usize,
    progress: Progress<'a>,
}

impl Reading<'_> {
    fn add(&mut self, task: &mut Task, place: Place, piece: Piece) -> Result<()> {
        self.n_pending += piece.token_ids.len();
        self.pending.push((place, piece));
        if self.n_pending >= TOKENS_AT_A_TIME { self.flush(task) } else { Ok(()) }
    }

    /// Makes and writes the rows of the pending contexts.
    fn flush(&mut self, task: &mut Task) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.n_pending = 0;
        let separator = self.model.tokenizer().separator();
        let tokens: Vec<&[u32]> = pending.iter().map(|(_, piece)| piece.token_ids.as_slice()).collect();
        let run = |tokens: &[u32], length: usize| self.model.activations(tokens, length, self.hook);
        let activation = forward::in_batches(&tokens, separator, self.batch_tokens, run)?;

        let d_model = self.model.config().d_model;
        if let (Some(multiple), None) = (self.max_norm_multiple, self.norm_limit) {
            self.norm_limit = Some(multiple * median(activation.chunks_exact(d_model).map(norm).collect()));
        }
        let limit = self.norm_limit.unwrap_or(f64::INFINITY);
        let mut at = 0;
        let (mut train, mut heldout) = (Rows::default(), Rows::default());
        for (place, piece) in pending {
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
            self.contexts.push(Context {
                doc_id: place.doc_id,
                split: place.split.name().into(),
                first_row,
                source: place.source,
                name: place.name,
                text: piece.text,
                token_ids: piece.token_ids,
                token_starts: piece.token_starts,
            });
        }
        self.dataset.write(task, Split::Train, train)?;
        self.dataset.write(task, Split::Heldout, heldout)?;
        self.progress.set(self.n_done(), String::new);
        Ok(())
    }

    fn n_done(&self) -> u64 {
        self.dataset.n_rows(Split::Train) + self.dataset.n_rows(Split::Heldout)
    }

    fn finish(mut self, task: &mut Task, log: &Log, mut about: Value) -> Result<()> {
        self.flush(task)?;
        let n_done = self.n_done();
        self.progress.finish(n_done);
        if let Some(limit) = self.norm_limit {
            log.line(format!("{} rows left out for a norm above {limit:.0}: attention sinks", self.n_left_out));
        }
        about["norm_limit"] = json!(self.norm_limit);
        about["n_left_out"] = json!(self.n_left_out);
        task.write("contexts.parquet", |file| write_rows(file, &self.contexts)).context("contexts.parquet")?;
        self.dataset.finish(task, log, about)
    }
}

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

    fn pieces(lengths: &[usize]) -> Vec<Piece> {
        let piece = |&n: &usize| Piece { text: String::new(), token_ids: vec![1; n], token_starts: vec![0; n] };
        lengths.iter().map(piece).collect()
    }

    #[test]
    fn a_long_document_gives_its_first_contexts() {
        let mut all = pieces(&[10, 10, 10, 10]);
        keep_first(&mut all, 11);
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn reading_stops_at_the_context_that_meets_the_quota() {
        let mut quota = Quota::new(25, 0.15);
        quota.take(&mut pieces(&[10]));
        assert!(!quota.is_met());
        let mut last = pieces(&[10, 10, 10]);
        quota.take(&mut last);
        assert_eq!((last.len(), quota.n_taken, quota.is_met()), (2, 30, true));
    }

    #[test]
    fn the_heldout_share_is_met_to_within_a_document() {
        let mut quota = Quota::new(u64::MAX, 0.15);
        for i in 0..200 {
            quota.take(&mut pieces(&[100 + (i * 37) % 300]));
        }
        let excess = quota.n_heldout as f64 - 0.15 * quota.n_taken as f64;
        assert!(excess.abs() <= 400.0, "{excess}");
    }
}
