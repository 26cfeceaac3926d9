//! The tokenizer of a folder in Hugging Face format: `tokenizer.json`, as `tokenizers` reads it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Error, Result, bail, ensure};
use artifact::guarded::guarded;
use tokenizers::{DecoderWrapper, PostProcessorWrapper};

use super::{Places, SEPARATOR, Tokenizer, byte_of_symbol};

/// SentencePiece's sign for a space.
const SPACE: char = '▁';

impl Tokenizer {
    /// `separator` is the token that begins a text by `config.json`, `n_vocab` the rows of the model's embedding.
    /// Errors name the file: not readable, tokens that the model has no row for, no separator.
    pub(crate) fn from_folder(folder: &Path, separator: Option<u32>, n_vocab: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        Self::read_json(&path, separator, n_vocab).with_context(|| path.display().to_string())
    }

    fn read_json(path: &Path, separator: Option<u32>, n_vocab: usize) -> Result<Self> {
        let text = std::fs::read(path).context("cannot read")?;
        let mut inner = guarded("reader of tokenizers", || {
            tokenizers::Tokenizer::from_bytes(&text).map_err(Error::from_boxed).context("not a readable tokenizer")
        })?;
        inner.with_truncation(None).map_err(Error::from_boxed)?;
        inner.with_padding(None);
        // It would put special tokens around each text, and take spaces out of tokens' places.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        inner.set_encode_special_tokens(true);
        let alphabet = match inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Alphabet::ByteLevel(byte_of_symbol()),
            Some(DecoderWrapper::Sequence(_)) => Alphabet::SentencePiece,
            _ => bail!("its decoder is not supported, only byte-level and SentencePiece ones"),
        };

        let mut names: Vec<(u32, String)> = inner.get_vocab(true).into_iter().map(|(name, id)| (id, name)).collect();
        names.sort_unstable();
        let n_tokens = names.last().map_or(0, |&(id, _)| id as usize + 1);
        ensure!(n_tokens <= n_vocab, "token {} has no row in an embedding of {n_vocab}", n_tokens.saturating_sub(1));
        let added = inner.get_added_tokens_decoder();
        let mut token_bytes = vec![Vec::new(); n_tokens];
        let mut specials = BTreeMap::new();
        for (id, name) in names {
            let is_written_out = match &alphabet {
                Alphabet::ByteLevel(_) => added.contains_key(&id),
                // Runs of spaces are added tokens, and not special ones.
                Alphabet::SentencePiece => added.get(&id).is_some_and(|token| token.special),
            };
            token_bytes[id as usize] = if is_written_out { name.clone().into_bytes() } else { alphabet.bytes(&name) };
            if added.get(&id).is_some_and(|token| token.special) {
                specials.insert(name, id);
            }
        }
        // What chat models begin with is no beginning of a text.
        let separator = specials.get(SEPARATOR).copied().or(separator);
        let separator = separator.with_context(|| {
            format!("there is no {SEPARATOR}, and config.json has neither bos_token_id nor eos_token_id")
        })?;
        ensure!((separator as usize) < n_tokens, "token {separator} of config.json is not in the vocabulary");
        let mut has_byte = [false; 256];
        for bytes in &token_bytes {
            if let [byte] = bytes[..] {
                has_byte[usize::from(byte)] = true;
            }
        }
        let is_unchanged = matches!(alphabet, Alphabet::ByteLevel(_)) && inner.get_normalizer().is_none();
        let places = if is_unchanged { Places::Walk } else { Places::Told };
        Ok(Self { inner, token_bytes, has_byte, specials, separator, places })
    }
}

/// How a token's name says which bytes it stands for.
enum Alphabet {
    ByteLevel(BTreeMap<char, u8>),
    SentencePiece,
}

impl Alphabet {
    fn bytes(&self, name: &str) -> Vec<u8> {
        match self {
            // What is not in the alphabet stands for itself.
            Self::ByteLevel(bytes) => name.chars().map(|symbol| bytes.get(&symbol).copied()).collect::<Option<_>>(),
            Self::SentencePiece => byte_of_name(name).map(|byte| vec![byte]),
        }
        .unwrap_or_else(|| name.replace(SPACE, " ").into_bytes())
    }
}

/// `<0x41>` is the byte 0x41.
fn byte_of_name(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
