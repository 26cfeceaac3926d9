//! Cross-entropy when something else stands at the hook: an SAE's reconstruction, zeros, the mean activation.
//!
//! Position 0 is never replaced: from some block on, the separator's activation is an outlier of a hundred times the norm
//! that the model uses as a resting place for attention. No SAE is trained on it, and taking it away costs more than
//! anything that an SAE could lose. The same goes for the few tokens beyond `harvest.max_norm_multiple`. Figures are over the positions from 1 on that have a next token.

use anyhow::{Result, anyhow, ensure};
use artifact::random::stream;
use artifact::stage::Log;
use artifact::tables::{Context, SpliceScore};
use burn::tensor::Tensor;
use lm::{Hook, LanguageModel};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::bootstrap::Resamples;
use crate::cross_entropy::{CleanLogits, log_normaliser};
use crate::texts::norm;

/// Contexts in one forward pass, and rows whose logits are held at a time: 50 MB of them at a vocabulary of 49,152.
const BATCH_CONTEXTS: usize = 16;
const LOGIT_ROWS: usize = 256;

/// What stands at the hook in place of the model's own activations.
pub(crate) struct Intervention<'a> {
    pub(crate) sae: String,
    pub(crate) seed: u64,
    pub(crate) view: String,
    pub(crate) threshold: String,
    /// `clean`, `reconstruction`, `zero` or `mean`.
    pub(crate) name: &'static str,
    /// Activations [n, d_model] to their replacement; `None` leaves them.
    pub(crate) replace: Option<Replace<'a>>,
}

pub(crate) type Replace<'a> = Box<dyn Fn(&[f32]) -> Result<Vec<f32>> + 'a>;

impl<'a> Intervention<'a> {
    /// The clean model and the two ablations, which belong to no SAE. `mean` is the mean activation, [d_model].
    pub(crate) fn references(mean: &'a [f32]) -> [Self; 3] {
        let of = |name, replace| Self {
            sae: String::new(),
            seed: 0,
            view: String::new(),
            threshold: String::new(),
            name,
            replace,
        };
        [
            of("clean", None),
            of("zero", Some(Box::new(|x: &[f32]| Ok(vec![0.0_f32; x.len()])) as Replace)),
            of("mean", Some(Box::new(|x: &[f32]| Ok(mean.iter().copied().cycle().take(x.len()).collect())))),
        ]
    }
}

/// Held-out documents, each behind the separator and padded to the same length.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Contexts {
    length: usize,
    /// [n, length]
    tokens: Vec<u32>,
    /// Tokens of each context before its padding, the separator included.
    n_real: Vec<usize>,
    /// What the bootstrap draws: contexts cut from one document belong together.
    document: Vec<usize>,
    n_documents: usize,
    /// Positions beyond this norm are never replaced, as position 0 is not.
    pub(crate) norm_limit: f32,
}

impl Contexts {
    /// `n` held-out contexts in a random order, full ones first.
    ///
    /// Errors: there is none that holds a token and its next.
    pub(crate) fn choose(
        contexts: &[Context],
        n: usize,
        length: usize,
        separator: u32,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self> {
        let mut heldout: Vec<&Context> =
            contexts.iter().filter(|context| context.split == "heldout" && context.token_ids.len() >= 2).collect();
        ensure!(!heldout.is_empty(), "harvest/contexts.parquet: no held-out document has two tokens or more");
        heldout.shuffle(rng);
        heldout.sort_by_key(|context| std::cmp::Reverse(context.token_ids.len().min(length - 1)));
        heldout.truncate(n);

        let mut doc_ids: Vec<u32> = heldout.iter().map(|context| context.doc_id).collect();
        doc_ids.sort();
        doc_ids.dedup();
        let mut tokens = vec![separator; heldout.len() * length];
        let (mut n_real, mut document) = (Vec::new(), Vec::new());
        for (row, context) in tokens.chunks_exact_mut(length).zip(&heldout) {
            let n = context.token_ids.len().min(length - 1);
            row[1..=n].copy_from_slice(&context.token_ids[..n]);
            n_real.push(1 + n);
            document.push(doc_ids.partition_point(|&doc_id| doc_id < context.doc_id));
        }
        Ok(Self { length, tokens, n_real, document, n_documents: doc_ids.len(), norm_limit: f32::INFINITY })
    }

    pub(crate) fn n_contexts(&self) -> usize {
        self.n_real.len()
    }

    pub(crate) fn n_documents(&self) -> usize {
        self.n_documents
    }

    /// Rows of a batch that have a next token, position 0 left out, with that token and the context's document.
    fn targets(&self, first: usize, n: usize) -> Vec<Target> {
        let of_context = |i: usize| {
            (1..self.n_real[i] - 1).map(move |pos| Target {
                row: (i - first) * self.length + pos,
                next: self.tokens[i * self.length + pos + 1],
                document: self.document[i],
            })
        };
        (first..first + n).flat_map(of_context).collect()
    }
}

struct Target {
    row: usize,
    next: u32,
    document: usize,
}

/// Sums over some targets, in nats.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    n: f64,
    cross_entropy: f64,
    kl: f64,
}

/// The scores of each intervention, in order. The first must be the clean model, and one must be named `zero`.
///
/// Errors: the model fails, or a cross-entropy comes out NaN or infinite (the intervention is named).
pub(crate) fn score(
    model: &LanguageModel,
    hook: Hook,
    contexts: &Contexts,
    interventions: &[Intervention],
    n_bootstrap: usize,
    seed: u64,
    log: &Log,
) -> Result<Vec<SpliceScore>> {
    // losses[intervention][document]
    let mut losses = vec![vec![Loss::default(); contexts.n_documents]; interventions.len()];
    let mut progress = log.progress(contexts.n_contexts() as u64, "contexts");
    for first in (0..contexts.n_contexts()).step_by(BATCH_CONTEXTS) {
        let n = BATCH_CONTEXTS.min(contexts.n_contexts() - first);
        add_batch(model, hook, contexts, (first, n), interventions, &mut losses)?;
        progress.set((first + n) as u64, String::new);
    }
    progress.finish(contexts.n_contexts() as u64);
    for (intervention, losses) in interventions.iter().zip(&losses) {
        let Intervention { sae, view, threshold, name, .. } = intervention;
        ensure!(
            losses.iter().all(|loss| loss.cross_entropy.is_finite() && loss.kl.is_finite()),
            "splicing in {name} {sae} {view} {threshold}: the cross-entropy is NaN or infinite"
        );
    }
    let resamples =
        Resamples::draw(contexts.n_documents, n_bootstrap, &mut stream(seed, "probe/splice-bootstrap", 0, 0));
    summarise(interventions, &losses, &resamples)
}

/// Adds the losses of the contexts `first..first + n`.
fn add_batch(
    model: &LanguageModel,
    hook: Hook,
    contexts: &Contexts,
    (first, n): (usize, usize),
    interventions: &[Intervention],
    losses: &mut [Vec<Loss>],
) -> Result<()> {
    let length = contexts.length;
    let targets = contexts.targets(first, n);
    let paused = model.run_to(&contexts.tokens[first * length..(first + n) * length], length, hook)?;
    let activations = paused.value(); // [n · length, d_model]
    let d_model = model.config().d_model;
    let mut hidden = Vec::with_capacity(interventions.len());
    for intervention in interventions {
        let replace = intervention.replace.as_ref();
        let replaced = replace.map(|replace| replace_rows(replace, activations, length, d_model, contexts.norm_limit));
        hidden.push(model.resume(&paused, replaced.transpose()?.as_deref())?); // [n · length, d_model]
    }
    for start in (0..n * length).step_by(LOGIT_ROWS) {
        let n_rows = LOGIT_ROWS.min(n * length - start);
        let targets: Vec<&Target> = targets.iter().filter(|t| (start..start + n_rows).contains(&t.row)).collect();
        let logits = |hidden: &Tensor<2>| -> Result<Vec<f32>> {
            let logits = model.unembed(hidden.clone().narrow(0, start, n_rows)).try_into_data()?;
            logits.try_into_vec::<f32>().map_err(|error| anyhow!("logits that are not f32: {error:?}"))
        };
        if targets.is_empty() {
            continue;
        }
        let clean_logits = logits(&hidden[0])?; // [n_rows, n_vocab]
        let n_vocab = clean_logits.len() / n_rows;
        let row_of = |target: &Target| (target.row - start) * n_vocab..(target.row - start + 1) * n_vocab;
        let clean: Vec<CleanLogits> =
            targets.par_iter().map(|target| CleanLogits::new(&clean_logits[row_of(target)])).collect();
        for (i, losses) in losses.iter_mut().enumerate() {
            let spliced_logits = if i == 0 { None } else { Some(logits(&hidden[i])?) };
            let logits = spliced_logits.as_ref().unwrap_or(&clean_logits);
            let of_targets: Vec<(f64, f64)> = targets
                .par_iter()
                .zip(&clean)
                .map(|(target, clean)| {
                    let logits = &logits[row_of(target)];
                    let normaliser = log_normaliser(logits);
                    (normaliser - f64::from(logits[target.next as usize]), clean.kl(logits, normaliser))
                })
                .collect();
            for (target, (cross_entropy, kl)) in targets.iter().zip(of_targets) {
                let loss = &mut losses[target.document];
                loss.n += 1.0;
                loss.cross_entropy += cross_entropy;
                loss.kl += kl;
            }
        }
    }
    Ok(())
}

/// The activations with all rows replaced but for the first position of each context and those beyond the norm. `replace` is
/// not shown these: nearly every latent fires on a sink, and to refine one such row takes longer than all others together.
/// Shapes: [n · length, d_model].
fn replace_rows(
    replace: &Replace,
    activations: &[f32],
    length: usize,
    d_model: usize,
    norm_limit: f32,
) -> Result<Vec<f32>> {
    let is_replaced = |(i, own): (usize, &[f32])| i % length != 0 && norm(own) <= norm_limit;
    let rows = || activations.chunks_exact(d_model);
    let places: Vec<usize> = rows().enumerate().filter(|&row| is_replaced(row)).map(|(i, _)| i).collect();
    let of_place = |i: usize| i * d_model..(i + 1) * d_model;
    if places.is_empty() {
        return Ok(activations.to_vec());
    }
    let own: Vec<f32> = places.iter().flat_map(|&i| &activations[of_place(i)]).copied().collect();
    let new = replace(&own)?;
    ensure!(new.len() == own.len(), "a replacement of {} values for {}", new.len(), own.len());
    let mut replaced = activations.to_vec();
    for (&i, row) in places.iter().zip(new.chunks_exact(d_model)) {
        replaced[of_place(i)].copy_from_slice(row);
    }
    Ok(replaced)
}

fn summarise(interventions: &[Intervention], losses: &[Vec<Loss>], resamples: &Resamples) -> Result<Vec<SpliceScore>> {
    let zero = interventions.iter().position(|intervention| intervention.name == "zero");
    let (Some(clean), Some(zero)) = (losses.first(), zero.map(|zero| &losses[zero])) else {
        anyhow::bail!("nothing to compare with: the clean model and the zero ablation are missing");
    };
    // Σ CE, Σ CE_clean, Σ CE_zero: all over the same tokens, so that ratios of sums are ratios of means.
    let recovered = |[spliced, clean, zero]: [f64; 3]| (zero - spliced) / (zero - clean);
    let scores = interventions.iter().zip(losses).map(|(intervention, losses)| {
        let sums: Vec<[f64; 3]> = losses
            .iter()
            .zip(clean)
            .zip(zero)
            .map(|((spliced, clean), zero)| [spliced.cross_entropy, clean.cross_entropy, zero.cross_entropy])
            .collect();
        let total = sums.iter().fold([0.0; 3], |total, sum| [total[0] + sum[0], total[1] + sum[1], total[2] + sum[2]]);
        let n: f64 = losses.iter().map(|loss| loss.n).sum();
        let kl: f64 = losses.iter().map(|loss| loss.kl).sum();
        let (ci_low, ci_high) = resamples.interval(&sums, recovered);
        let ce_recovered = recovered(total);
        ensure!(
            [ce_recovered, ci_low, ci_high].iter().all(|value| value.is_finite()),
            "zeros at the hook cost the model nothing, so there is nothing to recover"
        );
        let Intervention { sae, seed, view, threshold, name, .. } = intervention;
        Ok(SpliceScore {
            sae: sae.clone(),
            seed: *seed,
            view: view.clone(),
            threshold: threshold.clone(),
            intervention: (*name).into(),
            cross_entropy: total[0] / n,
            kl: kl / n,
            ce_recovered,
            ci_low,
            ci_high,
            n_tokens: n as u64,
        })
    });
    scores.collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Its tokens count up from 100 · `number`.
    fn context(number: u32, split: &str, doc_id: u32, n: u32) -> Context {
        Context {
            doc_id,
            split: split.into(),
            first_row: 0,
            source: String::new(),
            name: String::new(),
            text: String::new(),
            token_ids: (1..=n).map(|i| 100 * number + i).collect(),
            token_starts: vec![0; n as usize],
        }
    }

    #[test]
    fn full_heldout_contexts_come_first_and_are_padded_behind() {
        let contexts = [
            context(1, "train", 7, 9),
            context(2, "heldout", 8, 2),
            context(3, "heldout", 9, 9),
            context(4, "heldout", 9, 4),
            context(5, "heldout", 10, 1),
        ];
        let chosen = Contexts::choose(&contexts, 10, 6, 0, &mut stream(0, "test", 0, 0)).unwrap();
        assert_eq!(
            chosen.tokens,
            [[0, 301, 302, 303, 304, 305], [0, 401, 402, 403, 404, 0], [0, 201, 202, 0, 0, 0]].concat()
        );
        assert_eq!((chosen.n_real.as_slice(), chosen.n_documents), ([6, 5, 3].as_slice(), 2));
        assert_eq!(chosen.document, [1, 1, 0]);
        // The separator predicts nothing here, and a context's last token has no next one.
        let targets: Vec<_> = chosen.targets(1, 2).iter().map(|target| (target.row, target.next)).collect();
        assert_eq!(targets, [(1, 402), (2, 403), (3, 404), (7, 202)]);
        assert!(Contexts::choose(&contexts[..1], 10, 6, 0, &mut stream(0, "test", 0, 0)).is_err());
    }

    #[test]
    fn attention_sinks_keep_their_own_activation_and_are_not_shown() {
        let own: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let seen = RefCell::new(Vec::new());
        let replace: Replace = Box::new(|rows: &[f32]| {
            seen.borrow_mut().extend_from_slice(rows);
            Ok(rows.iter().map(|value| -value).collect())
        });
        let replaced = replace_rows(&replace, &own, 3, 2, 13.0).unwrap();
        assert_eq!(replaced, [0.0, 1.0, -2.0, -3.0, -4.0, -5.0, 6.0, 7.0, -8.0, -9.0, 10.0, 11.0]);
        drop(replace);
        assert_eq!(seen.into_inner(), [2.0, 3.0, 4.0, 5.0, 8.0, 9.0]);
        // Where nothing may be replaced, nobody is asked.
        let failing: Replace = Box::new(|_: &[f32]| anyhow::bail!("no"));
        assert!(replace_rows(&failing, &own, 3, 2, 13.0).is_err());
        assert_eq!(replace_rows(&failing, &own, 3, 2, 0.5).unwrap(), own);
    }

    #[test]
    fn recovered_is_one_for_the_clean_model_and_zero_for_zeros() {
        let mean = [0.0];
        let mut interventions: Vec<Intervention> = Intervention::references(&mean).into();
        interventions.swap(1, 2); // clean, mean, zero
        let losses = |per_token: f64| {
            [3.0, 5.0].map(|n| Loss { n, cross_entropy: n * per_token, kl: n * (per_token - 2.0) }).to_vec()
        };
        let resamples = Resamples::draw(2, 50, &mut stream(0, "test", 0, 0));
        let scores = summarise(&interventions, &[losses(2.0), losses(4.0), losses(10.0)], &resamples).unwrap();
        let found: Vec<_> = scores.iter().map(|score| (score.intervention.as_str(), score.ce_recovered)).collect();
        assert_eq!(found, [("clean", 1.0), ("mean", 0.75), ("zero", 0.0)]);
        assert_eq!((scores[1].cross_entropy, scores[1].kl, scores[1].n_tokens), (4.0, 2.0, 8));
        assert_eq!((scores[1].ci_low, scores[1].ci_high), (0.75, 0.75));
        let flat = summarise(&interventions, &[losses(2.0), losses(2.0), losses(2.0)], &resamples);
        assert!(flat.is_err());
    }
}
