//! Documents in a temporary file that has no name, so that a corpus of any size takes 8 bytes of memory a document. It goes
//! when it is dropped, however the process ends.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::Document;

/// Documents that are written once and read in any order.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// Where documents start, and where the last one ends. Each is the length of its name in 4 bytes, its name, its text.
    starts: Vec<u64>,
}

impl Spool {
    /// `write` is given a function that takes the documents, one after another.
    ///
    /// Errors: the folder for temporary files cannot be written to (`TMPDIR` names it), or what `write` gives.
    pub(crate) fn new(write: impl FnOnce(&mut dyn FnMut(&str, &str) -> Result<()>) -> Result<()>) -> Result<Self> {
        let context = || format!("{}: cannot keep documents there; set TMPDIR", std::env::temp_dir().display());
        let file = tempfile::tempfile().with_context(context)?;
        let (mut out, mut starts, mut at) = (BufWriter::with_capacity(1 << 20, &file), vec![0], 0);
        write(&mut |name, text| {
            let n_name = u32::try_from(name.len()).context("a name of 4 GiB")?;
            [&n_name.to_le_bytes()[..], name.as_bytes(), text.as_bytes()]
                .into_iter()
                .try_for_each(|bytes| out.write_all(bytes))
                .with_context(context)?;
            at += (4 + name.len() + text.len()) as u64;
            starts.push(at);
            Ok(())
        })?;
        out.flush().with_context(context)?;
        drop(out);
        Ok(Self { file, starts })
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Errors: the file cannot be read.
    pub(crate) fn read(&self, i: usize) -> Result<Document> {
        let context = || format!("{}: cannot read documents kept there", std::env::temp_dir().display());
        let mut bytes = vec![0; (self.starts[i + 1] - self.starts[i]) as usize];
        self.file.read_exact_at(&mut bytes, self.starts[i]).with_context(context)?;
        let (n_name, rest) = bytes.split_first_chunk::<4>().with_context(context)?;
        let (name, text) = rest.split_at_checked(u32::from_le_bytes(*n_name) as usize).with_context(context)?;
        let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).with_context(context);
        Ok(Document { name: string(name)?, text: string(text)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_back_in_any_order() {
        let written = [("a", "one"), ("", "zwei ☃"), ("long name", ""), ("ü", "four")];
        let spool = Spool::new(|add| written.iter().try_for_each(|(name, text)| add(name, text))).unwrap();
        assert_eq!(spool.len(), 4);
        for i in [3, 0, 2, 1, 3] {
            let (name, text) = written[i];
            assert_eq!(spool.read(i).unwrap(), Document { name: name.into(), text: text.into() });
        }
        assert_eq!(Spool::new(|_| Ok(())).unwrap().len(), 0);
        assert!(Spool::new(|_| anyhow::bail!("no text")).is_err());
    }
}
