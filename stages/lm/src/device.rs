//! Which device tensors live on.

use burn::tensor::Device;

/// The CPU, by burn's flex backend: where language models run, whatever the configuration says of training.
pub fn cpu() -> Device {
    Device::flex()
}

/// Whether tensors on this device are plain memory of this process.
pub(crate) fn is_cpu(device: &Device) -> bool {
    *device == cpu()
}
