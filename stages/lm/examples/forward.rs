//! One forward pass for each line of standard input: `bench/forward.py` takes turns between this and other libraries.
//!
//!     cargo run --release --example forward -- MODEL HOOK CONTEXT TOKENS f32|bf16|int8
//!
//! MODEL is a `.gguf` file or a folder; TOKENS holds 32-bit little-endian ids of whole contexts. Of each pass it prints the
//! seconds, at the end of the first line also the mean square of what it found.

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use lm::Products;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, hook, context, tokens, products] = &args[..] else {
        anyhow::bail!("usage: forward MODEL HOOK CONTEXT TOKENS f32|bf16|int8")
    };
    let products: Products = products.parse()?;
    let (hook, context): (lm::Hook, usize) = (hook.parse()?, context.parse()?);
    let bytes = std::fs::read(tokens).with_context(|| tokens.clone())?;
    let tokens: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&four| u32::from_le_bytes(four)).collect();
    let model = lm::LanguageModel::open_up_to(Path::new(model), &lm::cpu(), hook, products)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let found = model.activations(&tokens, context, hook)?;
        let seconds = start.elapsed().as_secs_f64();
        let mean_square = found.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / found.len() as f64;
        println!("{seconds} {mean_square}");
    }
    Ok(())
}
