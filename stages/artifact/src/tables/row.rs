//! Tables of structs: schema, writer and reader from the fields' types.

use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::stage::guard;

/// A struct whose fields are the columns of a table.
pub trait Row: Sized + Clone {
    fn schema() -> SchemaRef;
    fn to_batch(rows: &[Self]) -> Result<RecordBatch>;
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>>;
}

/// A table written piece by piece.
pub struct TableWriter<W: Write + Send, R> {
    writer: ArrowWriter<W>,
    n_rows: u64,
    rows: PhantomData<R>,
}

impl<W: Write + Send, R: Row> TableWriter<W, R> {
    pub fn new(file: W) -> Result<Self> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_created_by("hiersae".into())
            .build();
        let writer = ArrowWriter::try_new(file, R::schema(), Some(properties))?;
        Ok(Self { writer, n_rows: 0, rows: PhantomData })
    }

    pub fn write(&mut self, rows: &[R]) -> Result<()> {
        for rows in rows.chunks(65_536) {
            self.writer.write(&R::to_batch(rows)?)?;
        }
        self.n_rows += rows.len() as u64;
        Ok(())
    }

    /// Ends a row group, which is in memory until then.
    pub fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }

    /// Ends the file; returns the number of rows, as `Task::write` wants it.
    pub fn finish(self) -> Result<Option<u64>> {
        Ok(Some(self.into_inner()?.1))
    }

    /// The same for a file that is on to something else; with the file.
    pub fn into_inner(self) -> Result<(W, u64)> {
        Ok((self.writer.into_inner()?, self.n_rows))
    }
}

/// Writes a table; returns its number of rows, as `Task::write` wants it.
pub fn write_rows<R: Row>(file: &mut (impl Write + Send), rows: &[R]) -> Result<Option<u64>> {
    let mut table = TableWriter::new(file)?;
    table.write(rows)?;
    table.finish()
}

/// Reads a table whole.
///
/// Errors: the file is malformed, or its columns are not those of `R` (the first that differs is named).
pub fn read_rows<R: Row>(path: &Path) -> Result<Vec<R>> {
    guard(path, || {
        let file = File::open(path).context("cannot open")?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let found = builder.schema().clone();
        for field in R::schema().fields() {
            let column = found.field_with_name(field.name());
            let column = column.with_context(|| format!("has no column `{}`", field.name()))?;
            ensure!(
                column.data_type() == field.data_type(),
                "column `{}` is {}, expected {}",
                field.name(),
                column.data_type(),
                field.data_type()
            );
        }
        let batches = builder.build()?.collect::<Result<Vec<_>, _>>()?;
        let batch = concat_batches(&found, &batches)?;
        R::from_batch(&batch)
    })
}

/// Declares a table: a struct, and its [`Row`].
macro_rules! rows {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $crate::tables::Row for $name {
            fn schema() -> arrow::datatypes::SchemaRef {
                use $crate::tables::cell::Cell;
                $crate::tables::row::schema_of(vec![
                    $(arrow::datatypes::Field::new(
                        stringify!($field), <$type as Cell>::data_type(), <$type as Cell>::NULLABLE,
                    ),)*
                ])
            }

            fn to_batch(rows: &[Self]) -> anyhow::Result<arrow::array::RecordBatch> {
                use $crate::tables::cell::Cell;
                let columns = vec![
                    $(<$type as Cell>::build(rows.iter().map(|row| row.$field.clone()).collect()),)*
                ];
                Ok(arrow::array::RecordBatch::try_new(Self::schema(), columns)?)
            }

            fn from_batch(batch: &arrow::array::RecordBatch) -> anyhow::Result<Vec<Self>> {
                use anyhow::Context;
                $(let mut $field = $crate::tables::row::column::<$type>(batch, stringify!($field))?.into_iter();)*
                (0..batch.num_rows())
                    .map(|_| Ok(Self { $($field: $field.next().context("a column is short")?,)* }))
                    .collect()
            }
        }
    };
}
pub(crate) use rows;

pub(crate) fn schema_of(fields: Vec<arrow::datatypes::Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

pub(crate) fn column<C: super::cell::Cell>(batch: &RecordBatch, name: &str) -> Result<Vec<C>> {
    let column = batch.column_by_name(name).with_context(|| format!("has no column `{name}`"))?;
    C::read(column.as_ref()).with_context(|| format!("column `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{TreeNode, TrueFeature};

    fn nodes() -> Vec<TreeNode> {
        let node = |latent: u32| TreeNode {
            latent,
            level: if latent < 2 { "coarse" } else { "fine" }.into(),
            parent: (latent >= 2).then_some(latent % 2),
            weight: (latent >= 2).then_some(0.25 * f64::from(latent)),
            runner_up: None,
            margin: None,
        };
        (0..5).map(node).collect()
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree.parquet");
        assert_eq!(write_rows(&mut File::create(&path).unwrap(), &nodes()).unwrap(), Some(5));
        assert_eq!(read_rows::<TreeNode>(&path).unwrap(), nodes());
    }

    #[test]
    fn a_table_written_in_pieces_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree.parquet");
        let mut table = TableWriter::new(File::create(&path).unwrap()).unwrap();
        for rows in [&nodes()[..2], &[], &nodes()[2..]] {
            table.write(rows).unwrap();
        }
        assert_eq!(table.finish().unwrap(), Some(5));
        assert_eq!(read_rows::<TreeNode>(&path).unwrap(), nodes());
    }

    #[test]
    fn an_empty_table_comes_back_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree.parquet");
        write_rows::<TreeNode>(&mut File::create(&path).unwrap(), &[]).unwrap();
        assert!(read_rows::<TreeNode>(&path).unwrap().is_empty());
    }

    #[test]
    fn a_table_with_other_columns_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree.parquet");
        write_rows(&mut File::create(&path).unwrap(), &nodes()).unwrap();
        let error = format!("{:#}", read_rows::<TrueFeature>(&path).unwrap_err());
        assert!(error.contains("tree.parquet") && error.contains("no column `feature`"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors_and_not_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree.parquet");
        write_rows(&mut File::create(&path).unwrap(), &nodes()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut n_refused = 0;
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0xff;
            std::fs::write(&path, &damaged).unwrap();
            n_refused += usize::from(read_rows::<TreeNode>(&path).is_err());
            std::fs::write(&path, &whole[..i]).unwrap();
            assert!(read_rows::<TreeNode>(&path).is_err(), "cut at byte {i}");
        }
        assert!(n_refused > 0);
    }
}
