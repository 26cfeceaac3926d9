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
    match refusal(sae) {
        Some(reason) => bail!("{}: {reason}; set device: cpu", sae.name),
        None => Ok(()),
    }
}

/// Why the GPU trains no SAE like this one; None where it does.
pub fn refusal(sae: &Sae) -> Option<String> {
    if !matches!(sae.arch, Arch::Topk | Arch::Batchtopk | Arch::Matryoshka | Arch::Hiersae) {
        let arch = serde_json::to_value(sae.arch).unwrap_or_default();
        let arch = arch.as_str().unwrap_or("this one");
        return Some(format!("a GPU trains topk, batchtopk, matryoshka and hiersae, not {arch}"));
    }
    let is_pulled = |tree: artifact::config::Tree| tree.w_mi + tree.w_coverage + tree.w_geometry != 0.0;
    let prefixes = sae.prefixes().unwrap_or_default();
    let reasons = [
        (!matches!(sae.select(), Select::Topk | Select::Batchtopk), "on a GPU select is topk or batchtopk"),
        (sae.tree().is_some_and(is_pulled), "on a GPU tree.w_mi, w_coverage and w_geometry are 0"),
        (prefixes.reach != 1.0, "on a GPU prefixes.reach is 1"),
        (prefixes.sort_at.is_some(), "a GPU sorts no latents (prefixes.sort_at)"),
        (sae.resample.is_some(), "a GPU resamples no latents"),
    ];
    reasons.into_iter().find(|(is_refused, _)| *is_refused).map(|(_, reason)| reason.to_owned())
}

#[cfg(all(test, feature = "gpu"))]
pub(crate) mod tests;

#[cfg(test)]
mod refusals {
    use artifact::config::{Prefixes, Resample, Tree};

    use super::*;

    #[test]
    fn what_a_gpu_does_not_train_is_refused_with_its_name_and_the_reason() {
        let check = |sae: Sae, expected: Option<&str>| {
            let sae = Sae { name: "mine".into(), n_coarse: 2, ..sae };
            assert_eq!(refusal(&sae).as_deref(), expected);
            let error = check(&sae).map_err(|error| error.to_string());
            assert_eq!(error, expected.map_or(Ok(()), |reason| Err(format!("mine: {reason}; set device: cpu"))));
        };
        let reach = |reach| Some(Prefixes { reach, ..Prefixes::default() });
        let tree = |w_coverage| Some(Tree { w_coverage, ..Tree::default() });
        check(Sae::default(), None);
        check(Sae { prefixes: reach(1.0), tree: tree(0.0), ..Sae::default() }, None);
        check(Sae { prefixes: reach(0.7), ..Sae::default() }, Some("on a GPU prefixes.reach is 1"));
        let sorted = Some(Prefixes { sort_at: Some(0.4), ..Prefixes::default() });
        check(Sae { prefixes: sorted, ..Sae::default() }, Some("a GPU sorts no latents (prefixes.sort_at)"));
        check(Sae { tree: tree(0.1), ..Sae::default() }, Some("on a GPU tree.w_mi, w_coverage and w_geometry are 0"));
        check(Sae { select: Some(Select::Relu), ..Sae::default() }, Some("on a GPU select is topk or batchtopk"));
        check(Sae { resample: Some(Resample::default()), ..Sae::default() }, Some("a GPU resamples no latents"));
        check(
            Sae { arch: Arch::MatchingPursuit, ..Sae::default() },
            Some("a GPU trains topk, batchtopk, matryoshka and hiersae, not matching-pursuit"),
        );
    }
}
