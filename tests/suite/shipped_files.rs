//! Files that ship with the code and must agree with it.

use artifact::config;
use pipeline_tests::{files_below, repository};

#[test]
fn the_schema_for_editors_is_up_to_date() {
    let path = repository().join("pipeline.schema.json");
    let shipped = std::fs::read_to_string(path).unwrap();
    assert!(
        shipped.trim_end() == config::json_schema().trim_end(),
        "run `cargo run --release --example schema > pipeline.schema.json`"
    );
}

#[test]
fn every_shipped_pipeline_is_valid_and_points_editors_to_the_schema() {
    let mut pipelines = vec![repository().join("pipeline.yaml")];
    pipelines.extend(files_below(&repository().join("configs")));
    assert!(pipelines.len() >= 4, "{pipelines:?}");
    for path in pipelines {
        // What others extend need not be a pipeline by itself, and is read with them.
        if !path.ends_with("base.yaml") {
            config::load(&path).unwrap_or_else(|error| panic!("{error:#}"));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let schema = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=").unwrap();
        assert!(path.parent().unwrap().join(schema).exists(), "{}: {schema}", path.display());
    }
}
