//! Harvested activations as training wants them: normalised, and in an order that is a function of the step.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use artifact::random;
use artifact::stage::Input;
use artifact::tables::activations::Activations;
use rand::seq::SliceRandom;
use serde_json::Value;

pub(crate) struct TrainingData {
    rows: Activations,
    /// Factor that brings the mean norm of a row to √d_model.
    pub(crate) scale: f32,
    /// Mean of the normalised rows, [d_model].
    pub(crate) mean: Vec<f32>,
    pub(crate) model: Option<String>,
    pub(crate) hook: Option<String>,
    order: RefCell<Option<Order>>,
}

/// The rows of one epoch, shuffled.
struct Order {
    seed: u64,
    epoch: u64,
    rows: Vec<u32>,
}

impl TrainingData {
    /// Reads the whole train split, in the type that it is stored in.
    pub(crate) fn load(harvest: &Input) -> Result<Self> {
        let parts = harvest.paths("train/").iter().map(|path| harvest.file(path)).collect::<Result<Vec<_>>>()?;
        let rows = Activations::read(&parts)?;
        let path = harvest.file("stats.json")?;
        let stats: Value =
            serde_json::from_slice(&std::fs::read(&path)?).with_context(|| format!("{}: not JSON", path.display()))?;
        let number = |value: &Value| value.as_f64().filter(|value| value.is_finite());
        let context = |key: &str| format!("{}: no finite `{key}`", path.display());
        let scale = number(&stats["scale"]).with_context(|| context("scale"))? as f32;
        let mean = stats["mean"].as_array().with_context(|| context("mean"))?;
        let mean = mean.iter().map(|value| Some(number(value)? as f32 * scale)).collect::<Option<Vec<f32>>>();
        let mean = mean.with_context(|| context("mean"))?;
        ensure!(mean.len() == rows.d_model, "{}: `mean` is {} wide, not {}", path.display(), mean.len(), rows.d_model);
        let hook = stats["hook"].as_str().map(str::to_owned);
        let model = harvest.manifest.key.config["source"]["model"]["name"].as_str();
        // A local model is known by its file's name; a path would mean nothing elsewhere.
        let model =
            model.and_then(|name| if name.starts_with(['/', '.']) { name.rsplit('/').next() } else { Some(name) });
        Ok(Self { rows, scale, mean, model: model.map(str::to_owned), hook, order: None.into() })
    }

    /// The normalised rows of a step, [batch_size, d_model]: epochs one after another, each shuffled as a whole.
    pub(crate) fn batch(&self, seed: u64, step: u64, batch_size: usize) -> Vec<f32> {
        let (n, d_model) = (self.rows.n_rows() as u64, self.rows.d_model);
        let mut batch = vec![0f32; batch_size * d_model];
        for (i, out) in batch.chunks_exact_mut(d_model).enumerate() {
            let at = step * batch_size as u64 + i as u64;
            self.rows.row(self.shuffled(seed, at / n, at % n), out);
        }
        batch.iter_mut().for_each(|value| *value *= self.scale);
        batch
    }

    /// The first rows of the first epoch's order, as stored.
    pub(crate) fn sample(&self, seed: u64, n_rows: usize) -> Vec<f32> {
        let (n_rows, d_model) = (n_rows.min(self.rows.n_rows()), self.rows.d_model);
        let mut sample = vec![0f32; n_rows * d_model];
        for (i, out) in sample.chunks_exact_mut(d_model).enumerate() {
            self.rows.row(self.shuffled(seed, 0, i as u64), out);
        }
        sample
    }

    fn shuffled(&self, seed: u64, epoch: u64, at: u64) -> usize {
        let mut order = self.order.borrow_mut();
        if order.as_ref().is_none_or(|order| (order.seed, order.epoch) != (seed, epoch)) {
            let mut rows: Vec<u32> = (0..self.rows.n_rows() as u32).collect();
            rows.shuffle(&mut random::stream(seed, "train/order", 0, epoch));
            *order = Some(Order { seed, epoch, rows });
        }
        order.as_ref().map_or(0, |order| order.rows[at as usize] as usize)
    }
}
