//! Trees of latents: the one that an SAE was trained with, and the one found afterwards by the same rule.

use rayon::prelude::*;

use crate::firing::Firing;
use crate::information::{PairCounts, excess, mi_bits};

/// At most one parent per latent.
pub(crate) struct Tree {
    /// `own`, `posthoc`, `rate-matched`, `cosine` or `permuted`.
    pub(crate) name: &'static str,
    /// [d_sae]
    pub(crate) parent: Vec<Option<Choice>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) parent: u32,
    /// Mutual information of firing on the half that chooses, bits.
    pub(crate) mi_bits: f64,
    /// The second-best parent that the rule allows, and by how many bits it loses.
    pub(crate) runner_up: Option<(u32, f64)>,
}

/// What makes a parent (science.md §3, "tree by counting").
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    /// An edge needs (P(parent|child) − P(parent)) / (1 − P(parent)) above this, which is never negative: dependence is
    /// positive.
    pub(crate) min_excess: f64,
    /// And a child that fires this often.
    pub(crate) min_firings: u64,
}

impl Tree {
    /// Edges as (child, parent), children ascending.
    pub(crate) fn edges(&self) -> Vec<(u32, u32)> {
        let edges = self.parent.iter().enumerate();
        edges.filter_map(|(child, choice)| Some((child as u32, (*choice)?.parent))).collect()
    }

    pub(crate) fn from_edges(name: &'static str, edges: &[(u32, u32)], choosing: &Firing) -> Self {
        let mut parent = vec![None; choosing.n_latents()];
        for &(child, of_child) in edges {
            let mi_bits = mi_bits(choosing.pair(of_child as usize, child as usize));
            parent[child as usize] = Some(Choice { parent: of_child, mi_bits, runner_up: None });
        }
        Self { name, parent }
    }
}

/// Each latent's parent is the one of greatest mutual information among the latents that fire more often and that the
/// rule allows; of equals, the first. No cycles, since a parent fires more often than its child.
pub(crate) fn posthoc(choosing: &Firing, rule: Rule) -> Tree {
    let scratch = || vec![0; choosing.n_latents()];
    let parents = (0..choosing.n_latents()).into_par_iter();
    let parent = parents.map_init(scratch, |scratch, child| parent_of(choosing, rule, child, scratch)).collect();
    Tree { name: "posthoc", parent }
}

fn parent_of(choosing: &Firing, rule: Rule, child: usize, scratch: &mut [u64]) -> Option<Choice> {
    let n_child = choosing.n_firings(child);
    if n_child < rule.min_firings.max(1) {
        return None;
    }
    let (mut best, mut second) = (None::<(u32, f64)>, None::<(u32, f64)>);
    for (parent, n11) in choosing.co_firings(child, scratch) {
        let n_parent = choosing.n_firings(parent as usize);
        let pair = PairCounts { n11, n_parent, n_child, n: choosing.n_rows() as u64 };
        if n_parent <= n_child || excess(pair).is_none_or(|excess| excess <= rule.min_excess) {
            continue;
        }
        let bits = mi_bits(pair);
        if best.is_none_or(|(_, most)| bits > most) {
            second = best;
            best = Some((parent, bits));
        } else if second.is_none_or(|(_, most)| bits > most) {
            second = Some((parent, bits));
        }
    }
    let (parent, mi_bits) = best?;
    Some(Choice { parent, mi_bits, runner_up: second.map(|(latent, bits)| (latent, mi_bits - bits)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted;

    const RULE: Rule = Rule { min_excess: 0.5, min_firings: 20 };

    fn parents(tree: &Tree) -> Vec<Option<u32>> {
        tree.parent.iter().map(|choice| choice.map(|choice| choice.parent)).collect()
    }

    #[test]
    fn a_planted_forest_is_found() {
        let (gates, expected) = planted::forest(6000, 8, 3, 0);
        assert_eq!(parents(&posthoc(&planted::firing(&gates), RULE)), expected);
    }

    #[test]
    fn independent_latents_have_no_parents() {
        let tree = posthoc(&planted::firing(&planted::random_gates(3000, 20, 1)), RULE);
        assert!(tree.edges().is_empty());
    }

    #[test]
    fn the_order_of_latents_and_rows_does_not_matter() {
        let (gates, expected) = planted::forest(6000, 8, 3, 2);
        let n = expected.len();
        // 7 and the number of latents have no common divisor, so this is a permutation.
        let to = |latent: usize| (7 * latent + 3) % n;
        let mut permuted = vec![vec![0.0; n]; gates.len()];
        for (i, row) in gates.iter().rev().enumerate() {
            row.iter().enumerate().for_each(|(latent, &value)| permuted[i][to(latent)] = value);
        }
        let found = posthoc(&planted::firing(&permuted), RULE);
        for (latent, parent) in expected.iter().enumerate() {
            assert_eq!(parents(&found)[to(latent)], parent.map(|parent| to(parent as usize) as u32));
        }
    }

    #[test]
    fn of_two_nesting_parents_the_closer_one_wins_and_the_other_is_runner_up() {
        // Latent 0 is on in 400 rows, 1 in 100 of those, 2 in 50 of those.
        let gates = (0..1000).map(|row| vec![gate(row < 400), gate(row < 100), gate(row < 50)]).collect();
        let tree = posthoc(&planted::firing(&gates), RULE);
        assert_eq!(parents(&tree), [None, Some(0), Some(1)]);
        let (runner_up, margin) = tree.parent[2].unwrap().runner_up.unwrap();
        assert!(runner_up == 0 && margin > 0.05, "{runner_up} {margin}");
    }

    #[test]
    fn rare_children_and_dense_parents_make_no_edge() {
        // Child 1 fires 19 times, always under latent 0.
        let rare = (0..1000).map(|row| vec![gate(row < 400), gate(row < 19)]).collect();
        assert!(posthoc(&planted::firing(&rare), RULE).edges().is_empty());
        // P(0 | 1) = .9, which is what a parent of rate .9 gives any child.
        let dense = (0..1000).map(|row| vec![gate(row % 10 != 0), gate(row % 7 == 0)]).collect();
        assert!(posthoc(&planted::firing(&dense), RULE).edges().is_empty());
    }

    fn gate(on: bool) -> f32 {
        f32::from(u8::from(on))
    }
}
