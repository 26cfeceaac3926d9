//! Sparse activations: a handful of active latents for each of many tokens.

/// Active latents of some rows, in CSR form: row i holds `idx[indptr[i]..indptr[i + 1]]`, ascending, and their values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseRows {
    /// d_sae.
    pub n_cols: usize,
    /// [n_rows + 1].
    pub indptr: Vec<usize>,
    /// [nnz].
    pub idx: Vec<u32>,
    /// [nnz].
    pub vals: Vec<f32>,
}

/// The same entries latent by latent: column j holds the entries `entry[colptr[j]..colptr[j + 1]]` of the rows
/// `row[..]`, ascending.
#[derive(Clone, Debug)]
pub struct Columns {
    /// [n_cols + 1].
    pub colptr: Vec<usize>,
    /// [nnz].
    pub row: Vec<u32>,
    /// [nnz]: where the entry stands in the rows' `idx` and `vals`.
    pub entry: Vec<u32>,
}

impl SparseRows {
    pub fn new(n_cols: usize) -> Self {
        Self { n_cols, indptr: vec![0], idx: Vec::new(), vals: Vec::new() }
    }

    pub fn n_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    pub fn nnz(&self) -> usize {
        self.idx.len()
    }

    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let range = self.indptr[i]..self.indptr[i + 1];
        (&self.idx[range.clone()], &self.vals[range])
    }

    /// Appends a row; `entries` are ascending in latent.
    pub fn push_row(&mut self, entries: impl IntoIterator<Item = (u32, f32)>) {
        for (idx, val) in entries {
            self.idx.push(idx);
            self.vals.push(val);
        }
        self.indptr.push(self.idx.len());
    }

    /// The rows of all parts, one after another.
    pub fn concatenated<'a>(n_cols: usize, parts: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let mut all = Self::new(n_cols);
        let (n_rows, nnz) = parts.clone().fold((0, 0), |(rows, nnz), part| (rows + part.n_rows(), nnz + part.nnz()));
        all.indptr.reserve_exact(n_rows);
        all.idx.reserve_exact(nnz);
        all.vals.reserve_exact(nnz);
        parts.for_each(|part| all.append(part));
        all
    }

    pub fn first_rows(&self, n: usize) -> Self {
        let end = self.indptr[n];
        Self {
            n_cols: self.n_cols,
            indptr: self.indptr[..=n].to_vec(),
            idx: self.idx[..end].to_vec(),
            vals: self.vals[..end].to_vec(),
        }
    }

    /// Appends all rows of `other`.
    pub fn append(&mut self, other: &Self) {
        let offset = self.nnz();
        self.idx.extend_from_slice(&other.idx);
        self.vals.extend_from_slice(&other.vals);
        self.indptr.extend(other.indptr[1..].iter().map(|end| end + offset));
    }

    /// The entries that are marked, [nnz].
    pub fn filtered_by(&self, keep: &[bool]) -> Self {
        let n_kept = keep.iter().filter(|&&keep| keep).count();
        let mut kept = Self::new(self.n_cols);
        kept.idx.reserve_exact(n_kept);
        kept.vals.reserve_exact(n_kept);
        kept.indptr.reserve_exact(self.n_rows());
        for i in 0..self.n_rows() {
            let (idx, vals) = self.row(i);
            for ((&j, &value), _) in idx.iter().zip(vals).zip(&keep[self.indptr[i]..]).filter(|&(_, &keep)| keep) {
                kept.idx.push(j);
                kept.vals.push(value);
            }
            kept.indptr.push(kept.idx.len());
        }
        kept
    }

    /// The same with some rows, ascending, taken from `new`, where they stand one after another.
    pub fn with_rows_replaced(&self, rows: &[u32], new: &Self) -> Self {
        let mut all = Self::new(self.n_cols);
        let mut replaced = rows.iter().enumerate().peekable();
        for i in 0..self.n_rows() {
            let (idx, vals) = match replaced.next_if(|&(_, &row)| row as usize == i) {
                Some((at, _)) => new.row(at),
                None => self.row(i),
            };
            all.push_row(idx.iter().copied().zip(vals.iter().copied()));
        }
        all
    }

    /// Rows in which each latent is active, [n_cols].
    pub fn firings(&self) -> Vec<u64> {
        let mut firings = vec![0; self.n_cols];
        for &j in &self.idx {
            firings[j as usize] += 1;
        }
        firings
    }

    /// A counting sort of the entries by latent.
    pub fn columns(&self) -> Columns {
        let mut colptr = vec![0usize; self.n_cols + 1];
        for &j in &self.idx {
            colptr[j as usize + 1] += 1;
        }
        for j in 0..self.n_cols {
            colptr[j + 1] += colptr[j];
        }
        let mut next = colptr.clone();
        let (mut row, mut entry) = (vec![0; self.nnz()], vec![0; self.nnz()]);
        for i in 0..self.n_rows() {
            for e in self.indptr[i]..self.indptr[i + 1] {
                let at = &mut next[self.idx[e] as usize];
                row[*at] = i as u32;
                entry[*at] = e as u32;
                *at += 1;
            }
        }
        Columns { colptr, row, entry }
    }
}

impl Columns {
    pub fn n_cols(&self) -> usize {
        self.colptr.len() - 1
    }

    pub fn range(&self, j: usize) -> std::ops::Range<usize> {
        self.colptr[j]..self.colptr[j + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_hold_every_entry_once_in_row_order() {
        let mut rows = SparseRows::new(4);
        rows.push_row([(1, 0.5), (3, 0.25)]);
        rows.push_row([]);
        rows.push_row([(0, 2.0), (1, 1.0)]);
        let columns = rows.columns();
        assert_eq!(columns.colptr, [0, 1, 3, 3, 4]);
        assert_eq!(columns.row, [2, 0, 2, 0]);
        assert_eq!(columns.entry, [2, 0, 3, 1]);
        assert_eq!(rows.firings(), [1, 2, 0, 1]);
    }

    #[test]
    fn filtering_keeps_rows_apart() {
        let mut rows = SparseRows::new(4);
        rows.push_row([(1, 0.5), (3, 0.25)]);
        rows.push_row([(0, 2.0)]);
        let kept = rows.filtered_by(&[true, false, true]);
        assert_eq!(kept.indptr, [0, 1, 2]);
        assert_eq!(kept.idx, [1, 0]);
    }

    #[test]
    fn replaced_rows_come_from_the_other() {
        let mut rows = SparseRows::new(4);
        (0..3).for_each(|i| rows.push_row([(i, 1.0)]));
        let mut new = SparseRows::new(4);
        new.push_row([(0, 5.0), (3, 6.0)]);
        let all = rows.with_rows_replaced(&[1], &new);
        assert_eq!((all.indptr, all.idx), (vec![0, 1, 3, 4], vec![0, 0, 3, 2]));
    }
}
