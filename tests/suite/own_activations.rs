//! Activations that the user brings: configs/own-activations.yaml, made small.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt16Array, UInt32Array};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use pipeline_tests::{Run, STAGES};

const D_MODEL: usize = 16;
const ROWS_PER_DOC: usize = 25;

/// A run of own activations, `n_rows` in each of two parts, with `edit` applied to the second part's values.
fn run_of(n_rows: usize, edit: impl Fn(&mut [f32])) -> Run {
    let run = Run::of("own-activations.yaml");
    let folder = run.home().join("my-activations");
    std::fs::create_dir(&folder).unwrap();
    run.edit("./my-activations", &folder.display().to_string());
    run.edit("n_tokens: 4000000", "n_tokens: 20000\n  batch_size: 256");
    run.edit("n_fine: 4608, k: 32", "n_fine: 32, k: 4");
    run.edit("n_coarse: 512, n_fine: 4096, k: 32", "n_coarse: 8, n_fine: 24, k: 4");
    for part in 0..2 {
        let mut values: Vec<f32> = (0..n_rows * D_MODEL).map(|i| value(part * n_rows * D_MODEL + i)).collect();
        if part == 1 {
            edit(&mut values);
        }
        write_part(&folder.join(format!("part-{part}.parquet")), part * n_rows, values);
    }
    run
}

/// One of four directions a row, of changing length, and a little of everything else.
fn value(i: usize) -> f32 {
    let (row, column) = (i / D_MODEL, i % D_MODEL);
    let direction = (row * 7 + row / 3) % 4;
    let strength = if column % 4 == direction { 2.0 + (row % 5) as f32 * 0.3 } else { 0.0 };
    strength + ((i * 2_654_435_761) % 1000) as f32 * 1e-4
}

fn write_part(path: &Path, first_row: usize, values: Vec<f32>) {
    let rows = first_row..first_row + values.len() / D_MODEL;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let values = Arc::new(Float32Array::from(values));
    let lists = FixedSizeListArray::try_new(item, D_MODEL as i32, values, None).unwrap();
    let columns: [(&str, ArrayRef); 4] = [
        ("doc_id", Arc::new(UInt32Array::from_iter_values(rows.clone().map(|row| (row / ROWS_PER_DOC) as u32)))),
        ("pos", Arc::new(UInt16Array::from_iter_values(rows.clone().map(|row| (1 + row % ROWS_PER_DOC) as u16)))),
        ("token_id", Arc::new(UInt32Array::from_iter_values(rows.map(|_| 0)))),
        ("activation", Arc::new(lists)),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn they_run_through_every_stage() {
    let run = run_of(2000, |_| ());
    STAGES.iter().for_each(|stage| run.expect(stage, &[]));
    let page = std::fs::read_to_string(run.folder.join("report/report.md")).unwrap();
    assert!(page.contains("hiersae, gated") && page.contains("they need a language model"), "{page}");
}

#[test]
fn nan_and_infinity_are_named_by_file_row_and_column() {
    for bad in [f32::NAN, f32::INFINITY] {
        let run = run_of(100, |values| values[3 * D_MODEL + 5] = bad);
        let message = ["fetch", "harvest"].iter().find_map(|stage| {
            let output = run.stage(stage, &[]);
            (!output.status.success()).then(|| run.expect_error(stage, &[]))
        });
        let message = message.expect("refused");
        for part in ["part-1.parquet", "column 5", "activation"] {
            assert!(message.contains(part), "{part} not in: {message}");
        }
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let run = run_of(100, |_| ());
    run.edit("my-activations", "not-my-activations");
    let message = run.expect_error("fetch", &[]);
    assert!(message.contains("not-my-activations"), "{message}");
}

#[test]
fn files_that_are_no_parquet_are_named() {
    let run = run_of(100, |_| ());
    std::fs::write(run.home().join("my-activations/part-1.parquet"), "no Parquet").unwrap();
    run.expect("fetch", &[]);
    let message = run.expect_error("harvest", &[]);
    assert!(message.contains("part-1.parquet"), "{message}");
}
