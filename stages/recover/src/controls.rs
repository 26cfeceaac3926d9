//! Trees that a good tree must beat: the same children with other parents.

use artifact::random;
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::cosine::cosines;
use crate::firing::Firing;
use crate::tree::Tree;

/// A rate-matched parent is one of this many latents whose rates are nearest to the parent's.
const N_NEAREST: usize = 5;

/// Children whose cosines are made at once, which bounds the memory to this many rows of the dictionary's width.
const N_CHILDREN_AT_ONCE: usize = 512;

/// A random parent of about the same firing rate: one of the [`N_NEAREST`] latents whose counts on the choosing half
/// are nearest to the parent's, itself and the child left out.
pub(crate) fn rate_matched(base: &Tree, choosing: &Firing, seed: u64) -> Tree {
    let mut by_count: Vec<u32> = (0..choosing.n_latents() as u32).collect();
    by_count.sort_by_key(|&latent| (choosing.n_firings(latent as usize), latent));
    let mut place = vec![0; by_count.len()];
    by_count.iter().enumerate().for_each(|(i, &latent)| place[latent as usize] = i);
    let mut rng = random::stream(seed, "recover/rate-matched", 0, 0);
    let mut edges = Vec::new();
    for (child, parent) in base.edges() {
        let nearest = nearest(&by_count, place[parent as usize], child, |latent| choosing.n_firings(latent as usize));
        if !nearest.is_empty() {
            edges.push((child, nearest[rng.random_range(0..nearest.len() as u32) as usize]));
        }
    }
    Tree::from_edges("rate-matched", &edges, choosing)
}

/// The more frequent latent whose decoder row has the greatest cosine with the child's; of equals, the first.
///
/// Shapes: w_dec [d_sae, d_model].
pub(crate) fn cosine(base: &Tree, choosing: &Firing, w_dec: &[f32], d_model: usize) -> Tree {
    let mut edges = Vec::new();
    let children: Vec<u32> = base.edges().iter().map(|&(child, _)| child).collect();
    for children in children.chunks(N_CHILDREN_AT_ONCE) {
        let row = |child: u32| &w_dec[child as usize * d_model..(child as usize + 1) * d_model];
        let rows: Vec<f32> = children.iter().flat_map(|&child| row(child)).copied().collect();
        let cosines = cosines(&rows, w_dec, d_model); // [children, d_sae]
        for (&child, cosines) in children.iter().zip(cosines.chunks(choosing.n_latents())) {
            let n_child = choosing.n_firings(child as usize);
            let more_frequent = cosines.iter().enumerate().filter(|(latent, _)| choosing.n_firings(*latent) > n_child);
            let best = more_frequent.reduce(|best, next| if next.1 > best.1 { next } else { best });
            edges.extend(best.map(|(parent, _)| (child, parent as u32)));
        }
    }
    Tree::from_edges("cosine", &edges, choosing)
}

/// The same parents, dealt out to the children anew. A child gets neither itself nor its former parent, unless every
/// exchange would do so; then it keeps what it was dealt, or nothing if that is itself.
pub(crate) fn permuted(base: &Tree, choosing: &Firing, seed: u64) -> Tree {
    let edges = base.edges();
    let mut parents: Vec<u32> = edges.iter().map(|&(_, parent)| parent).collect();
    parents.shuffle(&mut random::stream(seed, "recover/permuted", 0, 0));
    let is_new = |i: usize, parent: u32| parent != edges[i].0 && parent != edges[i].1;
    for i in 0..parents.len() {
        if !is_new(i, parents[i]) {
            let exchange = (0..parents.len()).find(|&j| is_new(i, parents[j]) && is_new(j, parents[i]));
            exchange.into_iter().for_each(|j| parents.swap(i, j));
        }
    }
    let dealt = edges.iter().zip(parents).map(|(&(child, _), parent)| (child, parent));
    let edges: Vec<(u32, u32)> = dealt.filter(|(child, parent)| child != parent).collect();
    Tree::from_edges("permuted", &edges, choosing)
}

/// The latents next to `place` in the order of counts, nearest count first, without the one at `place` and `child`.
fn nearest(by_count: &[u32], place: usize, child: u32, count: impl Fn(u32) -> u64) -> Vec<u32> {
    let wanted = count(by_count[place]);
    // N_NEAREST on either side, and one more each in case the child is among them.
    let window = place.saturating_sub(N_NEAREST + 1)..(place + N_NEAREST + 2).min(by_count.len());
    let others = window.filter(|&i| i != place && by_count[i] != child);
    let mut latents: Vec<u32> = others.map(|i| by_count[i]).collect();
    latents.sort_by_key(|&latent| (count(latent).abs_diff(wanted), latent));
    latents.truncate(N_NEAREST);
    latents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted;

    fn forest() -> (Firing, Tree) {
        let (gates, parents) = planted::forest(3000, 6, 3, 0);
        let firing = planted::firing(&gates);
        let edges: Vec<(u32, u32)> =
            parents.iter().enumerate().filter_map(|(child, parent)| Some((child as u32, (*parent)?))).collect();
        let tree = Tree::from_edges("own", &edges, &firing);
        (firing, tree)
    }

    #[test]
    fn rate_matched_parents_are_others_of_about_the_same_rate() {
        let (firing, tree) = forest();
        let control = rate_matched(&tree, &firing, 0);
        assert_eq!(control.edges().len(), 18);
        for ((child, parent), (_, before)) in control.edges().into_iter().zip(tree.edges()) {
            assert!(parent != before && parent != child);
            // The six parents are the six most frequent latents, and each has five others.
            assert!(parent < 6, "{parent}");
        }
    }

    #[test]
    fn permuted_parents_are_the_same_ones_for_other_children() {
        let (firing, tree) = forest();
        let control = permuted(&tree, &firing, 0);
        let sorted = |tree: &Tree| {
            let mut parents: Vec<u32> = tree.edges().iter().map(|edge| edge.1).collect();
            parents.sort_unstable();
            parents
        };
        assert_eq!(sorted(&control), sorted(&tree));
        assert!(control.edges().iter().zip(tree.edges()).all(|(new, old)| new.0 == old.0 && new.1 != old.1));
        let single = Tree::from_edges("own", &[(7, 0)], &firing);
        assert_eq!(permuted(&single, &firing, 0).edges(), [(7, 0)]);
    }

    #[test]
    fn the_cosine_parent_is_the_nearest_more_frequent_row() {
        let gates = (0..100).map(|row| vec![on(row < 50), on(row < 40), on(row < 30), on(row < 60)]).collect();
        let firing = planted::firing(&gates);
        let tree = Tree::from_edges("own", &[(1, 3), (2, 3)], &firing);
        // Latent 2 lies nearest to 1; latent 1 nearest to 2, which fires less, and then to 0.
        let w_dec = [1.0, 1.0, 0.0, 2.0, 0.5, 3.0, -1.0, 0.0];
        assert_eq!(cosine(&tree, &firing, &w_dec, 2).edges(), [(1, 0), (2, 1)]);
    }

    fn on(on: bool) -> f32 {
        f32::from(u8::from(on))
    }
}
