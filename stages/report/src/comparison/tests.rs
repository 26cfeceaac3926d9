//! A comparison whose figures are made here.

use artifact::config::Sae;
use artifact::tables::Metric;

use super::*;

fn row(sae: &str, seed: u64, (view, threshold): (&str, &str), metric: &str, value: f64) -> Metric {
    Metric {
        sae: sae.into(),
        seed,
        view: view.into(),
        threshold: threshold.into(),
        metric: metric.into(),
        level: "all".into(),
        value,
        ci_low: None,
        ci_high: None,
    }
}

const NATIVE: (&str, &str) = ("flat", "native");

/// Seeds 0 to 2 of each family with one k; `f1` by family and seed, L0 exactly k.
fn contender(run: Option<&str>, families: &[(&str, usize, &[f64])]) -> Contender {
    let mut contender = Contender {
        run: run.map(str::to_owned),
        data: "d".into(),
        saes: vec![],
        metrics: vec![],
        is_spliced_elsewhere: false,
    };
    for (family, k, values) in families {
        for (seed, &value) in values.iter().enumerate() {
            let name = format!("{family}-k{k}-s{seed}");
            let sae = Sae { name: name.clone(), family: Some((*family).into()), k: *k, ..Sae::default() };
            let training = Training::new(&sae, Some(1000), Some(10));
            contender.saes.push((sae, training));
            contender.metrics.push(row(&name, seed as u64, NATIVE, "f1", value));
            contender.metrics.push(row(&name, seed as u64, NATIVE, "l0", *k as f64));
        }
    }
    contender
}

fn compared(contenders: &[Contender], reference: Option<&str>) -> Comparison {
    compare(contenders, reference, true).unwrap().expect("a comparison")
}

#[test]
fn without_seeds_budgets_runs_or_reference_there_is_nothing_to_compare_over() {
    let check = |contenders: &[Contender], reference: Option<&str>, expected: bool| {
        assert_eq!(compare(contenders, reference, true).unwrap().is_some(), expected);
    };
    let one = || contender(None, &[("a", 3, &[0.5]), ("b", 3, &[0.6])]);
    check(&[one()], None, false);
    check(&[one()], Some("a"), true);
    check(&[one(), contender(Some("1"), &[("c", 3, &[0.5])])], None, true);
    check(&[contender(None, &[("a", 3, &[0.5, 0.6])])], None, true);
    check(&[contender(None, &[("a", 3, &[0.5]), ("a", 4, &[0.6])])], None, true);
}

#[test]
fn families_are_means_over_their_seeds() {
    let comparison = compared(&[contender(None, &[("a", 3, &[0.5, 0.6, 0.7]), ("a", 4, &[0.8])])], None);
    let found: Vec<_> =
        comparison.groups.iter().map(|group| (group.family.as_str(), group.k, &group.seeds[..])).collect();
    assert_eq!(found, [("a", 3, &[0, 1, 2][..]), ("a", 4, &[0][..])]);
    let f1 = comparison.groups[0].get(&Name::new("f1", "all")).unwrap();
    assert!((f1.estimate.mean - 0.6).abs() <= 1e-12);
    // t(.975, 2) = 4.302653, times .1 / √3.
    assert!((f1.estimate.ci_high.unwrap() - 0.6 - 4.302_652_729_9 * 0.1 / 3_f64.sqrt()).abs() <= 1e-9);
    assert_eq!(comparison.groups[1].get(&Name::new("f1", "all")).unwrap().estimate.ci_low, None);
    assert!(comparison.gaps(None)[0].contains("seeds of a: trained on one seed only"));
}

#[test]
fn differences_are_taken_seed_by_seed() {
    // Far apart from seed to seed, and yet each .01 or .02 above its own partner.
    let families: [(&str, usize, &[f64]); 2] = [("ref", 3, &[0.2, 0.5, 0.8]), ("ours", 3, &[0.21, 0.52, 0.81])];
    let comparison = compared(&[contender(None, &families)], Some("ref"));
    let [found] = &comparison.differences[..] else { panic!("{:?}", comparison.differences) };
    assert_eq!((found.family.as_str(), found.reference.as_str(), found.metric.as_str()), ("ours", "ref", "f1"));
    let estimate = found.difference.estimate;
    assert!((estimate.mean - 0.04 / 3.0).abs() <= 1e-12 && estimate.n_seeds == 3);
    let half = 4.302_652_729_9 * (1e-4_f64 / 3.0).sqrt() / 3_f64.sqrt();
    assert!((estimate.ci_high.unwrap() - estimate.mean - half).abs() <= 1e-9, "{estimate:?}");
    assert_eq!(found.p_holm, found.difference.p);
}

#[test]
fn holm_runs_over_the_families_of_a_metric_k_and_threshold() {
    let reference: &[f64] = &[0.2, 0.5, 0.8];
    let families: [(&str, usize, &[f64]); 4] =
        [("ref", 3, reference), ("a", 3, &[0.21, 0.52, 0.81]), ("b", 3, &[0.22, 0.5, 0.83]), ("ref", 4, reference)];
    let mut one = contender(None, &families);
    one.metrics.extend((0..3).map(|seed| row(&format!("a-k3-s{seed}"), seed, ("gated", "native"), "f1", 0.9)));
    let comparison = compared(&[one], Some("ref"));
    let p = |family: &str, view: &str| {
        let mut found = comparison.differences.iter();
        let found = found.find(|difference| difference.family == family && difference.view == view).unwrap();
        (found.difference.p.unwrap(), found.p_holm.unwrap())
    };
    let ((a, a_holm), (b, b_holm), (gated, gated_holm)) = (p("a", "flat"), p("b", "flat"), p("a", "gated"));
    assert!(a < gated && gated < b, "{a} {gated} {b}");
    let expected = [3.0 * a, (2.0 * gated).max(3.0 * a), b.max(2.0 * gated).max(3.0 * a)];
    for (found, expected) in [a_holm, gated_holm, b_holm].into_iter().zip(expected) {
        assert!((found - expected.min(1.0)).abs() <= 1e-12, "{found}, expected {expected}");
    }
}

#[test]
fn runs_are_told_apart_and_each_has_its_own_reference() {
    let runs = || {
        let first = contender(Some("1"), &[("ref", 3, &[0.1, 0.2, 0.4]), ("a", 3, &[0.2, 0.4, 0.5])]);
        let second = contender(Some("2"), &[("ref", 3, &[0.6, 0.7, 0.9]), ("a", 3, &[0.8, 0.7, 0.9])]);
        let third = contender(Some("3"), &[("b", 3, &[0.8, 0.7, 0.9])]);
        [first, second, third]
    };
    let references = |reference: &str| -> Vec<(String, String)> {
        let differences = compared(&runs(), Some(reference)).differences;
        differences.into_iter().map(|difference| (difference.family, difference.reference)).collect()
    };
    let check = |reference: &str, expected: &[(&str, &str)]| {
        let expected: Vec<_> = expected.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
        assert_eq!(references(reference), expected);
    };
    check("ref", &[("1/a", "1/ref"), ("2/a", "2/ref"), ("b", "1/ref")]);
    check("2/ref", &[("1/ref", "2/ref"), ("1/a", "2/ref"), ("2/a", "2/ref"), ("b", "2/ref")]);
    let error = compare(&runs(), Some("rfe"), true).err().unwrap().to_string();
    assert!(error.contains("report.reference = rfe") && error.contains("1/a, 1/ref"), "{error}");
    // The run that the report is about keeps its names.
    let mut own = runs();
    own[0].run = None;
    assert_eq!(compared(&own, None).groups[0].family, "ref");
}

#[test]
fn other_activations_or_seeds_are_no_pairs() {
    let mut other = contender(Some("1"), &[("a", 3, &[0.2, 0.4, 0.5])]);
    other.data = "e".into();
    let own = contender(None, &[("ref", 3, &[0.1, 0.2, 0.4])]);
    let comparison = compared(&[own, other], Some("ref"));
    assert!(comparison.differences.is_empty());
    let gaps = comparison.gaps(Some("ref")).join("\n");
    assert!(
        gaps.contains("those of a are other ones") && gaps.contains("differences of a from the reference"),
        "{gaps}"
    );
}

#[test]
fn what_was_trained_otherwise_than_the_reference_is_marked_and_in_no_difference() {
    let values: &[f64] = &[0.2, 0.5, 0.8];
    let families = ["ref", "alike", "wide", "long", "theirs"].map(|family| (family, 3, values));
    let mut one = contender(None, &families);
    for (sae, training) in &mut one.saes {
        match sae.family() {
            "wide" => {
                sae.n_fine *= 2;
                *training = Training::new(sae, Some(1000), Some(10));
            }
            "long" => *training = Training::new(sae, Some(3000), Some(20)),
            "theirs" => *training = Training::new(sae, None, None),
            _ => {}
        }
    }
    // The best of all, but not by the same means.
    one.metrics
        .iter_mut()
        .filter(|row| row.sae.starts_with("wide") && row.metric == "f1")
        .for_each(|row| row.value = 0.9);
    let mut elsewhere = contender(Some("1"), &[("far", 3, values)]);
    elsewhere.data = "e".into();
    let comparison = compared(&[one, elsewhere], Some("ref"));
    let [found] = &comparison.differences[..] else { panic!("{:?}", comparison.differences) };
    assert_eq!(found.family, "alike");
    let page = render(&comparison, &[]);
    for said in [
        "no difference is taken of them and none of their figures is bold: wide (9216 latents, not 4608), long (3000 tokens, \
         not 1000; batches of 20, not 10), theirs (trained elsewhere), far (other activations).",
        "| wide ‡ ",
        "| alike ",
    ] {
        assert!(page.contains(said), "{said}\n{page}");
    }
    assert!(!page.contains("**0.900**") && !page.contains("alike ‡") && !page.contains("ref ‡"), "{page}");
    // Whatever the reference is, its like may be found in another run.
    let mut own = contender(None, &[("ref", 3, values), ("ours", 3, values)]);
    own.saes.iter_mut().filter(|(sae, _)| sae.family() == "ref").for_each(|(_, training)| training.n_tokens = Some(7));
    let comparison = compared(&[own, contender(Some("1"), &[("ref", 3, values)])], Some("ref"));
    let references: Vec<_> = comparison.differences.iter().map(|found| (&*found.family, &*found.reference)).collect();
    assert_eq!(references, [("ours", "1/ref")]);
    assert!(!render(&comparison, &[]).contains('‡'));
}

#[test]
fn a_reference_may_be_in_a_run_that_is_missing() {
    let runs = [contender(Some("1"), &[("a", 3, &[0.1, 0.2])])];
    let comparison = compare(&runs, Some("ref"), false).unwrap().unwrap();
    assert!(comparison.differences.is_empty());
    let gaps = comparison.gaps(Some("ref")).join("\n");
    assert!(gaps.contains("differences from ref: no run that is there"), "{gaps}");
}

#[test]
fn equal_seeds_within_a_family_are_refused() {
    let mut one = contender(None, &[("a", 3, &[0.5, 0.6])]);
    one.metrics.iter_mut().for_each(|row| row.seed = 0);
    let error = compare(&[one], None, true).err().unwrap().to_string();
    assert!(error.contains("a-k3-s0 and a-k3-s1 are of one family, a, and agree in seed 0"), "{error}");
}

#[test]
fn an_l0_that_is_off_in_one_seed_marks_the_row() {
    let mut one = contender(None, &[("a", 20, &[0.9, 0.9]), ("b", 20, &[0.5, 0.6])]);
    one.metrics.iter_mut().find(|row| row.metric == "l0").unwrap().value = 21.1;
    let comparison = compared(&[one], None);
    assert_eq!(comparison.groups.iter().map(|group| group.l0_is_off).collect::<Vec<_>>(), [true, false]);
    let page = render(&comparison, &[]);
    assert!(page.contains("| a † ") && page.contains("| b ") && !page.contains("**0.900**"), "{page}");
}

#[test]
fn the_best_is_bold_among_figures_of_the_same_activations() {
    let own = contender(None, &[("a", 3, &[0.5, 0.6]), ("ref", 3, &[0.3, 0.4])]);
    let mut other = contender(Some("1"), &[("b", 3, &[0.9, 0.8]), ("ref", 3, &[0.7, 0.6])]);
    other.data = "e".into();
    let contenders = [own, other];
    for reference in [None, Some("ref")] {
        let page = render(&compared(&contenders, reference), &[]);
        for (bold, value) in [(true, "0.550"), (false, "0.350"), (true, "0.850"), (false, "0.650")] {
            assert!(page.contains(value) && page.contains(&format!("**{value}**")) == bold, "{value}\n{page}");
        }
        assert!(page.contains("it may have several"), "{page}");
    }
}

#[test]
fn families_without_a_reference_of_their_activations_are_never_bold() {
    let own = contender(None, &[("a", 3, &[0.5, 0.6]), ("ref", 3, &[0.3, 0.4])]);
    let mut other = contender(Some("1"), &[("b", 3, &[0.9, 0.8]), ("c", 3, &[0.7, 0.6])]);
    other.data = "e".into();
    let page = render(&compared(&[own, other], Some("ref")), &[]);
    assert!(page.contains("**0.550**") && !page.contains("**0.850**"), "{page}");
}

#[test]
fn own_and_post_hoc_trees_have_a_column_each() {
    let mut one = contender(None, &[("flat", 3, &[0.5, 0.6]), ("tree", 3, &[0.5, 0.6])]);
    for seed in 0..2 {
        one.metrics.push(row(&format!("flat-k3-s{seed}"), seed, NATIVE, "edge_f1", 0.3));
        one.metrics.push(row(&format!("tree-k3-s{seed}"), seed, NATIVE, "edge_f1", 0.4));
        one.metrics.push(row(&format!("tree-k3-s{seed}"), seed, NATIVE, "edge_f1_posthoc", 0.2));
    }
    let comparison = compared(&[one], None);
    let value =
        |i: usize, metric: &str| comparison.groups[i].get(&Name::new(metric, "all")).map(|figure| figure.estimate.mean);
    assert_eq!([value(0, "edge_f1_own"), value(0, "edge_f1_posthoc")], [None, Some(0.3)]);
    assert_eq!([value(1, "edge_f1_own"), value(1, "edge_f1_posthoc")], [Some(0.4), Some(0.2)]);
    let page = render(&comparison, &[]);
    assert!(page.contains("| edge F1, own ↑") && page.contains("| edge F1, post-hoc ↑"), "{page}");
}

#[test]
fn of_a_language_model_trees_and_what_it_loses_are_compared() {
    let mut one = contender(None, &[("ref", 3, &[0.5, 0.6, 0.5]), ("ours", 3, &[0.5, 0.6, 0.4])]);
    one.metrics.retain(|row| row.metric != "f1");
    for seed in 0..3 {
        for (family, shift) in [("ref", 0.0), ("ours", 0.1)] {
            let value = 0.2 + 0.01 * seed as f64 + shift;
            for metric in ["tree_mi_over_nested", "wordnet_hierarchy", "ce_recovered"] {
                one.metrics.push(row(&format!("{family}-k3-s{seed}"), seed, NATIVE, metric, value));
            }
        }
        for (family, tree) in [("ref", "posthoc"), ("ours", "own")] {
            let metric = format!("tree_mi_over_nested_{tree}");
            one.metrics.push(row(&format!("{family}-k3-s{seed}"), seed, NATIVE, &metric, 0.5));
            let counted = format!("tree_n_measured_{tree}");
            one.metrics.push(row(&format!("{family}-k3-s{seed}"), seed, NATIVE, &counted, 250.0));
        }
        // Nothing to judge its post-hoc tree by.
        one.metrics.push(row(&format!("ours-k3-s{seed}"), seed, NATIVE, "wordnet_hierarchy_n_posthoc", 0.0));
    }
    let comparison = compared(&[one], Some("ref"));
    let page = render(&comparison, &[]);
    let table = |start: &str| page.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    let names = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let header = page.lines().find(|line| line.contains("| less")).unwrap();
    assert_eq!(names(header)[4..7], ["I / I_nested ↑", "WordNet ↑", "CE recovered ↑"]);
    assert!(table("| ours ").contains("0.310"), "{page}");
    let differences = page.lines().find(|line| line.contains("| ref ") && line.starts_with("| ours"));
    assert_eq!(differences.unwrap().matches("[+0.100, +0.100]").count(), 3, "{page}");
    assert!(page.contains("| WordNet, own ↑") && page.contains("| I / I_nested, post-hoc ↑ | over edges |"), "{page}");
    assert!(page.contains("| 250 "), "{page}");
    let value =
        |i: usize, metric: &str| comparison.groups[i].get(&Name::new(metric, "all")).map(|figure| figure.estimate.mean);
    assert_eq!([value(0, "wordnet_hierarchy_own"), value(1, "wordnet_hierarchy_posthoc")], [None, None]);
}

#[test]
fn the_page_shows_means_differences_and_pictures() {
    let families: [(&str, usize, &[f64]); 4] = [
        ("ref", 3, &[0.2, 0.5, 0.8]),
        ("ours", 3, &[0.21, 0.52, 0.81]),
        ("ref", 4, &[0.2, 0.5, 0.8]),
        ("ours", 4, &[0.4]),
    ];
    let comparison = compared(&[contender(None, &families)], Some("ref"));
    let plots = draw(&comparison).unwrap();
    assert_eq!(plots.iter().map(|plot| plot.path.as_str()).collect::<Vec<_>>(), ["compare-f1-native.svg"]);
    assert!(plots[0].svg.contains("ours") && plots[0].svg.trim_end().ends_with("</svg>"));
    let page = render(&comparison, &plots);
    for part in [
        "### k = 3, native threshold",
        "### k = 4, native threshold",
        "Each family less ref, read flat",
        "+0.013 [−0.001, +0.028], g 1.30, p 0.057",
        "| ours             | 1 |",
        "![F1 against L0 (native threshold)](compare-f1-native.svg)",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
}

#[test]
fn a_figure_that_is_no_number_is_refused_by_name() {
    let mut one = contender(Some("1"), &[("a", 3, &[0.5, 0.6])]);
    one.metrics[0].value = f64::NAN;
    let error = compare(&[one], None, true).err().unwrap().to_string();
    assert!(error.contains("of 1: f1 of a-k3-s0"), "{error}");
}
