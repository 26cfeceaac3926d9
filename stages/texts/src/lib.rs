//! Texts as documents that can be read in any order: what `pretrain` learns from and `harvest` reads.

mod spool;

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use artifact::config::{Text, TextSource};
use artifact::stage::Input;
use artifact::tables::read_texts;
use wordnet::Synset;

use spool::Spool;

#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Within its source: a synset, a speech, a file.
    pub name: String,
    pub text: String,
}

pub enum Documents {
    Held(Vec<Document>),
    /// Made anew from what was fetched, and too many to be held.
    Spooled(Spool),
    /// One document a file.
    Files(Vec<PathBuf>),
    /// One document a line of JSON; where the lines start.
    Lines {
        path: PathBuf,
        column: String,
        starts: Vec<u64>,
    },
}

impl Documents {
    /// Errors: a file is not what was fetched, or not what its name says.
    pub fn open(input: &Input, text: &Text) -> Result<Self> {
        let documents = match text.from {
            TextSource::Wordnet => Self::Held(glosses(&input.file(wordnet::NOUNS)?)?),
            TextSource::StateOfTheUnion => Self::Files(files(input, "speeches/")?),
            TextSource::Shakespeare | TextSource::Enwik8 | TextSource::Text8 => Self::Files(files(input, "texts/")?),
            TextSource::File => Self::open_local(input, text)?,
        };
        let documents = match text.bytes_per_document {
            Some(n_bytes) => documents.cut(n_bytes as usize)?,
            None => documents,
        };
        ensure!(documents.len() > 0, "holds no documents");
        Ok(documents)
    }

    fn open_local(input: &Input, text: &Text) -> Result<Self> {
        let mut files = files(input, "")?;
        let extension = |path: &PathBuf| path.extension().and_then(|extension| extension.to_str()).map(str::to_owned);
        match files.first().and_then(extension).as_deref() {
            Some("parquet") => {
                let path = files.remove(0);
                let name = |row: usize| format!("{} row {row}", file_name(&path));
                let write = |add: &mut dyn FnMut(&str, &str) -> Result<()>| {
                    read_texts(&path, &text.column, &mut |row, text| add(&name(row), text))
                };
                Ok(Self::Spooled(Spool::new(write)?))
            }
            Some("jsonl") => {
                let path = files.remove(0);
                let starts = line_starts(&path)?;
                Ok(Self::Lines { path, column: text.column.clone(), starts })
            }
            Some("txt") => Ok(Self::Files(files)),
            _ => bail!("expected a .txt, .jsonl or .parquet file, or a folder of .txt files"),
        }
    }

    /// Documents of about `n_bytes`.
    fn cut(self, n_bytes: usize) -> Result<Self> {
        let write = |add: &mut dyn FnMut(&str, &str) -> Result<()>| {
            for i in 0..self.len() {
                let Document { name, text } = self.read(i)?;
                let mut pieces = cut(&text, n_bytes).into_iter().enumerate();
                pieces.try_for_each(|(part, text)| add(&format!("{name} part {part}"), text))?;
            }
            Ok(())
        };
        Ok(Self::Spooled(Spool::new(write)?))
    }

    #[expect(clippy::len_without_is_empty, reason = "a text without documents is refused when it is opened")]
    pub fn len(&self) -> usize {
        match self {
            Self::Held(documents) => documents.len(),
            Self::Spooled(spool) => spool.len(),
            Self::Files(files) => files.len(),
            Self::Lines { starts, .. } => starts.len(),
        }
    }

    /// Errors: the document cannot be read, or is not UTF-8 (file and line are named).
    pub fn read(&self, i: usize) -> Result<Document> {
        match self {
            Self::Held(documents) => Ok(documents[i].clone()),
            Self::Spooled(spool) => spool.read(i),
            Self::Files(files) => {
                let path = &files[i];
                let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                Ok(Document { name, text })
            }
            Self::Lines { path, column, starts } => {
                let name = format!("{} line {}", file_name(path), i + 1);
                let text = json_text(path, starts[i], column).with_context(|| format!("{}: {name}", path.display()))?;
                Ok(Document { name, text })
            }
        }
    }
}

/// Cuts a text behind the first end of a line from `n_bytes` on, or of a word if the line goes on for as long again;
/// what has neither is cut all the same.
fn cut(text: &str, n_bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > n_bytes {
        let (from, to) = (rest.floor_char_boundary(n_bytes), rest.floor_char_boundary(2 * n_bytes));
        let place = rest[from..to].find('\n').or_else(|| rest[from..to].find(char::is_whitespace));
        let end = place.map_or(to, |place| rest.ceil_char_boundary(from + place + 1));
        pieces.push(&rest[..end]);
        rest = &rest[end..];
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// WordNet's glosses, examples included, one synset each, named by its offset.
fn glosses(path: &Path) -> Result<Vec<Document>> {
    let document = |synset: Synset| Document { name: synset.offset, text: synset.gloss };
    Ok(wordnet::read(path)?.into_iter().map(document).collect())
}

fn files(input: &Input, prefix: &str) -> Result<Vec<PathBuf>> {
    input.paths(prefix).iter().map(|path| input.file(path)).collect()
}

/// Where each line that is not blank starts.
fn line_starts(path: &Path) -> Result<Vec<u64>> {
    let context = || format!("{}: cannot read", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(context)?);
    let mut line = Vec::new();
    let mut starts = Vec::new();
    let mut at = 0;
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).with_context(context)?;
        if n == 0 {
            return Ok(starts);
        }
        if !line.trim_ascii().is_empty() {
            starts.push(at);
        }
        at += n as u64;
    }
}

fn json_text(path: &Path, start: u64, column: &str) -> Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut line = String::new();
    BufReader::new(file).read_line(&mut line)?;
    let value: serde_json::Value = serde_json::from_str(&line).context("is no JSON")?;
    let text = value.get(column).with_context(|| format!("has no `{column}`; name the text with `column`"))?;
    Ok(text.as_str().with_context(|| format!("`{column}` is no text"))?.to_owned())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_document_is_cut_at_lines_or_else_at_words() {
        assert_eq!(cut("one\ntwo\nthree\nfour", 6), ["one\ntwo\n", "three\nfour"]);
        assert_eq!(cut("one two three four", 6), ["one two ", "three four"]);
        assert_eq!(cut("ünbrøken", 3), ["ünbr", "øken"]);
        assert_eq!(cut("short", 100), ["short"]);
        assert!(cut("", 100).is_empty());
        let text = "täglich ein wenig\n".repeat(40);
        assert_eq!(cut(&text, 50).concat(), text);
    }

    #[test]
    fn glosses_come_without_the_licence_and_the_pointers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.noun");
        let lines = "  1 This software\n00001740 03 n 01 entity 0 000 | that which | is  \n00001930 03 n 01 x 0 000 | y; \"z\"  \n";
        std::fs::write(&path, lines).unwrap();
        let document = |name: &str, text: &str| Document { name: name.into(), text: text.into() };
        assert_eq!(
            glosses(&path).unwrap(),
            [document("00001740", "that which | is"), document("00001930", "y; \"z\"")]
        );
        std::fs::write(&path, "00001740 03 n 01 entity\n").unwrap();
        let error = format!("{:#}", glosses(&path).unwrap_err());
        assert!(error.contains("line 1: expected a gloss"), "{error}");
    }

    #[test]
    fn lines_of_json_are_read_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\": \"one\"}\n\n{\"text\": \"zwei ☃\"}\n{\"other\": 3}").unwrap();
        let starts = line_starts(&path).unwrap();
        let documents = Documents::Lines { path, column: "text".into(), starts };
        assert_eq!(documents.len(), 3);
        assert_eq!(documents.read(1).unwrap().text, "zwei ☃");
        assert_eq!(documents.read(0).unwrap().text, "one");
        let error = format!("{:#}", documents.read(2).unwrap_err());
        assert!(error.contains("has no `text`"), "{error}");
    }
}
