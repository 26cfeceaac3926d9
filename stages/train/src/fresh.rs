//! Rows drawn as training goes, never the same twice: planted ground truth whose training rows nobody wrote.

use std::fs::File;
use std::io::BufReader;
use std::sync::mpsc::SyncSender;

use anyhow::{Context, Result};
use artifact::stage::Input;
use artifact::tables::read_rows;
use planted::{BLOCK_ROWS, Shared, Stream, World};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batches::Wanted;

/// The endless train split. Row i of training is row i of a stream that the seed of the SAE keys.
pub(crate) struct Fresh {
    world: World,
    scale: f32,
    /// Threads of its own: the engine's, waiting for each other, would take a block up between two parts of a step.
    threads: ThreadPool,
}

impl Fresh {
    /// Errors: what was planted cannot be read, or contradicts itself.
    pub(crate) fn load(harvest: &Input, scale: f32) -> Result<Self> {
        let path = harvest.file("truth.json")?;
        let shared: Shared = serde_json::from_reader(BufReader::new(File::open(&path)?))
            .with_context(|| format!("{}: not what harvest writes", path.display()))?;
        let path = harvest.file("truth.parquet")?;
        let world = World::of_truth(read_rows(&path)?, shared).with_context(|| path.display().to_string())?;
        Self::new(world, scale)
    }

    pub(crate) fn new(world: World, scale: f32) -> Result<Self> {
        let threads = ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build()?;
        Ok(Self { world, scale, threads })
    }

    pub(crate) fn d_model(&self) -> usize {
        self.world.d_model()
    }

    /// Hands on the batches wanted, drawing so many of them together that every thread has blocks to draw.
    pub(crate) fn draw(&self, wanted: &Wanted, send: &SyncSender<Result<Vec<f32>>>) {
        let rows = Stream { seed: wanted.seed, purpose: "planted/train" };
        let least_rows = 2 * self.threads.current_num_threads() as u64 * BLOCK_ROWS;
        let n_together = least_rows.div_ceil(wanted.batch_size as u64);
        let width = wanted.batch_size * self.d_model();
        let mut step = wanted.steps.start;
        while step < wanted.steps.end {
            let steps = step..wanted.steps.end.min(step + n_together);
            let positions = steps.start * wanted.batch_size as u64..steps.end * wanted.batch_size as u64;
            let mut drawn = vec![0f32; (steps.end - steps.start) as usize * width];
            self.threads.install(|| self.world.fill(rows, positions, self.scale, &mut drawn));
            if n_together == 1 {
                if send.send(Ok(drawn)).is_err() {
                    return;
                }
            } else if drawn.chunks_exact(width).any(|batch| send.send(Ok(batch.to_vec())).is_err()) {
                return;
            }
            step = steps.end;
        }
    }

    /// Rows that no training sees, as they would be stored.
    pub(crate) fn sample(&self, seed: u64, n_rows: usize) -> Vec<f32> {
        let rows = Stream { seed, purpose: "planted/calibration" };
        let mut sample = vec![0f32; n_rows * self.d_model()];
        self.threads.install(|| self.world.fill(rows, 0..n_rows as u64, 1.0, &mut sample));
        sample
    }
}

#[cfg(test)]
mod tests {
    use artifact::config::Synthetic;

    use super::*;
    use crate::batches::with_batches;
    use crate::data::TrainingData;

    const BATCH_SIZE: usize = 100;
    const SCALE: f32 = 0.5;

    fn data() -> TrainingData {
        let config = Synthetic { n_features: Some(40), n_roots: Some(2), depth: Some(1), ..Synthetic::default() };
        TrainingData::Fresh(Fresh::new(World::plant(&config.recipe(), 0), SCALE).unwrap())
    }

    fn rows_of(data: &TrainingData, seed: u64, steps: std::ops::Range<u64>) -> Vec<f32> {
        let wanted = Wanted { seed, steps: steps.clone(), batch_size: BATCH_SIZE };
        with_batches(data, wanted, |batches| {
            let rows: Vec<f32> = steps.flat_map(|_| batches.next().unwrap()).collect();
            assert!(batches.next().is_err(), "a batch beyond the last step");
            rows
        })
    }

    #[test]
    fn a_training_that_goes_on_at_any_step_sees_the_rows_of_the_stream() {
        let data = data();
        let TrainingData::Fresh(fresh) = &data else { unreachable!() };
        let width = BATCH_SIZE * fresh.d_model();
        let mut expected = vec![0f32; 40 * width];
        let rows = Stream { seed: 5, purpose: "planted/train" };
        fresh.world.fill(rows, 0..40 * BATCH_SIZE as u64, SCALE, &mut expected);
        for first in 0..40 {
            let last = 40.min(first + 13);
            assert!(rows_of(&data, 5, first..last) == expected[first as usize * width..last as usize * width]);
        }
        assert!(rows_of(&data, 6, 0..1) != expected[..width], "another seed");
    }

    #[test]
    fn the_sample_is_no_part_of_what_training_sees() {
        let data = data();
        let sample = data.sample(5, 300).unwrap();
        let seen = rows_of(&data, 5, 0..3);
        assert_eq!(sample.len(), seen.len());
        let TrainingData::Fresh(fresh) = &data else { unreachable!() };
        let rows = sample.chunks_exact(fresh.d_model()).zip(seen.chunks_exact(fresh.d_model()));
        let n_equal = rows.filter(|(a, b)| a.iter().zip(*b).all(|(a, b)| a * SCALE == *b)).count();
        // In one row of two nothing fires.
        assert!(n_equal <= 150, "{n_equal} of 300 rows");
    }

    #[test]
    fn training_may_stop_before_the_last_batch() {
        let data = data();
        for n in 0..5 {
            let wanted = Wanted { seed: 0, steps: 0..1_000_000, batch_size: BATCH_SIZE };
            with_batches(&data, wanted, |batches| (0..n).for_each(|_| drop(batches.next().unwrap())));
        }
    }
}
