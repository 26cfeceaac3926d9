//! Memory of the device.

use std::marker::PhantomData;

use anyhow::{Error, Result, anyhow};
use cubecl::CubeElement;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use cubecl::server::Handle;

use super::kernels::cube::UNITS;

/// Cubes along x; more of them go along y, since WebGPU allows 65535.
const CUBES_PER_LINE: usize = 32_768;

/// Values on the device, contiguous.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    pub(super) handle: Handle,
    pub(super) len: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), len: self.len, of: PhantomData }
    }
}

impl<T: CubeElement> Buffer<T> {
    pub(super) fn new(client: &Client, values: &[T]) -> Self {
        Self { handle: client.create_from_slice(T::as_bytes(values)), len: values.len(), of: PhantomData }
    }

    /// Without a copy on the host.
    pub(super) fn of(client: &Client, values: Vec<T>) -> Self {
        let len = values.len();
        Self { handle: client.create(Bytes::from_elems(values)), len, of: PhantomData }
    }

    /// What it holds is arbitrary.
    pub(super) fn empty(client: &Client, len: usize) -> Self {
        // No device has a buffer without length.
        let len = len.max(1);
        Self { handle: client.empty(len * size_of::<T>()), len, of: PhantomData }
    }

    pub(super) fn arg(&self) -> BufferArg {
        // SAFETY: the buffer was made with this length.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len) }
    }
}

impl Buffer<f32> {
    pub(super) fn zeros(client: &Client, len: usize) -> Self {
        Self::of(client, vec![0.0; len.max(1)])
    }
}

/// Reads several buffers at once, when all that was launched before is done.
pub(super) fn read_all<const N: usize>(client: &Client, handles: [&Handle; N]) -> Result<[Vec<u8>; N]> {
    let bytes = client.read(handles.into_iter().cloned().collect()).map_err(|error| in_short(&error))?;
    let bytes: Vec<Vec<u8>> = bytes.into_iter().map(|bytes| bytes.to_vec()).collect();
    bytes.try_into().map_err(|_| anyhow!("the GPU gave back another number of buffers than were read"))
}

pub(super) fn read_f32(client: &Client, buffer: &Buffer<f32>) -> Result<Vec<f32>> {
    let [bytes] = read_all(client, [&buffer.handle])?;
    Ok(to_f32(&bytes, buffer.len))
}

pub(super) fn to_f32(bytes: &[u8], len: usize) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().take(len).map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

pub(super) fn to_u32(bytes: &[u8], len: usize) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().take(len).map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

/// A device's error without its backtrace.
pub(super) fn in_short(error: &dyn std::fmt::Display) -> Error {
    let text = error.to_string();
    let is_trace = |line: &&str| line.starts_with("Backtrace") || line.starts_with("[Source]");
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !is_trace(line)).collect();
    anyhow!("the GPU failed: {}", lines.join(" "))
}

/// As many cubes.
pub(super) fn cubes(n: usize) -> CubeCount {
    cubes_of_blocks(n, 1, 1)
}

/// As many along x and y, as often along z as `width` has blocks.
pub(super) fn cubes_of_blocks(n: usize, width: usize, block: usize) -> CubeCount {
    let n = n.max(1);
    let x = n.min(CUBES_PER_LINE);
    CubeCount::Static(x as u32, n.div_ceil(x) as u32, width.div_ceil(block).max(1) as u32)
}

/// Cubes that have a unit for each of `n`.
pub(super) fn cubes_of_units(n: usize) -> CubeCount {
    cubes(n.div_ceil(UNITS as usize))
}

pub(super) fn units() -> CubeDim {
    CubeDim::new_1d(UNITS)
}
