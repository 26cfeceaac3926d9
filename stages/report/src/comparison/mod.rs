//! Families of SAEs against each other, over seeds and budgets, of this run and of those beside it.

mod page;
mod plots;
mod statistics;
#[cfg(test)]
mod tests;
mod training;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use artifact::config::Sae;
use artifact::tables::Metric;
use serde::Serialize;

use crate::figures::Name;
use crate::gaps::L0_TOLERANCE;
pub(crate) use page::render;
pub(crate) use plots::draw;
use statistics::{Difference, Estimate};
pub(crate) use training::Training;

/// What differences are tested for, each with Holm's correction over all that is compared.
const HEADLINES: [&str; 8] =
    ["f1", "mcc", "edge_f1", "absorption", "tree_mi_over_nested", "wordnet_hierarchy", "ev", "ce_recovered"];
/// What `recover` measures of several trees of an SAE, and what is there wherever the post-hoc one is not the first.
const OF_TREES: [(&str, &str); 2] =
    [("edge_f1", "edge_f1_posthoc"), ("wordnet_hierarchy", "wordnet_hierarchy_n_posthoc")];

/// One run, as far as it is compared.
pub(crate) struct Contender {
    /// None for the run that the report is about.
    pub(crate) run: Option<String>,
    /// Digest of its harvest: figures of other activations do not compare.
    pub(crate) data: String,
    pub(crate) saes: Vec<(Sae, Training)>,
    pub(crate) metrics: Vec<Metric>,
    /// Whether cross-entropies are left out of these, being of other contexts than those of the runs before it.
    pub(crate) is_spliced_elsewhere: bool,
}

/// `results.json` has it whole.
#[derive(Serialize)]
pub(crate) struct Comparison {
    /// In the order of runs, their SAEs, k, flat before gated, native before prior.
    pub(crate) groups: Vec<Group>,
    pub(crate) differences: Vec<GroupDifference>,
}

/// A family with one k, read in one way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Group {
    /// As it is told apart: `NAME`, or `RUN/NAME` where several runs have it.
    pub(crate) family: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// Its name in its own run.
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    data: String,
    /// The wanted L0.
    pub(crate) k: usize,
    pub(crate) view: String,
    pub(crate) threshold: String,
    /// How its SAEs were trained: alike, as a rule.
    trainings: BTreeSet<Training>,
    /// Why it does not compare with the reference, where there is one of its k and threshold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unlike_reference: Vec<String>,
    /// Whether the L0 of one of its seeds is more than 5 % from k.
    pub(crate) l0_is_off: bool,
    /// SAE by SAE, in order of their seeds.
    pub(crate) seeds: Vec<u64>,
    saes: Vec<String>,
    pub(crate) figures: Vec<GroupFigure>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct GroupFigure {
    metric: String,
    level: String,
    #[serde(flatten)]
    pub(crate) estimate: Estimate,
    /// By the group's seeds; null where a seed has none.
    values: Vec<Option<f64>>,
}

/// A group less the reference in one metric, over the seeds that both have.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GroupDifference {
    pub(crate) family: String,
    pub(crate) k: usize,
    pub(crate) view: String,
    pub(crate) threshold: String,
    pub(crate) metric: String,
    /// The reference, read flat.
    pub(crate) reference: String,
    #[serde(flatten)]
    pub(crate) difference: Difference,
    /// p with Holm's correction over all groups that are compared in this metric, with this k and threshold.
    pub(crate) p_holm: Option<f64>,
}

/// `None` where there is nothing to compare over: one run, in which no family has several seeds or budgets, and no
/// reference.
///
/// Errors: no family is called as the reference, unless runs are missing that may have it; two SAEs of a family agree in
/// seed and k; a figure is NaN or infinite.
pub(crate) fn compare(
    contenders: &[Contender],
    reference: Option<&str>,
    are_all_there: bool,
) -> Result<Option<Comparison>> {
    let mut groups = groups(contenders)?;
    let families: BTreeSet<_> = groups.iter().map(|group| (&group.family, group.k)).collect();
    let names: BTreeSet<_> = groups.iter().map(|group| &group.family).collect();
    let has_several = families.len() > names.len() || groups.iter().any(|group| group.seeds.len() > 1);
    if !has_several && contenders.len() < 2 && reference.is_none() {
        return Ok(None);
    }
    if let Some(reference) = reference
        && are_all_there
        && !groups.iter().any(|group| group.is_called(reference))
    {
        let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
        bail!("report.reference = {reference}: no family is called so; there are {}", names.join(", "));
    }
    let differences = reference.map_or(Vec::new(), |reference| differences(&mut groups, reference));
    Ok(Some(Comparison { groups, differences }))
}

impl Comparison {
    /// Every k and threshold, as tables and pictures are split.
    pub(crate) fn settings(&self) -> BTreeSet<(usize, String)> {
        self.groups.iter().map(|group| (group.k, group.threshold.clone())).collect()
    }

    /// What a reader should know that the tables do not show.
    pub(crate) fn gaps(&self, reference: Option<&str>) -> Vec<String> {
        let mut gaps = Vec::new();
        let families = |is: &dyn Fn(&Group) -> bool| {
            let names: BTreeSet<_> =
                self.groups.iter().filter(|group| is(group)).map(|group| group.family.as_str()).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        let one = families(&|group| group.seeds.len() == 1);
        if !one.is_empty() {
            gaps.push(format!(
                "variation between seeds of {one}: trained on one seed only, so that no row has an interval"
            ));
        }
        let two = families(&|group| group.seeds.len() == 2);
        if !two.is_empty() {
            gaps.push(format!("a third seed of {two}: two make intervals so wide that they say little"));
        }
        let data: BTreeSet<_> = self.groups.iter().map(|group| &group.data).collect();
        if data.len() > 1 {
            let first = self.groups.first().map_or("", |group| group.data.as_str());
            let others = families(&|group| group.data != first);
            gaps.push(format!(
                "all families on the same activations: those of {others} are other ones than the first family's, so that \
                 their rows do not compare with its"
            ));
        }
        if let Some(reference) = reference {
            if !self.groups.iter().any(|group| group.is_called(reference)) {
                gaps.push(format!("differences from {reference}: no run that is there has a family of that name"));
                return gaps;
            }
            let is_compared = |group: &Group| self.differences.iter().any(|difference| difference.is_of(group));
            let alone = families(&|group| !is_compared(group) && !group.is_called(reference));
            if !alone.is_empty() {
                gaps.push(format!(
                    "differences of {alone} from the reference, in one mode at least: no reference with the same k and a \
                     seed in common that was trained alike on the same activations"
                ));
            }
        }
        gaps
    }
}

impl Group {
    pub(crate) fn get(&self, name: &Name) -> Option<&GroupFigure> {
        self.figures.iter().find(|figure| figure.metric == name.metric && figure.level == name.level)
    }

    /// The family, and the view where it is not flat.
    pub(crate) fn label(&self) -> String {
        if self.view == "flat" { self.family.clone() } else { format!("{}, {}", self.family, self.view) }
    }

    /// Whether it may be held against others: its L0 is the wanted one, and its training the reference's.
    pub(crate) fn is_fair(&self) -> bool {
        !self.l0_is_off && self.unlike_reference.is_empty()
    }

    fn is_called(&self, reference: &str) -> bool {
        self.family == reference || self.name == reference
    }

    /// Values of both, over the seeds at which both have one.
    fn pairs(&self, other: &Group, metric: &str) -> Vec<(f64, f64)> {
        let name = Name::new(metric, "all");
        let (Some(ours), Some(theirs)) = (self.get(&name), other.get(&name)) else { return Vec::new() };
        let theirs: BTreeMap<u64, f64> =
            other.seeds.iter().zip(&theirs.values).filter_map(|(&seed, value)| Some((seed, (*value)?))).collect();
        let pairs = self.seeds.iter().zip(&ours.values);
        pairs.filter_map(|(seed, value)| Some(((*value)?, *theirs.get(seed)?))).collect()
    }
}

impl GroupDifference {
    pub(crate) fn is_of(&self, group: &Group) -> bool {
        let Self { family, k, view, threshold, .. } = self;
        (family, k, view, threshold) == (&group.family, &group.k, &group.view, &group.threshold)
    }
}

/// One SAE in one mode: metric and level to value.
type Values = BTreeMap<(String, String), f64>;

fn groups(contenders: &[Contender]) -> Result<Vec<Group>> {
    let mut n_runs: BTreeMap<&str, usize> = BTreeMap::new();
    for contender in contenders {
        let names: BTreeSet<&str> = contender.saes.iter().map(|(sae, _)| sae.family()).collect();
        names.into_iter().for_each(|name| *n_runs.entry(name).or_default() += 1);
    }
    let mut groups = Vec::new();
    for contender in contenders {
        let mut places: Vec<(&str, usize)> = Vec::new();
        for (sae, _) in &contender.saes {
            if !places.contains(&(sae.family(), sae.k)) {
                places.push((sae.family(), sae.k));
            }
        }
        for (name, k) in places {
            let family = match &contender.run {
                Some(run) if n_runs[name] > 1 => format!("{run}/{name}"),
                _ => name.to_owned(),
            };
            let of_family = contender.saes.iter().filter(|(sae, _)| (sae.family(), sae.k) == (name, k));
            let trainings: BTreeSet<Training> = of_family.map(|(_, training)| training.clone()).collect();
            for ((view, threshold), members) in members(contender, name, k)? {
                let empty = Group {
                    family: family.clone(),
                    run: contender.run.clone(),
                    name: name.to_owned(),
                    data: contender.data.clone(),
                    k,
                    view,
                    threshold,
                    trainings: trainings.clone(),
                    unlike_reference: Vec::new(),
                    l0_is_off: false,
                    seeds: Vec::new(),
                    saes: Vec::new(),
                    figures: Vec::new(),
                };
                groups.push(filled(empty, &members));
            }
        }
    }
    Ok(groups)
}

/// (View, threshold) → seed → an SAE's name and its values.
type Members = BTreeMap<(String, String), BTreeMap<u64, (String, Values)>>;

fn members(contender: &Contender, family: &str, k: usize) -> Result<Members> {
    let saes = contender.saes.iter().filter(|(sae, _)| sae.family() == family && sae.k == k);
    let saes: BTreeSet<&str> = saes.map(|(sae, _)| sae.name.as_str()).collect();
    let mut members = Members::new();
    for row in contender.metrics.iter().filter(|row| saes.contains(row.sae.as_str())) {
        let run = contender.run.as_ref().map_or(String::new(), |run| format!(" of {run}"));
        let Metric { sae, seed, view, threshold, metric, level, value, .. } = row;
        ensure!(
            value.is_finite(),
            "recover/recovery.parquet{run}: {metric} of {sae}, {level}, {view}, {threshold}, is NaN or infinite"
        );
        let seeds = members.entry((view.clone(), threshold.clone())).or_default();
        let (name, values) = seeds.entry(*seed).or_insert_with(|| (sae.clone(), Values::new()));
        ensure!(
            name == sae,
            "{name} and {sae}{run} are of one family, {family}, and agree in seed {seed} and k = {k}: set `family`, so that \
             they are told apart"
        );
        values.insert((metric.clone(), level.clone()), *value);
    }
    for (_, values) in members.values_mut().flat_map(BTreeMap::values_mut) {
        name_the_first_tree(values);
    }
    Ok(members)
}

/// Recover leaves the first of an SAE's trees unnamed: its own where it has edges, else the post-hoc one. Here both have a
/// name, beside the unnamed one.
fn name_the_first_tree(values: &mut Values) {
    let key = |metric: &str| (metric.to_owned(), "all".to_owned());
    for (metric, beside_own) in OF_TREES {
        let Some(&first) = values.get(&key(metric)) else { continue };
        let tree = if values.contains_key(&key(beside_own)) { "own" } else { "posthoc" };
        values.insert(key(&format!("{metric}_{tree}")), first);
    }
}

fn filled(mut group: Group, members: &BTreeMap<u64, (String, Values)>) -> Group {
    group.seeds = members.keys().copied().collect();
    group.saes = members.values().map(|(sae, _)| sae.clone()).collect();
    let names: BTreeSet<&(String, String)> = members.values().flat_map(|(_, values)| values.keys()).collect();
    for (metric, level) in names {
        let values = members.values().map(|(_, values)| values.get(&(metric.clone(), level.clone())).copied());
        let values: Vec<Option<f64>> = values.collect();
        let present: Vec<f64> = values.iter().flatten().copied().collect();
        if let Some(estimate) = statistics::estimate(&present) {
            group.figures.push(GroupFigure { metric: metric.clone(), level: level.clone(), estimate, values });
        }
    }
    let l0 = group.get(&Name::new("l0", "all")).map_or(Vec::new(), |l0| l0.values.clone());
    let is_off = |l0: &f64| (l0 / group.k as f64 - 1.0).abs() > L0_TOLERANCE;
    group.l0_is_off = l0.iter().flatten().any(is_off);
    group
}

/// Groups that no reference was trained like are told why, and are in no difference.
fn differences(groups: &mut [Group], reference: &str) -> Vec<GroupDifference> {
    let mut differences = Vec::new();
    for i in 0..groups.len() {
        let group = &groups[i];
        let fits = |other: &&Group| {
            other.is_called(reference)
                && other.view == "flat"
                && (other.k, &other.threshold) == (group.k, &group.threshold)
        };
        let mut references: Vec<&Group> = groups.iter().filter(fits).collect();
        let is_itself = |other: &Group| other.family == group.family && group.view == "flat";
        if references.iter().any(|other| is_itself(other)) {
            continue;
        }
        let nearest = references.iter().find(|other| other.run == group.run).or(references.first()).copied();
        references.retain(|other| training::differences(group, other).is_empty());
        if let (Some(nearest), true) = (nearest, references.is_empty()) {
            groups[i].unlike_reference = training::differences(group, nearest);
            continue;
        }
        let shares_a_seed = |other: &&&Group| other.seeds.iter().any(|seed| group.seeds.contains(seed));
        let own = references.iter().find(|other| other.run == group.run).filter(shares_a_seed);
        let Some(&other) = own.or_else(|| references.iter().find(shares_a_seed)) else { continue };
        for metric in HEADLINES {
            let Some(difference) = statistics::difference(&group.pairs(other, metric)) else { continue };
            differences.push(GroupDifference {
                family: group.family.clone(),
                k: group.k,
                view: group.view.clone(),
                threshold: group.threshold.clone(),
                metric: metric.into(),
                reference: other.family.clone(),
                difference,
                p_holm: None,
            });
        }
    }
    correct(&mut differences);
    differences
}

/// Holm's correction within each metric, k and threshold.
fn correct(differences: &mut [GroupDifference]) {
    let mut tests: BTreeMap<(String, usize, String), Vec<usize>> = BTreeMap::new();
    for (i, difference) in differences.iter().enumerate().filter(|(_, other)| other.difference.p.is_some()) {
        let test = (difference.metric.clone(), difference.k, difference.threshold.clone());
        tests.entry(test).or_default().push(i);
    }
    for tests in tests.values() {
        let p_values: Vec<f64> = tests.iter().filter_map(|&i| differences[i].difference.p).collect();
        for (&i, p) in tests.iter().zip(statistics::holm(&p_values)) {
            differences[i].p_holm = Some(p);
        }
    }
}
