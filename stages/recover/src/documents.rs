//! Documents: which rows each one holds, and the two halves of them. Edges are chosen on one half and measured on the
//! other, and documents are the units of the bootstrap, since tokens of one document are not independent.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Result, ensure};
use artifact::random;
use rand::seq::SliceRandom;

/// Rows 0..n_rows, cut into documents one after another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Documents {
    /// Document i holds the rows `starts[i]..starts[i + 1]`, at least one.
    starts: Vec<u32>,
}

impl Documents {
    /// Errors: there are no rows, more than fit in u32, or a document's rows stand in two places.
    pub(crate) fn new(doc_ids: &[u32]) -> Result<Self> {
        ensure!(!doc_ids.is_empty(), "the held-out split has no rows; raise harvest.heldout_fraction");
        ensure!(doc_ids.len() < u32::MAX as usize, "the held-out split has more rows than 32 bits can number");
        let mut starts = vec![0];
        let mut seen = BTreeSet::new();
        for (i, pair) in doc_ids.windows(2).enumerate() {
            if pair[0] != pair[1] {
                starts.push(i as u32 + 1);
                seen.insert(pair[0]);
                ensure!(!seen.contains(&pair[1]), "document {} stands in two places; sort its rows together", pair[1]);
            }
        }
        starts.push(doc_ids.len() as u32);
        Ok(Self { starts })
    }

    pub(crate) fn n_docs(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn rows(&self, doc: usize) -> Range<usize> {
        self.starts[doc] as usize..self.starts[doc + 1] as usize
    }

    /// The document of each row, [n_rows].
    pub(crate) fn of_rows(&self) -> Vec<u32> {
        let docs = 0..self.n_docs();
        docs.flat_map(|doc| self.rows(doc).map(move |_| doc as u32)).collect()
    }

    /// Two disjoint sets of documents of about as many rows: in a seeded order, each document goes to the half with
    /// fewer rows so far. Each set is sorted.
    ///
    /// Errors: there is only one document.
    pub(crate) fn halves(&self, seed: u64) -> Result<[Vec<usize>; 2]> {
        ensure!(
            self.n_docs() >= 2,
            "the held-out split has one document; edges are chosen on one half of the documents and measured on the \
             other, so harvest at least two"
        );
        let mut order: Vec<usize> = (0..self.n_docs()).collect();
        order.shuffle(&mut random::stream(seed, "recover/halves", 0, 0));
        let mut halves = [Vec::new(), Vec::new()];
        let mut n_rows = [0; 2];
        for doc in order {
            let half = usize::from(n_rows[1] < n_rows[0]);
            halves[half].push(doc);
            n_rows[half] += self.rows(doc).len();
        }
        halves.iter_mut().for_each(|half| half.sort_unstable());
        Ok(halves)
    }

    /// These documents alone, their rows numbered anew, and the rows they had before.
    pub(crate) fn subset(&self, docs: &[usize]) -> (Self, Vec<usize>) {
        let rows: Vec<usize> = docs.iter().flat_map(|&doc| self.rows(doc)).collect();
        let mut starts = vec![0];
        starts.extend(docs.iter().scan(0, |n_rows, &doc| {
            *n_rows += self.rows(doc).len() as u32;
            Some(*n_rows)
        }));
        (Self { starts }, rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_runs_of_their_id() {
        let documents = Documents::new(&[4, 4, 9, 2, 2, 2]).unwrap();
        assert_eq!(documents.n_docs(), 3);
        assert_eq!(documents.of_rows(), [0, 0, 1, 2, 2, 2]);
        assert!(Documents::new(&[]).is_err());
        let error = Documents::new(&[4, 4, 9, 4]).unwrap_err().to_string();
        assert!(error.contains("document 4 stands in two places"), "{error}");
    }

    #[test]
    fn halves_are_disjoint_whole_and_even() {
        let doc_ids: Vec<u32> = (0..500).flat_map(|doc| vec![doc; 1 + (doc as usize * 7) % 13]).collect();
        let documents = Documents::new(&doc_ids).unwrap();
        let [a, b] = documents.halves(0).unwrap();
        let mut all: Vec<usize> = a.iter().chain(&b).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
        let ((half, rows), (other, _)) = (documents.subset(&a), documents.subset(&b));
        let n_rows = |documents: &Documents| documents.of_rows().len();
        assert_eq!(n_rows(&half) + n_rows(&other), doc_ids.len());
        assert!(n_rows(&half).abs_diff(n_rows(&other)) <= 13);
        assert_eq!(half.rows(3).len(), documents.rows(a[3]).len());
        assert_eq!(rows[half.rows(3).start], documents.rows(a[3]).start);
        assert_ne!(documents.halves(1).unwrap()[0], a);
        assert!(Documents::new(&[7, 7]).unwrap().halves(0).is_err());
    }
}
