//! Which device tensors live on.

use anyhow::{Result, bail};
use artifact::config::DeviceChoice;
use burn::tensor::Device;

/// The CPU, by burn's flex backend.
pub fn cpu() -> Device {
    Device::flex()
}

/// The device a configuration asks for. Errors: CUDA is asked for and this build has none.
///
/// `Device::default()` is of no use here: it answers CUDA even where there is no GPU.
pub fn default_device(choice: DeviceChoice) -> Result<Device> {
    match choice {
        // This build holds the CPU backend alone.
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Cuda => {
            bail!("device: cuda is asked for, but this build has no CUDA backend: set it to auto or cpu")
        }
    }
}

/// Whether tensors on this device are plain memory of this process.
pub(crate) fn is_cpu(device: &Device) -> bool {
    *device == cpu()
}
