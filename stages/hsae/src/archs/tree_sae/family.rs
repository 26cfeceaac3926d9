//! Parents of a Tree SAE's children, and when they change: at growing intervals, dead children move from parents that have
//! too many for their capacity to parents that have too few.
//!
//! A parent's capacity is the loss of the steps since the last change, shared equally in each step by the parents that
//! fired in it; the root always does. Quotas: one child after the other goes to the largest capacity / (children + 1).
//!
//! Source: Cao et al. 2026, arXiv 2605.07922, algorithms 1 and 2.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use artifact::config::TreeSae;
use rand::RngExt;

/// Part of the state of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Of each fine latent, [n_fine]; n_coarse: the root.
    pub parent: Vec<u32>,
    /// Since the last change, [n_coarse + 1].
    pub capacity: Vec<f64>,
    /// Steps since the last change.
    pub n_since: u64,
    /// And how many there have to be for the next.
    pub interval: u64,
    /// Parents are final.
    pub is_fixed: bool,
}

/// What a step says of the latents, [d_sae].
pub(crate) struct Signs<'a> {
    /// Fired in this step.
    pub(crate) fired: &'a [bool],
    /// Tokens since each last fired, those of the step in which it did included.
    pub(crate) tokens_since_fired: &'a [u64],
    /// A latent is dead from so many on.
    pub(crate) dead_after: u64,
}

impl Signs<'_> {
    pub(crate) fn is_dead(&self, j: usize) -> bool {
        self.tokens_since_fired[j] >= self.dead_after
    }
}

impl Family {
    /// Every child has a parent drawn at random, of the coarse latents and the root.
    pub(crate) fn new(config: &TreeSae, seed: u64, n_coarse: usize, n_fine: usize, n_steps: u64) -> Self {
        let mut rng = artifact::random::stream(seed, "train/tree-sae", 0, 0);
        Self {
            parent: (0..n_fine).map(|_| rng.random_range(0..=n_coarse as u32)).collect(),
            capacity: vec![0.0; n_coarse + 1],
            n_since: 0,
            interval: steps(config.interval, n_steps),
            is_fixed: false,
        }
    }

    fn n_coarse(&self) -> usize {
        self.capacity.len() - 1
    }

    /// Of all latents, [d_sae]; None: the root.
    pub(crate) fn parents(&self) -> Vec<Option<u32>> {
        let root = self.n_coarse() as u32;
        let of_fine = self.parent.iter().map(|&parent| (parent != root).then_some(parent));
        std::iter::repeat_n(None, self.n_coarse()).chain(of_fine).collect()
    }

    pub(crate) fn n_edges(&self) -> u64 {
        self.parents().iter().flatten().count() as u64
    }

    /// Takes a step into account, the `n_done`-th of `n_steps`, and changes parents if it is time.
    pub(crate) fn follow(&mut self, config: &TreeSae, loss: f64, signs: &Signs, n_done: u64, n_steps: u64) {
        let root = self.n_coarse();
        self.n_since += 1;
        let fired: Vec<usize> = (0..=root).filter(|&parent| parent == root || signs.fired[parent]).collect();
        fired.iter().for_each(|&parent| self.capacity[parent] += loss / fired.len() as f64);
        if self.is_fixed {
            return;
        }
        if n_done >= steps(config.root_reset, n_steps) {
            let children = self.parent.iter_mut().enumerate();
            children.filter(|&(child, _)| signs.is_dead(root + child)).for_each(|(_, parent)| *parent = root as u32);
            self.is_fixed = true;
        } else if self.n_since >= self.interval {
            self.reallocate(config.eligible_within, signs);
            self.n_since = 0;
            let longer = (self.interval as f64 * config.growth) as u64;
            self.interval = longer.min(steps(config.max_interval, n_steps));
        }
    }

    fn reallocate(&mut self, eligible_within: u64, signs: &Signs) {
        let root = self.n_coarse();
        let is_possible = |parent: usize| parent == root || signs.tokens_since_fired[parent] < eligible_within;
        let possible: Vec<usize> =
            (0..=root).filter(|&parent| is_possible(parent) && self.capacity[parent] > 0.0).collect();
        if possible.is_empty() {
            return; // no loss to share out, hence nothing to gain
        }
        let quota = quotas(&self.capacity, &possible, self.parent.len());
        let mut children = vec![Vec::new(); root + 1];
        for (child, &parent) in self.parent.iter().enumerate() {
            children[parent as usize].push(child);
        }
        let (mut movers, mut places) = (Vec::new(), Vec::new());
        for (parent, children) in children.iter().enumerate() {
            let surplus = children.len().saturating_sub(quota[parent]);
            let dead = children.iter().copied().filter(|child| signs.is_dead(root + child));
            movers.extend(dead.take(surplus));
            places.extend(std::iter::repeat_n(parent as u32, quota[parent].saturating_sub(children.len())));
        }
        movers.into_iter().zip(places).for_each(|(child, parent)| self.parent[child] = parent);
        self.capacity.fill(0.0);
    }
}

/// A share of training in steps; at least one, since nothing happens before a step.
fn steps(share: f64, n_steps: u64) -> u64 {
    ((share * n_steps as f64).round() as u64).max(1)
}

/// What one more child would leave each of a parent's children of its capacity. Of equal ones the first parent is greatest.
struct Payoff {
    value: f64,
    parent: usize,
}

impl Ord for Payoff {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.total_cmp(&other.value).then(other.parent.cmp(&self.parent))
    }
}

impl PartialOrd for Payoff {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Payoff {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Payoff {}

/// Children for each parent, `n_children` in all. Shapes: capacity [n] → [n].
fn quotas(capacity: &[f64], possible: &[usize], n_children: usize) -> Vec<usize> {
    let mut quota = vec![0; capacity.len()];
    let mut heap: BinaryHeap<Payoff> =
        possible.iter().map(|&parent| Payoff { value: capacity[parent], parent }).collect();
    for _ in 0..n_children {
        let Some(mut first) = heap.peek_mut() else { break };
        let parent = first.parent;
        quota[parent] += 1;
        first.value = capacity[parent] / (quota[parent] + 1) as f64;
    }
    quota
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs<'a>(fired: &'a [bool], tokens_since_fired: &'a [u64]) -> Signs<'a> {
        Signs { fired, tokens_since_fired, dead_after: 100 }
    }

    #[test]
    fn quotas_follow_capacities_and_the_first_of_equals() {
        assert_eq!(quotas(&[4.0, 2.0, 0.0, 1.0], &[0, 1, 3], 7), [4, 2, 0, 1]);
        assert_eq!(quotas(&[1.0, 1.0], &[0, 1], 3), [2, 1]);
        assert_eq!(quotas(&[1.0, 9.0], &[0], 3), [3, 0]);
    }

    #[test]
    fn dead_children_move_from_parents_with_too_many_to_those_with_too_few() {
        let config = TreeSae { interval: 0.1, max_interval: 0.15, root_reset: 0.9, ..TreeSae::default() };
        // Two coarse latents, of which the second never fires, and four children of the second, one of them alive.
        let mut family = Family { parent: vec![1; 4], ..Family::new(&config, 7, 2, 4, 10) };
        let fired = [true, false, true, false, false, false];
        let since = [10, 200_000, 10, 200, 200, 200];
        family.follow(&config, 1.0, &signs(&fired, &since), 1, 10);
        // The first and the root share the loss and all quotas; the live child stays where it is.
        assert_eq!(family.parent, [1, 0, 0, 2]);
        assert_eq!(family.capacity, [0.0; 3]);
        // Twice one step, which is what .15 of ten steps are, rounded.
        assert_eq!((family.n_since, family.interval), (0, 2));
    }

    #[test]
    fn at_the_reset_dead_children_go_to_the_root_for_good() {
        let config = TreeSae { root_reset: 0.5, ..TreeSae::default() };
        let mut family = Family { parent: vec![0, 1, 1], interval: 1000, ..Family::new(&config, 7, 2, 3, 10) };
        let (fired, since) = ([true; 5], [10, 10, 10, 200, 10]);
        for n_done in 1..=4 {
            family.follow(&config, 1.0, &signs(&fired, &since), n_done, 10);
        }
        assert_eq!(family.parent, [0, 1, 1]);
        family.follow(&config, 1.0, &signs(&fired, &since), 5, 10);
        assert_eq!(family.parent, [0, 2, 1]);
        assert_eq!(family.parents(), [None, None, Some(0), None, Some(1)]);
        family.interval = 1;
        family.follow(&config, 1.0, &signs(&[true; 5], &[200; 5]), 6, 10);
        assert!(family.is_fixed && family.parent == [0, 2, 1]);
    }

    #[test]
    fn a_loss_of_zero_moves_nobody() {
        let config = TreeSae { interval: 0.1, max_interval: 0.1, ..TreeSae::default() };
        let mut family = Family { parent: vec![0, 1], ..Family::new(&config, 7, 2, 2, 10) };
        family.follow(&config, 0.0, &signs(&[true; 4], &[200; 4]), 1, 10);
        assert_eq!(family.parent, [0, 1]);
    }
}
