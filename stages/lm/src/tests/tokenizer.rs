//! The rebuilt tokenizer on the small vocabulary: merges, offsets, bytes without a token.

use super::tiny::{TempFile, Tiny};
use crate::{LanguageModel, cpu};

/// Checks ids by their texts, and offsets.
fn check(text: &str, expected: &[(&str, (usize, usize))]) {
    let file = TempFile::new(&Tiny::new().bytes());
    let model = LanguageModel::open(file.path(), &cpu()).unwrap();
    let tokenizer = model.tokenizer();
    let encoding = tokenizer.encode(text).unwrap();
    let found: Vec<(String, (usize, usize))> =
        encoding.ids.iter().map(|&id| tokenizer.token_text(id)).zip(encoding.offsets).collect();
    let expected: Vec<(String, (usize, usize))> = expected.iter().map(|&(text, at)| (text.to_owned(), at)).collect();
    assert_eq!(found, expected, "{text:?}");
}

#[test]
fn merges_join_bytes_and_offsets_count_bytes() {
    check("the café", &[("the", (0, 3)), (" ", (3, 4)), ("caf", (4, 7)), ("é", (7, 9))]);
    check("a the", &[("a", (0, 1)), (" the", (1, 5))]);
    check("", &[]);
}

#[test]
fn every_digit_stands_alone() {
    check("1234", &[("1", (0, 1)), ("2", (1, 2)), ("3", (2, 3)), ("4", (3, 4))]);
}

#[test]
fn bytes_without_a_token_are_left_out_and_counted() {
    // U+0001 has no token; the lead byte F1 has none, its three continuation bytes have.
    check("th\u{1}e the", &[("th", (0, 2)), ("e", (3, 4)), (" the", (4, 8))]);
    check("\u{1}\u{2}", &[]);
    check(
        "a\u{40023}b",
        &[("a", (0, 1)), ("\u{fffd}", (2, 3)), ("\u{fffd}", (3, 4)), ("\u{fffd}", (4, 5)), ("b", (5, 6))],
    );
}

#[test]
fn a_separator_in_the_text_is_plain_text() {
    let file = TempFile::new(&Tiny::new().bytes());
    let model = LanguageModel::open(file.path(), &cpu()).unwrap();
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode("<|endoftext|>").unwrap().ids;
    assert!(ids.len() > 1 && !ids.contains(&tokenizer.separator()), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids), "<|endoftext|>");
    assert_eq!(tokenizer.separator(), 0);
    assert_eq!(tokenizer.special("<|im_start|>"), Some(1));
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
}
