//! The two measurements: probe scores task by task, and splice scores.

use anyhow::Result;
use artifact::config::{Probe, ProbeTask, Splice};
use artifact::random::stream;
use artifact::stage::Log;
use artifact::tables::{Context, ProbeScore, SpliceScore};
use hsae::{Mode, TrainedSae};
use lm::{Hook, LanguageModel};

use crate::bootstrap::Resamples;
use crate::examples::Split;
use crate::probing::{Answers, Halves};
use crate::splice::{self, Contexts, Intervention};
use crate::tasks;
use crate::texts::Tokens;

/// What both measurements read.
pub(crate) struct Subject<'a> {
    pub(crate) model: &'a LanguageModel,
    pub(crate) hook: Hook,
    pub(crate) context_length: usize,
    /// Mean activation at the hook, [d_model].
    pub(crate) mean: &'a [f32],
    /// Tokens beyond this norm are attention sinks, which no SAE was trained on: they are no part of a text's mean, and are
    /// never replaced.
    pub(crate) norm_limit: f32,
    pub(crate) saes: &'a [TrainedSae],
    pub(crate) seed: u64,
    pub(crate) log: &'a Log,
}

/// Scores of one task: the two dense baselines, then each SAE in each mode, level by level and k by k.
///
/// Errors: a text cannot be read by the model, or an SAE cannot encode.
pub(crate) fn probe(subject: &Subject, task: ProbeTask, split: &Split, probe: &Probe) -> Result<Vec<ProbeScore>> {
    let Subject { model, hook, context_length, saes, seed, log, .. } = *subject;
    let mut tokens = Tokens::read(model, hook, context_length, &split.texts(), log)?;
    tokens.leave_out_sinks(subject.norm_limit);
    let halves = Halves { n_classes: split.n_classes, train: &split.train, test: &split.test };
    let scorer = Scorer::new(task, split, probe.n_bootstrap, seed);

    let mut scores = Vec::new();
    let baselines = [("activations", tokens.mean_activations()), ("embeddings", tokens.mean_embeddings(model)?)];
    for (level, features) in baselines {
        let (answers, c) = halves.dense(&features);
        let score = scorer.score("", 0, None, level, None, &answers);
        log.line(format!("{}: accuracy {:.3} with all {level} (C = {c})", scorer.task, score.score));
        scores.push(score);
    }
    for sae in saes {
        for mode in sae.modes() {
            let features = tokens.mean_latents(|x| Ok(sae.encode(x, mode)))?;
            for (level, latents) in levels(sae) {
                let answers = halves.sparse(&features, latents, &probe.ks);
                let of_level: Vec<ProbeScore> = probe
                    .ks
                    .iter()
                    .zip(&answers)
                    .map(|(&k, answers)| scorer.score(&sae.config.name, sae.seed, Some(mode), level, Some(k), answers))
                    .collect();
                let said: Vec<String> = of_level.iter().map(|score| format!("{:.3}", score.score)).collect();
                log.line(format!(
                    "{}: {} {} {} {level}: {} with k = {:?}",
                    scorer.task,
                    sae.config.name,
                    mode.view,
                    mode.threshold,
                    said.join(", "),
                    probe.ks
                ));
                scores.extend(of_level);
            }
        }
    }
    Ok(scores)
}

/// Scores of the clean model, the two ablations, and each SAE's reconstruction in each mode.
///
/// Errors: there are no held-out contexts, or a cross-entropy is not finite.
pub(crate) fn splice(
    subject: &Subject,
    contexts: &[Context],
    config: &Splice,
    n_bootstrap: usize,
) -> Result<Vec<SpliceScore>> {
    let Subject { model, hook, context_length, mean, norm_limit, saes, seed, log } = *subject;
    let mut rng = stream(seed, "probe/splice", 0, 0);
    let separator = model.tokenizer().separator();
    let mut contexts = Contexts::choose(contexts, config.n_contexts, context_length, separator, &mut rng)?;
    contexts.norm_limit = norm_limit;
    log.line(format!("splice: {} contexts of {} documents", contexts.n_contexts(), contexts.n_documents()));
    let mut interventions: Vec<Intervention> = Intervention::references(mean).into();
    for sae in saes {
        interventions.extend(sae.modes().into_iter().map(|mode| Intervention {
            sae: sae.config.name.clone(),
            seed: sae.seed,
            view: mode.view.to_string(),
            threshold: mode.threshold.to_string(),
            name: "reconstruction",
            replace: Some(Box::new(move |x: &[f32]| Ok(sae.decode(&sae.encode(x, mode))))),
        }));
    }
    let scores = splice::score(model, hook, &contexts, &interventions, n_bootstrap, seed, log)?;
    for score in &scores {
        let SpliceScore { sae, view, threshold, intervention, cross_entropy, kl, ce_recovered, .. } = score;
        log.line(format!(
            "splice: {intervention} {sae} {view} {threshold}: cross-entropy {cross_entropy:.3}, KL {kl:.3} nats, \
             {ce_recovered:.3} recovered"
        ));
    }
    Ok(scores)
}

/// The latents that a probe may choose from, coarse ones first in every SAE.
fn levels(sae: &TrainedSae) -> Vec<(&'static str, std::ops::Range<usize>)> {
    let mut levels = vec![("all", 0..sae.d_sae)];
    if sae.n_coarse > 0 {
        levels.extend([("coarse", 0..sae.n_coarse), ("fine", sae.n_coarse..sae.d_sae)]);
    }
    levels
}

/// Turns answers into rows of the table.
struct Scorer {
    task: &'static str,
    /// Of each test example: the place of its group among the groups of the test half.
    group: Vec<usize>,
    n_groups: usize,
    resamples: Resamples,
    /// Share of the largest class.
    baseline: f64,
}

impl Scorer {
    fn new(task: ProbeTask, split: &Split, n_bootstrap: usize, seed: u64) -> Self {
        let task = tasks::name(task);
        let mut groups: Vec<usize> = split.test.iter().map(|example| example.group).collect();
        groups.sort();
        groups.dedup();
        let place = |group| groups.partition_point(|&other| other < group);
        let mut rng = stream(seed, &format!("probe/{task}/bootstrap"), 0, 0);
        let of_class = |class| split.test.iter().filter(|example| example.class == class).count();
        let largest = (0..split.n_classes).map(of_class).max().unwrap_or(0);
        Self {
            task,
            group: split.test.iter().map(|example| place(example.group)).collect(),
            n_groups: groups.len(),
            resamples: Resamples::draw(groups.len(), n_bootstrap, &mut rng),
            baseline: largest as f64 / split.test.len() as f64,
        }
    }

    fn score(
        &self,
        sae: &str,
        seed: u64,
        mode: Option<Mode>,
        level: &str,
        k: Option<usize>,
        answers: &Answers,
    ) -> ProbeScore {
        // Right answers and answers, group by group.
        let mut sums = vec![[0.0; 2]; self.n_groups];
        for (&group, &is_right) in self.group.iter().zip(&answers.is_right) {
            sums[group][0] += f64::from(is_right);
            sums[group][1] += 1.0;
        }
        let (ci_low, ci_high) = self.resamples.interval(&sums, |[n_right, n]| n_right / n);
        let n_right = answers.is_right.iter().filter(|&&is_right| is_right).count();
        ProbeScore {
            sae: sae.into(),
            seed,
            view: mode.map(|mode| mode.view.to_string()).unwrap_or_default(),
            threshold: mode.map(|mode| mode.threshold.to_string()).unwrap_or_default(),
            task: self.task.into(),
            level: level.into(),
            k: k.map(|k| k as u64),
            score: n_right as f64 / answers.is_right.len() as f64,
            baseline: self.baseline,
            ci_low,
            ci_high,
            n_test: answers.is_right.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Example;

    #[test]
    fn a_score_is_an_accuracy_with_its_interval() {
        let example = |group: usize, class| Example { group, class, text: String::new() };
        let test: Vec<Example> = (0..200).map(|i| example(1000 - i, i % 2)).collect();
        let split = Split { n_classes: 2, train: test.clone(), test };
        let scorer = Scorer::new(ProbeTask::MovieSentiment, &split, 500, 0);
        let answers = Answers { is_right: (0..200).map(|i| i % 4 != 0).collect() };
        let score = scorer.score("a", 3, None, "all", Some(5), &answers);
        assert_eq!((score.score, score.baseline, score.k, score.n_test), (0.75, 0.5, Some(5), 200));
        // 1.96 standard errors of a share of .75 among 200.
        assert!((score.ci_low - 0.69).abs() <= 0.02 && (score.ci_high - 0.81).abs() <= 0.02, "{score:?}");
    }
}
