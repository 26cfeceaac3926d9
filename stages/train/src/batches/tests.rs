use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use artifact::config::ActivationDtype;
use artifact::random;
use artifact::tables::activations::{PartWriter, Parts};
use rand::seq::SliceRandom;
use tempfile::TempDir;

use super::*;

const N_PARTS: usize = 25;
/// A part is one row group here.
const ROWS_PER_PART: usize = 40;
const N_ROWS: usize = N_PARTS * ROWS_PER_PART;
/// Of a part, with two f32 a row.
const PART_BYTES: u64 = 8 * ROWS_PER_PART as u64;
/// Four row groups in use, four being read.
const BUDGET: u64 = 8 * PART_BYTES;
const SCALE: f32 = 0.5;
const BATCH_SIZE: usize = 32;

/// Row i of the split is [i, −i].
struct Split {
    paths: Vec<PathBuf>,
    _folder: TempDir,
}

impl Split {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let part = |i: usize| {
            let path = folder.path().join(format!("part-{i:05}.parquet"));
            let mut writer = PartWriter::new(File::create(&path).unwrap(), 2, ActivationDtype::F32).unwrap();
            let rows = i * ROWS_PER_PART..(i + 1) * ROWS_PER_PART;
            let values: Vec<f32> = rows.flat_map(|row| [row as f32, -(row as f32)]).collect();
            writer.write(&[0; ROWS_PER_PART], &[1; ROWS_PER_PART], &[0; ROWS_PER_PART], &values).unwrap();
            writer.finish().unwrap();
            path
        };
        Self { paths: (0..N_PARTS).map(part).collect(), _folder: folder }
    }

    fn data(&self, budget: Option<u64>) -> TrainingData {
        TrainingData::Stored(Stored::new(Parts::open(&self.paths).unwrap(), SCALE, budget).unwrap())
    }
}

/// The rows of the batches of some steps, one after another.
fn rows_of(data: &TrainingData, seed: u64, steps: Range<u64>) -> Vec<usize> {
    let wanted = Wanted { seed, steps: steps.clone(), batch_size: BATCH_SIZE };
    with_batches(data, wanted, |batches| {
        let mut rows = Vec::new();
        for _ in steps {
            for row in batches.next().unwrap().chunks_exact(2) {
                assert_eq!(row[0], -row[1]);
                rows.push((row[0] / SCALE) as usize);
            }
        }
        assert!(batches.next().is_err(), "a batch beyond the last step");
        rows
    })
}

#[test]
fn a_split_in_memory_is_shuffled_as_a_whole() {
    let data = Split::new().data(None);
    let epoch = |epoch| {
        let mut rows: Vec<usize> = (0..N_ROWS).collect();
        rows.shuffle(&mut random::stream(7, "train/order", 0, epoch));
        rows
    };
    let expected: Vec<usize> = [epoch(0), epoch(1)].concat();
    assert_eq!(rows_of(&data, 7, 0..62), expected[..62 * BATCH_SIZE]);
}

#[test]
fn a_streamed_epoch_is_a_permutation_of_all_rows() {
    let split = Split::new();
    let rows = rows_of(&split.data(Some(BUDGET)), 0, 0..94);
    let epochs: Vec<&[usize]> = rows.chunks_exact(N_ROWS).collect();
    assert_eq!(epochs.len(), 3);
    for epoch in &epochs {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..N_ROWS).collect::<Vec<_>>());
    }
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(rows_of(&split.data(Some(BUDGET)), 1, 0..94), rows, "another seed");
}

#[test]
fn a_streamed_batch_mixes_the_row_groups_of_its_window() {
    let rows = rows_of(&Split::new().data(Some(BUDGET)), 0, 0..31);
    // A group's share of a batch is hypergeometric: 40 of the window's 160 rows, or 120 where it has three groups, so
    // about 8 of 32 rows and at least 2; five and more standard deviations above the mean would be 20.
    for batch in rows.chunks_exact(BATCH_SIZE) {
        let groups: Vec<usize> = batch.iter().map(|row| row / ROWS_PER_PART).collect();
        let most = (0..N_PARTS).map(|group| groups.iter().filter(|&&g| g == group).count()).max().unwrap();
        assert!(most <= 20, "{most} of {BATCH_SIZE} rows come from one row group");
    }
    // Rows that follow each other in a file do so in a batch once in about 150 times.
    let n_neighbours = rows.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
    assert!(n_neighbours <= 25, "{n_neighbours} of {} rows follow their neighbour", rows.len());
    // Row groups that are far apart in the files meet: those of the first window span more than half of them.
    let first: BTreeSet<usize> = rows[..3 * ROWS_PER_PART].iter().map(|row| row / ROWS_PER_PART).collect();
    assert!(first.last().unwrap() - first.first().unwrap() > N_PARTS / 2, "{first:?}");
}

#[test]
fn a_training_that_goes_on_at_any_step_sees_the_same_rows() {
    let split = Split::new();
    for budget in [None, Some(BUDGET), Some(2 * PART_BYTES)] {
        let data = split.data(budget);
        let whole = rows_of(&data, 5, 0..70);
        for step in 0..70 {
            let resumed = rows_of(&data, 5, step..70.min(step + 12));
            let expected = &whole[step as usize * BATCH_SIZE..][..resumed.len()];
            assert_eq!(resumed, expected, "from step {step}, budget {budget:?}");
        }
    }
}

#[test]
fn the_sample_is_what_training_sees_first() {
    let split = Split::new();
    for budget in [None, Some(BUDGET)] {
        let data = split.data(budget);
        let sample = data.sample(3, 400).unwrap();
        let rows: Vec<usize> = sample.chunks_exact(2).map(|row| row[0] as usize).collect();
        assert_eq!(rows, rows_of(&data, 3, 0..13)[..400]);
        assert_eq!(data.sample(3, 10 * N_ROWS).unwrap().len(), 2 * N_ROWS);
    }
}

#[test]
fn a_part_that_goes_missing_is_named_and_batches_before_it_come() {
    let split = Split::new();
    let data = split.data(Some(2 * PART_BYTES));
    let rows = rows_of(&data, 0, 0..31);
    let lost = rows[20 * ROWS_PER_PART] / ROWS_PER_PART;
    std::fs::write(&split.paths[lost], "no Parquet").unwrap();
    let wanted = Wanted { seed: 0, steps: 0..31, batch_size: BATCH_SIZE };
    let (n_batches, error) = with_batches(&data, wanted, |batches| {
        let mut n_batches = 0;
        loop {
            match batches.next() {
                Ok(_) => n_batches += 1,
                Err(error) => return (n_batches, format!("{error:#}")),
            }
        }
    });
    assert_eq!(n_batches, 20 * ROWS_PER_PART / BATCH_SIZE);
    assert!(error.contains(&format!("part-{lost:05}.parquet")), "{error}");
}

#[test]
fn training_may_stop_before_the_last_batch() {
    let split = Split::new();
    let data = split.data(Some(BUDGET));
    for n in 0..5 {
        let wanted = Wanted { seed: 0, steps: 0..1_000_000, batch_size: BATCH_SIZE };
        with_batches(&data, wanted, |batches| {
            (0..n).for_each(|_| {
                batches.next().unwrap();
            })
        });
    }
}

#[test]
fn a_budget_below_two_row_groups_is_refused_with_what_it_takes() {
    let split = Split::new();
    let open = || Parts::open(&split.paths).unwrap();
    assert!(Stored::new(open(), SCALE, Some(2 * PART_BYTES)).is_ok());
    let error = Stored::new(open(), SCALE, Some(2 * PART_BYTES - 1)).err().unwrap().to_string();
    assert!(error.contains("train.resident_mb = 0") && error.contains("set it to 1 or more"), "{error}");
}
