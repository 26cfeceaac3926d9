//! Finished SAEs as baselines: `train.saes: - {name, import}`.

use std::path::{Path, PathBuf};

use artifact::tables::{CurveRow, Metric, read_rows};
use pipeline_tests::{Run, STAGES, changed, repository};
use serde_json::Value;

/// A run whose own `batchtopk` comes back as `theirs`, and the folder that it comes back from.
fn run() -> (Run, PathBuf) {
    let run = Run::finished();
    let folder = run.home().join("their-sae");
    std::fs::create_dir(&folder).unwrap();
    for file in ["cfg.json", "sae_weights.safetensors"] {
        std::fs::copy(run.folder.join("train/batchtopk").join(file), folder.join(file)).unwrap();
    }
    import(&run, &folder);
    (run, folder)
}

fn import(run: &Run, folder: &Path) {
    let last = "tree: {update_every: 10}}";
    run.edit(last, &format!("{last}\n    - {{name: theirs, family: foreign, import: {}}}", folder.display()));
}

#[test]
fn an_imported_sae_is_measured_as_the_one_it_was() {
    let (run, _) = run();
    run.edit("title: HierSAE smoke run", "reference: foreign");
    let before = run.manifests();
    STAGES.iter().for_each(|stage| run.expect(stage, &[]));
    let after = run.manifests();
    for own in ["harvest", "train/vanilla", "train/batchtopk", "train/matryoshka", "train/hiersae"] {
        assert_eq!(before[own], after[own], "{own} was made again");
    }
    let curve: Vec<CurveRow> = read_rows(&run.folder.join("train/theirs/curve.parquet")).unwrap();
    assert!(curve.is_empty());

    let metrics: Vec<Metric> = read_rows(&run.folder.join("recover/recovery.parquet")).unwrap();
    let native = |sae: &str, metric: &str| {
        let is_it =
            |row: &&Metric| row.sae == sae && row.metric == metric && row.threshold == "native" && row.level == "all";
        metrics.iter().find(is_it).unwrap_or_else(|| panic!("{sae} has no {metric}")).value
    };
    for metric in ["ev", "fvu", "l0", "f1"] {
        // Lengths of 1 but for the last bit are folded as any other.
        let (theirs, ours) = (native("theirs", metric), native("batchtopk", metric));
        assert!((theirs - ours).abs() <= 1e-5, "{metric}: {theirs}, {ours}");
    }
    let page = std::fs::read_to_string(run.folder.join("report/report.md")).unwrap();
    let unlike = "vanilla (a reference trained elsewhere)";
    for said in ["jumprelu, imported", "but for those that were trained elsewhere: theirs.", unlike] {
        assert!(page.contains(said), "{said}\n{page}");
    }
    // The wanted L0 of thresholds that say none is the one they have.
    let cfg = std::fs::read(run.folder.join("train/theirs/cfg.json")).unwrap();
    let cfg: Value = serde_json::from_slice(&cfg).unwrap();
    assert_eq!(cfg["metadata"]["hiersae"]["config"]["k"], 2);
    assert_eq!(cfg["metadata"]["hiersae"]["config"]["import"], "their-sae");
}

#[test]
fn another_file_in_the_folder_is_imported_anew_and_nothing_else_is_trained() {
    let (run, folder) = run();
    ["fetch", "train"].iter().for_each(|stage| run.expect(stage, &[]));
    let before = run.manifests();
    ["fetch", "train"].iter().for_each(|stage| run.expect(stage, &[]));
    assert_eq!(changed(&before, &run.manifests()), [""; 0]);
    let other = run.folder.join("train/matryoshka/sae_weights.safetensors");
    std::fs::copy(other, folder.join("sae_weights.safetensors")).unwrap();
    run.expect("fetch", &[]);
    let status = String::from_utf8(run.stage("train", &["--status"]).stdout).unwrap();
    assert!(status.contains("source/sae/theirs has changed"), "{status}");
    run.expect("train", &[]);
    assert_eq!(changed(&before, &run.manifests()), ["fetch", "train", "train/theirs"]);
    // What fetch has not seen is not read.
    std::fs::write(folder.join("cfg.json"), "{}").unwrap();
    let message = run.expect_error("train", &["--force"]);
    assert!(message.contains("their-sae/cfg.json") && message.contains("make again-fetch"), "{message}");
}

#[test]
fn an_sae_for_other_activations_is_refused_with_both_widths() {
    for name in ["sae_lens_topk", "dictionary_learning_AutoEncoderTopK"] {
        let run = Run::finished();
        import(&run, &repository().join("tests/golden/import").join(name));
        run.expect("fetch", &[]);
        let message = run.expect_error("train", &[]);
        assert!(message.contains(name) && message.contains("width 6") && message.contains("32 wide"), "{message}");
    }
}

#[test]
fn a_folder_without_an_sae_is_named_by_its_key() {
    let run = Run::finished();
    import(&run, &repository().join("configs"));
    let message = run.expect_error("fetch", &[]);
    assert!(message.contains("train.saes[5].import") && message.contains("`cfg.json`"), "{message}");
}
