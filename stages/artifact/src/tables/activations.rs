//! `harvest/{train,heldout}/part-NNNNN.parquet`: one row a token, in document order:
//! `doc_id u32, pos u16, token_id u32, activation FixedSizeList<f16 | f32>[d_model]`.

mod parts;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{
    Array, ArrayRef, FixedSizeListArray, Float16Array, Float32Array, RecordBatch, UInt16Array, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use half::f16;
use half::slice::HalfFloatSliceExt;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

pub use parts::{Parts, RowGroup};

use crate::config::ActivationDtype;
use crate::stage::guard;

/// Rows in one Parquet row group: small enough to stream, large enough to be read at full speed.
const ROWS_PER_GROUP: usize = 8192;

/// Rows of a dataset. All four columns have the same number of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activations {
    pub d_model: usize,
    pub doc_id: Vec<u32>,
    /// Position in the context; the separator stands at 0 and has no row.
    pub pos: Vec<u16>,
    pub token_id: Vec<u32>,
    /// Row-major [n_rows, d_model].
    pub values: Values,
}

/// As stored; arithmetic is done in f32.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Default for Values {
    fn default() -> Self {
        Self::F32(Vec::new())
    }
}

impl Values {
    /// None yet, with room for `capacity`.
    pub fn with_capacity(dtype: ActivationDtype, capacity: usize) -> Self {
        match dtype {
            ActivationDtype::F16 => Self::F16(Vec::with_capacity(capacity)),
            ActivationDtype::F32 => Self::F32(Vec::with_capacity(capacity)),
        }
    }

    pub fn dtype(&self) -> ActivationDtype {
        match self {
            Self::F16(_) => ActivationDtype::F16,
            Self::F32(_) => ActivationDtype::F32,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the values and keeps their room.
    pub fn clear(&mut self) {
        match self {
            Self::F16(values) => values.clear(),
            Self::F32(values) => values.clear(),
        }
    }

    /// Row `i` as f32, into `out` [d_model].
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let range = i * out.len()..(i + 1) * out.len();
        match self {
            Self::F16(values) => values[range].convert_to_f32_slice(out),
            Self::F32(values) => out.copy_from_slice(&values[range]),
        }
    }
}

impl Activations {
    pub fn n_rows(&self) -> usize {
        self.doc_id.len()
    }

    /// Row `i` as f32, into `out` [d_model].
    pub fn row(&self, i: usize, out: &mut [f32]) {
        self.values.row(i, &mut out[..self.d_model]);
    }

    /// Rows `start..end` as f32 [end − start, d_model].
    pub fn rows(&self, start: usize, end: usize) -> Vec<f32> {
        let range = start * self.d_model..end * self.d_model;
        match &self.values {
            Values::F16(values) => {
                let mut rows = vec![0.0; range.len()];
                values[range].convert_to_f32_slice(&mut rows);
                rows
            }
            Values::F32(values) => values[range].to_vec(),
        }
    }

    /// Reads whole parts, one after another, in the order given.
    ///
    /// Errors: a part is malformed, has other columns or another d_model than the first, or holds NaN or infinities
    /// (file, row and column are named).
    pub fn read(parts: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all: Option<Self> = None;
        for part in parts {
            read_part(part.as_ref(), &mut all)?;
        }
        all.context("no activations: the dataset has no parts")
    }

    fn append(&mut self, batch: &RecordBatch) -> Result<()> {
        self.doc_id.extend_from_slice(column::<UInt32Array>(batch, "doc_id")?.values());
        self.pos.extend_from_slice(column::<UInt16Array>(batch, "pos")?.values());
        self.token_id.extend_from_slice(column::<UInt32Array>(batch, "token_id")?.values());
        let lists = column::<FixedSizeListArray>(batch, "activation")?;
        ensure!(lists.values().null_count() == 0, "column `activation` has nulls");
        let first_row = self.n_rows() - batch.num_rows();
        match &mut self.values {
            Values::F16(values) => {
                let items = lists.values().as_any().downcast_ref::<Float16Array>().context("expected f16")?.values();
                refuse_non_finite(items.iter().map(|value| value.is_finite()), self.d_model, first_row)?;
                values.extend_from_slice(items);
            }
            Values::F32(values) => {
                let items = lists.values().as_any().downcast_ref::<Float32Array>().context("expected f32")?.values();
                refuse_non_finite(items.iter().map(|value| value.is_finite()), self.d_model, first_row)?;
                values.extend_from_slice(items);
            }
        }
        Ok(())
    }
}

/// Writes one part.
pub struct PartWriter<W: Write + Send> {
    writer: ArrowWriter<W>,
    d_model: usize,
    dtype: ActivationDtype,
    n_rows: u64,
}

impl<W: Write + Send> PartWriter<W> {
    pub fn new(file: W, d_model: usize, dtype: ActivationDtype) -> Result<Self> {
        // Activations are incompressible, and a dictionary of them is a copy of them.
        let properties = WriterProperties::builder()
            .set_created_by("hiersae".into())
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_column_dictionary_enabled(
                ColumnPath::from(vec!["activation".into(), "list".into(), "item".into()]),
                false,
            )
            .set_dictionary_enabled(false)
            .build();
        let writer = ArrowWriter::try_new(file, schema(d_model, dtype), Some(properties))?;
        Ok(Self { writer, d_model, dtype, n_rows: 0 })
    }

    /// Appends rows; `activation` is row-major [n, d_model].
    ///
    /// Errors: the columns differ in length, a value is NaN or infinite or too large for f16 (row and column are named),
    /// or the file cannot be written.
    pub fn write(&mut self, doc_id: &[u32], pos: &[u16], token_id: &[u32], activation: &[f32]) -> Result<()> {
        let n = doc_id.len();
        ensure!(
            pos.len() == n && token_id.len() == n && activation.len() == n * self.d_model,
            "columns of different lengths"
        );
        let items: ArrayRef = match self.dtype {
            ActivationDtype::F16 => {
                let items: Vec<f16> = activation.iter().map(|&value| f16::from_f32(value)).collect();
                refuse_non_finite(items.iter().map(|item| item.is_finite()), self.d_model, self.n_rows as usize)
                    .context("as f16 (harvest.dtype: f32 holds larger values)")?;
                Arc::new(Float16Array::from(items))
            }
            ActivationDtype::F32 => {
                let finite = activation.iter().map(|value| value.is_finite());
                refuse_non_finite(finite, self.d_model, self.n_rows as usize)?;
                Arc::new(Float32Array::from(activation.to_vec()))
            }
        };
        let lists = FixedSizeListArray::try_new(item_field(self.dtype), self.d_model as i32, items, None)?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(doc_id.to_vec())),
            Arc::new(UInt16Array::from(pos.to_vec())),
            Arc::new(UInt32Array::from(token_id.to_vec())),
            Arc::new(lists),
        ];
        self.writer.write(&RecordBatch::try_new(schema(self.d_model, self.dtype), columns)?)?;
        self.n_rows += n as u64;
        Ok(())
    }

    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Returns the file and the number of rows.
    pub fn finish(self) -> Result<(W, u64)> {
        let n_rows = self.n_rows;
        Ok((self.writer.into_inner()?, n_rows))
    }
}

fn schema(d_model: usize, dtype: ActivationDtype) -> SchemaRef {
    let list = DataType::FixedSizeList(item_field(dtype), d_model as i32);
    Arc::new(Schema::new(vec![
        Field::new("doc_id", DataType::UInt32, false),
        Field::new("pos", DataType::UInt16, false),
        Field::new("token_id", DataType::UInt32, false),
        Field::new("activation", list, false),
    ]))
}

fn item_field(dtype: ActivationDtype) -> Arc<Field> {
    let item = match dtype {
        ActivationDtype::F16 => DataType::Float16,
        ActivationDtype::F32 => DataType::Float32,
    };
    Arc::new(Field::new("item", item, false))
}

fn read_part(path: &Path, all: &mut Option<Activations>) -> Result<()> {
    guard(path, || {
        let file = File::open(path).context("cannot open")?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let (d_model, dtype) = width_and_type(builder.schema())?;
        let all = all.get_or_insert_with(|| Activations {
            d_model,
            values: Values::with_capacity(dtype, 0),
            ..Activations::default()
        });
        refuse_mixture((all.d_model, all.values.dtype()), (d_model, dtype))?;
        let batches = builder.with_batch_size(ROWS_PER_GROUP).build()?;
        for batch in batches {
            all.append(&batch?)?;
        }
        Ok(())
    })
}

fn width_and_type(schema: &Schema) -> Result<(usize, ActivationDtype)> {
    let (d_model, dtype) = match schema.field_with_name("activation").map(Field::data_type) {
        Ok(DataType::FixedSizeList(item, d_model)) => match item.data_type() {
            DataType::Float16 => (*d_model as usize, ActivationDtype::F16),
            DataType::Float32 => (*d_model as usize, ActivationDtype::F32),
            other => bail!("column `activation` holds {other}, expected f16 or f32"),
        },
        Ok(other) => bail!("column `activation` is {other}, expected a fixed-size list of f16 or f32"),
        Err(_) => bail!("has no column `activation`"),
    };
    ensure!(d_model >= 1, "column `activation` has no width");
    Ok((d_model, dtype))
}

fn refuse_mixture(before: (usize, ActivationDtype), here: (usize, ActivationDtype)) -> Result<()> {
    ensure!(before.0 == here.0, "activations are {} wide, {} in the part before", here.0, before.0);
    ensure!(before.1 == here.1, "activations have another type in the part before");
    Ok(())
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let column = batch.column_by_name(name).with_context(|| format!("has no column `{name}`"))?;
    ensure!(column.null_count() == 0, "column `{name}` has nulls");
    let column_type = column.data_type();
    column.as_any().downcast_ref().with_context(|| format!("column `{name}` has type {column_type}"))
}

fn refuse_non_finite(mut finite: impl Iterator<Item = bool> + Clone, d_model: usize, first_row: usize) -> Result<()> {
    // A search that may stop anywhere is slow; there is nearly never anything to find.
    if finite.clone().fold(true, |all, finite| all & finite) {
        return Ok(());
    }
    match finite.position(|finite| !finite) {
        None => Ok(()),
        Some(i) => bail!("row {}, column {} of `activation` is NaN or infinite", first_row + i / d_model, i % d_model),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_part(path: &Path, d_model: usize, dtype: ActivationDtype, values: &[f32]) -> Result<u64> {
        let n = values.len() / d_model;
        let mut writer = PartWriter::new(File::create(path)?, d_model, dtype)?;
        let doc_id: Vec<u32> = (0..n as u32).map(|i| i / 4).collect();
        let pos: Vec<u16> = (0..n as u16).map(|i| 1 + i % 4).collect();
        let token_id: Vec<u32> = (0..n as u32).map(|i| 7 * i).collect();
        writer.write(&doc_id, &pos, &token_id, values)?;
        Ok(writer.finish()?.1)
    }

    #[test]
    fn both_types_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        // Multiples of 1/8 are exact in f16.
        let values: Vec<f32> = (0..10 * 3).map(|i| i as f32 / 8.0 - 1.0).collect();
        for dtype in [ActivationDtype::F16, ActivationDtype::F32] {
            let path = folder.path().join("part.parquet");
            assert_eq!(write_part(&path, 3, dtype, &values).unwrap(), 10);
            let read = Activations::read(&[&path]).unwrap();
            assert_eq!((read.d_model, read.n_rows()), (3, 10));
            assert_eq!(read.rows(0, 10), values);
            assert_eq!(read.pos[5], 2);
            let mut row = [0.0; 3];
            read.row(9, &mut row);
            assert_eq!(row, values[27..]);
        }
    }

    #[test]
    fn nan_is_named_by_row_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let mut values = vec![0.5; 12];
        values[7] = f32::NAN;
        let error = write_part(&folder.path().join("x"), 3, ActivationDtype::F32, &values).unwrap_err();
        assert!(format!("{error:#}").contains("row 2, column 1"), "{error:#}");
        values[7] = 1e6;
        let error = write_part(&folder.path().join("x"), 3, ActivationDtype::F16, &values).unwrap_err();
        assert!(format!("{error:#}").contains("f16"), "{error:#}");
    }

    #[test]
    fn parts_of_different_widths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write_part(&a, 3, ActivationDtype::F32, &[0.0; 12]).unwrap();
        write_part(&b, 4, ActivationDtype::F32, &[0.0; 12]).unwrap();
        let error = format!("{:#}", Activations::read(&[a, b]).unwrap_err());
        assert!(error.contains("4 wide, 3 in the part before"), "{error}");
    }
}
