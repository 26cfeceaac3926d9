//! Rows a second, preset by preset: `planted-speed [--threads N] [--presets small,half,full]`.

use std::time::Instant;

use anyhow::{Result, bail};
use artifact::config::{Preset, Synthetic};
use clap::Parser;
use planted::{BLOCK_ROWS, Stream, World};
use rayon::prelude::*;

#[derive(Parser)]
struct Args {
    /// 0 for all processors.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, value_delimiter = ',', default_value = "small,half,full")]
    presets: Vec<String>,
    /// Rows that are timed.
    #[arg(long, default_value_t = 262_144)]
    rows: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new().num_threads(args.threads).build_global()?;
    println!("{} threads, {} rows", rayon::current_num_threads(), args.rows);
    for name in &args.presets {
        let preset = match name.as_str() {
            "small" => Preset::Small,
            "half" => Preset::Half,
            "full" => Preset::Full,
            _ => bail!("--presets: no preset {name}"),
        };
        for loose in [false, true] {
            measure(name, &Synthetic { preset, loose, ..Synthetic::default() }, args.rows);
        }
    }
    Ok(())
}

fn measure(name: &str, config: &Synthetic, n_rows: u64) {
    let start = Instant::now();
    let recipe = config.recipe();
    let world = World::plant(&recipe, 0);
    let planted = start.elapsed().as_secs_f64();

    let before = processor_time();
    let rows = Stream { seed: 0, purpose: "speed" };
    let n_rows = n_rows.next_multiple_of(16 * BLOCK_ROWS);
    let start = Instant::now();
    let blocks = (0..n_rows / BLOCK_ROWS).into_par_iter();
    let of_block = |block| {
        let firing = world.firing(rows, block);
        firing.rows().fold([0u64; 3], |[n, parents, alone], (features, _)| {
            let children: Vec<u32> = features.iter().filter_map(|&f| world.parent(f)).collect();
            let is_parent = |f: &&u32| world.has_children(**f);
            let n_parents = features.iter().filter(is_parent).count();
            let n_alone = features.iter().filter(is_parent).filter(|f| !children.contains(f)).count();
            [n + features.len() as u64, parents + n_parents as u64, alone + n_alone as u64]
        })
    };
    let [n_firings, n_parents, n_alone] =
        blocks.map(of_block).reduce(|| [0; 3], |a, b| std::array::from_fn(|i| a[i] + b[i]));
    let firing = start.elapsed().as_secs_f64();
    let of_firing = processor_time() - before;

    let batch_rows = 16 * BLOCK_ROWS;
    let mut batch = vec![0f32; batch_rows as usize * recipe.d_model];
    let start = Instant::now();
    for at in (0..n_rows).step_by(batch_rows as usize) {
        world.fill(rows, at..at + batch_rows, 1.0, &mut batch);
    }
    let both = start.elapsed().as_secs_f64();
    let of_both = processor_time() - before - of_firing;

    let l0 = n_firings as f64 / n_rows as f64;
    println!(
        "{name}{}: planted in {planted:.1} s; {:.0} rows/s, {:.0} without activations; a processor's microseconds a row: \
         {:.2}, {:.2} without; L0 {l0:.2}; P(no child | parent) {:.3}",
        if config.loose { " loose" } else { "" },
        n_rows as f64 / both,
        n_rows as f64 / firing,
        1e6 * of_both / n_rows as f64,
        1e6 * of_firing / n_rows as f64,
        n_alone as f64 / n_parents.max(1) as f64,
    );
}

/// Seconds that processors have worked for this program, however many others they also serve.
fn processor_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable, and the clock exists wherever glibc or musl does.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    if rc == 0 { time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64 } else { f64::NAN }
}
