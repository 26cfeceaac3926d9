//! The column `activation` alone, row group by row group, as training reads it: what `harvest` writes is copied page by
//! page, without a detour over arrow's arrays.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::{Values, refuse_mixture, refuse_non_finite, width_and_type};
use crate::config::ActivationDtype;
use crate::stage::guard;

/// The parts of a split, of which only the footers have been read.
pub struct Parts {
    pub d_model: usize,
    pub dtype: ActivationDtype,
    /// Part by part, in the order given.
    pub groups: Vec<RowGroup>,
    parts: Vec<Part>,
}

/// A piece of a part that is read as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowGroup {
    pub part: usize,
    /// Within its part.
    pub index: usize,
    /// Its first row, counted from the start of its part.
    pub first_row: usize,
    pub n_rows: usize,
}

struct Part {
    path: PathBuf,
    footer: Arc<ParquetMetaData>,
    /// Which of the file's columns holds the activations.
    column: usize,
}

impl Parts {
    /// Errors: there are no parts; a part's footer is malformed, or it has another d_model or type than the first.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all: Option<Self> = None;
        for path in paths.iter().map(AsRef::as_ref) {
            guard(path, || {
                let file = File::open(path).context("cannot open")?;
                let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
                let (d_model, dtype) = width_and_type(metadata.schema())?;
                let all = all.get_or_insert(Self { d_model, dtype, groups: Vec::new(), parts: Vec::new() });
                refuse_mixture((all.d_model, all.dtype), (d_model, dtype))?;
                let mut columns = metadata.parquet_schema().columns().iter();
                let column = columns.position(|column| column.path().parts()[0] == "activation");
                let column = column.context("has no column `activation`")?;
                all.push(Part { path: path.to_owned(), footer: metadata.metadata().clone(), column })
            })?;
        }
        all.context("no activations: the dataset has no parts")
    }

    pub fn n_rows(&self) -> usize {
        self.groups.iter().map(|group| group.n_rows).sum()
    }

    /// Bytes that so many rows take, on disk and in memory.
    pub fn bytes_of(&self, n_rows: usize) -> u64 {
        (n_rows * self.d_model * self.dtype.bytes()) as u64
    }

    /// Appends the rows of a group [n_rows, d_model].
    ///
    /// Errors: the part is malformed, or holds NaN or infinities (file, row and column are named).
    pub fn read(&self, group: &RowGroup, values: &mut Values) -> Result<()> {
        let part = &self.parts[group.part];
        guard(&part.path, || {
            let file = Arc::new(File::open(&part.path).context("cannot open")?);
            let column = part.footer.row_group(group.index).column(part.column);
            let mut pages = SerializedPageReader::new(file, column, group.n_rows, None)?;
            let before = values.len();
            while let Some(page) = pages.get_next_page()? {
                let first_row = group.first_row + (values.len() - before) / self.d_model;
                let stored = stored_values(&page, self.dtype)?;
                match values {
                    Values::F16(values) => {
                        let first = values.len();
                        values.extend(stored.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])));
                        refuse_non_finite(values[first..].iter().map(|v| v.is_finite()), self.d_model, first_row)?;
                    }
                    Values::F32(values) => {
                        let first = values.len();
                        let items = stored.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                        values.extend(items);
                        refuse_non_finite(values[first..].iter().map(|v| v.is_finite()), self.d_model, first_row)?;
                    }
                }
            }
            let (found, expected) = (values.len() - before, group.n_rows * self.d_model);
            ensure!(found == expected, "row group {} holds {found} values, expected {expected}", group.index);
            Ok(())
        })
    }

    fn push(&mut self, part: Part) -> Result<()> {
        let mut first_row = 0;
        for (index, group) in part.footer.row_groups().iter().enumerate() {
            let n_rows = usize::try_from(group.num_rows()).context("a row group has a negative number of rows")?;
            self.groups.push(RowGroup { part: self.parts.len(), index, first_row, n_rows });
            first_row += n_rows;
        }
        self.parts.push(part);
        Ok(())
    }
}

/// The values of a page without what stands before them: the levels, which say where lists start and what is null.
///
/// Errors: the page is not as harvest writes it, or has nulls.
fn stored_values(page: &Page, dtype: ActivationDtype) -> Result<&[u8]> {
    ensure!(page.encoding() == Encoding::PLAIN, "`activation` is encoded as {}, expected PLAIN", page.encoding());
    let stored = match page {
        // Repetition and definition levels, each with its length in front.
        Page::DataPage { buf, .. } => after_levels(after_levels(buf)?)?,
        Page::DataPageV2 { buf, rep_levels_byte_len, def_levels_byte_len, .. } => {
            let start = *rep_levels_byte_len as usize + *def_levels_byte_len as usize;
            buf.get(start..).context("a page ends within its levels")?
        }
        Page::DictionaryPage { .. } => bail!("`activation` has a dictionary"),
    };
    let expected = page.num_values() as usize * dtype.bytes();
    ensure!(stored.len() == expected, "a page of `activation` holds {} bytes, expected {expected}", stored.len());
    Ok(stored)
}

fn after_levels(bytes: &[u8]) -> Result<&[u8]> {
    let (n, rest) = bytes.split_first_chunk::<4>().context("a page ends within its levels")?;
    rest.get(u32::from_le_bytes(*n) as usize..).context("a page ends within its levels")
}

#[cfg(test)]
mod tests {
    use super::super::{Activations, PartWriter, ROWS_PER_GROUP};
    use super::*;

    /// Parts of so many rows each, whose values count up in steps that are exact in f16.
    fn write(folder: &Path, d_model: usize, dtype: ActivationDtype, n_rows: &[usize]) -> Vec<PathBuf> {
        let write = |(i, &n): (usize, &usize)| {
            let path = folder.join(format!("part-{i}.parquet"));
            let mut writer = PartWriter::new(File::create(&path).unwrap(), d_model, dtype).unwrap();
            let values: Vec<f32> = (0..n * d_model).map(|j| ((j * 31 + i) % 4001) as f32 / 8.0 - 200.0).collect();
            writer.write(&vec![i as u32; n], &vec![1; n], &vec![0; n], &values).unwrap();
            writer.finish().unwrap();
            path
        };
        n_rows.iter().enumerate().map(write).collect()
    }

    #[test]
    fn row_groups_hold_what_arrow_reads() {
        let folder = tempfile::tempdir().unwrap();
        for dtype in [ActivationDtype::F16, ActivationDtype::F32] {
            // More than a page and more than a group; a group of one row.
            let paths = write(folder.path(), 70, dtype, &[2 * ROWS_PER_GROUP + 1, 5]);
            let parts = Parts::open(&paths).unwrap();
            let n_rows: Vec<usize> = parts.groups.iter().map(|group| group.n_rows).collect();
            assert_eq!(n_rows, [ROWS_PER_GROUP, ROWS_PER_GROUP, 1, 5]);
            assert_eq!((parts.groups[2].first_row, parts.groups[3].first_row), (2 * ROWS_PER_GROUP, 0));
            let mut values = Values::with_capacity(dtype, 0);
            parts.groups.iter().for_each(|group| parts.read(group, &mut values).unwrap());
            let expected = Activations::read(&paths).unwrap();
            assert!(values == expected.values);
            assert_eq!((parts.n_rows(), parts.d_model, parts.dtype), (expected.n_rows(), 70, dtype));
        }
    }

    #[test]
    fn a_part_that_was_damaged_since_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), 8, ActivationDtype::F32, &[100, 3000]);
        let parts = Parts::open(&paths).unwrap();
        let whole = std::fs::read(&paths[1]).unwrap();
        let check = |bytes: &[u8], expected: &str| {
            std::fs::write(&paths[1], bytes).unwrap();
            let mut values = Values::default();
            parts.read(&parts.groups[0], &mut values).unwrap();
            let error = format!("{:#}", parts.read(&parts.groups[1], &mut values).unwrap_err());
            assert!(error.contains("part-1.parquet") && error.contains(expected), "{error}");
        };
        check(&whole[..whole.len() / 2], "");
        check(b"", "");
        let mut with_nan = whole.clone();
        // Activations come last before the footer; the page's last value is the 8th of row 2999.
        let footer = u32::from_le_bytes(whole[whole.len() - 8..whole.len() - 4].try_into().unwrap()) as usize;
        let last = (0..whole.len() - 8 - footer).rev().find(|&i| whole[i..].starts_with(&last_value())).unwrap();
        with_nan[last..last + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        check(&with_nan, "row 2999, column 7");
    }

    /// As [`write`] makes it, of part 1 with 3000 rows of 8.
    fn last_value() -> [u8; 4] {
        (((2999 * 8 + 7) * 31 + 1) as f32 % 4001.0 / 8.0 - 200.0).to_le_bytes()
    }

    #[test]
    fn parts_of_different_types_are_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut paths = write(a.path(), 4, ActivationDtype::F32, &[10]);
        paths.extend(write(b.path(), 4, ActivationDtype::F16, &[10]));
        let error = format!("{:#}", Parts::open(&paths).err().unwrap());
        assert!(error.contains("another type in the part before"), "{error}");
    }
}
