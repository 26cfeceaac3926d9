//! What a stage tells: lines for people or for programs on standard error, the same lines in a log file, and a progress
//! bar where there is a terminal to draw it on.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::LogFormat;

/// Without a terminal, progress is a line every so often.
const LINE_EVERY: Duration = Duration::from_secs(15);

pub struct Log {
    stage: &'static str,
    format: LogFormat,
    quiet: bool,
    start: Instant,
    file: RefCell<Option<File>>,
}

impl Log {
    pub fn new(stage: &'static str, format: LogFormat, quiet: bool) -> Self {
        Self { stage, format, quiet, start: Instant::now(), file: RefCell::new(None) }
    }

    /// From now on the lines go to `folder/STAGE.log` too.
    pub fn to_folder(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
        let path = folder.join(format!("{}.log", self.stage));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        *self.file.borrow_mut() = Some(file.with_context(|| format!("{}: cannot open the log", path.display()))?);
        Ok(())
    }

    pub fn line(&self, message: impl AsRef<str>) {
        self.event(message.as_ref(), json!({}));
    }

    /// A line with named values, for programs that read the log.
    pub fn event(&self, message: &str, values: Value) {
        if !self.quiet {
            match self.format {
                LogFormat::Text => eprintln!("{:>8} {message}", self.stage),
                LogFormat::Json => eprintln!("{}", self.as_json(message, &values)),
            }
        }
        if let Some(file) = self.file.borrow_mut().as_mut() {
            // A full disk will stop the stage when it writes its outputs; a lost log line need not.
            let _ = writeln!(file, "{}", self.as_json(message, &values));
        }
    }

    /// `total` in `unit`s, for example tokens.
    pub fn progress(&self, total: u64, unit: &'static str) -> Progress<'_> {
        let drawn = !self.quiet && self.format == LogFormat::Text && std::io::stderr().is_terminal();
        let bar = drawn.then(|| {
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template(&format!(
                "{:>8} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} eta {{eta}} {{msg}}",
                self.stage
            ));
            bar.set_style(style.expect("the template is constant"));
            bar
        });
        Progress { log: self, bar, total, unit, start: Instant::now(), last_line: Instant::now() }
    }

    fn as_json(&self, message: &str, values: &Value) -> String {
        let elapsed_s = (self.start.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let mut line = json!({"stage": self.stage, "elapsed_s": elapsed_s, "message": message});
        if let (Some(line), Some(values)) = (line.as_object_mut(), values.as_object()) {
            line.extend(values.clone());
        }
        line.to_string()
    }
}

pub struct Progress<'a> {
    log: &'a Log,
    bar: Option<ProgressBar>,
    total: u64,
    unit: &'static str,
    start: Instant,
    last_line: Instant,
}

impl Progress<'_> {
    /// `done` of the total; `detail` is only made when it will be shown.
    pub fn set(&mut self, done: u64, detail: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(detail());
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let rate = done as f64 / self.start.elapsed().as_secs_f64();
            let eta_s = (self.total.saturating_sub(done)) as f64 / rate.max(1e-9);
            let (total, unit, detail) = (self.total, self.unit, detail());
            self.log.line(format!("{done}/{total} {unit}, {rate:.0}/s, eta {eta_s:.0} s {detail}"));
        }
    }

    /// Ends the bar and says the mean rate, which it returns in units per second.
    pub fn finish(self, done: u64) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let elapsed_s = self.start.elapsed().as_secs_f64();
        let rate = done as f64 / elapsed_s.max(1e-9);
        let values = json!({"n": done, "unit": self.unit, "per_s": rate, "took_s": elapsed_s});
        self.log.event(&format!("{done} {} in {elapsed_s:.1} s, {rate:.0}/s", self.unit), values);
        rate
    }
}
