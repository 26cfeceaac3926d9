//! SmolLM2-135M itself: perplexities, activations and tokens against tables made by other implementations.
//!
//! Needs the model's GGUF file: `make fetch` puts it where these tests look, or HIERSAE_SMOLLM2_GGUF names it.
//! The tables come from `tests/reference/lm_activations.py` and `lm_tokens.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use burn::tensor::Tensor;
use lm::{Hook, LanguageModel};

static MODEL: LazyLock<LanguageModel> = LazyLock::new(|| {
    let path = std::env::var_os("HIERSAE_SMOLLM2_GGUF")
        .map_or_else(|| workspace("data/source/smollm2-135m/model.gguf"), PathBuf::from);
    assert!(path.is_file(), "{} is not there: run `make fetch` first", path.display());
    LanguageModel::open(&path, &lm::cpu()).unwrap()
});

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The rows of a table of tab-separated cells under tests/reference.
fn table(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(workspace("tests/reference").join(name)).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn context_of(text: &str) -> Vec<u32> {
    let tokenizer = MODEL.tokenizer();
    let mut tokens = vec![tokenizer.separator()];
    tokens.extend(tokenizer.encode(text).unwrap().ids);
    tokens
}

/// Mean loss over next tokens, in nats, of one context's hidden states.
fn mean_loss(hidden: Tensor<2>, tokens: &[u32]) -> f64 {
    let n = tokens.len() - 1;
    let losses = MODEL.next_token_loss_nats(hidden.narrow(0, 0, n), &tokens[1..]).unwrap();
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / n as f64
}

fn perplexity(text: &str) -> f64 {
    let tokens = context_of(text);
    let perplexity = mean_loss(MODEL.hidden(&tokens, tokens.len()).unwrap(), &tokens).exp();
    println!("perplexity {perplexity:.2} over {} tokens", tokens.len());
    perplexity
}

#[test]
fn perplexity_of_modern_prose() {
    assert!(perplexity(include_str!("texts/prose.txt")) < 18.0);
}

#[test]
fn perplexity_of_a_made_up_story() {
    assert!(perplexity(include_str!("texts/story.txt")) < 30.0);
}

#[test]
fn perplexity_of_python() {
    assert!(perplexity(include_str!("texts/python.txt")) < 4.0);
}

#[test]
fn perplexity_of_shuffled_words() {
    let mut words: Vec<&str> = include_str!("texts/prose.txt").split_whitespace().collect();
    // Fisher-Yates by a linear congruential generator.
    let mut state = 1_u64;
    for i in (1..words.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words.swap(i, (state >> 33) as usize % (i + 1));
    }
    let perplexity = perplexity(&words.join(" "));
    assert!(perplexity > 300.0 && perplexity < 1e5);
}

#[test]
fn the_capital_of_france_is_paris() {
    let tokens = context_of("The capital of France is");
    let last = MODEL.hidden(&tokens, tokens.len()).unwrap().narrow(0, tokens.len() - 1, 1);
    let logits: Vec<f32> = MODEL.unembed(last).into_data().try_into_vec().unwrap();
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    assert_eq!(MODEL.tokenizer().token_text(best as u32), " Paris");
}

/// The tokens of the sequences in the table of activations.
fn sequences(table: &[Vec<String>]) -> BTreeMap<String, Vec<u32>> {
    let rows = table.iter().filter(|row| row[0] == "tokens");
    rows.map(|row| (row[1].clone(), row[2..].iter().map(|id| id.parse().unwrap()).collect())).collect()
}

#[test]
fn activations_are_those_of_an_independent_forward() {
    let table = table("lm_activations.tsv");
    let sequences = sequences(&table);
    let mut activations = BTreeMap::new();
    let mut row_at = |sequence: &str, hook: &str, position: &str| {
        let tokens = &sequences[sequence];
        let values = activations
            .entry((sequence.to_owned(), hook.to_owned()))
            .or_insert_with(|| MODEL.activations(tokens, tokens.len(), hook.parse().unwrap()).unwrap());
        let d_model = MODEL.config().d_model;
        values[position.parse::<usize>().unwrap() * d_model..][..d_model].to_vec()
    };
    // Of each sampled row: its norm, and the squared distance and size of the sampled values.
    let (mut n_values, mut worst) = (0, 0.0_f64);
    let mut sampled: BTreeMap<[String; 3], (f64, f64)> = BTreeMap::new();
    for row in &table {
        match &row.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["norm", sequence, hook, position, expected] => {
                let found = row_at(sequence, hook, position);
                let norm = found.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let expected: f64 = expected.parse().unwrap();
                let error = (norm - expected).abs() / expected;
                assert!(error <= 1e-4, "{row:?}: norm {norm}");
                worst = worst.max(error);
            }
            ["value", sequence, hook, position, column, expected] => {
                let found = f64::from(row_at(sequence, hook, position)[column.parse::<usize>().unwrap()]);
                let expected: f64 = expected.parse().unwrap();
                let (distance, size) = sampled.entry([sequence, hook, position].map(|s| s.to_string())).or_default();
                *distance += (found - expected).powi(2);
                *size += expected.powi(2);
                n_values += 1;
            }
            _ => {}
        }
    }
    for (row, (distance, size)) in &sampled {
        let error = (distance / size).sqrt();
        assert!(error <= 1e-4, "{row:?}: relative error {error:e}");
        worst = worst.max(error);
    }
    println!("{n_values} values of {} rows, worst relative error {worst:e}", sampled.len());
    assert!(n_values > 400, "the table holds {n_values} values");
}

#[test]
fn losses_with_and_without_a_splice_are_those_of_an_independent_forward() {
    let table = table("lm_activations.tsv");
    let sequences = sequences(&table);
    let d_model = MODEL.config().d_model;
    let rows: Vec<_> = table.iter().filter(|row| row[0] == "loss").collect();
    assert_eq!(rows.len(), 12);
    for row in rows {
        let (tokens, expected) = (&sequences[&row[1]], row[3].parse::<f64>().unwrap());
        let hidden = match row[2].as_str() {
            "none" => MODEL.hidden(tokens, tokens.len()).unwrap(),
            hook => {
                let paused = MODEL.run_to(tokens, tokens.len(), hook.parse::<Hook>().unwrap()).unwrap();
                let mut ablated = vec![0.0; paused.value().len()];
                ablated[..d_model].copy_from_slice(&paused.value()[..d_model]);
                MODEL.resume(&paused, Some(&ablated)).unwrap()
            }
        };
        let loss = mean_loss(hidden, tokens);
        assert!((loss - expected).abs() <= 1e-4 * expected, "{row:?}: loss {loss}");
    }
}

#[test]
fn tokens_are_those_of_an_independent_tokenizer() {
    let tokenizer = MODEL.tokenizer();
    let table = table("lm_tokens.tsv");
    assert!(table.len() >= 20);
    for row in table {
        let text: String = serde_json::from_str(&row[0]).unwrap();
        let expected: Vec<u32> = row[1..].iter().map(|id| id.parse().unwrap()).collect();
        let encoding = tokenizer.encode(&text).unwrap();
        assert_eq!(encoding.ids, expected, "{text:?}");
        // Every token stands at its place, and what lies between tokens has no token.
        let mut end_before = 0;
        for (&id, &(start, end)) in encoding.ids.iter().zip(&encoding.offsets) {
            assert_eq!(tokenizer.token_bytes(id), Some(&text.as_bytes()[start..end]), "{text:?} at {start}");
            assert!(text.as_bytes()[end_before..start].iter().all(|b| matches!(b, 0..32 | 127 | 0xf1 | 0xf2 | 0xf4..)));
            end_before = end;
        }
    }
}

#[test]
fn no_character_panics_or_loses_its_neighbours() {
    let tokenizer = MODEL.tokenizer();
    for first in (0..=0x10_ffff_u32).step_by(61) {
        let characters: String = (first..first + 61).filter_map(char::from_u32).collect();
        let text = format!("before{characters}after");
        let ids = tokenizer.encode(&text).unwrap().ids;
        let back = tokenizer.decode(&ids);
        assert!(back.starts_with("before") && back.ends_with("after"), "from U+{first:04X}: {back:?}");
    }
}

#[test]
fn activations_have_the_same_bits_with_any_number_of_threads_and_in_any_batch() {
    let ids = context_of(&include_str!("texts/prose.txt").repeat(3));
    let tokens = &ids[..5 * 128];
    let hook: Hook = "blocks.15.hook_resid_post".parse().unwrap();
    let expected = MODEL.activations(tokens, 128, hook).unwrap();
    for n_threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        assert!(pool.install(|| MODEL.activations(tokens, 128, hook).unwrap()) == expected, "{n_threads} threads");
    }
    let alone = MODEL.activations(&tokens[2 * 128..3 * 128], 128, hook).unwrap();
    let d_model = MODEL.config().d_model;
    assert!(alone == expected[2 * 128 * d_model..3 * 128 * d_model]);
}
