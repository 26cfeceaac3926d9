//! The byte-level BPE tokenizer that a GGUF file carries, rebuilt.
//!
//! Text is cut into single digits and GPT-2's pieces, each piece's bytes are written as GPT-2's 256 printable
//! characters, and merges join them (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
//! Units"; the byte alphabet: Radford et al. 2019).

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, bail, ensure};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl};

use crate::gguf::{Gguf, Value};

/// The token that stands between documents.
const SEPARATOR: &str = "<|endoftext|>";
/// ggml's kinds of token.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;

type Bpe = TokenizerImpl<
    BPE,
    tokenizers::NormalizerWrapper,
    PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// Text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    bpe: Bpe,
    /// The bytes each token stands for; of a special token, its name.
    token_bytes: Vec<Vec<u8>>,
    /// Whether the vocabulary has a token for this single byte.
    has_byte: [bool; 256],
    /// Name to id of the special tokens.
    specials: BTreeMap<String, u32>,
    separator: u32,
}

/// A text's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    pub ids: Vec<u32>,
    /// Of each token, the bytes [start, end) of the text that it stands for. Ends may lie inside a character.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Splits a text into tokens. Everything is read as plain text: `<|endoftext|>` in it becomes several ordinary
    /// tokens, never the separator. Bytes for which the vocabulary has no token (in SmolLM2 some control characters
    /// and the lead bytes of unassigned planes) are left out; `offsets` skips over them.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        let encoding = self.bpe.encode_fast(text, false).map_err(Error::from_boxed).context("tokenizing")?;
        let ids = encoding.get_ids().to_vec();
        let offsets = self.offsets(text.as_bytes(), &ids)?;
        Ok(Encoding { ids, offsets })
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

    /// The id of `<|endoftext|>`: it begins every context and stands between documents.
    pub fn separator(&self) -> u32 {
        self.separator
    }

    /// The id of a special token by its name, such as `<|im_start|>`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.get(name).copied()
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.token_bytes.len()
    }

    /// Rebuilds the tokenizer. Errors name the file and the key.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::read(gguf).with_context(|| gguf.path().display().to_string())
    }

    fn read(gguf: &Gguf) -> Result<Self> {
        expect_string(gguf, "tokenizer.ggml.model", "gpt2")?;
        expect_string(gguf, "tokenizer.ggml.pre", "smollm")?;
        let tokens = strings(gguf, "tokenizer.ggml.tokens")?;
        let merges = strings(gguf, "tokenizer.ggml.merges")?;
        let Some(Value::Integers(kinds)) = gguf.get("tokenizer.ggml.token_type") else {
            bail!("tokenizer.ggml.token_type is missing or no array of integers");
        };
        ensure!(
            kinds.len() == tokens.len(),
            "tokenizer.ggml.token_type has {} rows, expected {}",
            kinds.len(),
            tokens.len()
        );

        let from_symbol = byte_of_symbol();
        let (mut token_bytes, mut specials) = (Vec::new(), BTreeMap::new());
        let mut has_byte = [false; 256];
        for (id, (token, &kind)) in (0_u32..).zip(tokens.iter().zip(kinds)) {
            match kind {
                CONTROL => {
                    specials.insert(token.clone(), id);
                    token_bytes.push(token.clone().into_bytes());
                }
                NORMAL => {
                    let bytes: Option<Vec<u8>> =
                        token.chars().map(|symbol| from_symbol.get(&symbol).copied()).collect();
                    let bytes = bytes
                        .with_context(|| format!("tokenizer.ggml.tokens[{id}]: {token:?} is no byte-level token"))?;
                    ensure!(!bytes.is_empty(), "tokenizer.ggml.tokens[{id}] is empty");
                    if let [byte] = bytes[..] {
                        has_byte[usize::from(byte)] = true;
                    }
                    token_bytes.push(bytes);
                }
                other => bail!(
                    "tokenizer.ggml.token_type[{id}] = {other}: only normal (1) and control (3) tokens are supported"
                ),
            }
        }
        let separator = *specials.get(SEPARATOR).with_context(|| format!("there is no special token {SEPARATOR}"))?;
        Ok(Self { bpe: build(tokens, merges)?, token_bytes, has_byte, specials, separator })
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

fn build(tokens: &[String], merges: &[String]) -> Result<Bpe> {
    let mut vocab = tokenizers::models::bpe::Vocab::with_capacity(tokens.len());
    for (id, token) in (0_u32..).zip(tokens) {
        if let Some(first) = vocab.insert(token.clone(), id) {
            bail!("tokenizer.ggml.tokens[{id}]: {token:?} is row {first} already");
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (row, merge) in merges.iter().enumerate() {
        let (left, right) =
            merge.split_once(' ').with_context(|| format!("tokenizer.ggml.merges[{row}]: {merge:?} is no pair"))?;
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .build()
        .map_err(Error::from_boxed)
        .context("tokenizer.ggml.merges do not fit tokenizer.ggml.tokens")?;
    let pieces = Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ]);
    TokenizerBuilder::new()
        .with_model(bpe)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(pieces)))
        .build()
        .map_err(Error::from_boxed)
        .context("building the tokenizer")
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

fn expect_string(gguf: &Gguf, key: &str, expected: &str) -> Result<()> {
    match gguf.get(key) {
        Some(Value::String(text)) if text == expected => Ok(()),
        Some(other) => bail!("{key} = {other:?} is not supported, only {expected:?}"),
        None => bail!("{key} is missing"),
    }
}

fn strings<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a [String]> {
    match gguf.get(key) {
        Some(Value::Strings(strings)) => Ok(strings),
        Some(other) => bail!("{key} is {}, expected an array of strings", other.kind()),
        None => bail!("{key} is missing"),
    }
}
