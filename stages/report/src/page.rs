//! `report.md`: short tables, each with a line on what its numbers mean.

use std::collections::BTreeSet;
use std::fmt::Write;

use artifact::config::Arch;

use crate::comparison::{self, Comparison};
use crate::figures::{Figure, Figures, Mode, Name};
use crate::gaps;
use crate::inputs::{self, Run};
use crate::markdown::{self, Table};
use crate::measures::{self, Better, Column, Format, TREE, TREES};
use crate::plots::Plot;

const REFINED: &str = "*Refined* thresholds judge each latent by what the others leave of a token, so that such an SAE is no \
                       longer one pass of a linear encoder: compare refined rows with refined rows.";

struct Page<'a> {
    run: &'a Run,
    figures: &'a Figures,
    out: String,
}

pub(crate) fn render(
    run: &Run,
    figures: &Figures,
    comparison: Option<&Comparison>,
    gaps: &[String],
    plots: &[Plot],
) -> String {
    let mut page = Page { run, figures, out: String::new() };
    if run.saes.is_empty() {
        page.introduction_to_runs();
    } else {
        page.introduction();
    }
    let compared = comparison.map_or(Vec::new(), |comparison| comparison.settings().into_iter().collect());
    let mut thresholds = figures.thresholds().into_iter().chain(compared.into_iter().map(|(_, threshold)| threshold));
    if thresholds.any(|threshold| threshold == "refined") {
        page.line(REFINED);
    }
    if let Some(comparison) = comparison {
        page.out.push_str(&comparison::render(comparison, plots));
    }
    if !run.saes.is_empty() {
        page.reconstruction(plots);
        page.probes();
        page.trees();
        page.wordnet();
        page.planted();
        page.training(plots);
        page.others();
    }
    page.not_measured(gaps);
    page.origins();
    page.out
}

impl Page<'_> {
    fn line(&mut self, text: impl AsRef<str>) {
        self.out.push_str(text.as_ref().trim_end());
        self.out.push_str("\n\n");
    }

    fn introduction(&mut self) {
        let Run { pipeline, stats, .. } = self.run;
        self.line(format!("# {}", pipeline.report.title));
        let number = |key: &str| stats.get(key).and_then(serde_json::Value::as_u64);
        let mut text = format!("Activations: {}", gaps::source_in_words(&pipeline.source));
        if pipeline.source.model.is_some() {
            let _ = write!(text, ", `{}`", pipeline.harvest.hook);
        }
        if let (Some(n_train), Some(n_heldout)) = (number("n_train"), number("n_heldout")) {
            let _ = write!(text, "; {n_train} rows to train on, {n_heldout} held out");
        }
        let _ = write!(text, ". Each SAE was trained on {} tokens", pipeline.train.n_tokens);
        let imported = self.run.saes.iter().map(|sae| &sae.config).filter(|sae| sae.import.is_some());
        let imported: Vec<_> = imported.map(|sae| sae.name.as_str()).collect();
        if !imported.is_empty() {
            let _ = write!(text, ", but for those that were trained elsewhere: {}", imported.join(", "));
        }
        text.push('.');
        self.line(text);
        let row = |sae: &inputs::TrainedSae| {
            let sae = &sae.config;
            let width =
                if sae.n_coarse > 0 { format!("{} + {}", sae.n_coarse, sae.n_fine) } else { sae.n_fine.to_string() };
            let kind = format!("{:?}", sae.arch).to_lowercase();
            let kind = if sae.import.is_some() { format!("{kind}, imported") } else { kind };
            vec![sae.name.clone(), kind, width, sae.k.to_string()]
        };
        let header = ["SAE", "kind", "latents", "wanted L0"].map(str::to_owned).to_vec();
        let table = Table { header, rows: self.run.saes.iter().map(row).collect() };
        self.line(table.render());
        self.line(
            "Everything below is measured on held-out documents. *Native* thresholds are what training ended with; \
             *prior* ones add each latent's firing rate and are refitted to the wanted L0. *Gated* means that the tree's \
             gate takes part; without it an SAE is read flat, as any other. Brackets hold 95 % intervals, ↑ and ↓ say \
             which way is better, **bold** is the best of its column. † marks an L0 more than 5 % from the wanted one: \
             such a row competes only with its like.",
        );
    }

    /// Of a report that has no SAEs of its own.
    fn introduction_to_runs(&mut self) {
        self.line(format!("# {}", self.run.pipeline.report.title));
        let names = self.run.pipeline.report.beside.iter().map(|run| inputs::name_of(run));
        let names: Vec<_> = names.filter(|name| !self.run.missing.contains(name)).collect();
        let of = match &names[..] {
            [one] => format!("run {one}, which has a report of its own"),
            _ => format!("runs {}, which have reports of their own", names.join(", ")),
        };
        let mut text = format!("The SAEs of the {of}, in one comparison.");
        if !self.run.missing.is_empty() {
            let _ = write!(text, " **Not made yet: {}.**", self.run.missing.join(", "));
        }
        self.line(text);
        self.line(
            "Everything is measured on held-out documents. *Native* thresholds are what training ended with; *prior* ones add \
             each latent's firing rate and are refitted to the wanted L0. *Gated* means that the tree's gate takes part; \
             without it an SAE is read flat, as any other. ↑ and ↓ say which way is better, **bold** is the best of its column.",
        );
    }

    fn reconstruction(&mut self, plots: &[Plot]) {
        self.line("## Reconstruction");
        self.line(
            "EV is the share of the activations' variance that the reconstruction explains (1 − FVU); L0 is the mean number \
             of active latents per token; *dead* latents never fire. CE recovered says where the model's cross-entropy lands \
             when the reconstruction replaces the activation, between that of a zero in its place (0) and that of the \
             activation itself (1); KL is how far the model's predictions move, in nats per token.",
        );
        self.by_threshold(&measures::reconstruction());
        if self.has_any(&measures::levels()) {
            self.line("Of the SAEs with two levels:");
            self.by_threshold(&measures::levels());
        }
        let verdicts = self.against_others();
        if !verdicts.is_empty() {
            self.line("EV of each HierSAE less that of every other SAE, read flat with the same threshold:");
            self.line(verdicts.join("\n"));
        }
        self.splice_marks();
        self.image(plots, "ev-l0.svg");
        self.image(plots, "density.svg");
    }

    /// The question that the run is made for: is the hierarchy paid for with reconstruction? A line a mode of a HierSAE.
    fn against_others(&self) -> Vec<String> {
        let modes = &self.figures.modes;
        let is_hiersae = |mode: &&Mode| self.run.sae(&mode.sae).is_some_and(|sae| sae.config.arch == Arch::Hiersae);
        let ev = |mode: &Mode| self.figures.value(mode, "ev", "all");
        let verdict = |mode: &Mode| {
            let ours = ev(mode)?;
            let others = modes
                .iter()
                .filter(|other| other.sae != mode.sae && other.view == "flat" && other.threshold == mode.threshold);
            let difference = |other: &Mode| {
                let unmatched = if self.is_unfair(mode) || self.is_unfair(other) { " (L0 differs)" } else { "" };
                Some(format!("{}{unmatched} to {}", measures::difference(ours - ev(other)?), other.sae))
            };
            let differences: Vec<_> = others.filter_map(difference).collect();
            let Mode { sae, view, threshold, .. } = mode;
            (!differences.is_empty()).then(|| format!("- {sae} ({view}, {threshold}): {}", differences.join(", ")))
        };
        modes.iter().filter(is_hiersae).filter_map(verdict).collect()
    }

    /// What the spliced cross-entropies lie between.
    fn splice_marks(&mut self) {
        let mark = |(intervention, title): (&str, &str)| {
            let name = Name::new(&format!("cross_entropy/{intervention}"), "all");
            let figure = self.figures.get(&Mode::none(), &name)?;
            Some(format!("{title} {}", Format::Plain.write(figure.value)))
        };
        let marks: Vec<_> =
            [("clean", "untouched"), ("mean", "the activation replaced by its mean"), ("zero", "by zero")]
                .into_iter()
                .filter_map(mark)
                .collect();
        if !marks.is_empty() {
            self.line(format!("The model's cross-entropy in nats per token: {}.", marks.join(", ")));
        }
    }

    fn probes(&mut self) {
        let tasks: BTreeSet<String> = self.figures.all.iter().filter_map(|figure| figure.task.clone()).collect();
        if tasks.is_empty() {
            return;
        }
        self.line("## Probes");
        self.line(
            "Accuracy on unseen examples of classifiers, one a class against the rest, each of which sees only the k latents \
             most telling for its class: with six classes, up to 6 latents take part at k = 1. Texts are represented by the \
             mean over their tokens.",
        );
        let ks: Vec<u64> = self.run.pipeline.probe.ks.iter().map(|&k| k as u64).collect();
        for task in &tasks {
            self.line(format!("### {task}"));
            self.probe_marks(task);
            let column = |level: &str, title: &str, k: u64| {
                let title = format!("{title}k = {k}");
                Column::new(
                    Name::new("probe_accuracy", level).task(task, Some(k)),
                    &title,
                    Better::Higher,
                    Format::Plain,
                )
            };
            self.by_threshold(&ks.iter().map(|&k| column("all", "", k)).collect::<Vec<_>>());
            let ends: BTreeSet<u64> = ks.first().into_iter().chain(ks.last()).copied().collect();
            let levels = ends.iter().flat_map(|&k| [column("coarse", "coarse, ", k), column("fine", "fine, ", k)]);
            let levels: Vec<_> = levels.collect();
            if self.has_any(&levels) {
                self.line("The same, with the probe confined to one level:");
                self.by_threshold(&levels);
            }
        }
    }

    fn probe_marks(&mut self, task: &str) {
        let accuracy = |level: &str| {
            let name = Name::new("probe_accuracy", level).task(task, None);
            Some(Format::Plain.write_figure(self.figures.get(&Mode::none(), &name)?, false))
        };
        let chance = Name { task: Some(task.into()), ..Name::new("probe_chance", "all") };
        let chance = self.figures.get(&Mode::none(), &chance).map(|figure| Format::Plain.write(figure.value));
        let marks: Vec<_> = [
            ("the raw activations", accuracy("activations")),
            ("the token embeddings", accuracy("embeddings")),
            ("the largest class alone", chance),
        ]
        .into_iter()
        .filter_map(|(title, value)| Some(format!("{title} {}", value?)))
        .collect();
        if !marks.is_empty() {
            self.line(format!("To compare with: {}.", marks.join(", ")));
        }
    }

    fn trees(&mut self) {
        if !self.figures.all.iter().any(|figure| figure.tree.is_some()) {
            return;
        }
        self.line("## Trees");
        self.line(
            "Means over parent-child edges, chosen on one half of the held-out documents and measured on the other. *Own* is \
             the tree that the SAE was trained with; *post-hoc* applies the same rule to any SAE afterwards. The others are \
             controls, for the children of the first of these that an SAE has: a random parent of equal firing rate, the \
             parent nearest in decoder cosine, and the tree with its parents permuted. **Compare trees by the flat rows.** \
             In gated rows the gate silences children whose parent is silent: what they show is enforced and says nothing \
             about the data, so they are never bold.",
        );
        for (metric, title, better, format, caption) in TREE {
            let column = |&(tree, title): &(&str, &str)| {
                // Controls are there to be beaten and compete for nothing.
                let better = if measures::COMPETING_TREES.contains(&tree) { better } else { Better::Neither };
                Column::new(Name::new(metric, "all").tree(tree), title, better, format)
            };
            let columns: Vec<_> = TREES.iter().map(column).collect();
            self.line(format!("**{title}.** {caption}"));
            self.tables(&columns, &|mode| mode.view == "flat");
        }
        self.line(
            "**Edges** that stand behind these means: those whose two ends fire often enough to be measured, of all edges \
             of the tree.",
        );
        let counts = |&(tree, title): &(&str, &str)| {
            [("tree_n_measured", title), ("tree_n_edges", "of")].map(|(metric, title)| {
                Column::new(Name::new(metric, "all").tree(tree), title, Better::Neither, Format::Count)
            })
        };
        self.by_threshold(&TREES.iter().flat_map(counts).collect::<Vec<_>>());
    }

    fn wordnet(&mut self) {
        let tree = measures::wordnet();
        if !self.has_any(&tree) {
            return;
        }
        self.line("## Trees against WordNet");
        self.line(
            "*Parent above* is the share of edges whose parent detects a class of glosses that WordNet puts above the one \
             that its child detects, *of edges* whose child detects a class with another above it; a parent that detects \
             nothing is a miss. Edges are those of the SAE's own tree, or of the post-hoc one where it has none. *Same class* \
             and *parent below* are the shares whose parent detects the child's own class, and one below it. *κ of parent* \
             is how well it tells a class above its child's, *less child's* the same without what its child gets: above 0 \
             the parent is the better detector. *Detectors* is the share of all latents that detect a class. As \
             everywhere, compare trees by the flat rows.",
        );
        self.tables(&tree, &|mode| mode.view == "flat");
        self.line("The same share of other trees over the same latents, each over edges of its own:");
        self.by_threshold(&measures::other_wordnet_trees());
    }

    fn planted(&mut self) {
        let (features, tree, absorption) = (measures::features(), measures::planted_tree(), measures::absorption());
        if self.has_any(&features) {
            self.line("## Planted features");
            self.line(
                "F1, precision and recall of latents as detectors of the planted feature nearest to each, dead latents \
                 included; *F1 of features* is the same over features and their matched latents, *matched* the share of \
                 features that have one. MCC is the mean cosine after one-to-one matching of decoder rows, MMCS the mean \
                 best cosine of each feature; *unique* is the share of latents whose best feature no other latent shares.",
            );
            self.by_threshold(&features);
        }
        if self.has_any(&tree) {
            self.line("## The planted tree");
            self.line(
                "Edges found against edges planted, after matching; an edge with an unmatched end is missed. They are those of \
                 the SAE's own tree, or of the post-hoc one where it has none. *Coverage* is the share of found edges with \
                 both ends matched, *ceiling* the best recall that the matching leaves possible, *ancestor* the share of \
                 parents that stand for any ancestor.",
            );
            self.by_threshold(&tree);
            self.line("Edge F1 of the other trees over the same latents:");
            self.by_threshold(&measures::other_planted_trees());
        }
        if self.has_any(&absorption) {
            self.line("## Absorption and independence");
            self.line(
                "Absorption is how much more often a parent's latent stays silent when a child fires than when its feature \
                 fires alone; *misses* is the first of these rates by itself.",
            );
            self.by_threshold(&absorption);
            self.line(
                "Pairs of planted features that fire independently should look so: about 97.5 % of them within the null of \
                 their own circular shifts.",
            );
            self.by_threshold(&measures::independence());
        }
    }

    fn training(&mut self, plots: &[Plot]) {
        self.line("## Training");
        self.line("Batch FVU against tokens, then the parts of each SAE's loss (`train/SAE/curve.parquet` holds the numbers).");
        self.image(plots, "fvu.svg");
        let paths: Vec<_> =
            plots.iter().filter(|plot| plot.path.starts_with("loss-")).map(|p| p.path.clone()).collect();
        for path in paths {
            self.image(plots, &path);
        }
    }

    /// Metrics of `recovery.parquet` that have no table of their own.
    fn others(&mut self) {
        let known = [
            measures::reconstruction(),
            measures::levels(),
            measures::features(),
            measures::planted_tree(),
            measures::other_planted_trees(),
            measures::wordnet(),
            measures::other_wordnet_trees(),
            measures::absorption(),
            measures::independence(),
        ];
        let known: BTreeSet<Name> = known.concat().into_iter().map(|column| column.name).collect();
        let is_other = |figure: &&Figure| figure.source.artifact == "recover/recovery.parquet";
        let mut names: Vec<Name> = Vec::new();
        for name in self.figures.all.iter().filter(is_other).map(Figure::name) {
            if !known.contains(&name) && !names.contains(&name) && !name.is_of_other_tree() {
                names.push(name);
            }
        }
        if names.is_empty() {
            return;
        }
        self.line("## Other measures");
        let column = |name: &Name| {
            let level = if name.level == "all" { String::new() } else { format!(", {}", name.level) };
            let format = if name.is_count() { Format::Count } else { Format::Plain };
            let title = format!("{}{level}", name.metric.replace('_', " "));
            Column::new(name.clone(), &title, Better::Neither, format)
        };
        let columns: Vec<_> = names.iter().map(column).collect();
        for columns in columns.chunks(5) {
            self.by_threshold(columns);
        }
    }

    fn not_measured(&mut self, gaps: &[String]) {
        self.line("## Not measured");
        if gaps.is_empty() {
            self.line("Nothing is missing that this report knows of.");
        } else {
            self.line(gaps.iter().map(|gap| format!("- {gap}")).collect::<Vec<_>>().join("\n"));
        }
    }

    fn origins(&mut self) {
        self.line("## Where the numbers come from");
        self.line(
            "`results.json` holds every figure with its artifact, the column and the filter that finds it there. This page \
             was made from these folders, named by the digest of what they hold:",
        );
        let rows = self.run.made_from.iter().map(|(folder, digest)| {
            let short: String = digest.chars().take(12).collect();
            vec![folder.clone(), format!("`{short}`")]
        });
        let table = Table { header: vec!["folder".into(), "sha256".into()], rows: rows.collect() };
        self.out.push_str(&table.render());
    }

    /// One table a threshold: what is compared within a table was thresholded alike.
    fn by_threshold(&mut self, columns: &[Column]) {
        self.tables(columns, &|_| true);
    }

    /// The same, where only some modes compete for the best value.
    fn tables(&mut self, columns: &[Column], competes: &dyn Fn(&Mode) -> bool) {
        for threshold in self.figures.thresholds() {
            let of_threshold = |mode: &&Mode| mode.threshold == threshold;
            let modes: Vec<Mode> = self.figures.modes.iter().filter(of_threshold).cloned().collect();
            let unfair = |mode: &Mode| self.is_unfair(mode);
            if let Some(mut table) = markdown::compare(self.figures, &modes, columns, &unfair, competes) {
                if let Some(corner) = table.header.first_mut() {
                    *corner = format!("{threshold} threshold");
                }
                self.line(table.render());
            }
        }
    }

    fn has_any(&self, columns: &[Column]) -> bool {
        let modes = &self.figures.modes;
        columns.iter().any(|column| modes.iter().any(|mode| self.figures.get(mode, &column.name).is_some()))
    }

    fn is_unfair(&self, mode: &Mode) -> bool {
        gaps::l0_miss(self.run, self.figures, mode).is_some()
    }

    fn image(&mut self, plots: &[Plot], path: &str) {
        if let Some(plot) = plots.iter().find(|plot| plot.path == path) {
            self.line(format!("![{}]({})", plot.title, plot.path));
        }
    }
}
