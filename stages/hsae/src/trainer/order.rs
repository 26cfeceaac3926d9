//! Latents are put in the order of how often they fire. Prefixes are of the first latents, and which are first is chance where
//! training began without prefixes; from here on it is the general ones.

use artifact::config::ParentSet;

use super::Trainer;
use crate::rows::in_order;
use crate::schedule;
use crate::tree::TreeLearner;

impl Trainer {
    /// At the end of a step in which latents were active so often, [d_sae]: what a gate would take away counts, as it does for
    /// the tree.
    pub(super) fn sort_if_due(&mut self, firings: &[u64]) {
        if schedule::counts_for_order(&self.config, self.state.step, self.n_steps) {
            self.state.recent_firings.iter_mut().zip(firings).for_each(|(sum, n)| *sum += n);
        }
        if schedule::sorted_before(&self.config, self.n_steps) == Some(self.state.step + 1) {
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
