//! Every kernel against naive code, and whole trainings against the CPU's. They run on the GPU that there is: CUDA where it
//! is compiled in and found, else what Vulkan offers, software included.

mod arithmetic;
mod selection;
mod training;

use cubecl::client::Client;
use rand::RngExt;

use super::Gpu;
use super::buffers::{Buffer, read_all, read_f32, to_u32};

/// Rows, latents and d_model that fill no block of any kernel.
pub(super) const ODD: (usize, usize, usize) = (33, 301, 7);

pub(crate) fn gpu() -> Gpu {
    Gpu::cuda()
        .or_else(|_| Gpu::wgpu())
        .expect("these tests need a GPU, or software Vulkan (Debian: mesa-vulkan-drivers)")
}

fn random(stream: u64, n: usize) -> Vec<f32> {
    let mut rng = artifact::random::stream(stream, "test/gpu", 0, 0);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn read_u32(client: &Client, buffer: &Buffer<u32>) -> Vec<u32> {
    let [bytes] = read_all(client, [&buffer.handle]).unwrap();
    to_u32(&bytes, buffer.len)
}

/// Largest difference, relative to the largest value.
fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-12, |largest: f64, value| largest.max(value.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(difference <= tolerance * largest, "{what}[{i}]: {found}, expected {expected}");
    }
}
