//! Reads `pipeline.yaml`. The only file that knows serde_yaml.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Pipeline;

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
    fn the_schema_names_every_section() {
        let schema = json_schema();
        for section in ["source", "harvest", "train", "recover", "probe", "report"] {
            assert!(schema.contains(&format!("\"{section}\"")), "{section}");
        }
    }
}
