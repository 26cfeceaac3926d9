//! One SAE through the whole of this stage, against naive versions.

use std::fs::File;

use artifact::config::{ActivationDtype, Recover, Sae};
use artifact::tables::Edge;
use artifact::tables::activations::PartWriter;
use hsae::{Mode, Rule, Rules, Threshold, TrainedSae, View};

use crate::documents::Documents;
use crate::evaluate::Setting;
use crate::heldout::Heldout;
use crate::planted;
use crate::rows::Tables;
use crate::truth::Truth;
use crate::truth::tests::forest_truth;

const FLAT: Mode = Mode { view: View::Flat, threshold: Threshold::Native };
const N_PARENTS: usize = 6;
/// A latent without parent or child.
const LONE: usize = 29;
const DOC_LENGTH: usize = 25;

/// The perfect SAE of the planted forest: its own tree is the planted one, its coarse latents are the parents.
pub(crate) fn perfect_sae(truth: &Truth) -> TrainedSae {
    let n = truth.n_features();
    TrainedSae {
        packed: hsae::Packed::default(),
        magnitude: None,
        config: Sae { name: "perfect".into(), n_coarse: N_PARENTS, n_fine: n - N_PARENTS, ..Sae::default() },
        seed: 3,
        d_model: n,
        d_sae: n,
        n_coarse: N_PARENTS,
        w_enc: truth.directions.clone(),
        b_enc: vec![0.0; n],
        w_dec: truth.directions.clone(),
        b_dec: vec![0.0; n],
        parent: truth.parent.iter().map(|parent| parent.map(|parent| parent as u32)).collect(),
        gate: hsae::TreeGate::Soft(0.1),
        rules: Rules {
            flat_native: Rule::Positive,
            flat_prior: Rule::Positive,
            gated_native: Rule::Positive,
            gated_prior: Rule::Positive,
            flat_refined: None,
            gated_refined: None,
        },
    }
}

fn heldout(folder: &tempfile::TempDir, gates: &planted::Dense) -> Heldout {
    let path = folder.path().join("part-00000.parquet");
    let (n, d) = (gates.len(), gates[0].len());
    let mut writer = PartWriter::new(File::create(&path).unwrap(), d, ActivationDtype::F32).unwrap();
    writer.write(&planted::doc_ids(n, DOC_LENGTH), &vec![1; n], &vec![0; n], &gates.concat()).unwrap();
    writer.finish().unwrap();
    Heldout::of_parts(vec![path]).unwrap()
}

fn tables(n_threads: usize, mode: Mode) -> (Tables, planted::Dense) {
    let (truth, gates) = forest_truth(6000, 11);
    (tables_of(truth, &gates, n_threads, mode), gates)
}

fn tables_of(truth: Truth, gates: &planted::Dense, n_threads: usize, mode: Mode) -> Tables {
    let folder = tempfile::tempdir().unwrap();
    let heldout = heldout(&folder, gates);
    let sae = perfect_sae(&truth);
    let config = Recover { n_bootstrap: 20, n_shifts: 10, ..Recover::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    pool.install(|| Setting::new(&config, 0, heldout, Some(truth), None).unwrap().measure(&sae, &[mode]).unwrap())
}

fn value(tables: &Tables, metric: &str, level: &str) -> f64 {
    let found = tables.metrics.iter().find(|row| row.metric == metric && row.level == level);
    found.unwrap_or_else(|| panic!("no {metric} {level}")).value
}

fn check(tables: &Tables, metric: &str, level: &str, expected: f64) {
    let found = value(tables, metric, level);
    assert!((found - expected).abs() <= 1e-6, "{metric} {level}: {found}, expected {expected}");
}

#[test]
fn a_perfect_sae_is_found_to_be_perfect() {
    let (tables, _) = tables(2, FLAT);
    for metric in ["ev", "f1", "mcc", "mmcs", "uniqueness", "distinct_features", "norm_ratio", "shrinkage"] {
        check(&tables, metric, "all", 1.0);
    }
    for metric in ["edge_f1", "edge_f1_posthoc", "edge_f1_eligible"] {
        check(&tables, metric, "all", 1.0);
    }
    // Half of the rows choose the threshold, so a few weak firings of the other half lie below it.
    assert!(value(&tables, "f1_oracle", "all") >= 0.98 && value(&tables, "precision_oracle", "all") >= 1.0 - 1e-9);
    for metric in ["fvu", "dead", "absorption", "hedging", "hedging_children"] {
        check(&tables, metric, "all", 0.0);
    }
    check(&tables, "edge_f1_permuted", "all", 0.0);
    assert!(value(&tables, "independent_pairs_within_null", "all") >= 12.0 / 15.0);
    let trees: Vec<&str> = tables.summary.iter().map(|tree| tree["tree"].as_str().unwrap()).collect();
    assert_eq!(trees, ["own", "posthoc", "rate-matched", "cosine", "permuted"]);
    let own = &tables.summary[0];
    assert_eq!((&own["n_edges"], &own["n_measured"]), (&18.into(), &18.into()));
    assert_eq!(own["p_parent_given_child"]["value"], 1.0);
    assert_eq!(own["significant"]["value"], 1.0);
    assert!(tables.summary[4]["significant"]["value"].as_f64().unwrap() < 0.3);
    assert!(tables.metrics.iter().all(|row| row.seed == 3 && row.value.is_finite()));
}

#[test]
fn pre_activations_are_those_that_are_encoded() {
    let (truth, gates) = forest_truth(50, 13);
    let mut sae = perfect_sae(&truth);
    sae.b_dec.iter_mut().enumerate().for_each(|(j, b)| *b = 0.1 * j as f32 - 1.0);
    sae.b_enc.iter_mut().enumerate().for_each(|(j, b)| *b = 0.3 - 0.02 * j as f32);
    let x = gates.concat();
    let (acts, latents) = (sae.encode(&x, FLAT), 4..21);
    let pre_acts = sae.pre_acts(&x, latents.clone());
    assert_eq!(pre_acts.len(), latents.len() * gates.len());
    for (i, latent) in latents.enumerate() {
        for row in 0..gates.len() {
            let (idx, vals) = acts.row(row);
            let act = idx.iter().position(|&j| j as usize == latent).map_or(0.0, |place| vals[place]);
            let pre_act = pre_acts[i * gates.len() + row];
            assert!((pre_act.max(0.0) - act).abs() <= 1e-5, "latent {latent}, row {row}: {pre_act}, {act}");
        }
    }
}

#[test]
fn reconstruction_agrees_with_a_naive_version() {
    let (tables, gates) = tables(2, FLAT);
    let (n, d) = (gates.len() as f64, gates[0].len());
    let mean: Vec<f64> = (0..d).map(|j| gates.iter().map(|row| f64::from(row[j])).sum::<f64>() / n).collect();
    let (mut error, mut variation, mut n_active) = (0.0, 0.0, [0.0; 2]);
    for row in &gates {
        for (j, &x) in row.iter().enumerate() {
            variation += (f64::from(x) - mean[j]).powi(2);
            if j >= N_PARENTS {
                error += f64::from(x).powi(2);
            }
            n_active[usize::from(j >= N_PARENTS)] += f64::from(u8::from(x > 0.0)) / n;
        }
    }
    check(&tables, "fvu", "coarse", error / variation);
    check(&tables, "l0", "coarse", n_active[0]);
    check(&tables, "l0", "fine", n_active[1]);
    check(&tables, "l0", "all", n_active[0] + n_active[1]);
    for latent in &tables.latents {
        let column: Vec<f32> = gates.iter().map(|row| row[latent.latent as usize]).filter(|x| *x > 0.0).collect();
        assert_eq!(latent.n_firings, column.len() as u64);
        let mean = column.iter().map(|&x| f64::from(x)).sum::<f64>() / column.len() as f64;
        assert!((latent.mean_activation - mean).abs() <= 1e-6);
    }
    let n_latents =
        |level: &str| tables.density.iter().filter(|bin| bin.level == level).map(|bin| bin.n_latents).sum::<u64>();
    assert_eq!([n_latents("all"), n_latents("coarse"), n_latents("fine")], [30, 6, 24]);
    let interval = tables.metrics.iter().find(|row| row.metric == "fvu" && row.level == "coarse").unwrap();
    assert!(interval.ci_low.unwrap() < interval.value && interval.value < interval.ci_high.unwrap());
}

/// On the measuring half every child fires only without its parent: the edges that the choosing half gives must then
/// measure as exclusions.
#[test]
fn edges_are_chosen_on_one_half_and_measured_on_the_other() {
    let (truth, mut gates) = forest_truth(6000, 12);
    let documents = Documents::new(&planted::doc_ids(6000, DOC_LENGTH)).unwrap();
    let [_, measuring] = documents.halves(0).unwrap();
    let rows: Vec<usize> = measuring.iter().flat_map(|&doc| documents.rows(doc)).collect();
    for row in &rows {
        let row = &mut gates[*row];
        for child in N_PARENTS..4 * N_PARENTS {
            let parent = (child - N_PARENTS) / 3;
            row[child] = if row[parent] > 0.0 { 0.0 } else { row[LONE] };
        }
    }
    let tables = tables_of(truth, &gates, 2, FLAT);
    let posthoc: Vec<&Edge> = tables.edges.iter().filter(|edge| edge.tree == "posthoc").collect();
    assert_eq!(posthoc.len(), 18);
    for edge in posthoc {
        assert_eq!((edge.n, edge.n11, edge.p_parent_given_child), (rows.len() as u64, 0, 0.0));
        assert!(edge.n_child > 20 && edge.log_odds < 0.0, "{edge:?}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mode = Mode { view: View::Gated, threshold: Threshold::Prior };
    let ((one, _), (three, _)) = (tables(1, mode), tables(3, mode));
    assert!(one.edges == three.edges && one.metrics == three.metrics && one.trees == three.trees);
    assert!(one.summary == three.summary && one.latents == three.latents && one.density == three.density);
    assert!(!one.edges.is_empty());
}
