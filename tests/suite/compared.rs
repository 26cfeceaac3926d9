//! Variants of a pipeline, families of SAEs over seeds, and several runs in one report.

use std::path::Path;
use std::process::Command;

use artifact::digest;
use artifact::tables::{SpliceScore, write_rows};
use pipeline_tests::{Run, program, repository, stderr};
use serde_json::Value;

/// The smoke pipeline with two SAEs for each of three seeds.
fn variant() -> String {
    format!(
        "extends: {}\ntrain:\n  n_tokens: 10000\n  seeds: [0, 1, 2]\n  saes:\n    \
         - {{name: batchtopk, arch: batchtopk, n_fine: 16, k: 2}}\n    \
         - {{name: hiersae, n_coarse: 8, n_fine: 8, k: 2, tree: {{update_every: 10}}}}\n\
         report: {{reference: batchtopk}}\n",
        repository().join("configs/smoke.yaml").display()
    )
}

fn results(report: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(report.join("results.json")).unwrap()).unwrap()
}

fn report(config: &Path, folder: &Path) -> std::process::Output {
    let mut command = Command::new(program("report"));
    command.arg("--config").arg(config).arg("--run").arg(folder).output().unwrap()
}

/// Gives a run cross-entropies as if there had been a language model, the same for each of its SAEs.
fn splice(run: &Path, seed: u64, ce_recovered: f64) {
    let saes = ["batchtopk", "hiersae"].map(|name| [0, 1, 2].map(|seed| (format!("{name}-s{seed}"), seed)));
    let score = |(sae, seed): (String, u64)| SpliceScore {
        sae,
        seed,
        view: "flat".into(),
        threshold: "native".into(),
        intervention: "reconstruction".into(),
        cross_entropy: 3.0,
        kl: 0.1,
        ce_recovered,
        ci_low: ce_recovered,
        ci_high: ce_recovered,
        n_tokens: 100,
    };
    let scores: Vec<_> = saes.into_iter().flatten().map(score).collect();
    let mut bytes = Vec::new();
    write_rows(&mut bytes, &scores).unwrap();
    std::fs::write(run.join("probe/splice.parquet"), &bytes).unwrap();
    let manifest = run.join("probe/manifest.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    json["key"]["seed"] = seed.into();
    let outputs = json["outputs"].as_array_mut().unwrap();
    let output = outputs.iter_mut().find(|output| output["path"] == "splice.parquet").unwrap();
    output["sha256"] = digest::of_bytes(&bytes).into();
    output["bytes"] = bytes.len().into();
    output["rows"] = scores.len().into();
    json["digest"] = digest::of_bytes(json.to_string().as_bytes()).into();
    std::fs::write(&manifest, json.to_string()).unwrap();
}

#[test]
fn families_are_compared_over_seeds_within_a_run_and_between_runs() {
    let run = Run::new(&variant());
    run.all();
    let trained: Vec<_> = run.manifests().into_keys().filter(|folder| folder.starts_with("train/")).collect();
    let expected = ["batchtopk", "hiersae"].map(|name| [0, 1, 2].map(|seed| format!("train/{name}-s{seed}")));
    assert_eq!(trained, expected.concat());

    let results_of_run = results(&run.folder.join("report"));
    let comparison = &results_of_run["comparison"];
    let differences = comparison["differences"].as_array().unwrap();
    let ev =
        differences.iter().find(|row| row["metric"] == "ev" && row["view"] == "gated" && row["threshold"] == "prior");
    let ev = ev.expect("EV of hiersae, gated, less that of batchtopk");
    assert_eq!((ev["family"].as_str(), ev["reference"].as_str()), (Some("hiersae"), Some("batchtopk")));
    assert_eq!(ev["n_seeds"].as_u64(), Some(3));
    // The mean of the seeds' own figures.
    let of_group = |family: &str, view: &str| {
        let groups = comparison["groups"].as_array().unwrap();
        let mut groups = groups.iter().filter(|group| group["family"] == family && group["view"] == view);
        let figures = groups.find(|group| group["threshold"] == "prior").unwrap()["figures"].as_array().unwrap();
        let ev = figures.iter().find(|figure| figure["metric"] == "ev" && figure["level"] == "all").unwrap();
        ev["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / 3.0
    };
    let expected = of_group("hiersae", "gated") - of_group("batchtopk", "flat");
    assert!((ev["mean"].as_f64().unwrap() - expected).abs() <= 1e-12, "{ev}, expected {expected}");
    // Behind a gate it is what the gate enforces.
    let is_nested_in = |view: &str| {
        let mut rows = differences.iter().filter(|row| row["metric"] == "tree_mi_over_nested");
        rows.any(|row| row["view"] == view)
    };
    assert!(is_nested_in("flat") && !is_nested_in("gated"), "{comparison}");
    let page = std::fs::read_to_string(run.folder.join("report/report.md")).unwrap();
    assert!(page.contains("## Comparison over seeds") && page.contains("(compare-edge-f1-prior.svg)"), "{page}");

    // The same run twice, beside each other: told apart by the folders' names, and reported on by neither.
    let (first, second) = (run.home().join("first"), run.home().join("second"));
    std::fs::rename(&run.folder, &first).unwrap();
    let copy = Command::new("cp").arg("-r").arg(&first).arg(&second).status().unwrap();
    assert!(copy.success());
    let both = run.home().join("both.yaml");
    let text = format!("report: {{reference: batchtopk, beside: [{}, {}]}}\n", first.display(), second.display());
    std::fs::write(&both, &text).unwrap();
    let output = report(&both, run.home());
    assert!(output.status.success(), "{}", stderr(&output));
    let groups = results(&run.home().join("report"))["comparison"]["groups"].clone();
    let mut families: Vec<_> = groups.as_array().unwrap().iter().map(|group| group["family"].clone()).collect();
    families.dedup();
    assert_eq!(families, ["first/batchtopk", "first/hiersae", "second/batchtopk", "second/hiersae"]);
    // Made from what they hold, wherever that lies.
    let manifest = std::fs::read_to_string(run.home().join("report/manifest.json")).unwrap();
    assert!(
        manifest.contains("\"beside/second/recover\"") && !manifest.contains(&first.display().to_string()),
        "{manifest}"
    );
    assert!(stderr(&report(&both, run.home())).contains("up to date"));

    std::fs::remove_file(second.join("recover/manifest.json")).unwrap();
    let message = stderr(&report(&both, run.home()));
    assert!(message.contains("report.beside: ") && message.contains("second/recover: nothing published"), "{message}");

    // Left out where it may be, and named.
    std::fs::write(&both, text.replace("report: {", "report: {skip_missing: true, ")).unwrap();
    let output = report(&both, run.home());
    assert!(output.status.success() && stderr(&output).contains("left out"), "{}", stderr(&output));
    let page = std::fs::read_to_string(run.home().join("report/report.md")).unwrap();
    assert!(page.contains("The SAEs of the run first, ") && page.contains("**Not made yet: second.**"), "{page}");
    assert_eq!(results(&run.home().join("report"))["comparison"]["groups"][0]["family"], "batchtopk");
    // A run that has been trained anew and not yet measured is not there yet either.
    std::fs::copy(first.join("recover/manifest.json"), second.join("recover/manifest.json")).unwrap();
    let trained = second.join("train/batchtopk-s0/manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(&trained).unwrap()).unwrap();
    let digest = manifest["digest"].as_str().unwrap();
    let with_other_digest = |manifest: &Path| {
        let other: String = digest.chars().rev().collect();
        std::fs::write(manifest, std::fs::read_to_string(manifest).unwrap().replace(digest, &other)).unwrap();
    };
    let page = || std::fs::read_to_string(run.home().join("report/report.md")).unwrap();
    // Nor one whose SAEs have been spliced into a model before they were trained anew; nothing is, without a model.
    let probed = second.join("probe/manifest.json");
    with_other_digest(&probed);
    assert!(report(&both, run.home()).status.success() && !page().contains("Not made yet"), "{}", page());
    splice(&second, 0, 0.75);
    assert!(report(&both, run.home()).status.success() && page().contains("**Not made yet: second.**"), "{}", page());
    // Cross-entropies are compared where the contexts are the same.
    std::fs::copy(first.join("probe/manifest.json"), &probed).unwrap();
    splice(&first, 0, 0.5);
    for (seed, n_compared) in [(0, 2), (1, 1)] {
        splice(&second, seed, 0.75);
        assert!(report(&both, run.home()).status.success() && !page().contains("Not made yet"), "{}", page());
        let groups = results(&run.home().join("report"))["comparison"]["groups"].clone();
        let is_flat_batchtopk = |group: &&Value| {
            group["family"].as_str().unwrap().ends_with("/batchtopk")
                && (group["view"] == "flat" && group["threshold"] == "native")
        };
        let figures = |group: &Value| group["figures"].as_array().unwrap().clone();
        let of_batchtopk = groups.as_array().unwrap().iter().filter(is_flat_batchtopk).flat_map(figures);
        let found: Vec<_> = of_batchtopk
            .filter(|figure| figure["metric"] == "ce_recovered")
            .map(|figure| figure["mean"].clone())
            .collect();
        assert_eq!(found, &[0.5, 0.75][..n_compared]);
        assert_eq!(page().contains("cross-entropies of second"), n_compared == 1, "{}", page());
    }
    with_other_digest(&trained);
    assert!(report(&both, run.home()).status.success() && page().contains("**Not made yet: second.**"), "{}", page());
    std::fs::write(&both, &text).unwrap();
    let message = stderr(&report(&both, run.home()));
    assert!(message.contains("of another train/batchtopk-s0, which has been trained since"), "{message}");

    std::fs::write(&both, text.replace("report: {", "report: {skip_missing: true, ")).unwrap();
    std::fs::remove_dir_all(&first).unwrap();
    let message = stderr(&report(&both, run.home()));
    assert!(message.contains("report.beside: no run has been made yet") && message.contains("first"), "{message}");
}

#[test]
fn a_pipeline_that_only_compares_has_work_for_the_report_alone() {
    let run = Run::new("report: {beside: [./nowhere]}\n");
    let message = run.expect_error("train", &[]);
    assert!(message.contains("nothing to do for train"), "{message}");
    let message = run.expect_error("report", &[]);
    assert!(message.contains("report.beside: ./nowhere/train: nothing published there yet"), "{message}");
}
