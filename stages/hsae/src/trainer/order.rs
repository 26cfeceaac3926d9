//! Latents are put in the order of how often they fire. Prefixes are of the first latents, and which are first is chance where
//! training began without prefixes; from here on it is the general ones.

use artifact::config::ParentSet;

use super::Trainer;
use crate::schedule;
use crate::tree::TreeLearner;

/// Firings are counted over so many steps before.
const N_COUNTED: u64 = 64;

impl Trainer {
    /// At the end of a step in which latents were active so often, [d_sae]: what a gate would take away counts, as it does for
    /// the tree.
    pub(super) fn sort_if_due(&mut self, firings: &[u64]) {
        let Some(sorted_before) = schedule::sorted_before(&self.config, self.n_steps) else { return };
        let next = self.state.step + 1;
        let is_counted = next + N_COUNTED > sorted_before && next <= sorted_before;
        // While the fine level has less than its budget, the coarse one fires more than it will.
        if is_counted && !schedule::is_in_curriculum(&self.config, self.state.step, self.n_steps) {
            self.state.recent_firings.iter_mut().zip(firings).for_each(|(sum, n)| *sum += n);
        }
        if next == sorted_before {
            self.sort();
        }
    }

    /// The most frequent first, and among equals those that were. The tree goes along, but where parents are coarse latents:
    /// others are coarse now, so it begins again.
    pub(super) fn sort(&mut self) {
        let state = &mut self.state;
        let mut order: Vec<usize> = (0..state.weights.d_sae).collect();
        order.sort_by_key(|&j| std::cmp::Reverse(state.recent_firings[j]));
        state.recent_firings.fill(0);
        for of in [&mut state.weights, &mut state.adam.first, &mut state.adam.second] {
            in_order(&mut of.w_enc, &order);
            in_order(&mut of.b_enc, &order);
            in_order(&mut of.w_dec, &order);
            of.own.iter_mut().for_each(|own| in_order(own, &order));
        }
        in_order(&mut state.tokens_since_fired, &order);
        if let Some(tree) = &mut state.tree {
            match tree.config.parents {
                ParentSet::Any => tree.renumber(&order),
                ParentSet::Coarse => *tree = TreeLearner::new(&tree.config, self.config.n_coarse, tree.d_sae),
            }
        }
        self.repack();
    }
}

/// Rows of a matrix with as many as there are in `order`, of which the j-th is to be the one that was `order[j]`.
pub(crate) fn in_order<T: Copy>(rows: &mut Vec<T>, order: &[usize]) {
    let width = rows.len() / order.len();
    *rows = order.iter().flat_map(|&j| &rows[j * width..(j + 1) * width]).copied().collect();
}
