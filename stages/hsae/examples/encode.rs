//! Prints what an SAE of a run says of the first held-out rows, one line an entry: `row latent activation`. For comparing
//! with other implementations (tests/reference/saelens_roundtrip.py).
//!
//!     cargo build --release --workspace --example encode
//!     target/release/examples/encode RUN NAME N_ROWS

use std::io::Write;

use anyhow::{Context, Result};
use artifact::stage::Input;
use artifact::tables::activations::Activations;
use hsae::{Mode, Threshold, TrainedSae, View};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, run, name, n_rows] = args.as_slice() else { anyhow::bail!("usage: encode RUN NAME N_ROWS") };
    let run = std::path::Path::new(run);
    let n_rows: usize = n_rows.parse().context("N_ROWS is a number")?;
    let harvest = Input::open(run, "harvest")?;
    let first = harvest.paths("heldout/").into_iter().next().context("no held-out rows")?;
    let heldout = Activations::read(&[harvest.file(&first)?])?;
    let sae = TrainedSae::load(&Input::open(run, &format!("train/{name}"))?)?;
    let mode = Mode { view: View::Flat, threshold: Threshold::Native };
    let acts = sae.encode(&heldout.rows(0, n_rows.min(heldout.n_rows())), mode);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for i in 0..acts.n_rows() {
        let (idx, vals) = acts.row(i);
        for (j, value) in idx.iter().zip(vals) {
            writeln!(out, "{i} {j} {value}")?;
        }
    }
    Ok(())
}
