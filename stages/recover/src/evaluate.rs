//! One SAE in all its modes: everything this stage says of it.

use anyhow::{Result, ensure};
use artifact::config::{Arch, Recover};
use hsae::{Mode, Threshold, TrainedSae, View};

use crate::documents::Documents;
use crate::edges::{Ground, Measuring};
use crate::firing::Firing;
use crate::glosses::Glosses;
use crate::hedging::hedging;
use crate::heldout::Heldout;
use crate::hierarchy::Detecting;
use crate::matching::Matching;
use crate::measure::Measure;
use crate::oracle::Halves;
use crate::reconstruction::{self, Encoded, encode};
use crate::resampling::Resamples;
use crate::rows::Tables;
use crate::tree::{Rule, Tree, posthoc};
use crate::truth::Truth;
use crate::{controls, independence, oracle, true_tree, truth};

/// What is said of an SAE once, since the gate and the thresholds have no part in it, stands in the rows of this mode.
const ONCE: Mode = Mode { view: View::Flat, threshold: Threshold::Native };

/// What is the same for all SAEs.
pub(crate) struct Setting {
    config: Recover,
    seed: u64,
    heldout: Heldout,
    resamples: Resamples,
    /// Held-out rows of the half that chooses edges and of the half that measures them.
    choosing_rows: Vec<usize>,
    measuring_rows: Vec<usize>,
    measuring: Ground,
    planted: Option<Planted>,
    /// Where texts of WordNet were harvested.
    glosses: Option<Glosses>,
}

struct Planted {
    truth: Truth,
    /// All documents, with many shifts for pairs of independent features; None where there are to be no shifts.
    ground: Option<Ground>,
}

impl Setting {
    /// Errors: the split has one document only.
    pub(crate) fn new(
        config: &Recover,
        seed: u64,
        heldout: Heldout,
        truth: Option<Truth>,
        glosses: Option<Glosses>,
    ) -> Result<Self> {
        let documents: &Documents = &heldout.documents;
        let [choosing, measuring] = documents.halves(seed)?;
        let (_, choosing_rows) = documents.subset(&choosing);
        let (measuring, measuring_rows) = documents.subset(&measuring);
        let ground = (config.n_shifts > 0).then(|| independence::ground(documents, seed, config.n_shifts));
        Ok(Self {
            config: config.clone(),
            seed,
            resamples: Resamples::draw(seed, "recover/bootstrap", documents.n_docs(), config.n_bootstrap),
            choosing_rows,
            measuring_rows,
            measuring: Ground::new(&measuring, seed, config.n_bootstrap, config.n_shifts),
            planted: truth.map(|truth| Planted { truth, ground }),
            glosses,
            heldout,
        })
    }

    /// Everything of an SAE, mode by mode.
    ///
    /// Errors: the SAE does not fit the activations, or reconstructs to NaN.
    pub(crate) fn measure(&self, sae: &TrainedSae, modes: &[Mode]) -> Result<Tables> {
        ensure!(
            sae.d_model == self.heldout.d_model,
            "train/{}: made for activations of width {}, those of harvest have {}; run `make again-train`",
            sae.config.name,
            sae.d_model,
            self.heldout.d_model
        );
        let against = self.planted.as_ref().map(|Planted { truth, ground }| {
            let matching = Matching::new(&sae.w_dec, &truth.directions, sae.d_model, self.config.match_cosine)?;
            anyhow::Ok(Against { truth, matching, ground: ground.as_ref() })
        });
        let against = against.transpose()?;
        let mut tables = Tables::default();
        for &mode in modes {
            self.add(&mut tables, sae, mode, against.as_ref())?;
        }
        Ok(tables)
    }

    fn add(&self, tables: &mut Tables, sae: &TrainedSae, mode: Mode, against: Option<&Against>) -> Result<()> {
        let encoded = encode(sae, mode, &self.heldout)?;
        let mut measures = self.of_reconstruction(sae, &encoded);
        let firing = Firing::new(encoded.acts);
        tables.add_latents(sae, mode, &firing);

        let choosing = firing.select(&self.choosing_rows);
        let trees = self.trees_of(sae, &choosing);
        let is_eligible = |child: usize| choosing.n_firings(child) >= self.config.min_firings;
        let measuring = Measuring::new(&self.measuring, firing.select(&self.measuring_rows));
        for tree in &trees {
            let edges = measuring.edges(tree, is_eligible);
            tables.add_tree(sae, mode, tree, trees[0].name, &edges);
        }
        // The first tree is the one that the controls belong to; its figures carry no name.
        let suffix = |i: usize| if i == 0 { String::new() } else { format!("_{}", trees[i].name) };
        if let Some(glosses) = &self.glosses {
            let detecting = Detecting::new(&glosses.concepts, &glosses.firing(sae, mode)?, &glosses.halves);
            measures.extend(detecting.of_latents());
            for (i, tree) in trees.iter().enumerate() {
                measures.extend(detecting.of_tree(tree, &suffix(i), self.seed, self.config.n_bootstrap));
            }
        }
        if let Some(Against { truth, matching, ground }) = against {
            measures.extend(truth::of_features(truth, matching, &firing, &sae.w_dec));
            if mode == ONCE {
                measures.extend(self.of_weights(sae, truth, matching, &firing)?);
            }
            measures.extend(true_tree::absorption(truth, matching, &firing));
            for (i, tree) in trees.iter().enumerate() {
                measures.extend(true_tree::of_edges(tree, truth, matching, &suffix(i)));
                if tree.name == "own" {
                    measures.extend(true_tree::of_eligible_edges(tree, truth, matching, is_eligible));
                }
            }
            if let Some(ground) = ground {
                measures.extend(independence::of_lone_pairs(&Measuring::new(ground, firing), truth, matching));
            }
        }
        tables.add_measures(sae, mode, measures);
        Ok(())
    }

    fn of_reconstruction(&self, sae: &TrainedSae, encoded: &Encoded) -> Vec<Measure> {
        let mut measures = reconstruction::explained(encoded, &self.heldout, &self.resamples);
        measures.extend(reconstruction::l0(&encoded.acts, sae.n_coarse, &self.heldout, &self.resamples));
        measures.extend(reconstruction::dead(&encoded.acts.firings(), sae.n_coarse));
        measures.extend(reconstruction::norm_ratio(encoded, &self.resamples));
        measures
    }

    /// What does not depend on the mode, but for which latents are dead.
    fn of_weights(
        &self,
        sae: &TrainedSae,
        truth: &Truth,
        matching: &Matching,
        firing: &Firing,
    ) -> Result<Vec<Measure>> {
        let fires = |latent: usize| firing.n_firings(latent) > 0;
        let mut measures = hedging(truth, matching, sae.n_coarse, self.seed, fires);
        // A pursuit's steps have no thresholds.
        if sae.config.arch != Arch::MatchingPursuit {
            let halves = Halves::new(&self.choosing_rows, firing.n_rows());
            measures.extend(oracle::of_thresholds(sae, &self.heldout, truth, matching, &halves)?);
        }
        Ok(measures)
    }

    /// The SAE's own tree if it has one, the one found afterwards, and the controls of the first of these.
    fn trees_of(&self, sae: &TrainedSae, choosing: &Firing) -> Vec<Tree> {
        let own = sae.parent.iter().enumerate();
        let own: Vec<(u32, u32)> = own.filter_map(|(child, parent)| Some((child as u32, (*parent)?))).collect();
        let rule = Rule { min_excess: self.config.min_excess, min_firings: self.config.min_firings };
        let mut trees = Vec::new();
        if !own.is_empty() {
            trees.push(Tree::from_edges("own", &own, choosing));
        }
        trees.push(posthoc(choosing, rule));
        let base = &trees[0];
        let controls = [
            controls::rate_matched(base, choosing, self.seed),
            controls::cosine(base, choosing, &sae.w_dec, sae.d_model),
            controls::permuted(base, choosing, self.seed),
        ];
        trees.extend(controls);
        trees
    }
}

/// An SAE's decoder beside what was planted.
struct Against<'a> {
    truth: &'a Truth,
    matching: Matching,
    ground: Option<&'a Ground>,
}
