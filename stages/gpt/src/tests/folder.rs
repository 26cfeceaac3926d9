//! The files that are written, as `lm` reads them.

use lm::LanguageModel;

use super::tiny;
use crate::{HostPass, Shape, Vocabulary, files};

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
    let expected = HostPass::new(shape, inputs.len()).loss(&weights, (inputs, targets));
    assert!((found - expected).abs() <= 2e-6, "{found} against {expected}");
}
