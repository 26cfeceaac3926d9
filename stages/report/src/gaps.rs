//! What was not measured, told from what is missing: every line is derived from the artifacts and the pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use artifact::config::{Arch, Sae, Source};

use crate::figures::{Figures, Mode, Name};
use crate::inputs::Run;
use crate::measures::{Format, TREES};

/// An L0 this far from the wanted one, relative to it, makes a comparison unfair.
pub(crate) const L0_TOLERANCE: f64 = 0.05;

/// Groups of metrics of which a full comparison has at least one each, and what a missing group means.
const EXPECTED: [(&[&str], &str); 8] = [
    (&["f1", "mcc"], "feature F1 and MCC: they need planted features (`source: synthetic`)"),
    (&["edge_f1"], "edge F1: it needs a planted tree (`source: synthetic`)"),
    (&["absorption"], "true absorption: it needs a planted tree (`source: synthetic`)"),
    (
        &["ce_recovered"],
        "cross-entropy recovered and KL: they need a language model (`source: model`) and `probe.splice`",
    ),
    (&["probe_accuracy"], "probes of WordNet classes and sentiment: they need a language model (`source: model`)"),
    (&["first_letter_absorption"], "absorption on first-letter spelling: no stage measures it yet"),
    (&["tpp", "scr"], "targeted perturbation and spurious-correlation removal: no stage measures them yet"),
    (&["seed_mcc", "mcc_between_seeds"], "agreement of latents between training seeds: no stage measures it yet"),
];

/// A kind of SAE, and what tells it apart in a pipeline.
type Baseline = (&'static str, fn(&Sae) -> bool);

/// Baselines that a full comparison carries (science.md §5).
const BASELINES: [Baseline; 7] = [
    ("vanilla ReLU-L1", |sae| sae.arch == Arch::Vanilla),
    ("TopK", |sae| sae.arch == Arch::Topk),
    ("BatchTopK", |sae| sae.arch == Arch::Batchtopk),
    ("JumpReLU", |sae| sae.arch == Arch::Jumprelu),
    ("Gated", |sae| sae.arch == Arch::Gated),
    ("Matryoshka with fixed prefixes", |sae| sae.arch == Arch::Matryoshka && !has_random_prefixes(sae)),
    ("Matryoshka with random prefixes", |sae| sae.arch == Arch::Matryoshka && has_random_prefixes(sae)),
];

/// Sentences, the gravest first.
pub(crate) fn find(run: &Run, figures: &Figures) -> Vec<String> {
    let mut gaps = unmatched_l0(run, figures);
    gaps.extend(missing_modes(run, figures));
    gaps.extend(missing_metrics(figures));
    gaps.extend(missing_probes(run, figures));
    gaps.extend(missing_trees(run, figures));
    gaps.extend(missing_intervals(figures));
    gaps.extend(one_seed(run));
    gaps.extend(one_budget(run));
    gaps.extend(missing_baselines(run));
    gaps
}

/// Whether the mode's L0 is more than [`L0_TOLERANCE`] from the wanted one, and by how much.
pub(crate) fn l0_miss(run: &Run, figures: &Figures, mode: &Mode) -> Option<f64> {
    let wanted = run.sae(&mode.sae)?.config.k as f64;
    let miss = figures.value(mode, "l0", "all")? / wanted - 1.0;
    (miss.abs() > L0_TOLERANCE).then_some(miss)
}

fn unmatched_l0(run: &Run, figures: &Figures) -> Vec<String> {
    let sentence = |mode: &Mode| {
        let miss = l0_miss(run, figures, mode)?;
        let (l0, wanted) = (Format::Tenths.write(figures.value(mode, "l0", "all")?), run.sae(&mode.sae)?.config.k);
        let Mode { sae, view, threshold, .. } = mode;
        Some(format!(
            "{sae} ({view}, {threshold}) at the wanted budget: its L0 is {l0} instead of {wanted} ({} %), so it \
             is marked † and competes for no best value",
            format!("{:+.0}", 100.0 * miss).replace('-', "−")
        ))
    };
    figures.modes.iter().filter_map(sentence).collect()
}

fn missing_modes(run: &Run, figures: &Figures) -> Vec<String> {
    let mut gaps = Vec::new();
    for sae in &run.saes {
        let name = &sae.config.name;
        let views = if sae.config.has_own_tree() { vec!["flat", "gated"] } else { vec!["flat"] };
        for view in views {
            // A matching pursuit has no thresholds to set.
            let is_pursuit = sae.config.arch == Arch::MatchingPursuit;
            for threshold in if is_pursuit { &["native"][..] } else { &["native", "prior"] } {
                let mut modes = figures.modes.iter();
                if !modes.any(|mode| mode.sae == *name && mode.view == view && mode.threshold == *threshold) {
                    gaps.push(format!("{name} read {view} with its {threshold} threshold: no rows in the artifacts"));
                }
            }
        }
    }
    gaps
}

fn missing_metrics(figures: &Figures) -> Vec<String> {
    let found: BTreeSet<&str> = figures.all.iter().map(|figure| figure.metric.as_str()).collect();
    let missing = EXPECTED.iter().filter(|(metrics, _)| metrics.iter().all(|metric| !found.contains(metric)));
    missing.map(|(_, sentence)| (*sentence).to_owned()).collect()
}

/// Tasks and numbers of latents that the pipeline asks for. Without any probe row the missing metric has been told.
fn missing_probes(run: &Run, figures: &Figures) -> Vec<String> {
    let rows: Vec<_> = figures.all.iter().filter(|figure| figure.metric == "probe_accuracy").collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let mut gaps = Vec::new();
    for task in &run.pipeline.probe.tasks {
        let task = serde_json::to_value(task).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let of_task: Vec<_> = rows.iter().filter(|figure| figure.task.as_deref() == Some(task.as_str())).collect();
        if of_task.is_empty() {
            gaps.push(format!("probe task {task}: no rows in probe/probes.parquet"));
            continue;
        }
        for &k in &run.pipeline.probe.ks {
            if !of_task.iter().any(|figure| figure.k == Some(k as u64)) {
                gaps.push(format!("probe task {task} with {k} latents: no rows in probe/probes.parquet"));
            }
        }
    }
    gaps
}

fn missing_trees(run: &Run, figures: &Figures) -> Vec<String> {
    let mut gaps = Vec::new();
    for (tree, title) in TREES {
        let lacking: BTreeSet<&str> = figures
            .modes
            .iter()
            .filter(|mode| figures.get(mode, &Name::new("tree_n_measured", "all").tree(tree)).is_none())
            .filter(|mode| tree != "own" || run.sae(&mode.sae).is_some_and(|sae| sae.config.has_own_tree()))
            .map(|mode| mode.sae.as_str())
            .collect();
        if !lacking.is_empty() {
            let names: Vec<_> = lacking.into_iter().collect();
            gaps.push(format!("the {title} tree of {}, in one mode at least: it has no edges", names.join(", ")));
        }
    }
    gaps
}

fn missing_intervals(figures: &Figures) -> Option<String> {
    let without = figures.all.iter().filter(|figure| figure.ci_low.is_none() || figure.ci_high.is_none());
    let names: BTreeSet<String> = without
        .filter(|figure| !figure.name().is_count() && !figure.name().is_of_other_tree())
        .map(|figure| format!("`{}`", figure.metric))
        .collect();
    let names: Vec<_> = names.into_iter().collect();
    (!names.is_empty())
        .then(|| format!("intervals of {}: the artifacts hold none for some or all of them", names.join(", ")))
}

fn one_seed(run: &Run) -> Option<String> {
    let mut seeds: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for sae in trained(run) {
        let seed = sae.seed.unwrap_or(run.pipeline.seed);
        let recipe = Sae { name: String::new(), family: None, seed: None, ..sae.clone() };
        seeds.entry(format!("{recipe:?}")).or_default().insert(seed);
    }
    let fewest = seeds.values().map(BTreeSet::len).min()?;
    (fewest < 3).then(|| {
        format!(
            "variation between training seeds: an SAE was trained on {fewest} seed{}, so intervals cover the choice of \
             held-out documents and not the luck of training (three seeds are the least for a claim)",
            if fewest == 1 { "" } else { "s" }
        )
    })
}

fn one_budget(run: &Run) -> Option<String> {
    let budgets: BTreeSet<usize> = trained(run).map(|sae| sae.k).collect();
    let k = budgets.first().filter(|_| budgets.len() == 1)?;
    Some(format!("other budgets than k = {k}: one point of the EV–L0 curve, not the curve"))
}

fn missing_baselines(run: &Run) -> Option<String> {
    let missing: Vec<_> =
        BASELINES.iter().filter(|(_, is)| !run.saes.iter().any(|sae| is(&sae.config))).map(|(name, _)| *name).collect();
    (!missing.is_empty())
        .then(|| format!("baselines that a full comparison carries: {} are not among the SAEs", missing.join(", ")))
}

/// Not the imported ones, whose seed and budget were others' to choose.
fn trained(run: &Run) -> impl Iterator<Item = &Sae> {
    run.saes.iter().map(|sae| &sae.config).filter(|sae| sae.import.is_none())
}

fn has_random_prefixes(sae: &Sae) -> bool {
    sae.prefixes().is_some_and(|prefixes| prefixes.n_random > 0)
}

/// What the run's activations are, in words. Of a path only the file name: where it lies is nobody's business but the
/// user's.
pub(crate) fn source_in_words(source: &Source) -> String {
    match source {
        // A hub id has a slash too, and is shown whole.
        Source { model: Some(model), .. } if model.name.starts_with(['.', '/', '~']) => {
            file_name(Path::new(&model.name))
        }
        Source { model: Some(model), .. } => model.name.clone(),
        Source { synthetic: Some(synthetic), .. } => {
            let recipe = synthetic.recipe();
            format!("{} planted features in {} dimensions", recipe.n_features, recipe.d_model)
        }
        Source { activations: Some(activations), .. } => format!("activations from {}", file_name(&activations.path)),
        _ => "no source".into(),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or("a local folder".into(), |name| name.to_string_lossy().into_owned())
}
