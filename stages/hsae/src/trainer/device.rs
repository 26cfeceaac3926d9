//! Where a training runs.

use anyhow::Result;

use super::Trainer;
use crate::gpu::{self, Engine, Gpu};

impl Trainer {
    /// From here on steps run on the GPU, from the state as it is now. What changes the state from outside comes before.
    ///
    /// Errors: the GPU trains no such SAE, or not at `train.gpu_precision`.
    pub fn move_to(&mut self, gpu: &Gpu) -> Result<()> {
        gpu::check(&self.config)?;
        let (weights, adam) = (&self.state.weights, &self.state.adam);
        self.engine = Some(gpu::guarded(|| Engine::new(gpu, &self.config, &self.train, weights, adam))?);
        Ok(())
    }

    /// Brings `state` up to date with the GPU, where there is one. Whoever reads weights or moments calls it first.
    ///
    /// Errors: the GPU failed.
    pub fn sync(&mut self) -> Result<()> {
        if let Some(engine) = &self.engine {
            gpu::guarded(|| engine.download(&mut self.state.weights, &mut self.state.adam))?;
            self.repack();
        }
        Ok(())
    }
}
