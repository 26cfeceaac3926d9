//! What was planted is found: configs/synthetic.yaml, as shipped.

use artifact::tables::{Metric, read_rows};
use pipeline_tests::Run;

#[test]
fn hiersae_finds_the_planted_features_and_their_tree() {
    let run = Run::of("synthetic.yaml");
    for stage in ["fetch", "harvest", "train", "recover"] {
        run.expect(stage, &[]);
    }
    let metrics: Vec<Metric> = read_rows(&run.folder.join("recover/recovery.parquet")).unwrap();
    for metric in ["f1", "edge_f1"] {
        let of_hiersae =
            metrics.iter().filter(|row| row.sae == "hiersae" && row.metric == metric && row.level == "all");
        let found: Vec<_> = of_hiersae.map(|row| (row.view.as_str(), row.threshold.as_str(), row.value)).collect();
        let gated = found.iter().filter(|(view, _, _)| *view == "gated").map(|(_, _, value)| *value);
        let best = gated.fold(f64::NAN, f64::max);
        assert!(best >= 0.9, "{metric}: {found:?}");
    }
}
