//! VADER's movie sentences: excerpts of Rotten Tomatoes reviews, rated by at least twenty people from −4 to 4.
//! Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text".

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::examples::Labelled;

/// Classes by label.
pub(crate) const CLASSES: [&str; 2] = ["negative", "positive"];
/// Excerpts rated between −1 and 1 are left out: their raters did not agree on a side.
const MIN_RATING: f64 = 1.0;

/// The excerpts with a clear side, named by their number in the file.
///
/// The file names no reviews. Its rows are one excerpt each of different reviews, in no order: rare words are shared by
/// neighbouring rows no more often than by rows a thousand apart. So a row stands for a review.
///
/// Errors: the file cannot be read, or a line is malformed (file and line are named).
pub(crate) fn read(ground_truth: &Path) -> Result<Vec<Labelled>> {
    let text = std::fs::read_to_string(ground_truth);
    let text = text.with_context(|| format!("{}: cannot read", ground_truth.display()))?;
    let mut excerpts = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let excerpt = parse(line).with_context(|| format!("{}, line {}", ground_truth.display(), i + 1))?;
        excerpts.extend(excerpt);
    }
    Ok(excerpts)
}

/// `1<tab>2.26666666667<tab>The Rock is destined to …`
fn parse(line: &str) -> Result<Option<Labelled>> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [id, rating, text] = fields[..] else {
        anyhow::bail!("expected id, rating and text between tabs, found {} fields", fields.len());
    };
    ensure!(id.parse::<u32>().is_ok(), "`{id}` is no id");
    let rating: f64 = rating.parse().with_context(|| format!("`{rating}` is no rating"))?;
    ensure!((-4.0..=4.0).contains(&rating), "rating {rating} lies outside −4 … 4");
    ensure!(!text.trim().is_empty(), "the text is empty");
    let excerpt = Labelled { name: id.into(), class: usize::from(rating > 0.0), text: text.trim().into() };
    Ok((rating.abs() >= MIN_RATING).then_some(excerpt))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Labelled>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("movies.txt");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    const MOVIES: &str = "1\t2.27\tA splash.\r\n2\t-0.6\tEffective but tepid\r\n3\t-1\tHorrible. \r\n";

    #[test]
    fn clear_ratings_become_labels() {
        let excerpts = read_text(MOVIES).unwrap();
        let found: Vec<_> = excerpts.iter().map(|e| (e.name.as_str(), CLASSES[e.class], e.text.as_str())).collect();
        assert_eq!(found, [("1", "positive", "A splash."), ("3", "negative", "Horrible.")]);
    }

    #[test]
    fn malformed_lines_are_named() {
        let check = |line: &str, why: &str| {
            let error = format!("{:#}", read_text(&format!("{MOVIES}{line}\r\n")).unwrap_err());
            assert!(error.contains("movies.txt, line 4") && error.contains(why), "{error}");
        };
        check("4\t2.0", "found 2 fields");
        check("x\t2.0\tfine", "`x` is no id");
        check("4\ttwo\tfine", "`two` is no rating");
        check("4\tnan\tfine", "outside −4 … 4");
        check("4\t5\tfine", "outside −4 … 4");
        check("4\t2.0\t ", "text is empty");
        check("", "found 1 fields");
    }
}
