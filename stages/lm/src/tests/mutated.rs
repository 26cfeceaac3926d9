//! Folders in Hugging Face format with one file damaged: a model or an error that names the file, whatever the damage.

use std::path::Path;

use super::families::folder;
use super::tiny::Random;
use crate::{LanguageModel, cpu};

const N_MUTATIONS: usize = 2000;
/// Of this process, whose other tests take some more. Files are some 10 kB, what a damaged size asks for is more than this.
const MOST_BYTES: u64 = 1 << 30;

/// A copy of a golden's folder without what belongs to the test.
fn copy_of(family: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(family)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !["expected.safetensors", "texts.json"].contains(&name) {
            std::fs::copy(&path, copy.path().join(name)).unwrap();
        }
    }
    copy
}

/// Bytes changed, a part doubled, taken out or put elsewhere, digits changed, or the end cut off.
fn mutated(bytes: &[u8], n_first: usize, random: &mut Random) -> Vec<u8> {
    let mut below = |n: usize| ((random.next() * n as f64) as usize).min(n.saturating_sub(1));
    let mut out = bytes.to_vec();
    let n_first = n_first.min(out.len());
    match below(6) {
        0 => out.truncate(below(bytes.len())),
        1 => {
            let (from, n) = (below(n_first), below(40));
            out.drain(from..(from + n).min(bytes.len()));
        }
        2 => {
            let (from, to, n) = (below(n_first), below(n_first), below(60));
            let part = bytes[from..(from + n).min(bytes.len())].to_vec();
            out.splice(to..to, part);
        }
        3 => {
            // A number with other digits, or more of them.
            let digits: Vec<usize> = (0..n_first).filter(|&at| bytes[at].is_ascii_digit()).collect();
            if !digits.is_empty() {
                let at = digits[below(digits.len())];
                let digits = ["0", "-1", "99999999999999999999", "1e308", "4294967296", "null"][below(6)];
                out.splice(at..=at, digits.bytes());
            }
        }
        _ => {
            for _ in 0..=below(4) {
                let at = below(n_first);
                out[at] = below(256) as u8;
            }
        }
    }
    out
}

/// Damages a file over and over. `n_first`: of the file's bytes, those that mean something to a reader.
fn check(family: &str, file: &str, n_first: usize) -> (usize, usize) {
    let copy = copy_of(family);
    let path = copy.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    let mut random = Random(file.len() as u64);
    let (mut n_models, mut n_errors) = (0, 0);
    for i in 0..N_MUTATIONS {
        let damaged = mutated(&bytes, n_first, &mut random);
        std::fs::write(&path, &damaged).unwrap();
        match LanguageModel::open(copy.path(), &cpu()) {
            Ok(model) => {
                n_models += 1;
                let n = model.config().context_length.min(3);
                model.hidden(&vec![0; n], n).unwrap();
                model.tokenizer().encode("the café, 12\u{1}").ok();
            }
            Err(error) => {
                n_errors += 1;
                let message = format!("{error:#}");
                // What is possible in one file is missed in another: a size in the weights or the vocabulary, a part in the whole.
                let others: &[&str] = match file {
                    "config.json" => &["safetensors: tensor ", "from the weights", "tokenizer.json: token "],
                    "model.safetensors.index.json" => &["safetensors", "from the weights"],
                    part if part.contains("-of-") => &["from the weights", "is in another file too"],
                    _ => &[],
                };
                let names_it = message.contains(file) || others.iter().any(|other| message.contains(other));
                assert!(names_it, "{file}, {i}: {message}");
            }
        }
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(LanguageModel::open(copy.path(), &cpu()).is_ok());
    (n_models, n_errors)
}

fn peak_bytes() -> u64 {
    // SAFETY: the struct is plain numbers, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    usage.ru_maxrss as u64 * 1024
}

#[test]
fn damaged_folders_end_in_a_model_or_an_error_that_names_the_file() {
    assert!(Path::new(&folder("llama")).is_dir());
    for (family, file, n_first) in [
        ("llama", "config.json", 2000),
        ("gemma2", "config.json", 2000),
        ("gpt_neox", "tokenizer.json", 20_000),
        ("gemma2", "tokenizer.json", 20_000),
        ("gpt2", "model.safetensors", 2600),
        ("qwen3", "model.safetensors.index.json", 3000),
        ("qwen3", "model-00001-of-00003.safetensors", 400),
    ] {
        let (n_models, n_errors) = check(family, file, n_first);
        eprintln!("{family} {file}: {n_models} models, {n_errors} errors");
        assert!(
            n_errors >= N_MUTATIONS / 10 && n_models >= 10,
            "{family} {file}: {n_models} models, {n_errors} errors"
        );
    }
    assert!(peak_bytes() <= MOST_BYTES, "{} bytes at the most", peak_bytes());
}
