//! What passed the screen, computed in f32: the last word on which pre-activations lie beyond their bounds.

use super::collect::{Noted, Task, Top, kth_largest};
use super::dots;
use crate::sparse::SparseRows;

/// How much lower than need be is begun, in margins: screened scores are off by much less than a margin.
const SPARE: f32 = 0.1;
/// Entries that are settled at once.
const MOST_ENTRIES: usize = 1 << 18;
/// Rows of W_enc are fetched so many latents before they are needed.
const AHEAD: usize = 3;

vectorised! {
    /// The pre-activations of what was noted, row by row, as far as they lie beyond their bounds.
    pub(super) fn settle(task: &Task, noted: &[Vec<Noted>]) -> SparseRows {
        // Where much was noted, some rows at a time, so that memory stays bounded.
        let n_most = noted.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let n_rows = (MOST_ENTRIES / n_most).clamp(1, noted.len().max(1));
        let mut found = SparseRows::new(task.input.b_enc.len());
        for (piece, noted) in noted.chunks(n_rows).enumerate() {
            let mut settling = Settling::new(task, piece * n_rows, noted);
            match task.bounds.top {
                Some(top) if top.k > 0 => settling.largest(top),
                _ => settling.all(),
            }
            task.input.packed.note(settling.n_computed, noted.len());
            if noted.len() == task.n_rows {
                return settling.found();
            }
            found.append(&settling.found());
        }
        found
    }
}

struct Settling<'a> {
    task: &'a Task<'a>,
    /// The first of its rows among the task's.
    first: usize,
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
    n_computed: usize,
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
    fn new(task: &'a Task<'a>, first: usize, noted: &'a [Vec<Noted>]) -> Self {
        let mut offsets = Vec::with_capacity(noted.len() + 1);
        offsets.push(0);
        offsets.extend(noted.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        let n = offsets[noted.len()];
        Self {
            task,
            first,
            noted,
            offsets,
            pre_acts: vec![f32::NEG_INFINITY; n],
            wanted: Vec::with_capacity(n),
            by_latent: Vec::new(),
            next: Vec::new(),
            n_computed: 0,
        }
    }

    /// Wants some of a row's entries.
    #[inline(always)]
    fn want_if(&mut self, row: usize, is_wanted: impl Fn(usize) -> bool) {
        let (noted, start) = (&self.noted[row], self.wanted.len());
        self.wanted.resize(start + noted.len(), Wanted::default());
        let mut n = start;
        for (i, &(latent, _)) in noted.iter().enumerate() {
            // Written in any case, and kept if it counts: which it does is hard to foresee.
            self.wanted[n] = Wanted { latent, row: row as u32, entry: (self.offsets[row] + i) as u32 };
            n += usize::from(is_wanted(i));
        }
        self.wanted.truncate(n);
    }

    #[inline(always)]
    fn all(&mut self) {
        (0..self.noted.len()).for_each(|row| self.want_if(row, |_| true));
        self.compute();
    }

    /// The k largest of each row, and what lies less than `slack` below the k-th. The screened scores are nearly right,
    /// so their k-th tells what to compute: what may reach it. What was computed then shows whether it is reached.
    #[inline(always)]
    fn largest(&mut self, top: Top) {
        let (task, noted, screen) = (self.task, self.noted, self.task.screen());
        // What the k-th largest of each row is thought to reach.
        let mut reached = vec![f32::NEG_INFINITY; noted.len()];
        let (mut scores, mut upper_ends) = (Vec::new(), Vec::new());
        for (row, noted) in noted.iter().enumerate() {
            let margins = task.margins(&screen, self.first + row);
            upper_ends.clear();
            upper_ends.extend(noted.iter().map(|&(latent, score)| score + margins.of(latent, score)));
            if noted.len() > top.k {
                scores.clear();
                scores.extend(noted.iter().map(|&(_, score)| score));
                let all_margins: f32 = noted.iter().zip(&upper_ends).map(|(&(_, score), upper)| upper - score).sum();
                reached[row] = kth_largest(&mut scores, top.k) - SPARE * all_margins / noted.len() as f32;
                if reached[row].is_nan() {
                    reached[row] = f32::NEG_INFINITY;
                }
            }
            let lower = reached[row] - top.slack;
            self.want_if(row, |i| upper_ends[i] >= lower);
        }
        self.compute();
        for row in 0..noted.len() {
            let entries = self.offsets[row]..self.offsets[row + 1];
            let scores = self.noted[row].iter().zip(&self.pre_acts[entries.clone()]);
            let reaches = |&(&(j, _), pre): &(&Noted, &f32)| pre - task.shift(j as usize) >= reached[row];
            if noted[row].len() > top.k && scores.filter(reaches).count() < top.k {
                let is_left: Vec<bool> = self.pre_acts[entries].iter().map(|&pre| pre == f32::NEG_INFINITY).collect();
                self.want_if(row, |i| is_left[i]);
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
        self.n_computed += self.wanted.len();
        self.wanted.clear();
        let w_row = |j: u32| &input.w_enc[j as usize * input.d_model..(j as usize + 1) * input.d_model];
        let by_latent = std::mem::take(&mut self.by_latent);
        let mut rest = by_latent.as_slice();
        while let Some(&Wanted { latent, .. }) = rest.first() {
            let (now, after) = rest.split_at(rest.iter().take_while(|wanted| wanted.latent == latent).count());
            rest = after;
            // Nearly every latent is wanted by some token, so rows a little further on will be next.
            let mut ahead = input.w_enc.get((latent as usize + AHEAD) * input.d_model..).unwrap_or_default();
            let (w, bias) = (w_row(latent), input.b_enc[latent as usize]);
            for some in now.chunks(4) {
                let token = |i: usize| self.task.token(self.first + some[i].row as usize);
                match some.len() {
                    4 => self.put(some, dots(std::array::from_fn::<_, 4, _>(token), w, ahead), bias),
                    3 => self.put(some, dots(std::array::from_fn::<_, 3, _>(token), w, ahead), bias),
                    2 => self.put(some, dots(std::array::from_fn::<_, 2, _>(token), w, ahead), bias),
                    _ => self.put(some, dots([token(0)], w, ahead), bias),
                }
                ahead = &[];
            }
        }
        self.by_latent = by_latent;
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, to: &[Wanted], products: [f32; N], bias: f32) {
        to.iter().zip(products).for_each(|(to, product)| self.pre_acts[to.entry as usize] = product + bias);
    }

    #[inline(always)]
    fn found(&self) -> SparseRows {
        let n_most: usize = self.noted.iter().map(Vec::len).sum();
        let mut found = SparseRows::new(self.task.input.b_enc.len());
        (found.idx, found.vals) = (vec![0; n_most], vec![0.0; n_most]);
        let mut n = 0;
        for (row, noted) in self.noted.iter().enumerate() {
            let bound = self.task.bounds.of(self.task.first_row + self.first + row);
            let pre_acts = &self.pre_acts[self.offsets[row]..self.offsets[row + 1]];
            for (&(latent, _), &pre) in noted.iter().zip(pre_acts) {
                // Written in any case, and kept if it counts: which it does is hard to foresee.
                (found.idx[n], found.vals[n]) = (latent, pre);
                n += usize::from(pre - self.task.shift(latent as usize) > bound);
            }
            found.indptr.push(n);
        }
        found.idx.truncate(n);
        found.vals.truncate(n);
        found
    }
}
