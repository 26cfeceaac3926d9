//! The byte-level BPE tokenizer that a GGUF file carries, rebuilt.
//!
//! Text is cut into pieces in the family's way, each piece's bytes are written as GPT-2's 256 printable characters, and
//! merges join them (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
//! Units"; the byte alphabet: Radford et al. 2019).

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, bail, ensure};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl};

use super::{Places, SEPARATOR, Tokenizer, byte_of_symbol};
use crate::gguf::{Gguf, Value};

/// ggml's kinds of token.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
/// Found in a text as it stands, before that is cut.
const USER_DEFINED: i64 = 4;
/// A row of the embedding that no text leads to.
const UNUSED: i64 = 5;

/// How a family cuts text, by ggml's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pieces {
    Gpt2,
    /// GPT-2's, digits apart.
    SmolLm,
    Llama3,
    Qwen2,
}

/// As their tokenizer.json have it: words with the character before them, so many digits, marks, space.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Pieces {
    fn named(name: &str) -> Result<Self> {
        match name {
            "gpt-2" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::Llama3),
            "qwen2" | "deepseek-r1-qwen" => Ok(Self::Qwen2),
            other => bail!(
                "tokenizer.ggml.pre = {other:?} is not supported, only gpt-2, smollm, llama-bpe and qwen2; a folder in Hugging \
                 Face format has its tokenizer with it"
            ),
        }
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper> {
        let gpt2 = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true));
        let by_regex = |regex: &str| {
            let pattern = SplitPattern::Regex(regex.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(Error::from_boxed)?;
            let bytes = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false));
            Ok::<_, Error>(vec![PreTokenizerWrapper::Split(split), bytes])
        };
        let sequence = match self {
            Self::Gpt2 => return Ok(gpt2),
            Self::SmolLm => vec![PreTokenizerWrapper::Digits(Digits::new(true)), gpt2],
            Self::Llama3 => by_regex(LLAMA_3)?,
            Self::Qwen2 => by_regex(QWEN_2)?,
        };
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(sequence)))
    }

    /// Text is put into Unicode's composed form first.
    fn is_normalised(self) -> bool {
        self == Self::Qwen2
    }

    /// A piece that is a token is this one, whatever merges would make of it.
    fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }
}

type Bpe = TokenizerImpl<
    BPE,
    NormalizerWrapper,
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
        let model = string(gguf, "tokenizer.ggml.model")?;
        ensure!(
            model == "gpt2",
            "tokenizer.ggml.model = {model:?} is not supported, only \"gpt2\", the byte-level one; a folder in Hugging Face \
             format has its tokenizer with it"
        );
        let pieces = Pieces::named(string(gguf, "tokenizer.ggml.pre")?)?;
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
                USER_DEFINED | UNUSED => token_bytes.push(token.clone().into_bytes()),
                other => bail!(
                    "tokenizer.ggml.token_type[{id}] = {other}: only normal (1), control (3), user-defined (4) and unused (5) \
                     tokens are supported"
                ),
            }
        }
        let separator = match specials.get(SEPARATOR) {
            Some(&separator) => separator,
            None => begins_or_ends_a_text(gguf, tokens.len())?,
        };
        let mut inner: tokenizers::Tokenizer = build(tokens, kinds, merges, pieces)?.into();
        let user_defined = tokens.iter().zip(kinds).filter(|(_, kind)| **kind == USER_DEFINED);
        let user_defined: Vec<AddedToken> =
            user_defined.map(|(name, _)| AddedToken::from(name.clone(), false).normalized(false)).collect();
        inner.add_tokens(&user_defined);
        // Where text is changed first the library says where tokens stand, and it counts wrongly behind a byte without one.
        ensure!(
            !pieces.is_normalised() || has_byte.iter().all(|&has_byte| has_byte),
            "tokenizer.ggml.tokens lack some single bytes, which is not supported with tokenizer.ggml.pre = qwen2"
        );
        let places = if pieces.is_normalised() { Places::Told } else { Places::Walk };
        Ok(Self { inner, token_bytes, has_byte, specials, separator, places })
    }
}

fn begins_or_ends_a_text(gguf: &Gguf, n_tokens: usize) -> Result<u32> {
    for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
        match gguf.get(key) {
            None => {}
            Some(&Value::Integer(id)) if (0..n_tokens as i128).contains(&id) => return Ok(id as u32),
            Some(other) => bail!("{key} = {other:?} is none of {n_tokens} tokens"),
        }
    }
    bail!("there is no special token {SEPARATOR}, and neither tokenizer.ggml.bos_token_id nor eos_token_id")
}

fn build(tokens: &[String], kinds: &[i64], merges: &[String], pieces: Pieces) -> Result<Bpe> {
    let mut vocab = tokenizers::models::bpe::Vocab::with_capacity(tokens.len());
    for (id, token) in (0_u32..).zip(tokens) {
        if let Some(first) = vocab.insert(token.clone(), id) {
            bail!("tokenizer.ggml.tokens[{id}]: {token:?} is row {first} already");
        }
    }
    // No text leads to these.
    for (token, _) in tokens.iter().zip(kinds).filter(|(_, kind)| [CONTROL, UNUSED].contains(kind)) {
        vocab.remove(token);
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (row, merge) in merges.iter().enumerate() {
        let (left, right) =
            merge.split_once(' ').with_context(|| format!("tokenizer.ggml.merges[{row}]: {merge:?} is no pair"))?;
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, pairs)
        .ignore_merges(pieces.ignores_merges())
        .build()
        .map_err(Error::from_boxed)
        .context("tokenizer.ggml.merges do not fit tokenizer.ggml.tokens")?;
    TokenizerBuilder::new()
        .with_model(bpe)
        .with_normalizer(pieces.is_normalised().then_some(NormalizerWrapper::NFC(NFC)))
        .with_pre_tokenizer(Some(pieces.pre_tokenizer()?))
        .build()
        .map_err(Error::from_boxed)
        .context("building the tokenizer")
}

fn string<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a str> {
    match gguf.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => bail!("{key} is {}, expected a string", other.kind()),
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
