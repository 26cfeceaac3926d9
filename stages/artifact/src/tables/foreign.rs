//! Parquet files that other programs wrote. Where our own tables have one type for a column, these take whatever pandas,
//! polars and duckdb make of it, as long as no value is lost.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::array::{UInt16Array, UInt32Array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::stage::guard;

/// Rows that are held at a time.
const ROWS_AT_A_TIME: usize = 4096;

/// Some rows of a user's activations. All columns have the same number of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ForeignRows {
    pub d_model: usize,
    pub doc_id: Vec<u32>,
    pub pos: Vec<u16>,
    pub token_id: Vec<u32>,
    /// [n_rows, d_model], row-major.
    pub activation: Vec<f32>,
}

/// Calls `visit` with the rows of a file, some thousand at a time.
///
/// Columns: `doc_id`, `pos` and `token_id` of any integer type, `activation` a list of f16, f32 or f64, all of one
/// length. Errors: a column is missing, is of another type or has nulls; a value does not fit; a value is NaN or infinite
/// (row, counted from 0 in the file, and column are named).
pub fn read_foreign_activations(path: &Path, visit: &mut dyn FnMut(ForeignRows) -> Result<()>) -> Result<()> {
    let mut first_row = 0;
    each_batch(path, &["doc_id", "pos", "token_id", "activation"], &mut |batch| {
        let rows = foreign_rows(batch, first_row)?;
        first_row += batch.num_rows();
        visit(rows)
    })
}

/// The column `doc_id` of such a file.
pub fn read_foreign_doc_ids(path: &Path) -> Result<Vec<u32>> {
    let mut doc_ids = Vec::new();
    each_batch(path, &["doc_id"], &mut |batch| {
        doc_ids.extend_from_slice(cast_to::<UInt32Array>(batch, "doc_id", &DataType::UInt32)?.values());
        Ok(())
    })?;
    Ok(doc_ids)
}

/// Calls `visit` with each row's number, from 0, and its text in a column.
///
/// Errors: the file is malformed, has no such column, or the column is no text or has nulls.
pub fn read_texts(path: &Path, column: &str, visit: &mut dyn FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut row = 0;
    each_batch(path, &[column], &mut |batch| {
        let is_text = |data_type: &DataType| {
            matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..))
        };
        let found = column_of(batch, column)?;
        ensure!(is_text(found.data_type()), "column `{column}` is {}, expected text", found.data_type());
        for text in cast_to::<StringArray>(batch, column, &DataType::Utf8)?.iter().flatten() {
            visit(row, text)?;
            row += 1;
        }
        Ok(())
    })
}

fn foreign_rows(batch: &RecordBatch, first_row: usize) -> Result<ForeignRows> {
    let doc_id = cast_to::<UInt32Array>(batch, "doc_id", &DataType::UInt32)?.values().to_vec();
    let pos = cast_to::<UInt16Array>(batch, "pos", &DataType::UInt16)?.values().to_vec();
    let token_id = cast_to::<UInt32Array>(batch, "token_id", &DataType::UInt32)?.values().to_vec();
    let lists = column_of(batch, "activation")?;
    let d_model = width(lists)?;
    let item = Field::new("item", DataType::Float32, true);
    let list = DataType::FixedSizeList(item.into(), i32::try_from(d_model)?);
    let lists = cast_to::<FixedSizeListArray>(batch, "activation", &list)?;
    let items = lists.values().as_any().downcast_ref::<Float32Array>().context("`activation` holds no numbers")?;
    ensure!(items.null_count() == 0, "column `activation` has nulls");
    let activation = items.values()[..batch.num_rows() * d_model].to_vec();
    if let Some(i) = activation.iter().position(|value| !value.is_finite()) {
        bail!("row {}, column {} of `activation` is NaN or infinite", first_row + i / d_model, i % d_model);
    }
    Ok(ForeignRows { d_model, doc_id, pos, token_id, activation })
}

/// The length of the lists, told by the type or else by the first of them.
fn width(lists: &ArrayRef) -> Result<usize> {
    use arrow::array::{LargeListArray, ListArray};
    let width = match lists.data_type() {
        DataType::FixedSizeList(_, width) => usize::try_from(*width).ok(),
        DataType::List(_) => lists.as_any().downcast_ref::<ListArray>().map(|lists| lists.value_length(0) as usize),
        DataType::LargeList(_) => {
            lists.as_any().downcast_ref::<LargeListArray>().map(|lists| lists.value_length(0) as usize)
        }
        other => bail!("column `activation` is {other}, expected lists of f16 or f32"),
    };
    match width {
        Some(width) if width > 0 => Ok(width),
        _ => bail!("column `activation` has no width"),
    }
}

fn each_batch(path: &Path, columns: &[&str], visit: &mut dyn FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
    guard(path, || {
        let file = File::open(path).context("cannot open")?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        for column in columns {
            let found = builder.schema().field_with_name(column).is_ok();
            ensure!(found, "has no column `{column}`");
        }
        let wanted = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        for batch in builder.with_projection(wanted).with_batch_size(ROWS_AT_A_TIME).build()? {
            let batch = batch?;
            if batch.num_rows() > 0 {
                visit(&batch)?;
            }
        }
        Ok(())
    })
}

fn column_of<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    let column = batch.column_by_name(name).with_context(|| format!("has no column `{name}`"))?;
    ensure!(column.null_count() == 0, "column `{name}` has nulls");
    Ok(column)
}

fn cast_to<A: Array + Clone + 'static>(batch: &RecordBatch, name: &str, data_type: &DataType) -> Result<A> {
    let column = column_of(batch, name)?;
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let cast = cast_with_options(column, data_type, &options).with_context(|| format!("column `{name}`"))?;
    let cast = cast.as_any().downcast_ref::<A>().cloned();
    cast.with_context(|| format!("column `{name}` cannot be read"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, LargeStringArray, ListArray};
    use arrow::buffer::OffsetBuffer;
    use parquet::arrow::ArrowWriter;

    use super::*;

    /// As pandas writes them: 64-bit integers, and lists of f64 of no fixed length.
    fn write(path: &Path, doc_id: &[i64], lengths: &[usize], values: &[f64]) {
        let ints = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let item = Arc::new(Field::new("element", DataType::Float64, true));
        let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
        let lists = ListArray::new(item, offsets, Arc::new(Float64Array::from(values.to_vec())), None);
        let n = doc_id.len() as i64;
        let batch = RecordBatch::try_from_iter([
            ("activation", Arc::new(lists) as ArrayRef),
            ("doc_id", ints(doc_id.to_vec())),
            ("pos", ints((1..=n).collect())),
            ("token_id", ints(vec![5; n as usize])),
        ]);
        let batch = batch.unwrap();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn read(path: &Path) -> Result<Vec<ForeignRows>> {
        let mut all = Vec::new();
        read_foreign_activations(path, &mut |rows| {
            all.push(rows);
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_pandas_writes_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, &[3, 3, 9], &[2, 2, 2], &[0.5, -1.0, 2.0, 3.0, 4.0, 5.0]);
        let rows = read(&path).unwrap().remove(0);
        assert_eq!((rows.d_model, rows.doc_id, rows.pos, rows.token_id), (2, vec![3, 3, 9], vec![1, 2, 3], vec![5; 3]));
        assert_eq!(rows.activation, [0.5, -1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read_foreign_doc_ids(&path).unwrap(), [3, 3, 9]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let error = |doc_id: &[i64], lengths: &[usize], values: &[f64]| {
            write(&path, doc_id, lengths, values);
            format!("{:#}", read(&path).unwrap_err())
        };
        let nan = error(&[0, 0], &[2, 2], &[0.0, 0.0, 0.0, f64::NAN]);
        assert!(nan.contains("a.parquet") && nan.contains("row 1, column 1"), "{nan}");
        let ragged = error(&[0, 0], &[2, 1], &[0.0; 3]);
        assert!(ragged.contains("column `activation`"), "{ragged}");
        let negative = error(&[-1], &[2], &[0.0; 2]);
        assert!(negative.contains("column `doc_id`"), "{negative}");
    }

    #[test]
    fn texts_of_any_kind_of_string_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let texts = Arc::new(LargeStringArray::from(vec!["one", "two"])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("text", texts)]).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut found = Vec::new();
        let mut keep = |row: usize, text: &str| {
            found.push((row, text.to_owned()));
            Ok(())
        };
        read_texts(&path, "text", &mut keep).unwrap();
        let error = format!("{:#}", read_texts(&path, "body", &mut keep).unwrap_err());
        assert_eq!(found, [(0, "one".to_owned()), (1, "two".to_owned())]);
        assert!(error.contains("has no column `body`"), "{error}");
    }
}
