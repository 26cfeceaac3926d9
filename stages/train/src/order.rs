//! In which order training sees the rows: a function of the seed and the position, and of nothing that was seen before.
//!
//! A window is what is in memory together. Where the whole split is, a window is an epoch and every order of its rows is
//! equally likely; otherwise an epoch is cut into windows of random row groups.

use std::ops::Range;

use artifact::random;
use rand::seq::SliceRandom;

pub(crate) struct Order {
    seed: u64,
    /// Rows of each row group, in the order of the files.
    group_rows: Vec<usize>,
    n_rows: u64,
    /// Windows of an epoch; None where the whole split stays in memory.
    n_windows: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    pub(crate) epoch: u64,
    /// Within its epoch.
    pub(crate) index: usize,
    /// In the order in which they lie in memory.
    pub(crate) groups: Vec<usize>,
    /// Positions of its rows, counted from the start of training.
    pub(crate) positions: Range<u64>,
}

impl Order {
    /// `groups_per_window` row groups, whichever they are, fit in memory together; None if all of them do.
    pub(crate) fn new(seed: u64, group_rows: Vec<usize>, groups_per_window: Option<usize>) -> Self {
        let n_rows = group_rows.iter().sum::<usize>() as u64;
        let n_windows = groups_per_window.map(|n| group_rows.len().div_ceil(n));
        Self { seed, group_rows, n_rows, n_windows }
    }

    /// From the one that holds position `at`, without end.
    pub(crate) fn windows_from(&self, at: u64) -> impl Iterator<Item = Window> {
        let epochs = at / self.n_rows..;
        epochs.flat_map(|epoch| self.windows_of(epoch)).skip_while(move |window| window.positions.end <= at)
    }

    /// All windows of an epoch; each row group is in one of them.
    fn windows_of(&self, epoch: u64) -> Vec<Window> {
        let mut groups: Vec<usize> = (0..self.group_rows.len()).collect();
        if self.n_windows.is_some() {
            groups.shuffle(&mut random::stream(self.seed, "train/groups", 0, epoch));
        }
        let n_windows = self.n_windows.unwrap_or(1);
        let mut next = epoch * self.n_rows;
        let window = |index: usize| {
            // Windows of nearly as many groups each: a last one with the remainder would hardly be mixed.
            let bounds = index * groups.len() / n_windows..(index + 1) * groups.len() / n_windows;
            let groups = groups[bounds].to_vec();
            let first = next;
            next += groups.iter().map(|&group| self.group_rows[group] as u64).sum::<u64>();
            Window { epoch, index, groups, positions: first..next }
        };
        (0..n_windows).map(window).filter(|window| !window.positions.is_empty()).collect()
    }

    /// Position in the window → row as it lies in memory.
    pub(crate) fn shuffled(&self, window: &Window) -> Vec<u32> {
        let mut rows: Vec<u32> = (0..(window.positions.end - window.positions.start) as u32).collect();
        let purpose = if self.n_windows.is_some() { "train/rows" } else { "train/order" };
        rows.shuffle(&mut random::stream(self.seed, purpose, window.index as u64, window.epoch));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_every_group_once_and_windows_differ_by_one_group() {
        let order = Order::new(3, vec![10; 23], Some(4));
        for epoch in 0..4 {
            let windows = order.windows_of(epoch);
            assert_eq!(windows.len(), 6);
            assert!(windows.iter().all(|window| (3..=4).contains(&window.groups.len())), "{windows:?}");
            let mut groups: Vec<usize> = windows.iter().flat_map(|window| window.groups.clone()).collect();
            assert_ne!(groups, (0..23).collect::<Vec<_>>(), "in the order of the files");
            groups.sort_unstable();
            assert_eq!(groups, (0..23).collect::<Vec<_>>());
        }
        assert_ne!(order.windows_of(0)[0].groups, order.windows_of(1)[0].groups);
    }

    #[test]
    fn windows_follow_each_other_without_a_gap_from_wherever_one_starts() {
        let order = Order::new(0, vec![5, 1, 7, 7, 2, 0, 3], Some(2));
        let all: Vec<Window> = order.windows_from(0).take(20).collect();
        for (before, after) in all.iter().zip(&all[1..]) {
            assert_eq!(before.positions.end, after.positions.start);
        }
        for at in 0..60 {
            let found = order.windows_from(at).next().unwrap();
            assert!(found.positions.contains(&at));
            assert!(all.contains(&found));
        }
    }

    /// The order of a split that fits in memory is an interface: SAEs that were trained before rest on it.
    #[test]
    fn a_split_in_memory_is_one_window_an_epoch() {
        let order = Order::new(0, vec![6, 4], None);
        let window = order.windows_from(13).next().unwrap();
        assert_eq!(window, Window { epoch: 1, index: 0, groups: vec![0, 1], positions: 10..20 });
        let mut expected: Vec<u32> = (0..10).collect();
        expected.shuffle(&mut random::stream(0, "train/order", 0, 1));
        assert_eq!(order.shuffled(&window), expected);
    }
}
