//! Text to tokens and back, by the tokenizer that a model comes with.

mod gguf;
mod huggingface;

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, ensure};
use artifact::guarded::guarded;

/// The token that stands between documents, where a vocabulary has it.
const SEPARATOR: &str = "<|endoftext|>";

/// Text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The bytes each token stands for; of a special token, its name.
    token_bytes: Vec<Vec<u8>>,
    /// Whether the vocabulary has a token for this single byte.
    has_byte: [bool; 256],
    /// Name to id of the special tokens.
    specials: BTreeMap<String, u32>,
    separator: u32,
    places: Places,
}

/// How a token's place in the text is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Places {
    /// By walking over the text and the tokens' bytes together: they are the same, but for bytes without a token, behind
    /// which `tokenizers` counts wrongly.
    Walk,
    /// As `tokenizers` says: it keeps track of what is changed before text is cut.
    Told,
}

/// A text's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    pub ids: Vec<u32>,
    /// Of each token, the bytes [start, end) of the text that it stands for. Ends may lie inside a character, but where text
    /// is changed before it is cut (SentencePiece, or a normaliser): there each part of a character has all of it.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Splits a text into tokens. Everything is read as plain text: `<|endoftext|>` in it becomes several ordinary
    /// tokens, never the separator. Bytes for which the vocabulary has no token (in SmolLM2 some control characters
    /// and the lead bytes of unassigned planes) are left out; `offsets` skips over them.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        if self.places == Places::Walk {
            let ids = self.run(|| self.inner.encode_fast(text, false))?.get_ids().to_vec();
            let offsets = self.offsets(text.as_bytes(), &ids)?;
            return Ok(Encoding { ids, offsets });
        }
        let encoding = self.run(|| self.inner.encode(text, false))?;
        let (ids, offsets) = (encoding.get_ids().to_vec(), encoding.get_offsets().to_vec());
        Ok(Encoding { ids, offsets })
    }

    fn run(&self, encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>) -> Result<tokenizers::Encoding> {
        guarded("tokenizers' library", || encode().map_err(Error::from_boxed)).context("tokenizing")
    }

    /// The text of a token. Tokens that hold part of a character come out with U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id).unwrap_or_default()).into_owned()
    }

    /// The bytes of a token, or none if there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.token_bytes.get(id as usize).map(Vec::as_slice)
    }

    /// The text of a sequence of tokens; characters split over tokens are put together again.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id).unwrap_or_default()).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The token that begins every context and stands between documents: `<|endoftext|>` where there is one, or else the
    /// one that the model's configuration says begins a text, or ends it.
    pub fn separator(&self) -> u32 {
        self.separator
    }

    /// The id of a special token by its name, such as `<|im_start|>`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.get(name).copied()
    }

    /// Number of tokens; the model may have more rows.
    pub fn n_vocab(&self) -> usize {
        self.token_bytes.len()
    }

    /// Finds each token's bytes in the text. The tokens' bytes are the text's, in order, but for the bytes that have no
    /// token, so a walk over both finds every place. (`tokenizers` counts wrongly behind a byte it leaves out.)
    fn offsets(&self, text: &[u8], ids: &[u32]) -> Result<Vec<(usize, usize)>> {
        let mut offsets = Vec::with_capacity(ids.len());
        let mut at = 0;
        for &id in ids {
            let mut start = None;
            for &byte in self.token_bytes(id).with_context(|| format!("token {id} is not in the vocabulary"))? {
                while at < text.len() && text[at] != byte && !self.has_byte[usize::from(text[at])] {
                    at += 1;
                }
                ensure!(text.get(at) == Some(&byte), "token {id} does not stand for the text at byte {at}");
                start.get_or_insert(at);
                at += 1;
            }
            offsets.push((start.unwrap_or(at), at));
        }
        Ok(offsets)
    }
}

/// GPT-2's alphabet, character to byte: printable bytes stand for themselves, the others for U+0100 and up, in order.
fn byte_of_symbol() -> BTreeMap<char, u8> {
    let mut next = 0x100;
    (0..=255_u8)
        .map(|byte| {
            if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
                (char::from(byte), byte)
            } else {
                let symbol = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
                next += 1;
                (symbol, byte)
            }
        })
        .collect()
}
