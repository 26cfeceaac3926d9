//! A file that appears whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes it beside its place, brings it to the disk, and renames it.
///
/// Errors: the disk does not take it (the file is named).
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_added_extension("tmp");
    let context = || format!("{}: cannot write", temporary.display());
    let mut out = File::create(&temporary).with_context(context)?;
    out.write_all(bytes).with_context(context)?;
    out.sync_all().with_context(context)?;
    std::fs::rename(&temporary, path).with_context(|| format!("{}: cannot rename", temporary.display()))
}
