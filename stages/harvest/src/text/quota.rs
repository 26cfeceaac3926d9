//! How much of a text is read, and what of it is held out.

use super::contexts::Piece;
use crate::dataset::Split;

/// Keeps the contexts from the first to the one that reaches `most` tokens.
pub(super) fn keep_first(pieces: &mut Vec<Piece>, most: u64) {
    let mut n_tokens = 0;
    pieces.retain(|piece| {
        let is_wanted = n_tokens < most;
        n_tokens += piece.token_ids.len() as u64;
        is_wanted
    });
}

/// How much of a text is read, and which documents of it are held out.
pub(super) struct Quota {
    pub(super) n_wanted: u64,
    heldout_fraction: f64,
    pub(super) n_taken: u64,
    n_heldout: u64,
}

impl Quota {
    pub(super) fn new(n_wanted: u64, heldout_fraction: f64) -> Self {
        Self { n_wanted, heldout_fraction, n_taken: 0, n_heldout: 0 }
    }

    pub(super) fn is_met(&self) -> bool {
        self.n_taken >= self.n_wanted
    }

    /// Drops the contexts that are not needed any more, and says where the document goes. Documents come in a random
    /// order, so holding one out whenever the held-out share has fallen behind is a random split, with a share that is
    /// right to within a document even for a text of few, long documents.
    pub(super) fn take(&mut self, pieces: &mut Vec<Piece>) -> Split {
        let is_behind = (self.n_heldout as f64) < self.heldout_fraction * self.n_taken as f64;
        let mut n_kept = 0;
        let mut n_tokens = 0;
        while n_kept < pieces.len() && self.n_taken + n_tokens < self.n_wanted {
            n_tokens += pieces[n_kept].token_ids.len() as u64;
            n_kept += 1;
        }
        pieces.truncate(n_kept);
        self.n_taken += n_tokens;
        if is_behind {
            self.n_heldout += n_tokens;
        }
        if is_behind { Split::Heldout } else { Split::Train }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(lengths: &[usize]) -> Vec<Piece> {
        let piece = |&n: &usize| Piece { text: String::new(), token_ids: vec![1; n], token_starts: vec![0; n] };
        lengths.iter().map(piece).collect()
    }

    #[test]
    fn a_long_document_gives_its_first_contexts() {
        let mut all = pieces(&[10, 10, 10, 10]);
        keep_first(&mut all, 11);
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn reading_stops_at_the_context_that_meets_the_quota() {
        let mut quota = Quota::new(25, 0.15);
        quota.take(&mut pieces(&[10]));
        assert!(!quota.is_met());
        let mut last = pieces(&[10, 10, 10]);
        quota.take(&mut last);
        assert_eq!((last.len(), quota.n_taken, quota.is_met()), (2, 30, true));
    }

    #[test]
    fn the_heldout_share_is_met_to_within_a_document() {
        let mut quota = Quota::new(u64::MAX, 0.15);
        for i in 0..200 {
            quota.take(&mut pieces(&[100 + (i * 37) % 300]));
        }
        let excess = quota.n_heldout as f64 - 0.15 * quota.n_taken as f64;
        assert!(excess.abs() <= 400.0, "{excess}");
    }
}
