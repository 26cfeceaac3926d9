//! Texts → a small GPT on their characters, as a folder in Hugging Face format: the pipeline's language model where none is
//! fetched. Only for `source.model.name: pretrained`.

mod corpus;
mod training;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use artifact::config::{ModelSource, Pretrain, Products, Sample, Text};
use artifact::random::stream;
use artifact::stage::{GpuSupport, Input, Stage, Task, main_of_with_gpu};
use artifact::tables::write_rows;
use gpt::{Sampling, Vocabulary};
use serde_json::{Value, json};
use texts::Documents;

use corpus::Corpus;
use training::{Trained, train};

/// Raised when the same texts and configuration come to give another model.
const RECIPE: u32 = 3;

/// The folder of what the model writes, and its own recipe: another sample is no other model.
const SAMPLE: &str = "pretrain/sample";
const SAMPLE_RECIPE: u32 = 1;

/// What `Stage::device` calls a GPU.
const GPU: &str = "cuda";

fn main() -> ExitCode {
    let gpu = GpuSupport { is_compiled_in: gpt::HAS_CUDA, find: || gpt::cuda().map(drop) };
    main_of_with_gpu("pretrain", "Trains a small language model on the pipeline's texts, where it names none", gpu, run)
}

fn run(stage: &Stage) -> Result<()> {
    ensure!(stage.args.shard.is_none(), "--shard: pretrain does not split its work; leave it out");
    let (Some(config), Some(model)) = (stage.pipeline.pretrained(), &stage.pipeline.source.model) else {
        return publish_nothing(stage);
    };
    ensure!(
        stage.device != GPU || config.products == Products::F32,
        "pretrain.products: rounded products are the CPU's alone; leave them out, or set device: cpu"
    );
    let inputs = model.texts.iter().enumerate().map(|(i, text)| stage.source_input(&text.source_name(i)));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let key = key(&config, model)?;
    if let Some(mut task) = stage.task("pretrain", RECIPE, key, &inputs.iter().collect::<Vec<_>>())? {
        let documents = open(&model.texts, &inputs)?;
        let corpus = Corpus::read(&documents, config.validation_fraction, config.context_length)?;
        drop(documents);
        // Better known before the training than after it.
        prompt(&config.sample, &corpus.vocabulary)?;
        let trained = train(stage, &task, &config, &corpus)?;
        publish(stage, &mut task, &config, &corpus, &trained)?;
        task.finish()?;
    }
    write_sample(stage, &config.sample)
}

/// An empty folder with a manifest, so that `make` knows that the stage was here.
fn publish_nothing(stage: &Stage) -> Result<()> {
    let nothing = "nothing to train: the pipeline's source is not source.model.name: pretrained";
    if stage.input("pretrain").is_ok_and(|there| !there.manifest.key.config.is_null()) && !stage.args.status {
        stage.log.line(format!("{nothing}; the model that is there stays"));
        return Ok(());
    }
    let Some(task) = stage.task_with("pretrain", RECIPE, Value::Null, &[], 0, "cpu")? else { return Ok(()) };
    stage.log.line(nothing);
    task.finish()?;
    Ok(())
}

/// What the model depends on. `checkpoint_every` is not among it, nor how much of a text the harvest reads.
fn key(config: &Pretrain, model: &ModelSource) -> Result<Value> {
    let mut of_training = serde_json::to_value(config)?;
    if let Some(config) = of_training.as_object_mut() {
        config.remove("checkpoint_every");
        config.remove("sample");
    }
    let text = |(i, text): (usize, &Text)| json!({"name": text.source_name(i), "column": text.column});
    let texts: Vec<Value> = model.texts.iter().enumerate().map(text).collect();
    let mut key = json!({"pretrain": of_training, "texts": texts});
    if config.products == Products::Int8 {
        key["int8"] = json!({"products": slices::INT8_RECIPE, "gradients": slices::INT8_GRADIENT_RECIPE});
    }
    Ok(key)
}

fn open(texts: &[Text], inputs: &[Input]) -> Result<Vec<Documents>> {
    let open = |(i, (text, input)): (usize, (&Text, &Input))| {
        // Where the harvest cuts is no place for the end of a line.
        let text = Text { bytes_per_document: None, ..text.clone() };
        Documents::open(input, &text).with_context(|| format!("source.model.texts[{i}]"))
    };
    texts.iter().zip(inputs).enumerate().map(open).collect()
}

/// Errors: a character that the texts lack.
fn prompt(sample: &Sample, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
    match &sample.prompt {
        Some(prompt) => vocabulary.encode(prompt.as_bytes()).context("pretrain.sample.prompt"),
        None => Ok(vec![vocabulary.separator()]),
    }
}

fn publish(stage: &Stage, task: &mut Task, config: &Pretrain, corpus: &Corpus, trained: &Trained) -> Result<()> {
    for (name, bytes) in gpt::files(&trained.shape, &trained.weights, &corpus.vocabulary)? {
        task.write_bytes(&format!("model/{name}"), &bytes)?;
    }
    task.write("curve.parquet", |file| write_rows(file, &trained.curve))?;
    let summary = json!({
        "n_parameters": trained.shape.n_parameters(),
        "n_vocab": trained.shape.n_vocab,
        "n_train_tokens": corpus.n_train(),
        "n_validation_tokens": corpus.n_validation(),
        "n_steps": config.n_steps,
        "best_step": trained.best_step,
        "validation_loss_nats": trained.validation_loss,
        "validation_loss_bits": trained.validation_loss / std::f64::consts::LN_2,
    });
    task.write_json("summary.json", &summary)?;
    let message = format!(
        "{} parameters, best after step {}: validation loss {:.4} nats a character, over all whole contexts of {}",
        trained.shape.n_parameters(),
        trained.best_step,
        trained.validation_loss,
        corpus.n_validation()
    );
    stage.log.event(&message, summary);
    Ok(())
}

/// What the published model goes on with, behind the prompt.
fn write_sample(stage: &Stage, sample: &Sample) -> Result<()> {
    let model = match stage.input("pretrain") {
        // There may be no model yet.
        Err(_) if stage.args.status => return Ok(()),
        model => model?,
    };
    let key = stage.key(SAMPLE_RECIPE, serde_json::to_value(sample)?, &[&model], stage.pipeline.seed, "cpu");
    let Some(mut task) = stage.task_of(SAMPLE, key)? else { return Ok(()) };
    let files = model.paths("model/").iter().map(|path| model.file(path)).collect::<Result<Vec<_>>>()?;
    let folder = files.first().and_then(|file| file.parent()).context("pretrain: no model was published")?;
    let (shape, weights, vocabulary) = gpt::read(folder)?;
    let prompt = prompt(sample, &vocabulary)?;
    let &Sample { n_tokens, temperature, top_k, .. } = sample;
    let sampling = Sampling { temperature, top_k };
    let mut random = stream(stage.pipeline.seed, "pretrain/sample", 0, 0);
    let start = Instant::now();
    let drawn = gpt::sample(&shape, &weights, &prompt, n_tokens, sampling, &mut random)?;
    let per_s = n_tokens as f64 / start.elapsed().as_secs_f64();
    stage.log.event(&format!("wrote {n_tokens} tokens, {per_s:.0}/s"), json!({"n": n_tokens, "per_s": per_s}));
    let text = vocabulary.decode(&[&prompt[..], &drawn].concat());
    task.write_bytes("samples.txt", format!("{text}\n").as_bytes())?;
    task.finish()?;
    Ok(())
}
