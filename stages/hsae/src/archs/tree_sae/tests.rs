use super::*;
use crate::kernels::screen::Path;

const D_MODEL: usize = 20;
const N_COARSE: usize = 12;
const D_SAE: usize = 60;
const N_ROWS: usize = 150;

fn random(purpose: &str, n: usize) -> Vec<f32> {
    use rand::RngExt;
    let mut rng = artifact::random::stream(5, purpose, 0, 0);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Every fine latent's parent, by its number.
fn parents(of: impl Fn(usize) -> Option<u32>) -> Vec<Option<u32>> {
    (0..D_SAE).map(|j| if j < N_COARSE { None } else { of(j) }).collect()
}

/// The definition, latent by latent.
fn naive(input: &EncoderInput, gate: HardGate, keep: Keep) -> SparseRows {
    let largest = |mut rivals: Vec<(u32, f32)>, k: usize| {
        rivals.sort_by(|a, b| b.1.total_cmp(&a.1));
        rivals.truncate(k);
        rivals
    };
    let mut rows = SparseRows::new(D_SAE);
    for t in 0..N_ROWS {
        let pre: Vec<f32> = (0..D_SAE).map(|j| input.pre_act(t, j)).collect();
        let active = |rivals: Vec<u32>, is_fine: bool| {
            let rivals = rivals.into_iter().map(|j| (j, pre[j as usize])).filter(|&(_, pre)| pre > 0.0).collect();
            match keep {
                Keep::Largest { coarse, fine } => largest(rivals, if is_fine { fine } else { coarse }),
                Keep::Above(thresholds) => {
                    rivals.into_iter().filter(|&(j, pre)| pre > thresholds[j as usize]).collect()
                }
            }
        };
        let coarse = active((0..N_COARSE as u32).collect(), false);
        let is_open = |j: &u32| match gate.parent[*j as usize] {
            Some(parent) => coarse.iter().any(|&(j, act)| j == parent && act > gate.active_above),
            None => true,
        };
        let fine = active((N_COARSE as u32..D_SAE as u32).filter(is_open).collect(), true);
        let mut row = [coarse, fine].concat();
        row.sort_by_key(|&(j, _)| j);
        rows.push_row(row);
    }
    rows
}

#[test]
fn level_by_level_what_is_open_is_chosen_as_the_definition_says() {
    let (x, w_enc) = (random("x", N_ROWS * D_MODEL), random("w", D_SAE * D_MODEL));
    let b_enc: Vec<f32> = random("b", D_SAE).iter().map(|b| 0.2 * b).collect();
    let packed = PackedEncoder::pack(Path::detect(), &w_enc, D_MODEL);
    let input = EncoderInput { x_centered: &x, w_enc: &w_enc, b_enc: &b_enc, d_model: D_MODEL, packed: &packed };
    let thresholds: Vec<f32> = random("thresholds", D_SAE).iter().map(|t| 1.0 + t).collect();
    let mixed = |j: usize| Some(j as u32 * 7 % 13).filter(|&parent| (parent as usize) < N_COARSE);
    let trees = [parents(mixed), parents(|_| None), parents(|j| Some(j as u32 % 3))];
    for parent in &trees {
        for active_above in [0.0, 1e-3, 2.0] {
            let gate = HardGate { parent, n_coarse: N_COARSE, active_above };
            let levels = Levels { input, gate, parts: &Parts::new(&input, gate) };
            for keep in [
                Keep::Largest { coarse: 3, fine: 2 },
                Keep::Largest { coarse: N_COARSE, fine: D_SAE },
                Keep::Above(&thresholds),
                Keep::Above(&[0.0; D_SAE]),
            ] {
                let expected = naive(&input, gate, keep);
                assert!(expected.nnz() > N_ROWS, "{keep:?}");
                for guess in [0.0, 0.3, 100.0] {
                    let found = levels.active(keep, &mut [guess; 2]);
                    assert!(found == expected, "{keep:?}, active above {active_above}, guess {guess}");
                }
            }
        }
    }
}
