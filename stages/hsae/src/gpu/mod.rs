//! Training on a GPU: the encoder's product by a library, everything else by kernels of our own (`kernels`), which run on
//! CUDA (feature `cuda`) and, for tests without a GPU, on Vulkan (feature `wgpu`). Parameters, moments and gradients stay
//! on the device between steps; the schedule, the tree and all bookkeeping are the CPU trainer's (`trainer::pass::on_gpu`).
//!
//! Selection sees products of rounded operands where `train.gpu_precision` says so. What is selected is computed again in
//! f32, and so is all that follows.

#[cfg(feature = "gpu")]
mod buffers;
#[cfg(feature = "gpu")]
mod device;
#[cfg(feature = "gpu")]
mod dictionary;
#[cfg(feature = "gpu")]
mod engine;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod lists;
#[cfg(feature = "gpu")]
mod product;

#[cfg(not(feature = "gpu"))]
mod absent;

use anyhow::{Result, bail};
use artifact::config::{Arch, Sae, Select};

#[cfg(not(feature = "gpu"))]
pub use absent::Gpu;
#[cfg(not(feature = "gpu"))]
pub(crate) use absent::{Engine, guarded};
#[cfg(feature = "gpu")]
pub use device::Gpu;
#[cfg(feature = "gpu")]
pub(crate) use device::guarded;
#[cfg(feature = "gpu")]
pub(crate) use engine::{Engine, Plan};

/// Whether this build can use NVIDIA GPUs.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// Errors: the GPU trains no SAE like this one.
pub fn check(sae: &Sae) -> Result<()> {
    let name = &sae.name;
    let arch = serde_json::to_value(sae.arch)?;
    let arch = arch.as_str().unwrap_or_default();
    if !matches!(sae.arch, Arch::Topk | Arch::Batchtopk | Arch::Matryoshka | Arch::Hiersae) {
        bail!("{name}: a GPU trains topk, batchtopk, matryoshka and hiersae, not {arch}; set device: cpu");
    }
    if !matches!(sae.select(), Select::Topk | Select::Batchtopk) {
        bail!("{name}: on a GPU select is topk or batchtopk; set device: cpu");
    }
    let is_pulled = |tree: artifact::config::Tree| tree.w_mi + tree.w_coverage + tree.w_geometry != 0.0;
    if sae.tree().is_some_and(is_pulled) {
        bail!("{name}: on a GPU tree.w_mi, w_coverage and w_geometry are 0; set device: cpu");
    }
    if sae.prefixes().is_some_and(|prefixes| prefixes.reach != 1.0) {
        bail!("{name}: on a GPU prefixes.reach is 1; set device: cpu");
    }
    if sae.resample.is_some() {
        bail!("{name}: a GPU resamples no latents; set device: cpu");
    }
    Ok(())
}

#[cfg(all(test, feature = "gpu"))]
pub(crate) mod tests;
