//! The soft tree: a parent for each latent among latents that fire more often, chosen by mutual information of firing
//! over moving averages (science.md §2 and §3). Counted, not learned by gradient: counting found more of the true edges.

use artifact::config::{ParentSet, Tree};
use rayon::prelude::*;

use crate::sparse::{Columns, SparseRows};

/// Weights of past steps grow by 1/decay a step instead of all sums shrinking; beyond this they are scaled back.
const LARGEST_WEIGHT: f64 = 1e12;

/// Moving averages of firing and co-firing, and the tree they say.
#[derive(Clone, Debug, PartialEq)]
pub struct TreeLearner {
    pub config: Tree,
    pub d_sae: usize,
    /// Latents that may be parents are those below this: d_sae, or n_coarse.
    pub n_parents: usize,
    /// Weighted co-firings of child j and possible parent i, [d_sae, n_parents].
    pub n11: Vec<f32>,
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
    /// The second-best parent, and its mutual information.
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
            n11: vec![0.0; d_sae * n_parents],
            n1: vec![0.0; d_sae],
            n: 0.0,
            weight: 1.0,
            edges: vec![None; d_sae],
        }
    }

    pub fn parents(&self) -> Vec<Option<u32>> {
        self.edges.iter().map(|edge| edge.map(|edge| edge.parent)).collect()
    }

    /// Adds a step's firing, taken before the gate acts, so that the gate does not confirm itself.
    pub fn observe(&mut self, firing: &SparseRows, columns: &Columns) {
        const BLOCK: usize = 16;
        let (weight, n_parents) = (self.weight as f32, self.n_parents);
        let counts = self.n11.par_chunks_mut(BLOCK * n_parents).zip(self.n1.par_chunks_mut(BLOCK));
        counts.enumerate().for_each(|(block, (n11, n1))| {
            for (i, (n11, n1)) in n11.chunks_exact_mut(n_parents).zip(n1).enumerate() {
                for at in columns.range(block * BLOCK + i) {
                    *n1 += weight;
                    for &parent in firing.row(columns.row[at] as usize).0 {
                        if let Some(count) = n11.get_mut(parent as usize) {
                            *count += weight;
                        }
                    }
                }
            }
        });
        self.n += self.weight * firing.n_rows() as f64;
        self.weight /= self.config.decay;
        if self.weight > LARGEST_WEIGHT {
            let shrink = (1.0 / self.weight) as f32;
            self.n11.par_iter_mut().for_each(|count| *count *= shrink);
            self.n1.iter_mut().for_each(|count| *count *= shrink);
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
        self.edges = self
            .n11
            .par_chunks_exact(self.n_parents)
            .enumerate()
            .map(|(j, n11)| {
                let q = f64::from(n1[j]) / n;
                let mut best: Option<ParentEdge> = None;
                for (i, &n11) in n11.iter().enumerate() {
                    let n11 = f64::from(n11);
                    if i == j || n11 <= min_n11 || n1[i] <= n1[j] {
                        continue;
                    }
                    let p = f64::from(n1[i]) / n;
                    if (n11 / n / q - p) / (1.0 - p) <= min_excess {
                        continue;
                    }
                    let mi_bits = mutual_information_bits(n11 / n, p, q);
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

    pub fn joint_rate(&self, child: u32, parent: u32) -> f64 {
        f64::from(self.n11[child as usize * self.n_parents + parent as usize]) / self.n
    }
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
    fn averages_are_those_of_the_definition() {
        let config = Tree { decay: 0.9, ..Tree::default() };
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
