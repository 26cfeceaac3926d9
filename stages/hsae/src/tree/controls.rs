//! Controls of the tree: the gate acts on the same children, but on other parents than mutual information chooses
//! (science.md §5). They are those that `recover` has for finished trees, with parents that fire more often than their
//! children wherever that can be, as in the real one.
//!
//! A child keeps what it was given for as long as that fits: a gate whose parents were drawn anew at each choice would
//! be noise, and not a tree.

use artifact::config::TreeRule;
use artifact::random;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::{ParentEdge, TreeLearner, mutual_information_bits};

/// A random parent is one of this many latents whose rates are nearest to the chosen parent's.
const N_NEAREST: usize = 5;
/// It stays for as long as it is, or its rate lies within this share of that parent's.
const RATE_SLACK: f32 = 0.2;

/// How badly a parent fits a child: two parents in exchange are better than before where the sum of theirs is less.
const RARER: u32 = 1;
const SAME_AS_CHOSEN: u32 = 4;
const ITSELF: u32 = 16;

impl TreeLearner {
    /// Chooses every latent's parent anew, and hands out others in their place where the rule is a control's.
    pub fn choose_by_rule(&mut self, seed: u64, step: u64) {
        let before = std::mem::take(&mut self.edges);
        self.choose();
        let chosen: Vec<(u32, ParentEdge)> =
            self.edges.iter().enumerate().filter_map(|(child, edge)| Some((child as u32, (*edge)?))).collect();
        let parents = match self.config.rule {
            TreeRule::Mi => return,
            TreeRule::Permuted => self.permuted(&chosen, &before, seed, step),
            TreeRule::Random => self.random(&chosen, &before, seed, step),
        };
        for ((child, edge), parent) in chosen.into_iter().zip(parents) {
            if parent != edge.parent {
                let mi_bits = self.mi_bits(child, parent);
                let runner_up = Some((edge.parent, edge.mi_bits));
                self.edges[child as usize] = Some(ParentEdge { parent, mi_bits, runner_up });
            }
        }
    }

    /// The chosen parents, dealt out anew. A child gets neither itself nor its chosen parent, unless every exchange
    /// would do so; then it keeps its chosen one. It gets a parent that fires more often where an exchange finds one.
    fn permuted(&self, chosen: &[(u32, ParentEdge)], before: &[Option<ParentEdge>], seed: u64, step: u64) -> Vec<u32> {
        let misfit = |i: usize, parent: u32| {
            let (child, edge) = chosen[i];
            u32::from(parent == child) * ITSELF
                + u32::from(parent == edge.parent) * SAME_AS_CHOSEN
                + u32::from(!self.is_more_frequent(parent, child)) * RARER
        };
        // How often each is to be dealt.
        let mut n_left = vec![0u32; self.d_sae];
        chosen.iter().for_each(|(_, edge)| n_left[edge.parent as usize] += 1);
        let kept: Vec<Option<u32>> = (0..chosen.len())
            .map(|i| {
                let parent = before[chosen[i].0 as usize]?.parent;
                let is_kept = n_left[parent as usize] > 0 && misfit(i, parent) == 0;
                n_left[parent as usize] -= u32::from(is_kept);
                is_kept.then_some(parent)
            })
            .collect();
        let left = n_left.iter().enumerate().flat_map(|(parent, &n)| std::iter::repeat_n(parent as u32, n as usize));
        let mut left: Vec<u32> = left.collect();
        left.shuffle(&mut random::stream(seed, "train/tree-permuted", 0, step));
        let mut left = left.into_iter();
        let mut dealt: Vec<u32> = kept.into_iter().filter_map(|kept| kept.or_else(|| left.next())).collect();
        for i in 0..dealt.len() {
            let exchanged = |j: usize| misfit(i, dealt[j]) + misfit(j, dealt[i]);
            let now = |j: usize| misfit(i, dealt[i]) + misfit(j, dealt[j]);
            if misfit(i, dealt[i]) > 0 {
                // Of equal ones the first.
                let better = (0..dealt.len()).filter(|&j| exchanged(j) < now(j));
                let best = better.min_by_key(|&j| exchanged(j) as i64 - i64::from(now(j)));
                best.into_iter().for_each(|j| dealt.swap(i, j));
            }
        }
        dealt
    }

    /// For each child one of the [`N_NEAREST`] latents whose rates are nearest to the chosen parent's, among those that
    /// fire more often than the child, or else among all. It stays for as long as the chosen parent does and its rate is
    /// about the same.
    fn random(&self, chosen: &[(u32, ParentEdge)], before: &[Option<ParentEdge>], seed: u64, step: u64) -> Vec<u32> {
        let mut by_rate: Vec<u32> = (0..self.n_parents as u32).collect();
        by_rate.sort_by(|&a, &b| self.n1[a as usize].total_cmp(&self.n1[b as usize]).then(a.cmp(&b)));
        let mut place = vec![0; self.n_parents];
        by_rate.iter().enumerate().for_each(|(at, &latent)| place[latent as usize] = at);
        let parent_of = |&(child, edge): &(u32, ParentEdge)| {
            let at = place[edge.parent as usize];
            let first = by_rate.partition_point(|&latent| !self.is_more_frequent(latent, child));
            let mut nearest = self.nearest(&by_rate, at, first, child);
            if nearest.is_empty() {
                nearest = self.nearest(&by_rate, at, 0, child);
            }
            let is_near = |parent: u32| {
                let distance = (self.n1[parent as usize] - self.n1[edge.parent as usize]).abs();
                nearest.contains(&parent) || distance <= RATE_SLACK * self.n1[edge.parent as usize]
            };
            let is_same = |kept: &ParentEdge| kept.runner_up.is_some_and(|(best, _)| best == edge.parent);
            let kept = before[child as usize].filter(is_same).map(|kept| kept.parent);
            if let Some(kept) = kept.filter(|&kept| self.is_more_frequent(kept, child) && is_near(kept)) {
                return kept;
            }
            let mut rng = random::stream(seed, "train/tree-random", u64::from(child), step);
            // Of two latents neither has another parent to choose.
            if nearest.is_empty() { edge.parent } else { nearest[rng.random_range(0..nearest.len() as u32) as usize] }
        };
        chosen.iter().map(parent_of).collect()
    }

    /// The latents next to the one at `at` in the order of rates, from `first` on, without it and the child.
    fn nearest(&self, by_rate: &[u32], at: usize, first: usize, child: u32) -> Vec<u32> {
        let n1 = |latent: u32| self.n1[latent as usize];
        let wanted = n1(by_rate[at]);
        // On either side so many, and one more in case the child is among them.
        let window = first.max(at.saturating_sub(N_NEAREST + 1))..by_rate.len().min(at + N_NEAREST + 2);
        let others = by_rate[window].iter().copied().filter(|&latent| latent != by_rate[at] && latent != child);
        let mut latents: Vec<u32> = others.collect();
        latents.sort_by(|&a, &b| (n1(a) - wanted).abs().total_cmp(&(n1(b) - wanted).abs()).then(a.cmp(&b)));
        latents.truncate(N_NEAREST);
        latents
    }

    fn is_more_frequent(&self, parent: u32, child: u32) -> bool {
        self.n1[parent as usize] > self.n1[child as usize]
    }

    /// Of a pair, 0 where no count of it is kept.
    fn mi_bits(&self, child: u32, parent: u32) -> f64 {
        match self.joint_rate(child, parent) {
            0.0 => 0.0,
            both => mutual_information_bits(both, self.rate(parent), self.rate(child)),
        }
    }
}

#[cfg(test)]
mod tests {
    use artifact::config::{ParentSet, Tree};

    use super::*;
    use crate::sparse::SparseRows;

    /// Trees of the forest, each a root and three children that exclude each other; then latents that fire alone.
    const N_TREES: u32 = 8;
    const D_SAE: usize = 40;

    /// Roots are latents 0 to 7, the children of root i latents 8 + 3i to 10 + 3i, and 32 to 39 have no parent. The later
    /// a tree, the rarer, so that some of the roots fire less often than other trees' children.
    fn forest(step: u64) -> SparseRows {
        let mut rng = random::stream(step, "test", 0, 0);
        let mut rows = SparseRows::new(D_SAE);
        for _ in 0..400 {
            let mut on = [false; D_SAE];
            for i in 0..N_TREES {
                on[i as usize] = rng.random_bool(0.4 / f64::from(i + 1));
                let child = 8 + 3 * i + rng.random_range(0..3u32);
                on[child as usize] = on[i as usize] && rng.random_bool(0.7);
                on[32 + i as usize] = rng.random_bool(0.3 / f64::from(i + 1));
            }
            rows.push_row((0..D_SAE as u32).filter(|&j| on[j as usize]).map(|j| (j, 1.0)));
        }
        rows
    }

    /// After each choice in turn.
    fn learners(rule: TreeRule, parents: ParentSet, seed: u64) -> Vec<TreeLearner> {
        let config = Tree { rule, parents, firings_per_step: 40, ..Tree::default() };
        let mut learner = TreeLearner::new(&config, N_TREES as usize, D_SAE);
        let mut after = Vec::new();
        for step in 0..60 {
            let rows = forest(step);
            learner.observe(&rows, &rows.columns());
            if step % 10 == 9 {
                learner.choose_by_rule(seed, step);
                after.push(learner.clone());
            }
        }
        after
    }

    fn last(rule: TreeRule, parents: ParentSet, seed: u64) -> TreeLearner {
        learners(rule, parents, seed).pop().unwrap()
    }

    const BOTH: [ParentSet; 2] = [ParentSet::Any, ParentSet::Coarse];
    const CONTROLS: [TreeRule; 2] = [TreeRule::Permuted, TreeRule::Random];

    #[test]
    fn a_control_gates_the_children_of_the_tree_and_none_of_them_by_its_parent() {
        for parents in BOTH {
            let tree = last(TreeRule::Mi, parents, 0).parents();
            let planted = (0..D_SAE as u32).map(|j| (8..32).contains(&j).then(|| (j - 8) / 3)).collect::<Vec<_>>();
            assert_eq!(tree, planted);
            for rule in CONTROLS {
                let control = last(rule, parents, 0);
                for (j, (new, old)) in control.parents().into_iter().zip(&tree).enumerate() {
                    assert_eq!(new.is_some(), old.is_some(), "{rule:?} {j}");
                    assert!(new.is_none_or(|new| new != j as u32 && Some(new) != *old), "{rule:?} {j}");
                    assert!(parents == ParentSet::Any || new.is_none_or(|new| new < N_TREES), "{rule:?} {j}");
                }
                let best = |j: usize| control.edges[j].and_then(|edge| edge.runner_up).map(|(best, _)| best);
                assert!((0..D_SAE).all(|j| best(j) == tree[j]), "{rule:?}");
            }
        }
    }

    #[test]
    fn permuted_parents_are_the_same_ones() {
        let sorted = |rule: TreeRule| {
            let mut parents: Vec<u32> = last(rule, ParentSet::Any, 0).parents().into_iter().flatten().collect();
            parents.sort_unstable();
            parents
        };
        assert_eq!(sorted(TreeRule::Permuted), sorted(TreeRule::Mi));
    }

    #[test]
    fn parents_fire_more_often_than_their_children_where_that_can_be() {
        let n_rarer = |learner: &TreeLearner| {
            let is_rarer = |(j, parent): (usize, u32)| !learner.is_more_frequent(parent, j as u32);
            learner.parents().iter().enumerate().filter(|&(j, parent)| parent.is_some_and(|p| is_rarer((j, p)))).count()
        };
        for parents in BOTH {
            assert_eq!(n_rarer(&last(TreeRule::Random, parents, 0)), 0);
            // The most frequent children have the roots of the next few trees to choose from.
            assert_eq!(n_rarer(&last(TreeRule::Permuted, parents, 0)), 0);
        }
    }

    #[test]
    fn random_parents_fire_about_as_often_as_those_in_whose_place_they_stand() {
        let learner = last(TreeRule::Random, ParentSet::Any, 0);
        for (j, edge) in learner.edges.iter().enumerate() {
            let Some(edge) = edge else { continue };
            let (best, _) = edge.runner_up.unwrap();
            // Naively: how many others of those that fire more often than the child are nearer, unless it was kept.
            let distance = |i: u32| (learner.rate(i) - learner.rate(best)).abs();
            let others = (0..D_SAE as u32).filter(|&i| i != best && learner.is_more_frequent(i, j as u32));
            let n_nearer = others.filter(|&i| distance(i) < distance(edge.parent)).count();
            assert!(n_nearer < N_NEAREST || distance(edge.parent) <= 0.2 * learner.rate(best), "{j}: {n_nearer}");
        }
    }

    #[test]
    fn a_control_follows_from_its_seed_and_stays_while_the_tree_does() {
        for rule in CONTROLS {
            for parents in BOTH {
                let (once, again) = (learners(rule, parents, 3), learners(rule, parents, 3));
                assert!(once == again, "{rule:?}");
                assert!(once.last().unwrap().parents() != last(rule, parents, 4).parents(), "{rule:?}");
                let n_changed = once.windows(2).skip(1).map(|pair| {
                    pair[0].parents().iter().zip(pair[1].parents()).filter(|(before, after)| *before != after).count()
                });
                assert!(n_changed.sum::<usize>() <= 4 * 24 / 4, "{rule:?}");
            }
        }
    }

    #[test]
    fn where_there_is_nothing_to_exchange_the_chosen_parent_stays() {
        let config = Tree { rule: TreeRule::Permuted, ..Tree::default() };
        let mut learner = TreeLearner::new(&config, 0, 3);
        for step in 0..20 {
            let mut rng = random::stream(step, "test", 1, 0);
            let mut rows = SparseRows::new(3);
            for _ in 0..200 {
                let parent = rng.random_bool(0.3);
                let child = (parent && rng.random_bool(0.6)).then(|| 1 + rng.random_range(0..2u32));
                rows.push_row(parent.then_some(0).into_iter().chain(child).map(|j| (j, 1.0)));
            }
            learner.observe(&rows, &rows.columns());
        }
        learner.choose_by_rule(0, 20);
        assert_eq!(learner.parents(), [None, Some(0), Some(0)]);
        // A random one has a brother to take, which fires less often than the other at the least.
        learner.config.rule = TreeRule::Random;
        learner.choose_by_rule(0, 20);
        assert_eq!(learner.parents(), [None, Some(2), Some(1)]);
    }
}
