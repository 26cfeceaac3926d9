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

use super::{Places, SEPARATOR, Tokenizer, byte_of_symbol};
use crate::gguf::{Gguf, Value};

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

impl Tokenizer {
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
        let inner = build(tokens, merges)?.into();
        Ok(Self { inner, token_bytes, has_byte, specials, separator, places: Places::Walk })
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
