//! Source archives from pip's package index, by the simple repository API (PEP 503 and PEP 691). pip itself would run an
//! archive's setup.py before handing it over; this only reads the index that pip is set to.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ureq::Body;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::catalogue::Package;
use crate::tool::{pip_default_index, pip_setting};

/// Puts the package's archive into `folder`. The caller verifies its digest.
///
/// Errors: the index cannot be reached, or lists no such file.
pub(crate) fn download(folder: &Path, package: &Package) -> Result<()> {
    let index = match setting("PIP_INDEX_URL", "index-url") {
        Some(index) => index,
        None => pip_default_index().context("pip names no package index; set pip's index-url")?,
    };
    let page = format!("{}/{}/", index.trim_end_matches('/'), package.name.to_lowercase());
    let agent = agent(setting("PIP_CERT", "cert"))?;
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let told = |error: ureq::Error| no_answer(package, &error);
    let mut answer = agent.get(&page).header("Accept", accept).call().map_err(told)?;
    let listing = answer.body_mut().read_to_string().map_err(told)?;
    let Some(address) = address_of(&listing, package.file) else {
        bail!("pip's package index lists no {}; check pip's index-url setting", package.file);
    };
    let answer = agent.get(resolve(&page, &address)).call().map_err(told)?;
    save(answer, folder, package)
}

/// The same from an address of its own.
///
/// Errors: the address cannot be reached.
pub(crate) fn download_from(folder: &Path, package: &Package, address: &str) -> Result<()> {
    let answer = agent(None)?.get(address).call();
    save(answer.map_err(|error| anyhow!("{address} cannot be reached ({})", why(&error)))?, folder, package)
}

fn save(mut answer: Response<Body>, folder: &Path, package: &Package) -> Result<()> {
    // Into a temporary first, so that a file with the archive's name is whole.
    let target = folder.join(package.file);
    let temporary = folder.join(format!("{}.tmp", package.file));
    let mut file = File::create(&temporary).with_context(|| format!("{}: cannot write", temporary.display()))?;
    let mut reader = answer.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut buffer).with_context(|| format!("{}: the download broke off", package.file))?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).with_context(|| format!("{}: cannot write", temporary.display()))?;
    }
    drop(file);
    std::fs::rename(&temporary, &target).with_context(|| format!("{}: cannot rename", temporary.display()))
}

/// Addresses may hold a password; they are not shown.
fn no_answer(package: &Package, error: &ureq::Error) -> anyhow::Error {
    anyhow!(
        "pip's package index cannot be reached for {}=={} ({}); check the network, or pip's index and proxy settings",
        package.name,
        package.version,
        why(error)
    )
}

fn why(error: &ureq::Error) -> String {
    match error {
        ureq::Error::StatusCode(code) => format!("status {code}"),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::HostNotFound => "host not found".into(),
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::Tls(why) => (*why).into(),
        _ => "the connection failed".into(),
    }
}

/// From the environment, else from pip's configuration.
fn setting(variable: &str, name: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty()).or_else(|| pip_setting(name))
}

/// Trusts `own` certificates, such as those that pip is told to trust, else those the system names, else the usual public ones.
fn agent(own: Option<String>) -> Result<ureq::Agent> {
    let own = own.or_else(|| ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"].iter().find_map(|name| std::env::var(name).ok()));
    let roots = match own.map(PathBuf::from).filter(|path| path.is_file()) {
        Some(path) => certificates(&path)?,
        None => RootCerts::WebPki,
    };
    let tls = TlsConfig::builder().root_certs(roots).build();
    let seconds = |n| Some(Duration::from_secs(n));
    // A server that is there answers soon; a large file over a slow line may take its time.
    let config =
        ureq::Agent::config_builder().tls_config(tls).timeout_resolve(seconds(20)).timeout_connect(seconds(20));
    Ok(config.timeout_recv_response(seconds(60)).timeout_recv_body(seconds(3600)).build().into())
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let pem = std::fs::read(path).with_context(|| format!("{}: cannot read the certificates", path.display()))?;
    let certificates: Vec<Certificate> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    Ok(if certificates.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&certificates) })
}

/// Where a listing, JSON or HTML, says that `file` lies.
fn address_of(listing: &str, file: &str) -> Option<String> {
    if let Ok(listing) = serde_json::from_str::<serde_json::Value>(listing) {
        let files = listing.get("files")?.as_array()?;
        let found = files.iter().find(|entry| entry.get("filename").and_then(|name| name.as_str()) == Some(file))?;
        return found.get("url")?.as_str().map(str::to_owned);
    }
    let addresses = listing.split("href=").skip(1).filter_map(|rest| {
        let quote = rest.chars().next().filter(|c| "\"'".contains(*c))?;
        rest.get(1..)?.split(quote).next()
    });
    let without_digest = addresses.filter_map(|address| address.split('#').next());
    let mut found = without_digest.filter(|address| address.rsplit('/').next() == Some(file));
    found.next().map(|address| address.replace("&amp;", "&"))
}

/// An address as a page gives it, made absolute.
fn resolve(page: &str, address: &str) -> String {
    if address.starts_with("http://") || address.starts_with("https://") {
        return address.to_owned();
    }
    let host_end = page.find("://").map_or(0, |i| i + 3);
    let host_end = page[host_end..].find('/').map_or(page.len(), |i| host_end + i);
    let (host, folder) = page.split_at(host_end);
    let path = if address.starts_with('/') { address.to_owned() } else { format!("{folder}{address}") };
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("{host}/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_in_both_kinds_of_listing() {
        let json = r#"{"files": [{"filename": "a-1.zip", "url": "x"}, {"filename": "a-1.tar.gz", "url": "https://h/f/a-1.tar.gz"}]}"#;
        assert_eq!(address_of(json, "a-1.tar.gz").as_deref(), Some("https://h/f/a-1.tar.gz"));
        assert_eq!(address_of(json, "a-2.tar.gz"), None);
        let html = "<a href=\"../../f/a-1.zip\">a</a><a href=\"../../f/a-1.tar.gz#sha256=00\">a-1.tar.gz</a>";
        assert_eq!(address_of(html, "a-1.tar.gz").as_deref(), Some("../../f/a-1.tar.gz"));
        assert_eq!(address_of(html, "a-2.tar.gz"), None);
    }

    #[test]
    fn addresses_are_resolved_against_the_page() {
        let page = "https://host/simple/name/";
        assert_eq!(resolve(page, "../../f/a.gz"), "https://host/f/a.gz");
        assert_eq!(resolve(page, "/f/a.gz"), "https://host/f/a.gz");
        assert_eq!(resolve(page, "a.gz"), "https://host/simple/name/a.gz");
        assert_eq!(resolve(page, "https://other/a.gz"), "https://other/a.gz");
    }
}
