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

/// `starts[i]` is the byte of `text` where token `i` starts. A context holds `context_length` − 1 tokens, as the
/// separator takes one place.
pub(super) fn cut(text: &str, token_ids: &[u32], starts: &[usize], context_length: usize) -> Vec<Piece> {
    let n_per_context = context_length - 1;
    let mut pieces = Vec::new();
    for first in (0..token_ids.len()).step_by(n_per_context) {
        let end = token_ids.len().min(first + n_per_context);
        // A token may start inside a character; the text is cut at whole ones.
        let from = if first == 0 { 0 } else { text.floor_char_boundary(starts[first]) };
        let to = starts.get(end).map_or(text.len(), |&start| text.ceil_char_boundary(start));
        pieces.push(Piece {
            text: text[from..to].to_owned(),
            token_ids: token_ids[first..end].to_vec(),
            token_starts: starts[first..end].iter().map(|start| (start - from) as u32).collect(),
        });
    }
    pieces
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
