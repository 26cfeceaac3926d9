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
    let value = |view: &str, threshold: &str, metric: &str| {
        let of_hiersae =
            metrics.iter().filter(|row| row.sae == "hiersae" && row.metric == metric && row.level == "all");
        let mut of_mode = of_hiersae.filter(|row| row.view == view && row.threshold == threshold);
        of_mode.next().map_or(f64::NAN, |row| row.value)
    };
    for view in ["flat", "gated"] {
        for threshold in ["native", "prior"] {
            let check = |metric: &str, least: f64| {
                let value = value(view, threshold, metric);
                assert!(value >= least, "{metric} of hiersae, {view}, {threshold}: {value} is below {least}");
            };
            check("f1", 0.9);
            check("edge_f1", 0.9);
            // The null itself leaves 2.5 % of independent pairs outside; 120 pairs, give or take.
            check("independent_pairs_within_null", 0.9);
        }
    }
}
