//! A language model reads text: documents → contexts → activations at its hooks.
//!
//! One thread reads and tokenises ahead, all threads compute, one writes what was computed before. Each holds a batch of
//! tokens, so that memory does not grow with the texts.

mod contexts;
mod forward;
pub(crate) mod hooks;
mod quota;
mod reader;
mod writer;

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context as _, Result, ensure};
use artifact::config::ModelSource;
use artifact::stage::{Input, Stage};
use lm::LanguageModel;

use reader::{Batch, Reader};
use writer::Writer;

/// Reads the texts and publishes rows, contexts and statistics of each hook.
pub(crate) fn harvest(stage: &Stage, source: &ModelSource) -> Result<()> {
    let config = &stage.pipeline.harvest;
    ensure!(config.context_length <= 1 << 16, "harvest.context_length exceeds 65536, the positions of a row");
    let (model_input, model_path) = stage.model_input(source)?;
    let texts = source.texts.iter().enumerate().map(|(i, text)| stage.source_input(&text.source_name(i)));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Input> = std::iter::once(&model_input).chain(&texts).collect();
    let tasks = hooks::tasks(stage, source, &inputs, hooks::wanted(stage)?)?;
    let Some(last) = tasks.iter().map(|(wanted, _)| wanted.hook).max() else { return Ok(()) };

    let model = LanguageModel::open_up_to(&model_path, &lm::cpu(), last, config.products)?;
    let d_model = model.config().d_model;
    let mut hooks = Vec::new();
    let mut writers = Vec::new();
    for (wanted, task) in tasks {
        model.check_hook(wanted.hook).context(wanted.key)?;
        hooks.push(wanted.hook);
        writers.push(Writer::new(wanted.hook.to_string(), task, d_model, config)?);
    }
    let reader = Reader {
        source,
        inputs: texts,
        harvest: config,
        seed: stage.pipeline.seed,
        tokenizer: model.tokenizer(),
        d_model,
    };
    let batch_tokens = config.batch_contexts * config.context_length;
    let mut progress = stage.log.progress(source.texts.iter().map(|text| text.n_tokens).sum(), "tokens");
    let run = |batch: &Batch| {
        let tokens: Vec<&[u32]> = batch.iter().map(|(_, piece)| piece.token_ids.as_slice()).collect();
        let separator = model.tokenizer().separator();
        forward::in_batches(&tokens, separator, batch_tokens, hooks.len(), |tokens, length| {
            model.activations_at(tokens, length, &hooks)
        })
    };
    let (short, writers) = thread::scope(|scope| {
        // A batch is written while the next is computed; a third is read.
        let (to_model, batches) = sync_channel(1);
        let reading = scope.spawn(move || reader.read(|batch| to_model.send(batch).is_ok()));
        let (to_disk, computed) = sync_channel(0);
        let writing = scope.spawn(move || write(writers, &computed));
        let computing = (|| {
            let mut n_done = 0;
            for batch in batches {
                let n_tokens: usize = batch.iter().map(|(_, piece)| piece.token_ids.len()).sum();
                let activations = run(&batch)?;
                if to_disk.send((batch, activations)).is_err() {
                    break; // writing has failed, and says why
                }
                n_done += n_tokens as u64;
                progress.set(n_done, String::new);
            }
            drop(to_disk);
            anyhow::Ok(n_done)
        })();
        let writers = joined(writing)?;
        let n_done = computing?;
        let short = joined(reading)?;
        progress.finish(n_done);
        anyhow::Ok((short, writers))
    })?;
    for text in short {
        stage.log.line(format!("{}: holds {} tokens, {} were asked for", text.name, text.n_taken, text.n_wanted));
    }
    // Each that can be finished is, whatever became of those before it.
    let finish = |writer: Writer| {
        let hook = writer.hook.clone();
        writer.finish(&stage.log).context(hook)
    };
    writers.into_iter().map(finish).fold(Ok(()), Result::and)
}

/// Writes all batches, and gives the writers back.
fn write(mut writers: Vec<Writer>, computed: &Receiver<(Batch, Vec<Vec<f32>>)>) -> Result<Vec<Writer>> {
    for (batch, activations) in computed {
        for (writer, activation) in writers.iter_mut().zip(activations) {
            writer.write(&batch, &activation).with_context(|| writer.hook.clone())?;
        }
    }
    Ok(writers)
}

/// What the thread found; its panic is a panic here.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
