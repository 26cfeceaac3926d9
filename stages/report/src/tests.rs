//! The report of a run whose tables are made here: four rows of everything.

use std::collections::BTreeMap;

use artifact::config::{Activations, Arch, ModelSource, Pipeline, Sae, Source, Synthetic};
use artifact::tables::{CurveRow, DensityBin, Metric, ProbeScore, SpliceScore};
use serde_json::{Value, json};

use crate::inputs::{Run, TrainedSae};
use crate::trees::TreeSummary;
use crate::{figures, gaps, page, plots};

const MODES: [(&str, &str, &str); 6] = [
    ("vanilla", "flat", "native"),
    ("vanilla", "flat", "prior"),
    ("hiersae", "flat", "native"),
    ("hiersae", "flat", "prior"),
    ("hiersae", "gated", "native"),
    ("hiersae", "gated", "prior"),
];

fn metric((sae, view, threshold): (&str, &str, &str), metric: &str, level: &str, value: f64) -> Metric {
    Metric {
        sae: sae.into(),
        seed: 0,
        view: view.into(),
        threshold: threshold.into(),
        metric: metric.into(),
        level: level.into(),
        value,
        ci_low: Some(value - 0.01),
        ci_high: Some(value + 0.01),
    }
}

fn tree(mode: (&str, &str, &str), tree: &str) -> TreeSummary {
    serde_json::from_value(tree_json(mode, tree)).unwrap()
}

fn tree_json((sae, view, threshold): (&str, &str, &str), tree: &str) -> Value {
    let mean = |value: f64| json!({"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1});
    json!({
        "sae": sae, "seed": 0, "view": view, "threshold": threshold, "tree": tree, "base": tree,
        "n_edges": 12, "n_measured": 10,
        "p_parent_given_child": mean(0.7), "mi_over_nested": mean(0.6), "mi_over_h_child": mean(0.4),
        "significant_positive": {"value": 0.9},
    })
}

fn density((sae, view, threshold): (&str, &str, &str)) -> [DensityBin; 2] {
    [-3.0, -2.5].map(|log10_low| DensityBin {
        sae: sae.into(),
        seed: 0,
        view: view.into(),
        threshold: threshold.into(),
        level: "all".into(),
        log10_low,
        log10_high: log10_low + 0.5,
        n_latents: 100,
    })
}

fn curve() -> Vec<CurveRow> {
    (1..=20)
        .map(|step| CurveRow {
            step,
            tokens: 4096 * step,
            lr_coarse: 1e-3,
            lr_fine: 1e-3,
            loss: 2.0 / step as f64,
            mse: 1.0 / step as f64,
            mse_prefixes: 1.0 / step as f64,
            l1: 0.0,
            aux: 0.01,
            mi: 0.0,
            coverage: 0.0,
            geometry: 0.0,
            fvu: 0.9 / step as f64,
            l0_coarse: 8.0,
            l0_fine: 24.0,
            dead: 0.0,
            grad_norm: 1.0,
            l1_coefficient: 0.0,
            gate: 0.0,
            n_edges: 0,
        })
        .collect()
}

/// A synthetic run of a baseline and a HierSAE; the baseline's native L0 is 10 % high.
fn run() -> Run {
    let saes = [("vanilla", Arch::Vanilla, 0, 4608), ("hiersae", Arch::Hiersae, 512, 4096)].map(
        |(name, arch, n_coarse, n_fine)| TrainedSae {
            config: Sae { name: name.into(), arch, n_coarse, n_fine, k: 32, ..Sae::default() },
            curve: curve(),
        },
    );
    let source = Source { synthetic: Some(Synthetic::default()), ..Source::default() };
    let mut pipeline = Pipeline { source, ..Pipeline::default() };
    pipeline.train.saes = saes.iter().map(|sae| sae.config.clone()).collect();
    let mut metrics = Vec::new();
    for (i, mode) in MODES.into_iter().enumerate() {
        let l0 = if mode.0 == "vanilla" && mode.2 == "native" { 35.2 } else { 32.0 };
        metrics.push(metric(mode, "ev", "all", 0.9 - 0.01 * i as f64));
        metrics.push(metric(mode, "l0", "all", l0));
        metrics.push(metric(mode, "f1", "all", 0.5 + 0.05 * i as f64));
        metrics.push(metric(mode, "edge_f1", "all", 0.4));
        metrics.push(metric(mode, "n_unheard_of", "coarse", 3.0));
    }
    Run {
        pipeline,
        saes: saes.into(),
        metrics,
        trees: MODES.into_iter().map(|mode| tree(mode, "posthoc")).collect(),
        density: MODES.into_iter().flat_map(density).collect(),
        probes: Vec::new(),
        splices: Vec::new(),
        stats: json!({"n_train": 200_000, "n_heldout": 50_000}),
        missing: Vec::new(),
        made_from: BTreeMap::from([("recover".into(), "ab".repeat(32))]),
    }
}

fn with_model(mut run: Run) -> Run {
    let probe = |sae: &str, level: &str, k: Option<u64>, score: f64| ProbeScore {
        sae: sae.into(),
        seed: 0,
        view: if sae.is_empty() { "" } else { "flat" }.into(),
        threshold: if sae.is_empty() { "" } else { "native" }.into(),
        task: "movie-sentiment".into(),
        level: level.into(),
        k,
        score,
        baseline: 0.51,
        ci_low: score - 0.02,
        ci_high: score + 0.02,
        n_test: 500,
    };
    run.probes = vec![
        probe("", "activations", None, 0.87),
        probe("", "embeddings", None, 0.7),
        probe("vanilla", "all", Some(1), 0.61),
        probe("hiersae", "all", Some(1), 0.66),
        probe("hiersae", "coarse", Some(1), 0.6),
    ];
    let splice = |sae: &str, intervention: &str, cross_entropy: f64, ce_recovered: f64| SpliceScore {
        sae: sae.into(),
        seed: 0,
        view: if sae.is_empty() { "" } else { "flat" }.into(),
        threshold: if sae.is_empty() { "" } else { "native" }.into(),
        intervention: intervention.into(),
        cross_entropy,
        kl: cross_entropy - 3.0,
        ce_recovered,
        ci_low: ce_recovered - 0.02,
        ci_high: ce_recovered + 0.02,
        n_tokens: 8000,
    };
    run.splices = vec![
        splice("", "clean", 3.0, 1.0),
        splice("", "zero", 10.0, 0.0),
        splice("", "mean", 8.0, 0.286),
        splice("vanilla", "reconstruction", 4.0, 0.857),
        splice("hiersae", "reconstruction", 3.7, 0.9),
    ];
    run
}

fn page_of(run: &Run) -> String {
    let figures = figures::collect(run).unwrap();
    let plots = plots::draw(run, &figures).unwrap();
    page::render(run, &figures, None, &gaps::find(run, &figures), &plots)
}

fn gaps_of(run: &Run) -> Vec<String> {
    gaps::find(run, &figures::collect(run).unwrap())
}

#[test]
fn each_mode_has_its_row_and_native_and_prior_stand_apart() {
    let page = page_of(&run());
    let (native, prior) = (page.find("native threshold").unwrap(), page.find("prior threshold").unwrap());
    assert!(native < prior);
    for row in ["| vanilla † ", "| vanilla ", "| hiersae ", "| hiersae, gated "] {
        assert!(page.contains(row), "{row}\n{page}");
    }
}

#[test]
fn an_unmatched_l0_is_flagged_and_wins_nothing() {
    let run = run();
    let page = page_of(&run);
    // The vanilla baseline has the highest EV, at 10 % more active latents than wanted.
    assert!(page.contains("0.900 [0.890, 0.910]") && !page.contains("**0.900**"), "{page}");
    assert!(page.contains("**0.880** [0.870, 0.890]"), "{page}");
    let gaps = gaps_of(&run);
    assert!(gaps.iter().any(|gap| gap.contains("vanilla (flat, native)") && gap.contains("+10 %")), "{gaps:?}");
}

#[test]
fn what_is_missing_is_derived_from_the_tables() {
    let gaps = gaps_of(&run()).join("\n");
    for part in ["cross-entropy recovered", "probes of WordNet", "the own tree of hiersae", "one point of the EV–L0"]
    {
        assert!(gaps.contains(part), "{part}\n{gaps}");
    }
    assert!(!gaps.contains("edge F1"), "{gaps}");
    let gaps = gaps_of(&with_model(run())).join("\n");
    assert!(!gaps.contains("cross-entropy recovered") && !gaps.contains("probes of WordNet"), "{gaps}");
    assert!(gaps.contains("probe task wordnet-class: no rows"), "{gaps}");
    assert!(gaps.contains("probe task movie-sentiment with 20 latents"), "{gaps}");
}

#[test]
fn a_mode_without_rows_is_told() {
    let mut run = run();
    run.metrics.retain(|row| row.view != "gated");
    run.trees.clear();
    assert!(gaps_of(&run).iter().any(|gap| gap.starts_with("hiersae read gated with its prior threshold")));
}

#[test]
fn model_figures_are_shown_with_what_they_lie_between() {
    let page = page_of(&with_model(run()));
    for part in
        ["untouched 3.000", "by zero 10.000", "the raw activations 0.870 [0.850, 0.890]", "0.900 [0.880, 0.920]"]
    {
        assert!(page.contains(part), "{part}\n{page}");
    }
}

#[test]
fn metrics_without_a_table_of_their_own_are_still_shown() {
    assert!(page_of(&run()).contains("n unheard of, coarse"));
}

#[test]
fn trees_stand_beside_each_other() {
    let mut run = run();
    run.trees.extend(MODES.into_iter().skip(2).map(|mode| tree(mode, "own")));
    let page = page_of(&run);
    assert!(
        page.contains("| own ↑") && page.contains("P(parent | child)") && page.contains("0.700 [0.600, 0.800]"),
        "{page}"
    );
}

#[test]
fn trees_against_wordnet_have_a_section() {
    let mut run = run();
    assert!(!page_of(&run).contains("## Trees against WordNet"));
    for (name, value) in [
        ("wordnet_hierarchy", 0.123),
        ("wordnet_hierarchy_n", 345.0),
        ("wordnet_same_class", 0.25),
        ("wordnet_hierarchy_cosine", 0.045),
        ("wordnet_hierarchy_n_cosine", 99.0),
    ] {
        run.metrics.push(metric(MODES[2], name, "all", value));
    }
    let page = page_of(&run);
    let from = |title: &str| &page[page.find(title).unwrap_or_else(|| panic!("{title}\n{page}"))..];
    let section = from("## Trees against WordNet");
    let section = &section[..section[3..].find("\n## ").unwrap()];
    for part in ["| parent above ↑ ", "| of edges ", "| 0.123", "| 345", "| cosine parent above", "| 0.045"] {
        assert!(section.contains(part), "{part}\n{section}");
    }
    assert!(!from("## Other measures").contains("wordnet"), "{page}");
}

#[test]
fn gated_trees_are_shown_and_never_bold() {
    let mut run = run();
    run.trees.clear();
    let trees = [0.5, 0.6, 0.7, 0.8, 0.99, 0.98].iter().zip(MODES).map(|(&p, mode)| {
        let mut summary = tree_json(mode, "posthoc");
        summary["p_parent_given_child"] = json!({"value": p, "ci_low": p, "ci_high": p});
        serde_json::from_value(summary).unwrap()
    });
    run.trees.extend(trees.collect::<Vec<_>>());
    let page = page_of(&run);
    assert!(page.contains("0.990 [0.990, 0.990]") && !page.contains("**0.990**"), "{page}");
    assert!(page.contains("0.980 [0.980, 0.980]") && !page.contains("**0.980**"), "{page}");
    // Among the flat rows the better one of those with the prior threshold; the native vanilla has another L0.
    assert!(page.contains("**0.800** [0.800, 0.800]") && !page.contains("**0.600**"), "{page}");
    assert!(page.contains("Compare trees by the flat rows"), "{page}");
}

#[test]
fn measured_edges_stand_beside_all_edges() {
    let page = page_of(&run());
    let edges = &page[page.find("**Edges**").unwrap()..];
    assert!(edges.contains("| post-hoc | of |") && edges.contains("| 10       | 12 |"), "{edges}");
}

#[test]
fn a_hiersae_is_held_against_every_other_sae() {
    let mut run = run();
    let topk = Sae { name: "topk".into(), arch: Arch::Topk, ..run.saes[0].config.clone() };
    run.saes.push(TrainedSae { config: topk, curve: curve() });
    run.metrics.push(metric(("topk", "flat", "prior"), "ev", "all", 0.8));
    let page = page_of(&run);
    for line in [
        "- hiersae (flat, native): −0.020 (L0 differs) to vanilla\n",
        "- hiersae (flat, prior): −0.020 to vanilla, +0.070 to topk\n",
        "- hiersae (gated, prior): −0.040 to vanilla, +0.050 to topk\n",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[test]
fn the_folders_of_a_user_stay_out_of_the_page() {
    let activations = Some(Activations { path: "/home/someone/secret/acts.npy".into() });
    let source = Source { activations, ..Source::default() };
    assert_eq!(gaps::source_in_words(&source), "activations from acts.npy");
    let named = |name: &str| {
        let model = Some(ModelSource { name: name.into(), ..ModelSource::default() });
        gaps::source_in_words(&Source { model, ..Source::default() })
    };
    assert_eq!(named("/home/someone/secret/model.gguf"), "model.gguf");
    assert_eq!(named("someone/a-model"), "someone/a-model");
}

#[test]
fn a_figure_that_is_no_number_is_an_error_that_names_it() {
    let mut run = run();
    run.metrics[0].value = f64::NAN;
    let error = figures::collect(&run).err().unwrap().to_string();
    assert!(error.contains("recover/recovery.parquet") && error.contains("metric = 'ev'"), "{error}");
}

#[test]
fn every_sae_has_its_curve_and_the_parts_that_were_on() {
    let run = run();
    let plots = plots::draw(&run, &figures::collect(&run).unwrap()).unwrap();
    let paths: Vec<_> = plots.iter().map(|plot| plot.path.as_str()).collect();
    assert_eq!(paths, ["ev-l0.svg", "density.svg", "fvu.svg", "loss-vanilla.svg", "loss-hiersae.svg"]);
    let loss = &plots[4].svg;
    assert!(loss.contains("mse of prefixes") && !loss.contains("geometry"));
    assert!(plots.iter().all(|plot| plot.svg.starts_with("<svg") && plot.svg.trim_end().ends_with("</svg>")));
}

#[test]
fn the_same_tables_give_the_same_bytes() {
    assert_eq!(page_of(&with_model(run())), page_of(&with_model(run())));
}
