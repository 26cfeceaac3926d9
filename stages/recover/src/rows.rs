//! What is measured, as rows of the stage's tables.

use artifact::tables::{DensityBin, Edge, Latent, MeasuredTreeNode, Metric};
use hsae::{Mode, TrainedSae};
use serde_json::{Value, json};

use crate::cosine::cosines;
use crate::edges::Measured;
use crate::firing::Firing;
use crate::information::{self, log_odds};
use crate::measure::Measure;
use crate::tree::Tree;
use crate::{reconstruction, summary};

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

impl Tables {
    pub(crate) fn add_measures(&mut self, sae: &TrainedSae, mode: Mode, measures: Vec<Measure>) {
        self.metrics.extend(measures.into_iter().map(|measure| metric_row(sae, mode, measure)));
    }

    pub(crate) fn add_latents(&mut self, sae: &TrainedSae, mode: Mode, firing: &Firing) {
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

    pub(crate) fn add_tree(&mut self, sae: &TrainedSae, mode: Mode, tree: &Tree, base: &str, edges: &[Measured]) {
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
        mi_ci_low: edge.mi_interval.map(|interval| interval.0),
        mi_ci_high: edge.mi_interval.map(|interval| interval.1),
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
