//! The command line that all stages share. There are no flags for single keys: a variant of a pipeline is a file.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

#[derive(Clone, Debug, Args)]
pub struct StageArgs {
    /// The pipeline to run
    #[arg(long, default_value = "pipeline.yaml")]
    pub config: PathBuf,
    /// The folder that holds the run's artifacts
    #[arg(long, default_value = "data/run")]
    pub run: PathBuf,
    /// Run even if the outputs are up to date
    #[arg(long)]
    pub force: bool,
    /// Only say whether the outputs are fresh, stale, missing or failed, and why
    #[arg(long)]
    pub status: bool,
    /// Print errors and nothing else
    #[arg(long)]
    pub quiet: bool,
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Do part I of N, counted from 0, where the stage's work can be split
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub n_shards: usize,
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (index, n_shards) = text.split_once('/').context("expected I/N, for example 0/4")?;
        let shard = Self { index: index.parse()?, n_shards: n_shards.parse()? };
        ensure!(shard.index < shard.n_shards, "shard {} of {}: counted from 0", shard.index, shard.n_shards);
        Ok(shard)
    }
}
