use rand::RngExt;

use super::*;

/// Every path finds exactly what the definition says, at odd sizes too, with bounds of every kind.
#[test]
fn agrees_with_the_definition() {
    for (n_rows, d_model, d_sae) in [(1, 1, 1), (33, 7, 40), (70, 33, 301), (513, 64, 97), (40, 100, 600)] {
        let mut rng = artifact::random::stream(1, "test", n_rows as u64, d_sae as u64);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (x, w_enc, b_enc) = (random(n_rows * d_model), random(d_sae * d_model), random(d_sae));
        let (each, shift) = (random(n_rows), random(d_sae));
        for path in Path::all() {
            let packed = PackedEncoder::pack(path, &w_enc, d_model);
            let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
            for bounds in [
                Bounds::above(0.3),
                Bounds { tokens: TokenBounds::Each(&each), shift: None, top: None },
                Bounds { tokens: TokenBounds::All(0.0), shift: Some(&shift), top: None },
            ] {
                let found = collect(input, bounds);
                let mut expected = SparseRows::new(d_sae);
                for t in 0..n_rows {
                    let row = (0..d_sae).map(|j| (j as u32, input.pre_act(t, j)));
                    let shift = |j: u32| bounds.shift.map_or(0.0, |shift| shift[j as usize]);
                    expected.push_row(row.filter(|&(j, pre)| pre - shift(j) > bounds.of(t)));
                }
                assert!(found == expected, "{path:?} {n_rows}×{d_model}×{d_sae} {bounds:?}");
            }
            // What is left out is beyond the k largest, and what is there is right.
            let k = d_sae.min(5);
            let all = collect(input, Bounds::above(-1e9));
            let top = Bounds { top: Some(Top { k, slack: 0.1 }), ..Bounds::above(-1e9) };
            let found = collect(input, top);
            assert!(found.nnz() <= all.nnz());
            for t in 0..n_rows {
                let mut sorted = all.row(t).1.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let expected = all.row(t).1.iter().filter(|&&pre| pre >= sorted[k - 1] - 0.1);
                assert!(expected.clone().all(|pre| found.row(t).1.contains(pre)), "{path:?} token {t}");
                assert!(found.row(t).1.iter().all(|pre| all.row(t).1.contains(pre)), "{path:?} token {t}");
            }
        }
    }
}

/// Tokens of which one coordinate, each time another one, leaves nothing of the 8 bits to the others.
#[test]
fn what_eight_bits_cannot_tell_apart_gets_more() {
    let (n_rows, d_model, d_sae) = (128, 64, 256);
    let mut rng = artifact::random::stream(3, "test", 0, 0);
    let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let (mut spiked, w_enc, b_enc) = (random(n_rows * d_model), random(d_sae * d_model), vec![0.0; d_sae]);
    let even = spiked.clone();
    (0..n_rows).for_each(|t| spiked[t * d_model + t % d_model] = 1e4);
    for path in Path::all() {
        for (x, bound) in [(&even, 5.0), (&spiked, 0.0)] {
            let mut packed = PackedEncoder::pack(path, &w_enc, d_model);
            let input = EncoderInput { x_centered: x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
            let before = collect(input, Bounds::above(bound));
            packed.reconsider(&w_enc);
            #[cfg(target_arch = "x86_64")]
            assert_eq!(packed.path() == path, path != Path::Avx512Vnni || bound > 0.0, "{path:?} {bound}");
            let input = EncoderInput { x_centered: x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
            assert!(collect(input, Bounds::above(bound)) == before, "{path:?} {bound}");
            // And there is a way back, for whatever comes next.
            packed.try_fewer_bits(&w_enc);
            assert_eq!(packed.path(), Path::detect());
            let input = EncoderInput { x_centered: x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
            assert!(collect(input, Bounds::above(bound)) == before, "{path:?} {bound}");
        }
    }
}

/// A world that is hard on rounding: activations, W_enc, b_enc, thresholds, and the size of a bound that matters.
struct World {
    x: Vec<f32>,
    w_enc: Vec<f32>,
    b_enc: Vec<f32>,
    shift: Vec<f32>,
    size: f32,
}

const HARD: [&str; 12] = [
    "zeros",
    "tiny",
    "tiny both",
    "huge",
    "huge both",
    "outlier values",
    "ties",
    "nan rows",
    "inf rows",
    "nan latents",
    "odd biases",
    "a bias that the shift cancels",
];

fn hard(what: &str, (n_rows, d_model, d_sae): (usize, usize, usize)) -> World {
    let mut rng = artifact::random::stream(n_rows as u64, "test/hard", d_sae as u64, 0);
    let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let (mut x, mut w_enc, mut b_enc, mut shift) =
        (random(n_rows * d_model), random(d_sae * d_model), random(d_sae), random(d_sae));
    let times = |values: &mut [f32], factor: f32| values.iter_mut().for_each(|value| *value *= factor);
    let put = |values: &mut [f32], odd: f32| values.iter_mut().step_by(7 * d_model).for_each(|value| *value = odd);
    let mut size = 1.0;
    match what {
        "zeros" => x.fill(0.0),
        "tiny" => (times(&mut x, 1e-30), size = 1e-30).1,
        "tiny both" => {
            times(&mut x, 1e-30);
            times(&mut w_enc, 1e-12);
            b_enc.fill(0.0);
            size = 1e-42;
        }
        "huge" => (times(&mut x, 1e30), size = 1e30).1,
        "huge both" => (times(&mut x, 1e30), times(&mut w_enc, 1e30)).1,
        "outlier values" => x.iter_mut().step_by(19).for_each(|value| *value *= 1e4),
        "ties" => {
            x.iter_mut().chain(&mut w_enc).for_each(|value| *value = value.signum());
            b_enc.fill(0.0);
        }
        "nan rows" => put(&mut x, f32::NAN),
        "inf rows" => put(&mut x, f32::INFINITY),
        "nan latents" => put(&mut w_enc, f32::NAN),
        "odd biases" => {
            let odd = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY].into_iter().cycle();
            b_enc.iter_mut().step_by(7).zip(odd).for_each(|(bias, odd)| *bias = odd);
        }
        _ => {
            times(&mut x, 1e-2);
            b_enc.iter_mut().for_each(|bias| *bias = 300.0 + *bias * 1e-3);
            shift.iter_mut().zip(&b_enc).for_each(|(shift, bias)| *shift = bias + *shift * 1e-4);
            size = 1e-4;
        }
    }
    World { x, w_enc, b_enc, shift, size }
}

#[test]
fn agrees_with_the_definition_where_rounding_is_hard() {
    for shape in [(1, 1, 1), (1, 3, 700), (33, 5, 999), (70, 33, 1301)] {
        for what in HARD {
            let World { x, w_enc, b_enc, shift, size } = hard(what, shape);
            let d_model = shape.1;
            for path in Path::all() {
                let mut packed = PackedEncoder::pack(path, &w_enc, d_model);
                if shape.0 != 33 {
                    packed.balance(&x, &w_enc);
                }
                let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
                let plain = [0.3, 0.0, 2.0, -1e9].map(|bound| Bounds::above(bound * size));
                let shifted = [0.0, 0.5].map(|bound| Bounds { shift: Some(&shift), ..Bounds::above(bound * size) });
                let tops = [(1, 0.0, 0.0), (5, 0.3, 0.2), (40, 0.0, -1e9), (40, 50.0, 0.0), (0, 0.0, 0.0)];
                let tops = tops.map(|(k, slack, bound)| Bounds {
                    top: Some(Top { k, slack: slack * size }),
                    ..Bounds::above(bound * size)
                });
                for bounds in plain.into_iter().chain(shifted).chain(tops) {
                    check(input, bounds, &format!("{what} {path:?} {shape:?} {bounds:?}"));
                }
            }
        }
    }
}

/// Nothing is found that the definition does not find, and nothing that matters is missing.
fn check(input: EncoderInput, bounds: Bounds, what: &str) {
    let found = collect(input, bounds);
    for t in 0..input.n_rows() {
        let score = |&(j, pre): &(u32, f32)| pre - bounds.shift.map_or(0.0, |shift| shift[j as usize]);
        let mut all: Vec<(u32, f32)> =
            (0..input.b_enc.len() as u32).map(|j| (j, input.pre_act(t, j as usize))).collect();
        all.retain(|entry| score(entry) > bounds.of(t));
        let bits = |entries: &[(u32, f32)]| -> Vec<(u32, u32)> {
            entries.iter().map(|&(j, pre)| (j, pre.to_bits())).collect()
        };
        let (idx, pre_acts) = found.row(t);
        let found: Vec<(u32, f32)> = idx.iter().copied().zip(pre_acts.iter().copied()).collect();
        let Some(top) = bounds.top.filter(|top| top.k > 0) else {
            assert_eq!(bits(&found), bits(&all), "{what}, token {t}");
            continue;
        };
        let mut scores: Vec<f32> = all.iter().map(score).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        let least = scores.get(top.k - 1).map_or(f32::NEG_INFINITY, |kth| kth - top.slack);
        let needed: Vec<_> = all.iter().copied().filter(|entry| score(entry) >= least).collect();
        let (found, all) = (bits(&found), bits(&all));
        assert!(bits(&needed).iter().all(|entry| found.contains(entry)), "{what}, token {t}: something is missing");
        assert!(found.iter().all(|entry| all.contains(entry)), "{what}, token {t}: something is too much");
    }
}

#[test]
fn columns_are_balanced_only_where_it_helps() {
    // Two columns stand out in every token, and the encoder knows it; or in a few tokens, which are longer by as much and
    // have scales of their own.
    let (n_rows, d_model, d_sae) = (512, 96, 256);
    let mut rng = artifact::random::stream(4, "test", 0, 0);
    let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let (x, mut w_enc, b_enc) = (random(n_rows * d_model), random(d_sae * d_model), vec![0.0; d_sae]);
    for w in w_enc.chunks_exact_mut(d_model) {
        (w[5], w[77]) = (w[5] / 300.0, w[77] / 150.0);
    }
    let Some(path) = Path::all().into_iter().find(|path| path.name() == "avx512-vnni") else { return };
    let n_settled = |every: usize, is_balanced: bool| {
        let mut x = x.clone();
        for t in (0..n_rows).step_by(every) {
            (x[t * d_model + 5], x[t * d_model + 77]) = (300.0 * x[t * d_model + 5], 150.0 * x[t * d_model + 77]);
        }
        let mut packed = PackedEncoder::pack(path, &w_enc, d_model);
        if is_balanced {
            packed.balance(&x, &w_enc);
        }
        let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
        collect(input, Bounds::above(4.0));
        packed.n_settled()
    };
    assert!(2 * n_settled(1, true) <= n_settled(1, false), "{} {}", n_settled(1, true), n_settled(1, false));
    assert!(n_settled(128, true) <= n_settled(128, false), "{} {}", n_settled(128, true), n_settled(128, false));
}
