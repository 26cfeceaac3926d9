//! Training steps for `bench/pretrain.py`: on each line on standard input, as many steps as there are batches; then seconds
//! and the last loss on standard output.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use artifact::config::Products;
use clap::Parser;
use gpt::{AdamW, DropoutOf, HostPass, Shape, State};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    n_layers: usize,
    #[arg(long)]
    n_heads: usize,
    #[arg(long)]
    d_model: usize,
    #[arg(long)]
    context: usize,
    #[arg(long)]
    n_vocab: usize,
    /// Contexts in a batch
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    dropout: f32,
    #[arg(long)]
    lr: f64,
    /// f32, bf16 or int8
    #[arg(long)]
    products: Products,
    /// The first weights, f32 in the order of `Shape::parameters`
    #[arg(long)]
    weights: PathBuf,
    /// Batches: contexts of context + 1 tokens, u32
    #[arg(long)]
    tokens: PathBuf,
}

fn main() -> Result<()> {
    artifact::stage::memory::keep_large_buffers();
    let args = Args::parse();
    let shape = Shape {
        n_layers: args.n_layers,
        n_heads: args.n_heads,
        d_model: args.d_model,
        context_length: args.context,
        n_vocab: args.n_vocab,
    };
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
    let weights: Vec<f32> = read(&args.weights)?.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let tokens: Vec<u32> = read(&args.tokens)?.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let batches: Vec<(Vec<u32>, Vec<u32>)> = tokens
        .chunks_exact(args.batch * (args.context + 1))
        .map(|batch| {
            let contexts = || batch.chunks_exact(args.context + 1);
            let part = |from: usize| contexts().flat_map(|row| &row[from..from + args.context]).copied().collect();
            (part(0), part(1))
        })
        .collect();
    let adam = AdamW { beta1: 0.9, beta2: 0.99, weight_decay: 0.1, max_grad_norm: 1.0 };
    let mut pass = HostPass::new(shape, args.context, args.products);
    let mut state = State::new(weights);
    for line in std::io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let mut loss = 0.0;
        for (inputs, targets) in &batches {
            let dropout = DropoutOf { probability: args.dropout, seed: 0, step: state.step };
            let outcome = pass.train(&state.weights, (inputs, targets), Some(dropout));
            adam.update(&shape, &mut state, pass.gradient(), args.lr, outcome.sum_of_squares.sqrt());
            loss = outcome.loss;
        }
        println!("{} {loss}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
