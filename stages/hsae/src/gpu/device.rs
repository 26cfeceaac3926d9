//! GPUs that this machine has.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use cubecl::Device;
use cubecl::client::Client;
use cubecl::device::{DeviceUnavailable, WgpuDeviceKind};

use super::buffers::{Buffer, read_f32};
use super::dictionary::sum_rows;

/// A GPU that answers.
#[derive(Clone)]
pub struct Gpu {
    client: Client,
    name: String,
}

impl Gpu {
    /// The first GPU that CUDA reports. Errors: there is none, or no driver, or CUDA is not compiled in.
    pub fn cuda() -> Result<Self> {
        open("CUDA", || Device::cuda(0))
    }

    /// What Vulkan, Metal or DirectX runs on, be it software: for tests of the kernels. Errors: as above.
    pub fn wgpu() -> Result<Self> {
        open("Vulkan", || Device::wgpu(WgpuDeviceKind::DefaultDevice))
    }

    /// As its driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

/// Takes a device into use, and has it add two numbers.
fn open(what: &str, find: impl FnOnce() -> Result<Device, DeviceUnavailable>) -> Result<Gpu> {
    let opened = silently(|| {
        let client = find().map(|device| device.client())?;
        let sum = read_f32(&client, &sum_rows(&client, &Buffer::new(&client, &[1.0, 2.0]), None, 2, 1));
        Ok((client, sum))
    });
    let (client, sum) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(DeviceUnavailable::NotLinked(_))) => bail!("this build has no {what}"),
        Ok(Err(DeviceUnavailable::NoSuchDevice { .. })) => bail!("there is no GPU that {what} can use"),
        Err(panic) => bail!("{what} does not start: {}", message(panic.as_ref())),
    };
    let sum = sum?;
    ensure!(sum == [3.0], "the GPU that {what} offers says that 1 + 2 is {sum:?}");
    let name = client.properties().identity.name.clone();
    Ok(Gpu { client, name })
}

/// Catches panics, of whichever thread, that are an answer: they are not shown as bugs of ours.
fn silently<T>(run: impl FnOnce() -> T) -> std::thread::Result<T> {
    /// Two that exchange hooks at a time would leave the silent one behind.
    static EXCHANGED: Mutex<()> = Mutex::new(());
    let _exchanged = EXCHANGED.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let result = catch_unwind(AssertUnwindSafe(run));
    std::panic::set_hook(hook);
    result
}

/// Tries what a driver may refuse: `guarded`, without a word on stderr.
pub(super) fn quietly<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    silently(run).unwrap_or_else(|panic| bail!("the GPU failed: {}", message(panic.as_ref())))
}

/// Runs what calls a driver: where one is broken, or memory runs out, the libraries panic rather than answer.
pub(crate) fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| bail!("the GPU failed: {}", message(panic.as_ref())))
}

/// The first line of what a panic said that says something.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let said = text.and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()));
    said.unwrap_or("no reason given").to_owned()
}
