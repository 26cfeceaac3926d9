//! Finished SAEs of which only other thresholds are wanted: their weights stay, and nothing is trained.

use anyhow::Result;
use artifact::config::Sae;
use artifact::stage::{Input, Key, Stage};
use hsae::TrainedSae;
use hsae::export::Record;

use crate::data::{Harvested, TrainingData};
use crate::together::N_CALIBRATION_ROWS;
use crate::{CALIBRATION, folder, publish};

/// The SAE as it was published, if nothing but its thresholds is to change.
pub(crate) fn finished(stage: &Stage, sae: &Sae, key: &Key) -> Option<Input> {
    let is_idle = stage.args.status || stage.args.force;
    if is_idle { None } else { stage.published_but_for(&folder(sae), key, CALIBRATION) }
}

/// Finds its thresholds on the rows that training would have ended with, and publishes it as training would have.
///
/// Errors: a file is damaged; another process writes there.
pub(crate) fn renew(
    stage: &Stage,
    sae: &Sae,
    finished: &Input,
    key: Key,
    harvested: &Harvested,
    data: &TrainingData,
) -> Result<()> {
    let (trained, record) = (TrainedSae::load(finished)?, Record::read(finished)?);
    let sample = data.sample(trained.seed, N_CALIBRATION_ROWS)?;
    let calibrated = hsae::calibrated_anew(trained, sae, &sample);
    // Weights are dear: the old files stay until the new ones are written.
    publish(stage.replacement(&folder(sae), key)?, &calibrated, &record, harvested)?;
    stage.log.line(format!("{}: its thresholds found anew, its weights as they were", sae.name));
    Ok(())
}
