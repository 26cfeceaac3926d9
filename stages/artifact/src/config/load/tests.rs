//! What a pipeline file may say, and how it is told what it may not.

use super::super::{Activations, Arch, Recover, Source, Train};
use super::*;

/// A pipeline of one file.
fn parse(text: &str) -> Result<Pipeline> {
    resolve(&[super::parse(text, Path::new("pipeline.yaml"))?])
}

fn error_of(text: &str) -> String {
    format!("{:#}", parse(text).expect_err("expected an error"))
}

/// Each of some keys makes an error that says so.
fn assert_refused(pipeline: impl Fn(&str) -> String, cases: &[(&str, &str)]) {
    for (keys, expected) in cases {
        let error = error_of(&pipeline(keys));
        assert!(error.contains(expected), "{keys}: {error}");
    }
}

const SYNTHETIC: &str = "source: {synthetic: {}}\ntrain: {saes: [{name: a, n_coarse: 512, n_fine: 4096}]}\n";

#[test]
fn missing_keys_take_their_defaults() {
    let pipeline = parse(SYNTHETIC).unwrap();
    assert_eq!(pipeline.train.batch_size, 4096);
    assert_eq!(pipeline.train.saes[0].d_sae(), 4608);
}

#[test]
fn an_empty_section_means_its_defaults() {
    let pipeline = parse(&format!("{SYNTHETIC}probe:\nreport:\n")).unwrap();
    assert_eq!(pipeline.probe.ks, [1, 2, 5, 20]);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = error_of("source: {synthetic: {}}\ntrain:\n  batchsize: 3\n");
    assert!(error.contains("batchsize") && error.contains("line 3"), "{error}");
}

#[test]
fn nan_is_refused_by_name() {
    let error =
        error_of("source: {synthetic: {}}\ntrain: {lr: .nan, saes: [{name: a, n_coarse: 512, n_fine: 4096}]}\n");
    assert!(error.contains("train.lr = NaN"), "{error}");
}

#[test]
fn two_sources_are_refused() {
    let error =
        error_of("source: {synthetic: {}, model: {}}\ntrain: {saes: [{name: a, n_coarse: 512, n_fine: 4096}]}\n");
    assert!(error.contains("exactly one of"), "{error}");
}

#[test]
fn a_budget_beyond_its_level_is_refused_by_name() {
    let error = error_of("source: {synthetic: {}}\ntrain: {saes: [{name: a, n_coarse: 32, k: 80, k_coarse: 64}]}\n");
    assert!(error.contains("train.saes[0].k_coarse = 64 exceeds n_coarse = 32"), "{error}");
}

#[test]
fn a_tree_sae_is_refused_by_the_key_that_does_not_fit_it() {
    let pipeline = |keys: &str| {
        format!("source: {{synthetic: {{}}}}\ntrain: {{saes: [{{name: a, arch: tree-sae, n_fine: 96, {keys}}}]}}\n")
    };
    let sae = parse(&pipeline("n_coarse: 32, k: 32")).unwrap().train.saes.remove(0);
    assert_eq!(sae.k_coarse(), Some(26));
    let other = parse(&pipeline("n_coarse: 32, k_coarse: 30, tree_sae: {growth: 1, active_above: 0}")).unwrap();
    assert_eq!(other.train.saes[0].tree_sae().map(|tree| (tree.growth, tree.interval)), Some((1.0, 0.03)));
    assert_refused(
        pipeline,
        &[
            ("k: 8", "train.saes[0].n_coarse = 0 must be at least 1"),
            ("n_coarse: 32, k: 1", "train.saes[0].k = 1 leaves nothing for one of the levels"),
            ("n_coarse: 32, k: 8, k_coarse: 8", "train.saes[0].k_coarse = 8 must lie between 1 and k − 1 = 7"),
            ("n_coarse: 4, k: 8", "train.saes[0].k_coarse = 7 exceeds n_coarse = 4"),
            ("n_coarse: 32, select: batchtopk", "train.saes[0].select = Batchtopk is not what TreeSae means"),
            ("n_coarse: 32, prefixes: {}", "train.saes[0].prefixes are given for a Tree SAE"),
            ("n_coarse: 32, tree: {}", "train.saes[0].tree belongs to arch hiersae"),
            ("n_coarse: 32, curriculum: {}", "train.saes[0].curriculum belongs to"),
            ("n_coarse: 32, l1: 0.1", "train.saes[0].l1 has no meaning"),
            ("n_coarse: 32, decoder_norms: free", "train.saes[0].decoder_norms = free"),
            ("n_coarse: 32, aux_k: {normalise: true}", "train.saes[0].aux_k.normalise has no meaning"),
            ("n_coarse: 32, tree_sae: {interval: 0.2}", "train.saes[0].tree_sae.interval exceeds max_interval"),
            ("n_coarse: 32, tree_sae: {interval: 0}", "train.saes[0].tree_sae.interval = 0 must be a positive number"),
            ("n_coarse: 32, tree_sae: {growth: .nan}", "train.saes[0].tree_sae.growth = NaN must be at least 1"),
            ("n_coarse: 32, tree_sae: {root_reset: 2}", "train.saes[0].tree_sae.root_reset = 2 must lie between"),
            ("n_coarse: 32, tree_sae: {active_above: -1}", "train.saes[0].tree_sae.active_above = -1 must be zero or"),
            ("n_coarse: 32, tree_sae: {eligible_within: 0}", "train.saes[0].tree_sae.eligible_within = 0 must be"),
        ],
    );
    let error = error_of("source: {synthetic: {}}\ntrain: {saes: [{name: a, arch: topk, tree_sae: {}}]}\n");
    assert!(error.contains("train.saes[0].tree_sae belongs to arch tree-sae, not Topk"), "{error}");
}

#[test]
fn what_changes_over_training_is_refused_by_the_key_that_does_not_fit() {
    let pipeline =
        |keys: &str| format!("source: {{synthetic: {{}}}}\ntrain: {{saes: [{{name: a, n_fine: 96, k: 8, {keys}}}]}}\n");
    for keys in [
        "arch: topk, k_anneal: {}",
        "n_coarse: 32, curriculum: {coarse_until: 0, fine_full_at: 0}, prefixes: {sort_at: 0.4, beta: 0, beta_end: 0.3}",
        "arch: matryoshka, n_coarse: 32, k_anneal: {times: 1, until: 1}, prefixes: {sort_at: 0.9}",
        "n_coarse: 32, prefixes: {sort_at: 0.9}",
        "n_coarse: 32, prefixes: {sort_at: 0.5}, tree: {parents: coarse, gate_from: 0.5, gate_to: 0.6}",
    ] {
        parse(&pipeline(keys)).unwrap();
    }
    assert_refused(
        pipeline,
        &[
            ("arch: vanilla, k_anneal: {}", "train.saes[0].k_anneal goes with select: topk or batchtopk"),
            ("arch: matching-pursuit, k_anneal: {}", "train.saes[0].k_anneal is not there for MatchingPursuit"),
            ("arch: tree-sae, n_coarse: 32, k_anneal: {}", "train.saes[0].k_anneal is not there for TreeSae"),
            ("arch: topk, k_anneal: {times: 0.5}", "train.saes[0].k_anneal.times = 0.5 must be at least 1"),
            ("arch: topk, k_anneal: {times: .nan}", "train.saes[0].k_anneal.times = NaN must be at least 1"),
            (
                "arch: topk, k_anneal: {times: 12.5}",
                "k_anneal.times = 12.5 begins with k = 8 times that, and there are 96",
            ),
            (
                "arch: matryoshka, n_coarse: 9, k_coarse: 5, k_anneal: {times: 2}",
                "k_anneal.times = 2 begins with k_coarse = 5 times that, and there are 9",
            ),
            ("arch: topk, k_anneal: {until: 1.5}", "train.saes[0].k_anneal.until = 1.5 must be above 0 and at most 1"),
            ("arch: topk, k_anneal: {until: 0}", "train.saes[0].k_anneal.until = 0 must be above 0 and at most 1"),
            (
                "n_coarse: 32, prefixes: {sort_at: 0.2}",
                "sort_at = 0.2 leaves no step, of 976, after curriculum.fine_full_at = 0.3",
            ),
            (
                "n_coarse: 32, prefixes: {sort_at: 0.3}",
                "sort_at = 0.3 leaves no step, of 976, after curriculum.fine_full_at = 0.3",
            ),
            (
                "n_coarse: 32, prefixes: {sort_at: 0.5}, tree: {parents: coarse}",
                "set tree.gate_from, which is 0.2, to no less",
            ),
            (
                "n_coarse: 32, prefixes: {sort_at: 0.82}, tree: {parents: coarse, gate_from: 0.82, gate_to: 0.9}",
                "to choose parents anew before tree.freeze_from = 0.85: they are chosen every 50",
            ),
            ("n_coarse: 32, prefixes: {sort_at: 0.9999}", "sort_at = 0.9999 leaves none of 976 steps"),
            ("n_coarse: 32, prefixes: {sort_at: 0}", "train.saes[0].prefixes.sort_at = 0 must lie between 0 and 1"),
            (
                "n_coarse: 32, prefixes: {beta_end: -1}",
                "train.saes[0].prefixes.beta_end = -1 must be a positive number",
            ),
        ],
    );
}

#[test]
fn a_synthetic_source_is_refused_by_the_key_that_does_not_fit_it() {
    let pipeline = |keys: &str| {
        format!("source: {{synthetic: {{{keys}}}}}\ntrain: {{saes: [{{name: a, n_coarse: 512, n_fine: 4096}}]}}\n")
    };
    let recipe = |keys: &str| parse(&pipeline(keys)).unwrap().source.synthetic.unwrap().recipe();
    for (preset, tight, loose) in [("small", 680, 336), ("half", 5440, 2688), ("full", 10_880, 5376)] {
        assert_eq!(recipe(&format!("preset: {preset}")).n_in_trees(), Some(tight), "{preset}");
        assert_eq!(recipe(&format!("preset: {preset}, loose: true")).n_in_trees(), Some(loose), "{preset}");
    }
    assert_eq!(recipe("preset: half, depth: 0").n_in_trees(), Some(0));
    assert_eq!(recipe("preset: half").n_train, None);
    assert_refused(
        pipeline,
        &[
            ("preset: huge", "huge"),
            ("n_parents: 3", "n_parents"),
            ("p_child: 0.3", "source.synthetic.p_child has no meaning with loose: false"),
            ("loose: true, p_max: 0.3", "source.synthetic.p_max has no meaning with loose: true"),
            ("loose: true, compensate: true", "source.synthetic.compensate has no meaning with loose: true"),
            ("n_features: 600", "source.synthetic.n_features = 600 is too few for 8 trees of branching 4 and depth 3"),
            ("depth: 99", "source.synthetic.n_features = 1024 is too few"),
            ("p_max: 1.5", "source.synthetic.p_max = 1.5 must lie between 0 and 1"),
            ("p_min: 0.5", "source.synthetic.p_min = 0.5 exceeds p_max = 0.4"),
            ("magnitude_last: 0", "source.synthetic.magnitude_last = 0 must be a positive number"),
            ("noise_std: .nan", "source.synthetic.noise_std = NaN"),
            ("n_train: 0", "source.synthetic.n_train = 0 must be at least 1"),
            ("n_heldout: 64", "source.synthetic.n_heldout = 64 is one document of 64 rows"),
        ],
    );
}

#[test]
fn an_import_takes_no_key_of_a_training() {
    let pipeline = |keys: &str| format!("source: {{synthetic: {{}}}}\ntrain: {{saes: [{{name: a, {keys}}}]}}\n");
    let sae = &parse(&pipeline("import: ./a, prior_kappa: 0.5")).unwrap().train.saes[0];
    assert_eq!(sae.import.as_deref(), Some(Path::new("./a")));
    // Also where the value is the default.
    for (keys, key) in [("k: 32", "k"), ("arch: hiersae", "arch"), ("lr: 1e-3", "lr"), ("tree: {}", "tree")] {
        let error = error_of(&pipeline(&format!("import: ./a, {keys}")));
        assert!(error.contains(&format!("train.saes[0].{key} has no meaning beside import")), "{error}");
    }
    assert!(error_of(&pipeline("import: ''")).contains("train.saes[0].import is empty"));
    assert!(error_of(&pipeline("import: ./a, kk: 3")).contains("kk"));
    assert!(parse(&pipeline("import: null, n_coarse: 512")).is_ok());
}

#[test]
fn only_a_model_has_more_hooks() {
    let error = error_of(&format!("{SYNTHETIC}harvest: {{also: [blocks.0.hook_mlp_out]}}"));
    assert!(error.contains("harvest.also needs source.model"), "{error}");
}

#[test]
fn the_schema_names_every_section() {
    let schema = json_schema();
    for section in ["source", "harvest", "train", "recover", "probe", "report"] {
        assert!(schema.contains(&format!("\"{section}\"")), "{section}");
    }
}

/// Writes files into a folder and loads the first of them.
fn load_files(files: &[(&str, &str)]) -> Result<Pipeline> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    load(&folder.path().join(files[0].0))
}

/// The error without the folder that the files lay in.
fn error_of_files(files: &[(&str, &str)]) -> String {
    let error = format!("{:#}", load_files(files).expect_err("expected an error"));
    let folder = error.split("/a.yaml").next().and_then(|start| start.rsplit(' ').next()).unwrap_or_default();
    error.replace(&format!("{folder}/"), "")
}

const BASE: &str = "source: {synthetic: {}}\nrecover: {n_shifts: 7, n_bootstrap: 30}\ntrain:\n  lr: 0.002\n  saes:\n    \
                    - {name: a, n_coarse: 8, n_fine: 8, k: 2, tree: {gate: 0.1, decay: 0.9}}\n    \
                    - {name: b, arch: topk, n_fine: 16, k: 2}\n";

#[test]
fn maps_are_merged_and_lists_and_values_replaced() {
    let variant = "extends: bases/b.yaml\nsource: {synthetic: {n_heldout: 5000}}\nrecover: {n_shifts: 9}\n";
    let top = "extends: mid.yaml\ntrain: {saes: [{name: c, arch: topk, n_fine: 4, k: 1}], batch_size: 128}\nprobe:\n";
    let pipeline = load_files(&[("a.yaml", top), ("mid.yaml", variant), ("bases/b.yaml", BASE)]).unwrap();
    // As if it had been written in one file.
    let merged = "source: {synthetic: {n_heldout: 5000}}\nrecover: {n_shifts: 9, n_bootstrap: 30}\ntrain:\n  lr: 0.002\n  \
                  batch_size: 128\n  saes: [{name: c, arch: topk, n_fine: 4, k: 1}]\n";
    assert_eq!(pipeline, parse(merged).unwrap());
}

#[test]
fn a_null_takes_a_value_back() {
    let merged = |variant: &str| {
        let variant = format!("extends: b.yaml\n{variant}\n");
        let base = format!("{BASE}  resident_mb: 7\nprobe: {{n_examples: 33, splice: {{n_contexts: 3}}}}\n");
        load_files(&[("a.yaml", &variant), ("b.yaml", &base)])
    };
    let as_is = merged("").unwrap();
    let check = |variant: &str, change: &dyn Fn(&mut Pipeline)| {
        let mut expected = as_is.clone();
        change(&mut expected);
        assert_eq!(merged(variant).unwrap(), expected, "{variant}");
    };
    let default = Pipeline::default();
    check("source: {synthetic: null, activations: {path: ./x}}", &|pipeline| {
        pipeline.source = Source { activations: Some(Activations { path: "./x".into() }), ..Source::default() };
    });
    check("source: {synthetic: {n_heldout: null}}", &|_| {});
    // Numbers, sections, and a section of which one key is said anew.
    check("train: {lr: null}", &|pipeline| pipeline.train.lr = default.train.lr);
    check("train: {lr: null, resident_mb: ~}\nseed: null", &|pipeline| {
        (pipeline.train.lr, pipeline.train.resident_mb) = (default.train.lr, default.train.resident_mb);
    });
    check("probe: null", &|pipeline| pipeline.probe = default.probe.clone());
    check("recover:", &|pipeline| pipeline.recover = default.recover.clone());
    // Within a list, which replaces another one.
    let sae = Sae { name: "c".into(), arch: Arch::Topk, n_fine: 4, k: 1, ..Sae::default() };
    check(
        "train: {saes: [{name: c, arch: topk, n_fine: 4, k: 1, refine_sweeps: null, tree: null, aux_k: {dead_after: null}}]}",
        &|pipeline| (pipeline.train.saes, pipeline.train.places) = (vec![sae.clone()], vec![0]),
    );
    // Null is a value of its own here, as it is in a file that extends nothing.
    check("probe: {splice: null}", &|pipeline| pipeline.probe.splice = None);
    check("harvest: {max_norm_multiple: null}", &|pipeline| pipeline.harvest.max_norm_multiple = None);
    let error = format!("{:#}", merged("train: {saes: null}").unwrap_err());
    assert!(error.contains("a.yaml: train.saes is empty"), "{error}");
    for unknown in ["train: {batchsize: null}", "train: {saes: [{name: c, batchsize: null}]}", "batchsize: null"] {
        let error = format!("{:#}", merged(unknown).unwrap_err());
        assert!(error.contains("a.yaml") && error.contains("unknown field `batchsize`"), "{error}");
    }
}

#[test]
fn a_null_reaches_through_all_files_below() {
    let middle = "extends: b.yaml\nrecover: null\ntrain: {lr: null}\n";
    let top = "extends: m.yaml\nrecover: {n_shifts: 9}\n";
    let pipeline = load_files(&[("a.yaml", top), ("m.yaml", middle), ("b.yaml", BASE)]).unwrap();
    assert_eq!(pipeline.recover, Recover { n_shifts: 9, ..Recover::default() });
    assert_eq!(pipeline.train.lr, Train::default().lr);
}

#[test]
fn a_null_without_a_file_below_is_refused_where_a_key_needs_a_value() {
    let error =
        error_of("source: {synthetic: {}}\ntrain:\n  lr: null\n  saes: [{name: a, arch: topk, n_fine: 9, k: 1}]\n");
    assert!(error.contains("lr") && error.contains("line 3"), "{error}");
}

#[test]
fn an_error_names_the_file_that_is_wrong() {
    let check = |top: &str, base: &str, expected: &str| {
        let error = error_of_files(&[("a.yaml", top), ("b.yaml", base)]);
        assert!(error.contains(expected), "{error}, expected {expected}");
    };
    let in_base = BASE.replace("n_bootstrap: 30", "n_bootstrap: 1");
    check("extends: b.yaml\n", &in_base, "b.yaml, which a.yaml extends: recover.n_bootstrap = 1");
    check("extends: b.yaml\nrecover: {n_bootstrap: 1}\n", BASE, "a.yaml: recover.n_bootstrap = 1");
    check("extends: b.yaml\nrecover: {n_shifts: 3}\n", &in_base, "b.yaml, which a.yaml extends: recover.n_bootstrap");
    // Lists are replaced whole, so their errors are of the file that has the last of them.
    let bad = "train: {saes: [{name: x, arch: topk, n_fine: 4, k: 5}]}\n";
    check(&format!("extends: b.yaml\n{bad}"), BASE, "a.yaml: train.saes[0].k = 5 exceeds");
    check(
        "extends: b.yaml\n",
        &format!("source: {{synthetic: {{}}}}\n{bad}"),
        "b.yaml, which a.yaml extends: train.saes",
    );
    check("extends: b.yaml\n", "source: {}\ntrain:\n  batchsize: 3\n", "b.yaml: train: unknown field `batchsize`");
    check("extends: b.yaml\n", "train:\n  batchsize: 3\n", "line 2");
    check("extends: c.yaml\n", BASE, "a.yaml: extends: c.yaml: cannot read");
    check("extends: ''\n", BASE, "a.yaml: extends is empty");
    check("extends: ./b.yaml\n", "extends: a.yaml\n", "extends itself: a.yaml → ./b.yaml → a.yaml");
    check("extends: a.yaml\n", BASE, "extends itself: a.yaml → a.yaml");
}

#[test]
fn seeds_and_budgets_make_an_sae_each() {
    let text = |train: &str| format!("source: {{synthetic: {{}}}}\ntrain:\n  {train}\n");
    let pipeline = parse(&text(
        "{seeds: [0, 3], ks: [2, 4], saes: [{name: a, arch: topk, n_fine: 9}, {name: b, arch: topk, n_fine: 9, k: 5}, \
         {name: c, arch: topk, n_fine: 9, seed: 7}, {name: d, import: ./d}]}",
    ))
    .unwrap();
    let saes = &pipeline.train.saes;
    let found: Vec<_> = saes.iter().map(|sae| (sae.name.as_str(), sae.family(), sae.k, sae.seed)).collect();
    let expected = [
        ("a-k2-s0", "a", 2, Some(0)),
        ("a-k2-s3", "a", 2, Some(3)),
        ("a-k4-s0", "a", 4, Some(0)),
        ("a-k4-s3", "a", 4, Some(3)),
        ("b-s0", "b", 5, Some(0)),
        ("b-s3", "b", 5, Some(3)),
        ("c-k2", "c", 2, Some(7)),
        ("c-k4", "c", 4, Some(7)),
        ("d", "d", 32, None),
    ];
    assert_eq!(found, expected);
    assert!(pipeline.train.seeds.is_empty() && pipeline.train.ks.is_empty());
    // Nothing of the lists is left in what keys are made from.
    let written = serde_json::to_string(&pipeline.train).unwrap();
    assert!(!written.contains("seeds") && !written.contains("ks\""), "{written}");
    // An SAE that is the same either way has the same key.
    let plain = parse(&text("{saes: [{name: d, import: ./d}]}")).unwrap();
    assert_eq!(serde_json::to_value(&plain.train.saes[0]).unwrap(), serde_json::to_value(&saes[8]).unwrap());
    assert!(!serde_json::to_string(&plain.train).unwrap().contains("family"));
}

#[test]
fn seeds_and_budgets_that_make_no_sense_are_refused_by_name() {
    let check = |train: &str, expected: &str| {
        let error = error_of(&format!("source: {{synthetic: {{}}}}\ntrain: {{{train}}}\n"));
        assert!(error.contains(expected), "{error}, expected {expected}");
    };
    let one = "saes: [{name: a, arch: topk, n_fine: 9}]";
    check(&format!("seeds: [1, 2, 1], {one}"), "train.seeds[2] = 1 is there already");
    check(&format!("ks: [1, 1], {one}"), "train.ks[1] = 1 is there already");
    check(&format!("ks: [0], {one}"), "train.ks[0] = 0 must be at least 1");
    // Of the second SAE of the file, whatever the first became.
    check(
        "seeds: [0, 1], saes: [{name: a, n_fine: 9, arch: topk, k: 1}, {name: b, n_fine: 9, arch: topk, k: 10}]",
        "train.saes[1].k = 10 exceeds",
    );
    check("ks: [4, 10], saes: [{name: a, n_fine: 9, arch: topk}]", "train.saes[0].k = 10 exceeds");
    check(
        "ks: [4], saes: [{name: a, n_coarse: 9, n_fine: 9, k_coarse: 2}]",
        "train.saes[0].k_coarse = 2 goes with a k",
    );
    check("ks: [4], saes: [{name: a, arch: vanilla, n_fine: 9, l1: 0.1}]", "train.saes[0].l1 = 0.1 goes with a k");
    check(
        "seeds: [0], saes: [{name: a, n_fine: 9, arch: topk, k: 1}, {name: a-s0, n_fine: 9, arch: topk, k: 1, seed: 0}]",
        "train.saes[1].name = a-s0 is taken",
    );
    check(
        "saes: [{name: a, family: 'x y', n_fine: 9, arch: topk, k: 1}]",
        "train.saes[0].family = `x y` must be letters",
    );
}

#[test]
fn a_pipeline_may_do_nothing_but_compare() {
    let pipeline = parse("report: {beside: [data/runs/1]}\n").unwrap();
    assert!(pipeline.only_compares());
    assert!(!parse(&format!("{SYNTHETIC}report: {{beside: [data/runs/1]}}\n")).unwrap().only_compares());
    let check = |report: &str, expected: &str| {
        let error = error_of(&format!("{SYNTHETIC}report: {{{report}}}\n"));
        assert!(error.contains(expected), "{error}, expected {expected}");
    };
    check("beside: ['']", "report.beside[0] is empty");
    check("beside: [a/1, b/1]", "report.beside[1] = b/1 ends as report.beside[0]");
    check("beside: [..]", "report.beside[0] = .. has no name");
    check("reference: ''", "report.reference is empty");
    assert!(error_of("report: {beside: []}\n").contains("source needs exactly one"));
}

#[test]
fn a_model_that_is_trained_here_is_checked_before_it_is_trained() {
    let pipeline = |model: &str, rest: &str| {
        format!(
            "source: {{model: {{{model}}}}}\nharvest: {{hook: blocks.1.hook_resid_post, context_length: 64}}\n\
             train: {{saes: [{{name: a, arch: topk, n_fine: 64}}]}}\n{rest}\n"
        )
    };
    let defaults = parse(&pipeline("name: pretrained", "")).unwrap();
    assert_eq!(defaults.pretrained().map(|pretrain| pretrain.d_model), Some(384));
    let own = parse(&pipeline("name: pretrained", "pretrain: {n_layers: 2, sample: {n_tokens: 0}}")).unwrap();
    assert_eq!(own.pretrained().map(|pretrain| pretrain.n_layers), Some(2));
    assert_eq!(parse(&pipeline("name: ./model", "")).unwrap().pretrained(), None);
    assert_refused(
        |keys| pipeline("name: pretrained", &format!("pretrain: {{{keys}}}")),
        &[
            ("n_heads: 5", "pretrain.d_model = 384 does not divide into n_heads = 5"),
            ("n_heads: 0", "pretrain.n_heads = 0 must be at least 1"),
            ("context_length: 32", "harvest.context_length = 64 exceeds pretrain.context_length = 32"),
            ("n_layers: 1", "harvest reads blocks.1.hook_resid_post, but pretrain.n_layers = 1"),
            ("dropout: 1.0", "pretrain.dropout = 1 must lie in [0, 1)"),
            ("dropout: .nan", "pretrain.dropout = NaN"),
            ("lr: 1e-5", "pretrain.lr_min = 0.0001 exceeds lr = 0.00001"),
            ("warmup_steps: 5000", "pretrain.warmup_steps = 5000 leaves none of n_steps = 5000"),
            ("validation_fraction: 0.0", "pretrain.validation_fraction = 0 must lie between 0 and 1"),
            ("eval_every: 0", "pretrain.eval_every = 0"),
            ("sample: {temperature: 0.0}", "pretrain.sample.temperature = 0 must be a positive number"),
            ("sample: {prompt: ''}", "pretrain.sample.prompt is empty"),
            ("n_layer: 3", "n_layer"),
        ],
    );
    assert_refused(
        |model| pipeline(model, "pretrain: {n_layers: 2}"),
        &[
            ("name: ./model", "pretrain has no meaning with source.model.name = ./model"),
            ("name: pretrained, revision: abc", "source.model.revision has no meaning with name: pretrained"),
        ],
    );
    for twice in [
        "{from: wordnet}, {from: wordnet, n_tokens: 5, column: body}",
        "{from: file, path: a.txt}, {from: file, path: ./a.txt}",
        "{from: file, path: a.jsonl, column: body}, {from: wordnet}, {from: file, path: a.jsonl, column: body}",
    ] {
        let error = error_of(&pipeline(&format!("name: pretrained, texts: [{twice}]"), ""));
        assert!(error.contains("is source.model.texts[0] once more"), "{error}");
    }
    let columns = "{from: file, path: a.jsonl, column: question}, {from: file, path: a.jsonl, column: answer}";
    parse(&pipeline(&format!("name: pretrained, texts: [{columns}]"), "")).unwrap();
    let error = error_of(&pipeline("name: pretrained, texts: [{from: text8, bytes_per_document: 5}]", ""));
    assert!(error.contains("source.model.texts[0].bytes_per_document = 5 must be at least 100"), "{error}");
}
