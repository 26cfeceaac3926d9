//! Harvested activations as training wants them: normalised, in memory as a whole or a window at a time.

use anyhow::{Context, Result, ensure};
use artifact::config::{ActivationDtype, Train};
use artifact::stage::Input;
use artifact::tables::activations::{Parts, Values};
use serde_json::Value;

use crate::fresh::Fresh;
use crate::order::{Order, Window};

/// What is known of a harvest before its activations are read.
pub(crate) struct Harvested {
    pub(crate) d_model: usize,
    /// Factor that brings the mean norm of a row to √d_model.
    pub(crate) scale: f32,
    /// Mean of the normalised rows, [d_model].
    pub(crate) mean: Vec<f32>,
    pub(crate) model: Option<String>,
    pub(crate) hook: Option<String>,
    /// Of the whole train split, as training keeps it.
    n_bytes: u64,
    /// There is no train split, but what it takes to draw rows without end.
    pub(crate) is_endless: bool,
}

impl Harvested {
    pub(crate) fn read(harvest: &Input) -> Result<Self> {
        let path = harvest.file("stats.json")?;
        let stats: Value =
            serde_json::from_slice(&std::fs::read(&path)?).with_context(|| format!("{}: not JSON", path.display()))?;
        let number = |value: &Value| value.as_f64().filter(|value| value.is_finite());
        let context = |key: &str| format!("{}: no finite `{key}`", path.display());
        let scale = number(&stats["scale"]).with_context(|| context("scale"))? as f32;
        let mean = stats["mean"].as_array().with_context(|| context("mean"))?;
        let mean = mean.iter().map(|value| Some(number(value)? as f32 * scale)).collect::<Option<Vec<f32>>>();
        let mean = mean.with_context(|| context("mean"))?;
        let hook = stats["hook"].as_str().map(str::to_owned);
        let config = &harvest.manifest.key.config;
        // A local model is known by its file's name; a path would mean nothing elsewhere.
        let model = config["source"]["model"]["name"].as_str();
        let model =
            model.and_then(|name| if name.starts_with(['/', '.']) { name.rsplit('/').next() } else { Some(name) });
        let dtype: ActivationDtype = serde_json::from_value(config["harvest"]["dtype"].clone())
            .context("the manifest of harvest says no harvest.dtype; run `make again-harvest`")?;
        let parts = harvest.manifest.outputs.iter().filter(|output| output.path.starts_with("train/"));
        let n_rows: u64 = parts.filter_map(|part| part.rows).sum();
        let is_endless = n_rows == 0 && harvest.has("truth.json");
        let n_bytes = n_rows * (mean.len() * dtype.bytes()) as u64;
        Ok(Self { d_model: mean.len(), scale, mean, model: model.map(str::to_owned), hook, n_bytes, is_endless })
    }

    /// Whether the train split stays in memory; what is learnt then does not depend on `train.resident_mb`.
    pub(crate) fn fits(&self, train: &Train) -> bool {
        self.n_bytes <= budget(train)
    }
}

/// The rows to train on.
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub(crate) enum TrainingData {
    Stored(Stored),
    Fresh(Fresh),
}

impl TrainingData {
    /// Errors: a part is damaged, half of `train.resident_mb` holds no row group, or there are no rows and nothing to draw
    /// them from.
    pub(crate) fn load(harvest: &Input, harvested: &Harvested, train: &Train) -> Result<Self> {
        let data = if harvested.is_endless {
            Self::Fresh(Fresh::load(harvest, harvested.scale)?)
        } else {
            Self::Stored(Stored::load(harvest, harvested, train)?)
        };
        ensure!(
            data.d_model() == harvested.d_model,
            "stats.json: `mean` is {} wide, but activations are {}",
            harvested.d_model,
            data.d_model()
        );
        Ok(data)
    }

    fn d_model(&self) -> usize {
        match self {
            Self::Stored(stored) => stored.d_model,
            Self::Fresh(fresh) => fresh.d_model(),
        }
    }

    /// Rows of the train split; `None` where they are drawn without end.
    pub(crate) fn n_rows(&self) -> Option<u64> {
        match self {
            Self::Stored(stored) => Some(stored.parts.n_rows() as u64),
            Self::Fresh(_) => None,
        }
    }

    /// Rows to set thresholds on, as stored: the first of training, or others like them.
    pub(crate) fn sample(&self, seed: u64, n_rows: usize) -> Result<Vec<f32>> {
        match self {
            Self::Stored(stored) => stored.sample(seed, n_rows),
            Self::Fresh(fresh) => Ok(fresh.sample(seed, n_rows)),
        }
    }
}

/// The rows of the train split.
pub(crate) struct Stored {
    pub(crate) d_model: usize,
    pub(crate) scale: f32,
    pub(crate) parts: Parts,
    /// All rows, where they fit in memory.
    pub(crate) resident: Option<Values>,
    /// Row groups in memory together, where not all of them fit.
    groups_per_window: Option<usize>,
}

impl Stored {
    /// Reads the whole train split, or as much as it takes to read it window by window.
    ///
    /// Errors: a part is damaged, or half of `train.resident_mb` holds no row group.
    fn load(harvest: &Input, harvested: &Harvested, train: &Train) -> Result<Self> {
        let paths = harvest.paths("train/").iter().map(|path| harvest.file(path)).collect::<Result<Vec<_>>>()?;
        let parts = Parts::open(&paths)?;
        let budget = (!harvested.fits(train)).then(|| budget(train));
        Self::new(parts, harvested.scale, budget)
    }

    /// `budget`: bytes that windows may take, None if the whole split is to stay in memory.
    pub(crate) fn new(parts: Parts, scale: f32, budget: Option<u64>) -> Result<Self> {
        let n_rows = parts.n_rows();
        ensure!(n_rows > 0, "the train split has no rows");
        ensure!(u32::try_from(n_rows).is_ok() || budget.is_some(), "the train split has more than 2³² rows");
        let resident = match budget {
            Some(_) => None,
            None => {
                let mut values = Values::with_capacity(parts.dtype, n_rows * parts.d_model);
                parts.groups.iter().try_for_each(|group| parts.read(group, &mut values))?;
                Some(values)
            }
        };
        let groups_per_window = budget.map(|budget| groups_per_window(&parts, budget)).transpose()?;
        Ok(Self { d_model: parts.d_model, scale, parts, resident, groups_per_window })
    }

    pub(crate) fn order(&self, seed: u64) -> Order {
        Order::new(seed, self.parts.groups.iter().map(|group| group.n_rows).collect(), self.groups_per_window)
    }

    /// Room for any window.
    pub(crate) fn empty_window(&self) -> Values {
        let n_groups = self.groups_per_window.unwrap_or(0);
        let n_rows = n_groups.min(self.parts.groups.len()) * largest_group(&self.parts);
        Values::with_capacity(self.parts.dtype, n_rows * self.d_model)
    }

    /// Fills `values` with the rows of a window, as stored.
    pub(crate) fn read(&self, window: &Window, values: &mut Values) -> Result<()> {
        values.clear();
        window.groups.iter().try_for_each(|&group| self.parts.read(&self.parts.groups[group], values))
    }

    /// The first rows of the first epoch's order, as stored.
    fn sample(&self, seed: u64, n_rows: usize) -> Result<Vec<f32>> {
        let n_rows = n_rows.min(self.parts.n_rows());
        let mut sample = Vec::with_capacity(n_rows * self.d_model);
        let order = self.order(seed);
        let mut read = self.empty_window();
        for window in order.windows_from(0) {
            let values = match &self.resident {
                Some(values) => values,
                None => {
                    self.read(&window, &mut read)?;
                    &read
                }
            };
            let n_left = n_rows - sample.len() / self.d_model;
            for &row in order.shuffled(&window).iter().take(n_left) {
                let at = sample.len();
                sample.resize(at + self.d_model, 0.0);
                values.row(row as usize, &mut sample[at..]);
            }
            if sample.len() == n_rows * self.d_model {
                break;
            }
        }
        Ok(sample)
    }
}

/// Bytes.
fn budget(train: &Train) -> u64 {
    train.resident_mb.saturating_mul(1 << 20)
}

/// Half of the budget: the next window is read while this one is in use.
fn groups_per_window(parts: &Parts, budget: u64) -> Result<usize> {
    let group = parts.bytes_of(largest_group(parts));
    let n_groups = budget / 2 / group;
    ensure!(
        n_groups >= 1,
        "train.resident_mb = {}: too little for two row groups of {:.1} MiB, the least that training can stream with; \
         set it to {} or more",
        budget >> 20,
        group as f64 / f64::from(1 << 20),
        (2 * group).div_ceil(1 << 20)
    );
    Ok(usize::try_from(n_groups).unwrap_or(usize::MAX))
}

fn largest_group(parts: &Parts) -> usize {
    parts.groups.iter().map(|group| group.n_rows).max().unwrap_or(0)
}
