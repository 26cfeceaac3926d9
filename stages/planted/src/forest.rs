//! Which feature is whose child.

use artifact::config::Recipe;
use artifact::random::stream;
use rand::seq::index;

/// Trees, level by level: roots first, then the children of each of them in turn, and so on; features outside the trees
/// last.
pub(crate) struct Forest {
    pub(crate) parent: Vec<Option<u32>>,
    /// Whether the children of a feature exclude each other.
    pub(crate) excludes: Vec<bool>,
    pub(crate) n_roots: usize,
    /// Features in the trees.
    pub(crate) n_in_trees: usize,
}

impl Forest {
    pub(crate) fn new(recipe: &Recipe, seed: u64) -> Self {
        let n_roots = if recipe.depth == 0 { 0 } else { recipe.n_roots };
        let mut parent = vec![None; n_roots];
        let mut level = 0..n_roots;
        for _ in 0..recipe.depth {
            let first = parent.len();
            parent.extend(level.flat_map(|above| std::iter::repeat_n(Some(above as u32), recipe.branching)));
            level = first..parent.len();
        }
        let n_in_trees = parent.len();
        let n_parents = level.start;
        parent.resize(recipe.n_features, None);
        let mut excludes = vec![false; recipe.n_features];
        if recipe.branching >= 2 && n_in_trees > 0 {
            let n_excluding = (n_parents as f64 * recipe.exclusive) as usize;
            let mut rng = stream(seed, "planted/exclusive", 0, 0);
            index::sample(&mut rng, n_parents, n_excluding).iter().for_each(|above| excludes[above] = true);
        }
        Self { parent, excludes, n_roots, n_in_trees }
    }

    pub(crate) fn is_parent(&self) -> Vec<bool> {
        let mut is_parent = vec![false; self.parent.len()];
        self.parent.iter().flatten().for_each(|&parent| is_parent[parent as usize] = true);
        is_parent
    }
}
