//! A tree of latents against WordNet's: does the parent of a latent that detects a class of glosses detect a class above it?
//!
//! A latent *fires on a gloss* if it is active in any of its tokens. How well that tells the glosses of a class from others
//! is F1 corrected for chance, (F1 − E F1) / (1 − E F1) with E F1 what as many firings get at random, which is Cohen's κ: F1
//! itself is high for any latent that is nearly always on, and any class that is nearly everything. A latent *detects* the
//! class of greatest κ on one half of the glosses, if that κ is at least [`MIN_KAPPA`] and beyond chance there, the choice
//! among all classes accounted for, and both hold again on the other half.

use rayon::prelude::*;

use crate::concepts::Concepts;
use crate::firing::Firing;
use crate::information::PairCounts;
use crate::measure::{Measure, mean, share};
use crate::resampling::Resamples;
use crate::significance::fisher_exact;
use crate::tree::Tree;

/// A detector is at least so good.
const MIN_KAPPA: f64 = 0.2;
/// And so improbable by chance, on the choosing half after Bonferroni's correction for the number of classes.
const MAX_P: f64 = 0.025;

/// What the latents of an SAE in a mode detect.
pub(crate) struct Detecting<'a> {
    concepts: &'a Concepts,
    choosing: Half<'a>,
    measuring: Half<'a>,
    /// [n_latents]
    detected: Vec<Option<u32>>,
}

/// Half of the glosses.
struct Half<'a> {
    firing: Firing,
    /// The classes of each gloss, [n_glosses].
    of_gloss: Vec<&'a [u32]>,
    /// Glosses of each class, [n_concepts].
    n_of: Vec<u64>,
}

/// An edge whose child detects a class that has others above it.
struct Judged {
    parent: u32,
    /// What the parent detects, beside the child's class.
    is_above: bool,
    is_same: bool,
    is_below: bool,
    parent_detects: bool,
    /// κ of the parent and of the child for a class above the child's, on the measuring half: the class that the parent
    /// is best at on the choosing half.
    kappa: f64,
    kappa_of_child: f64,
}

impl<'a> Detecting<'a> {
    /// `firing` has one row a gloss of the sample; `halves` are rows of it.
    pub(crate) fn new(concepts: &'a Concepts, firing: &Firing, halves: &[Vec<usize>; 2]) -> Self {
        let half = |i: usize| Half::new(concepts, firing, &halves[i]);
        let (choosing, measuring) = (half(0), half(1));
        let latents = (0..firing.n_latents()).into_par_iter();
        let detected = latents.map(|latent| detected(&choosing, &measuring, latent)).collect();
        Self { concepts, choosing, measuring, detected }
    }

    /// `wordnet_classes`: classes there are; `wordnet_detected_classes`: those that a latent detects; and
    /// `wordnet_detectors`: share of all latents that detect one.
    pub(crate) fn of_latents(&self) -> Vec<Measure> {
        let mut taken: Vec<u32> = self.detected.iter().flatten().copied().collect();
        let n_detectors = taken.len();
        taken.sort_unstable();
        taken.dedup();
        let detectors = share(n_detectors, self.detected.len());
        let measures = [
            Some(("wordnet_classes", self.concepts.n() as f64)),
            Some(("wordnet_detected_classes", taken.len() as f64)),
            detectors.map(|detectors| ("wordnet_detectors", detectors)),
        ];
        measures.into_iter().flatten().map(|(metric, value)| Measure::new(metric, value)).collect()
    }

    /// Scores of a tree, over its edges whose child detects a class that has others above it (`wordnet_hierarchy_n` of
    /// them). `suffix` ends every metric's name. Intervals: bootstrap over parents, all edges of a parent together, since
    /// they share what it detects; the glosses are kept.
    pub(crate) fn of_tree(&self, tree: &Tree, suffix: &str, seed: u64, n_bootstrap: usize) -> Vec<Measure> {
        let edges = tree.edges();
        let mut judged: Vec<Judged> = edges.par_iter().filter_map(|&edge| self.judge(edge)).collect();
        judged.sort_by_key(|edge| edge.parent);
        let n = Measure::new(format!("wordnet_hierarchy_n{suffix}"), judged.len() as f64);
        let families: Vec<&[Judged]> = judged.chunk_by(|a, b| a.parent == b.parent).collect();
        let resamples = Resamples::draw(seed, "recover/wordnet", families.len(), n_bootstrap);
        let n_edges: Vec<f64> = families.iter().map(|family| family.len() as f64).collect();
        let of_edges = |metric: &str, of_edge: &dyn Fn(&Judged) -> f64| {
            let sums: Vec<f64> = families.iter().map(|family| family.iter().map(of_edge).sum()).collect();
            let value = mean(judged.iter().map(of_edge))?;
            Some(Measure::new(format!("{metric}{suffix}"), value).within(resamples.ratio_interval(&sums, &n_edges)))
        };
        let one_if = |holds: bool| f64::from(u8::from(holds));
        let measures = [
            of_edges("wordnet_hierarchy", &|edge| one_if(edge.is_above)),
            of_edges("wordnet_same_class", &|edge| one_if(edge.is_same)),
            of_edges("wordnet_reversed", &|edge| one_if(edge.is_below)),
            of_edges("wordnet_parent_detects", &|edge| one_if(edge.parent_detects)),
            of_edges("wordnet_ancestor_kappa", &|edge| edge.kappa),
            of_edges("wordnet_ancestor_gain", &|edge| edge.kappa - edge.kappa_of_child),
        ];
        std::iter::once(n).chain(measures.into_iter().flatten()).collect()
    }

    fn judge(&self, (child, parent): (u32, u32)) -> Option<Judged> {
        let class = self.detected[child as usize]?;
        let above = &self.concepts.above[class as usize];
        let of_parent = self.detected[parent as usize];
        let on_choosing = self.choosing.n_hits(parent as usize);
        let kappa = |half: &Half, latent: u32, n_hits: &[u64], class: u32| half.kappa(latent as usize, n_hits, class);
        // Of equals the first, which is the largest class.
        let best = above.iter().map(|&class| (class, kappa(&self.choosing, parent, &on_choosing, class)));
        let (best, _) = best.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        let on_measuring = |latent: u32| kappa(&self.measuring, latent, &self.measuring.n_hits(latent as usize), best);
        Some(Judged {
            parent,
            is_above: of_parent.is_some_and(|of_parent| self.concepts.is_above(of_parent, class)),
            is_same: of_parent == Some(class),
            is_below: of_parent.is_some_and(|of_parent| self.concepts.is_above(class, of_parent)),
            parent_detects: of_parent.is_some(),
            kappa: on_measuring(parent),
            kappa_of_child: on_measuring(child),
        })
    }
}

impl<'a> Half<'a> {
    fn new(concepts: &'a Concepts, firing: &Firing, glosses: &[usize]) -> Self {
        let of_gloss: Vec<&[u32]> = glosses.iter().map(|&gloss| concepts.of_gloss[gloss].as_slice()).collect();
        let mut n_of = vec![0; concepts.n()];
        of_gloss.iter().flat_map(|classes| *classes).for_each(|&class| n_of[class as usize] += 1);
        Self { firing: firing.select(glosses), of_gloss, n_of }
    }

    /// Glosses of each class that the latent fires on, [n_concepts].
    fn n_hits(&self, latent: usize) -> Vec<u64> {
        let mut n_hits = vec![0; self.n_of.len()];
        let glosses = self.firing.latent(latent).0.iter();
        glosses.flat_map(|&gloss| self.of_gloss[gloss as usize]).for_each(|&class| n_hits[class as usize] += 1);
        n_hits
    }

    /// The latent as parent, the class as child.
    fn pair(&self, latent: usize, n_hits: &[u64], class: u32) -> PairCounts {
        PairCounts {
            n11: n_hits[class as usize],
            n_parent: self.firing.n_firings(latent),
            n_child: self.n_of[class as usize],
            n: self.of_gloss.len() as u64,
        }
    }

    fn kappa(&self, latent: usize, n_hits: &[u64], class: u32) -> f64 {
        kappa(self.pair(latent, n_hits, class))
    }
}

/// What the latent detects, if anything.
fn detected(choosing: &Half, measuring: &Half, latent: usize) -> Option<u32> {
    let n_hits = choosing.n_hits(latent);
    let kappas = (0..n_hits.len() as u32).map(|class| (class, choosing.kappa(latent, &n_hits, class)));
    let (class, best) = kappas.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let passes = |half: &Half, n_hits: &[u64], kappa: f64, n_tried: usize| {
        kappa >= MIN_KAPPA && fisher_exact(half.pair(latent, n_hits, class)) * n_tried as f64 <= MAX_P
    };
    if !passes(choosing, &n_hits, best, n_hits.len()) {
        return None;
    }
    let n_hits = measuring.n_hits(latent);
    passes(measuring, &n_hits, measuring.kappa(latent, &n_hits, class), 1).then_some(class)
}

/// Cohen's κ, which is F1 = 2·n11 / (n_parent + n_child) corrected for chance: with E = n_parent·n_child / n the n11 of
/// independence, (n11 − E) / ((n_parent + n_child)/2 − E). 0 where both are always on or always off.
///
/// Source: Albatineh, Niewiadomska-Bugaj and Mihalko 2006, "On similarity indices and correction for chance agreement".
fn kappa(PairCounts { n11, n_parent, n_child, n }: PairCounts) -> f64 {
    let (latent, class) = (n_parent as f64, n_child as f64);
    let expected = latent * class / n.max(1) as f64;
    let most = (latent + class) / 2.0 - expected;
    if most > 0.0 { (n11 as f64 - expected) / most } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use artifact::random;
    use rand::seq::SliceRandom;

    use super::*;
    use crate::concepts::tests::forest;
    use crate::glosses::halves;
    use crate::planted;

    const N_LEAVES: usize = 200;
    const NONE: usize = 6;

    /// Latent i < 6 fires on the glosses of class i with a probability of .9 and on others with .02, latent 6 on half of all.
    fn gates(concepts: &Concepts, seed: u64) -> planted::Dense {
        let mut rng = random::stream(seed, "recover/test/hierarchy", 0, 0);
        let mut gate = |probability: f64| f32::from(u8::from(planted::uniform(&mut rng) < probability));
        let of_gloss = |classes: &Vec<u32>| {
            let of_class = (0..6).map(|class| if classes.contains(&class) { 0.9 } else { 0.02 });
            of_class.chain([0.5]).map(&mut gate).collect()
        };
        concepts.of_gloss.iter().map(of_gloss).collect()
    }

    fn measures(concepts: &Concepts, gates: &planted::Dense, edges: &[(u32, u32)]) -> Vec<Measure> {
        let firing = planted::firing(gates);
        let detecting = Detecting::new(concepts, &firing, &halves(gates.len(), 0));
        let tree = Tree::from_edges("own", edges, &firing);
        let mut measures = detecting.of_latents();
        measures.extend(detecting.of_tree(&tree, "_own", 0, 100));
        measures
    }

    fn find<'a>(measures: &'a [Measure], metric: &str) -> Option<&'a Measure> {
        measures.iter().find(|measure| measure.metric == metric)
    }

    fn check(measures: &[Measure], metric: &str, expected: f64) {
        let found = find(measures, metric).unwrap_or_else(|| panic!("no {metric}")).value;
        assert!((found - expected).abs() <= 1e-9, "{metric}: {found}, expected {expected}");
    }

    fn concepts() -> Concepts {
        let (synsets, sample) = forest(N_LEAVES);
        Concepts::new(&synsets, &sample, 20).unwrap()
    }

    #[test]
    fn parents_that_detect_what_stands_above_are_found() {
        let concepts = concepts();
        let gates = gates(&concepts, 0);
        // Latents 0 and 1 detect the upper classes, 2 to 5 the lower ones.
        let found = measures(&concepts, &gates, &[(2, 0), (3, 0), (4, 1), (5, 1)]);
        check(&found, "wordnet_classes", 6.0);
        check(&found, "wordnet_detected_classes", 6.0);
        check(&found, "wordnet_detectors", 6.0 / 7.0);
        check(&found, "wordnet_hierarchy_n_own", 4.0);
        check(&found, "wordnet_hierarchy_own", 1.0);
        check(&found, "wordnet_same_class_own", 0.0);
        check(&found, "wordnet_parent_detects_own", 1.0);
        assert!(find(&found, "wordnet_ancestor_kappa_own").unwrap().value > 0.8);
        // A child that fires on half of the upper class's glosses is worth less there than the parent.
        assert!(find(&found, "wordnet_ancestor_gain_own").unwrap().value > 0.2);
        assert_eq!(find(&found, "wordnet_hierarchy_own").unwrap().interval, Some((1.0, 1.0)));
    }

    #[test]
    fn wrong_parents_and_those_that_detect_nothing_are_misses() {
        let concepts = concepts();
        let gates = gates(&concepts, 1);
        // Right, the other side's, a sibling, nothing; the child of the last edge detects a class with none above it.
        let found = measures(&concepts, &gates, &[(2, 0), (3, 1), (4, 5), (5, NONE as u32), (0, 1)]);
        check(&found, "wordnet_hierarchy_n_own", 4.0);
        check(&found, "wordnet_hierarchy_own", 0.25);
        check(&found, "wordnet_parent_detects_own", 0.75);
        let interval = find(&found, "wordnet_hierarchy_own").unwrap().interval.unwrap();
        assert!(interval.0 <= 0.25 && 0.25 < interval.1, "{interval:?}");
    }

    #[test]
    fn duplicates_and_children_in_the_parents_place_are_told_apart() {
        let concepts = concepts();
        let mut gates = gates(&concepts, 2);
        // The last latent becomes a second detector of latent 2's class.
        gates.iter_mut().for_each(|row| row[NONE] = row[2]);
        let found = measures(&concepts, &gates, &[(2, NONE as u32), (NONE as u32, 0)]);
        check(&found, "wordnet_hierarchy_own", 0.5);
        check(&found, "wordnet_same_class_own", 0.5);
        let (synsets, sample) = forest(N_LEAVES);
        let mut deeper = Concepts::new(&synsets, &sample, 20).unwrap();
        // Under a class above all, the same edges the wrong way round.
        deeper.above.iter_mut().for_each(|above| above.iter_mut().for_each(|class| *class += 1));
        deeper.above.iter_mut().for_each(|above| above.insert(0, 0));
        deeper.above.insert(0, vec![]);
        deeper.offset.insert(0, "all".into());
        deeper.of_gloss.iter_mut().for_each(|classes| classes.iter_mut().for_each(|class| *class += 1));
        let found = measures(&deeper, &gates, &[(0, 2)]);
        check(&found, "wordnet_reversed_own", 1.0);
        check(&found, "wordnet_hierarchy_own", 0.0);
    }

    /// Glosses dealt out anew: firing says nothing of classes, and hardly a latent passes for a detector.
    #[test]
    fn shuffled_labels_give_no_detectors() {
        let mut n_detectors = 0.0;
        for seed in 0..20 {
            let mut concepts = concepts();
            let gates = gates(&concepts, seed);
            concepts.of_gloss.shuffle(&mut random::stream(seed, "recover/test/labels", 0, 0));
            let found = measures(&concepts, &gates, &[(2, 0), (3, 0), (4, 1), (5, 1)]);
            n_detectors += 7.0 * find(&found, "wordnet_detectors").unwrap().value;
            check(&found, "wordnet_hierarchy_n_own", 0.0);
            assert!(find(&found, "wordnet_hierarchy_own").is_none());
        }
        assert!(n_detectors <= 0.0, "{n_detectors}");
    }

    #[test]
    fn kappa_is_f1_corrected_for_chance() {
        let check = |n11: u64, n_parent: u64, n_child: u64, n: u64, expected: f64| {
            let found = kappa(PairCounts { n11, n_parent, n_child, n });
            assert!((found - expected).abs() <= 1e-12, "{found}, expected {expected}");
        };
        // F1 = .5, by chance 2·(40·40/400)/80 = .1.
        check(20, 40, 40, 400, 0.4 / 0.9);
        check(40, 40, 40, 400, 1.0);
        check(4, 40, 40, 400, 0.0);
        // Always on: F1 of the class is high, and says nothing.
        check(300, 400, 300, 400, 0.0);
        check(400, 400, 400, 400, 0.0);
        check(0, 0, 0, 400, 0.0);
    }
}
