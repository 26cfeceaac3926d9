//! What the whole-pipeline tests share: a run in a folder of its own, made by the stages' own programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use artifact::stage::{MANIFEST, Manifest};
use tempfile::TempDir;

/// In the order in which they run.
pub const STAGES: [&str; 6] = ["fetch", "harvest", "train", "recover", "probe", "report"];

/// A pipeline file and the folder that its stages write to; both vanish with it.
pub struct Run {
    pub config: PathBuf,
    pub folder: PathBuf,
    home: TempDir,
}

impl Run {
    /// A run of the pipeline in `text`, of which nothing has been made yet.
    pub fn new(text: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let config = home.path().join("pipeline.yaml");
        std::fs::write(&config, text).expect("a pipeline file");
        let folder = home.path().join("run");
        Self { config, folder, home }
    }

    /// A run of a pipeline file that lies elsewhere.
    pub fn at(config: PathBuf, folder: PathBuf) -> Self {
        Self { config, folder, home: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A run of `configs/NAME`, of which nothing has been made yet.
    pub fn of(name: &str) -> Self {
        Self::new(&std::fs::read_to_string(repository().join("configs").join(name)).expect("a shipped pipeline"))
    }

    /// A copy of one finished run of `configs/smoke.yaml`, which all tests of this process share.
    pub fn finished() -> Self {
        static FINISHED: OnceLock<Run> = OnceLock::new();
        let finished = FINISHED.get_or_init(|| {
            let run = Self::of("smoke.yaml");
            run.all();
            run
        });
        finished.copy()
    }

    /// The same pipeline in another folder, with all that was made so far.
    pub fn copy(&self) -> Self {
        let copy = Self::new(&std::fs::read_to_string(&self.config).expect("the pipeline file"));
        copy_folder(&self.folder, &copy.folder);
        copy
    }

    /// A folder beside the run.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn command(&self, stage: &str) -> Command {
        let mut command = Command::new(program(stage));
        command.arg("--config").arg(&self.config).arg("--run").arg(&self.folder).arg("--quiet");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a stage to its end, whatever that is.
    pub fn stage(&self, stage: &str, extra: &[&str]) -> Output {
        self.command(stage).args(extra).output().expect("the stage's program starts")
    }

    /// Runs a stage that must end well.
    pub fn expect(&self, stage: &str, extra: &[&str]) {
        let output = self.stage(stage, extra);
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
    }

    /// Runs a stage that must end well, and returns what it says to a user who has not asked for quiet.
    pub fn said(&self, stage: &str) -> String {
        let paths = ["--config".as_ref(), self.config.as_os_str(), "--run".as_ref(), self.folder.as_os_str()];
        let output = Command::new(program(stage)).args(paths).output().expect("the stage's program starts");
        let said = stderr(&output);
        assert!(output.status.success(), "{stage}: {said}");
        said
    }

    /// Runs a stage that must fail the way users should see: exit code 1 and one line, which is returned.
    pub fn expect_error(&self, stage: &str, extra: &[&str]) -> String {
        let output = self.stage(stage, extra);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{stage}: {message}");
        assert!(message.starts_with(&format!("{stage}: error: ")), "{stage}: {message}");
        assert_eq!(message.lines().count(), 1, "{stage}: more than one line: {message}");
        message
    }

    pub fn start(&self, stage: &str, extra: &[&str]) -> Child {
        let mut command = self.command(stage);
        command.args(extra).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the stage's program starts")
    }

    /// Runs every stage; each must end well.
    pub fn all(&self) {
        STAGES.iter().for_each(|stage| self.expect(stage, &[]));
    }

    /// Replaces text in the pipeline file, which must occur in it.
    pub fn edit(&self, old: &str, new: &str) {
        let text = std::fs::read_to_string(&self.config).expect("the pipeline file");
        assert!(text.contains(old), "the pipeline has no `{old}`");
        std::fs::write(&self.config, text.replace(old, new)).expect("the pipeline file");
    }

    /// Folder under the run → its manifest's text.
    pub fn manifests(&self) -> BTreeMap<String, String> {
        let manifests = files_below(&self.folder).into_iter().filter(|path| path.ends_with(MANIFEST));
        manifests
            .map(|path| {
                let folder = path.parent().and_then(|folder| folder.strip_prefix(&self.folder).ok());
                let name = folder.expect("a manifest lies in a folder of the run").to_string_lossy().into_owned();
                (name, std::fs::read_to_string(&path).expect("a manifest"))
            })
            .collect()
    }

    /// Every published file → when it was last written.
    pub fn output_times(&self) -> BTreeMap<PathBuf, SystemTime> {
        let mut times = BTreeMap::new();
        for folder in self.manifests().keys().map(|name| self.folder.join(name)) {
            let manifest = Manifest::read(&folder).expect("a manifest").expect("a manifest");
            for output in manifest.outputs {
                let path = folder.join(output.path);
                let time = std::fs::metadata(&path).and_then(|m| m.modified()).expect("a published file");
                times.insert(path, time);
            }
        }
        times
    }
}

/// The folders whose manifests differ.
pub fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

/// Kills a process once a file or folder is there that it writes on its way.
pub fn kill_when_there(mut process: Child, path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no {} in a minute", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    process.kill().expect("the process can be killed");
    process.wait().expect("the process ends");
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// The folder with the stages' programs: `target/release` for a test in `target/release/deps`.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps").to_owned()
}

pub fn program(stage: &str) -> PathBuf {
    let path = programs().join(stage);
    assert!(path.exists(), "{}: not built; run `cargo build --release --workspace` before the tests", path.display());
    path
}

/// All files below a folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("a folder's entry").path()) {
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn copy_folder(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).expect("it lies below"));
        std::fs::create_dir_all(target.parent().expect("a file lies in a folder")).expect("a folder");
        std::fs::copy(&file, &target).expect("a copy");
    }
}
