//! Each family against transformers: small random checkpoints that it saved, and what it computes from them.
//! `tests/reference/lm_families.py` made the folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use safetensors::{Dtype, SafeTensors};

use crate::{Hook, LanguageModel, Products, Site, cpu};

const FAMILIES: [&str; 7] = ["gemma2", "gpt2", "gpt_neox", "gpt_neox_serial", "llama", "qwen2", "qwen3"];
const SITES: [Site; 4] = [Site::ResidPre, Site::AttnOut, Site::MlpOut, Site::ResidPost];
/// Of the norm of what is compared.
const TOLERANCE: f64 = 2e-6;

pub(super) fn folder(family: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lm")).join(family)
}

/// The same model on its two implementations: slices, and burn tensors.
fn models(folder: &Path) -> [LanguageModel; 2] {
    [true, false].map(|on_host| LanguageModel::open_as(folder, &cpu(), on_host, None, Products::F32).unwrap())
}

struct Expected {
    tokens: Vec<u32>,
    values: BTreeMap<String, Vec<f32>>,
}

fn expected(folder: &Path) -> Expected {
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let of = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect();
    let names = tensors.iter().filter(|(_, view)| view.dtype() == Dtype::F32).map(|(name, _)| name.to_owned());
    Expected {
        tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
        values: names.map(|name| (name.clone(), of(&name))).collect(),
    }
}

fn check_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = expected.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>().sqrt();
    let off = found.iter().zip(expected).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>().sqrt();
    assert!(off <= TOLERANCE * norm, "{what}: off by {:e} of its norm", off / norm);
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

#[test]
fn every_hook_and_the_logits_are_those_of_transformers() {
    for family in FAMILIES {
        let (folder, mut expected) = (folder(family), expected(&folder(family)));
        let context = expected.tokens.len();
        let logits = expected.values.remove("logits").unwrap();
        for model in models(&folder) {
            let mut n_seen = 2; // of the replacements below
            for hook in (0..model.config().n_layers).flat_map(|block| SITES.map(|site| Hook { block, site })) {
                let what = format!("{family} {hook}");
                let paused = model.run_to(&expected.tokens, context, hook).unwrap();
                check_close(paused.value(), &expected.values[&hook.to_string()], &what);
                // On from the hook with what was found there, and with a copy of it.
                for replacement in [None, Some(paused.value())] {
                    let hidden = model.resume(&paused, replacement).unwrap();
                    check_close(&values(model.unembed(hidden)), &logits, &format!("logits from {what}"));
                }
                n_seen += 1;
            }
            assert_eq!(n_seen, expected.values.len(), "{family}");
        }
    }
}

#[test]
fn gguf_files_of_each_family_are_those_of_transformers() {
    for family in ["llama", "qwen2", "qwen3"] {
        let folder = folder("gguf").join(family);
        let mut expected = expected(&folder);
        let context = expected.tokens.len();
        let logits = expected.values.remove("logits").unwrap();
        for model in models(&folder.join("model.gguf")) {
            let hooks = (0..model.config().n_layers).flat_map(|block| SITES.map(|site| Hook { block, site }));
            assert_eq!(hooks.clone().count(), expected.values.len(), "{family}");
            for hook in hooks {
                let found = model.activations(&expected.tokens, context, hook).unwrap();
                check_close(&found, &expected.values[&hook.to_string()], &format!("{family} {hook}"));
            }
            let hidden = model.hidden(&expected.tokens, context).unwrap();
            check_close(&values(model.unembed(hidden)), &logits, &format!("logits of {family}"));
            let rows: Vec<serde_json::Value> =
                serde_json::from_slice(&std::fs::read(folder.join("texts.json")).unwrap()).unwrap();
            assert!(rows.len() >= 20);
            for row in rows {
                let text = row["text"].as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
                let found = model.tokenizer().encode(text).unwrap();
                assert_eq!(found.ids, ids, "{family}: {text:?}");
                if family == "llama" {
                    // All bytes are in its vocabulary, and no text is normalised: tokens lie end to end.
                    assert!(found.offsets.windows(2).all(|pair| pair[0].1 == pair[1].0), "{text:?}");
                    assert_eq!(found.offsets.last().map_or(0, |last| last.1), text.len());
                }
                if !text.contains('\u{301}') {
                    assert_eq!(model.tokenizer().decode(&ids), text, "{family}");
                }
            }
        }
    }
}

#[test]
fn a_part_that_adds_nothing_is_missed_as_in_transformers() {
    for family in FAMILIES {
        let (folder, expected) = (folder(family), expected(&folder(family)));
        let n_rows = expected.tokens.len();
        for (model, site) in models(&folder).iter().flat_map(|model| [(model, Site::AttnOut), (model, Site::MlpOut)]) {
            let hook = Hook { block: 0, site };
            let paused = model.run_to(&expected.tokens, n_rows, hook).unwrap();
            let hidden = model.resume(&paused, Some(&vec![0.0; paused.value().len()])).unwrap();
            let logits = values(model.unembed(hidden.narrow(0, n_rows - 1, 1)));
            check_close(&logits, &expected.values[&format!("without.{hook}")], &format!("{family} without {hook}"));
        }
    }
}

#[test]
fn a_model_opened_up_to_a_hook_ends_there() {
    let (folder, expected) = (folder("gpt_neox"), expected(&folder("gpt_neox")));
    let hook = Hook { block: 0, site: Site::ResidPost };
    for on_host in [true, false] {
        let model = LanguageModel::open_as(&folder, &cpu(), on_host, Some(hook), Products::F32).unwrap();
        let paused = model.run_to(&expected.tokens, expected.tokens.len(), hook).unwrap();
        check_close(paused.value(), &expected.values[&hook.to_string()], "the hook");
        let error = format!("{:#}", model.resume(&paused, None).unwrap_err());
        assert!(error.contains("opened up to blocks.0.hook_resid_post"), "{error}");
        let behind = Hook { block: 1, ..hook };
        let error = format!("{:#}", model.activations(&expected.tokens, 24, behind).unwrap_err());
        assert!(error.contains("blocks.1.hook_resid_post lies behind"), "{error}");
    }
}

#[test]
fn rounded_products_are_near_and_the_same_at_any_number_of_threads() {
    for (products, tolerance) in [(Products::Bf16, 0.01), (Products::Int8, 0.04)] {
        for family in FAMILIES {
            let (folder, expected) = (folder(family), expected(&folder(family)));
            let hook = Hook { block: 1, site: Site::ResidPost };
            let model = LanguageModel::open_up_to(&folder, &cpu(), hook, products).unwrap();
            let tokens = expected.tokens.repeat(40);
            let found = model.activations(&tokens, expected.tokens.len(), hook).unwrap();
            let exact = &expected.values[&hook.to_string()];
            let norm = exact.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>().sqrt();
            let off: f64 = found.iter().zip(exact).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
            let off = off.sqrt() / norm;
            assert!((1e-6..=tolerance).contains(&off), "{products:?} {family}: off by {off:e}");
            assert!(found.chunks_exact(exact.len()).all(|again| *again == found[..exact.len()]), "{family}");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let alone = pool.install(|| model.activations(&tokens, expected.tokens.len(), hook).unwrap());
            assert_eq!(alone, found, "{family}");
        }
        let folder = folder("llama");
        let error = LanguageModel::open_as(&folder, &cpu(), false, None, products).unwrap_err();
        assert!(format!("{error:#}").contains("the CPU's alone"), "{error:#}");
    }
}

#[test]
fn losses_are_of_the_logits_of_the_family() {
    for family in FAMILIES {
        let (folder, expected) = (folder(family), expected(&folder(family)));
        let (n_rows, logits) = (expected.tokens.len(), &expected.values["logits"]);
        let n_vocab = logits.len() / n_rows;
        for model in models(&folder) {
            let hidden = model.hidden(&expected.tokens, n_rows).unwrap();
            let losses = model.next_token_loss_nats(hidden, &expected.tokens).unwrap();
            for ((loss, row), &target) in losses.iter().zip(logits.chunks_exact(n_vocab)).zip(&expected.tokens) {
                let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                let expected = sum.ln() - f64::from(row[target as usize]);
                assert!((f64::from(*loss) - expected).abs() <= 1e-5 * expected.max(1.0), "{family}: {loss} {expected}");
            }
        }
    }
}

#[test]
fn texts_become_the_tokens_of_the_python_library() {
    for family in FAMILIES {
        let folder = folder(family);
        let model = LanguageModel::open(&folder, &cpu()).unwrap();
        let tokenizer = model.tokenizer();
        let rows: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(folder.join("texts.json")).unwrap()).unwrap();
        assert!(rows.len() >= 20);
        let is_changed_first = matches!(family, "gemma2" | "gpt_neox" | "qwen2" | "qwen3");
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let places: Vec<(usize, usize)> = serde_json::from_value(row["places"].clone()).unwrap();
            let found = tokenizer.encode(text).unwrap();
            assert_eq!(found.ids, ids, "{family}: {text:?}");
            if is_changed_first {
                assert_eq!(found.offsets, places, "{family}: {text:?}");
            } else {
                // To the byte: the library says which characters.
                let outer = found.offsets.iter().zip(&places).all(|(in_bytes, in_chars)| {
                    in_chars.0 <= in_bytes.0 && in_bytes.1 <= in_chars.1 && in_bytes.0 < in_bytes.1
                });
                assert!(outer && found.offsets.len() == places.len(), "{family}: {text:?}");
                assert!(found.offsets.windows(2).all(|pair| pair[0].1 == pair[1].0), "{family}: {text:?}");
            }
            // A normaliser puts together what the text has apart.
            if !text.contains('\u{301}') {
                assert_eq!(tokenizer.decode(&ids), text, "{family}");
            }
        }
    }
}

#[test]
fn contexts_begin_with_what_begins_a_text() {
    for (family, expected) in [("gpt2", "<|endoftext|>"), ("llama", "<|endoftext|>"), ("gemma2", "<bos>")] {
        let model = LanguageModel::open(&folder(family), &cpu()).unwrap();
        assert_eq!(model.tokenizer().token_text(model.tokenizer().separator()), expected, "{family}");
    }
}
