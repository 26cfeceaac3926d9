//! The training from its start, or from its checkpoint, to the best weights.

use anyhow::{Result, ensure};
use artifact::config::Pretrain;
use artifact::stage::{Stage, Task};
use artifact::tables::PretrainRow;
use gpt::checkpoint::{self, Checkpoint};
use gpt::{AdamW, DropoutOf, Schedule, Shape, State, Trainer};
use serde_json::json;

use crate::corpus::Corpus;

/// Contexts that are measured together.
const CONTEXTS_PER_LOSS: usize = 64;

/// What a training comes to.
pub(crate) struct Trained {
    pub(crate) shape: Shape,
    /// Of the lowest validation loss during training.
    pub(crate) weights: Vec<f32>,
    pub(crate) curve: Vec<PretrainRow>,
    /// The steps after which these weights stood.
    pub(crate) best_step: u64,
    /// Of these weights on all of the validation text: mean per token, in nats.
    pub(crate) validation_loss: f64,
}

/// Errors: the loss is not finite, a checkpoint is damaged or cannot be written.
pub(crate) fn train(stage: &Stage, task: &Task, config: &Pretrain, corpus: &Corpus) -> Result<Trained> {
    let shape = Shape {
        n_layers: config.n_layers,
        n_heads: config.n_heads,
        d_model: config.d_model,
        context_length: config.context_length,
        n_vocab: corpus.vocabulary.n_tokens(),
    };
    let mut training = Training::start(stage, config, corpus, shape)?;
    let (folder, key) = (task.checkpoint_folder(), task.key_digest());
    let resumed = checkpoint::load(&folder, &key, shape.n_parameters(), |checkpoint| training.resume(checkpoint))?;
    if resumed.is_some() {
        stage.log.line(format!("going on from step {} of {}", training.step, config.n_steps));
    }
    let n_tokens = |n_steps: u64| n_steps * (config.batch_size * config.context_length) as u64;
    let first = training.step;
    let mut progress = stage.log.progress(n_tokens(config.n_steps - first), "tokens");
    while training.step < config.n_steps {
        training.advance()?;
        progress.set(n_tokens(training.step - first), || training.told());
        let is_due = config.checkpoint_every > 0 && training.step.is_multiple_of(config.checkpoint_every);
        if is_due && training.step < config.n_steps {
            checkpoint::save(&folder, &key, &training.checkpoint()?)?;
        }
    }
    progress.finish(n_tokens(config.n_steps - first));
    training.finish()
}

struct Training<'a> {
    stage: &'a Stage,
    config: &'a Pretrain,
    corpus: &'a Corpus,
    shape: Shape,
    schedule: Schedule,
    trainer: Trainer,
    /// Steps done.
    step: u64,
    /// Losses since the last row of the curve.
    losses: Vec<f64>,
    curve: Vec<PretrainRow>,
    best: Vec<f32>,
    best_loss: Option<f64>,
    best_step: u64,
}

impl<'a> Training<'a> {
    fn start(stage: &'a Stage, config: &'a Pretrain, corpus: &'a Corpus, shape: Shape) -> Result<Self> {
        let adam = AdamW {
            beta1: config.adam_beta1 as f32,
            beta2: config.adam_beta2 as f32,
            weight_decay: config.weight_decay as f32,
            max_grad_norm: config.max_grad_norm,
        };
        let &Pretrain { lr, lr_min, warmup_steps, n_steps, .. } = config;
        let weights = gpt::initial(&shape, stage.pipeline.seed);
        let device = if stage.device == crate::GPU { Some(gpt::cuda()?) } else { None };
        Ok(Self {
            stage,
            config,
            corpus,
            shape,
            schedule: Schedule { lr, lr_min, warmup_steps, n_steps },
            trainer: Trainer::new(shape, adam, State::new(weights.clone()), device.as_ref(), config.products),
            step: 0,
            losses: Vec::new(),
            curve: Vec::new(),
            best: weights,
            best_loss: None,
            best_step: 0,
        })
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        let notes = json!({
            "losses": self.losses, "curve": self.curve, "best_loss": self.best_loss, "best_step": self.best_step,
        });
        Ok(Checkpoint { state: self.trainer.state()?.into_owned(), best: self.best.clone(), notes })
    }

    fn resume(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let Checkpoint { state, best, notes } = checkpoint;
        ensure!(state.step < self.config.n_steps, "it stands at step {} of {}", state.step, self.config.n_steps);
        self.step = state.step;
        self.trainer.restore(state);
        self.best = best;
        self.losses = serde_json::from_value(notes["losses"].clone())?;
        self.curve = serde_json::from_value(notes["curve"].clone())?;
        self.best_loss = serde_json::from_value(notes["best_loss"].clone())?;
        self.best_step = serde_json::from_value(notes["best_step"].clone())?;
        Ok(())
    }

    /// One step, and what falls due after it.
    fn advance(&mut self) -> Result<()> {
        let (config, seed) = (self.config, self.stage.pipeline.seed);
        let (inputs, targets) = self.corpus.draw(config.batch_size, seed, self.step);
        let dropout = DropoutOf { probability: config.dropout as f32, seed, step: self.step };
        let lr = self.schedule.lr(self.step);
        let outcome = self.trainer.step((&inputs, &targets), lr, dropout)?;
        let grad_norm = outcome.sum_of_squares.sqrt();
        ensure!(
            outcome.loss.is_finite() && grad_norm.is_finite(),
            "the loss of step {} is {}, and its gradient's norm {grad_norm}: training has run away; set pretrain.lr, which is \
             {}, to less, or pretrain.warmup_steps, which is {}, to more",
            self.step,
            outcome.loss,
            config.lr,
            config.warmup_steps
        );
        self.step += 1;
        self.losses.push(outcome.loss);
        let is_last = self.step == config.n_steps;
        let is_evaluated = is_last || self.step.is_multiple_of(config.eval_every);
        if is_evaluated || self.step.is_multiple_of(config.log_every) {
            let validation_loss = if is_evaluated { Some(self.evaluate(config.eval_contexts)?) } else { None };
            self.curve.push(PretrainRow {
                step: self.step,
                tokens: self.step * (config.batch_size * config.context_length) as u64,
                train_loss: self.losses.iter().sum::<f64>() / self.losses.len() as f64,
                validation_loss,
                lr,
                grad_norm,
            });
            self.losses.clear();
            if let Some(loss) = validation_loss {
                self.compare(loss)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, loss: f64) -> Result<()> {
        ensure!(loss.is_finite(), "the validation loss after step {} is {loss}; set pretrain.lr to less", self.step);
        if self.best_loss.is_none_or(|best| loss < best) {
            (self.best_loss, self.best_step) = (Some(loss), self.step);
            self.best.copy_from_slice(&self.trainer.state()?.weights);
        }
        let message = format!("step {}: {}, best {:.4}", self.step, self.told(), self.best_loss.unwrap_or(loss));
        let values = json!({"step": self.step, "validation_loss": loss, "best_step": self.best_step});
        self.stage.log.event(&message, values);
        Ok(())
    }

    /// Mean loss over contexts of the validation text, in nats.
    fn evaluate(&mut self, n_contexts: usize) -> Result<f64> {
        let starts = self.corpus.validation_starts(n_contexts);
        let mut sum = 0.0;
        for some in starts.chunks(CONTEXTS_PER_LOSS) {
            let (inputs, targets) = self.corpus.batch(some.iter().copied());
            sum += self.trainer.loss((&inputs, &targets))? * some.len() as f64;
        }
        Ok(sum / starts.len() as f64)
    }

    /// How it stands.
    fn told(&self) -> String {
        let Some(row) = self.curve.last() else { return String::new() };
        let measured = self.curve.iter().rev().find_map(|row| row.validation_loss);
        let validation = measured.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
        format!("loss {:.4}{validation}, lr {:.1e}", row.train_loss, row.lr)
    }

    /// Measures the best weights on all of the validation text.
    fn finish(mut self) -> Result<Trained> {
        self.trainer.restore(State::new(self.best.clone()));
        let validation_loss = self.evaluate(usize::MAX)?;
        let Self { shape, best, curve, best_step, .. } = self;
        Ok(Trained { shape, weights: best, curve, best_step, validation_loss })
    }
}
