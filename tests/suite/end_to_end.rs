//! A whole run leaves what the README promises.

use artifact::config;
use artifact::tables::activations::Activations;
use artifact::tables::{
    CurveRow, Edge, Latent, Metric, ProbeScore, Row, SpliceScore, TreeNode, TrueFeature, TrueFiring, read_rows,
};
use pipeline_tests::Run;
use serde_json::Value;

fn table<R: Row>(run: &Run, path: &str) -> Vec<R> {
    read_rows(&run.folder.join(path)).unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn every_artifact_is_there_and_opens() {
    let run = Run::finished();
    let pipeline = config::load(&run.config).unwrap();
    let planted = pipeline.source.synthetic.unwrap().recipe();

    for (split, n_rows) in [("train", planted.n_train.unwrap()), ("heldout", planted.n_heldout)] {
        let parts: Vec<_> = pipeline_tests::files_below(&run.folder.join("harvest").join(split));
        let activations = Activations::read(&parts).unwrap();
        assert_eq!(activations.n_rows() as u64, n_rows, "{split}");
        assert_eq!(activations.d_model, planted.d_model);
    }
    assert_eq!(table::<TrueFeature>(&run, "harvest/truth.parquet").len(), planted_features(&run));
    assert_eq!(table::<TrueFiring>(&run, "harvest/firing.parquet").len() as u64, planted.n_heldout);

    for sae in &pipeline.train.saes {
        let file = |file: &str| format!("train/{}/{file}", sae.name);
        assert_eq!(table::<TreeNode>(&run, &file("tree.parquet")).len(), sae.d_sae(), "{}", sae.name);
        assert!(!table::<CurveRow>(&run, &file("curve.parquet")).is_empty(), "{}", sae.name);
        assert!(run.folder.join(file("sae_weights.safetensors")).exists(), "{}", sae.name);
        let cfg = std::fs::read_to_string(run.folder.join(file("cfg.json"))).unwrap();
        assert!(serde_json::from_str::<Value>(&cfg).unwrap().is_object());
    }
    let metrics = table::<Metric>(&run, "recover/recovery.parquet");
    for sae in &pipeline.train.saes {
        for metric in ["ev", "fvu", "l0", "dead"] {
            assert!(metrics.iter().any(|row| row.sae == sae.name && row.metric == metric), "{} {metric}", sae.name);
        }
    }
    assert!(!table::<Latent>(&run, "recover/latents.parquet").is_empty());
    // Too short a run to count on edges; that the tables open is what matters here.
    table::<Edge>(&run, "recover/edges.parquet");
    // Without a language model there is nothing to probe.
    assert!(table::<ProbeScore>(&run, "probe/probes.parquet").is_empty());
    assert!(table::<SpliceScore>(&run, "probe/splice.parquet").is_empty());
}

fn planted_features(run: &Run) -> usize {
    config::load(&run.config).unwrap().source.synthetic.unwrap().recipe().n_features
}

#[test]
fn the_report_has_every_sae_and_says_where_each_figure_is() {
    let run = Run::finished();
    let report = run.folder.join("report");
    let page = std::fs::read_to_string(report.join("report.md")).unwrap();
    for name in ["vanilla", "batchtopk", "matryoshka", "hiersae", "hiersae, gated", "Not measured"] {
        assert!(page.contains(name), "{name}\n{page}");
    }
    for picture in page.lines().filter_map(|line| line.strip_prefix("![")) {
        let path = picture.split_once("](").unwrap().1.trim_end_matches(')');
        assert!(report.join(path).exists(), "{path}");
    }
    let results: Value = serde_json::from_slice(&std::fs::read(report.join("results.json")).unwrap()).unwrap();
    let figures = results["figures"].as_array().unwrap();
    assert!(figures.len() >= 40, "{} figures", figures.len());
    for figure in figures {
        let artifact = figure["source"]["artifact"].as_str().unwrap();
        assert!(run.folder.join(artifact).exists(), "{artifact}");
        assert!(figure["value"].as_f64().is_some_and(f64::is_finite), "{figure}");
    }
}

#[test]
fn a_figure_of_the_report_is_the_one_in_its_artifact() {
    let run = Run::finished();
    let metrics = table::<Metric>(&run, "recover/recovery.parquet");
    let wanted = metrics.iter().find(|row| row.metric == "ev" && row.sae == "hiersae" && row.view == "gated").unwrap();
    let bytes = std::fs::read(run.folder.join("report/results.json")).unwrap();
    let results: Value = serde_json::from_slice(&bytes).unwrap();
    let is_it = |figure: &&Value| {
        figure["metric"] == "ev"
            && figure["sae"] == "hiersae"
            && figure["view"] == "gated"
            && figure["threshold"] == wanted.threshold.as_str()
            && figure["level"] == wanted.level.as_str()
    };
    let figure = results["figures"].as_array().unwrap().iter().find(is_it).unwrap();
    assert_eq!(figure["value"].as_f64(), Some(wanted.value));
    assert_eq!(figure["ci_low"].as_f64(), wanted.ci_low);
}

#[test]
fn artifacts_say_nothing_of_the_machine_that_made_them() {
    let run = Run::finished();
    let home = run.home().parent().unwrap().to_string_lossy().into_owned();
    for path in run.output_times().into_keys() {
        let bytes = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&format!("{home}/")), "{} holds an absolute path", path.display());
    }
}

#[test]
fn without_resamples_and_shifts_figures_have_no_intervals_and_no_nulls() {
    let run = Run::finished();
    run.edit("n_bootstrap: 20\n  n_shifts: 5", "n_bootstrap: 0\n  n_shifts: 0");
    ["recover", "report"].iter().for_each(|stage| run.expect(stage, &[]));
    let metrics = table::<Metric>(&run, "recover/recovery.parquet");
    assert!(metrics.iter().all(|row| row.ci_low.is_none() && row.ci_high.is_none() && row.value.is_finite()));
    assert!(metrics.iter().any(|row| row.metric == "edge_f1"));
    assert!(!metrics.iter().any(|row| row.metric.starts_with("independent_pairs")));
    let edges = table::<Edge>(&run, "recover/edges.parquet");
    assert!(edges.iter().all(|edge| edge.mi_ci_low.is_none() && edge.mi_null_bits.is_none()));
}
