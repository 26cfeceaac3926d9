//! Cuts a tokenised document into contexts. Every token of the document is in exactly one of them.

/// One context of a document: its tokens, without the separator that will stand in front of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// The part of the document that the tokens cover.
    pub(super) text: String,
    pub(super) token_ids: Vec<u32>,
    /// Byte offset in `text` where each token starts.
    pub(super) token_starts: Vec<u32>,
}

/// `starts[i]` is the byte of `text` where token `i` starts. A context holds at most `context_length` − 1 tokens, as the
/// separator takes one place.
///
/// Where a document is cut, the next context begins with a sentence if it can, else with a word: some tokens become an
/// attention sink when they follow the separator (in SmolLM2 `.`, `,` and ` to`, with norms a hundred times those of other
/// rows, enough to be most of the variance of a whole dataset), and they do not begin sentences.
pub(super) fn cut(text: &str, token_ids: &[u32], starts: &[usize], context_length: usize) -> Vec<Piece> {
    let n_per_context = context_length - 1;
    let mut pieces = Vec::new();
    let mut first = 0;
    while first < token_ids.len() {
        let end = end_of_context(text, starts, first, n_per_context);
        // A token may start inside a character; the text is cut at whole ones.
        let from = if first == 0 { 0 } else { text.floor_char_boundary(starts[first]) };
        let to = starts.get(end).map_or(text.len(), |&start| text.ceil_char_boundary(start));
        pieces.push(Piece {
            text: text[from..to].to_owned(),
            token_ids: token_ids[first..end].to_vec(),
            token_starts: starts[first..end].iter().map(|start| (start - from) as u32).collect(),
        });
        first = end;
    }
    pieces
}

/// The token after the last of the context that starts with token `first`. Contexts are at least half full.
fn end_of_context(text: &str, starts: &[usize], first: usize, n_per_context: usize) -> usize {
    let full = first + n_per_context;
    if full >= starts.len() {
        return starts.len();
    }
    let ends = || (first + n_per_context.div_ceil(2)..=full).rev();
    let at_sentence = ends().find(|&end| starts_sentence(text, starts[end]));
    at_sentence.or_else(|| ends().find(|&end| starts_word(text, starts[end]))).unwrap_or(full)
}

/// A word at byte `at` behind the end of another sentence.
fn starts_sentence(text: &str, at: usize) -> bool {
    let Some(before) = text.get(..at) else { return false };
    let before = before.trim_end().trim_end_matches(['"', '\'', ')', '”', '’']);
    starts_word(text, at) && before.ends_with(['.', '?', '!'])
}

/// White space and a letter or digit at byte `at`.
fn starts_word(text: &str, at: usize) -> bool {
    let Some(rest) = text.get(at..) else { return false };
    rest.starts_with(char::is_whitespace) && rest.trim_start().starts_with(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of single bytes.
    fn bytes_of(text: &str) -> (Vec<u32>, Vec<usize>) {
        (text.bytes().map(u32::from).collect(), (0..text.len()).collect())
    }

    #[test]
    fn no_token_is_lost_or_doubled() {
        let text = "seven tokens a context, and a shorter one at the end";
        let (ids, starts) = bytes_of(text);
        for context_length in [2, 3, 8, 52, 53, 54, 1000] {
            let pieces = cut(text, &ids, &starts, context_length);
            assert_eq!(pieces.iter().flat_map(|p| p.token_ids.clone()).collect::<Vec<_>>(), ids);
            assert_eq!(pieces.iter().map(|p| p.text.as_str()).collect::<String>(), text);
            assert!(pieces.iter().all(|p| (1..context_length).contains(&p.token_ids.len())));
        }
    }

    #[test]
    fn documents_are_cut_before_sentences_or_else_before_words() {
        let cut_at = |text: &str, context_length: usize| {
            let (ids, starts) = bytes_of(text);
            cut(text, &ids, &starts, context_length).into_iter().map(|piece| piece.text).collect::<Vec<_>>()
        };
        assert_eq!(cut_at("One is so. Two was, so.", 16), ["One is so.", " Two was, so."]);
        assert_eq!(cut_at("to be, or not to be", 11), ["to be, or", " not to be"]);
        assert_eq!(cut_at("abcdefgh", 4), ["abc", "def", "gh"]);
    }

    #[test]
    fn tokens_start_where_they_say() {
        let text = "abcdefghij";
        let (ids, starts) = bytes_of(text);
        for piece in cut(text, &ids, &starts, 4) {
            for (id, &start) in piece.token_ids.iter().zip(&piece.token_starts) {
                assert_eq!(u32::from(piece.text.as_bytes()[start as usize]), *id);
            }
        }
    }

    #[test]
    fn a_cut_inside_a_character_keeps_the_character_on_both_sides() {
        let text = "aé☃b";
        let (ids, starts) = bytes_of(text);
        let pieces = cut(text, &ids, &starts, 3);
        assert_eq!(pieces.iter().map(|p| p.text.as_str()).collect::<Vec<_>>(), ["aé", "é☃", "☃", "b"]);
        assert_eq!(pieces[1].token_starts, [1, 2]);
    }

    #[test]
    fn an_empty_document_has_no_context() {
        assert!(cut("", &[], &[], 8).is_empty());
    }
}
