//! Texts read by the model: what stands at the hook for each token, and its mean over a text.

use anyhow::{Context, Result, ensure};
use artifact::stage::Log;
use hsae::SparseRows;
use lm::{Hook, LanguageModel};

use crate::logistic::Features;

/// Tokens in one forward pass, padding included. A constant, so that results do not depend on the pipeline's batches.
const BATCH_TOKENS: usize = 2048;
/// Rows encoded at a time.
const ENCODE_ROWS: usize = 4096;

/// The tokens of some texts, one text after another, and their activations. The separator that stands in front of each
/// text has no row: its activation is an outlier that says nothing of the text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tokens {
    d_model: usize,
    /// Text i has the rows `starts[i]..starts[i + 1]`.
    starts: Vec<usize>,
    token_ids: Vec<u32>,
    /// [n_rows, d_model]
    activations: Vec<f32>,
    /// Rows that no mean counts, [n_rows].
    is_left_out: Vec<bool>,
}

impl Tokens {
    /// Reads each text in a context of its own, behind the separator, cut to `context_length` tokens.
    ///
    /// Errors: a text has no tokens, or its activations are NaN or infinite.
    pub(crate) fn read(
        model: &LanguageModel,
        hook: Hook,
        context_length: usize,
        texts: &[&str],
        log: &Log,
    ) -> Result<Self> {
        let (mut starts, mut token_ids) = (vec![0], Vec::new());
        for text in texts {
            let encoding = model.tokenizer().encode(text)?;
            ensure!(!encoding.ids.is_empty(), "no tokens in \"{text}\"");
            token_ids.extend(encoding.ids.iter().take(context_length - 1));
            starts.push(token_ids.len());
        }
        let d_model = model.config().d_model;
        let n_rows = token_ids.len();
        let activations = vec![0.0; n_rows * d_model];
        let mut tokens = Self { d_model, activations, starts, token_ids, is_left_out: vec![false; n_rows] };

        // Texts of similar length share a batch. Padding stands behind them, where no token of theirs attends to it.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| tokens.starts[i + 1] - tokens.starts[i]);
        let separator = model.tokenizer().separator();
        let mut progress = log.progress(tokens.token_ids.len() as u64, "tokens");
        let mut n_done = 0;
        while let Some(batch) = next_batch(&tokens.starts, &mut order) {
            let length = 1 + batch.iter().map(|&i| tokens.starts[i + 1] - tokens.starts[i]).max().unwrap_or(0);
            let mut ids = vec![separator; batch.len() * length];
            for (context, &i) in ids.chunks_exact_mut(length).zip(&batch) {
                let text = &tokens.token_ids[tokens.starts[i]..tokens.starts[i + 1]];
                context[1..=text.len()].copy_from_slice(text);
            }
            let activations = model.activations(&ids, length, hook)?;
            for (context, &i) in activations.chunks_exact(length * d_model).zip(&batch) {
                let (start, end) = (tokens.starts[i] * d_model, tokens.starts[i + 1] * d_model);
                let rows = &context[d_model..d_model + end - start];
                ensure!(
                    rows.iter().all(|value| value.is_finite()),
                    "the activations of \"{}\" are NaN or infinite",
                    texts[i]
                );
                tokens.activations[start..end].copy_from_slice(rows);
                n_done += tokens.starts[i + 1] - tokens.starts[i];
            }
            progress.set(n_done as u64, String::new);
        }
        progress.finish(n_done as u64);
        Ok(tokens)
    }

    /// Rows beyond the norm count in no mean.
    pub(crate) fn leave_out_sinks(&mut self, norm_limit: f32) {
        let rows = self.activations.chunks_exact(self.d_model);
        self.is_left_out = rows.map(|row| norm(row) > norm_limit).collect();
    }

    /// Mean activation of each text, [n_texts, d_model].
    pub(crate) fn mean_activations(&self) -> Features {
        self.means(self.d_model, |row, mean| {
            let values = &self.activations[row * self.d_model..(row + 1) * self.d_model];
            mean.iter_mut().zip(values).for_each(|(mean, &value)| *mean += f64::from(value));
        })
    }

    /// Mean token embedding of each text, [n_texts, d_model].
    pub(crate) fn mean_embeddings(&self, model: &LanguageModel) -> Result<Features> {
        let embeddings = model.token_embeddings(&self.token_ids)?;
        let width = embeddings.len() / self.token_ids.len();
        Ok(self.means(width, |row, mean| {
            let values = &embeddings[row * width..(row + 1) * width];
            mean.iter_mut().zip(values).for_each(|(mean, &value)| *mean += f64::from(value));
        }))
    }

    /// Mean of each latent over each text's tokens, silent ones counting as zero: [n_texts, d_sae].
    pub(crate) fn mean_latents(&self, encode: impl Fn(&[f32]) -> Result<SparseRows>) -> Result<Features> {
        let mut chunks = Vec::new();
        for rows in self.activations.chunks(ENCODE_ROWS * self.d_model) {
            chunks.push(encode(rows)?);
        }
        let d_sae = chunks.first().context("no texts to encode")?.n_cols;
        Ok(self.means(d_sae, |row, mean| {
            let (latents, values) = chunks[row / ENCODE_ROWS].row(row % ENCODE_ROWS);
            latents.iter().zip(values).for_each(|(&latent, &value)| mean[latent as usize] += f64::from(value));
        }))
    }

    /// `add` adds a row to the sum that becomes its text's mean.
    fn means(&self, width: usize, add: impl Fn(usize, &mut [f64])) -> Features {
        let mut values = vec![0.0; (self.starts.len() - 1) * width];
        for (mean, ends) in values.chunks_exact_mut(width.max(1)).zip(self.starts.windows(2)) {
            let rows = (ends[0]..ends[1]).filter(|&row| !self.is_left_out[row]);
            let n = rows.clone().count().max(1);
            rows.for_each(|row| add(row, mean));
            mean.iter_mut().for_each(|mean| *mean /= n as f64);
        }
        Features { n_columns: width, values }
    }
}

/// L2 norm of a row.
pub(crate) fn norm(row: &[f32]) -> f32 {
    row.iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// Takes the longest texts that still fit together off the end of `order`.
fn next_batch(starts: &[usize], order: &mut Vec<usize>) -> Option<Vec<usize>> {
    let &longest = order.last()?;
    let length = 1 + starts[longest + 1] - starts[longest];
    let n = (BATCH_TOKENS / length).clamp(1, order.len());
    Some(order.split_off(order.len() - n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens {
            d_model: 2,
            starts: vec![0, 1, 4],
            token_ids: vec![5, 6, 7, 8],
            activations: vec![1.0, 2.0, 3.0, 0.0, 0.0, 6.0, 3.0, 0.0],
            is_left_out: vec![false; 4],
        }
    }

    #[test]
    fn activations_are_averaged_text_by_text() {
        let expected = Features { n_columns: 2, values: vec![1.0, 2.0, 2.0, 2.0] };
        assert_eq!(tokens().mean_activations(), expected);
    }

    #[test]
    fn attention_sinks_are_left_out_of_means() {
        let mut tokens = tokens();
        tokens.leave_out_sinks(5.0);
        let expected = Features { n_columns: 2, values: vec![1.0, 2.0, 3.0, 0.0] };
        assert_eq!(tokens.mean_activations(), expected);
    }

    #[test]
    fn silent_latents_count_as_zero() {
        // Latent 0 is the first coordinate, latent 2 the second.
        let encode = |x: &[f32]| {
            let mut rows = SparseRows::new(3);
            for row in x.chunks(2) {
                rows.push_row([(0, row[0]), (2, row[1])].into_iter().filter(|entry| entry.1 > 0.0));
            }
            Ok(rows)
        };
        let expected = Features { n_columns: 3, values: vec![1.0, 0.0, 2.0, 2.0, 0.0, 2.0] };
        assert_eq!(tokens().mean_latents(encode).unwrap(), expected);
    }

    #[test]
    fn batches_hold_every_text_once_and_stay_small() {
        let starts: Vec<usize> = (0..=300).map(|i| i * (i + 1) / 4).collect();
        let mut order: Vec<usize> = (0..300).collect();
        let mut seen = Vec::new();
        while let Some(batch) = next_batch(&starts, &mut order) {
            let longest = batch.iter().map(|&i| 1 + starts[i + 1] - starts[i]).max().unwrap();
            assert!(batch.len() == 1 || batch.len() * longest <= BATCH_TOKENS);
            seen.extend(batch);
        }
        seen.sort();
        assert_eq!(seen, (0..300).collect::<Vec<_>>());
    }
}
