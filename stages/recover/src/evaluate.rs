//! One SAE in one mode: everything this stage says of it.

use anyhow::Result;
use artifact::config::Recover;
use artifact::tables::{DensityBin, Edge, Latent, MeasuredTreeNode, Metric};
use hsae::{Mode, TrainedSae};
use serde_json::{Value, json};

use crate::cosine::cosines;
use crate::documents::Documents;
use crate::edges::{Ground, Measured, Measuring};
use crate::firing::Firing;
use crate::heldout::Heldout;
use crate::information::{self, log_odds};
use crate::matching::Matching;
use crate::measure::Measure;
use crate::reconstruction::{self, Encoded, encode};
use crate::resampling::Resamples;
use crate::tree::{Rule, Tree, posthoc};
use crate::truth::Truth;
use crate::{controls, independence, summary, true_tree, truth};

/// What is the same for all SAEs.
pub(crate) struct Setting<'a> {
    pub(crate) config: &'a Recover,
    pub(crate) seed: u64,
    pub(crate) heldout: &'a Heldout,
    pub(crate) resamples: Resamples,
    /// Held-out rows of the half that chooses edges and of the half that measures them.
    choosing_rows: Vec<usize>,
    measuring_rows: Vec<usize>,
    measuring: Ground,
    /// What was planted, and all documents with many shifts for its independent pairs.
    truth: Option<(Truth, Ground)>,
}

/// Rows of every table, in the order in which they are written.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) metrics: Vec<Metric>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) latents: Vec<Latent>,
    pub(crate) trees: Vec<MeasuredTreeNode>,
    pub(crate) density: Vec<DensityBin>,
    pub(crate) summary: Vec<Value>,
}

impl<'a> Setting<'a> {
    /// Errors: the split has one document only.
    pub(crate) fn new(config: &'a Recover, seed: u64, heldout: &'a Heldout, truth: Option<Truth>) -> Result<Self> {
        let documents: &Documents = &heldout.documents;
        let [choosing, measuring] = documents.halves(seed)?;
        let (_, choosing_rows) = documents.subset(&choosing);
        let (measuring, measuring_rows) = documents.subset(&measuring);
        Ok(Self {
            config,
            seed,
            heldout,
            resamples: Resamples::draw(seed, "recover/bootstrap", documents.n_docs(), config.n_bootstrap),
            choosing_rows,
            measuring_rows,
            measuring: Ground::new(&measuring, seed, config.n_bootstrap, config.n_shifts),
            truth: truth.map(|truth| (truth, independence::ground(documents, seed, config.n_shifts))),
        })
    }
}

impl Tables {
    /// Errors: the SAE does not fit the activations, or reconstructs to NaN.
    pub(crate) fn add(&mut self, setting: &Setting, sae: &TrainedSae, mode: Mode) -> Result<()> {
        anyhow::ensure!(
            sae.d_model == setting.heldout.d_model,
            "train/{}: made for activations of width {}, those of harvest have {}; run `make again-train`",
            sae.config.name,
            sae.d_model,
            setting.heldout.d_model
        );
        let encoded = encode(sae, mode, setting.heldout)?;
        let mut measures = of_reconstruction(setting, sae, &encoded);
        let firing = Firing::new(encoded.acts);
        self.add_latents(sae, mode, &firing);

        let choosing = firing.select(&setting.choosing_rows);
        let trees = trees_of(sae, &choosing, setting);
        let measuring = Measuring::new(&setting.measuring, firing.select(&setting.measuring_rows));
        for tree in &trees {
            let edges = measuring.edges(tree, |child| choosing.n_firings(child) >= setting.config.min_firings);
            self.add_tree(sae, mode, tree, trees[0].name, &edges);
        }
        if let Some((truth, ground)) = &setting.truth {
            let matching = Matching::new(&sae.w_dec, &truth.directions, sae.d_model, setting.config.match_cosine)?;
            measures.extend(truth::of_features(truth, &matching, &firing, &sae.w_dec));
            measures.extend(true_tree::absorption(truth, &matching, &firing));
            for (i, tree) in trees.iter().enumerate() {
                // The first tree is the one that the controls belong to; its figures carry no name.
                let suffix = if i == 0 { String::new() } else { format!("_{}", tree.name) };
                measures.extend(true_tree::of_edges(tree, truth, &matching, &suffix));
            }
            measures.extend(independence::of_lone_pairs(&Measuring::new(ground, firing), truth, &matching));
        }
        self.metrics.extend(measures.into_iter().map(|measure| metric_row(sae, mode, measure)));
        Ok(())
    }

    fn add_latents(&mut self, sae: &TrainedSae, mode: Mode, firing: &Firing) {
        let n_rows = firing.n_rows();
        let n_firings: Vec<u64> = (0..firing.n_latents()).map(|latent| firing.n_firings(latent)).collect();
        let whose = DensityBin {
            sae: sae.config.name.clone(),
            seed: sae.seed,
            view: mode.view.to_string(),
            threshold: mode.threshold.to_string(),
            level: String::new(),
            log10_low: 0.0,
            log10_high: 0.0,
            n_latents: 0,
        };
        self.density.extend(reconstruction::density(&n_firings, n_rows, sae.n_coarse, &whose));
        self.latents.extend(n_firings.into_iter().enumerate().map(|(latent, n_firings)| {
            let magnitudes = firing.latent(latent).1;
            let sum: f64 = magnitudes.iter().map(|&magnitude| f64::from(magnitude)).sum();
            Latent {
                sae: sae.config.name.clone(),
                seed: sae.seed,
                view: mode.view.to_string(),
                threshold: mode.threshold.to_string(),
                latent: latent as u32,
                level: level_of(sae, latent).into(),
                n_firings,
                firing_rate: n_firings as f64 / n_rows as f64,
                // Over the rows in which it fires; 0 for a dead one.
                mean_activation: sum / (n_firings.max(1)) as f64,
                max_activation: magnitudes.iter().fold(0.0, |most, &magnitude| most.max(f64::from(magnitude))),
            }
        }));
    }

    fn add_tree(&mut self, sae: &TrainedSae, mode: Mode, tree: &Tree, base: &str, edges: &[Measured]) {
        let mut summary = summary::of_edges(tree.edges().len(), edges);
        let mut whose = json!({
            "sae": sae.config.name,
            "seed": sae.seed,
            "view": mode.view.to_string(),
            "threshold": mode.threshold.to_string(),
            "tree": tree.name,
            // Whose children the controls share.
            "base": base,
        });
        if let Some(whose) = whose.as_object_mut() {
            whose.append(&mut summary);
        }
        self.summary.push(whose);
        self.edges.extend(edges.iter().map(|edge| edge_row(sae, mode, tree.name, edge)));
        self.trees.extend(tree.parent.iter().enumerate().map(|(latent, choice)| MeasuredTreeNode {
            sae: sae.config.name.clone(),
            seed: sae.seed,
            view: mode.view.to_string(),
            threshold: mode.threshold.to_string(),
            tree: tree.name.into(),
            latent: latent as u32,
            level: level_of(sae, latent).into(),
            parent: choice.map(|choice| choice.parent),
            weight: choice.map(|choice| choice.mi_bits),
            runner_up: choice.and_then(|choice| choice.runner_up).map(|(latent, _)| latent),
            margin: choice.and_then(|choice| choice.runner_up).map(|(_, margin)| margin),
        }));
    }
}

fn of_reconstruction(setting: &Setting, sae: &TrainedSae, encoded: &Encoded) -> Vec<Measure> {
    let Setting { heldout, resamples, .. } = setting;
    let mut measures = reconstruction::explained(encoded, heldout, resamples);
    measures.extend(reconstruction::l0(&encoded.acts, sae.n_coarse, heldout, resamples));
    measures.extend(reconstruction::dead(&encoded.acts.firings(), sae.n_coarse));
    measures
}

/// The SAE's own tree if it has one, the one found afterwards, and the controls of the first of these.
fn trees_of(sae: &TrainedSae, choosing: &Firing, setting: &Setting) -> Vec<Tree> {
    let own = sae.parent.iter().enumerate();
    let own: Vec<(u32, u32)> = own.filter_map(|(child, parent)| Some((child as u32, (*parent)?))).collect();
    let rule = Rule { min_excess: setting.config.min_excess, min_firings: setting.config.min_firings };
    let mut trees = Vec::new();
    if !own.is_empty() {
        trees.push(Tree::from_edges("own", &own, choosing));
    }
    trees.push(posthoc(choosing, rule));
    let base = &trees[0];
    let controls = [
        controls::rate_matched(base, choosing, setting.seed),
        controls::cosine(base, choosing, &sae.w_dec, sae.d_model),
        controls::permuted(base, choosing, setting.seed),
    ];
    trees.extend(controls);
    trees
}

fn level_of(sae: &TrainedSae, latent: usize) -> &'static str {
    match sae.n_coarse {
        0 => "flat",
        n_coarse if latent < n_coarse => "coarse",
        _ => "fine",
    }
}

fn metric_row(sae: &TrainedSae, mode: Mode, measure: Measure) -> Metric {
    let (ci_low, ci_high) = measure.interval.unzip();
    Metric {
        sae: sae.config.name.clone(),
        seed: sae.seed,
        view: mode.view.to_string(),
        threshold: mode.threshold.to_string(),
        metric: measure.metric,
        level: measure.level.into(),
        value: measure.value,
        ci_low,
        ci_high,
    }
}

fn edge_row(sae: &TrainedSae, mode: Mode, tree: &str, edge: &Measured) -> Edge {
    let Measured { parent, child, counts, .. } = *edge;
    let row = |latent: u32| &sae.w_dec[latent as usize * sae.d_model..(latent as usize + 1) * sae.d_model];
    Edge {
        sae: sae.config.name.clone(),
        seed: sae.seed,
        view: mode.view.to_string(),
        threshold: mode.threshold.to_string(),
        tree: tree.into(),
        parent,
        child,
        n11: counts.n11,
        n_parent: counts.n_parent,
        n_child: counts.n_child,
        n: counts.n,
        mi_bits: edge.mi_bits,
        mi_ci_low: edge.mi_interval.0,
        mi_ci_high: edge.mi_interval.1,
        mi_over_h_child: information::mi_over_h_child(counts),
        mi_over_nested: information::mi_over_nested(counts),
        // Both ends of a measured edge fire.
        p_parent_given_child: information::p_parent_given_child(counts).unwrap_or(0.0),
        p_child_given_parent: information::p_child_given_parent(counts).unwrap_or(0.0),
        log_odds: log_odds(counts),
        decoder_cosine: f64::from(cosines(row(child), row(parent), sae.d_model)[0]),
        mi_null_bits: edge.mi_null_bits,
        mi_null_high_bits: edge.mi_null_high_bits,
        p_value: edge.p_value,
        q_value: edge.q_value,
        mi_magnitude_bits: edge.mi_magnitude_bits,
    }
}
