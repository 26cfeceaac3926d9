//! Batches ahead of time: while the engine works on one, a thread assembles the next two, and another one reads the
//! window that they will come from. Where rows are drawn and not read, one thread has others draw them.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use artifact::tables::activations::Values;

use crate::data::{Stored, TrainingData};
use crate::order::{Order, Window};

/// Batches that wait for the engine.
const N_AHEAD: usize = 2;

/// The batches of consecutive steps.
pub(crate) struct Batches {
    ready: Receiver<Result<Vec<f32>>>,
    /// How long `next` waited for the first batch, and for the others.
    pub(crate) waited_first: Duration,
    pub(crate) waited: Duration,
    is_first: bool,
}

/// Which batches are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) seed: u64,
    pub(crate) steps: Range<u64>,
    pub(crate) batch_size: usize,
}

impl Wanted {
    fn positions(&self) -> Range<u64> {
        self.steps.start * self.batch_size as u64..self.steps.end * self.batch_size as u64
    }
}

impl Batches {
    fn new(ready: Receiver<Result<Vec<f32>>>) -> Self {
        Self { ready, waited_first: Duration::ZERO, waited: Duration::ZERO, is_first: true }
    }

    /// The normalised rows of the next step, [batch_size, d_model].
    ///
    /// Errors: a part cannot be read, which is named.
    pub(crate) fn next(&mut self) -> Result<Vec<f32>> {
        let start = Instant::now();
        let batch = self.ready.recv().context("no more batches")?;
        let waited = if std::mem::take(&mut self.is_first) { &mut self.waited_first } else { &mut self.waited };
        *waited += start.elapsed();
        batch
    }
}

/// Calls `train` with the batches that are wanted. Epochs follow one another; batches run over their ends.
pub(crate) fn with_batches<R>(data: &TrainingData, wanted: Wanted, train: impl FnOnce(&mut Batches) -> R) -> R {
    let stored = match data {
        TrainingData::Stored(stored) => stored,
        TrainingData::Fresh(fresh) => {
            return thread::scope(|scope| {
                let (send_batch, ready) = sync_channel(N_AHEAD);
                scope.spawn(move || fresh.draw(&wanted, &send_batch));
                train(&mut Batches::new(ready))
            });
        }
    };
    let order = stored.order(wanted.seed);
    thread::scope(|scope| {
        // The threads end when the channels to them close: when `train` is done, or after an error.
        let (send_batch, ready) = sync_channel(N_AHEAD);
        let (send_window, windows) = sync_channel(0);
        let (send_used, used) = channel();
        let positions = wanted.positions();
        let order = &order;
        scope.spawn(move || read_windows(stored, order, positions, &used, &send_window));
        scope.spawn(move || assemble(stored, &wanted, &windows, &send_used, &send_batch));
        train(&mut Batches::new(ready))
    })
}

/// A window in memory.
struct Held<'a> {
    window: Window,
    /// Position in the window → row.
    order: Vec<u32>,
    values: HeldValues<'a>,
}

enum HeldValues<'a> {
    /// The whole split, which stays.
    Resident(&'a Values),
    Read(Values),
}

/// Hands on the windows of the positions wanted. No more than two are in memory: the one handed on last, and the one being
/// read into what the one before has left.
fn read_windows<'a>(
    data: &'a Stored,
    order: &Order,
    positions: Range<u64>,
    used: &Receiver<Values>,
    send: &SyncSender<Result<Held<'a>>>,
) {
    let mut n_read = 0;
    for window in order.windows_from(positions.start).take_while(|window| window.positions.start < positions.end) {
        let values = match &data.resident {
            Some(values) => Ok(HeldValues::Resident(values)),
            None => {
                n_read += 1;
                let empty = if n_read <= 2 { Some(data.empty_window()) } else { used.recv().ok() };
                let Some(mut values) = empty else { return };
                data.read(&window, &mut values).map(|()| HeldValues::Read(values))
            }
        };
        let held = values.map(|values| Held { order: order.shuffled(&window), window, values });
        let is_error = held.is_err();
        if send.send(held).is_err() || is_error {
            return;
        }
    }
}

/// Hands on the batches wanted.
fn assemble(
    data: &Stored,
    wanted: &Wanted,
    windows: &Receiver<Result<Held>>,
    used: &Sender<Values>,
    send: &SyncSender<Result<Vec<f32>>>,
) {
    let mut held: Option<Held> = None;
    for step in wanted.steps.clone() {
        let batch = batch(data, wanted.batch_size, step, &mut held, windows, used);
        let is_error = batch.is_err();
        if send.send(batch).is_err() || is_error {
            return;
        }
    }
}

fn batch<'a>(
    data: &Stored,
    batch_size: usize,
    step: u64,
    held: &mut Option<Held<'a>>,
    windows: &Receiver<Result<Held<'a>>>,
    used: &Sender<Values>,
) -> Result<Vec<f32>> {
    let mut batch = vec![0f32; batch_size * data.d_model];
    let positions = step * batch_size as u64..;
    for (at, out) in positions.zip(batch.chunks_exact_mut(data.d_model)) {
        while held.as_ref().is_none_or(|held| !held.window.positions.contains(&at)) {
            if let Some(Held { values: HeldValues::Read(values), .. }) = held.take() {
                // Nobody may be left to read another window.
                let _ = used.send(values);
            }
            *held = Some(windows.recv().context("no more windows")??);
        }
        if let Some(held) = held {
            let row = held.order[(at - held.window.positions.start) as usize] as usize;
            match &held.values {
                HeldValues::Resident(values) => values.row(row, out),
                HeldValues::Read(values) => values.row(row, out),
            }
            out.iter_mut().for_each(|value| *value *= data.scale);
        }
    }
    Ok(batch)
}

#[cfg(test)]
#[path = "batches/tests.rs"]
mod tests;
