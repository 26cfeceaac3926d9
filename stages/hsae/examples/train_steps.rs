//! Trains one SAE for a few steps on activations from a file and prints a line of JSON: what `make bench` measures.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use artifact::config::{Arch, AuxK, Curriculum, Prefixes, Sae, Train, Tree};
use clap::Parser;
use hsae::Trainer;
use hsae::gpu::Gpu;
use serde_json::json;
use slices::{Mat, Onto, multiply_on_all_threads};

#[derive(Parser)]
struct Args {
    /// Raw little-endian f32, [n, d_model], normalised.
    #[arg(long)]
    activations: PathBuf,
    /// Raw little-endian f32, [d_sae, d_model]: the decoder's rows, and the encoder's.
    #[arg(long)]
    init: Option<PathBuf>,
    #[arg(long, default_value_t = 512)]
    d_model: usize,
    #[arg(long, default_value_t = 8192)]
    d_sae: usize,
    #[arg(long, default_value_t = 4096)]
    batch: usize,
    #[arg(long, default_value_t = 32)]
    k: usize,
    /// Measured steps.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Steps before them.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    #[arg(long, default_value = "topk")]
    arch: String,
    #[arg(long, default_value_t = 3e-4)]
    lr: f64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// cpu; cuda or wgpu where the feature of that name is compiled in.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// f32, tf32 or bf16: the operands of a GPU's product with the encoder.
    #[arg(long, default_value = "tf32")]
    gpu_precision: String,
}

fn main() -> Result<()> {
    artifact::stage::memory::keep_large_buffers();
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    let batch_len = args.batch * args.d_model;
    let mut rows = Rows::open(&args.activations, batch_len)?;
    let n_steps = args.warmup + args.steps;

    let mean = rows.mean(args.d_model)?;
    let mut trainer = Trainer::new(&sae(&args)?, &train(&args, n_steps)?, 0, &mean);
    if let Some(init) = &args.init {
        let weights = &mut trainer.state.weights;
        let mut file = File::open(init).with_context(|| format!("{}: cannot open", init.display()))?;
        let is_whole = file.metadata()?.len() as usize == 4 * weights.w_enc.len();
        ensure!(is_whole, "{}: not [d_sae, d_model]", init.display());
        read_f32(&mut file, &mut weights.w_enc)?;
        weights.w_dec.clone_from(&weights.w_enc);
        trainer.repack();
    }
    let gpu = match args.device.as_str() {
        "cpu" => None,
        "cuda" => Some(Gpu::cuda()?),
        "wgpu" => Some(Gpu::wgpu()?),
        other => bail!("--device {other}: not cpu, cuda or wgpu"),
    };
    if let Some(gpu) = &gpu {
        trainer.move_to(gpu)?;
    }
    let (mut step_ms, mut fvu, mut losses, mut l0) = (vec![], vec![], vec![], 0.0);
    let mut parts_ms: [Vec<f64>; 4] = Default::default();
    for step in 0..n_steps {
        let batch = rows.batch(step)?;
        let (start, before) = (Instant::now(), trainer.timing());
        let row = trainer.step(batch)?;
        if step >= args.warmup {
            step_ms.push(1e3 * start.elapsed().as_secs_f64());
            let after = trainer.timing();
            let parts = [
                after.select_s - before.select_s,
                after.tree_s - before.tree_s,
                after.gradients_s - before.gradients_s,
                after.adam_s - before.adam_s,
            ];
            parts_ms.iter_mut().zip(parts).for_each(|(all, part)| all.push(1e3 * part));
        }
        fvu.push(row.fvu);
        losses.push(row.loss);
        l0 = row.l0_coarse + row.l0_fine;
    }
    let peak_rss_mb = peak_rss_mb();
    let [select, tree, gradients, adam] = parts_ms.map(|part| median(&part));
    println!(
        "{}",
        json!({
            "arch": args.arch,
            "tokens_per_s": 1e3 * args.batch as f64 / median(&step_ms),
            "step_ms": step_ms,
            "parts_ms": {"select": select, "tree": tree, "gradients": gradients, "adam": adam},
            "fvu": fvu,
            "loss": losses,
            "l0": l0,
            "peak_rss_mb": peak_rss_mb,
            "peak_gflops": peak_gflops(),
            "path": gpu.as_ref().map_or(hsae::screen_path(), Gpu::name),
        })
    );
    Ok(())
}

fn sae(args: &Args) -> Result<Sae> {
    let arch: Arch = serde_json::from_value(json!(args.arch)).context("--arch")?;
    let n_coarse = if matches!(arch, Arch::Matryoshka | Arch::TreeSae | Arch::Hiersae) { args.d_sae / 8 } else { 0 };
    let is_hiersae = arch == Arch::Hiersae;
    Ok(Sae {
        name: args.arch.clone(),
        arch,
        n_coarse,
        n_fine: args.d_sae - n_coarse,
        k: args.k,
        aux_k: AuxK { weight: Some(0.0), ..AuxK::default() },
        // All that HierSAE ever does, in every measured step.
        curriculum: is_hiersae.then(|| Curriculum { coarse_until: 0.0, fine_full_at: 0.0, ..Curriculum::default() }),
        tree: is_hiersae.then(|| Tree { gate_from: 0.0, gate_to: 0.0, ..Tree::default() }),
        prefixes: is_hiersae.then(|| Prefixes { fixed: vec![n_coarse], ..Prefixes::default() }),
        ..Sae::default()
    })
}

fn train(args: &Args, n_steps: usize) -> Result<Train> {
    Ok(Train {
        gpu_precision: serde_json::from_value(json!(args.gpu_precision)).context("--gpu-precision")?,
        batch_size: args.batch,
        n_tokens: (n_steps * args.batch) as u64,
        lr: args.lr,
        lr_warmup: 0.0,
        lr_decay: 0.0,
        ..Train::default()
    })
}

/// Little-endian values as they stand, a little at a time, so that no second copy of them is in memory.
fn read_f32(file: &mut File, values: &mut [f32]) -> Result<()> {
    let mut bytes = vec![0u8; 1 << 16];
    for values in values.chunks_mut(bytes.len() / 4) {
        let bytes = &mut bytes[..4 * values.len()];
        file.read_exact(bytes)?;
        let read = bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        values.iter_mut().zip(read).for_each(|(value, read)| *value = read);
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Activations in a file, of which one batch at a time is in memory.
struct Rows {
    file: File,
    batch_len: usize,
    n_batches: usize,
}

impl Rows {
    fn open(path: &PathBuf, batch_len: usize) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
        let n_batches = file.metadata()?.len() as usize / (4 * batch_len);
        ensure!(n_batches > 0, "{}: fewer rows than one batch", path.display());
        Ok(Self { file, batch_len, n_batches })
    }

    /// Batches follow each other, and begin anew at the end of the file.
    fn batch(&mut self, step: usize) -> Result<Vec<f32>> {
        self.file.seek(SeekFrom::Start((step % self.n_batches * self.batch_len * 4) as u64))?;
        let mut batch = vec![0f32; self.batch_len];
        read_f32(&mut self.file, &mut batch)?;
        Ok(batch)
    }

    /// Of all rows, also those that fill no batch.
    fn mean(&mut self, d_model: usize) -> Result<Vec<f32>> {
        let (mut sum, mut n) = (vec![0f64; d_model], 0f64);
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(&self.file);
        let mut row = vec![0u8; 4 * d_model];
        while reader.read_exact(&mut row).is_ok() {
            let values = row.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(x));
            n += 1.0;
        }
        Ok(sum.iter().map(|sum| (sum / n) as f32).collect())
    }
}

/// The largest resident memory of this process so far, where the system tells.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// f32 products of large matrices on all threads: the best of a few.
fn peak_gflops() -> f64 {
    let n = 2048;
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0f32; n * n]);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        multiply_on_all_threads((n, n, n), 1.0, Mat::rows(&a, n), Mat::rows(&b, n), Onto::Nothing, &mut c, n);
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (n as f64).powi(3) / best / 1e9
}
