//! The stage protocol: one command line, verified inputs, locked and atomically published outputs.
//!
//! A stage's `main.rs` reads as a table of contents:
//!
//! ```no_run
//! use artifact::stage::{Stage, main_of};
//!
//! fn main() -> std::process::ExitCode {
//!     main_of("report", "Compares the SAEs of a run", run)
//! }
//!
//! fn run(stage: &Stage) -> anyhow::Result<()> {
//!     let recover = stage.input("recover")?;
//!     let config = serde_json::json!({"report": stage.pipeline.report});
//!     let Some(mut task) = stage.task("report", 1, config, &[&recover])? else { return Ok(()) };
//!     task.write_bytes("report.md", b"# Report\n")?;
//!     task.finish()?;
//!     Ok(())
//! }
//! ```

mod args;
mod input;
mod lock;
mod log;
mod manifest;
pub mod memory;
mod replace;
mod source;
mod task;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, FromArgMatches};
use serde_json::{Value, json};

pub use args::{LogFormat, Shard, StageArgs};
pub use input::Input;
pub use log::{Log, Progress};
pub use manifest::{FILE_NAME as MANIFEST, Key, Manifest, Output};
pub use source::{ACTIVATIONS, ModelOrigin, SOURCES, Source, VADER};
pub use task::{OpenOutput, Task};

use crate::config::{self, DeviceChoice, Pipeline};
use crate::guarded::guarded;

/// A stage that has been started: its pipeline, its run folder, its log.
pub struct Stage {
    pub name: &'static str,
    pub pipeline: Pipeline,
    /// The folder that holds the run's artifacts.
    pub run: PathBuf,
    pub args: StageArgs,
    pub log: Log,
    /// `cpu` or `cuda`: what keys say of where sums were made.
    pub device: &'static str,
}

/// The whole of a stage's `main`: parses the command line, loads the pipeline, runs, and turns an error into one line
/// and exit code 1.
pub fn main_of(name: &'static str, about: &'static str, run: impl FnOnce(&Stage) -> Result<()>) -> ExitCode {
    main_with(name, about, None, run)
}

/// How a stage comes to a GPU.
#[derive(Clone, Copy)]
pub struct GpuSupport {
    /// Whether this build has CUDA.
    pub is_compiled_in: bool,
    /// Errors: why there is no GPU.
    pub find: fn() -> Result<()>,
}

/// The same for a stage that can use a GPU.
pub fn main_of_with_gpu(
    name: &'static str,
    about: &'static str,
    gpu: GpuSupport,
    run: impl FnOnce(&Stage) -> Result<()>,
) -> ExitCode {
    main_with(name, about, Some(gpu), run)
}

fn main_with(
    name: &'static str,
    about: &'static str,
    gpu: Option<GpuSupport>,
    run: impl FnOnce(&Stage) -> Result<()>,
) -> ExitCode {
    memory::keep_large_buffers();
    let command = Command::new(name).about(about).version(env!("CARGO_PKG_VERSION"));
    let command = <StageArgs as clap::Args>::augment_args(command);
    let matches = command.get_matches();
    let args = StageArgs::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let asks_for_status = args.status;
    explain_panics(name);
    let result = start(name, args, gpu).and_then(|stage| {
        let result = run(&stage);
        if !stage.args.status {
            stage.note_outcome(result.as_ref().err());
        }
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // What lies upstream is not there yet: no failure of a question.
        Err(error) if asks_for_status => {
            println!("{name:<24} waiting: {error:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{name}: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(name: &'static str, args: StageArgs, gpu: Option<GpuSupport>) -> Result<Stage> {
    let pipeline = config::load(&args.config)?;
    anyhow::ensure!(
        name == "report" || !pipeline.only_compares(),
        "{}: nothing to do for {name}: this pipeline only compares the runs in report.beside",
        args.config.display()
    );
    let log = Log::new(name, args.log_format, args.quiet);
    if !args.status {
        log.to_folder(&args.run.join("log"))?;
    }
    let device = device(pipeline.device, gpu, args.status, &log).with_context(|| args.config.display().to_string())?;
    Ok(Stage { name, run: args.run.clone(), pipeline, args, log, device })
}

/// A stage that has no use for a GPU runs on the CPU. A question for the status fails for no want of one.
/// Errors: CUDA is asked for, and there is none.
fn device(choice: DeviceChoice, gpu: Option<GpuSupport>, is_status: bool, log: &Log) -> Result<&'static str> {
    let Some(gpu) = gpu else { return Ok("cpu") };
    match choice {
        DeviceChoice::Cpu => Ok("cpu"),
        DeviceChoice::Auto if !gpu.is_compiled_in => Ok("cpu"),
        DeviceChoice::Auto => match (gpu.find)() {
            Ok(()) => Ok("cuda"),
            Err(error) => {
                if !is_status {
                    log.line(format!("no GPU: {error:#}; training on the CPU"));
                }
                Ok("cpu")
            }
        },
        // What keys say does not depend on whether there is one.
        DeviceChoice::Cuda if is_status => Ok("cuda"),
        DeviceChoice::Cuda => match (gpu.find)() {
            Ok(()) => Ok("cuda"),
            Err(error) => anyhow::bail!("device = cuda, but {error:#}; set device: cpu"),
        },
    }
}

impl Stage {
    /// A folder that another task has published.
    pub fn input(&self, folder: &str) -> Result<Input> {
        Input::open(&self.run, folder)
    }

    /// Starts making `folder` under the run. `config` is the part of the pipeline that the outputs depend on.
    ///
    /// `None` when there is nothing to do: the outputs are up to date, or only the status was asked for.
    pub fn task(&self, folder: &str, recipe: u32, config: Value, inputs: &[&Input]) -> Result<Option<Task>> {
        self.task_with(folder, recipe, config, inputs, self.pipeline.seed, self.device)
    }

    /// The same, for a task with a seed and a device of its own.
    pub fn task_with(
        &self,
        folder: &str,
        recipe: u32,
        config: Value,
        inputs: &[&Input],
        seed: u64,
        device: &str,
    ) -> Result<Option<Task>> {
        self.task_of(folder, self.key(recipe, config, inputs, seed, device))
    }

    /// What [`Stage::task_with`] makes its task from.
    pub fn key(&self, recipe: u32, config: Value, inputs: &[&Input], seed: u64, device: &str) -> Key {
        Key {
            schema: manifest::SCHEMA,
            stage: self.name.into(),
            recipe,
            seed,
            device: device.into(),
            config,
            inputs: inputs.iter().map(|input| (input.name.clone(), input.manifest.digest.clone())).collect(),
        }
    }

    /// Starts the task of a key.
    pub fn task_of(&self, folder: &str, key: Key) -> Result<Option<Task>> {
        self.begin(&self.run, folder, folder.rsplit('/').next().unwrap_or(folder), key)
    }

    /// Starts the task of a key in another run.
    pub fn task_in(&self, run: &Path, folder: &str, key: Key) -> Result<Option<Task>> {
        let name = run.join(folder).display().to_string();
        self.begin(run, folder, &name, key)
    }

    /// Publishes in another run what a task has published in this one, where it is not there already: what the same task
    /// would make there.
    ///
    /// Errors: a file is not what was published, or the folder cannot be written.
    pub fn publish_in(&self, run: &Path, folder: &str, published: &Input) -> Result<()> {
        let key = published.manifest.key.clone();
        let name = run.join(folder).display().to_string();
        let Some(mut task) = Task::begin(run.join(folder), &name, key, false, &self.log)? else { return Ok(()) };
        for output in &published.manifest.outputs {
            let path = published.file(&output.path)?;
            task.write(&output.path, |file| {
                let mut from = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
                std::io::copy(&mut from, file)?;
                Ok(output.rows)
            })?;
        }
        task.finish().map(drop)
    }

    fn begin(&self, run: &Path, folder: &str, name: &str, key: Key) -> Result<Option<Task>> {
        let path = run.join(folder);
        if self.args.status {
            let shown = if run == self.run { folder } else { name };
            println!("{shown:<24} {}", self.status(&path, &key));
            return Ok(None);
        }
        Task::begin(path, name, key, self.args.force, &self.log)
    }

    /// A run beside this one, which shares its sources: `data/run@NAME` for `data/run`.
    ///
    /// Errors: this one's path does not end with a name.
    pub fn run_beside(&self, name: &str) -> Result<PathBuf> {
        let own = self.run.file_name().with_context(|| format!("--run {}: ends with no name", self.run.display()))?;
        Ok(self.run.with_file_name(format!("{}@{name}", own.to_string_lossy())))
    }

    /// A task that makes `folder` anew from what was published there, which stays until the task is finished; and what was
    /// published. `None` where that is damaged, or its key differs from this one in more than `part` of the configuration.
    ///
    /// Errors: another process writes there.
    pub fn replacement(&self, folder: &str, key: Key, part: &str) -> Result<Option<(Task, Input)>> {
        let task = Task::replace(self.run.join(folder), key, part, &self.log)?;
        task.map(|task| Ok((task, self.input(folder)?))).transpose()
    }

    fn status(&self, folder: &Path, key: &Key) -> String {
        match task::State::of(folder, key) {
            task::State::Fresh => "fresh".into(),
            task::State::Stale(why) => format!("stale: {why}"),
            task::State::Missing => match last_error(&self.run.join("log"), self.name) {
                Some(error) => format!("failed: {error}"),
                None => "missing".into(),
            },
        }
    }

    /// `log/STAGE.run.json`: what is no part of an artifact, since it differs from run to run.
    fn note_outcome(&self, error: Option<&anyhow::Error>) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let note = json!({
            "stage": self.name,
            "config": self.args.config,
            "run": self.run,
            "n_threads": threads,
            "version": env!("CARGO_PKG_VERSION"),
            "error": error.map(|error| format!("{error:#}")),
        });
        let path = self.run.join("log").join(format!("{}.run.json", self.name));
        // The outcome has been told already; this file serves `make status` and nothing else.
        let _ = std::fs::write(path, format!("{note:#}\n"));
    }
}

/// Why the stage's last run failed, if it did.
fn last_error(log: &Path, stage: &str) -> Option<String> {
    let text = std::fs::read_to_string(log.join(format!("{stage}.run.json"))).ok()?;
    let note: Value = serde_json::from_str(&text).ok()?;
    note.get("error")?.as_str().map(str::to_owned)
}

/// A panic is a bug of ours; say so in one line instead of a backtrace.
fn explain_panics(name: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("{name}: internal error at {place}: {message}; this is a bug, please report it");
    }));
}

/// Runs a Parquet reader, and names the file in its errors: arrow's can panic on malformed files.
pub(crate) fn guard<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    guarded("Parquet reader", read).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Result<()> {
        anyhow::bail!("no driver")
    }

    /// The device, or the error; and what was logged.
    fn chosen(
        choice: DeviceChoice,
        is_compiled_in: bool,
        find: fn() -> Result<()>,
        is_status: bool,
    ) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new("test", LogFormat::Text, true);
        log.to_folder(folder.path()).unwrap();
        let found = device(choice, Some(GpuSupport { is_compiled_in, find }), is_status, &log);
        let found = found.map_or_else(|error| format!("{error:#}"), str::to_owned);
        (found, std::fs::read_to_string(folder.path().join("test.log")).unwrap())
    }

    #[test]
    fn where_there_is_no_gpu_the_log_says_why() {
        let (device, log) = chosen(DeviceChoice::Auto, true, none, false);
        assert_eq!(device, "cpu");
        assert!(log.contains("no GPU: no driver; training on the CPU"), "{log}");
        let unasked: fn() -> Result<()> = || unreachable!("nobody asks for a GPU");
        for (choice, is_compiled_in, find, is_status, expected) in [
            (DeviceChoice::Auto, true, (|| Ok(())) as fn() -> Result<()>, false, "cuda"),
            (DeviceChoice::Auto, false, unasked, false, "cpu"),
            (DeviceChoice::Auto, true, none, true, "cpu"),
            (DeviceChoice::Cpu, true, unasked, false, "cpu"),
            (DeviceChoice::Cuda, true, unasked, true, "cuda"),
            (DeviceChoice::Cuda, true, none, false, "device = cuda, but no driver; set device: cpu"),
        ] {
            let found = chosen(choice, is_compiled_in, find, is_status);
            assert_eq!(found, (expected.to_owned(), String::new()), "{choice:?}");
        }
    }
}
