//! Reads zip and tar archives. Nothing is written by what an archive says: every entry is checked, and the caller
//! decides what becomes of its bytes.

use std::io::{Read, Seek};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;

/// Calls `visit` with the path and the bytes of every file, in the archive's order.
///
/// Errors: an entry's path leaves the folder, an entry is a link or a device, or the archive is damaged or cut short.
pub(crate) fn each_file(
    name: &str,
    reader: impl Read + Seek,
    visit: &mut dyn FnMut(&str, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let is_zip = [".whl", ".zip"].iter().any(|end| name.ends_with(end));
    let result = if is_zip { each_in_zip(reader, visit) } else { each_in_tar_gz(reader, visit) };
    result.with_context(|| name.to_owned())
}

fn each_in_zip(reader: impl Read + Seek, visit: &mut dyn FnMut(&str, &mut dyn Read) -> Result<()>) -> Result<()> {
    let mut archive = zip::ZipArchive::new(reader).context("damaged or cut short")?;
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).context("damaged or cut short")?;
        let path = checked(&entry.name().context("a path is not text")?)?.to_owned();
        if entry.is_dir() {
            continue;
        }
        ensure!(!entry.is_symlink(), "{path} is a link; refused");
        visit(&path, &mut entry)?;
    }
    Ok(())
}

fn each_in_tar_gz(reader: impl Read, visit: &mut dyn FnMut(&str, &mut dyn Read) -> Result<()>) -> Result<()> {
    let mut archive = tar::Archive::new(GzDecoder::new(reader));
    for entry in archive.entries()? {
        let mut entry = entry.context("damaged or cut short")?;
        let path = String::from_utf8(entry.path_bytes().into_owned()).context("a path is not UTF-8")?;
        let path = checked(&path)?.to_owned();
        let kind = entry.header().entry_type();
        match kind {
            _ if kind.is_dir() => {}
            _ if kind.is_file() || kind.is_contiguous() => visit(&path, &mut entry)?,
            // Headers for the whole archive, as `git archive` writes them.
            _ if kind.is_pax_global_extensions() => {}
            _ => bail!("{path} is a link or a device; refused"),
        }
    }
    Ok(())
}

/// The path itself, if it stays below the folder it is unpacked into.
fn checked(path: &str) -> Result<&str> {
    let stays = Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    ensure!(stays && !path.contains(['\\', '\0']) && !path.is_empty(), "{path:?} leaves the folder; refused");
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use flate2::write::GzEncoder;

    use super::*;

    fn names(archive: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        each_file(archive, Cursor::new(bytes), &mut |path, file| {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            names.push(format!("{path}={text}"));
            Ok(())
        })?;
        Ok(names)
    }

    fn zip_of(path: &str, text: &str) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        writer.start_file(path, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap().into_inner()
    }

    /// Writes the name field directly, since the library refuses to write such names itself.
    fn tar_of(path: &str, kind: tar::EntryType, text: &str) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(text.len() as u64);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, text.as_bytes()).unwrap();
        let mut gz = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&builder.into_inner().unwrap()).unwrap();
        gz.finish().unwrap()
    }

    #[test]
    fn files_come_out_with_their_bytes() {
        assert_eq!(names("a.whl", &zip_of("x/y.txt", "hello")).unwrap(), ["x/y.txt=hello"]);
        let tar = tar_of("x/y.txt", tar::EntryType::Regular, "hello");
        assert_eq!(names("a.tgz", &tar).unwrap(), ["x/y.txt=hello"]);
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["../evil", "x/../../evil", "/etc/evil", "x\\..\\evil"] {
            let error = format!("{:#}", names("a.zip", &zip_of(path, "boo")).unwrap_err());
            assert!(error.contains("leaves the folder"), "zip {path}: {error}");
            let tar = tar_of(path, tar::EntryType::Regular, "boo");
            let error = format!("{:#}", names("a.tgz", &tar).unwrap_err());
            assert!(error.contains("leaves the folder"), "tar {path}: {error}");
        }
    }

    #[test]
    fn links_are_refused() {
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link] {
            let error = format!("{:#}", names("a.tgz", &tar_of("x/link", kind, "")).unwrap_err());
            assert!(error.contains("link"), "{error}");
        }
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        writer.add_symlink("x/link", "/etc/passwd", zip::write::SimpleFileOptions::default()).unwrap();
        let error = format!("{:#}", names("a.zip", &writer.finish().unwrap().into_inner()).unwrap_err());
        assert!(error.contains("link"), "{error}");
    }

    #[test]
    fn an_archive_cut_short_is_an_error() {
        let text = "a long text, so that there is something to cut ".repeat(50);
        let zip = zip_of("x", &text);
        let tar = tar_of("x", tar::EntryType::Regular, &text);
        for n in [zip.len() / 2, zip.len() - 1] {
            assert!(names("a.zip", &zip[..n]).is_err(), "zip cut at {n} of {}", zip.len());
        }
        for n in [4, tar.len() / 2] {
            assert!(names("a.tgz", &tar[..n]).is_err(), "tar cut at {n} of {}", tar.len());
        }
    }
}
