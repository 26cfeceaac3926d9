//! Writes rows to `train/part-NNNNN.parquet` and `heldout/part-NNNNN.parquet`, in the order in which they come.

use anyhow::{Context, Result, ensure};
use artifact::config::{ActivationDtype, Harvest};
use artifact::stage::{Log, OpenOutput, Task};
use artifact::tables::activations::PartWriter;
use half::f16;
use serde_json::{Value, json};

use crate::stats::Stats;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    Train,
    Heldout,
}

impl Split {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
        }
    }
}

/// Rows to be written. All columns have the same number of rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) doc_id: Vec<u32>,
    pub(crate) pos: Vec<u16>,
    pub(crate) token_id: Vec<u32>,
    /// [n, d_model], row-major.
    pub(crate) activation: Vec<f32>,
}

/// Both splits under way.
pub(crate) struct Dataset {
    d_model: usize,
    dtype: ActivationDtype,
    rows_per_part: usize,
    train: Parts,
    heldout: Parts,
    stats: Stats,
    /// Training rows are only sampled: a later stage makes its own.
    is_sampled: bool,
}

#[derive(Default)]
struct Parts {
    n_rows: u64,
    n_parts: usize,
    open: Option<(String, PartWriter<OpenOutput>)>,
}

impl Dataset {
    pub(crate) fn new(d_model: usize, config: &Harvest) -> Self {
        Self {
            d_model,
            dtype: config.dtype,
            rows_per_part: config.rows_per_part,
            train: Parts::default(),
            heldout: Parts::default(),
            stats: Stats::new(d_model),
            is_sampled: false,
        }
    }

    pub(crate) fn d_model(&self) -> usize {
        self.d_model
    }

    /// Rows written so far.
    pub(crate) fn n_rows(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train.n_rows,
            Split::Heldout => self.heldout.n_rows,
        }
    }

    /// Errors: a value is NaN, infinite or too large for `harvest.dtype` (part, row and column are named), or the disk
    /// does not take it.
    pub(crate) fn write(&mut self, task: &mut Task, split: Split, mut rows: Rows) -> Result<()> {
        let parts = match split {
            Split::Train => &mut self.train,
            Split::Heldout => &mut self.heldout,
        };
        let d_model = self.d_model;
        let n = rows.doc_id.len();
        let mut start = 0;
        while start < n {
            let (path, writer) = match &mut parts.open {
                Some(open) => open,
                None => {
                    let path = format!("{}/part-{:05}.parquet", split.name(), parts.n_parts);
                    let writer = PartWriter::new(task.create(&path)?, d_model, self.dtype)?;
                    parts.n_parts += 1;
                    parts.open.insert((path, writer))
                }
            };
            let room = self.rows_per_part - writer.n_rows() as usize;
            let end = n.min(start + room);
            let values = &rows.activation[start * d_model..end * d_model];
            writer
                .write(&rows.doc_id[start..end], &rows.pos[start..end], &rows.token_id[start..end], values)
                .with_context(|| path.clone())?;
            if end - start == room {
                parts.close(task)?;
            }
            parts.n_rows += (end - start) as u64;
            start = end;
        }
        if split == Split::Train {
            self.as_stored(&mut rows.activation);
            self.stats.add(&rows.activation);
        }
        Ok(())
    }

    /// Adds training rows to the statistics that are not written, the train split having none. Shapes: x [n, d_model],
    /// row-major.
    pub(crate) fn sample(&mut self, x: &[f32]) {
        self.is_sampled = true;
        self.stats.add(x);
    }

    /// The statistics are those of the values on disk.
    fn as_stored(&self, values: &mut [f32]) {
        if self.dtype == ActivationDtype::F16 {
            values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }

    /// Closes the last parts and writes `stats.json`. `about` is added to it.
    ///
    /// Errors: a split is empty.
    pub(crate) fn finish(mut self, task: &mut Task, log: &Log, about: Value) -> Result<()> {
        self.train.close(task)?;
        self.heldout.close(task)?;
        for (split, parts) in [(Split::Train, &self.train), (Split::Heldout, &self.heldout)] {
            ensure!(
                parts.n_rows > 0 || (self.is_sampled && split == Split::Train),
                "the {} split is empty: the source has too few documents for harvest.heldout_fraction; give it more",
                split.name()
            );
        }
        let (n_outliers, share) = self.stats.outliers();
        if n_outliers > 0 {
            let n_train = self.stats.n_rows();
            let share = 100.0 * share;
            log.line(format!(
                "{n_outliers} of {n_train} training rows have norms above ten times the median: {share:.2} % of Σ‖x‖²"
            ));
        }
        let mut stats = json!({
            "d_model": self.d_model,
            "n_train": (!self.is_sampled).then_some(self.train.n_rows),
            "n_heldout": self.heldout.n_rows,
        });
        for part in [self.stats.finish()?, about] {
            if let (Some(stats), Value::Object(part)) = (stats.as_object_mut(), part) {
                stats.extend(part);
            }
        }
        task.write_json("stats.json", &stats)
    }
}

impl Parts {
    fn close(&mut self, task: &mut Task) -> Result<()> {
        let Some((path, writer)) = self.open.take() else { return Ok(()) };
        let (output, n_rows) = writer.finish().with_context(|| path.clone())?;
        task.publish(output, Some(n_rows)).with_context(|| path)
    }
}
