//! A folder that `tests/reference/lm_families.py` made, at any size: how far each hook and the logits lie off what transformers
//! found, as a share of their norm. Ends with 1 where that is above 2e-5.
//!
//!     cargo run --release --example agree -- FOLDER

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use safetensors::{Dtype, SafeTensors};

const TOLERANCE: f64 = 2e-5;

fn main() -> Result<ExitCode> {
    let folder = PathBuf::from(std::env::args().nth(1).context("usage: agree FOLDER")?);
    let bytes = std::fs::read(folder.join("expected.safetensors")).context("expected.safetensors")?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let words = |name: &str| anyhow::Ok(tensors.tensor(name)?.data().as_chunks::<4>().0.to_vec());
    let tokens: Vec<u32> = words("tokens")?.into_iter().map(u32::from_le_bytes).collect();
    let mut expected = BTreeMap::new();
    for (name, _) in tensors.iter().filter(|(_, view)| view.dtype() == Dtype::F32) {
        let values: Vec<f32> = words(name)?.into_iter().map(f32::from_le_bytes).collect();
        expected.insert(name.to_owned(), values);
    }

    let model = lm::LanguageModel::open(&folder, &lm::cpu())?;
    let mut worst = 0.0f64;
    let mut compare = |name: &str, found: &[f32], expected: &[f32]| {
        let norm = expected.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>().sqrt();
        let off = found.iter().zip(expected).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>().sqrt();
        // NaN counts as the worst.
        worst = if off / norm <= worst { worst } else { off / norm };
        println!("{name:<28} {:.1e}", off / norm);
    };
    for (name, values) in expected.iter().filter(|(name, _)| name.starts_with("blocks.")) {
        compare(name, &model.activations(&tokens, tokens.len(), name.parse()?)?, values);
    }
    let logits = model.unembed(model.hidden(&tokens, tokens.len())?);
    let logits: Vec<f32> = logits.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
    compare("logits", &logits, &expected["logits"]);
    println!("the worst is {worst:.1e} of its norm");
    Ok(if worst <= TOLERANCE { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
