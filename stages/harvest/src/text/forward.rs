//! Runs contexts of different lengths through the model. Contexts of about equal length share a batch, the shorter ones
//! padded behind their end: attention looks backwards only, so padding changes no row before it, and its own rows are
//! dropped.

use anyhow::{Result, ensure};

/// Contexts are padded to a multiple of this, and only those of equal padded length share a batch. What a context is
/// padded to may change the last bits of its rows, so it depends on the context alone, not on its batch.
const LENGTH_STEP: usize = 4;

/// The activations of all tokens at each of `n_hooks` hooks, contexts in the order given: [n_tokens, d_model] each.
///
/// `contexts` come without the separator; it is put in front of each, and its row is left out, since position 0 is an
/// attention sink with a norm far from every other. `run` takes tokens [n_contexts · length] and `length`, and returns
/// [n_contexts · length, d_model] for each hook; at most `batch_tokens` are given to it at once, but always one context.
pub(super) fn in_batches(
    contexts: &[&[u32]],
    separator: u32,
    batch_tokens: usize,
    n_hooks: usize,
    mut run: impl FnMut(&[u32], usize) -> Result<Vec<Vec<f32>>>,
) -> Result<Vec<Vec<f32>>> {
    let mut order: Vec<usize> = (0..contexts.len()).collect();
    order.sort_by_key(|&i| contexts[i].len());
    let mut first_rows = Vec::with_capacity(contexts.len());
    let mut n_rows = 0;
    for context in contexts {
        first_rows.push(n_rows);
        n_rows += context.len();
    }
    let mut all = vec![Vec::new(); n_hooks]; // [n_rows, d_model], once d_model is known
    let mut start = 0;
    while start < order.len() {
        let end = batch_end(contexts, &order, start, batch_tokens);
        let batch = &order[start..end];
        let length = padded_length(contexts[batch[0]]);
        let mut tokens = Vec::with_capacity(batch.len() * length);
        for &i in batch {
            tokens.push(separator);
            tokens.extend_from_slice(contexts[i]);
            tokens.resize(tokens.len().next_multiple_of(length), separator);
        }
        let activations = run(&tokens, length)?;
        ensure!(activations.len() == n_hooks, "activations of {} hooks, expected {n_hooks}", activations.len());
        for (all, activation) in all.iter_mut().zip(activations) {
            ensure!(activation.len().is_multiple_of(tokens.len()), "activations of another shape than the tokens");
            let d_model = activation.len() / tokens.len();
            all.resize(n_rows * d_model, 0.0f32);
            for (&i, rows) in batch.iter().zip(activation.chunks_exact(length * d_model)) {
                let n = contexts[i].len() * d_model;
                all[first_rows[i] * d_model..][..n].copy_from_slice(&rows[d_model..][..n]);
            }
        }
        start = end;
    }
    Ok(all)
}

/// The end of the batch that starts at `order[start]`: contexts of equal padded length, as many as fit.
fn batch_end(contexts: &[&[u32]], order: &[usize], start: usize, batch_tokens: usize) -> usize {
    let length = padded_length(contexts[order[start]]);
    let most = order.len().min(start + (batch_tokens / length).max(1));
    (start + 1..most).find(|&end| padded_length(contexts[order[end]]) != length).unwrap_or(most)
}

/// With the separator.
fn padded_length(context: &[u32]) -> usize {
    (1 + context.len()).next_multiple_of(LENGTH_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A causal model of width 2: each position sees the sum and the last of all tokens up to it.
    fn causal(tokens: &[u32], length: usize) -> Vec<f32> {
        let rows = tokens.chunks(length).flat_map(|context| {
            let mut sum = 0.0;
            context.iter().flat_map(move |&token| {
                sum += token as f32;
                [sum, token as f32]
            })
        });
        rows.collect()
    }

    #[test]
    fn batching_and_padding_change_no_row() {
        let lengths = [5usize, 1, 9, 3, 3, 7, 2, 9];
        let contexts: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(i, &n)| (0..n).map(|j| (10 * i + j) as u32).collect()).collect();
        let contexts: Vec<&[u32]> = contexts.iter().map(Vec::as_slice).collect();
        // One context at a time, no padding.
        let mut expected = Vec::new();
        for context in &contexts {
            let tokens = [&[99], *context].concat();
            expected.extend_from_slice(&causal(&tokens, tokens.len())[2..]);
        }
        for batch_tokens in [1, 12, 20, 1000] {
            let mut lengths = Vec::new();
            let found = in_batches(&contexts, 99, batch_tokens, 2, |tokens, length| {
                lengths.push(length);
                assert!(tokens.len() <= batch_tokens.max(length));
                let values = causal(tokens, length);
                Ok(vec![values.iter().map(|value| -value).collect(), values])
            });
            let negative: Vec<f32> = expected.iter().map(|value| -value).collect();
            assert_eq!(found.unwrap(), [negative, expected.clone()], "batches of {batch_tokens} tokens");
            assert!(batch_tokens < 1000 || lengths == [4, 8, 12]);
        }
    }

    #[test]
    fn no_contexts_make_no_rows() {
        assert!(in_batches(&[], 0, 100, 1, |_, _| unreachable!("no batch")).unwrap()[0].is_empty());
    }
}
