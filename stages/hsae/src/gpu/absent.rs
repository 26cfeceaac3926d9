//! What stands in for the GPU in a build without one: nothing of it can exist.

use anyhow::{Result, bail};
use artifact::config::{Sae, Train};

use crate::adam::Adam;
use crate::weights::Weights;

/// A GPU that answers.
#[derive(Clone)]
pub enum Gpu {}

pub(crate) enum Engine {}

impl Gpu {
    /// Errors: always.
    pub fn cuda() -> Result<Self> {
        bail!("this build has no CUDA (cargo build --release --features train/cuda has)")
    }

    /// Errors: always.
    pub fn wgpu() -> Result<Self> {
        bail!("this build has no Vulkan (feature `wgpu` of the crate `hsae` has)")
    }

    pub fn name(&self) -> &str {
        match *self {}
    }
}

impl Engine {
    pub(crate) fn new(gpu: &Gpu, _: &Sae, _: &Train, _: &Weights, _: &Adam) -> Result<Self> {
        match *gpu {}
    }

    pub(crate) fn download(&self, _: &mut Weights, _: &mut Adam) -> Result<()> {
        match *self {}
    }
}

/// What cannot call a driver needs no guard.
pub(crate) fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    run()
}
