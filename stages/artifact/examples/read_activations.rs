//! Reads the activations in the Parquet files given, as training does, and says how long it took:
//! `read_activations PATH…` prints `{"rows": …, "bytes": …, "seconds": …}`, the bytes as they are in memory.

use std::time::Instant;

use anyhow::{Result, ensure};
use artifact::stage::memory;
use artifact::tables::activations::{Parts, Values};
use serde_json::json;

fn main() -> Result<()> {
    memory::keep_large_buffers();
    let paths: Vec<String> = std::env::args().skip(1).collect();
    ensure!(!paths.is_empty(), "usage: read_activations PATH…");
    let start = Instant::now();
    let parts = Parts::open(&paths)?;
    let mut values = Values::with_capacity(parts.dtype, parts.n_rows() * parts.d_model);
    for group in &parts.groups {
        parts.read(group, &mut values)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", json!({"rows": parts.n_rows(), "bytes": parts.bytes_of(parts.n_rows()), "seconds": seconds}));
    Ok(())
}
