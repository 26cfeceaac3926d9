//! Drawing text, against the model's own losses.

use artifact::config::Products;
use artifact::random::stream;

use super::tiny;
use crate::{HostPass, Sampling, sample};

/// The likeliest token is the one whose loss is lowest, at every place, also behind a context that was full.
#[test]
fn the_likeliest_token_is_drawn_where_only_one_may_be() {
    let (shape, weights) = tiny();
    let greedy = Sampling { temperature: 1.0, top_k: 1 };
    let mut random = stream(0, "tests/sample", 0, 0);
    let drawn = sample(&shape, &weights, &[4], 100, greedy, &mut random).unwrap();
    let mut tokens = vec![4];
    for (i, &token) in drawn.iter().enumerate() {
        // Once 70 tokens are read, the context begins with the last 35.
        let start = if tokens.len() <= 70 { 0 } else { tokens.len() - 35 - (tokens.len() - 71) % 36 };
        let context = &tokens[start..];
        let mut pass = HostPass::new(shape, context.len(), Products::F32);
        let mut loss = |token: u32| {
            let targets = [&context[1..], &[token]].concat();
            pass.loss(&weights, (context, &targets))
        };
        let likeliest = (0..11).min_by(|&a, &b| loss(a).total_cmp(&loss(b))).unwrap();
        assert_eq!(token, likeliest, "token {i}, context from {start} to {}", tokens.len());
        tokens.push(token);
    }
}

#[test]
fn draws_depend_on_their_stream_alone_and_keep_to_the_likeliest() {
    let (shape, weights) = tiny();
    let draw = |seed, top_k| {
        let sampling = Sampling { temperature: 0.8, top_k };
        sample(&shape, &weights, &[1, 2, 3], 50, sampling, &mut stream(seed, "tests/sample", 0, 0)).unwrap()
    };
    assert_eq!(draw(0, 11), draw(0, 11));
    assert_ne!(draw(0, 11), draw(1, 11));
    let broken = vec![f32::NAN; weights.len()];
    let sampling = Sampling { temperature: 1.0, top_k: 5 };
    let error = sample(&shape, &broken, &[0], 1, sampling, &mut stream(0, "tests/sample", 0, 0)).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}
