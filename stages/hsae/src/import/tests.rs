//! What SAELens and dictionary_learning saved, against what they make of it themselves, and what is refused:
//! `tests/reference/import_goldens.py` made the folders.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use rand::{Rng, RngExt};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::*;

/// Relative to the largest value of its kind.
const TOLERANCE: f32 = 1e-5;

/// Notes the largest allocation of each thread.
struct Watched;

thread_local! { static LARGEST: Cell<usize> = const { Cell::new(0) }; }

// SAFETY: all work is the system allocator's.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn goldens() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/import")).to_owned()
}

fn read_folder(folder: &Path) -> Result<Foreign> {
    match folder.join(sae_lens::CFG).exists() {
        true => sae_lens::read(&folder.join(sae_lens::CFG), &folder.join(sae_lens::WEIGHTS)),
        false => dictionary_learning::read(
            &folder.join(dictionary_learning::CONFIG),
            &folder.join(dictionary_learning::WEIGHTS),
        ),
    }
}

/// A copy of a golden's folder that may be damaged.
struct Copied {
    folder: tempfile::TempDir,
}

impl Copied {
    fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(goldens().join(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        Self { folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.path(file), bytes).unwrap();
    }

    fn edit(&self, file: &str, old: &str, new: &str) {
        let text = String::from_utf8(self.bytes(file)).unwrap();
        assert!(text.contains(old), "{file} has no {old}");
        self.write(file, text.replace(old, new).as_bytes());
    }

    fn error(&self) -> String {
        format!("{:#}", read_folder(self.folder.path()).err().expect("an error"))
    }
}

/// The golden's folder with one edit of its configuration is refused, and all of this is said.
fn check_refused(golden: &str, old: &str, new: &str, expected: &[&str]) {
    let copied = Copied::of(golden);
    let config = if copied.path(sae_lens::CFG).exists() { sae_lens::CFG } else { dictionary_learning::CONFIG };
    copied.edit(config, old, new);
    let error = copied.error();
    for part in expected.iter().chain(&[config]) {
        assert!(error.contains(part), "{golden}: {part} not in: {error}");
    }
}

struct Golden {
    kind: String,
    k: usize,
    /// [5, 10] and [5, 6].
    acts: Vec<f32>,
    x_hat: Vec<f32>,
}

fn expected() -> (Vec<f32>, BTreeMap<String, Golden>) {
    let text = std::fs::read_to_string(goldens().join("expected.txt")).unwrap();
    let (mut x, mut goldens) = (Vec::new(), BTreeMap::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers = |words: &[&str]| words.iter().map(|word| word.parse::<f32>().unwrap()).collect::<Vec<_>>();
        match words[..] {
            ["sae", name, kind, k] => {
                let golden = Golden { kind: kind.into(), k: k.parse().unwrap(), acts: vec![], x_hat: vec![] };
                goldens.insert(name.to_owned(), golden);
            }
            ["x", _, ref values @ ..] => x.extend(numbers(values)),
            ["act", name, _, ref values @ ..] => goldens.get_mut(name).unwrap().acts.extend(numbers(values)),
            ["x_hat", name, _, ref values @ ..] => goldens.get_mut(name).unwrap().x_hat.extend(numbers(values)),
            _ => panic!("{line}"),
        }
    }
    (x, goldens)
}

fn check_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= TOLERANCE * scale, "{what}, value {i}: {found}, expected {expected}");
    }
}

#[test]
fn every_golden_encodes_and_decodes_as_where_it_comes_from() {
    let (x, goldens_of) = expected();
    let n_folders =
        std::fs::read_dir(goldens()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!((n_folders, goldens_of.len()), (20, 20));
    for (name, golden) in goldens_of {
        let foreign = read_folder(&goldens().join(&name)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let named = Sae { name: name.clone(), import: Some(goldens().join(&name)), ..Sae::default() };
        let sae = foreign.finish(&named, 3, &x).unwrap();
        let mode = Mode { view: View::Flat, threshold: Threshold::Native };
        let acts = sae.encode(&x, mode);
        let dense: Vec<f32> = (0..5)
            .flat_map(|t| {
                let (idx, vals) = acts.row(t);
                let mut row = vec![0f32; sae.d_sae];
                idx.iter().zip(vals).for_each(|(&j, &value)| row[j as usize] = value);
                row
            })
            .collect();
        check_close(&format!("activations of {name}"), &dense, &golden.acts);
        check_close(&format!("reconstructions of {name}"), &sae.decode(&acts), &golden.x_hat);

        let is_topk = sae.config.arch == Arch::Topk;
        for (j, row) in sae.w_dec.chunks_exact(6).enumerate().filter(|_| !is_topk) {
            assert!((dot(row, row) - 1.0).abs() <= 1e-5, "{name}: decoder row {j} has length² {}", dot(row, row));
        }
        let l0 = golden.acts.iter().filter(|&&act| act > 0.0).count() as f64 / 5.0;
        let k = if golden.k == 0 { l0.round() as usize } else { golden.k };
        assert_eq!((sae.config.k, sae.config.d_sae(), sae.config.name.as_str()), (k, 10, name.as_str()), "{name}");
        let arch = match golden.kind.as_str() {
            "standard" | "AutoEncoder" | "AutoEncoderNew" => Arch::Vanilla,
            "gated" | "GatedAutoEncoder" => Arch::Gated,
            "matching_pursuit" => Arch::MatchingPursuit,
            "topk" | "AutoEncoderTopK" => Arch::Topk,
            "BatchTopKSAE" => Arch::Batchtopk,
            "MatryoshkaBatchTopKSAE" => Arch::Matryoshka,
            _ if name == "sae_lens_batchtopk" => Arch::Batchtopk,
            _ if name == "sae_lens_matryoshka" => Arch::Matryoshka,
            _ => Arch::Jumprelu,
        };
        assert_eq!(sae.config.arch, arch, "{name}");
        assert_eq!(sae.n_coarse, if arch == Arch::Matryoshka { 4 } else { 0 }, "{name}");
        assert_eq!(sae.config.import.as_deref(), Some(Path::new(&name)), "the place stays out");
    }
}

#[test]
fn what_weights_cannot_stand_for_is_refused_by_name() {
    let check = |golden: &str, old: &str, new: &str, expected: &[&str]| check_refused(golden, old, new, expected);
    let none = "\"normalize_activations\": \"none\"";
    check("sae_lens_standard", none, "\"normalize_activations\": \"layer_norm\"", &["layer_norm", "each row"]);
    let rescale = "\"normalize_activations\": \"constant_norm_rescale\"";
    check("sae_lens_standard", none, rescale, &["normalize_activations = constant_norm_rescale"]);
    let expected = "\"normalize_activations\": \"expected_average_only_in\"";
    check("sae_lens_standard", none, expected, &["fold_activation_norm_scaling_factor"]);
    check("sae_lens_standard", "\"reshape_activations\": \"none\"", "\"reshape_activations\": \"hook_z\"", &["hook_z"]);
    check(
        "sae_lens_standard",
        "\"d_in\": 6",
        "\"d_in\": 6, \"finetuning_scaling_factor\": true",
        &["finetuning_scaling_factor = true"],
    );
    check("sae_lens_topk", "\"topk\"", "\"abstopk\"", &["architecture = abstopk is not read"]);
    check("sae_lens_topk", "\"k\": 3", "\"k\": 11", &["k = 11 exceeds d_sae = 10"]);
    check("sae_lens_topk", "\"sae_lens_version\": \"6.", "\"sae_lens_version\": \"5.", &["sae_lens_version = 5."]);
    check("sae_lens_topk", "\"d_sae\": 10", "\"d_sae\": -1", &["d_sae = -1 is no size"]);
    let threshold = "\"residual_threshold\": 0.0";
    let pursuit = "sae_lens_matching_pursuit";
    check(pursuit, threshold, "\"residual_threshold\": 0.01", &["residual_threshold = 0.01", "max_iterations steps"]);
    check(pursuit, "\"max_iterations\": 3", "\"max_iterations\": null", &["max_iterations = null"]);
    let stops = "\"stop_on_duplicate_support\": false";
    check(pursuit, stops, "\"stop_on_duplicate_support\": true", &["stop_on_duplicate_support = true"]);
    check("sae_lens_matryoshka", "[4, 7, 10]", "[7, 4, 10]", &["matryoshka_widths"]);
    check(
        "dictionary_learning_AutoEncoder",
        "\"AutoEncoder\"",
        "\"IdentityDict\"",
        &["dict_class = IdentityDict", "config.json: "],
    );
    check("dictionary_learning_BatchTopKSAE", "\"k\": 2", "\"k\": 3", &["k = 2", "trainer.k = 3", "ae.pt"]);
}

#[test]
fn a_tensor_that_does_not_fit_is_named_with_its_file() {
    let check = |golden: &str, old: &str, new: &str, expected: &[&str]| {
        let copied = Copied::of(golden);
        let config = if copied.path(sae_lens::CFG).exists() { sae_lens::CFG } else { dictionary_learning::CONFIG };
        copied.edit(config, old, new);
        let error = copied.error();
        let file = if config == sae_lens::CFG { sae_lens::WEIGHTS } else { dictionary_learning::WEIGHTS };
        for part in expected.iter().chain(&[file]) {
            assert!(error.contains(part), "{golden}: {part} not in: {error}");
        }
    };
    check("sae_lens_standard", "\"d_sae\": 10", "\"d_sae\": 11", &["tensor `W_enc` is [6, 10], expected [6, 11]"]);
    check("sae_lens_standard", "\"standard\"", "\"jumprelu\"", &["has no tensor `threshold`"]);
    check("sae_lens_jumprelu", "\"jumprelu\"", "\"standard\"", &["a tensor `threshold`", "no part of a standard SAE"]);
    check("dictionary_learning_AutoEncoder", "\"AutoEncoder\"", "\"BatchTopKSAE\"", &["has no tensor `b_dec`"]);
    check("dictionary_learning_BatchTopKSAE", "\"BatchTopKSAE\"", "\"AutoEncoder\"", &["has no tensor `bias`"]);
    check("dictionary_learning_AutoEncoder", "\"AutoEncoder\"", "\"JumpReluAutoEncoder\"", &["no tensor `W_enc`"]);
}

#[test]
fn nan_and_infinity_are_named_by_file_and_tensor() {
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let copied = Copied::of("sae_lens_standard");
        let mut bytes = copied.bytes(sae_lens::WEIGHTS);
        let n = bytes.len();
        bytes[n - 4..].copy_from_slice(&value.to_le_bytes());
        copied.write(sae_lens::WEIGHTS, &bytes);
        let error = copied.error();
        assert!(error.contains(sae_lens::WEIGHTS) && error.contains("tensor `") && error.contains(said), "{error}");

        let copied = Copied::of("dictionary_learning_AutoEncoder");
        let storage = rezip(&copied.bytes(dictionary_learning::WEIGHTS), |path, bytes| {
            if path.ends_with("/data/0") {
                bytes[..4].copy_from_slice(&value.to_le_bytes());
            }
        });
        copied.write(dictionary_learning::WEIGHTS, &storage);
        let error = copied.error();
        assert!(error.contains("ae.pt: tensor `bias` holds") && error.contains(said), "{error}");
    }
}

/// The archive with its files edited.
fn rezip(bytes: &[u8], edit: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        let path = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        edit(&path, &mut bytes);
        writer.start_file(path, SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
        writer.write_all(&bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// The pickle of a golden.
fn pickle(golden: &str) -> Vec<u8> {
    let mut archive = ZipArchive::new(std::fs::File::open(goldens().join(golden).join("ae.pt")).unwrap()).unwrap();
    let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
    let mut bytes = Vec::new();
    let name = names.iter().find(|name| name.ends_with("/data.pkl")).unwrap();
    archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_pickle_that_asks_for_anything_else_is_refused_by_name() {
    let check = |pickle: &[u8], expected: &str| {
        let error = format!("{:#}", torch_pickle::read(pickle).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    };
    check(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "`os.system`");
    check(b"\x80\x02c__builtin__\neval\n.", "`__builtin__.eval`");
    check(b"\x80\x02ctorch\nDoubleStorage\n.", "`torch.DoubleStorage`");
    check(b"\x80\x04\x95\x01\x00\x00\x00\x00\x00\x00\x00N.", "protocol 4");
    check(b"\x80\x02(ios\nsystem\n.", "INST");
    check(b"\x80\x02\x93.", "STACK_GLOBAL");
    check(b"\x80\x02\x81.", "NEWOBJ");
    check(b"\x80\x02ctorch\nFloatStorage\n)R.", "a storage's class is called");
    check(b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "with arguments");
    check(b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "`a` is no tensor");
    check(b"\x80\x02N.", "no dictionary");
    check(b"\x80\x02X\xff\xff\xff\xffabc.", "cut short");
    check(b"\x80\x02(K\x01\x86.", "more from the stack");
    check(b"\x80\x02h\x00.", "nothing was remembered");
    check(b"\x80\x02}(.", "more from the stack");
}

#[test]
fn other_files_named_ae_pt_are_refused() {
    let copied = Copied::of("dictionary_learning_AutoEncoder");
    copied.write("ae.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.");
    assert!(copied.error().contains("ae.pt: no whole zip archive"), "{}", copied.error());
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("hello", SimpleFileOptions::default()).unwrap();
    copied.write("ae.pt", &writer.finish().unwrap().into_inner());
    assert!(copied.error().contains("holds no data.pkl"), "{}", copied.error());
    let big = rezip(&Copied::of("dictionary_learning_AutoEncoder").bytes("ae.pt"), |path, bytes| {
        if path.ends_with("/byteorder") {
            *bytes = b"big".to_vec();
        }
    });
    copied.write("ae.pt", &big);
    assert!(copied.error().contains("byte order"), "{}", copied.error());
}

/// One to three changes: bytes flipped or replaced, a cut, a stretch copied elsewhere.
fn damage(bytes: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..damaged.len().max(1));
        match rng.random_range(0..6) {
            _ if damaged.is_empty() => {}
            0 => damaged[at] ^= 1 << rng.random_range(0..8),
            1 => damaged[at] = 0xff,
            2 => damaged[at] = rng.random(),
            3 => damaged.truncate(at),
            4 => {
                let n = rng.random_range(0..16).min(damaged.len() - at);
                damaged[at..at + n].fill(0xff);
            }
            _ => {
                let n = rng.random_range(0..40).min(damaged.len() - at);
                let stretch = damaged[at..at + n].to_vec();
                let to = rng.random_range(0..damaged.len());
                damaged.splice(to..to, stretch);
            }
        }
    }
    damaged
}

/// Reads damaged forms of a golden's file: no panic, errors that name a file, no allocation beyond a few of its lengths.
fn check_damaged(golden: &str, file: &str, n: usize, damage: impl Fn(&[u8], usize) -> Vec<u8>) -> (usize, usize) {
    let copied = Copied::of(golden);
    let whole = copied.bytes(file);
    let (mut n_read, mut n_refused) = (0, 0);
    for i in 0..n {
        copied.write(file, &damage(&whole, i));
        LARGEST.set(0);
        let result = read_folder(copied.folder.path());
        let largest = LARGEST.get();
        assert!(largest <= 1 << 20, "{golden}/{file}, damage {i}: {largest} bytes at once");
        match result {
            Ok(_) => n_read += 1,
            Err(error) => {
                let said = format!("{error:#}");
                let folder = copied.folder.path().display().to_string();
                assert!(said.contains(&folder), "{golden}/{file}, damage {i}: no file in: {said}");
                n_refused += 1;
            }
        }
    }
    (n_read, n_refused)
}

#[test]
fn damaged_files_end_in_an_sae_or_an_error() {
    let random = |i: usize| artifact::random::stream(11, "import/damage", 0, i as u64);
    let plain = |bytes: &[u8], i: usize| damage(bytes, &mut random(i));
    let (n_read, n_refused) = check_damaged("sae_lens_gated", sae_lens::WEIGHTS, 400, plain);
    assert!(n_read > 20 && n_refused > 100, "{n_read} read, {n_refused} refused: the damage is one-sided");
    check_damaged("sae_lens_matryoshka", sae_lens::CFG, 400, plain);
    check_damaged("dictionary_learning_GatedAutoEncoder", dictionary_learning::CONFIG, 100, plain);
    check_damaged("dictionary_learning_BatchTopKSAE", "ae.pt", 400, plain);
    // Checksums catch most of that; these are damaged within an archive that is whole.
    let pickled = |bytes: &[u8], i: usize| {
        rezip(bytes, |path, bytes| {
            if path.ends_with("data.pkl") {
                *bytes = damage(bytes, &mut random(i));
            }
        })
    };
    for golden in ["dictionary_learning_MatryoshkaBatchTopKSAE", "dictionary_learning_AutoEncoder_half"] {
        let (n_read, n_refused) = check_damaged(golden, "ae.pt", 400, pickled);
        assert!(n_read > 10 && n_refused > 100, "{n_read} read, {n_refused} refused: the damage is one-sided");
    }
    let stored = |bytes: &[u8], i: usize| {
        rezip(bytes, |path, bytes| {
            if path.contains("/data/") {
                *bytes = damage(bytes, &mut random(i));
            }
        })
    };
    check_damaged("dictionary_learning_MatryoshkaBatchTopKSAE", "ae.pt", 200, stored);
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    for (golden, file) in [("sae_lens_topk", sae_lens::WEIGHTS), ("dictionary_learning_AutoEncoderTopK", "ae.pt")] {
        let n = Copied::of(golden).bytes(file).len();
        let (n_read, _) = check_damaged(golden, file, n / 7, |bytes, i| bytes[..7 * i].to_vec());
        assert_eq!(n_read, 0, "{golden}");
    }
    let whole = pickle("dictionary_learning_AutoEncoder");
    assert!(torch_pickle::read(&whole).is_ok());
    for n in 0..whole.len() {
        assert!(torch_pickle::read(&whole[..n]).is_err(), "cut at {n}");
    }
}

#[test]
fn another_width_is_refused_with_both_numbers() {
    let foreign = read_folder(&goldens().join("sae_lens_topk")).unwrap();
    assert!(foreign.check_width(6).is_ok());
    let error = foreign.check_width(512).unwrap_err().to_string();
    assert!(error.contains("width 6") && error.contains("512 wide") && error.contains(sae_lens::WEIGHTS), "{error}");
}
