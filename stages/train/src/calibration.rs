//! Finished SAEs of which only other thresholds are wanted: their weights stay, and nothing is trained.

use anyhow::Result;
use artifact::config::Sae;
use artifact::stage::{Input, Key, Stage, Task};
use hsae::TrainedSae;
use hsae::export::Record;

use crate::data::{Harvested, TrainingData};
use crate::together::N_CALIBRATION_ROWS;
use crate::{CALIBRATION, folder, publish};

/// An SAE as it was published, and the task that publishes it with other thresholds. Weights are dear: the old files stay
/// until all new ones are written.
pub(crate) struct Renewal {
    published: Input,
    task: Task,
}

/// `None` where more than its thresholds is to change, or nothing. Errors: another process writes there.
pub(crate) fn start(stage: &Stage, sae: &Sae, key: Key) -> Result<Option<Renewal>> {
    if stage.args.status || stage.args.force {
        return Ok(None);
    }
    let found = stage.replacement(&folder(sae), key, CALIBRATION)?;
    Ok(found.map(|(task, published)| Renewal { published, task }))
}

impl Renewal {
    /// Finds its thresholds on the rows that training would have ended with, and publishes it as training would have.
    ///
    /// Errors: a file is damaged or cannot be written.
    pub(crate) fn finish(self, stage: &Stage, sae: &Sae, harvested: &Harvested, data: &TrainingData) -> Result<()> {
        let (trained, record) = (TrainedSae::load(&self.published)?, Record::read(&self.published)?);
        let sample = data.sample(trained.seed, N_CALIBRATION_ROWS)?;
        publish(self.task, &hsae::calibrated_anew(trained, sae, &sample), &record, harvested)?;
        stage.log.line(format!("{}: its thresholds found anew, its weights as they were", sae.name));
        Ok(())
    }
}
