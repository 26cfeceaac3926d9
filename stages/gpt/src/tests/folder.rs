//! The files that are written, as `lm` reads them.

use artifact::config::Products;
use lm::LanguageModel;

use super::tiny;
use crate::{HostPass, Shape, Vocabulary, files, read};

#[test]
fn the_folder_is_a_language_model_with_the_same_losses() {
    let text = "naïve café,\nto be or not";
    let vocabulary = Vocabulary::of(text.as_bytes(), text.as_bytes());
    let shape = Shape { n_vocab: vocabulary.n_tokens(), ..tiny().0 };
    let weights: Vec<f32> = crate::initial(&shape, 7).into_iter().map(|w| w * 3.0).collect();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files(&shape, &weights, &vocabulary).unwrap() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let (found_shape, found_weights, found_vocabulary) = read(folder.path()).unwrap();
    assert!(found_shape == shape && found_weights == weights && found_vocabulary == vocabulary);
    let model = LanguageModel::open(folder.path(), &lm::cpu()).unwrap();
    let tokenizer = model.tokenizer();
    let encoding = tokenizer.encode(text).unwrap();
    assert_eq!(encoding.ids, vocabulary.encode(text.as_bytes()).unwrap());
    assert_eq!(encoding.offsets, (0..text.len()).map(|i| (i, i + 1)).collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(&encoding.ids), text);
    assert_eq!(tokenizer.separator(), vocabulary.separator());
    // What the text lacks is left out.
    assert_eq!(tokenizer.encode("to Z be").unwrap().ids, vocabulary.encode(b"to  be").unwrap());

    let (inputs, targets) = (&encoding.ids[..text.len() - 1], &encoding.ids[1..]);
    let hidden = model.hidden(inputs, inputs.len()).unwrap();
    let losses = model.next_token_loss_nats(hidden, targets).unwrap();
    let found = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
    let expected = HostPass::new(shape, inputs.len(), Products::F32).loss(&weights, (inputs, targets));
    assert!((found - expected).abs() <= 2e-6, "{found} against {expected}");
}

#[test]
fn what_was_not_made_here_is_refused_by_its_file() {
    let text = "to be";
    let vocabulary = Vocabulary::of(text.as_bytes(), text.as_bytes());
    let shape = Shape { n_vocab: vocabulary.n_tokens(), ..tiny().0 };
    let weights = crate::initial(&shape, 7);
    for (file, from, to, said) in [
        ("config.json", "\"n_embd\": 21", "\"n_embd\": 24", "model.safetensors"),
        ("config.json", "\"n_layer\": 2", "\"n_layer\": \"two\"", "config.json: n_layer"),
        ("config.json", "\"n_head\": 3", "\"n_head\": 0", "config.json: n_embd = 21 does not divide"),
        ("config.json", "\"n_layer\": 2", "\"n_layer\": 1000000000000", "too few for"),
        ("config.json", "\"bos_token_id\": 0", "\"bos_token_id\": 4294967296", "tokenizer.json: token 4294967296"),
        ("config.json", "\"bos_token_id\"", "\"bos\"", "config.json: bos_token_id"),
        ("tokenizer.json", "\"t\":", "\"tt\":", "tokenizer.json: model.vocab"),
        ("model.safetensors", "", "", "model.safetensors"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files(&shape, &weights, &vocabulary).unwrap() {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let path = folder.path().join(file);
        match String::from_utf8(std::fs::read(&path).unwrap()) {
            Ok(before) if !from.is_empty() => {
                assert!(before.contains(from), "{file} has no {from}");
                std::fs::write(&path, before.replace(from, to)).unwrap();
            }
            _ => std::fs::write(&path, &std::fs::read(&path).unwrap()[..100]).unwrap(),
        }
        let error = format!("{:#}", read(folder.path()).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
}
