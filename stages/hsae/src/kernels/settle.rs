//! What passed the screen, computed in f32: the last word on which pre-activations lie beyond their bounds.

use super::collect::{Noted, Task, Top};
use super::{dot, dot4, prefetch};
use crate::sparse::SparseRows;

/// Where only the k largest matter, so many times k are computed first: their k-th largest says what else can be among
/// them.
const FIRST: f64 = 1.4;

vectorised! {
    /// The pre-activations of what was noted, row by row, as far as they lie beyond their bounds.
    pub(super) fn settle(task: &Task, noted: &[Vec<Noted>]) -> SparseRows {
        let mut settling = Settling::new(task, noted);
        match task.bounds.top {
            Some(top) if top.k > 0 => settling.largest(top),
            _ => settling.all(),
        }
        settling.found()
    }
}

struct Settling<'a> {
    task: &'a Task<'a>,
    noted: &'a [Vec<Noted>],
    /// Where each row's entries start among those of all rows, [n_rows + 1].
    offsets: Vec<usize>,
    /// Of all entries; −∞ where it is not needed, which is beyond no bound.
    pre_acts: Vec<f32>,
    /// What is to be computed next.
    wanted: Vec<Wanted>,
    by_latent: Vec<Wanted>,
    /// [d_sae + 1].
    next: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct Wanted {
    latent: u32,
    row: u32,
    /// Among the entries of all rows.
    entry: u32,
}

impl<'a> Settling<'a> {
    #[inline(always)]
    fn new(task: &'a Task<'a>, noted: &'a [Vec<Noted>]) -> Self {
        let mut offsets = Vec::with_capacity(noted.len() + 1);
        offsets.push(0);
        offsets.extend(noted.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        let n = offsets[noted.len()];
        Self {
            task,
            noted,
            offsets,
            pre_acts: vec![f32::NEG_INFINITY; n],
            wanted: Vec::with_capacity(n),
            by_latent: Vec::new(),
            next: Vec::new(),
        }
    }

    #[inline(always)]
    fn want(&mut self, row: usize, i: usize) {
        let (latent, entry) = (self.noted[row][i].0, (self.offsets[row] + i) as u32);
        self.wanted.push(Wanted { latent, row: row as u32, entry });
    }

    #[inline(always)]
    fn all(&mut self) {
        for row in 0..self.noted.len() {
            (0..self.noted[row].len()).for_each(|i| self.want(row, i));
        }
        self.compute();
    }

    /// The k largest of each row, and what lies less than `slack` below the k-th.
    #[inline(always)]
    fn largest(&mut self, top: Top) {
        let (task, noted) = (self.task, self.noted);
        let n_first = ((FIRST * top.k as f64) as usize).max(top.k + 4);
        // What a row's score has to reach to be computed first; −∞: all of them are.
        let mut first = vec![f32::NEG_INFINITY; noted.len()];
        let mut scratch: Vec<f32> = Vec::new();
        for (row, noted) in noted.iter().enumerate() {
            if noted.len() > n_first {
                scratch.clear();
                scratch.extend(noted.iter().map(|&(_, score)| score));
                first[row] = *scratch.select_nth_unstable_by(n_first - 1, |a, b| b.total_cmp(a)).1;
            }
            (0..noted.len()).filter(|&i| noted[i].1 >= first[row]).for_each(|i| self.want(row, i));
        }
        self.compute();
        let screen = task.screen();
        for (row, noted) in noted.iter().enumerate().filter(|&(row, _)| first[row] > f32::NEG_INFINITY) {
            let entries = self.offsets[row]..self.offsets[row + 1];
            scratch.clear();
            scratch
                .extend(noted.iter().zip(&self.pre_acts[entries]).map(|(&(j, _), pre)| pre - task.shift(j as usize)));
            let kth = *scratch.select_nth_unstable_by(top.k - 1, |a, b| b.total_cmp(a)).1 - top.slack;
            for (i, &(latent, score)) in noted.iter().enumerate() {
                let can_reach = || score + task.margin(&screen, row, latent, score.abs() + top.slack) >= kth;
                if score < first[row] && can_reach() {
                    self.want(row, i);
                }
            }
        }
        self.compute();
    }

    /// Computes what is wanted, latent by latent, so that W_enc streams by once while the task's tokens stay in cache.
    #[inline(always)]
    fn compute(&mut self) {
        let input = &self.task.input;
        self.next.clear();
        self.next.resize(input.b_enc.len() + 1, 0);
        self.wanted.iter().for_each(|wanted| self.next[wanted.latent as usize + 1] += 1);
        for j in 0..input.b_enc.len() {
            self.next[j + 1] += self.next[j];
        }
        self.by_latent.clear();
        self.by_latent.resize(self.wanted.len(), Wanted::default());
        for &wanted in &self.wanted {
            let at = &mut self.next[wanted.latent as usize];
            self.by_latent[*at as usize] = wanted;
            *at += 1;
        }
        self.wanted.clear();
        let w_row = |j: u32| &input.w_enc[j as usize * input.d_model..(j as usize + 1) * input.d_model];
        let mut rest = self.by_latent.as_slice();
        while let Some(&Wanted { latent, .. }) = rest.first() {
            let (now, after) = rest.split_at(rest.iter().take_while(|wanted| wanted.latent == latent).count());
            rest = after;
            if let Some(next) = rest.first() {
                prefetch(w_row(next.latent));
            }
            let (w, bias) = (w_row(latent), input.b_enc[latent as usize]);
            let (fours, few) = now.as_chunks::<4>();
            for four in fours {
                let products = dot4(four.map(|wanted| self.task.token(wanted.row as usize)), w);
                four.iter().zip(products).for_each(|(to, product)| self.pre_acts[to.entry as usize] = product + bias);
            }
            for to in few {
                self.pre_acts[to.entry as usize] = dot(self.task.token(to.row as usize), w) + bias;
            }
        }
    }

    #[inline(always)]
    fn found(&self) -> SparseRows {
        let mut found = SparseRows::new(self.task.input.b_enc.len());
        for (row, noted) in self.noted.iter().enumerate() {
            let bound = self.task.bounds.of(self.task.first_row + row);
            let pre_acts = &self.pre_acts[self.offsets[row]..self.offsets[row + 1]];
            let entries = noted.iter().zip(pre_acts).map(|(&(latent, _), &pre)| (latent, pre));
            found.push_row(entries.filter(|&(latent, pre)| pre - self.task.shift(latent as usize) > bound));
        }
        found
    }
}
