//! Whether two families were trained alike enough for their difference to be one of method.

use std::collections::BTreeSet;
use std::fmt::Display;

use artifact::config::Sae;
use serde::Serialize;

use super::Group;

/// What a comparison of methods takes for equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Training {
    d_sae: usize,
    /// None for an SAE that was trained elsewhere.
    pub(super) n_tokens: Option<u64>,
    batch_size: Option<u64>,
}

impl Training {
    pub(crate) fn new(sae: &Sae, n_tokens: Option<u64>, batch_size: Option<u64>) -> Self {
        Self { d_sae: sae.d_sae(), n_tokens, batch_size }
    }
}

/// Why a group does not compare with the reference, each reason in words; none where it does.
pub(super) fn differences(group: &Group, reference: &Group) -> Vec<String> {
    let mut reasons = Vec::new();
    if group.data != reference.data {
        reasons.push("other activations".to_owned());
    }
    let mut unlike = |what: &dyn Fn(&Training) -> Option<u64>, words: &dyn Fn(&str) -> String| {
        let [ours, theirs] = [group, reference].map(|group| group.trainings.iter().map(what).collect::<BTreeSet<_>>());
        if ours != theirs {
            reasons.push(format!("{}, not {}", words(&listed(&ours)), listed(&theirs)));
        }
    };
    unlike(&|training| Some(training.d_sae as u64), &|n| format!("{n} latents"));
    let is_known = |group: &Group| group.trainings.iter().all(|training| training.n_tokens.is_some());
    if is_known(group) && is_known(reference) {
        unlike(&|training| training.n_tokens, &|n| format!("{n} tokens"));
        unlike(&|training| training.batch_size, &|n| format!("batches of {n}"));
    } else {
        reasons.push(if is_known(group) { "a reference trained elsewhere" } else { "trained elsewhere" }.to_owned());
    }
    reasons
}

fn listed<T: Display>(values: &BTreeSet<Option<T>>) -> String {
    values.iter().flatten().map(T::to_string).collect::<Vec<_>>().join(" and ")
}
