//! Two SAEs that differ in their seed alone: do they find the same latents, and the same tree over them?

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use artifact::config::Sae;
use artifact::tables::{MeasuredTreeNode, Stability};
use hsae::TrainedSae;
use serde_json::Value;

use crate::matching::Matching;
use crate::measure::share;
use crate::truth;

/// Trees that are compared; the others have parents dealt out at random, or by the decoder alone.
const TREES: [&str; 2] = ["own", "posthoc"];

/// Edges from each child to its parent.
type Parents = BTreeMap<u32, u32>;

/// Pairs of places in `saes`, given by configuration and seed, that are of one configuration and differ in their seed.
/// Imported SAEs, of whose seed nothing is known, are in none.
pub(crate) fn pairs(saes: &[(Sae, u64)]) -> Result<Vec<(usize, usize)>> {
    let configs = saes.iter().map(|(sae, _)| configuration(sae)).collect::<Result<Vec<_>>>()?;
    let is_pair =
        |&(a, b): &(usize, usize)| saes[a].0.import.is_none() && configs[a] == configs[b] && saes[a].1 != saes[b].1;
    Ok((0..saes.len()).flat_map(|a| (a + 1..saes.len()).map(move |b| (a, b))).filter(is_pair).collect())
}

/// Everything but `name`, `family` and `seed`.
fn configuration(sae: &Sae) -> Result<Value> {
    let mut config = serde_json::to_value(sae)?;
    let keys = config.as_object_mut().context("the configuration of an SAE is no map")?;
    for key in ["name", "family", "seed"] {
        keys.remove(key);
    }
    Ok(config)
}

/// Rows for every mode and tree that both have, the trees of each seen from the other.
///
/// Errors: a decoder row is not finite.
pub(crate) fn of_pair(
    saes: [&TrainedSae; 2],
    trees: [&[MeasuredTreeNode]; 2],
    match_cosine: f64,
) -> Result<Vec<Stability>> {
    let [a, b] = saes;
    let matching = Matching::new(&a.w_dec, &b.w_dec, a.d_model, match_cosine)?;
    let (of_a, of_b) = (by_tree(trees[0]), by_tree(trees[1]));
    let mut rows = Vec::new();
    for (key, in_a) in &of_a {
        let Some(in_b) = of_b.get(key) else { continue };
        rows.push(row([a, b], *key, &matching, &matching.feature, in_a, in_b));
        rows.push(row([b, a], *key, &matching, &matching.latent, in_b, in_a));
    }
    Ok(rows)
}

/// The trees of each mode: view, threshold and name to edges.
fn by_tree(nodes: &[MeasuredTreeNode]) -> BTreeMap<(&str, &str, &str), Parents> {
    let mut trees: BTreeMap<_, Parents> = BTreeMap::new();
    for node in nodes.iter().filter(|node| TREES.contains(&node.tree.as_str())) {
        let tree = trees.entry((node.view.as_str(), node.threshold.as_str(), node.tree.as_str())).or_default();
        tree.extend(node.parent.map(|parent| (node.latent, parent)));
    }
    trees
}

/// `partner`: the matched latent of the other SAE, where there is one, [n_latents].
fn row(
    [sae, other]: [&TrainedSae; 2],
    (view, threshold, tree): (&str, &str, &str),
    matching: &Matching,
    partner: &[Option<usize>],
    edges: &Parents,
    of_other: &Parents,
) -> Stability {
    let partner = |latent: u32| Some(partner[latent as usize]? as u32);
    let carried: Vec<(u32, u32)> =
        edges.iter().filter_map(|(&child, &parent)| Some((partner(child)?, partner(parent)?))).collect();
    let n_kept = carried.iter().filter(|(child, parent)| of_other.get(child) == Some(parent)).count();
    let mut n_children: BTreeMap<u32, usize> = BTreeMap::new();
    of_other.values().for_each(|&parent| *n_children.entry(parent).or_default() += 1);
    // Dealt out at random, a child of the other tree gets this parent as often as the parent has children.
    let by_chance = |(child, parent): &(u32, u32)| {
        let n = n_children.get(parent).filter(|_| of_other.contains_key(child)).copied();
        share(n.unwrap_or(0), of_other.len()).unwrap_or(0.0)
    };
    let expected: f64 = carried.iter().map(by_chance).sum();
    Stability {
        sae: sae.config.name.clone(),
        seed: sae.seed,
        other: other.config.name.clone(),
        other_seed: other.seed,
        view: view.into(),
        threshold: threshold.into(),
        tree: tree.into(),
        // Both have at least one latent.
        mcc: truth::mcc(matching).unwrap_or(0.0),
        n_latents: matching.n_latents as u64,
        n_matched: matching.feature.iter().flatten().count() as u64,
        n_edges: edges.len() as u64,
        n_edges_matched: carried.len() as u64,
        n_edges_kept: n_kept as u64,
        edges_kept: share(n_kept, carried.len()),
        edges_kept_by_chance: (!carried.is_empty()).then(|| expected / carried.len() as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::perfect_sae;
    use crate::truth::tests::forest_truth;

    fn nodes(parent: &[Option<u32>], tree: &str) -> Vec<MeasuredTreeNode> {
        let node = |(latent, &parent): (usize, &Option<u32>)| MeasuredTreeNode {
            sae: "a".into(),
            seed: 0,
            view: "flat".into(),
            threshold: "native".into(),
            tree: tree.into(),
            latent: latent as u32,
            level: "fine".into(),
            parent,
            weight: None,
            runner_up: None,
            margin: None,
        };
        parent.iter().enumerate().map(node).collect()
    }

    /// The same SAE with its latents in another order: latent j becomes `to(j)`.
    fn permuted(sae: &TrainedSae, to: impl Fn(usize) -> usize) -> (TrainedSae, Vec<Option<u32>>) {
        let mut other = TrainedSae { seed: sae.seed + 1, ..sae.clone() };
        let mut parent = vec![None; sae.d_sae];
        for latent in 0..sae.d_sae {
            let row = &sae.w_dec[latent * sae.d_model..(latent + 1) * sae.d_model];
            other.w_dec[to(latent) * sae.d_model..(to(latent) + 1) * sae.d_model].copy_from_slice(row);
            parent[to(latent)] = sae.parent[latent].map(|parent| to(parent as usize) as u32);
        }
        (other, parent)
    }

    #[test]
    fn the_same_tree_in_another_order_is_kept() {
        let sae = perfect_sae(&forest_truth(500, 0).0);
        let n = sae.d_sae;
        let (other, parent) = permuted(&sae, |latent| (7 * latent + 2) % n);
        let mut trees = nodes(&sae.parent, "own");
        trees.extend(nodes(&sae.parent, "permuted"));
        let rows = of_pair([&sae, &other], [&trees, &nodes(&parent, "own")], 0.5).unwrap();
        assert_eq!(rows.len(), 2);
        for row in &rows {
            assert!((row.mcc - 1.0).abs() <= 1e-6);
            assert_eq!((row.n_matched, row.n_edges, row.n_edges_matched, row.n_edges_kept), (30, 18, 18, 18));
            assert_eq!(row.edges_kept, Some(1.0));
            // Six parents of three children each.
            assert!((row.edges_kept_by_chance.unwrap() - 3.0 / 18.0).abs() <= 1e-12);
        }
        assert_eq!((rows[0].seed, rows[1].seed, rows[1].other_seed), (3, 4, 3));
    }

    #[test]
    fn other_parents_and_unmatched_ends_are_counted_apart() {
        let sae = perfect_sae(&forest_truth(500, 0).0);
        let (mut other, mut parent) = permuted(&sae, |latent| latent);
        // Children 6 and 7 change their parent from 0 to 1, and 8 is a root; of parent 5's latent nothing is left.
        (parent[6], parent[7], parent[8]) = (Some(1), Some(1), None);
        other.w_dec[5 * other.d_model..6 * other.d_model].fill(0.0);
        let rows = of_pair([&sae, &other], [&nodes(&sae.parent, "own"), &nodes(&parent, "own")], 0.5).unwrap();
        let [there, back] = rows.as_slice() else { panic!("{} rows", rows.len()) };
        assert_eq!((there.n_matched, there.n_edges, there.n_edges_matched, there.n_edges_kept), (29, 18, 15, 12));
        assert_eq!((back.n_edges, back.n_edges_matched, back.n_edges_kept), (17, 14, 12));
        assert_eq!(there.edges_kept, Some(12.0 / 15.0));
    }

    #[test]
    fn pairs_differ_in_their_seed_alone() {
        let sae = |name: &str, k: usize| Sae { name: name.into(), k, ..Sae::default() };
        let seeded = Sae { seed: Some(2), ..sae("c", 32) };
        let imported = |name: &str| Sae { import: Some("there".into()), ..sae(name, 32) };
        let saes = [
            (sae("a", 32), 0),
            (sae("b", 16), 1),
            (seeded, 2),
            (sae("same-seed", 32), 0),
            (imported("d"), 3),
            (imported("e"), 4),
        ];
        assert_eq!(pairs(&saes).unwrap(), [(0, 2), (2, 3)]);
    }
}
