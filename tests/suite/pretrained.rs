//! A language model that the pipeline trains itself, through the whole pipeline.

use std::sync::OnceLock;

use artifact::tables::{PretrainRow, read_rows};
use pipeline_tests::{Run, changed, kill_when_there, repository};

/// A pipeline on a text of some thousand characters, which repeats itself.
fn written() -> Run {
    let run = Run::new(
        "source:
  model:
    name: pretrained
    texts: [{from: file, path: TEXT, n_tokens: 6000, bytes_per_document: 300}]
pretrain:
  {n_layers: 2, n_heads: 2, d_model: 32, context_length: 32, dropout: 0.1, batch_size: 9, n_steps: 120, lr: 1e-2, lr_min: 1e-3,
   warmup_steps: 10, eval_every: 40, checkpoint_every: 25, sample: {n_tokens: 60, top_k: 5, prompt: the}}
harvest: {hook: blocks.1.hook_resid_post, context_length: 32, heldout_fraction: 0.2}
train:
  batch_size: 256
  n_tokens: 20000
  saes: [{name: batchtopk, arch: batchtopk, n_fine: 64, k: 4}, {name: hiersae, arch: hiersae, n_coarse: 16, n_fine: 48, k: 4}]
recover: {n_bootstrap: 5, n_shifts: 2}
probe: {tasks: [], splice: {n_contexts: 8}}
",
    );
    let words = ["the", "fox", "was", "there", "naïve", "café,", "to", "be\n"];
    let text: Vec<&str> = (0..2400).map(|i: usize| words[(i * i + i / 9) % 8]).collect();
    let path = run.home().join("text.txt");
    std::fs::write(&path, text.join(" ")).unwrap();
    run.edit("TEXT", &path.display().to_string());
    run
}

/// A copy of one run whose model has been trained, and its undisturbed manifests.
fn pretrained() -> Run {
    static PRETRAINED: OnceLock<Run> = OnceLock::new();
    let run = PRETRAINED.get_or_init(|| {
        let run = written();
        ["fetch", "pretrain"].iter().for_each(|stage| run.expect(stage, &[]));
        run
    });
    run.copy()
}

#[test]
fn the_model_learns_and_every_stage_reads_it() {
    let run = pretrained();
    let curve: Vec<PretrainRow> = read_rows(&run.folder.join("pretrain/curve.parquet")).unwrap();
    assert_eq!(curve.last().unwrap().step, 120);
    let measured: Vec<f64> = curve.iter().filter_map(|row| row.validation_loss).collect();
    // Twenty characters are 3 nats at the start; letters by their frequency alone leave 2.5, the order of letters in eight
    // words hardly anything.
    assert!(measured.len() == 3 && measured[2] <= 1.2, "{measured:?}");
    let sample = std::fs::read_to_string(run.folder.join("pretrain/sample/samples.txt")).unwrap();
    assert!(sample.starts_with("the") && sample.contains(" the ") && sample.chars().count() >= 50, "{sample}");
    ["harvest", "train", "recover", "probe", "report"].iter().for_each(|stage| run.expect(stage, &[]));
    let page = std::fs::read_to_string(run.folder.join("report/report.md")).unwrap();
    assert!(page.contains("hiersae, gated"), "{page}");
    assert!(run.said("pretrain").contains("up to date"));
    // Another sample is no other model.
    run.edit("prompt: the", "prompt: fox");
    run.expect("pretrain", &[]);
    let sample = std::fs::read_to_string(run.folder.join("pretrain/sample/samples.txt")).unwrap();
    assert!(sample.starts_with("fox") && sample.contains(" the "), "{sample}");
    assert!(run.said("harvest").contains("up to date"));
    // A model that has changed is another model to those who read it.
    run.edit("n_steps: 120", "n_steps: 121");
    run.expect("pretrain", &[]);
    let said = run.said("harvest");
    assert!(said.contains("rerun") && said.contains("pretrain"), "{said}");
}

#[test]
fn runs_at_other_hooks_have_the_same_model_without_training_it() {
    let run = pretrained();
    run.edit("harvest: {hook:", "harvest: {also: [blocks.0.hook_mlp_out], hook:");
    run.expect("harvest", &[]);
    let folder = run.home().join("run@blocks.0.hook_mlp_out");
    let other = Run::at(folder.join("pipeline.yaml"), folder);
    other.expect("fetch", &[]);
    for stage in ["pretrain", "harvest"] {
        assert!(other.said(stage).contains("up to date"), "{stage}");
    }
    assert_eq!(other.manifests()["pretrain"], run.manifests()["pretrain"]);
    assert!(!other.said("pretrain").contains("wrote"), "its sample came with it");
}

#[test]
fn an_interrupted_pretraining_becomes_what_it_would_have_become() {
    let run = pretrained();
    let undisturbed = run.manifests();
    let process = run.command("pretrain").arg("--force").env("RAYON_NUM_THREADS", "1").spawn().unwrap();
    let checkpoint = run.folder.join("pretrain/checkpoint/state.safetensors");
    kill_when_there(process, &checkpoint);
    assert!(run.said("pretrain").contains("going on from step"));
    assert!(!checkpoint.exists(), "a finished training needs no checkpoint");
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
}

#[test]
fn rounded_products_make_another_model_that_goes_on_where_it_was_interrupted() {
    let run = written();
    run.edit("n_steps: 120", "products: int8, n_steps: 120");
    run.expect("fetch", &[]);
    let checkpoint = run.folder.join("pretrain/checkpoint/state.safetensors");
    let process = run.command("pretrain").env("RAYON_NUM_THREADS", "1").spawn().unwrap();
    kill_when_there(process, &checkpoint);
    assert!(run.said("pretrain").contains("going on from step"));
    let interrupted = run.manifests();
    run.expect("pretrain", &["--force"]);
    assert_eq!(changed(&interrupted, &run.manifests()), [""; 0]);
    let curve: Vec<PretrainRow> = read_rows(&run.folder.join("pretrain/curve.parquet")).unwrap();
    assert!(curve.last().and_then(|row| row.validation_loss).is_some_and(|loss| loss <= 1.2), "{:?}", curve.last());
    assert_ne!(pretrained().manifests()["pretrain"], interrupted["pretrain"]);
}

#[test]
fn what_cannot_be_trained_is_said_in_one_line() {
    let run = written();
    run.expect("fetch", &[]);
    run.expect("pretrain", &["--status"]);
    let message = run.expect_error("harvest", &[]);
    assert!(message.contains("nothing published there yet; run `make pretrain`"), "{message}");
    run.edit("prompt: the", "prompt: Zebra");
    let message = run.expect_error("pretrain", &[]);
    assert!(message.contains("pretrain.sample.prompt: 'Z' does not occur in the text"), "{message}");
    run.edit("prompt: Zebra", "prompt: the");
    run.edit("lr: 1e-2", "lr: 1e30");
    let message = run.expect_error("pretrain", &[]);
    assert!(message.contains("training has run away; set pretrain.lr"), "{message}");
    std::fs::write(run.home().join("text.txt"), "to be or not to be").unwrap();
    run.expect("fetch", &[]);
    let message = run.expect_error("pretrain", &[]);
    assert!(message.contains("source.model.texts hold 18 characters") && message.contains("too few"), "{message}");
}

#[test]
fn a_pipeline_with_another_source_has_nothing_to_train() {
    let run = Run::of("smoke.yaml");
    assert!(run.said("pretrain").contains("nothing to train"));
    assert!(run.said("pretrain").contains("up to date"));
}

/// The graph has the stage where the pipeline, or one that it extends, asks for it, and nowhere else.
#[test]
fn make_has_the_stage_where_it_is_needed() {
    for (config, is_needed) in
        [("configs/shakespeare_char-small.yaml", true), ("configs/text8.yaml", true), ("pipeline.yaml", false)]
    {
        let mut make = std::process::Command::new("make");
        make.args(["--dry-run", "status", &format!("CONFIG={config}"), "RUN=data/none"]).current_dir(repository());
        let told = String::from_utf8(make.output().unwrap().stdout).unwrap();
        assert!(told.contains("for stage in fetch"), "{told}");
        assert_eq!(told.contains(" pretrain "), is_needed, "{config}: {told}");
    }
}
