//! Models that the user brings: folders in Hugging Face format, of each family, through the whole pipeline.

use pipeline_tests::{Run, STAGES, repository};

/// A run on a golden checkpoint and a text of some hundred words.
fn run_of(family: &str) -> Run {
    let folder = repository().join("tests/golden/lm").join(family);
    let run = Run::new(&format!(
        "source:
  model:
    name: {}
    texts: [{{from: file, path: TEXTS, n_tokens: 6000}}]
harvest: {{hook: blocks.1.hook_resid_post, context_length: 48, heldout_fraction: 0.2}}
train:
  batch_size: 256
  n_tokens: 20000
  saes:
    - {{name: batchtopk, arch: batchtopk, n_fine: 64, k: 4}}
    - {{name: hiersae, arch: hiersae, n_coarse: 16, n_fine: 48, k: 4}}
recover: {{n_bootstrap: 5, n_shifts: 2}}
probe: {{tasks: [], splice: {{n_contexts: 8}}}}
",
        folder.display()
    ));
    let texts = run.home().join("texts");
    std::fs::create_dir(&texts).unwrap();
    for document in 0..40 {
        let words =
            (0..60).map(|i| ["the", "fox", "was", "there", "12", "naïve", "café,", "中文"][(i * i + document) % 8]);
        std::fs::write(texts.join(format!("{document}.txt")), words.collect::<Vec<_>>().join(" ")).unwrap();
    }
    run.edit("TEXTS", &texts.display().to_string());
    run
}

#[test]
fn every_family_runs_through_every_stage() {
    for family in ["gemma2", "gpt2", "gpt_neox", "llama", "qwen2", "qwen3"] {
        let run = run_of(family);
        STAGES.iter().for_each(|stage| run.expect(stage, &[]));
        let page = std::fs::read_to_string(run.folder.join("report/report.md")).unwrap();
        assert!(page.contains("hiersae, gated"), "{family}: {page}");
    }
}

#[test]
fn hooks_read_together_make_what_each_makes_alone() {
    let run = run_of("gpt2");
    // A hook has one name, however it is written.
    run.edit(
        "harvest: {hook: blocks.1.hook_resid_post,",
        "harvest: {hook: blocks.1.hook_resid_post, also: [blocks.00.hook_mlp_out],",
    );
    ["fetch", "harvest"].iter().for_each(|stage| run.expect(stage, &[]));
    let together = run.manifests()["harvest"].clone();
    let folder = run.home().join("run@blocks.0.hook_mlp_out");
    let listed = std::fs::read_to_string(run.folder.join(".hooks")).unwrap();
    assert_eq!(listed, format!("{}\n", folder.display()));

    // The run at the other hook finds its dataset there, goes on from it, and makes the same alone.
    let other = Run::at(folder.join("pipeline.yaml"), folder);
    other.expect("fetch", &[]);
    assert!(other.said("harvest").contains("up to date"));
    other.expect("train", &[]);
    let before = other.manifests();
    other.expect("harvest", &["--force"]);
    assert_eq!(other.manifests(), before);
    assert_ne!(before["harvest"], together);

    // And the run's own dataset is the one that it makes without the other.
    assert!(run.said("harvest").contains("run@blocks.0.hook_mlp_out/harvest: up to date"));
    run.edit(", also: [blocks.00.hook_mlp_out]", "");
    assert!(run.said("harvest").contains("up to date"));
    assert_eq!(std::fs::read_to_string(run.folder.join(".hooks")).unwrap(), "");
    run.expect("harvest", &["--force"]);
    assert_eq!(run.manifests()["harvest"], together);
}

#[test]
fn a_hook_that_cannot_be_read_is_named() {
    for (also, expected) in [
        ("blocks.7.hook_mlp_out", "harvest.also[0]: blocks.7.hook_mlp_out: this model has blocks 0 to"),
        ("blocks.0.hook_mlp", "harvest.also[0]: \"blocks.0.hook_mlp\" names no hook"),
        ("blocks.01.hook_resid_post", "harvest.also[0]: blocks.1.hook_resid_post is harvested already"),
        ("blocks.0.hook_mlp_out, blocks.0.hook_mlp_out", "harvest.also[1]: blocks.0.hook_mlp_out is harvested already"),
    ] {
        let run = run_of("gpt2");
        run.edit("context_length: 48", &format!("also: [{also}], context_length: 48"));
        run.expect("fetch", &[]);
        let message = run.expect_error("harvest", &[]);
        assert!(message.contains(expected), "{message}");
        assert!(!run.manifests().contains_key("harvest"));
    }
}

/// A copy of a golden's model in the run's home, and the run on it.
fn copied(family: &str) -> (Run, std::path::PathBuf) {
    let run = run_of(family);
    let (golden, folder) = (repository().join("tests/golden/lm").join(family), run.home().join("model"));
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    run.edit(&golden.display().to_string(), &folder.display().to_string());
    (run, folder)
}

#[test]
fn a_changed_shard_is_another_model() {
    let (run, folder) = copied("qwen3");
    ["fetch", "harvest"].iter().for_each(|stage| run.expect(stage, &[]));
    let before = run.manifests()["harvest"].clone();
    let shard = folder.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    ["fetch", "harvest"].iter().for_each(|stage| run.expect(stage, &[]));
    assert_ne!(run.manifests()["harvest"], before);
}

#[test]
fn what_a_folder_lacks_is_said_by_its_name() {
    let (run, folder) = copied("llama");
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    std::fs::remove_file(folder.join("expected.safetensors")).unwrap();
    std::fs::write(folder.join("pytorch_model.bin"), "a pickle").unwrap();
    run.expect("fetch", &[]);
    let message = run.expect_error("harvest", &[]);
    assert!(message.contains("pytorch_model.bin") && message.contains("safetensors"), "{message}");
}
