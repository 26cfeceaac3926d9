//! WordNet's glosses and their lexicographer classes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use wordnet::Synset;

use crate::examples::Labelled;

/// The noun lexicographer files from number 3 on, as lexnames(5WN) lists them; the table is in no package.
const CLASSES: [&str; 26] = [
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
];
const FIRST_CLASS: usize = 3;

/// The glosses of the `n_classes` most frequent classes, each named by its synset's offset, and those classes' names, the
/// most frequent first. A label is a class's place among the names.
///
/// Errors: the file cannot be read, a line or a synset in it is malformed (it is named), or there are fewer classes.
pub(crate) fn read(data_noun: &Path, n_classes: usize) -> Result<(Vec<Labelled>, Vec<&'static str>)> {
    let labelled = wordnet::read(data_noun)?.into_iter().map(labelled).collect::<Result<Vec<_>>>();
    let glosses = labelled.with_context(|| data_noun.display().to_string())?;
    let mut n_of_class = [0_usize; CLASSES.len()];
    glosses.iter().for_each(|gloss| n_of_class[gloss.class] += 1);
    let mut by_frequency: Vec<usize> = (0..CLASSES.len()).filter(|&class| n_of_class[class] > 0).collect();
    by_frequency.sort_by_key(|&class| std::cmp::Reverse(n_of_class[class]));
    ensure!(
        n_classes <= by_frequency.len(),
        "probe.n_classes = {n_classes} exceeds the {} lexicographer classes in {}",
        by_frequency.len(),
        data_noun.display()
    );
    by_frequency.truncate(n_classes);
    let relabel = |gloss: Labelled| {
        let class = by_frequency.iter().position(|&class| class == gloss.class)?;
        Some(Labelled { class, ..gloss })
    };
    Ok((glosses.into_iter().filter_map(relabel).collect(), by_frequency.iter().map(|&class| CLASSES[class]).collect()))
}

fn labelled(synset: Synset) -> Result<Labelled> {
    let Synset { offset, lex_file, gloss, .. } = synset;
    let class = lex_file.checked_sub(FIRST_CLASS).filter(|&class| class < CLASSES.len());
    let class =
        class.with_context(|| format!("synset {offset}: {lex_file} is no noun lexicographer file (03 to 28)"))?;
    let text = gloss.trim();
    ensure!(!text.is_empty(), "synset {offset}: the gloss is empty");
    Ok(Labelled { name: offset, class, text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOUNS: &str = "  1 This software and database is being provided to you\n\
        00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived  \n\
        00217590 04 n 01 removal 2 001 @ 00217041 n 0000 | dismissal from office  \n\
        00217701 04 n 01 purge 2 000 | an abrupt removal; \"he died in a purge\"  \n\
        15140000 28 n 01 era 0 000 | a period | of time\n\
        15150000 28 n 01 age 0 000 | a time of life\n\
        15160000 28 n 01 eon 0 000 | a long time\n";

    fn read_text(text: &str, n_classes: usize) -> Result<(Vec<Labelled>, Vec<&'static str>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.noun");
        std::fs::write(&path, text).unwrap();
        read(&path, n_classes)
    }

    #[test]
    fn the_most_frequent_classes_are_kept_in_order() {
        let (glosses, names) = read_text(NOUNS, 2).unwrap();
        assert_eq!(names, ["noun.time", "noun.act"]);
        let found: Vec<_> = glosses.iter().map(|g| (g.name.as_str(), g.class, g.text.as_str())).collect();
        assert_eq!(found[0], ("00217590", 1, "dismissal from office"));
        assert_eq!(found[2], ("15140000", 0, "a period | of time"));
        assert_eq!(found.len(), 5);
        assert!(format!("{:#}", read_text(NOUNS, 4).unwrap_err()).contains("n_classes = 4 exceeds the 3"));
    }

    #[test]
    fn malformed_synsets_are_named() {
        let check = |line: &str, why: &str| {
            let error = format!("{:#}", read_text(&format!("{NOUNS}{line}\n"), 2).unwrap_err());
            assert!(error.contains("data.noun: synset 15170000") && error.contains(why), "{error}");
        };
        check("15170000 29 n 01 day 0 000 | a day", "29 is no noun lexicographer file");
        check("15170000 02 n 01 day 0 000 | a day", "2 is no noun lexicographer file");
        check("15170000 28 n 01 day 0 000 |    ", "gloss is empty");
    }
}
