//! Harvest speed of a model, beside the f32 peak of the same threads in the same run.
//!
//!     cargo run --release -p lm --example speed -- MODEL.gguf [blocks.15.hook_resid_post [CONTEXT [CONTEXTS]]]
//!
//! Speeds are given by the clock and by CPU time (× threads): the second holds on a busy machine too.

use std::time::Instant;

use anyhow::{Context, Result};
use rayon::prelude::*;
use slices::{Mat, Onto, multiply};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("usage: speed MODEL.gguf [HOOK [CONTEXT [CONTEXTS]]]")?;
    let hook: lm::Hook = args.next().unwrap_or("blocks.15.hook_resid_post".to_owned()).parse()?;
    let context: usize = args.next().map_or(Ok(128), |n| n.parse())?;
    let n_contexts: usize = args.next().map_or(Ok(64), |n| n.parse())?;
    let n_threads = rayon::current_num_threads();

    let peak = peak_gflops(n_threads);
    println!("{n_threads} threads; f32 peak of gemm: {:.0} GFLOP/s by the clock, {:.0} by CPU time", peak.0, peak.1);

    let (start, cpu) = (Instant::now(), cpu_s());
    let model = lm::LanguageModel::open(path.as_ref(), &lm::cpu())?;
    println!("open: {:.2} s, {:.2} s of CPU", start.elapsed().as_secs_f64(), cpu_s() - cpu);

    let text = "The state of the union is measured in words, and every word is a choice between 12 others. ";
    let text = text.repeat(n_contexts * context / 15 + 1);
    let cpu = cpu_s();
    let ids = model.tokenizer().encode(&text)?.ids;
    println!("tokenizer: {:.0} tokens/s of CPU time", ids.len() as f64 / (cpu_s() - cpu));
    let mut tokens = Vec::new();
    for piece in ids.chunks_exact(context - 1).take(n_contexts) {
        tokens.push(model.tokenizer().separator());
        tokens.extend(piece);
    }
    let flops_per_token = flops_per_token(model.config(), hook, context);
    let (mut best, mut best_cpu) = (f64::MAX, f64::MAX);
    for _ in 0..4 {
        let (start, cpu) = (Instant::now(), cpu_s());
        let activations = model.activations(&tokens, context, hook)?;
        std::hint::black_box(activations);
        best = best.min(start.elapsed().as_secs_f64());
        best_cpu = best_cpu.min((cpu_s() - cpu) / n_threads as f64);
    }
    for (clock, seconds, peak) in [("clock", best, peak.0), ("CPU time", best_cpu, peak.1)] {
        let tokens_per_s = tokens.len() as f64 / seconds;
        let gflops = tokens_per_s * flops_per_token / 1e9;
        println!(
            "{hook}, context {context}: {tokens_per_s:.0} tokens/s by {clock}, {gflops:.0} GFLOP/s, {:.0} % of peak",
            100.0 * gflops / peak
        );
    }
    println!("memory: {:.0} MiB at most", max_rss_mib());
    Ok(())
}

/// Multiplications and additions of one token's way to the hook.
fn flops_per_token(config: &lm::ModelConfig, hook: lm::Hook, context: usize) -> f64 {
    let d_heads = (config.n_heads * config.d_head) as f64;
    let d_keys = (config.n_kv_heads * config.d_head) as f64;
    let d_model = config.d_model as f64;
    let attention = d_model * (2.0 * d_heads + 2.0 * d_keys) + d_heads * (context as f64 + 1.0);
    let n_matrices = if config.feed_forward.is_gated { 3.0 } else { 2.0 };
    let feed_forward = n_matrices * d_model * config.d_ffn as f64;
    let n_blocks = hook.block as f64
        + match hook.site {
            lm::Site::ResidPre => 0.0,
            lm::Site::AttnOut => attention / (attention + feed_forward),
            lm::Site::MlpOut | lm::Site::ResidPost => 1.0,
        };
    2.0 * n_blocks * (attention + feed_forward)
}

/// Best of a few large square products, one on each thread: GFLOP/s by the clock and by CPU time.
fn peak_gflops(n_threads: usize) -> (f64, f64) {
    const N: usize = 1536;
    let (a, b) = (vec![0.5_f32; N * N], vec![0.25_f32; N * N]);
    let mut outs = vec![vec![0.0_f32; N * N]; n_threads];
    let flops = 2.0 * (N * N * N * n_threads) as f64;
    let (mut best, mut best_cpu) = (f64::MAX, f64::MAX);
    for _ in 0..6 {
        let (start, cpu) = (Instant::now(), cpu_s());
        outs.par_iter_mut().for_each(|out| {
            multiply((N, N, N), 1.0, Mat::rows(&a, N), Mat::rows(&b, N), Onto::Nothing, out, N);
        });
        best = best.min(start.elapsed().as_secs_f64());
        best_cpu = best_cpu.min((cpu_s() - cpu) / n_threads as f64);
    }
    (flops / best / 1e9, flops / best_cpu / 1e9)
}

/// CPU seconds of this process.
fn cpu_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the struct it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn max_rss_mib() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the struct it is given, and zeros are a valid one.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_maxrss as f64 / 1024.0
}
