//! The forward pass, its hooks and its splices against the naive one.

use burn::tensor::Tensor;

use super::naive;
use super::tiny::{CONTEXT_LENGTH, D_MODEL, N_LAYERS, Random, TempFile, Tiny};
use crate::{Hook, LanguageModel, Products, Site, cpu};

const SITES: [Site; 4] = [Site::ResidPre, Site::AttnOut, Site::MlpOut, Site::ResidPost];

fn hooks() -> impl Iterator<Item = Hook> {
    (0..N_LAYERS).flat_map(|block| SITES.map(|site| Hook { block, site }))
}

/// The same model on its two implementations: slices, and burn tensors.
fn models(tiny: &Tiny) -> [LanguageModel; 2] {
    let file = TempFile::new(&tiny.bytes());
    [true, false].map(|on_host| LanguageModel::open_as(file.path(), &cpu(), on_host, None, Products::F32).unwrap())
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n).map(|_| (random.next() * 100.0) as u32).collect()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn check_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let off = found.iter().zip(expected).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>().sqrt();
    assert!(off <= 2e-6 * norm, "{what}: off by {:e} of its norm", off / norm);
}

#[test]
fn every_hook_gives_what_the_naive_forward_gives() {
    let tiny = Tiny::new();
    // 70 tokens are more than one tile of queries.
    let contexts = [tokens(70, 1), tokens(70, 2), tokens(70, 3)];
    for model in models(&tiny) {
        let batch = contexts.concat();
        let mut seen: Vec<(Hook, Vec<f64>)> = hooks().map(|hook| (hook, Vec::new())).collect();
        let mut hidden = Vec::new();
        for context in &contexts {
            let last = naive::forward(&tiny, context, |at, x| {
                let (_, rows) = seen.iter_mut().find(|(hook, _)| *hook == at).unwrap();
                rows.extend(x.concat());
            });
            hidden.extend(last.concat());
        }
        for (hook, expected) in seen {
            check_close(&model.activations(&batch, 70, hook).unwrap(), &expected, &hook.to_string());
        }
        check_close(&values(model.hidden(&batch, 70).unwrap()), &hidden, "hidden state");

        let rows = model.hidden(&batch, 70).unwrap().narrow(0, 5, 2);
        let logits: Vec<f64> =
            hidden[5 * D_MODEL..7 * D_MODEL].chunks_exact(D_MODEL).flat_map(|row| naive::unembed(&tiny, row)).collect();
        check_close(&values(model.unembed(rows)), &logits, "logits");
    }
}

#[test]
fn several_hooks_in_one_pass_give_what_each_gives_alone() {
    let tiny = Tiny::new();
    let batch = tokens(2 * 300, 7);
    for model in models(&tiny) {
        let all: Vec<Hook> = hooks().collect();
        // Backwards, one alone, one twice.
        for some in [all.iter().rev().copied().collect(), vec![all[3]], vec![all[6], all[1], all[6]]] {
            let together = model.activations_at(&batch, 300, &some).unwrap();
            assert_eq!(together.len(), some.len());
            for (values, &hook) in together.iter().zip(&some) {
                assert_eq!(values, model.run_to(&batch, 300, hook).unwrap().value(), "{hook}");
            }
        }
        assert!(model.activations_at(&batch, 300, &[]).unwrap().is_empty());
        let behind = Hook { block: N_LAYERS, ..all[0] };
        assert!(model.activations_at(&batch, 300, &[all[0], behind]).is_err());
    }
}

#[test]
fn a_replacement_reaches_everything_behind_its_hook() {
    let tiny = Tiny::new();
    let context = tokens(9, 4);
    let mut random = Random(5);
    let replacement: Vec<f32> = (0..9 * D_MODEL).map(|_| (4.0 * random.next() - 2.0) as f32).collect();
    for model in models(&tiny) {
        for hook in hooks() {
            let paused = model.run_to(&context, 9, hook).unwrap();
            assert_eq!(paused.value(), model.activations(&context, 9, hook).unwrap());
            let expected = naive::forward(&tiny, &context, |at, x| {
                if at == hook {
                    *x = replacement
                        .chunks_exact(D_MODEL)
                        .map(|row| row.iter().map(|&x| f64::from(x)).collect())
                        .collect();
                }
            });
            let found = values(model.resume(&paused, Some(&replacement)).unwrap());
            check_close(&found, &expected.concat(), &hook.to_string());
        }
    }
}

#[test]
fn resuming_unchanged_is_the_plain_forward_bit_for_bit() {
    let tiny = Tiny::new();
    let batch = tokens(11 * 130, 6);
    for model in models(&tiny) {
        let plain = values(model.hidden(&batch, 130).unwrap());
        for hook in hooks() {
            let paused = model.run_to(&batch, 130, hook).unwrap();
            assert!(values(model.resume(&paused, None).unwrap()) == plain, "{hook}");
            let own = paused.value().to_vec();
            assert!(values(model.resume(&paused, Some(&own)).unwrap()) == plain, "{hook}, its own value");
        }
    }
}

#[test]
fn a_context_has_the_same_bits_in_every_batch_and_with_any_number_of_threads() {
    let [model, _] = models(&Tiny::new());
    let hook = Hook { block: 2, site: Site::ResidPost };
    // Contexts of 1 and 2 tokens take other paths through the matrix product.
    for (context, n) in [(1, 700), (2, 300), (7, 200), (128, 9), (600, 3)] {
        let batch = tokens(context * n, 8);
        let together = model.activations(&batch, context, hook).unwrap();
        for i in [0, n / 2, n - 1] {
            let alone = model.activations(&batch[i * context..][..context], context, hook).unwrap();
            assert!(
                alone == together[i * context * D_MODEL..][..context * D_MODEL],
                "context {i} of {n}, {context} tokens"
            );
        }
        for n_threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let found = pool.install(|| model.activations(&batch, context, hook).unwrap());
            assert!(found == together, "{n_threads} threads, contexts of {context} tokens");
        }
    }
}

#[test]
fn losses_are_those_of_the_logits() {
    let tiny = Tiny::new();
    let [model, _] = models(&tiny);
    let batch = tokens(300, 9);
    let targets = tokens(300, 10);
    let losses = model.next_token_loss_nats(model.hidden(&batch, 100).unwrap(), &targets).unwrap();
    assert_eq!(losses.len(), 300);
    for (context, (targets, losses)) in batch.chunks(100).zip(targets.chunks(100).zip(losses.chunks(100))) {
        let hidden = naive::forward(&tiny, context, |_, _| {});
        for ((row, &target), &loss) in hidden.iter().zip(targets).zip(losses) {
            let logits = naive::unembed(&tiny, row);
            let expected = logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[target as usize];
            assert!((f64::from(loss) - expected).abs() <= 1e-5 * expected.max(1.0), "{loss} against {expected}");
        }
    }
}

#[test]
fn token_embeddings_are_the_rows_of_the_table() {
    let tiny = Tiny::new();
    let ids = [0, 5, 104, 5];
    for model in models(&tiny) {
        let found = model.token_embeddings(&ids).unwrap();
        for (row, &id) in found.chunks_exact(D_MODEL).zip(&ids) {
            check_close(row, &tiny.weights["token_embd.weight"][id as usize * D_MODEL..][..D_MODEL], "embedding");
        }
        assert!(model.token_embeddings(&[]).unwrap().is_empty());
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let [model, _] = models(&Tiny::new());
    let hook = Hook { block: 1, site: Site::ResidPost };
    let check = |result: anyhow::Result<Vec<f32>>, expected: &str| {
        let message = format!("{:#}", result.unwrap_err());
        assert!(message.contains(expected), "{message}");
    };
    check(model.activations(&[1, 2, 3], 2, hook), "no whole number of contexts");
    check(model.activations(&[], 2, hook), "no tokens");
    check(model.activations(&[1], 0, hook), "a context of 0 tokens");
    check(model.activations(&vec![1; CONTEXT_LENGTH + 1], CONTEXT_LENGTH + 1, hook), "this model takes 1 to");
    check(model.activations(&[1, 5000], 2, hook), "token 5000 at row 1");
    check(model.activations(&[1], 1, Hook { block: N_LAYERS, ..hook }), "this model has blocks 0 to 2");
    check(model.token_embeddings(&[5000]), "token 5000");
    let paused = model.run_to(&[1, 2], 2, hook).unwrap();
    check(model.resume(&paused, Some(&[0.0])).map(values), "a replacement of 1 values");
}
