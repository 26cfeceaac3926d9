//! A folder that is made anew from what it holds. Its files are written beside the old ones, the manifest last of all, and
//! only then do they take their places. A process that is killed before that leaves the old folder, whole; one that is
//! killed amid it leaves all that is needed to go on, and the next one does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::manifest::{self, Manifest, Output};
use super::task::{file_name, rename, sync_folder};
use crate::digest;

const SUFFIX: &str = ".tmp";

/// Where a file is written before it takes its place.
pub(super) fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}{SUFFIX}", file_name(path)))
}

/// Whether `put_in_place` may have something to do.
pub(super) fn is_half_done(folder: &Path) -> bool {
    temporary(&folder.join(manifest::FILE_NAME)).is_file()
}

/// Goes on where a process was killed that had written everything, its manifest too.
pub(super) fn put_in_place(folder: &Path) -> Result<()> {
    let path = folder.join(manifest::FILE_NAME);
    let Ok(Some(manifest)) = Manifest::read_file(&temporary(&path)) else { return Ok(()) };
    let is_output = |path: &Path, output: &Output| digest::of_file(path).is_ok_and(|found| found == output.sha256);
    let mut waiting = Vec::new();
    let mut folders = BTreeSet::from([folder.to_owned()]);
    for output in &manifest.outputs {
        let target = folder.join(&output.path);
        folders.extend(target.parent().map(Path::to_owned));
        if is_output(&target, output) {
            continue;
        }
        if !is_output(&temporary(&target), output) {
            return Ok(());
        }
        waiting.push(target);
    }
    for target in &waiting {
        rename(&temporary(target), target)?;
    }
    folders.iter().try_for_each(|folder| sync_folder(folder))?;
    rename(&temporary(&path), &path)?;
    sync_folder(folder)
}

/// Removes what a killed process had begun to write.
pub(super) fn remove_temporaries(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}: cannot list", folder.display()))? {
        let path = entry?.path();
        if path.is_file() && file_name(&path).ends_with(SUFFIX) {
            std::fs::remove_file(&path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stage::log::Log;
    use crate::stage::task::{State, Task};
    use crate::stage::{Key, LogFormat};

    fn key(threshold: u32) -> Key {
        let config = json!({"sae": 1, "calibration": {"threshold": threshold}});
        let (stage, device) = ("test".into(), "cpu".into());
        Key { schema: manifest::SCHEMA, stage, recipe: 1, seed: 0, device, config, inputs: Default::default() }
    }

    struct Folder {
        run: tempfile::TempDir,
        log: Log,
    }

    impl Folder {
        /// As a first task leaves it, which wrote a file more than those that replace it.
        fn published() -> Self {
            let this = Self { run: tempfile::tempdir().unwrap(), log: Log::new("test", LogFormat::Text, true) };
            let mut task = Task::begin(this.path(), "folder", key(1), false, &this.log).unwrap().unwrap();
            task.write_bytes("rules", b"old").unwrap();
            task.write_bytes("deep/weights", b"weights").unwrap();
            task.write_bytes("more", b"more").unwrap();
            task.finish().unwrap();
            this
        }

        fn path(&self) -> PathBuf {
            self.run.path().join("sae")
        }

        fn replacement(&self, key: Key) -> Option<Task> {
            Task::replace(self.path(), key, "calibration", &self.log).unwrap()
        }

        /// A replacement of which everything but the end is done.
        fn written(&self) -> Task {
            let mut task = self.replacement(key(2)).unwrap();
            task.write_bytes("rules", b"new").unwrap();
            task.write_bytes("deep/weights", b"weights").unwrap();
            task
        }

        fn read(&self, name: &str) -> Vec<u8> {
            std::fs::read(self.path().join(name)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> =
                std::fs::read_dir(self.path()).unwrap().map(|entry| file_name(&entry.unwrap().path())).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_folder_stays_whole_until_what_replaces_it_is() {
        let folder = Folder::published();
        drop(folder.written());
        assert_eq!(State::of(&folder.path(), &key(1)), State::Fresh);
        folder.written().finish().unwrap();
        assert_eq!(State::of(&folder.path(), &key(2)), State::Fresh);
        assert_eq!(folder.read("rules"), b"new");
        assert_eq!(folder.names(), [".lock", "deep", "manifest.json", "rules"]);
    }

    #[test]
    fn a_manifest_that_cannot_be_written_leaves_the_old_folder() {
        let folder = Folder::published();
        let task = folder.written();
        std::fs::create_dir(folder.path().join("manifest.json.tmp")).unwrap();
        task.finish().unwrap_err();
        assert_eq!(State::of(&folder.path(), &key(1)), State::Fresh);
    }

    #[test]
    fn a_process_killed_while_files_take_their_places_is_finished_by_the_next() {
        for n_renamed in 0..=2 {
            let folder = Folder::published();
            folder.written().finish().unwrap();
            // Back to the moment when so many files had been renamed.
            let path = |name: &str| folder.path().join(name);
            let waiting = ["rules", "deep/weights"].into_iter().skip(n_renamed).chain(["manifest.json"]);
            waiting.for_each(|name| std::fs::rename(path(name), temporary(&path(name))).unwrap());
            std::fs::write(path("manifest.json"), "the old one").unwrap();
            assert!(is_half_done(&folder.path()));
            assert!(folder.replacement(key(2)).is_none());
            assert_eq!(State::of(&folder.path(), &key(2)), State::Fresh, "{n_renamed} renamed");
            assert_eq!(folder.read("rules"), b"new");
        }
    }

    #[test]
    fn nothing_takes_its_place_before_all_is_written() {
        let folder = Folder::published();
        drop(folder.written());
        let manifest = Manifest::new(key(2), vec![]);
        let mut manifest = serde_json::to_value(&manifest).unwrap();
        manifest["outputs"] = json!([
            {"path": "rules", "sha256": digest::of_bytes(b"new"), "bytes": 3, "rows": null},
            {"path": "deep/weights", "sha256": digest::of_bytes(b"others"), "bytes": 6, "rows": null},
        ]);
        std::fs::write(folder.path().join("manifest.json.tmp"), manifest.to_string()).unwrap();
        put_in_place(&folder.path()).unwrap();
        assert_eq!(State::of(&folder.path(), &key(1)), State::Fresh);
        // What was begun goes when the old folder is asked for.
        assert!(Task::begin(folder.path(), "folder", key(1), false, &folder.log).unwrap().is_none());
        assert!(folder.names().iter().all(|name| !name.ends_with(SUFFIX)), "{:?}", folder.names());
    }

    #[test]
    fn only_what_differs_in_that_part_alone_is_replaced() {
        let folder = Folder::published();
        assert!(folder.replacement(key(1)).is_none(), "up to date");
        assert!(folder.replacement(Key { recipe: 2, ..key(2) }).is_none());
        std::fs::write(folder.path().join("rules"), "damaged").unwrap();
        assert!(folder.replacement(key(2)).is_none());
    }
}
