//! Which device tensors live on.

use anyhow::Result;
use artifact::config::DeviceChoice;
use burn::tensor::Device;

/// The CPU, by burn's flex backend.
pub fn cpu() -> Device {
    Device::flex()
}

/// The device on which a language model runs: the CPU, whatever the configuration says of training.
pub fn default_device(_: DeviceChoice) -> Result<Device> {
    Ok(cpu())
}

/// Whether tensors on this device are plain memory of this process.
pub(crate) fn is_cpu(device: &Device) -> bool {
    *device == cpu()
}
