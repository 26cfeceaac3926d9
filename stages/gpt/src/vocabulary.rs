//! Characters as tokens: each byte that occurs in the text is one. Text in ASCII has a token for each character, as the
//! small data sets have it, and so has enwik8, whose published figures are per byte; a character beyond ASCII is two to four
//! tokens. In exchange any other text can be read too: bytes that the vocabulary lacks are left out, as `lm::Tokenizer`
//! does it with every byte-level vocabulary.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The bytes of a text, in ascending order; a token is a byte's place among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    separator: u32,
}

impl Vocabulary {
    /// Of the bytes that occur in a text, a part of which is trained on.
    pub fn of(text: &[u8], trained_on: &[u8]) -> Self {
        let mut occurs = [false; 256];
        text.iter().for_each(|&byte| occurs[usize::from(byte)] = true);
        let bytes: Vec<u8> = (0..=255).filter(|&byte| occurs[usize::from(byte)]).collect();
        let separator = [b'\n', b' '].into_iter().find(|byte| trained_on.contains(byte));
        let separator = separator.or(trained_on.first().copied()).unwrap_or_default();
        let separator = bytes.iter().position(|&byte| byte == separator).unwrap_or_default() as u32;
        Self { bytes, separator }
    }

    /// From `tokenizer.json`, as `tokenizer_json` makes it. Errors: it was not made here.
    pub(crate) fn from_json(json: &Value, separator: usize) -> Result<Self> {
        let names = json["model"]["vocab"].as_object().context("model.vocab is missing")?;
        let byte_of = |name: &str| (0..=255).find(|&byte| name.chars().eq([symbol(byte)]));
        let bytes: Option<Vec<u8>> = names.keys().map(|name| byte_of(name)).collect();
        let is_ordered = names.values().enumerate().all(|(i, token)| token.as_u64() == Some(i as u64));
        let bytes = bytes.filter(|_| is_ordered).context("model.vocab is not one of single bytes")?;
        ensure!(separator < bytes.len(), "token {separator} is not in it");
        Ok(Self { bytes, separator: separator as u32 })
    }

    pub fn n_tokens(&self) -> usize {
        self.bytes.len()
    }

    /// Errors: a byte that is not in the vocabulary (it is named).
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>> {
        let mut token_of = [u32::MAX; 256];
        self.bytes.iter().zip(0..).for_each(|(&byte, token)| token_of[usize::from(byte)] = token);
        let tokens: Vec<u32> = text.iter().map(|&byte| token_of[usize::from(byte)]).collect();
        let missing = tokens.iter().position(|&token| token == u32::MAX);
        ensure!(missing.is_none(), "{:?} does not occur in the text", char::from(text[missing.unwrap_or(0)]));
        Ok(tokens)
    }

    /// The text that the vocabulary is of, each byte in the place of its token: no token is above 255.
    pub fn encode_in_place(&self, mut text: Vec<u8>) -> Vec<u8> {
        let mut token_of = [0; 256];
        self.bytes.iter().zip(0..).for_each(|(&byte, token)| token_of[usize::from(byte)] = token);
        text.iter_mut().for_each(|byte| *byte = token_of[usize::from(*byte)]);
        text
    }

    /// Bytes that are no UTF-8 come out as U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().filter_map(|&token| self.bytes.get(token as usize)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What stands in front of a context: the end of a line, or of a word where what is trained on has no lines. The model
    /// has seen either in front of everything, which it has not of a token of its own.
    pub fn separator(&self) -> u32 {
        self.separator
    }

    /// `tokenizer.json`: byte-level BPE, as GPT-2's, without a single merge.
    pub fn tokenizer_json(&self) -> Value {
        let names: serde_json::Map<String, Value> =
            self.bytes.iter().zip(0..).map(|(&byte, token)| (symbol(byte).to_string(), json!(token))).collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "vocab": names,
                "merges": [],
            },
        })
    }
}

/// GPT-2's name of a byte: printable ones stand for themselves, the others for U+0100 and up, in order.
fn symbol(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|&other| !is_printable(other)).count();
    char::from_u32(0x100 + n_before as u32).expect("U+0100 to U+0143 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_and_what_never_occurred_is_named() {
        let text = "naïve café\n中文";
        let vocabulary = Vocabulary::of(text.as_bytes(), text.as_bytes());
        assert_eq!(vocabulary.decode(&vocabulary.encode(text.as_bytes()).unwrap()), text);
        let in_place = vocabulary.encode_in_place(text.as_bytes().to_vec());
        assert_eq!(
            in_place.into_iter().map(u32::from).collect::<Vec<_>>(),
            vocabulary.encode(text.as_bytes()).unwrap()
        );
        let error = vocabulary.encode(b"cafeteria").unwrap_err().to_string();
        assert_eq!(error, "'t' does not occur in the text");
    }

    #[test]
    fn the_separator_is_the_end_of_a_line_or_of_a_word() {
        for (text, separator) in [("a b\nc", "\n"), ("a b", " "), ("ab", "a")] {
            let vocabulary = Vocabulary::of(text.as_bytes(), text.as_bytes());
            assert_eq!(vocabulary.decode(&[vocabulary.separator()]), separator);
        }
    }
}
