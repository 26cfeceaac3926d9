//! Killed, crowded out, fed garbage: a stage either makes the right artifacts or says in one line what is wrong.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use artifact::random::stream;
use artifact::stage::MANIFEST;
use pipeline_tests::{Run, STAGES, changed, kill_when_there, stderr};
use rand::Rng;

/// The i-th moment at which a stage is killed, as a share of the time it takes.
pub(crate) fn moment(stage: &str, i: u64) -> f64 {
    f64::from(stream(0, stage, 0, i).next_u32()) / f64::from(u32::MAX)
}

/// How long a stage takes when nothing disturbs it.
pub(crate) fn duration(run: &Run, stage: &str) -> Duration {
    let start = Instant::now();
    run.expect(stage, &["--force"]);
    start.elapsed()
}

#[test]
fn a_killed_stage_is_made_good_by_the_next_run() {
    let run = Run::finished();
    let undisturbed = run.manifests();
    for stage in STAGES {
        let took = duration(&run, stage);
        for i in 0..4 {
            let mut process = run.start(stage, &["--force"]);
            std::thread::sleep(took.mul_f64(moment(stage, i)));
            process.kill().unwrap();
            process.wait().unwrap();
            run.expect(stage, &[]);
            assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0], "{stage}, killed for the {i}. time");
        }
    }
}

#[test]
fn an_interrupted_training_goes_on_from_its_checkpoint() {
    let run = Run::finished();
    let undisturbed = run.manifests();
    let sae = run.folder.join("train/vanilla");
    std::fs::remove_file(sae.join(MANIFEST)).unwrap();
    let process = run.start("train", &[]);
    kill_when_there(process, &sae.join("checkpoint"));
    run.expect("train", &[]);
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
    assert!(!sae.join("checkpoint").exists(), "a finished training needs no checkpoint");
}

#[test]
fn a_second_process_is_told_who_is_writing() {
    let run = Run::finished();
    for (stage, folder) in STAGES.map(|stage| (stage, if stage == "train" { "train/vanilla" } else { stage })) {
        let lock = run.folder.join(folder).join(".lock");
        let mut lock = OpenOptions::new().write(true).create(true).truncate(true).open(lock).unwrap();
        lock.lock().unwrap();
        writeln!(lock, "process 4242").unwrap();
        let start = Instant::now();
        let message = run.expect_error(stage, &["--force"]);
        // A second is what users are promised; another one is for a busy machine.
        assert!(start.elapsed() <= Duration::from_secs(2), "{stage}: {:?}", start.elapsed());
        assert!(message.contains("being written by process 4242"), "{message}");
    }
}

#[test]
fn a_corrupted_artifact_is_refused_by_name() {
    let run = Run::finished();
    let check = |stage: &str, path: &str| {
        let path = run.folder.join(path);
        let whole = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let message = run.expect_error(stage, &["--force"]);
        assert!(message.contains(&path.display().to_string()), "{stage}: {message}");
        assert!(message.contains("again-"), "{stage} does not say what to do: {message}");
        std::fs::write(&path, &whole).unwrap();
        run.expect(stage, &["--force"]);
    };
    check("train", "harvest/train/part-00001.parquet");
    check("train", "harvest/stats.json");
    check("recover", "harvest/heldout/part-00000.parquet");
    check("recover", "harvest/truth.parquet");
    check("recover", "harvest/firing.parquet");
    check("recover", "train/saes.json");
    check("recover", "train/hiersae/sae_weights.safetensors");
    check("recover", "train/hiersae/tree.parquet");
    check("report", "recover/recovery.parquet");
    check("report", "recover/summary.json");
    check("report", "probe/probes.parquet");
    check("report", "train/vanilla/curve.parquet");
}

#[test]
fn a_damaged_output_is_made_again() {
    let run = Run::finished();
    let undisturbed = run.manifests();
    for stage in ["harvest", "train", "recover", "probe", "report"] {
        let folder = if stage == "train" { "train/hiersae" } else { stage };
        let outputs = run.output_times().into_keys().filter(|path| path.starts_with(run.folder.join(folder)));
        for path in outputs.step_by(3) {
            std::fs::write(&path, b"not what was published").unwrap();
        }
        run.expect(stage, &[]);
    }
    run.all();
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
}

#[test]
fn a_damaged_manifest_is_refused_by_name() {
    let run = Run::finished();
    let path = run.folder.join("harvest").join(MANIFEST);
    std::fs::write(&path, "{\"key\": 3}").unwrap();
    let message = run.expect_error("recover", &[]);
    assert!(message.contains(&path.display().to_string()) && message.contains("not a manifest"), "{message}");
}

#[test]
fn a_missing_stage_is_named() {
    let run = Run::of("smoke.yaml");
    assert!(run.expect_error("train", &[]).contains("run `make harvest`"));
}

#[test]
fn a_wrong_pipeline_is_refused_by_file_and_key() {
    let check = |old: &str, new: &str, expected: &[&str]| {
        let run = Run::of("smoke.yaml");
        run.edit(old, new);
        let message = run.expect_error("harvest", &[]);
        for part in expected.iter().copied().chain(["pipeline.yaml"]) {
            assert!(message.contains(part), "{part} not in: {message}");
        }
    };
    check("batch_size:", "batchsize:", &["batchsize", "line"]);
    check("batch_size: 256", "batch_size: many", &["batch_size", "line"]);
    check("lr: 3e-3", "lr: .nan", &["train.lr = NaN"]);
    check("k: 2, tree", "k: 200, tree", &["train.saes[4].k = 200"]);
    check("name: hiersae", "name: vanilla", &["train.saes[4].name = vanilla"]);
    check("synthetic:", "imaginary:", &["imaginary"]);
    check("n_train: 12000", "n_train: 0", &["source.synthetic.n_train"]);
    check("n_shifts: 5", "n_shifts: -5", &["n_shifts"]);
}

#[test]
fn a_pipeline_that_is_not_there_is_named() {
    let run = Run::of("smoke.yaml");
    std::fs::remove_file(&run.config).unwrap();
    assert!(run.expect_error("harvest", &[]).contains("pipeline.yaml: cannot read the pipeline"));
}

/// A folder in which nobody may write, not even root: the kernel's own.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder_is_named() {
    let mut run = Run::of("smoke.yaml");
    run.folder = "/proc/self/run".into();
    let message = run.expect_error("harvest", &[]);
    assert!(message.contains("/proc/self/run") && message.contains("cannot make the folder"), "{message}");
}

#[test]
fn a_file_in_the_place_of_the_run_is_named() {
    let mut run = Run::of("smoke.yaml");
    run.folder = run.home().join("file");
    std::fs::write(&run.folder, "in the way").unwrap();
    let message = run.expect_error("harvest", &[]);
    assert!(message.contains(&run.folder.display().to_string()), "{message}");
}

#[test]
fn leftovers_of_a_killed_run_are_cleared() {
    let run = Run::finished();
    let undisturbed = run.manifests();
    let leftover = run.folder.join("report/report.md.tmp");
    std::fs::create_dir_all(leftover.join("in the way")).unwrap();
    run.expect("report", &["--force"]);
    assert!(!leftover.exists());
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
}

#[test]
fn stages_explain_themselves() {
    let run = Run::of("smoke.yaml");
    for stage in STAGES {
        let output = run.stage(stage, &["--help"]);
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.status.success() && said.contains("--config") && said.contains("--run"), "{stage}: {said}");
        let wrong = run.stage(stage, &["--no-such-flag"]);
        assert!(!wrong.status.success() && stderr(&wrong).contains("--no-such-flag"), "{stage}");
    }
}

/// In a build without CUDA; one that has it and finds a GPU would train there.
#[test]
fn a_gpu_that_is_not_there_stops_training_and_nothing_else() {
    let run = Run::finished();
    let undisturbed = run.manifests();
    run.edit("source:\n", "device: cuda\nsource:\n");
    for stage in STAGES.into_iter().filter(|&stage| stage != "train") {
        run.expect(stage, &[]);
    }
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
    let message = run.expect_error("train", &[]);
    assert!(message.contains("pipeline.yaml: device = cuda, but ") && message.contains("set device: cpu"), "{message}");
}
