//! WordNet's noun synsets, from `data.noun`: glosses, lexicographer files and the hypernyms above each of them.
//!
//! Format: wndb(5WN). Lines of the licence start with a space; all others are
//! `00217590 04 n 01 removal 2 002 @ 00217041 n 0000 ~ 00217701 n 0000 | dismissal from office`: offset, lexicographer
//! file, part of speech, number of words in hexadecimal, each word and its lex_id, number of pointers, each pointer's
//! symbol, offset, part of speech and source/target; then the gloss.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The source's name, as `fetch` knows it, and the file in it.
pub const SOURCE: &str = "wordnet";
pub const NOUNS: &str = "data.noun";

/// A synset and an instance of one (Paris is a city) both stand below what they point to.
const HYPERNYMS: [&str; 2] = ["@", "@i"];

#[derive(Clone, Debug, PartialEq)]
pub struct Synset {
    /// Eight digits: its place in the file, and its name in every table.
    pub offset: String,
    /// Number of its lexicographer file; nouns have 3 to 28.
    pub lex_file: usize,
    /// Offsets of the synsets just above it, those it is an instance of included.
    pub hypernyms: Vec<String>,
    /// Definition and examples, without white space at the end.
    pub gloss: String,
}

/// All synsets, in the order of the file.
///
/// Errors: the file cannot be read, or a line is malformed (file and line are named).
pub fn read(data_noun: &Path) -> Result<Vec<Synset>> {
    let text = std::fs::read_to_string(data_noun);
    let text = text.with_context(|| format!("{}: cannot read", data_noun.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with(' '));
    let at = |i: usize| format!("{}, line {}", data_noun.display(), i + 1);
    lines.map(|(i, line)| parse(line).with_context(|| at(i))).collect()
}

/// The synsets above each one, at any distance: [n_synsets], places in `synsets`, ascending.
///
/// Errors: a hypernym is not there, or hypernyms go round in a circle (the synset is named).
pub fn ancestors(synsets: &[Synset]) -> Result<Vec<Vec<u32>>> {
    let place: BTreeMap<&str, usize> = synsets.iter().enumerate().map(|(i, s)| (s.offset.as_str(), i)).collect();
    let mut above = vec![Vec::new(); synsets.len()];
    for (synset, above) in synsets.iter().zip(&mut above) {
        for hypernym in &synset.hypernyms {
            let i = place.get(hypernym.as_str());
            above.push(*i.with_context(|| format!("synset {}: no hypernym {hypernym}", synset.offset))?);
        }
    }
    let mut found = vec![None; synsets.len()];
    for start in 0..synsets.len() {
        // Depth first; a synset is done when all that stand above it are.
        let mut path = vec![start];
        while let Some(&synset) = path.last() {
            if let Some(&next) = above[synset].iter().find(|&&hypernym| found[hypernym].is_none()) {
                ensure!(!path.contains(&next), "synset {} stands above itself", synsets[next].offset);
                path.push(next);
                continue;
            }
            path.pop();
            let further = above[synset].iter().filter_map(|&hypernym| found[hypernym].as_ref()).flatten();
            let all: BTreeSet<u32> =
                above[synset].iter().map(|&hypernym| hypernym as u32).chain(further.copied()).collect();
            found[synset] = Some(all.into_iter().collect::<Vec<u32>>());
        }
    }
    Ok(found.into_iter().flatten().collect())
}

fn parse(line: &str) -> Result<Synset> {
    let (synset, gloss) = line.split_once(" | ").context("expected a gloss after ` | `")?;
    let mut fields = synset.split_whitespace();
    let mut next = |what: &str| fields.next().with_context(|| format!("{what} is missing"));
    let offset = next("the synset's offset")?;
    ensure!(is_offset(offset), "`{offset}` is no synset offset");
    let number = next("the lexicographer file")?;
    let lex_file = number.parse().ok().with_context(|| format!("`{number}` is no lexicographer file"))?;
    let kind = next("the part of speech")?;
    ensure!(kind == "n", "`{kind}` is not the part of speech of a noun");
    let n_words = next("the number of words")?;
    let n_words = u32::from_str_radix(n_words, 16).with_context(|| format!("`{n_words}` is no number of words"))?;
    for _ in 0..2 * n_words {
        next("a word")?;
    }
    let n_pointers = next("the number of pointers")?;
    let n_pointers: u32 = n_pointers.parse().with_context(|| format!("`{n_pointers}` is no number of pointers"))?;
    let mut hypernyms = Vec::new();
    for _ in 0..n_pointers {
        let [symbol, target, kind, _] =
            [next("a pointer")?, next("a pointer")?, next("a pointer")?, next("a pointer")?];
        if HYPERNYMS.contains(&symbol) {
            if !is_offset(target) || kind != "n" {
                bail!("`{symbol} {target} {kind}` points to no noun");
            }
            hypernyms.push(target.to_owned());
        }
    }
    Ok(Synset { offset: offset.into(), lex_file, hypernyms, gloss: gloss.trim_end().into() })
}

fn is_offset(field: &str) -> bool {
    field.len() == 8 && field.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOUNS: &str = "  1 This software and database is being provided to you\n\
        00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which | is  \n\
        00001930 15 n 02 place 0 spot 1 002 @ 00001740 n 0000 + 00000001 v 0101 | a point; \"here\"  \n\
        00002000 15 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 00001930 n 0000 | a city\n\
        00003000 15 n 01 Paris 0 002 @i 00002000 n 0000 @ 00001740 n 0000 | capital of France\n";

    fn read_text(text: &str) -> Result<Vec<Synset>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.noun");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn synsets_come_without_the_licence_and_with_their_hypernyms() {
        let synsets = read_text(NOUNS).unwrap();
        assert_eq!(synsets.len(), 4);
        assert_eq!(synsets[0].gloss, "that which | is");
        assert_eq!((synsets[1].lex_file, synsets[1].hypernyms.as_slice()), (15, ["00001740".to_owned()].as_slice()));
        assert_eq!(synsets[3].hypernyms, ["00002000", "00001740"]);
        assert_eq!(ancestors(&synsets).unwrap(), [vec![], vec![0], vec![0, 1], vec![0, 1, 2]]);
    }

    #[test]
    fn malformed_lines_are_named() {
        let check = |line: &str, why: &str| {
            let error = format!("{:#}", read_text(&format!("{NOUNS}{line}\n")).unwrap_err());
            assert!(error.contains("data.noun, line 6") && error.contains(why), "{error}");
        };
        check("15170000 28 n 01 day 0 000", "expected a gloss");
        check("1517000x 28 n 01 day 0 000 | a day", "no synset offset");
        check("15170000 x n 01 day 0 000 | a day", "no lexicographer file");
        check("15170000 28 v 01 day 0 000 | a day", "not the part of speech");
        check("15170000 28 n 02 day 0 000 | a day", "a word is missing");
        check("15170000 28 n 01 day 0 | a day", "the number of pointers is missing");
        check("15170000 28 n 01 day 0 001 @ 00001740 n | a day", "a pointer is missing");
        check("15170000 28 n 01 day 0 001 @ 1740 n 0000 | a day", "points to no noun");
        check("", "expected a gloss");
    }

    #[test]
    fn hypernyms_must_be_there_and_lead_upwards() {
        let check = |text: &str, why: &str| {
            let error = ancestors(&read_text(text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        check("00000001 03 n 01 a 0 001 @ 00000009 n 0000 | a\n", "synset 00000001: no hypernym 00000009");
        check(
            "00000001 03 n 01 a 0 001 @ 00000002 n 0000 | a\n00000002 03 n 01 b 0 001 @ 00000001 n 0000 | b\n",
            "stands above itself",
        );
    }
}
