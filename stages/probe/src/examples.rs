//! Labelled texts of a task: balanced over classes, half for training and half for testing, no text on both sides.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A text as its source gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Labelled {
    /// Synset or review.
    pub(crate) name: String,
    pub(crate) class: usize,
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    /// The synset or review; equal texts share one too. All its examples lie on one side of the split.
    pub(crate) group: usize,
    pub(crate) class: usize,
    pub(crate) text: String,
}

/// Both halves hold as many examples of each class as of any other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Split {
    pub(crate) n_classes: usize,
    pub(crate) train: Vec<Example>,
    pub(crate) test: Vec<Example>,
}

impl Split {
    /// Draws about `n_examples` of the labelled texts (fewer where a class has too few), half of them for testing.
    ///
    /// Errors: a class has fewer than two texts on a side.
    pub(crate) fn draw(
        labelled: &[Labelled],
        n_classes: usize,
        n_examples: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self> {
        let groups = group(labelled);
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.shuffle(rng);
        // sides[test or train][class]
        let mut sides = [vec![Vec::new(); n_classes], vec![Vec::new(); n_classes]];
        for (rank, &group) in order.iter().enumerate() {
            for &i in &groups[group] {
                let Labelled { class, text, .. } = &labelled[i];
                sides[rank % 2][*class].push(Example { group, class: *class, text: text.clone() });
            }
        }
        let fewest = sides.iter().flatten().map(Vec::len).min().unwrap_or(0);
        let n_per_class = fewest.min(n_examples / (2 * n_classes));
        ensure!(
            n_per_class >= 2,
            "only {n_per_class} texts per class and side: raise probe.n_examples or lower probe.n_classes"
        );
        let [train, test] = sides.map(|classes| {
            let mut side: Vec<Example> =
                classes.into_iter().flat_map(|class| class.into_iter().take(n_per_class)).collect();
            side.shuffle(rng);
            side
        });
        Ok(Self { n_classes, train, test })
    }

    /// Training examples first, then test examples.
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.train.iter().chain(&self.test).map(|example| example.text.as_str()).collect()
    }
}

/// Texts that are in no document of `seen`, by name; `None` where those left do not suffice for `n_per_class` texts of
/// each class.
pub(crate) fn unseen(
    labelled: &[Labelled],
    seen: &BTreeSet<String>,
    n_classes: usize,
    n_per_class: usize,
) -> Option<Vec<Labelled>> {
    let left: Vec<Labelled> = labelled.iter().filter(|text| !seen.contains(&text.name)).cloned().collect();
    let mut n_of_class = vec![0; n_classes];
    left.iter().for_each(|text| n_of_class[text.class] += 1);
    n_of_class.iter().all(|&n| n >= n_per_class).then_some(left)
}

/// Indices of the texts of each group, in order of first appearance: texts that share a name or are equal belong
/// together, and so do those that a chain of such texts connects.
fn group(labelled: &[Labelled]) -> Vec<Vec<usize>> {
    let (mut by_name, mut by_text) = (BTreeMap::new(), BTreeMap::new());
    // The first text of the group that a text was put in, followed to the end by `root`.
    let mut first: Vec<usize> = (0..labelled.len()).collect();
    for (i, Labelled { name, text, .. }) in labelled.iter().enumerate() {
        for other in [*by_name.entry(name.as_str()).or_insert(i), *by_text.entry(text.as_str()).or_insert(i)] {
            let (a, b) = (root(&first, i), root(&first, other));
            first[a.max(b)] = a.min(b);
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in 0..labelled.len() {
        groups.entry(root(&first, i)).or_default().push(i);
    }
    groups.into_values().collect()
}

fn root(first: &[usize], mut i: usize) -> usize {
    while first[i] != i {
        i = first[i];
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three texts a name, some equal to texts of another name.
    fn labelled(n_names: usize) -> Vec<Labelled> {
        let text = |name: usize, i: usize| if i == 0 { format!("shared {}", name / 2) } else { format!("{name} {i}") };
        (0..3 * n_names)
            .map(|i| Labelled { name: format!("{}", i / 3), class: i % 2, text: text(i / 3, i % 3) })
            .collect()
    }

    #[test]
    fn no_name_and_no_text_stands_on_both_sides() {
        for seed in 0..20 {
            let rng = &mut artifact::random::stream(seed, "test", 0, 0);
            let split = Split::draw(&labelled(40), 2, 60, rng).unwrap();
            assert_eq!((split.train.len(), split.test.len()), (30, 30));
            for side in [&split.train, &split.test] {
                assert_eq!(side.iter().filter(|example| example.class == 0).count(), 15);
            }
            let groups = |side: &[Example]| side.iter().map(|example| example.group).collect::<BTreeSet<_>>();
            assert!(groups(&split.train).is_disjoint(&groups(&split.test)));
            // A text tells its name, and both names of a shared text are in one group.
            let pairs = |side: &[Example]| -> BTreeSet<usize> {
                let of = |text: &str| match text.strip_prefix("shared ") {
                    Some(pair) => pair.parse::<usize>().unwrap(),
                    None => text.split(' ').next().unwrap().parse::<usize>().unwrap() / 2,
                };
                side.iter().map(|example| of(&example.text)).collect()
            };
            assert!(pairs(&split.train).is_disjoint(&pairs(&split.test)));
        }
    }

    #[test]
    fn chains_of_names_and_texts_are_one_group() {
        let text = |name: &str, text: &str| Labelled { name: name.into(), class: 0, text: text.into() };
        let texts = [text("a", "1"), text("b", "2"), text("c", "3"), text("b", "1"), text("c", "4")];
        assert_eq!(group(&texts), [vec![0, 1, 3], vec![2, 4]]);
    }

    #[test]
    fn texts_seen_in_training_are_left_out_while_enough_remain() {
        let texts = labelled(10);
        let seen: BTreeSet<String> = ["0", "3"].map(String::from).into();
        let left = unseen(&texts, &seen, 2, 12).unwrap();
        assert_eq!(left.len(), 24);
        assert!(left.iter().all(|text| !seen.contains(&text.name)));
        assert_eq!(unseen(&texts, &seen, 2, 13), None);
    }

    #[test]
    fn too_few_texts_are_an_error() {
        let rng = &mut artifact::random::stream(0, "test", 0, 0);
        let error = Split::draw(&labelled(1), 2, 60, rng).unwrap_err();
        assert!(format!("{error:#}").contains("probe.n_examples"), "{error:#}");
    }
}
