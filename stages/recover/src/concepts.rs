//! WordNet's synsets as classes of glosses: the gloss of a synset belongs to its own class and to that of everything above
//! it. A tree of latents is held against this one.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use wordnet::Synset;

/// A class of more than this share of the glosses of a class above it, or of all, is left out: it could not be told from
/// that one, and a duplicate of its latent would pass for a parent.
const MAX_SHARE: f64 = 0.8;

/// Classes of the glosses of a sample, from the largest to the smallest. One that stands above another comes first.
pub(crate) struct Concepts {
    /// The synset that each is named by, [n_concepts].
    pub(crate) offset: Vec<String>,
    /// The classes above each, ascending, [n_concepts].
    pub(crate) above: Vec<Vec<u32>>,
    /// The classes of each gloss, ascending, [n_glosses].
    pub(crate) of_gloss: Vec<Vec<u32>>,
}

impl Concepts {
    /// Classes of at least `min_glosses` of the sample, which is given by the offsets of its glosses' synsets, [n_glosses].
    /// Nothing here has seen an activation.
    ///
    /// Errors: the sample names a synset that is not there, or hypernyms are broken.
    pub(crate) fn new(synsets: &[Synset], sample: &[String], min_glosses: usize) -> Result<Self> {
        let ancestors = wordnet::ancestors(synsets)?;
        let place: BTreeMap<&str, usize> = synsets.iter().enumerate().map(|(i, s)| (s.offset.as_str(), i)).collect();
        let place = |offset: &String| {
            place.get(offset.as_str()).copied().with_context(|| format!("wordnet has no synset {offset}"))
        };
        let sample: Vec<usize> = sample.iter().map(place).collect::<Result<_>>()?;
        let with_ancestors = |synset: usize| ancestors[synset].iter().copied().chain([synset as u32]);
        let mut n_glosses = vec![0_usize; synsets.len()];
        sample.iter().flat_map(|&synset| with_ancestors(synset)).for_each(|synset| n_glosses[synset as usize] += 1);

        // Of equally large ones the upper comes first, since it has fewer above it.
        let mut order: Vec<usize> = (0..synsets.len()).filter(|&i| n_glosses[i] >= min_glosses.max(1)).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(n_glosses[i]), ancestors[i].len(), i));
        let mut concept: BTreeMap<usize, u32> = BTreeMap::new();
        let mut concepts = Self { offset: Vec::new(), above: Vec::new(), of_gloss: Vec::new() };
        for synset in order {
            let is_smaller = |than: usize| n_glosses[synset] as f64 <= MAX_SHARE * than as f64;
            let kept = ancestors[synset].iter().filter(|&&above| concept.contains_key(&(above as usize)));
            if !is_smaller(sample.len()) || !kept.clone().all(|&above| is_smaller(n_glosses[above as usize])) {
                continue;
            }
            let mut above: Vec<u32> = kept.map(|&above| concept[&(above as usize)]).collect();
            above.sort_unstable();
            concept.insert(synset, concepts.offset.len() as u32);
            concepts.offset.push(synsets[synset].offset.clone());
            concepts.above.push(above);
        }
        concepts.of_gloss = sample
            .iter()
            .map(|&synset| {
                let kept = with_ancestors(synset).filter_map(|synset| concept.get(&(synset as usize)));
                let mut of_gloss: Vec<u32> = kept.copied().collect();
                of_gloss.sort_unstable();
                of_gloss
            })
            .collect();
        Ok(concepts)
    }

    pub(crate) fn n(&self) -> usize {
        self.offset.len()
    }

    /// Whether `upper` stands above `lower`, at any distance.
    pub(crate) fn is_above(&self, upper: u32, lower: u32) -> bool {
        self.above[lower as usize].binary_search(&upper).is_ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two roots-but-one of two kinds each: 0 everything; 1, 2 under it; 3, 4 under 1; 5, 6 under 2; then `n` leaves under
    /// each of 3 to 6, whose glosses are the sample.
    pub(crate) fn forest(n: usize) -> (Vec<Synset>, Vec<String>) {
        let offset = |i: usize| format!("{i:08}");
        let synset = |i: usize, hypernyms: Vec<String>| Synset {
            offset: offset(i),
            lex_file: 3,
            hypernyms,
            gloss: "a thing".into(),
        };
        let mut synsets = vec![synset(0, vec![])];
        synsets
            .extend([(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)].map(|(i, above)| synset(i, vec![offset(above)])));
        synsets.extend((0..4 * n).map(|i| synset(7 + i, vec![offset(3 + i / n)])));
        let sample = synsets[7..].iter().map(|synset| synset.offset.clone()).collect();
        (synsets, sample)
    }

    #[test]
    fn glosses_belong_to_all_classes_above_them() {
        let (synsets, sample) = forest(10);
        let concepts = Concepts::new(&synsets, &sample, 5).unwrap();
        // Everything is no class; leaves are too small.
        assert_eq!(concepts.offset, [1, 2, 3, 4, 5, 6].map(|i| format!("{i:08}")));
        assert_eq!(concepts.above, [vec![], vec![], vec![0], vec![0], vec![1], vec![1]]);
        assert_eq!((&concepts.of_gloss[0], &concepts.of_gloss[39]), (&vec![0, 2], &vec![1, 5]));
        assert!(concepts.is_above(0, 3) && !concepts.is_above(3, 0) && !concepts.is_above(1, 3));
        assert!(Concepts::new(&synsets, &sample, 11).unwrap().offset.len() == 2);
        let error = Concepts::new(&synsets, &["99999999".into()], 1).err().expect("an error").to_string();
        assert!(error.contains("no synset 99999999"), "{error}");
    }

    #[test]
    fn a_class_that_is_nearly_the_one_above_it_is_left_out() {
        let (synsets, sample) = forest(10);
        // All glosses of class 3, and two of class 4, are left: 3 holds 10 of the 12 under 1.
        let sample: Vec<String> = sample[..12].iter().chain(&sample[20..40]).cloned().collect();
        let concepts = Concepts::new(&synsets, &sample, 2).unwrap();
        assert_eq!(concepts.offset, [2, 1, 5, 6, 4].map(|i| format!("{i:08}")));
        assert_eq!(concepts.above[4], [1]);
    }
}
