//! The glosses among what was harvested, of both splits, and which latents fire in each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use artifact::random;
use artifact::stage::Input;
use artifact::tables::activations::Activations;
use artifact::tables::{Context, read_rows};
use hsae::{Mode, SparseRows, TrainedSae};
use rand::seq::SliceRandom;

use crate::concepts::Concepts;
use crate::firing::Firing;

/// Rows encoded at once.
const N_ROWS_AT_ONCE: usize = 2048;

/// A gloss is one document; it has a number in the order in which its rows stand in the splits, training first. Those that
/// the SAEs were trained on are taken too, as no label had a part in training and the held-out ones alone are few.
pub(crate) struct Glosses {
    parts: Vec<Part>,
    n_glosses: usize,
    pub(crate) concepts: Concepts,
    /// The half that says what each latent detects, and the half that measures: glosses, ascending.
    pub(crate) halves: [Vec<usize>; 2],
}

/// The rows of one file that belong to glosses, and to which.
struct Part {
    path: PathBuf,
    rows: Vec<u32>,
    gloss: Vec<u32>,
}

impl Glosses {
    /// None where nothing was harvested from WordNet.
    ///
    /// Errors: a table is damaged, or WordNet's file does not fit it.
    pub(crate) fn read(harvest: &Input, wordnet: &Input, min_glosses: usize, seed: u64) -> Result<Option<Self>> {
        let contexts: Vec<Context> = read_rows(&harvest.file("contexts.parquet")?)?;
        let of_wordnet = contexts.into_iter().filter(|context| context.source == wordnet::SOURCE);
        let synset: BTreeMap<u32, String> = of_wordnet.map(|context| (context.doc_id, context.name)).collect();
        let (mut parts, mut number) = (Vec::new(), BTreeMap::new());
        let mut sample = Vec::new();
        for path in harvest.paths("train/").into_iter().chain(harvest.paths("heldout/")) {
            let path = harvest.file(&path)?;
            let mut part = Part { path, rows: Vec::new(), gloss: Vec::new() };
            for (row, doc_id) in Activations::read(&[&part.path])?.doc_id.into_iter().enumerate() {
                if let Some(offset) = synset.get(&doc_id) {
                    let gloss = *number.entry(doc_id).or_insert_with(|| {
                        sample.push(offset.clone());
                        sample.len() as u32 - 1
                    });
                    part.rows.push(row as u32);
                    part.gloss.push(gloss);
                }
            }
            if !part.rows.is_empty() {
                parts.push(part);
            }
        }
        if sample.is_empty() {
            return Ok(None);
        }
        let concepts = Concepts::new(&wordnet::read(&wordnet.file(wordnet::NOUNS)?)?, &sample, min_glosses)?;
        Ok(Some(Self { parts, n_glosses: sample.len(), concepts, halves: halves(sample.len(), seed) }))
    }

    /// One row a gloss: the latents that are active in any of its tokens, with the activation 1.
    pub(crate) fn firing(&self, sae: &TrainedSae, mode: Mode) -> Result<Firing> {
        let mut on: Vec<Vec<u32>> = vec![Vec::new(); self.n_glosses];
        for part in &self.parts {
            let activations = Activations::read(&[&part.path])?;
            for (rows, gloss) in part.rows.chunks(N_ROWS_AT_ONCE).zip(part.gloss.chunks(N_ROWS_AT_ONCE)) {
                let mut x = vec![0.0; rows.len() * activations.d_model]; // [n_rows, d_model]
                let of_rows = x.chunks_exact_mut(activations.d_model);
                of_rows.zip(rows).for_each(|(x, &row)| activations.row(row as usize, x));
                let acts = sae.encode(&x, mode);
                for (row, &gloss) in gloss.iter().enumerate() {
                    on[gloss as usize].extend_from_slice(acts.row(row).0);
                }
                for tokens in gloss.chunk_by(|a, b| a == b) {
                    let on = &mut on[tokens[0] as usize];
                    on.sort_unstable();
                    on.dedup();
                }
            }
        }
        let mut firing = SparseRows::new(sae.d_sae);
        on.into_iter().for_each(|latents| firing.push_row(latents.into_iter().map(|latent| (latent, 1.0))));
        Ok(Firing::new(firing))
    }
}

pub(crate) fn halves(n_glosses: usize, seed: u64) -> [Vec<usize>; 2] {
    let mut order: Vec<usize> = (0..n_glosses).collect();
    order.shuffle(&mut random::stream(seed, "recover/glosses", 0, 0));
    let mut measuring = order.split_off(n_glosses.div_ceil(2));
    order.sort_unstable();
    measuring.sort_unstable();
    [order, measuring]
}
