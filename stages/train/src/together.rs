//! SAEs that train in lock-step on the same batches. Each has its own state, checkpoint, curve and publication, and
//! becomes what it would have become alone.

use anyhow::{Context, Error, Result};
use artifact::config::Sae;
use artifact::stage::{Progress, Stage, Task};
use artifact::tables::CurveRow;
use hsae::export::Record;
use hsae::gpu::{self, Gpu};
use hsae::{Recount, TrainedSae, Trainer, TreeLearner, checkpoint};
use serde_json::json;

use crate::batches::{Batches, Wanted, with_batches};
use crate::data::{Harvested, TrainingData};
use crate::{CALIBRATION, GPU, device, publish};

/// Training rows on which the thresholds at inference are set.
pub(crate) const N_CALIBRATION_ROWS: usize = 16_384;

/// One SAE in training.
struct Member<'a> {
    sae: &'a Sae,
    task: Task,
    trainer: Trainer,
    curve: Vec<CurveRow>,
}

/// One that is trained.
struct Finished<'a> {
    sae: &'a Sae,
    task: Task,
    trained: TrainedSae,
    tree: Option<TreeLearner>,
    recount: Option<Recount>,
    curve: Vec<CurveRow>,
}

/// SAEs that failed do not stop the others; the first failure is the stage's error at its end.
#[derive(Default)]
pub(crate) struct Failures {
    first: Option<Error>,
}

impl Failures {
    pub(crate) fn into_result(self) -> Result<()> {
        self.first.map_or(Ok(()), Err)
    }

    pub(crate) fn note(&mut self, stage: &Stage, sae: &Sae, error: Error) {
        stage.log.event(&format!("failed, other SAEs go on: {error:#}"), json!({"sae": sae.name}));
        self.first.get_or_insert(error);
    }
}

/// Trains SAEs of one seed and publishes each.
///
/// Errors: the data cannot be read. What befalls a single SAE goes to `failures`.
pub(crate) fn train_together(
    stage: &Stage,
    seed: u64,
    started: Vec<(&Sae, Task)>,
    harvested: &Harvested,
    data: &TrainingData,
    failures: &mut Failures,
) -> Result<()> {
    let mut members = Vec::with_capacity(started.len());
    for (sae, task) in started {
        match or_error(sae, || Member::resume(stage, seed, sae, task, harvested)) {
            Ok(member) => members.push(member),
            Err(error) => failures.note(stage, sae, error),
        }
    }
    train(stage, seed, &mut members, data, failures)?;
    if members.is_empty() {
        return Ok(());
    }
    let sample = data.sample(seed, N_CALIBRATION_ROWS)?;
    let mut counting = Vec::new();
    for member in members {
        let sae = member.sae;
        let published = or_error(sae, || {
            let finished = member.finish(stage, harvested, &sample)?;
            // Nobody waits for others to be counted.
            if finished.recount.is_some() {
                Ok(Some(finished))
            } else {
                finished.publish(harvested, &sample).map(|()| None)
            }
        });
        match published {
            Ok(finished) => counting.extend(finished),
            Err(error) => failures.note(stage, sae, error),
        }
    }
    recount(stage, seed, &mut counting, harvested, data, failures)?;
    for finished in counting {
        let sae = finished.sae;
        let published = or_error(sae, || finished.publish(harvested, &sample));
        published.unwrap_or_else(|error| failures.note(stage, sae, error));
    }
    Ok(())
}

/// Trains to the end, from the step of the one that is furthest behind. Members that fail leave.
fn train(
    stage: &Stage,
    seed: u64,
    members: &mut Vec<Member>,
    data: &TrainingData,
    failures: &mut Failures,
) -> Result<()> {
    let batch_size = stage.pipeline.train.batch_size;
    let n_steps = stage.pipeline.train.n_tokens / batch_size as u64;
    let Some(first) = members.iter().map(|member| member.trainer.state.step).min() else { return Ok(()) };
    let n_tokens = |n_steps: u64| n_steps * batch_size as u64;
    let n_left: u64 = members.iter().map(|member| n_tokens(n_steps - member.trainer.state.step)).sum();
    let mut progress = stage.log.progress(n_left, "tokens");
    let mut n_done = 0;
    let wanted = Wanted { seed, steps: first..n_steps, batch_size };
    let waited = with_batches(data, wanted, |batches| {
        for step in first..n_steps {
            n_done += n_tokens(step_all(stage, step, members, batches, &mut progress, n_done, failures)?);
            if members.is_empty() {
                break;
            }
        }
        Ok::<_, Error>((batches.waited_first, batches.waited))
    });
    let (first, others) = waited?;
    progress.finish(n_done);
    let (first, others) = (first.as_secs_f64(), others.as_secs_f64());
    stage.log.event(
        &format!("waited {first:.2} s for the first batch, {others:.2} s for all others"),
        json!({"waited_first_s": first, "waited_s": others}),
    );
    Ok(())
}

/// Shows finished SAEs rows for a last choice of parents: of drawn ones those that come next, of stored ones those of the
/// next epoch, none twice. Members that fail leave.
fn recount(
    stage: &Stage,
    seed: u64,
    counting: &mut Vec<Finished>,
    harvested: &Harvested,
    data: &TrainingData,
    failures: &mut Failures,
) -> Result<()> {
    let batch_size = stage.pipeline.train.batch_size as u64;
    let n_done = stage.pipeline.train.n_tokens / batch_size;
    let (first, most) = match data.n_rows() {
        Some(n_rows) => {
            let epoch = (n_done * batch_size).div_ceil(n_rows) * n_rows;
            let first = epoch.div_ceil(batch_size);
            // A split of less than a batch has to do with one.
            (first, ((epoch + n_rows) / batch_size).saturating_sub(first).max(1))
        }
        None => (n_done, u64::MAX),
    };
    let n_steps_of = |sae: &Sae| sae.tree().map_or(0, |tree| tree.recount_rows.div_ceil(batch_size)).min(most);
    let Some(n_steps) = counting.iter().map(|one| n_steps_of(one.sae)).max() else { return Ok(()) };
    let wanted = Wanted { seed, steps: first..first + n_steps, batch_size: batch_size as usize };
    with_batches(data, wanted, |batches| {
        for step in 0..n_steps {
            let mut rows = batches.next()?;
            // As on disk.
            rows.iter_mut().for_each(|value| *value /= harvested.scale);
            let mut failed = Vec::new();
            for (i, one) in counting.iter_mut().enumerate().filter(|(_, one)| step < n_steps_of(one.sae)) {
                let Finished { sae, trained, recount: Some(recount), .. } = one else { continue };
                let observed = or_error(sae, || {
                    recount.observe(trained, &rows);
                    Ok(())
                });
                failed.extend(observed.err().map(|error| (i, error)));
            }
            for (i, error) in failed.into_iter().rev() {
                failures.note(stage, counting.remove(i).sae, error);
            }
        }
        Ok(())
    })
}

/// One step of every member that has not done it before; returns how many there were.
fn step_all(
    stage: &Stage,
    step: u64,
    members: &mut Vec<Member>,
    batches: &mut Batches,
    progress: &mut Progress,
    n_done: u64,
    failures: &mut Failures,
) -> Result<u64> {
    let mut batch = batches.next()?;
    let last = members.iter().rposition(|member| member.trainer.state.step == step);
    let mut n_stepped = 0;
    let mut failed = Vec::new();
    for (i, member) in members.iter_mut().enumerate() {
        if member.trainer.state.step != step {
            continue; // resumed from a later checkpoint than others
        }
        let own = if Some(i) == last { std::mem::take(&mut batch) } else { batch.clone() };
        let batch_size = member.trainer.train.batch_size as u64;
        match or_error(member.sae, || member.step(own)) {
            Ok(row) => {
                n_stepped += 1;
                progress.set(n_done + n_stepped * batch_size, || summary(member.sae, &row));
            }
            Err(error) => failed.push((i, error)),
        }
    }
    for (i, error) in failed.into_iter().rev() {
        failures.note(stage, members.remove(i).sae, error);
    }
    Ok(n_stepped)
}

impl<'a> Member<'a> {
    /// From its checkpoint, or from the start.
    fn resume(stage: &Stage, seed: u64, sae: &'a Sae, task: Task, harvested: &Harvested) -> Result<Self> {
        let mut trainer = Trainer::new(sae, &stage.pipeline.train, seed, &harvested.mean);
        let curve = checkpoint::resume(&task.checkpoint_folder(), &training_key(&task), &mut trainer)?;
        if trainer.state.step > 0 {
            stage.log.line(format!("{}: going on from step {}", sae.name, trainer.state.step));
        }
        if device(stage, sae) == GPU {
            let gpu = Gpu::cuda()?;
            trainer.move_to(&gpu)?;
            stage.log.line(format!("{}: training on {}", sae.name, gpu.name()));
        } else if stage.device == GPU
            && let Some(reason) = gpu::refusal(sae)
        {
            stage.log.line(format!("{}: training on the CPU: {reason}", sae.name));
        }
        Ok(Self { sae, task, trainer, curve: curve.unwrap_or_default() })
    }

    /// One step, and what is due after it.
    fn step(&mut self, batch: Vec<f32>) -> Result<CurveRow> {
        let row = self.trainer.step(batch)?;
        let (train, is_done) = (&self.trainer.train, self.trainer.is_done());
        let is_checkpoint = train.checkpoint_every > 0 && row.step.is_multiple_of(train.checkpoint_every);
        if row.step.is_multiple_of(train.log_every) || is_done {
            self.curve.push(row.clone());
        }
        if is_checkpoint && !is_done {
            let (folder, key) = (self.task.checkpoint_folder(), training_key(&self.task));
            self.trainer.sync()?;
            checkpoint::save(&folder, &key, &self.trainer, &self.curve)?;
        }
        Ok(row)
    }

    fn finish(mut self, stage: &Stage, harvested: &Harvested, sample: &[f32]) -> Result<Finished<'a>> {
        self.trainer.sync()?;
        self.trainer.state.weights.check_finite().with_context(|| self.sae.name.clone())?;
        if let Some(row) = self.curve.last() {
            let values = json!({"sae": self.sae.name, "parts_s": self.trainer.timing()});
            stage.log.event(&summary(self.sae, row), values);
        }
        let (trained, recount) = hsae::finish_but_for_tree(&self.trainer, harvested.scale, sample);
        let Self { sae, task, trainer, curve } = self;
        Ok(Finished { sae, task, trained, tree: trainer.state.tree, recount, curve })
    }
}

impl Finished<'_> {
    fn publish(mut self, harvested: &Harvested, sample: &[f32]) -> Result<()> {
        let tree = match self.recount {
            Some(recount) => Some(recount.finish(&mut self.trained, sample)),
            None => self.tree,
        };
        let record = Record::new(&self.trained, tree.as_ref(), self.curve);
        publish(self.task, &self.trained, &record, harvested)
    }
}

/// Thresholds are found when training is over, and no checkpoint depends on what is asked of them.
fn training_key(task: &Task) -> String {
    task.key_digest_without(CALIBRATION)
}

/// What is done for one SAE ends in an error even where it panics, so that the others of its group go on. An SAE that failed
/// is dropped whole: nothing half-changed is seen again.
pub(crate) fn or_error<T>(sae: &Sae, run: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Error::msg(format!("{}: a bug ended its training; stderr has what it was", sae.name))))
}

fn summary(sae: &Sae, row: &CurveRow) -> String {
    format!(
        "{} loss {:.3} (mse {:.3}) fvu {:.4} l0 {:.1} + {:.1} dead {:.1} % edges {}",
        sae.name,
        row.loss,
        row.mse,
        row.fvu,
        row.l0_coarse,
        row.l0_fine,
        100.0 * row.dead,
        row.n_edges
    )
}
