//! The texts as tokens, their end kept for validation, and batches of them.

use anyhow::{Result, ensure};
use artifact::random::stream;
use gpt::Vocabulary;
use rand::RngExt;
use texts::Documents;

/// Contexts and what follows each token: [contexts · length] each.
pub(crate) type Batch = (Vec<u32>, Vec<u32>);

pub(crate) struct Corpus {
    pub(crate) vocabulary: Vocabulary,
    tokens: Vec<u8>,
    /// What is trained on comes before this.
    n_train: usize,
    context_length: usize,
}

impl Corpus {
    /// All documents of all texts, one after another, with the end of a line between two of which the first does not end
    /// with white space. A text that the harvest is to cut into documents is read whole.
    ///
    /// Errors: a document cannot be read, or there is too little text.
    pub(crate) fn read(texts: &[Documents], validation_fraction: f64, context_length: usize) -> Result<Self> {
        let mut text = Vec::new();
        for documents in texts {
            for i in 0..documents.len() {
                if text.last().is_some_and(|byte: &u8| !byte.is_ascii_whitespace()) {
                    text.push(b'\n');
                }
                text.extend(documents.read(i)?.text.into_bytes());
            }
        }
        Self::of(text, validation_fraction, context_length)
    }

    fn of(text: Vec<u8>, validation_fraction: f64, context_length: usize) -> Result<Self> {
        let n_validation = (text.len() as f64 * validation_fraction).round() as usize;
        let n_train = text.len() - n_validation;
        let vocabulary = Vocabulary::of(&text, &text[..n_train]);
        ensure!(
            n_train.min(n_validation) > context_length,
            "source.model.texts hold {} characters, {n_train} to train on and {n_validation} for validation: too few for \
             contexts of pretrain.context_length = {context_length}",
            text.len()
        );
        let tokens = vocabulary.encode_in_place(text);
        Ok(Self { vocabulary, tokens, n_train, context_length })
    }

    pub(crate) fn n_train(&self) -> usize {
        self.n_train
    }

    pub(crate) fn n_validation(&self) -> usize {
        self.tokens.len() - self.n_train
    }

    /// Contexts from anywhere in the text to train on, of which each step draws its own.
    pub(crate) fn draw(&self, n_contexts: usize, seed: u64, step: u64) -> Batch {
        let mut random = stream(seed, "pretrain/batch", 0, step);
        let last = self.n_train - self.context_length - 1;
        self.batch((0..n_contexts).map(|_| random.random_range(0..=last)))
    }

    /// Where contexts for validation start, at most so many, evenly spread; none overlaps another.
    pub(crate) fn validation_starts(&self, at_most: usize) -> Vec<usize> {
        let n_there = (self.n_validation() - 1) / self.context_length;
        let n = n_there.min(at_most);
        (0..n).map(|i| self.n_train + i * n_there / n * self.context_length).collect()
    }

    /// The contexts that start there.
    pub(crate) fn batch(&self, starts: impl Iterator<Item = usize>) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for start in starts {
            let tokens = &self.tokens[start..=start + self.context_length];
            inputs.extend(tokens[..self.context_length].iter().map(|&token| u32::from(token)));
            targets.extend(tokens[1..].iter().map(|&token| u32::from(token)));
        }
        (inputs, targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Characters that tell their place.
    fn corpus(n: u8, context_length: usize) -> Corpus {
        Corpus::of((0..n).collect(), 0.2, context_length).unwrap()
    }

    #[test]
    fn contexts_for_validation_are_apart_and_training_sees_none_of_them() {
        let corpus = corpus(200, 7);
        assert_eq!((corpus.n_train(), corpus.n_validation()), (160, 40));
        assert_eq!(corpus.validation_starts(100), [160, 167, 174, 181, 188]);
        assert_eq!(corpus.validation_starts(2), [160, 174]);
        let (inputs, targets) = corpus.draw(2000, 0, 3);
        assert!(targets.iter().zip(&inputs).all(|(target, input)| *target == input + 1));
        // From the first to the last that there is to train on, and nothing behind it.
        assert_eq!((inputs.iter().min(), targets.iter().max()), (Some(&0), Some(&159)));
        assert_ne!(corpus.draw(4, 0, 3), corpus.draw(4, 0, 4));
        assert_eq!(corpus.draw(4, 0, 3), corpus.draw(4, 0, 3));
    }

    #[test]
    fn what_stands_in_front_of_contexts_has_been_trained_on() {
        let separator = |text: &str| {
            let corpus = Corpus::of(text.as_bytes().to_vec(), 0.5, 4).unwrap();
            corpus.vocabulary.decode(&[corpus.vocabulary.separator()])
        };
        assert_eq!(separator("one\nor two lines"), "\n");
        assert_eq!(separator("no line at all, no"), " ");
        assert_eq!(separator("a line that ends behind\nit"), " ");
        assert_eq!(separator("a line behind what is trained on\n"), " ");
    }

    #[test]
    fn too_little_text_is_said_with_its_numbers() {
        let error = Corpus::of(b"to be or not to be".to_vec(), 0.2, 8).err().unwrap().to_string();
        assert!(error.contains("18 characters, 14 to train on and 4 for validation"), "{error}");
    }
}
