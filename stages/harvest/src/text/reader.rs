//! Texts to contexts: reads documents in a random order, tokenises them, cuts them, and hands them on in batches.

use anyhow::{Context as _, Result};
use artifact::config::{Harvest, ModelSource};
use artifact::random::stream;
use artifact::stage::Input;
use lm::Tokenizer;
use rand::seq::SliceRandom;
use texts::Documents;

use super::contexts::{self, Piece};
use super::quota::{Quota, keep_first};
use crate::dataset::Split;

/// Tokens of a batch: enough to sort contexts by length and to know the median norm, little enough to hold.
const TOKENS_AT_A_TIME: usize = 32_768;
/// What the activations of a batch may take, which counts for models that are more than 1,024 wide.
const BYTES_AT_A_TIME: usize = 128 << 20;

/// Which document a context belongs to.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) doc_id: u32,
    pub(super) split: Split,
    pub(super) source: String,
    pub(super) name: String,
}

/// Contexts in document order.
pub(super) type Batch = Vec<(Place, Piece)>;

pub(super) struct Reader<'a> {
    pub(super) source: &'a ModelSource,
    /// Of each text.
    pub(super) inputs: Vec<Input>,
    pub(super) harvest: &'a Harvest,
    pub(super) seed: u64,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) d_model: usize,
}

/// A text that had less than was asked for.
#[derive(Debug)]
pub(super) struct Short {
    pub(super) name: String,
    pub(super) n_taken: u64,
    pub(super) n_wanted: u64,
}

impl Reader<'_> {
    /// Reads all texts. `give` takes a batch, and says whether more are wanted.
    ///
    /// Errors: a document cannot be read or is no text of the kind that its name promises (it is named).
    pub(super) fn read(&self, mut give: impl FnMut(Batch) -> bool) -> Result<Vec<Short>> {
        let most = TOKENS_AT_A_TIME.min(BYTES_AT_A_TIME / (size_of::<f32>() * self.d_model));
        let mut short = Vec::new();
        let (mut batch, mut n_tokens, mut n_docs) = (Batch::new(), 0, 0);
        for (i, (text, input)) in self.source.texts.iter().zip(&self.inputs).enumerate() {
            let name = text.source_name(i);
            let documents = Documents::open(input, text).with_context(|| format!("source.model.texts[{i}]"))?;
            let mut order: Vec<usize> = (0..documents.len()).collect();
            order.shuffle(&mut stream(self.seed, "harvest/documents", i as u64, 0));
            let mut quota = Quota::new(text.n_tokens, self.harvest.heldout_fraction);
            for document in order {
                if quota.is_met() {
                    break;
                }
                let document = documents.read(document)?;
                let encoding = self.tokenizer.encode(&document.text).with_context(|| document.name.clone())?;
                if encoding.ids.is_empty() {
                    continue;
                }
                let starts: Vec<usize> = encoding.offsets.iter().map(|&(start, _)| start).collect();
                let mut pieces = contexts::cut(&document.text, &encoding.ids, &starts, self.harvest.context_length);
                if let Some(most) = text.max_tokens_per_document {
                    keep_first(&mut pieces, most);
                }
                let split = quota.take(&mut pieces);
                for piece in pieces {
                    n_tokens += piece.token_ids.len();
                    let place = Place { doc_id: n_docs, split, source: name.clone(), name: document.name.clone() };
                    batch.push((place, piece));
                    if n_tokens >= most {
                        n_tokens = 0;
                        if !give(std::mem::take(&mut batch)) {
                            return Ok(short);
                        }
                    }
                }
                n_docs += 1;
            }
            if !quota.is_met() {
                short.push(Short { name, n_taken: quota.n_taken, n_wanted: quota.n_wanted });
            }
        }
        if !batch.is_empty() {
            give(batch);
        }
        Ok(short)
    }
}
