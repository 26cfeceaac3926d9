//! Training holds its data in memory or streams it, trains SAEs together or alone, is killed or left in peace: what an SAE
//! becomes is the same.

use std::sync::OnceLock;

use artifact::stage::MANIFEST;
use artifact::tables::{TreeNode, read_rows};
use pipeline_tests::{Run, changed, kill_when_there, stderr};

use crate::faults::{duration, moment};

/// A copy of a run whose train split does not fit into `train.resident_mb`: six windows of two row groups an epoch.
fn streamed() -> Run {
    static STREAMED: OnceLock<Run> = OnceLock::new();
    let streamed = STREAMED.get_or_init(|| {
        let run = Run::of("smoke.yaml");
        run.edit("n_train: 12000", "n_train: 24000");
        run.edit("rows_per_part: 4096", "rows_per_part: 2048\n  dtype: f32");
        run.edit("batch_size: 256", "batch_size: 256\n  resident_mb: 1");
        ["fetch", "harvest", "train"].iter().for_each(|stage| run.expect(stage, &[]));
        run
    });
    streamed.copy()
}

fn both() -> [Run; 2] {
    [Run::finished(), streamed()]
}

/// A copy of a run whose training rows are drawn as it goes; batches and blocks of rows do not end together.
fn drawn() -> Run {
    static DRAWN: OnceLock<Run> = OnceLock::new();
    let drawn = DRAWN.get_or_init(|| {
        let run = Run::of("smoke.yaml");
        run.edit("    n_train: 12000\n", "");
        run.edit("batch_size: 256", "batch_size: 200");
        ["fetch", "harvest", "train"].iter().for_each(|stage| run.expect(stage, &[]));
        run
    });
    drawn.copy()
}

fn all() -> [Run; 3] {
    let [in_memory, streamed] = both();
    [in_memory, streamed, drawn()]
}

#[test]
fn a_training_killed_at_any_moment_becomes_what_it_would_have_become() {
    let runs = all().map(|run| (run.manifests(), duration(&run, "train"), run));
    for i in 0..20 {
        let (undisturbed, took, run) = &runs[i as usize % runs.len()];
        let mut process = run.start("train", &["--force"]);
        std::thread::sleep(took.mul_f64(moment("train/killed", i)));
        process.kill().unwrap();
        process.wait().unwrap();
        run.expect("train", &[]);
        assert_eq!(changed(undisturbed, &run.manifests()), [""; 0], "killed for the {i}. time");
    }
}

#[test]
fn saes_become_the_same_together_and_alone() {
    for run in all() {
        run.edit("name: matryoshka,", "name: matryoshka, seed: 5,");
        // Two trees that are counted once more, over rows of their own number.
        let twin =
            "{name: twin, n_coarse: 8, n_fine: 8, k: 2, tree: {update_every: 10, min_excess: 0.3, recount_rows: 900}}";
        run.edit("    - {name: hiersae,", &format!("    - {twin}\n    - {{name: hiersae,"));
        run.expect("train", &[]);
        for sae in ["twin", "hiersae"] {
            let tree: Vec<TreeNode> = read_rows(&run.folder.join(format!("train/{sae}/tree.parquet"))).unwrap();
            assert!(tree.iter().any(|node| node.parent.is_some()), "no tree that could become another");
        }
        let undisturbed = run.manifests();
        for together in [1, 2, 8] {
            run.edit("log_every: 5", &format!("log_every: 5\n  together: {together}"));
            run.expect("train", &["--force"]);
            assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0], "{together} together");
            run.edit(&format!("\n  together: {together}"), "");
        }
    }
}

#[test]
fn saes_go_on_from_their_own_steps() {
    for run in all() {
        run.edit("log_every: 5", "log_every: 5\n  together: 8");
        let undisturbed = run.manifests();
        let checkpoint = |sae: &str| run.folder.join("train").join(sae).join("checkpoint/state.safetensors");
        let process = run.start("train", &["--force"]);
        kill_when_there(process, &checkpoint("hiersae"));
        // This one starts anew, and the others wait for it.
        std::fs::remove_file(checkpoint("batchtopk")).unwrap();
        let output = run.command("train").args(["--log-format", "json"]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let log = std::fs::read_to_string(run.folder.join("log/train.log")).unwrap();
        for (sae, goes_on) in [("vanilla", true), ("batchtopk", false), ("hiersae", true)] {
            assert_eq!(log.contains(&format!("{sae}: going on from step")), goes_on, "{log}");
        }
        assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
    }
}

#[test]
fn an_sae_that_fails_does_not_take_others_with_it() {
    let run = Run::finished();
    let undisturbed = run.manifests();
    run.edit("name: batchtopk,", "name: batchtopk, lr: 1e30,");
    let message = run.expect_error("train", &["--force"]);
    assert!(message.contains("batchtopk: the loss is no longer finite"), "{message}");
    // The list of all SAEs stays as it was.
    let changed = changed(&undisturbed, &run.manifests());
    assert_eq!(changed, ["train/batchtopk"]);
    assert!(!run.folder.join("train/batchtopk").join(MANIFEST).exists());
    run.edit(" lr: 1e30,", "");
    run.expect("train", &[]);
    assert_eq!(undisturbed, run.manifests());
}

#[test]
fn a_streamed_training_is_the_same_with_any_number_of_threads() {
    for (run, stages) in [(streamed(), ["train"].as_slice()), (drawn(), &["harvest", "train"])] {
        let undisturbed = run.manifests();
        for n_threads in ["1", "3"] {
            for stage in stages {
                let output = run.command(stage).arg("--force").env("RAYON_NUM_THREADS", n_threads).output().unwrap();
                assert!(output.status.success(), "{}", stderr(&output));
            }
            assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0], "{n_threads} threads");
        }
    }
}

#[test]
fn drawn_training_rows_are_not_written_and_what_was_planted_is_read_back() {
    let run = drawn();
    assert!(!run.folder.join("harvest/train").exists());
    run.expect("recover", &[]);
    for file in ["harvest/truth.json", "harvest/truth.parquet"] {
        let path = run.folder.join(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[1..]).unwrap();
        let message = run.expect_error("train", &["--force"]);
        assert!(message.contains(&path.display().to_string()), "{message}");
        std::fs::write(&path, &whole).unwrap();
    }
    // Memory for rows is not asked for.
    run.edit("batch_size: 200", "batch_size: 200\n  resident_mb: 1");
    let status = String::from_utf8(run.stage("train", &["--status"]).stdout).unwrap();
    assert!(!status.contains("stale: train.resident_mb"), "{status}");
}

#[test]
fn the_memory_for_data_matters_only_where_it_does_not_suffice() {
    let [in_memory, streamed] = both();
    let status = |run: &Run| String::from_utf8(run.stage("train", &["--status"]).stdout).unwrap();
    in_memory.edit("log_every: 5", "log_every: 5\n  resident_mb: 1\n  together: 3");
    assert!(!status(&in_memory).contains("stale"), "{}", status(&in_memory));
    streamed.edit("resident_mb: 1", "resident_mb: 2");
    assert!(status(&streamed).contains("stale: train.resident_mb 1 → 2"), "{}", status(&streamed));
    streamed.edit("resident_mb: 2", "resident_mb: 20");
    assert!(status(&streamed).contains("stale: train.resident_mb 1 → unset"), "{}", status(&streamed));
}

#[test]
fn too_little_memory_for_two_row_groups_is_refused_with_what_it_takes() {
    let run = streamed();
    run.edit("rows_per_part: 2048", "rows_per_part: 8192");
    run.expect("harvest", &[]);
    let message = run.expect_error("train", &[]);
    assert!(message.contains("train.resident_mb = 1") && message.contains("set it to 2 or more"), "{message}");
}
