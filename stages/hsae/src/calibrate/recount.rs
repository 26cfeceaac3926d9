//! The tree once more, after training. While an SAE trains, its latents move, and what is counted is the firing of a batch
//! without gate and prior, which is the noisiest there is. Afterwards the same rule is applied to what the finished SAE
//! does at its best: fixed weights, the prior's thresholds, the gate of the tree so far.

use artifact::config::Tree;

use crate::calibrate::set_rules;
use crate::sparse::SparseRows;
use crate::trained::{Mode, Threshold, TrainedSae, TreeGate, View};
use crate::tree::{ParentEdge, TreeLearner};

/// An edge needs more co-firings than this.
const MIN_COUNT: f64 = 20.0;

/// What a finished SAE fires on, and in the end another tree.
pub struct Recount {
    /// How the tree is chosen.
    config: Tree,
    /// The tree so far.
    edges: Vec<Option<ParentEdge>>,
    /// All rows seen: counted at the end and at once, counts are those of all pairs that may become edges, whatever the
    /// batches were.
    firing: SparseRows,
    /// What the SAE's thresholds are to be like. While it is counted they have the measured κ: the tree is a matter of
    /// training, and does not change with what is asked of the thresholds.
    prior_kappa: Option<f64>,
    refine_sweeps: usize,
}

impl Recount {
    /// Finds the thresholds that firing is counted with. `None` where there is no soft tree, or it is to stay as it was
    /// trained. Shapes: rows [n, d_model].
    pub(super) fn start(sae: &mut TrainedSae, trained: Option<&TreeLearner>, rows: &[f32]) -> Option<Self> {
        let trained = trained.filter(|tree| tree.config.recount_rows > 0)?;
        if !matches!(sae.gate, TreeGate::Soft(_)) {
            return None;
        }
        let prior_kappa = sae.config.prior_kappa.take();
        let refine_sweeps = std::mem::take(&mut sae.config.refine_sweeps);
        set_rules(sae, rows);
        let (config, edges) = (trained.config.clone(), trained.edges.clone());
        Some(Self { config, edges, firing: SparseRows::new(sae.d_sae), prior_kappa, refine_sweeps })
    }

    /// Shapes: rows [n, d_model], in the SAE's own units.
    pub fn observe(&mut self, sae: &TrainedSae, rows: &[f32]) {
        let firing = sae.encode(rows, Mode { view: View::Gated, threshold: Threshold::Prior });
        self.firing.append(&firing);
    }

    /// Gives the SAE the tree that the counts say, and the thresholds that it is to have. Shapes: rows [n, d_model], those
    /// that it started with. Returns what the choice rests on.
    pub fn finish(self, sae: &mut TrainedSae, rows: &[f32]) -> TreeLearner {
        // Every firing counts, and every row alike.
        let tree = Tree { decay: 1.0, firings_per_step: usize::MAX, min_count: MIN_COUNT, ..self.config };
        let mut learner = TreeLearner::new(&tree, sae.n_coarse, sae.d_sae);
        learner.observe(&self.firing, &self.firing.columns());
        // A control is dealt what it had before, where that still fits.
        learner.edges = self.edges;
        learner.choose_by_rule(sae.seed, u64::MAX);
        sae.parent = learner.parents();
        (sae.config.prior_kappa, sae.config.refine_sweeps) = (self.prior_kappa, self.refine_sweeps);
        set_rules(sae, rows);
        learner
    }
}

#[cfg(test)]
mod tests {
    use artifact::config::{Arch, Sae, TreeRule};
    use rand::RngExt;

    use super::*;
    use crate::calibrate::assembled;
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
    fn with_wrong_tree(recount_rows: u64) -> TrainedSae {
        let prior_kappa = Some(0.2);
        let tree = Some(Tree { recount_rows, ..Tree::default() });
        let config = Sae { arch: Arch::Hiersae, n_coarse: 1, n_fine: D - 1, k: 1, tree, prior_kappa, ..Sae::default() };
        let identity: Vec<f32> = (0..D * D).map(|i| if i % (D + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let weights = Weights { w_enc: identity.clone(), w_dec: identity, ..Weights::init(0, D, D, &[0.0; D]) };
        let mut sae = assembled(config, 0, weights);
        sae.gate = TreeGate::Soft(0.5);
        sae.parent = vec![None, Some(3), None, None];
        sae
    }

    /// The tree in training knew nothing.
    fn started(sae: &mut TrainedSae, sample: &[f32]) -> Option<Recount> {
        let trained = TreeLearner::new(&sae.config.tree().unwrap(), sae.n_coarse, sae.d_sae);
        Recount::start(sae, Some(&trained), sample)
    }

    /// What it becomes when these batches have been counted.
    fn counted(sae: &mut TrainedSae, sample: &[f32], batches: impl IntoIterator<Item = Vec<f32>>) -> TreeLearner {
        let mut recount = started(sae, sample).unwrap();
        batches.into_iter().for_each(|rows| recount.observe(sae, &rows));
        recount.finish(sae, sample)
    }

    #[test]
    fn a_wrong_tree_is_put_right_and_the_thresholds_with_it() {
        let sample = rows(4000, 0);
        let mut sae = with_wrong_tree(8000);
        let learner = counted(&mut sae, &sample, (1..9).map(|seed| rows(1000, seed)));
        assert_eq!(sae.parent, [None, Some(0), Some(0), None]);
        assert_eq!(sae.parent, learner.parents());
        assert!((learner.rate(0) - 0.4).abs() <= 0.02, "{}", learner.rate(0));
        // The SAE is what it would have become had it had that tree from the start.
        let mut expected = with_wrong_tree(8000);
        expected.parent.clone_from(&sae.parent);
        set_rules(&mut expected, &sample);
        assert_eq!(sae, expected);
    }

    #[test]
    fn the_tree_does_not_depend_on_what_is_asked_of_the_thresholds() {
        let sample = rows(4000, 0);
        let learners = [(Some(0.9), 0), (None, 3)].map(|(prior_kappa, refine_sweeps)| {
            let mut sae = with_wrong_tree(2000);
            (sae.config.prior_kappa, sae.config.refine_sweeps) = (prior_kappa, refine_sweeps);
            counted(&mut sae, &sample, [rows(2000, 1)])
        });
        assert_eq!(learners[0], learners[1]);
    }

    #[test]
    fn a_control_stays_one() {
        let sample = rows(4000, 0);
        let mut sae = with_wrong_tree(2000);
        if let Some(tree) = &mut sae.config.tree {
            tree.rule = TreeRule::Random;
        }
        counted(&mut sae, &sample, [rows(2000, 1)]);
        // The same children; of the others only the independent latent fires more often than both.
        assert_eq!(sae.parent, [None, Some(3), Some(3), None]);
    }

    #[test]
    fn how_rows_are_cut_into_batches_does_not_matter() {
        let sample = rows(4000, 0);
        let batch = rows(1200, 1);
        let learners = [1200, 40].map(|n| {
            let mut sae = with_wrong_tree(1200);
            counted(&mut sae, &sample, batch.chunks(n * D).map(<[f32]>::to_vec))
        });
        assert_eq!(learners[0], learners[1]);
    }

    #[test]
    fn too_few_rows_make_no_edge_and_none_at_all_no_recount() {
        let sample = rows(1000, 0);
        let mut sae = with_wrong_tree(50);
        // Fewer firings than an edge needs.
        counted(&mut sae, &sample, [rows(50, 1)]);
        assert_eq!(sae.parent, [None; D]);
        let mut sae = with_wrong_tree(0);
        assert!(started(&mut sae, &sample).is_none());
        let mut sae = with_wrong_tree(50);
        assert!(Recount::start(&mut sae, None, &sample).is_none());
    }
}
