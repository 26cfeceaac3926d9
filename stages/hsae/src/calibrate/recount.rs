//! The tree once more, after training. While an SAE trains, its latents move, and what is counted is the firing of a batch
//! without gate and prior, which is the noisiest there is. Afterwards the same rule is applied to what the finished SAE
//! does at its best: fixed weights, the prior's thresholds, the gate of the tree so far.

use artifact::config::{Tree, TreeRule};

use crate::calibrate::set_rules;
use crate::trained::{Mode, Threshold, TrainedSae, TreeGate, View};
use crate::tree::TreeLearner;

/// Co-firings that an edge needs: as many as a tree that is found on held-out rows.
const MIN_COUNT: f64 = 20.0;

/// Counts of a finished SAE's firing, and in the end another tree.
pub struct Recount {
    learner: TreeLearner,
}

impl Recount {
    /// `None` where there is no soft tree, or it is to stay as it was trained; a control stays, whatever else is true.
    pub fn new(sae: &TrainedSae) -> Option<Self> {
        let tree = sae.config.tree().filter(|tree| tree.recount_rows > 0 && tree.rule == TreeRule::Mi)?;
        if !matches!(sae.gate, TreeGate::Soft(_)) {
            return None;
        }
        // Every firing counts, and every row alike.
        let tree = Tree { decay: 1.0, firings_per_step: usize::MAX, min_count: MIN_COUNT, ..tree };
        Some(Self { learner: TreeLearner::new(&tree, sae.n_coarse, sae.d_sae) })
    }

    /// Shapes: rows [n, d_model], in the SAE's own units.
    pub fn observe(&mut self, sae: &TrainedSae, rows: &[f32]) {
        let firing = sae.encode(rows, Mode { view: View::Gated, threshold: Threshold::Prior });
        self.learner.observe(&firing, &firing.columns());
    }

    /// Gives the SAE the tree that the counts say, and the thresholds that go with it. Shapes: rows [n, d_model], those
    /// that its thresholds were set on before. Returns what the choice rests on.
    pub fn finish(mut self, sae: &mut TrainedSae, rows: &[f32]) -> TreeLearner {
        self.learner.choose();
        sae.parent = self.learner.parents();
        set_rules(sae, rows);
        self.learner
    }
}

#[cfg(test)]
mod tests {
    use artifact::config::{Arch, Sae};
    use rand::RngExt;

    use super::*;
    use crate::calibrate::assembled;
    use crate::trained::{Rule, Rules};
    use crate::weights::Weights;

    const D: usize = 4;

    /// One feature a coordinate: 0 is the parent of 1 and 2, 3 is independent and more frequent than the parent.
    fn rows(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = artifact::random::stream(seed, "test", 0, 0);
        let mut rows = Vec::with_capacity(n * D);
        for _ in 0..n {
            let parent = rng.random_bool(0.4);
            let child = parent && rng.random_bool(0.6);
            let first = rng.random_bool(0.5);
            let on = [parent, child && first, child && !first, rng.random_bool(0.41)];
            rows.extend(on.map(|on| if on { 2.0 + rng.random::<f32>() } else { 0.05 * rng.random::<f32>() }));
        }
        rows
    }

    /// Latents are coordinates, the tree is wrong: the first child hangs under the independent latent, the other nowhere.
    fn with_wrong_tree(recount_rows: u64, sample: &[f32]) -> TrainedSae {
        let tree = Some(Tree { recount_rows, ..Tree::default() });
        let config = Sae { arch: Arch::Hiersae, n_coarse: 1, n_fine: D - 1, k: 1, tree, ..Sae::default() };
        let identity: Vec<f32> = (0..D * D).map(|i| if i % (D + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let weights = Weights { w_enc: identity.clone(), w_dec: identity, ..Weights::init(0, D, D, &[0.0; D]) };
        let mut sae = assembled(config, 0, weights);
        sae.gate = TreeGate::Soft(0.5);
        sae.parent = vec![None, Some(3), None, None];
        set_rules(&mut sae, sample);
        sae
    }

    #[test]
    fn a_wrong_tree_is_put_right_and_the_thresholds_with_it() {
        let sample = rows(4000, 0);
        let mut sae = with_wrong_tree(8000, &sample);
        let before: Rules = sae.rules.clone();
        let mut recount = Recount::new(&sae).unwrap();
        for seed in 1..9 {
            recount.observe(&sae, &rows(1000, seed));
        }
        let learner = recount.finish(&mut sae, &sample);
        assert_eq!(sae.parent, [None, Some(0), Some(0), None]);
        assert_eq!(sae.parent, learner.parents());
        assert!((learner.rate(0) - 0.4).abs() <= 0.02, "{}", learner.rate(0));
        // What does not depend on the tree stays; thresholds under the gate are those of the new one.
        assert_eq!(sae.rules.flat_prior, before.flat_prior);
        let published = sae.rules.clone();
        set_rules(&mut sae, &sample);
        assert_eq!(sae.rules, published);
        let Rule::Above(thresholds) = &published.gated_prior else { panic!("{:?}", published.gated_prior) };
        assert!(thresholds.iter().all(|threshold| threshold.is_finite()));
    }

    #[test]
    fn too_few_rows_make_no_edge_and_none_at_all_no_recount() {
        let sample = rows(1000, 0);
        let mut sae = with_wrong_tree(50, &sample);
        let mut recount = Recount::new(&sae).unwrap();
        // Fifteen firings of a parent at the most.
        recount.observe(&sae, &rows(50, 1));
        recount.finish(&mut sae, &sample);
        assert_eq!(sae.parent, [None; D]);
        assert!(Recount::new(&with_wrong_tree(0, &sample)).is_none());
    }
}
