//! The labelled texts of each task, drawn and split.

use std::collections::BTreeSet;

use anyhow::Result;
use artifact::config::{Probe, ProbeTask};
use artifact::random::stream;
use artifact::stage::{Input, Log, Stage, VADER};
use artifact::tables::Context;

use crate::examples::{Split, unseen};
use crate::{classes, movies};

/// The file in VADER's source.
const MOVIES: &str = "movieReviewSnippets_GroundTruth.txt";

/// The task's name in tables and logs.
pub(crate) fn name(task: ProbeTask) -> &'static str {
    match task {
        ProbeTask::WordnetClass => "wordnet-class",
        ProbeTask::MovieSentiment => "movie-sentiment",
    }
}

/// Where the task's texts lie. Errors: they have not been fetched.
pub(crate) fn source(stage: &Stage, task: ProbeTask) -> Result<Input> {
    stage.source_input(match task {
        ProbeTask::WordnetClass => wordnet::SOURCE,
        ProbeTask::MovieSentiment => VADER,
    })
}

/// Draws the task's examples. `harvested` tells which documents the SAEs were trained on; they are left out where enough
/// others remain.
///
/// Errors: the source is malformed, or has too few texts.
pub(crate) fn draw(
    task: ProbeTask,
    source: &Input,
    harvested: &[Context],
    probe: &Probe,
    seed: u64,
    log: &Log,
) -> Result<Split> {
    let name = name(task);
    let (mut labelled, classes) = match task {
        ProbeTask::WordnetClass => classes::read(&source.file(wordnet::NOUNS)?, probe.n_classes)?,
        ProbeTask::MovieSentiment => (movies::read(&source.file(MOVIES)?)?, movies::CLASSES.to_vec()),
    };
    if task == ProbeTask::WordnetClass {
        let trained_on =
            harvested.iter().filter(|context| context.split == "train" && context.source == wordnet::SOURCE);
        let trained_on: BTreeSet<String> = trained_on.map(|context| context.name.clone()).collect();
        // Twice what is needed, since a split by groups does not come out even to the last text.
        match unseen(&labelled, &trained_on, classes.len(), 2 * probe.n_examples / classes.len()) {
            Some(left) => labelled = left,
            None => log.line(format!("{name}: too few glosses that no SAE was trained on; those too are used")),
        }
    }
    let mut rng = stream(seed, &format!("probe/{name}/examples"), 0, 0);
    let split = Split::draw(&labelled, classes.len(), probe.n_examples, &mut rng)?;
    let (n_train, n_test) = (split.train.len(), split.test.len());
    log.line(format!("{name}: {n_train} texts to train on, {n_test} to test on, in {}", classes.join(", ")));
    Ok(split)
}
