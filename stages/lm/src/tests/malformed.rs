//! Damaged and unsupported files: an error that names the file and the place, never a panic.

use super::tiny::{Meta, Random, TempFile, Tiny};
use crate::{LanguageModel, cpu};

/// Opening these bytes fails, with a message that names the file and says `expected`.
fn check(bytes: &[u8], expected: &str) {
    let file = TempFile::new(bytes);
    let message = format!("{:#}", LanguageModel::open(file.path(), &cpu()).unwrap_err());
    assert!(message.contains("tiny.gguf") && message.contains(expected), "{message:?} does not say {expected:?}");
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = Tiny::new().bytes();
    let file = TempFile::new(&bytes);
    assert!(LanguageModel::open(file.path(), &cpu()).is_ok());
    for n in (0..bytes.len()).filter(|n| n % 17 == 0 || *n < 64 || n + 64 > bytes.len()) {
        file.overwrite(&bytes[..n]);
        let message = format!("{:#}", LanguageModel::open(file.path(), &cpu()).unwrap_err());
        assert!(message.contains("tiny.gguf"), "cut at {n}: {message}");
    }
}

#[test]
fn flipped_bytes_end_in_a_model_or_an_error() {
    let bytes = Tiny::new().bytes();
    let file = TempFile::new(&bytes);
    let mut random = Random(11);
    let (mut n_models, mut n_errors) = (0, 0);
    for _ in 0..1500 {
        let mut damaged = bytes.clone();
        for _ in 0..=(random.next() * 3.0) as usize {
            // The first 8,000 bytes are all of the header, where every byte has a meaning.
            let at = (random.next() * 8000.0) as usize;
            damaged[at] = if random.next() < 0.5 { (random.next() * 256.0) as u8 } else { damaged[at] ^ 0x80 };
        }
        file.overwrite(&damaged);
        match LanguageModel::open(file.path(), &cpu()) {
            Ok(model) => {
                n_models += 1;
                model.hidden(&[0, 1], 2).unwrap();
                model.tokenizer().encode("the café, 12\u{1}").ok();
            }
            Err(error) => {
                n_errors += 1;
                let message = format!("{error:#}");
                assert!(message.contains("tiny.gguf"), "{message}");
            }
        }
    }
    assert!(n_models > 100 && n_errors > 100, "{n_models} models, {n_errors} errors: the damage is one-sided");
}

#[test]
fn lengths_beyond_the_file_reserve_nothing() {
    let bytes = Tiny::new().bytes();
    // The length of the first key, then the number of pairs, then the number of tensors.
    for (at, expected) in [(24, "a name of"), (16, "metadata"), (8, "tensor")] {
        let mut damaged = bytes.clone();
        damaged[at..at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        check(&damaged, expected);
    }
}

#[test]
fn other_formats_are_refused_by_name() {
    check(b"PK\x03\x04 and so on, long enough to hold a header", "not with \"GGUF\"");
    let mut old = Tiny::new().bytes();
    old[4] = 2;
    check(&old, "version 2");
    let mut tiny = Tiny::new();
    tiny.tensor("blk.1.ffn_up.weight").code = 11;
    check(&tiny.bytes(), "tensor blk.1.ffn_up.weight: type Q3_K is not supported");
}

#[test]
fn other_architectures_and_variants_are_refused_by_name() {
    let refused = |key: &str, value: Meta, expected: &str| {
        let mut tiny = Tiny::new();
        tiny.set(key, value);
        check(&tiny.bytes(), expected);
    };
    refused("general.architecture", Meta::Text("gemma".into()), "general.architecture = \"gemma\"");
    refused("llama.rope.scaling.type", Meta::Text("yarn".into()), "yarn");
    refused("llama.expert_count", Meta::U32(8), "llama.expert_count = 8");
    refused("llama.rope.dimension_count", Meta::U32(4), "llama.rope.dimension_count = 4");
    refused("llama.attention.head_count_kv", Meta::U32(3), "not a multiple");
    refused("llama.attention.head_count_kv", Meta::U32(0), "llama.attention.head_count_kv = 0");
    refused("llama.feed_forward_length", Meta::U32(96), "sizes");
    refused("llama.block_count", Meta::U32(1 << 20), "blk.3.attn_norm.weight is missing");
    refused("llama.block_count", Meta::U32(2), "blk.2");
    refused("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN), "epsilon = NaN");
    refused("tokenizer.ggml.pre", Meta::Text("tekken".into()), "tokenizer.ggml.pre = \"tekken\"");
    refused("tokenizer.ggml.model", Meta::Text("llama".into()), "tokenizer.ggml.model");
    refused("tokenizer.ggml.token_type", Meta::Ints(vec![1]), "tokenizer.ggml.token_type has 1 rows");
    refused("tokenizer.ggml.merges", Meta::Texts(vec!["q zz".into()]), "tokenizer.ggml.merges");
    refused("tokenizer.ggml.merges", Meta::Texts(vec!["qzz".into()]), "tokenizer.ggml.merges[0]");

    let mut tiny = Tiny::new();
    tiny.tensor("blk.0.attn_norm.weight").name = "blk.0.attn_q.bias".to_owned();
    check(&tiny.bytes(), "blk.0.attn_norm.weight is missing");
    for (name, said) in [
        ("blk.0.attn_q.bias", "tensor blk.1.attn_q.bias is missing"),
        ("blk.1.attn_q.bias", "tensor blk.1.attn_q.bias is not supported"),
        ("blk.0.ffn_up.bias", "tensor blk.0.ffn_up.bias is not supported"),
        ("blk.0.attn_q_norm.weight", "tensor blk.0.attn_q_norm.weight is not supported"),
        ("rope_freqs.weight", "tensor rope_freqs.weight has sizes"),
    ] {
        let mut tiny = Tiny::new();
        let mut more = tiny.tensor("blk.0.attn_norm.weight").clone();
        more.name = name.to_owned();
        tiny.tensors.push(more);
        check(&tiny.bytes(), said);
    }
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let tiny = Tiny::new();
    check(&tiny.bytes_with_offsets(&vec![0; tiny.tensors.len()]), "overlap");
}

#[test]
fn weights_that_are_not_finite_are_found_where_they_enter() {
    let mut tiny = Tiny::new();
    tiny.tensor("blk.2.ffn_norm.weight").bytes[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    check(&tiny.bytes(), "tensor blk.2.ffn_norm.weight holds NaN at value 2");
}

#[test]
fn a_folder_and_a_missing_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = format!("{:#}", LanguageModel::open(folder.path(), &cpu()).unwrap_err());
    assert!(message.contains("config.json"), "{message}");
    let message = format!("{:#}", LanguageModel::open(&folder.path().join("none.gguf"), &cpu()).unwrap_err());
    assert!(message.contains("none.gguf"), "{message}");
}
