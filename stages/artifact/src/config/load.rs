//! Reads `pipeline.yaml`. The only file that knows serde_yaml.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Pipeline, Sae};

/// Reads, parses and validates a pipeline.
///
/// Errors: the file cannot be read, is no YAML of the expected shape (key, line and column are named), or a value makes
/// no sense (the key and the reason are named).
pub fn load(path: &Path) -> Result<Pipeline> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot read the pipeline (give one with --config)", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// The JSON Schema of `pipeline.yaml`, for editors.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(Pipeline);
    serde_json::to_string_pretty(&schema).expect("a schema is plain JSON")
}

fn parse(text: &str) -> Result<Pipeline> {
    // A section whose keys are all commented out parses as null; it means the section's defaults, as a missing one does.
    let mut document: serde_yaml::Value = serde_yaml::from_str(text)?;
    let Some(sections) = document.as_mapping_mut() else {
        bail!("expected sections such as `source:` and `train:`, found {}", kind(&document));
    };
    refuse_beside_import(sections)?;
    let has_null = sections.values().any(serde_yaml::Value::is_null);
    let pipeline: Pipeline = if has_null {
        sections.retain(|_, value| !value.is_null());
        serde_yaml::from_value(document)?
    } else {
        // Parsed from the text and not from the value, since only then does an error know its line and column.
        serde_yaml::from_str(text)?
    };
    pipeline.validate()?;
    Ok(pipeline)
}

/// A finished SAE has no training to configure. Only the file tells a key that was set from one that was left out.
fn refuse_beside_import(sections: &serde_yaml::Mapping) -> Result<()> {
    let saes = sections.get("train").and_then(|train| train.get("saes")).and_then(serde_yaml::Value::as_sequence);
    for (i, sae) in saes.into_iter().flatten().enumerate() {
        let Some(sae) = sae.as_mapping().filter(|sae| sae.get("import").is_some_and(|import| !import.is_null())) else {
            continue;
        };
        for key in sae.keys().filter_map(serde_yaml::Value::as_str) {
            ensure!(
                Sae::BESIDE_IMPORT.contains(&key),
                "train.saes[{i}].{key} has no meaning beside import: that SAE is finished"
            );
        }
    }
    Ok(())
}

fn kind(value: &serde_yaml::Value) -> &'static str {
    match value {
        serde_yaml::Value::Null => "an empty file",
        serde_yaml::Value::Sequence(_) => "a list",
        _ => "a single value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        format!("{:#}", parse(text).expect_err("expected an error"))
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
        let error =
            error_of("source: {synthetic: {}}\ntrain: {saes: [{name: a, n_coarse: 32, k: 80, k_coarse: 64}]}\n");
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
        for (keys, expected) in [
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
        ] {
            let error = error_of(&pipeline(keys));
            assert!(error.contains(expected), "{keys}: {error}");
        }
        let error = error_of("source: {synthetic: {}}\ntrain: {saes: [{name: a, arch: topk, tree_sae: {}}]}\n");
        assert!(error.contains("train.saes[0].tree_sae belongs to arch tree-sae, not Topk"), "{error}");
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
        for (keys, expected) in [
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
        ] {
            let error = error_of(&pipeline(keys));
            assert!(error.contains(expected), "{keys}: {error}");
        }
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
    fn the_schema_names_every_section() {
        let schema = json_schema();
        for section in ["source", "harvest", "train", "recover", "probe", "report"] {
            assert!(schema.contains(&format!("\"{section}\"")), "{section}");
        }
    }
}
