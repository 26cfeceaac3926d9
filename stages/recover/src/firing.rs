//! Which latents fire where, row by row and latent by latent, and how often two of them do so together.

use hsae::SparseRows;

use crate::information::PairCounts;

/// Active latents of some rows, held both ways. Magnitudes are > 0.
pub(crate) struct Firing {
    by_row: SparseRows,
    /// Latent j fires in `rows[starts[j]..starts[j + 1]]`, ascending.
    starts: Vec<usize>,
    rows: Vec<u32>,
    magnitudes: Vec<f32>,
}

impl Firing {
    pub(crate) fn new(by_row: SparseRows) -> Self {
        let columns = by_row.columns();
        let magnitudes = columns.entry.iter().map(|&entry| by_row.vals[entry as usize]).collect();
        Self { by_row, starts: columns.colptr, rows: columns.row, magnitudes }
    }

    /// These rows alone, numbered anew.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let mut selected = SparseRows::new(self.n_latents());
        for &i in rows {
            let (latents, magnitudes) = self.by_row.row(i);
            selected.push_row(latents.iter().copied().zip(magnitudes.iter().copied()));
        }
        Self::new(selected)
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.by_row.n_rows()
    }

    pub(crate) fn n_latents(&self) -> usize {
        self.by_row.n_cols
    }

    /// Active latents of a row, ascending, and their magnitudes.
    pub(crate) fn row(&self, row: usize) -> (&[u32], &[f32]) {
        self.by_row.row(row)
    }

    /// Rows in which a latent fires, ascending, and its magnitudes there.
    pub(crate) fn latent(&self, latent: usize) -> (&[u32], &[f32]) {
        let range = self.starts[latent]..self.starts[latent + 1];
        (&self.rows[range.clone()], &self.magnitudes[range])
    }

    /// Rows in which a latent fires.
    pub(crate) fn n_firings(&self, latent: usize) -> u64 {
        (self.starts[latent + 1] - self.starts[latent]) as u64
    }

    /// How often each latent fires together with `child`, in ascending order of latents, those that never do left out.
    ///
    /// The work is n_child · L0, so that all pairs of a dictionary cost N · L0², and no matrix of all pairs is held.
    /// Counts are exact integers: those of disjoint rows add up, in any order. `scratch` is all zero before and after,
    /// [n_latents].
    pub(crate) fn co_firings(&self, child: usize, scratch: &mut [u64]) -> Vec<(u32, u64)> {
        let mut partners = Vec::new();
        for &row in self.latent(child).0 {
            for &latent in self.row(row as usize).0 {
                if scratch[latent as usize] == 0 {
                    partners.push(latent);
                }
                scratch[latent as usize] += 1;
            }
        }
        partners.sort_unstable();
        let take = |latent: u32| (latent, std::mem::take(&mut scratch[latent as usize]));
        partners.into_iter().map(take).filter(|&(latent, _)| latent as usize != child).collect()
    }

    /// The 2×2 table of one pair, by walking both lists of rows.
    pub(crate) fn pair(&self, parent: usize, child: usize) -> PairCounts {
        let (mut parents, children) = (self.latent(parent).0, self.latent(child).0);
        let mut n11 = 0;
        for &row in children {
            parents = &parents[parents.partition_point(|&other| other < row)..];
            n11 += u64::from(parents.first() == Some(&row));
        }
        PairCounts { n11, n_parent: self.n_firings(parent), n_child: self.n_firings(child), n: self.n_rows() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use crate::planted;

    #[test]
    fn counts_agree_with_a_dense_product() {
        let dense = planted::random_gates(300, 12, 7);
        let firing = planted::firing(&dense);
        let mut scratch = vec![0; 12];
        for child in 0..12 {
            let expected: Vec<(u32, u64)> = (0..12)
                .filter(|&parent| parent != child)
                .map(|parent| {
                    (parent as u32, dense.iter().filter(|row| row[parent] > 0.0 && row[child] > 0.0).count() as u64)
                })
                .filter(|&(_, n11)| n11 > 0)
                .collect();
            assert_eq!(firing.co_firings(child, &mut scratch), expected);
            assert!(scratch.iter().all(|&count| count == 0));
            for (parent, n11) in expected {
                assert_eq!(firing.pair(parent as usize, child).n11, n11);
            }
            assert_eq!(firing.n_firings(child), dense.iter().filter(|row| row[child] > 0.0).count() as u64);
        }
    }

    #[test]
    fn counts_of_disjoint_rows_add_up_in_any_order() {
        let firing = planted::firing(&planted::random_gates(200, 8, 3));
        let (even, odd): (Vec<usize>, Vec<usize>) = (0..200).rev().partition(|row| row % 2 == 0);
        let (even, odd) = (firing.select(&even), firing.select(&odd));
        for (parent, child) in [(0, 1), (5, 2), (7, 7)] {
            let whole = firing.pair(parent, child);
            let parts = [even.pair(parent, child), odd.pair(parent, child)];
            assert_eq!(whole.n11, parts[0].n11 + parts[1].n11);
            assert_eq!(whole.n_child, parts[0].n_child + parts[1].n_child);
            assert_eq!(whole.n, parts[0].n + parts[1].n);
        }
    }
}
