//! The soft tree: a parent for each latent among latents that fire more often, chosen by mutual information of firing
//! over moving averages (science.md §2 and §3). Counted, not learned by gradient: counting found more of the true edges.
//!
//! A parent fires in most of its child's firings, so each latent keeps counts of the few others that it fires with most
//! often, and no matrix of all pairs.

mod controls;

use artifact::config::{ParentSet, Tree};
use rayon::prelude::*;

use crate::rows::in_order;
use crate::sparse::{Columns, SparseRows};

/// Possible parents that a latent keeps counts of. Up to so many latents, counts are of all pairs.
const N_PARTNERS: usize = 64;
/// A partner is taken in by a step in which it shares at least this part of the latent's firings.
const LEAST_SHARE: f32 = 0.3;
/// An empty place among the partners.
const NONE: u32 = u32::MAX;

/// Weights of past steps grow by 1/decay a step instead of all sums shrinking; beyond this they are scaled back.
const LARGEST_WEIGHT: f64 = 1e12;

/// Moving averages of firing and co-firing, and the tree they say.
#[derive(Clone, Debug, PartialEq)]
pub struct TreeLearner {
    pub config: Tree,
    pub d_sae: usize,
    /// Latents that may be parents are those below this: d_sae, or n_coarse.
    pub n_parents: usize,
    /// Latents below `n_parents` that each fires with, [d_sae, N_PARTNERS].
    pub partners: Vec<u32>,
    /// Weighted co-firings with them among the firings that were counted, alike.
    pub n11: Vec<f32>,
    /// Weighted firings that were counted, [d_sae].
    pub n_counted: Vec<f32>,
    /// Weighted firings, [d_sae].
    pub n1: Vec<f32>,
    /// Weighted tokens.
    pub n: f64,
    /// What a token of the next step weighs.
    pub weight: f64,
    pub edges: Vec<Option<ParentEdge>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParentEdge {
    pub parent: u32,
    pub mi_bits: f64,
    /// The second-best parent, and its mutual information; where the parent is a control's, the best one.
    pub runner_up: Option<(u32, f64)>,
}

impl TreeLearner {
    pub fn new(config: &Tree, n_coarse: usize, d_sae: usize) -> Self {
        let n_parents = match config.parents {
            ParentSet::Any => d_sae,
            ParentSet::Coarse => n_coarse,
        };
        Self {
            config: config.clone(),
            d_sae,
            n_parents,
            partners: vec![NONE; d_sae * N_PARTNERS],
            n11: vec![0.0; d_sae * N_PARTNERS],
            n_counted: vec![0.0; d_sae],
            n1: vec![0.0; d_sae],
            n: 0.0,
            weight: 1.0,
            edges: vec![None; d_sae],
        }
    }

    pub fn parents(&self) -> Vec<Option<u32>> {
        self.edges.iter().map(|edge| edge.map(|edge| edge.parent)).collect()
    }

    /// Latents have other numbers: the one that was `order[j]` is j from here on, with its counts, partners and parent. Only
    /// where every latent may be a parent.
    pub(crate) fn renumber(&mut self, order: &[usize]) {
        let mut number = vec![0u32; self.d_sae];
        order.iter().enumerate().for_each(|(to, &from)| number[from] = to as u32);
        in_order(&mut self.partners, order);
        in_order(&mut self.n11, order);
        in_order(&mut self.n_counted, order);
        in_order(&mut self.n1, order);
        in_order(&mut self.edges, order);
        let now = |latent: &mut u32| *latent = number[*latent as usize];
        self.partners.iter_mut().filter(|partner| **partner != NONE).for_each(now);
        for edge in self.edges.iter_mut().flatten() {
            now(&mut edge.parent);
            edge.runner_up.iter_mut().for_each(|(latent, _)| now(latent));
        }
    }

    /// Adds a step's firing, taken before the gate acts, so that the gate does not confirm itself.
    pub fn observe(&mut self, firing: &SparseRows, columns: &Columns) {
        const BLOCK: usize = 16;
        let (weight, n_parents, most) = (self.weight as f32, self.n_parents, self.config.firings_per_step);
        let lists = self.partners.par_chunks_mut(BLOCK * N_PARTNERS).zip(self.n11.par_chunks_mut(BLOCK * N_PARTNERS));
        let firings = self.n1.par_chunks_mut(BLOCK).zip(self.n_counted.par_chunks_mut(BLOCK));
        lists.zip(firings).enumerate().for_each_init(
            || CoFirings::new(n_parents),
            |co_firings, (block, ((partners, n11), (n1, n_counted)))| {
                let lists = partners.chunks_exact_mut(N_PARTNERS).zip(n11.chunks_exact_mut(N_PARTNERS));
                for (i, ((partners, n11), (n1, all_counted))) in lists.zip(n1.iter_mut().zip(n_counted)).enumerate() {
                    let j = block * BLOCK + i;
                    let n_firings = columns.range(j).len();
                    *n1 += weight * n_firings as f32;
                    // Of frequent latents some firings, evenly spaced, speak for all.
                    let n_counted = n_firings.min(most);
                    for i in 0..n_counted {
                        let at = columns.range(j).start + i * n_firings / n_counted;
                        co_firings.count(j as u32, firing.row(columns.row[at] as usize).0);
                    }
                    *all_counted += weight * n_counted as f32;
                    co_firings.settle(partners, n11, weight, n_counted as f32);
                }
            },
        );
        self.n += self.weight * firing.n_rows() as f64;
        self.weight /= self.config.decay;
        if self.weight > LARGEST_WEIGHT {
            let shrink = (1.0 / self.weight) as f32;
            self.n11.par_iter_mut().for_each(|count| *count *= shrink);
            self.n1.iter_mut().chain(&mut self.n_counted).for_each(|count| *count *= shrink);
            self.n /= self.weight;
            self.weight = 1.0;
        }
    }

    /// Chooses every latent's parent anew: the largest mutual information among latents that fire more often, where the
    /// excess (P(parent|child) − P(parent)) / (1 − P(parent)) and the number of co-firings are large enough.
    pub fn choose(&mut self) {
        // The latest step weighs about 1 in these units, so that a count is one of tokens in the window.
        let last_weight = self.weight * self.config.decay;
        let min_n11 = self.config.min_count * last_weight;
        let (n, n1, min_excess) = (self.n, &self.n1, self.config.min_excess);
        // Latents that may have no parent come first.
        let first = if self.config.parents == ParentSet::Coarse { self.n_parents } else { 0 };
        self.edges = self
            .n11
            .par_chunks_exact(N_PARTNERS)
            .zip(self.partners.par_chunks_exact(N_PARTNERS))
            .enumerate()
            .map(|(j, (n11, partners))| {
                if j < first {
                    return None;
                }
                let (q, n_counted) = (f64::from(n1[j]) / n, f64::from(self.n_counted[j]));
                let mut best: Option<ParentEdge> = None;
                // Of equal parents the first is taken, wherever its place is.
                let mut places: Vec<usize> = (0..N_PARTNERS).filter(|&place| partners[place] != NONE).collect();
                places.sort_unstable_by_key(|&place| partners[place]);
                for place in places {
                    let (i, n11) = (partners[place] as usize, f64::from(n11[place]));
                    if n11 <= min_n11 || n1[i] <= n1[j] {
                        continue;
                    }
                    let p = f64::from(n1[i]) / n;
                    let p_given_child = n11 / n_counted;
                    if (p_given_child - p) / (1.0 - p) <= min_excess {
                        continue;
                    }
                    let mi_bits = mutual_information_bits(p_given_child * q, p, q);
                    let rival = Some((i as u32, mi_bits));
                    best = match best {
                        None => Some(ParentEdge { parent: i as u32, mi_bits, runner_up: None }),
                        Some(edge) if mi_bits > edge.mi_bits => {
                            Some(ParentEdge { parent: i as u32, mi_bits, runner_up: Some((edge.parent, edge.mi_bits)) })
                        }
                        Some(edge) if edge.runner_up.is_none_or(|(_, second)| mi_bits > second) => {
                            Some(ParentEdge { runner_up: rival, ..edge })
                        }
                        kept => kept,
                    };
                }
                best
            })
            .collect();
    }

    /// Share of tokens on which a latent fires, and a pair does.
    pub fn rate(&self, j: u32) -> f64 {
        f64::from(self.n1[j as usize]) / self.n
    }

    /// 0 where no count is kept.
    pub fn joint_rate(&self, child: u32, parent: u32) -> f64 {
        let list = child as usize * N_PARTNERS..(child as usize + 1) * N_PARTNERS;
        let place = self.partners[list.clone()].iter().position(|&partner| partner == parent);
        let share = |place: usize| f64::from(self.n11[list.start + place]) / f64::from(self.n_counted[child as usize]);
        place.map_or(0.0, |place| share(place) * self.rate(child))
    }
}

/// Room for counting the co-firings of one latent in one step.
struct CoFirings {
    /// [n_parents], zero between latents.
    n: Vec<f32>,
    /// Where it is not zero, in the order of their first appearance.
    touched: Vec<u32>,
}

impl CoFirings {
    fn new(n_parents: usize) -> Self {
        Self { n: vec![0.0; n_parents], touched: Vec::new() }
    }

    /// A token on which latent j fires, with all that fire on it.
    fn count(&mut self, j: u32, active: &[u32]) {
        for &i in active.iter().filter(|&&i| i != j) {
            if let Some(n) = self.n.get_mut(i as usize) {
                if *n == 0.0 {
                    self.touched.push(i);
                }
                *n += 1.0;
            }
        }
    }

    /// Adds the counts to the latent's list, where the rarest give way to those that now fire more often, and empties
    /// the room.
    fn settle(&mut self, partners: &mut [u32], n11: &mut [f32], weight: f32, n_firings: f32) {
        for (partner, n11) in partners.iter().zip(n11.iter_mut()).filter(|&(&partner, _)| partner != NONE) {
            *n11 += weight * self.n[*partner as usize];
            self.n[*partner as usize] = 0.0;
        }
        let (mut rarest, mut least) = rarest_of(n11);
        for i in self.touched.drain(..) {
            let n = std::mem::take(&mut self.n[i as usize]);
            // A list with room takes all, so that few latents are counted exactly.
            let is_partner = n > 0.0 && (n >= LEAST_SHARE * n_firings || least == 0.0);
            if is_partner && weight * n > least {
                (partners[rarest], n11[rarest]) = (i, weight * n);
                (rarest, least) = rarest_of(n11);
            }
        }
    }
}

/// Where the smallest count stands, and it; of equal ones the first.
fn rarest_of(n11: &[f32]) -> (usize, f32) {
    let least = n11.iter().copied().fold(f32::INFINITY, f32::min);
    (n11.iter().position(|&n| n == least).unwrap_or(0), least)
}

/// Mutual information of two binary variables with P(both) = p11, P(first) = p and P(second) = q, in bits.
pub fn mutual_information_bits(p11: f64, p: f64, q: f64) -> f64 {
    let p11 = p11.min(p).min(q);
    let term = |joint: f64, independent: f64| if joint > 0.0 { joint * (joint / independent).log2() } else { 0.0 };
    term(p11, p * q)
        + term(p - p11, p * (1.0 - q))
        + term(q - p11, (1.0 - p) * q)
        + term(1.0 - p - q + p11, (1.0 - p) * (1.0 - q))
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    /// Latent 0 is the parent of 1 and 2, fires alone too; 3 is independent; 4 fires with everything, often.
    fn planted(n_rows: usize, seed: u64) -> SparseRows {
        let mut rng = artifact::random::stream(seed, "test", 0, 0);
        let mut rows = SparseRows::new(5);
        for _ in 0..n_rows {
            let parent = rng.random_bool(0.2);
            let child = parent && rng.random_bool(0.6);
            let first = rng.random_bool(0.5);
            let on = [parent, child && first, child && !first, rng.random_bool(0.1), rng.random_bool(0.5)];
            rows.push_row((0..5u32).filter(|&j| on[j as usize]).map(|j| (j, 1.0)));
        }
        rows
    }

    #[test]
    fn a_planted_tree_is_found_and_nothing_else() {
        let mut learner = TreeLearner::new(&Tree::default(), 0, 5);
        for step in 0..50 {
            let rows = planted(500, step);
            learner.observe(&rows, &rows.columns());
        }
        learner.choose();
        assert_eq!(learner.parents(), [None, Some(0), Some(0), None, None]);
    }

    #[test]
    fn parents_are_found_among_more_latents_than_have_a_place() {
        // Latent 1 is the child of 0 and fires in one token in 50; 300 others fire as they like.
        let mut learner = TreeLearner::new(&Tree::default(), 0, 302);
        for step in 0..200 {
            let mut rng = artifact::random::stream(step, "test", 1, 0);
            let mut rows = SparseRows::new(302);
            for _ in 0..200 {
                let parent = rng.random_bool(0.1);
                let child = parent && rng.random_bool(0.2);
                let others = (2..302u32).filter(|_| rng.random_bool(0.1)).collect::<Vec<_>>();
                let own = [(0, parent), (1, child)].into_iter().filter(|&(_, is_on)| is_on).map(|(j, _)| j);
                rows.push_row(own.chain(others).map(|j| (j, 1.0)));
            }
            learner.observe(&rows, &rows.columns());
        }
        learner.choose();
        assert_eq!(learner.parents()[1], Some(0));
        assert_eq!(learner.parents().iter().flatten().count(), 1);
        // Counted from its first firing on.
        assert!((learner.joint_rate(1, 0) / learner.rate(1) - 1.0).abs() <= 1e-6);
    }

    #[test]
    fn a_tree_whose_latents_got_other_numbers_is_the_tree_of_those_numbers() {
        let order = [3, 0, 4, 2, 1]; // and not the other way round
        let renumbered = |rows: &SparseRows| {
            let mut other = SparseRows::new(5);
            for t in 0..rows.n_rows() {
                let is_on = |j: &u32| rows.row(t).0.contains(&(order[*j as usize] as u32));
                other.push_row((0..5u32).filter(is_on).map(|j| (j, 1.0)));
            }
            other
        };
        let (mut learner, mut other) =
            (TreeLearner::new(&Tree::default(), 0, 5), TreeLearner::new(&Tree::default(), 0, 5));
        for step in 0..50 {
            let rows = if step < 25 { planted(500, step) } else { renumbered(&planted(500, step)) };
            learner.observe(&rows, &rows.columns());
            let rows = renumbered(&planted(500, step));
            other.observe(&rows, &rows.columns());
            if step == 24 {
                learner.choose();
                other.choose();
                assert_eq!(learner.parents(), [None, Some(0), Some(0), None, None]);
                learner.edges[1].as_mut().unwrap().runner_up = Some((4, 0.01));
                other.edges[4].as_mut().unwrap().runner_up = Some((2, 0.01));
                // At once: what was chosen stays chosen.
                learner.renumber(&order);
                assert_eq!(learner.edges, other.edges);
            }
        }
        learner.choose();
        other.choose();
        assert_eq!(learner.edges, other.edges);
        assert_eq!(learner.parents(), [None, None, None, Some(1), Some(1)]);
        for (child, parent) in (0..5).flat_map(|child| (0..5).map(move |parent| (child, parent))) {
            assert_eq!(learner.joint_rate(child, parent), other.joint_rate(child, parent), "{child} {parent}");
            assert_eq!(learner.rate(child), other.rate(child), "{child}");
        }
    }

    #[test]
    fn coarse_latents_have_no_parents_where_parents_are_coarse() {
        // Latents 0 to 2 are coarse; 1 and 2 are nested in 0 like the fine ones are.
        let config = Tree { parents: ParentSet::Coarse, ..Tree::default() };
        let mut learner = TreeLearner::new(&config, 2, 5);
        for step in 0..50 {
            let rows = planted(500, step);
            learner.observe(&rows, &rows.columns());
        }
        learner.choose();
        assert_eq!(learner.parents(), [None, None, Some(0), None, None]);
    }

    #[test]
    fn averages_are_those_of_the_definition() {
        let config = Tree { decay: 0.9, firings_per_step: 40, ..Tree::default() };
        let mut learner = TreeLearner::new(&config, 0, 5);
        let (mut n11, mut n1, mut n) = (0.0, 0.0, 0.0);
        // Enough steps that the weights are scaled back at least once: 0.9^-300 > 1e12.
        for step in 0..300 {
            let rows = planted(40, step);
            learner.observe(&rows, &rows.columns());
            let both = (0..40).filter(|&t| rows.row(t).0.starts_with(&[0, 1])).count() as f64;
            n11 = 0.9 * n11 + both;
            n1 = 0.9 * n1 + rows.firings()[1] as f64;
            n = 0.9 * n + 40.0;
        }
        assert!((learner.joint_rate(1, 0) - n11 / n).abs() <= 1e-5);
        assert!((learner.rate(1) - n1 / n).abs() <= 1e-5);
    }

    #[test]
    fn mutual_information_of_known_tables() {
        // Independent: none. A copy: the entropy. Science.md §6: q = .001 nested in p = .01.
        assert!(mutual_information_bits(0.06, 0.2, 0.3).abs() <= 1e-12);
        let entropy = -(0.25f64 * 0.25f64.log2() + 0.75 * 0.75f64.log2());
        assert!((mutual_information_bits(0.25, 0.25, 0.25) - entropy).abs() <= 1e-12);
        let h = -(0.001f64 * 0.001f64.log2() + 0.999 * 0.999f64.log2());
        assert!((mutual_information_bits(0.001, 0.01, 0.001) / h - 0.589).abs() <= 5e-4);
    }
}
