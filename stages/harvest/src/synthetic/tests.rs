use super::*;

fn config() -> Synthetic {
    Synthetic { d_model: 48, n_parents: 4, n_lone: 6, n_train: 40_000, n_heldout: 500, ..Synthetic::default() }
}

/// Every training row's firing.
fn all_firing(planted: &Planted) -> Vec<Firing> {
    let n_rows = planted.config.n_train;
    (0..n_rows.div_ceil(planted.rows_per_block())).flat_map(|b| planted.block(Split::Train, b, n_rows).1).collect()
}

/// |observed − n·p| within four standard deviations of a binomial.
fn is_binomial(observed: usize, n: usize, p: f64) -> bool {
    let (n, expected) = (n as f64, n as f64 * p);
    (observed as f64 - expected).abs() <= 4.0 * (n * p * (1.0 - p)).sqrt()
}

#[test]
fn planted_rates_are_met() {
    let config = config();
    let firing = all_firing(&Planted::new(&config, 3));
    assert_eq!(firing.len(), 40_000);
    for feature in 0..config.n_features() as u32 {
        let n = firing.iter().filter(|row| row.features.contains(&feature)).count();
        let p = match feature {
            0..4 => config.p_parent,
            4..16 => config.p_parent * config.p_child_given_parent,
            _ => config.p_lone,
        };
        assert!(is_binomial(n, firing.len(), p), "feature {feature}: {n} firings, rate {p}");
    }
}

#[test]
fn children_fire_under_their_parent_and_siblings_exclude_each_other() {
    let config = config();
    let planted = Planted::new(&config, 3);
    let mut n_alone = 0;
    for row in all_firing(&planted) {
        for parent in 0..config.n_parents {
            let children: Vec<_> =
                row.features.iter().filter(|&&f| planted.tree.parent(f as usize) == Some(parent)).collect();
            let parent_fires = row.features.contains(&(parent as u32));
            assert!(children.len() <= usize::from(parent_fires));
            n_alone += usize::from(parent_fires && children.is_empty());
        }
    }
    assert!(n_alone > 0, "parents also fire alone");
}

#[test]
fn lone_features_are_independent() {
    let config = config();
    let firing = all_firing(&Planted::new(&config, 3));
    let (a, b) = (16, 17);
    let both = firing.iter().filter(|row| row.features.contains(&a) && row.features.contains(&b)).count();
    assert!(is_binomial(both, firing.len(), config.p_lone * config.p_lone), "{both}");
}

#[test]
fn rows_are_the_sum_of_what_fires_and_noise() {
    let config = Synthetic { noise_std: 0.0, ..config() };
    let planted = Planted::new(&config, 3);
    let (rows, firing) = planted.block(Split::Train, 2, config.n_train);
    for (i, fired) in firing.iter().enumerate().take(200) {
        for column in 0..config.d_model {
            let expected: f64 = fired
                .features
                .iter()
                .zip(&fired.magnitudes)
                .map(|(&f, &m)| f64::from(m) * f64::from(planted.directions[f as usize * config.d_model + column]))
                .sum();
            let found = f64::from(rows.activation[i * config.d_model + column]);
            assert!((found - expected).abs() <= 1e-5, "row {i}, column {column}: {found}, expected {expected}");
        }
    }
}

#[test]
fn documents_are_whole_and_the_splits_share_none() {
    let config = Synthetic { rows_per_doc: 48, n_train: 10_000, ..config() };
    let planted = Planted::new(&config, 3);
    let mut last = None;
    for block in 0..config.n_train.div_ceil(planted.rows_per_block()) {
        let (rows, _) = planted.block(Split::Train, block, config.n_train);
        for (&doc_id, &pos) in rows.doc_id.iter().zip(&rows.pos) {
            let expected = match last {
                None => (0, 1),
                Some((doc, 48)) => (doc + 1, 1),
                Some((doc, pos)) => (doc, pos + 1),
            };
            assert_eq!((doc_id, pos), expected);
            last = Some((doc_id, pos));
        }
    }
    let (heldout, _) = planted.block(Split::Heldout, 0, config.n_heldout);
    assert_eq!(heldout.doc_id[0], last.unwrap().0 + 1);
}
