//! What reruns, and what does not.

use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use artifact::tables::{Metric, TreeNode, read_rows};
use pipeline_tests::{Run, changed, files_below, programs, repository, stderr};

use crate::faults::moment;

#[test]
fn a_second_run_writes_nothing() {
    let run = Run::finished();
    let (manifests, times) = (run.manifests(), run.output_times());
    run.all();
    assert_eq!(changed(&manifests, &run.manifests()), [""; 0]);
    assert_eq!(times, run.output_times());
}

#[test]
fn a_key_of_probe_reruns_neither_training_nor_recovery() {
    let run = Run::finished();
    let (manifests, times) = (run.manifests(), run.output_times());
    run.edit("probe:\n  n_bootstrap: 20", "probe:\n  n_bootstrap: 21");
    run.all();
    // The report only reruns where the probes came out differently, and here there is no model to probe.
    assert_eq!(changed(&manifests, &run.manifests()), ["probe"]);
    for (path, time) in run.output_times() {
        let is_downstream = ["probe", "report"].iter().any(|folder| path.starts_with(run.folder.join(folder)));
        assert!(is_downstream || times.get(&path) == Some(&time), "{} was written again", path.display());
    }
}

#[test]
fn a_key_of_one_sae_retrains_that_one_alone() {
    let run = Run::finished();
    let (manifests, times) = (run.manifests(), run.output_times());
    run.edit("update_every: 10", "update_every: 15");
    run.all();
    let changed = changed(&manifests, &run.manifests());
    assert!(changed.contains(&"train/hiersae".to_owned()), "{changed:?}");
    assert!(changed.contains(&"recover/hiersae".to_owned()), "{changed:?}");
    for other in ["train/vanilla", "train/matryoshka", "recover/vanilla", "recover/matryoshka", "harvest", "fetch"] {
        assert!(!changed.contains(&other.to_owned()), "{changed:?}");
        let written = run.output_times().into_iter().filter(|(path, _)| path.starts_with(run.folder.join(other)));
        for (path, time) in written {
            assert_eq!(times.get(&path), Some(&time), "{} was written again", path.display());
        }
    }
}

#[test]
fn a_family_is_the_reports_business_alone() {
    let run = Run::finished();
    let (manifests, times) = (run.manifests(), run.output_times());
    run.edit("name: vanilla, ", "name: vanilla, family: flat, ");
    run.edit("title: HierSAE smoke run", "reference: flat");
    run.all();
    assert_eq!(changed(&manifests, &run.manifests()), ["report", "train"]);
    for (path, time) in run.output_times() {
        let is_renamed = path.ends_with("train/saes.json") || path.starts_with(run.folder.join("report"));
        assert!(is_renamed || times.get(&path) == Some(&time), "{} was written again", path.display());
    }
    let results = std::fs::read_to_string(run.folder.join("report/results.json")).unwrap();
    assert!(results.contains("\"family\": \"flat\""), "{results}");
}

#[test]
fn other_thresholds_are_found_without_training_and_are_what_training_would_have_found() {
    let run = Run::new(&format!(
        "extends: {}\ntrain:\n  n_tokens: 6000\n  saes:\n    \
         - {{name: vanilla, arch: vanilla, n_fine: 16, k: 2, l1_weighting: decoder-norm}}\n    \
         - {{name: gated, arch: gated, n_fine: 16, k: 2}}\n    \
         - {{name: jumprelu, arch: jumprelu, n_fine: 16, k: 2}}\n    \
         - {{name: tree-sae, arch: tree-sae, n_coarse: 8, n_fine: 8, k: 2}}\n    \
         - {{name: hiersae, n_coarse: 8, n_fine: 8, k: 2, tree: {{update_every: 5, min_count: 1}}}}\n",
        repository().join("configs/smoke.yaml").display()
    ));
    ["fetch", "harvest", "train"].iter().for_each(|stage| run.expect(stage, &[]));
    let tree: Vec<TreeNode> = read_rows(&run.folder.join("train/hiersae/tree.parquet")).unwrap();
    assert!(tree.iter().any(|node| node.parent.is_some()), "no tree whose gate would move a threshold");
    let before = run.manifests();
    for (old, new) in [("k: 2", "k: 2, prior_kappa: 0.4, refine_sweeps: 3"), ("refine_sweeps: 3", "refine_sweeps: 0")] {
        run.edit(old, new);
        let status = String::from_utf8(run.stage("train", &["--status"]).stdout).unwrap();
        assert!(status.contains("hiersae") && status.contains("stale: calibration."), "{status}");
        let said = run.said("train");
        for sae in ["vanilla", "gated", "jumprelu", "tree-sae", "hiersae"] {
            assert!(said.contains(&format!("{sae}: its thresholds found anew")), "{said}");
        }
        assert!(!said.contains(" tokens in "), "something was trained: {said}");
        let renewed = run.manifests();
        assert_eq!(changed(&before, &renewed).len(), 6, "all SAEs and the list of them");
        run.expect("train", &["--force"]);
        assert_eq!(changed(&renewed, &run.manifests()), [""; 0]);
    }
}

#[test]
fn thresholds_found_anew_cost_no_training_however_that_ends() {
    let run = Run::finished();
    let sae = "name: hiersae, ";
    let mut now = sae.to_owned();
    let mut to = |kappa: String| {
        let next = format!("{sae}prior_kappa: {kappa}, ");
        run.edit(&now, &next);
        now = next;
    };
    let is_idle = |said: &str| !said.contains(" tokens in ");
    to("0.9".into());
    let start = Instant::now();
    assert!(is_idle(&run.said("train")));
    let took = start.elapsed();
    for i in 0..12 {
        to(format!("0.{}", 10 + i));
        let mut process = run.start("train", &[]);
        std::thread::sleep(took.mul_f64(moment("train/renewed", i)));
        process.kill().unwrap();
        process.wait().unwrap();
        let said = run.said("train");
        assert!(is_idle(&said), "trained anew after the {i}. kill: {said}");
    }
    let undisturbed = run.manifests();
    run.expect("train", &["--force"]);
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);

    // Something that cannot be written over.
    let obstacle = run.folder.join("train/hiersae/rules.safetensors.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    to("0.8".into());
    let message = run.expect_error("train", &[]);
    assert!(message.contains("rules.safetensors.tmp: cannot write"), "{message}");
    assert_eq!(changed(&undisturbed, &run.manifests()), [""; 0]);
    std::fs::remove_dir(obstacle).unwrap();
    assert!(is_idle(&run.said("train")));
}

#[test]
fn another_sae_costs_the_measures_of_that_one_alone() {
    let run = Run::finished();
    let times = run.output_times();
    run.edit("saes:\n", "saes:\n    - {name: twin, arch: vanilla, n_fine: 16, k: 2, seed: 5}\n");
    ["train", "recover"].iter().for_each(|stage| run.expect(stage, &[]));
    let mut n_kept = 0;
    for (path, time) in run.output_times() {
        let part = path.strip_prefix(run.folder.join("recover")).ok().filter(|path| path.iter().count() > 1);
        // Its own part, and its tree beside that of its like.
        let is_new = |part: &std::path::Path| part.starts_with("twin") || part.starts_with("twin+vanilla");
        if part.is_some_and(|part| !is_new(part)) {
            assert_eq!(times.get(&path), Some(&time), "{} was written again", path.display());
            n_kept += 1;
        }
    }
    assert!(n_kept >= 5 * 6, "{n_kept}");
    let metrics: Vec<Metric> = read_rows(&run.folder.join("recover/recovery.parquet")).unwrap();
    let mut names: Vec<&str> = metrics.iter().map(|metric| &*metric.sae).collect();
    names.dedup();
    assert_eq!(names, ["twin", "vanilla", "batchtopk", "matryoshka", "tree-sae", "hiersae"]);
    let of_parts = names
        .iter()
        .flat_map(|name| read_rows::<Metric>(&run.folder.join("recover").join(name).join("recovery.parquet")).unwrap());
    assert!(of_parts.eq(metrics.iter().cloned()));
}

#[test]
fn a_rerun_says_what_has_changed() {
    let run = Run::finished();
    run.edit("k: 2, tree", "k: 3, tree");
    let said = run.said("train");
    assert!(said.contains("vanilla: up to date"), "{said}");
    assert!(said.contains("hiersae: rerun: sae.k 2 → 3"), "{said}");
}

#[test]
fn status_says_what_is_fresh_stale_and_missing() {
    let run = Run::finished();
    let status = |stage: &str| String::from_utf8(run.stage(stage, &["--status"]).stdout).unwrap();
    assert!(status("recover").contains("fresh"), "{}", status("recover"));
    run.edit("n_shifts: 5", "n_shifts: 6");
    assert!(status("recover").contains("stale: recover.n_shifts 5 → 6"), "{}", status("recover"));
    std::fs::remove_dir_all(run.folder.join("report")).unwrap();
    assert!(status("report").contains("missing"), "{}", status("report"));
}

// The same through make. `-o build` leaves cargo out: it is at work on this test.

fn make(run: &Run) -> Output {
    let output = Command::new("make")
        .current_dir(repository())
        .args(["--no-print-directory", "-o", "build", "all"])
        .arg(format!("CONFIG={}", run.config.display()))
        .arg(format!("RUN={}", run.folder.display()))
        .arg(format!("BIN={}", programs().display()))
        .output()
        .expect("GNU make is installed");
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn a_second_make_starts_no_stage() {
    let run = Run::of("smoke.yaml");
    let first = String::from_utf8(make(&run).stdout).unwrap();
    for stage in pipeline_tests::STAGES {
        assert!(first.contains(&format!("== {stage}\n")), "{first}");
    }
    let start = Instant::now();
    let second = String::from_utf8(make(&run).stdout).unwrap();
    assert_eq!(second, format!("report: {}/report/report.md\n", run.folder.display()));
    assert!(start.elapsed() <= Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn make_sees_a_change_in_a_file_that_is_extended() {
    let run = Run::new("# a variant\nextends: 'base.yaml'\n");
    let base = run.home().join("base.yaml");
    let text = std::fs::read_to_string(repository().join("configs/smoke.yaml")).unwrap();
    std::fs::write(&base, &text).unwrap();
    make(&run);
    std::fs::write(&base, text.replace("title: HierSAE smoke run", "title: Another title")).unwrap();
    let second = String::from_utf8(make(&run).stdout).unwrap();
    assert!(second.contains("== report\n"), "{second}");
    let page = std::fs::read_to_string(run.folder.join("report/report.md")).unwrap();
    assert!(page.starts_with("# Another title"), "{page}");
}

#[test]
fn touched_files_rerun_nothing() {
    let run = Run::of("smoke.yaml");
    make(&run);
    let manifests = run.manifests();
    let mut files = files_below(&run.folder);
    files.push(run.config.clone());
    for file in files {
        let past = SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().append(true).open(file).unwrap().set_modified(past).unwrap();
    }
    // Each stage in turn finds its inputs newer than itself.
    for stage in ["fetch", "harvest", "train", "recover", "probe"] {
        let path = run.folder.join(stage).join("manifest.json");
        std::fs::File::options().append(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
        let times = run.output_times();
        make(&run);
        assert_eq!(times, run.output_times(), "after touching {stage}");
    }
    assert_eq!(changed(&manifests, &run.manifests()), [""; 0]);
}
