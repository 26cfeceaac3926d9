use super::*;
use crate::kernels::screen::{PackedEncoder, Path};

/// Pre-activations [n_rows, n_cols], mixed enough that no two are equal.
fn made_up(n_rows: usize, n_cols: usize) -> Vec<f32> {
    (0..n_rows * n_cols).map(|i| ((i * 7919 + 13) % 1009) as f32 / 100.0 - 5.0 + i as f32 * 1e-6).collect()
}

/// With the identity as encoder, x is its own pre-activation.
fn identity(n: usize) -> Vec<f32> {
    (0..n * n).map(|i| f32::from(i % (n + 1) == 0)).collect()
}

fn select(x: &[f32], n: usize, budget: &Budget, scope: Scope, gate: Option<Gate>, guess: f32) -> Selection {
    let (w_enc, b_enc) = (identity(n), vec![0.0; n]);
    let packed = PackedEncoder::pack(Path::detect(), &w_enc, n);
    let input = EncoderInput { x_centered: x, w_enc: &w_enc, b_enc: &b_enc, d_model: n, packed: &packed };
    select_batch(input, budget, scope, gate, [guess; 2])
}

fn naive_topk(x: &[f32], n: usize, k: usize) -> Vec<Vec<u32>> {
    let top = |row: &[f32]| {
        let mut order: Vec<u32> = (0..n as u32).filter(|&j| row[j as usize] > 0.0).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        order.truncate(k);
        order.sort_unstable();
        order
    };
    x.chunks(n).map(top).collect()
}

#[test]
fn topk_keeps_the_k_largest_of_each_token() {
    let (n, k) = (96, 5);
    let x = made_up(300, n);
    let budget = Budget::Shared { k: k as f64, fine: k as f64, n_coarse: 0 };
    for guess in [0.0, 1e-3, 0.1, 100.0] {
        let found = select(&x, n, &budget, Scope::Token, None, guess).pre_acts;
        for (t, expected) in naive_topk(&x, n, k).into_iter().enumerate() {
            assert_eq!(found.row(t).0, expected, "token {t}, guess {guess}");
        }
    }
}

#[test]
fn batchtopk_keeps_the_kb_largest_of_the_batch_whatever_the_guess() {
    let (n, k, n_rows) = (64, 3, 200);
    let x = made_up(n_rows, n);
    let mut sorted = x.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let threshold = sorted[k * n_rows - 1];
    let budget = Budget::Shared { k: k as f64, fine: k as f64, n_coarse: 0 };
    for guess in [0.0, threshold - 0.1, threshold, threshold + 1.0, 100.0] {
        let found = select(&x, n, &budget, Scope::Batch, None, guess);
        assert_eq!(found.pre_acts.nnz(), k * n_rows);
        assert!(found.pre_acts.vals.iter().all(|&value| value >= threshold), "guess {guess}");
        assert_eq!(found.threshold, threshold);
    }
}

#[test]
fn levels_have_budgets_of_their_own() {
    let (n, n_coarse, n_rows) = (64, 16, 100);
    let x = made_up(n_rows, n);
    let budget = Budget::PerLevel { coarse: 2.0, fine: 5.0, n_coarse };
    for scope in [Scope::Token, Scope::Batch] {
        let found = select(&x, n, &budget, scope, None, 0.0).pre_acts;
        let n_found = found.idx.iter().filter(|&&j| (j as usize) < n_coarse).count();
        assert_eq!((n_found, found.nnz() - n_found), (2 * n_rows, 5 * n_rows));
    }
}

#[test]
fn the_fine_share_is_capped_while_it_ramps() {
    let (n, n_coarse, n_rows) = (64, 16, 100);
    let x = made_up(n_rows, n);
    let budget = Budget::Shared { k: 4.0, fine: 1.0, n_coarse };
    let found = select(&x, n, &budget, Scope::Batch, None, 0.0).pre_acts;
    let n_fine = found.idx.iter().filter(|&&j| j as usize >= n_coarse).count();
    assert_eq!(found.nnz(), 4 * n_rows);
    assert!(n_fine <= n_rows);
}

#[test]
fn latents_beyond_a_capped_budget_are_not_computed() {
    // Every fine latent scores higher than any coarse one, and hardly one may be used.
    let (n, n_coarse, n_rows) = (96, 16, 200);
    let mut x = made_up(n_rows, n);
    x.chunks_mut(n).flat_map(|row| &mut row[n_coarse..]).for_each(|value| *value += 10.0);
    let (w_enc, b_enc) = (identity(n), vec![0.0; n]);
    let packed = PackedEncoder::pack(Path::F32, &w_enc, n);
    let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model: n, packed: &packed };
    for budget in [
        Budget::Shared { k: 3.0, fine: 0.0, n_coarse },
        Budget::Shared { k: 3.0, fine: 0.5, n_coarse },
        Budget::PerLevel { coarse: 3.0, fine: 0.5, n_coarse },
    ] {
        let guess = select_batch(input, &budget, Scope::Batch, None, [0.0; 2]).guess;
        let before = packed.n_settled();
        let found = select_batch(input, &budget, Scope::Batch, None, guess).pre_acts;
        let n_computed = packed.n_settled() - before;
        assert!(8 * n_computed <= x.len() as u64, "{budget:?}: {n_computed} computed, {} kept", found.nnz());
    }
    // Nor are they token by token, nor much else where a sample has to say where to look.
    let packed = PackedEncoder::pack(Path::F32, &w_enc, n);
    let input = EncoderInput { packed: &packed, ..input };
    for budget in
        [Budget::Shared { k: 3.0, fine: 0.0, n_coarse }, Budget::PerLevel { coarse: 0.0, fine: 8.0, n_coarse }]
    {
        let before = packed.n_settled();
        select_batch(input, &budget, Scope::Token, None, [0.0; 2]);
        let n_computed = packed.n_settled() - before;
        assert!(2 * n_computed <= x.len() as u64, "{budget:?}: {n_computed} computed");
    }
}

#[test]
fn a_silent_parent_costs_its_child_the_gate_and_no_value() {
    // Latent 1 is the child of 0. In the first token the parent is silent, in the second it fires.
    let x = [0.0, 1.0, 0.9, 0.0, /* */ 5.0, 1.0, 0.9, 0.0];
    let parent = [None, Some(0), None, None];
    let budget = Budget::Shared { k: 2.0, fine: 2.0, n_coarse: 0 };
    let gate = Gate { parent: &parent, strength: 0.5 };
    let found = select(&x, 4, &budget, Scope::Token, Some(gate), 0.0);
    assert_eq!(found.pre_acts.row(0), (&[1, 2][..], &[1.0, 0.9][..]));
    assert_eq!(found.pre_acts.row(1), (&[0, 1][..], &[5.0, 1.0][..]));

    let one = Budget::Shared { k: 1.0, fine: 1.0, n_coarse: 0 };
    let found = select(&x, 4, &one, Scope::Token, Some(gate), 0.0);
    assert_eq!(found.pre_acts.row(0), (&[2][..], &[0.9][..]), "the gated child loses to its rival");
    assert_eq!(found.ungated().row(0), (&[1][..], &[1.0][..]), "but fires without the gate");
}

#[test]
fn relu_keeps_every_positive_score() {
    let x = made_up(50, 32);
    let found = select(&x, 32, &Budget::All, Scope::Batch, None, 3.0).pre_acts;
    assert_eq!(found.nnz(), x.iter().filter(|&&value| value > 0.0).count());
}

#[test]
fn every_input_gets_what_the_definition_gives_whatever_the_guess() {
    use rand::RngExt;
    let (n_rows, d_model, d_sae) = (70, 7, 601);
    for what in ["plain", "ties", "zeros", "huge", "inf rows", "nan rows", "one huge row"] {
        let mut rng = artifact::random::stream(5, "test", 0, 0);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (mut x, mut w_enc, mut b_enc) = (random(n_rows * d_model), random(d_sae * d_model), random(d_sae));
        let put = |x: &mut [f32], odd: f32| x.iter_mut().step_by(3 * d_model).for_each(|value| *value = odd);
        match what {
            "ties" => {
                x.iter_mut().chain(&mut w_enc).for_each(|value| *value = value.signum());
                b_enc.fill(0.0);
            }
            "zeros" => x.fill(0.0),
            "huge" => x.iter_mut().for_each(|value| *value *= 1e30),
            "inf rows" => put(&mut x, f32::INFINITY),
            "nan rows" => put(&mut x, f32::NAN),
            "one huge row" => x[..d_model].iter_mut().for_each(|value| *value *= 1e25),
            _ => {}
        }
        let parent: Vec<Option<u32>> = (0..d_sae as u32).map(|j| (j % 3 > 0).then_some(j / 3)).collect();
        for path in Path::all() {
            let packed = PackedEncoder::pack(path, &w_enc, d_model);
            let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model, packed: &packed };
            let mut all = SparseRows::new(d_sae);
            for t in 0..n_rows {
                let row = (0..d_sae).map(|j| (j as u32, input.pre_act(t, j)));
                all.push_row(row.filter(|&(_, pre)| pre > 0.0));
            }
            for k in [1.0, 4.0, 2000.0] {
                let one = Budget::Shared { k, fine: k, n_coarse: 0 };
                // Of 70 tokens these may use no fine latent, one (of which a sample of 64 has none), one and some.
                let capped = |fine: f64| Budget::Shared { k, fine, n_coarse: 50 };
                let per_level = Budget::PerLevel { coarse: k, fine: 2.0, n_coarse: 200 };
                let without_coarse = Budget::PerLevel { coarse: 0.0, fine: k, n_coarse: 200 };
                let one_level = Budget::Shared { k, fine: 0.3, n_coarse: d_sae };
                let budgets = [one, per_level, capped(0.0), capped(0.0075), capped(0.01), capped(0.3)];
                for budget in budgets.into_iter().chain([without_coarse, one_level]) {
                    for (scope, strength) in
                        [(Scope::Token, 0.0), (Scope::Token, 0.3), (Scope::Batch, 0.0), (Scope::Batch, 0.3)]
                    {
                        let gate = (strength > 0.0).then_some(Gate { parent: &parent, strength });
                        let expected = select_from(&all, &budget, scope, gate).selection([0.0; 2]);
                        for guess in [[0.0; 2], [0.5; 2], [1e20; 2], [0.3, 1.2], [1.2, 0.3], [1e20, 0.0]] {
                            let found = select_batch(input, &budget, scope, gate, guess);
                            let what = format!("{what} {path:?} {budget:?} {scope:?} {strength} from {guess:?}");
                            assert!(found.pre_acts == expected.pre_acts && found.ungated == expected.ungated, "{what}");
                            assert_eq!(found.threshold.to_bits(), expected.threshold.to_bits(), "{what}");
                        }
                    }
                }
            }
        }
    }
}
