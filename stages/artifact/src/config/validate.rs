//! What serde cannot see: ranges, sums, names, and keys that contradict each other. Every refusal names its key.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use super::{
    Arch, AuxK, DecoderNorms, Harvest, JumpRelu, L1Weighting, PAnneal, ParentSet, Pipeline, Probabilities, Products,
    Report, Sae, Select, Source, Synthetic, TextSource,
};

/// With some hundred active latents a row, as many as 32 bits count.
const MAX_RECOUNT_ROWS: u64 = 4_000_000;

impl Pipeline {
    /// Errors: the first value that makes no sense, as `train.saes[1].k = 0 must be at least 1`.
    pub fn validate(&self) -> Result<()> {
        self.report.validate()?;
        if self.only_compares() {
            return Ok(());
        }
        self.source.validate()?;
        self.validate_pretrain()?;
        let harvest = &self.harvest;
        at_least("harvest.context_length", harvest.context_length, 2)?;
        at_least("harvest.batch_contexts", harvest.batch_contexts, 1)?;
        at_least("harvest.rows_per_part", harvest.rows_per_part, 1)?;
        inside("harvest.heldout_fraction", harvest.heldout_fraction, 0.0, 1.0)?;
        if let Some(multiple) = harvest.max_norm_multiple {
            ensure!(
                multiple > 1.0,
                "harvest.max_norm_multiple = {multiple} must be above 1, or half of all rows would go"
            );
        }
        self.validate_harvest()?;
        self.validate_train()?;
        let recover = &self.recover;
        fraction("recover.min_excess", recover.min_excess)?;
        fraction("recover.match_cosine", recover.match_cosine)?;
        zero_or_at_least("recover.n_bootstrap", recover.n_bootstrap, 2)?;
        zero_or_at_least("recover.n_shifts", recover.n_shifts, 2)?;
        let probe = &self.probe;
        ensure!(probe.ks.iter().all(|&k| k >= 1), "probe.ks must all be at least 1");
        at_least("probe.n_examples", probe.n_examples, 20)?;
        at_least("probe.n_classes", probe.n_classes, 2)?;
        at_least("probe.n_bootstrap", probe.n_bootstrap, 2)?;
        if let Some(splice) = &probe.splice {
            at_least("probe.splice.n_contexts", splice.n_contexts, 1)?;
        }
        Ok(())
    }

    /// Whether it has no data and no SAEs of its own, and only reports on those of other runs.
    pub fn only_compares(&self) -> bool {
        !self.report.beside.is_empty() && self.source == Source::default() && self.train.saes.is_empty()
    }

    fn validate_harvest(&self) -> Result<()> {
        let Harvest { also, products, .. } = &self.harvest;
        ensure!(
            *products == Products::F32 || self.source.model.is_some(),
            "harvest.products needs source.model: nothing else has matrix products"
        );
        ensure!(
            also.is_empty() || self.source.model.is_some(),
            "harvest.also needs source.model: nothing else has hooks"
        );
        Ok(())
    }

    fn validate_train(&self) -> Result<()> {
        let train = &self.train;
        at_least("train.batch_size", train.batch_size, 2)?;
        ensure!(
            train.n_tokens >= train.batch_size as u64,
            "train.n_tokens = {} is less than one batch (train.batch_size = {})",
            train.n_tokens,
            train.batch_size
        );
        positive("train.lr", train.lr)?;
        fraction("train.lr_warmup", train.lr_warmup)?;
        fraction("train.lr_decay", train.lr_decay)?;
        inside("train.adam_beta1", train.adam_beta1, 0.0, 1.0)?;
        inside("train.adam_beta2", train.adam_beta2, 0.0, 1.0)?;
        positive("train.max_grad_norm", train.max_grad_norm)?;
        ensure!(train.log_every >= 1, "train.log_every = 0 must be at least 1");
        ensure!(train.resident_mb >= 1, "train.resident_mb = 0 must be at least 1");
        if let Some(together) = train.together {
            at_least("train.together", together, 1)?;
        }
        ensure!(!train.saes.is_empty(), "train.saes is empty: name at least one SAE");
        let mut names = BTreeSet::new();
        for (i, sae) in train.saes.iter().enumerate() {
            let at = format!("train.saes[{}]", train.place(i));
            sae.validate(&at)?;
            sae.validate_steps(&at, train.n_tokens / train.batch_size as u64)?;
            ensure!(names.insert(&sae.name), "{at}.name = {} is taken by an earlier SAE", sae.name);
        }
        Ok(())
    }
}

impl Report {
    fn validate(&self) -> Result<()> {
        ensure!(self.reference.as_deref() != Some(""), "report.reference is empty: name a family of SAEs");
        let names: Vec<_> = self.beside.iter().map(|run| run.file_name()).collect();
        for (i, run) in self.beside.iter().enumerate() {
            let (at, run) = (format!("report.beside[{i}]"), run.display());
            ensure!(!run.to_string().is_empty(), "{at} is empty: name the folder of a run");
            ensure!(names[i].is_some(), "{at} = {run} has no name: write the folder out");
            // Families are told apart by the last part of the path, and nothing else of it belongs in a report.
            let earlier = names[..i].iter().position(|name| *name == names[i]);
            if let Some(earlier) = earlier {
                bail!("{at} = {run} ends as report.beside[{earlier}] does, and runs are told apart by that");
            }
        }
        Ok(())
    }
}

impl Source {
    fn validate(&self) -> Result<()> {
        let n_given = [self.model.is_some(), self.synthetic.is_some(), self.activations.is_some()];
        let n_given = n_given.into_iter().filter(|&given| given).count();
        ensure!(n_given == 1, "source needs exactly one of model, synthetic, activations; found {n_given}");
        if let Some(model) = &self.model {
            ensure!(!model.name.is_empty(), "source.model.name is empty");
            ensure!(!model.texts.is_empty(), "source.model.texts is empty: name at least one text");
            for (i, text) in model.texts.iter().enumerate() {
                let at = format!("source.model.texts[{i}]");
                ensure!(text.n_tokens >= 1, "{at}.n_tokens = 0 must be at least 1");
                let is_file = text.from == TextSource::File;
                ensure!(is_file == text.path.is_some(), "{at}: path goes with from: file, and with nothing else");
                if let Some(first) = model.texts[..i].iter().position(|other| other.is_same_text(text)) {
                    // Its documents would be trained on and held out as well.
                    bail!("{at} is source.model.texts[{first}] once more: name each text once, with a larger n_tokens");
                }
                if let Some(n_bytes) = text.bytes_per_document {
                    ensure!(n_bytes >= 100, "{at}.bytes_per_document = {n_bytes} must be at least 100");
                }
            }
        }
        if let Some(synthetic) = &self.synthetic {
            synthetic.validate()?;
        }
        if let Some(activations) = &self.activations {
            ensure!(!activations.path.as_os_str().is_empty(), "source.activations.path is empty: name a folder");
        }
        Ok(())
    }
}

impl Synthetic {
    fn validate(&self) -> Result<()> {
        let at = |key: &str| format!("source.synthetic.{key}");
        let misplaced = if self.loose {
            vec![("p_max", self.p_max), ("p_min", self.p_min)]
        } else {
            vec![
                ("p_child", self.p_child),
                ("p_root_max", self.p_root_max),
                ("p_root_min", self.p_root_min),
                ("p_alone_max", self.p_alone_max),
                ("p_alone_min", self.p_alone_min),
            ]
        };
        if let Some((key, _)) = misplaced.iter().find(|(_, value)| value.is_some()) {
            bail!("{} has no meaning with loose: {}", at(key), self.loose);
        }
        ensure!(
            self.compensate.is_none() || !self.loose,
            "{} has no meaning with loose: true: p_child is what it says",
            at("compensate")
        );
        let recipe = self.recipe();
        at_least(&at("n_features"), recipe.n_features, 1)?;
        at_least(&at("d_model"), recipe.d_model, 2)?;
        at_least(&at("branching"), recipe.branching, 1)?;
        ensure!(
            recipe.n_in_trees().is_some_and(|n| n <= recipe.n_features),
            "{} = {} is too few for {} trees of branching {} and depth {}",
            at("n_features"),
            recipe.n_features,
            recipe.n_roots,
            recipe.branching,
            recipe.depth
        );
        fraction(&at("exclusive"), recipe.exclusive)?;
        let range = |key: &str, (max, min): (f64, f64)| {
            fraction(&at(&format!("{key}_max")), max)?;
            fraction(&at(&format!("{key}_min")), min)?;
            ensure!(min <= max, "{} = {min} exceeds {key}_max = {max}", at(&format!("{key}_min")));
            Ok(())
        };
        match recipe.probabilities {
            Probabilities::Tight { p, .. } => range("p", p)?,
            Probabilities::Loose { p_child, p_root, p_alone } => {
                fraction(&at("p_child"), p_child)?;
                range("p_root", p_root)?;
                range("p_alone", p_alone)?;
            }
        }
        not_negative(&at("zipf_exponent"), recipe.zipf_exponent)?;
        not_negative(&at("correlation_scale"), recipe.correlation_scale)?;
        positive(&at("magnitude_first"), recipe.magnitude_first)?;
        positive(&at("magnitude_last"), recipe.magnitude_last)?;
        not_negative(&at("magnitude_std_mean"), recipe.magnitude_std_mean)?;
        not_negative(&at("magnitude_std_std"), recipe.magnitude_std_std)?;
        not_negative(&at("bias"), recipe.bias)?;
        not_negative(&at("noise_std"), recipe.noise_std)?;
        ensure!(recipe.n_train != Some(0), "{} = 0 must be at least 1, or unset for rows without end", at("n_train"));
        ensure!(recipe.n_heldout >= 1, "{} = 0 must be at least 1", at("n_heldout"));
        ensure!(
            recipe.n_heldout > recipe.rows_per_doc,
            "{} = {} is one document of {} rows: figures need two at the least",
            at("n_heldout"),
            recipe.n_heldout,
            recipe.rows_per_doc
        );
        ensure!(recipe.rows_per_doc >= 1, "{} = 0 must be at least 1", at("rows_per_doc"));
        Ok(())
    }
}

impl Sae {
    fn validate(&self, at: &str) -> Result<()> {
        let is_legal = |name: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && name.chars().all(legal) && !name.starts_with('.')
        };
        ensure!(
            is_legal(&self.name),
            "{at}.name = `{}` must be letters, digits, `-`, `_` and `.`, since it names a folder",
            self.name
        );
        let family = self.family();
        ensure!(is_legal(family), "{at}.family = `{family}` must be letters, digits, `-`, `_` and `.`");
        // What stands in train/ and recover/ beside the SAEs' folders.
        let tables =
            ["recovery", "edges", "latents", "trees", "density", "stability"].map(|table| format!("{table}.parquet"));
        let is_taken = tables.contains(&self.name)
            || ["checkpoint", "saes.json", "summary.json", "manifest.json"].contains(&self.name.as_str());
        ensure!(!is_taken, "{at}.name = {} is a name that train/ or recover/ needs itself", self.name);
        if let Some(kappa) = self.prior_kappa {
            not_negative(&format!("{at}.prior_kappa"), kappa)?;
        }
        if let Some(import) = &self.import {
            ensure!(!import.as_os_str().is_empty(), "{at}.import is empty: name a folder");
            return Ok(()); // that nothing else is set beside it was seen in the file itself
        }
        ensure!(self.d_sae() >= 1, "{at}.n_fine = 0 leaves no latent");
        at_least(&format!("{at}.k"), self.k, 1)?;
        ensure!(self.k <= self.d_sae(), "{at}.k = {} exceeds n_coarse + n_fine = {}", self.k, self.d_sae());
        let two_level = matches!(self.arch, Arch::Matryoshka | Arch::TreeSae | Arch::Hiersae);
        if self.arch == Arch::TreeSae {
            at_least(&format!("{at}.n_coarse"), self.n_coarse, 1)?;
        }
        if two_level && self.n_coarse == 0 && self.prefixes.is_none() {
            bail!("{at}.n_coarse = 0, but arch {:?} has two levels: set n_coarse, or prefixes", self.arch);
        }
        if !two_level {
            ensure!(self.n_coarse == 0, "{at}.n_coarse = {} has no meaning for a flat SAE", self.n_coarse);
            ensure!(self.tree.is_none(), "{at}.tree belongs to arch hiersae, not {:?}", self.arch);
            ensure!(self.curriculum.is_none(), "{at}.curriculum belongs to a two-level SAE, not {:?}", self.arch);
            ensure!(self.prefixes.is_none(), "{at}.prefixes belong to matryoshka or hiersae, not {:?}", self.arch);
        }
        if !two_level || self.arch == Arch::TreeSae {
            let own = Sae { arch: self.arch, ..Sae::default() }.select();
            ensure!(self.select() == own, "{at}.select = {:?} is not what {:?} means", self.select(), self.arch);
        }
        ensure!(
            self.arch == Arch::Hiersae || self.tree.is_none(),
            "{at}.tree belongs to arch hiersae, not {:?}",
            self.arch
        );
        if let Some(k_coarse) = self.k_coarse() {
            let has_coarse_phase = self.curriculum().is_some_and(|curriculum| curriculum.coarse_until > 0.0);
            ensure!(
                k_coarse >= 1 || !has_coarse_phase,
                "{at}.k_coarse = 0 leaves nothing to train while the curriculum is coarse"
            );
            ensure!(k_coarse <= self.n_coarse, "{at}.k_coarse = {k_coarse} exceeds n_coarse = {}", self.n_coarse);
            ensure!(k_coarse <= self.k, "{at}.k_coarse = {k_coarse} exceeds k = {}", self.k);
            ensure!(
                self.k - k_coarse <= self.n_fine,
                "{at}.k − k_coarse = {} exceeds n_fine = {}",
                self.k - k_coarse,
                self.n_fine
            );
            ensure!(
                self.select() == Select::Batchtopk || self.arch == Arch::TreeSae,
                "{at}.k_coarse goes with select: batchtopk; for {:?} leave it out",
                self.select()
            );
        }
        if let Some(l1) = self.l1 {
            not_negative(&format!("{at}.l1"), l1)?;
            ensure!(self.has_penalty(), "{at}.l1 has no meaning unless select is relu or jumprelu");
        }
        if let Some(lr) = self.lr {
            positive(&format!("{at}.lr"), lr)?;
        }
        if let Some(beta1) = self.adam_beta1 {
            ensure!((0.0..1.0).contains(&beta1), "{at}.adam_beta1 = {beta1} must lie between 0 and 1, 1 excluded");
        }
        not_negative(&format!("{at}.aux_k.weight"), self.aux_weight())?;
        self.validate_penalty(at)?;
        self.validate_k_anneal(at)?;
        self.validate_hierarchy(at)?;
        self.validate_tree_sae(at)
    }

    fn validate_penalty(&self, at: &str) -> Result<()> {
        fraction(&format!("{at}.sparsity_warmup"), self.sparsity_warmup)?;
        let is_weighted = self.l1_weighting == L1Weighting::DecoderNorm;
        ensure!(!is_weighted || self.arch == Arch::Vanilla, "{at}.l1_weighting belongs to arch vanilla");
        let is_unit = self.decoder_norms == Some(DecoderNorms::Unit);
        ensure!(
            !(is_weighted && is_unit),
            "{at}.decoder_norms = unit makes l1_weighting: decoder-norm the same as plain; leave one out"
        );
        ensure!(
            self.apply_b_dec_to_input || self.arch != Arch::MatchingPursuit,
            "{at}.apply_b_dec_to_input = false makes no sense for matching-pursuit, whose encoder is its decoder"
        );
        let may_be_free = self.select() == Select::Jumprelu || is_weighted;
        ensure!(
            may_be_free || self.decoder_norms != Some(DecoderNorms::Free),
            "{at}.decoder_norms = free goes with jumprelu, or with l1_weighting: decoder-norm; elsewhere lengths would \
             decide which latents are active, or escape the penalty"
        );
        let has_aux = !self.has_penalty() && self.arch != Arch::MatchingPursuit;
        let only_age = AuxK { dead_after: self.aux_k.dead_after, ..AuxK::default() };
        ensure!(
            has_aux || self.aux_k == only_age,
            "{at}.aux_k has no meaning for {:?} with select {:?}, apart from dead_after",
            self.arch,
            self.select()
        );
        ensure!(
            self.sparsity_warmup == 0.0 || self.has_penalty(),
            "{at}.sparsity_warmup has no meaning without a penalty (select: relu or jumprelu)"
        );
        ensure!(
            self.prior_kappa.is_none() || self.arch != Arch::MatchingPursuit,
            "{at}.prior_kappa has no meaning for matching-pursuit, which has no thresholds"
        );
        let jumprelu = &self.jumprelu;
        let is_jumprelu = self.select() == Select::Jumprelu;
        ensure!(is_jumprelu || *jumprelu == JumpRelu::default(), "{at}.jumprelu belongs to select jumprelu");
        positive(&format!("{at}.jumprelu.threshold"), jumprelu.threshold)?;
        positive(&format!("{at}.jumprelu.bandwidth"), jumprelu.bandwidth)?;
        positive(&format!("{at}.jumprelu.tanh_scale"), jumprelu.tanh_scale)?;
        not_negative(&format!("{at}.jumprelu.pre_act_loss"), jumprelu.pre_act_loss)?;
        let panneal = &self.panneal;
        ensure!(
            self.arch == Arch::Panneal || *panneal == PAnneal::default(),
            "{at}.panneal belongs to arch panneal, not {:?}",
            self.arch
        );
        ensure!(
            panneal.p_end > 0.0 && panneal.p_end <= 1.0,
            "{at}.panneal.p_end = {} must be above 0 and at most 1",
            panneal.p_end
        );
        fraction(&format!("{at}.panneal.from"), panneal.from)?;
        fraction(&format!("{at}.panneal.to"), panneal.to)?;
        ensure!(panneal.from < panneal.to, "{at}.panneal.from must lie below to");
        at_least(&format!("{at}.panneal.n_values"), panneal.n_values, 2)?;
        if let Some(resample) = &self.resample {
            let fits = matches!(self.arch, Arch::Vanilla | Arch::Panneal);
            ensure!(fits, "{at}.resample belongs to vanilla and panneal, not {:?}", self.arch);
            ensure!(resample.every >= 2, "{at}.resample.every = {} must be at least 2", resample.every);
            fraction(&format!("{at}.resample.until"), resample.until)?;
        }
        Ok(())
    }

    fn validate_k_anneal(&self, at: &str) -> Result<()> {
        let Some(anneal) = &self.k_anneal else { return Ok(()) };
        ensure!(!self.has_penalty(), "{at}.k_anneal goes with select: topk or batchtopk, not {:?}", self.select());
        let has_steps = matches!(self.arch, Arch::MatchingPursuit | Arch::TreeSae);
        ensure!(!has_steps, "{at}.k_anneal is not there for {:?}, whose budget is the same throughout", self.arch);
        let (key, times) = (format!("{at}.k_anneal.times"), anneal.times);
        ensure!(times >= 1.0 && times.is_finite(), "{key} = {times} must be at least 1: the budget falls to k");
        let of_level = |name: &str, k: usize, n: usize| {
            ensure!(
                k as f64 * times <= n as f64,
                "{key} = {times} begins with {name} = {k} times that, and there are {n}"
            );
            Ok(())
        };
        of_level("k", self.k, self.d_sae())?;
        if let Some(k_coarse) = self.k_coarse() {
            of_level("k_coarse", k_coarse, self.n_coarse)?;
            of_level("k − k_coarse", self.k - k_coarse, self.n_fine)?;
        }
        let until = anneal.until;
        ensure!(until > 0.0 && until <= 1.0, "{at}.k_anneal.until = {until} must be above 0 and at most 1");
        Ok(())
    }

    /// What depends on how many steps there are.
    fn validate_steps(&self, at: &str, n_steps: u64) -> Result<()> {
        let sorting = self.prefixes.as_ref().and_then(|prefixes| Some((prefixes.sort_at?, prefixes)));
        let Some((sort_at, prefixes)) = sorting else { return Ok(()) };
        let sorted_before = prefixes.sorted_before(n_steps).unwrap_or_default();
        let key = format!("{at}.prefixes.sort_at = {sort_at}");
        ensure!(sorted_before < n_steps, "{key} leaves none of {n_steps} steps to train in that order");
        if let Some(curriculum) = self.curriculum() {
            let full_from = (curriculum.fine_full_at * n_steps as f64).ceil() as u64;
            ensure!(
                full_from < sorted_before,
                "{key} leaves no step, of {n_steps}, after curriculum.fine_full_at = {} to count firings in: set curriculum: \
                 {{coarse_until: 0, fine_full_at: 0}}, or sort later",
                curriculum.fine_full_at
            );
        }
        // Where all latents may be parents, the tree is kept.
        if let Some(tree) = self.tree().filter(|tree| tree.parents == ParentSet::Coarse) {
            ensure!(
                tree.gate_from >= sort_at || tree.gate == 0.0,
                "{key} makes other latents parents, with tree.parents: coarse: set tree.gate_from, which is {}, to no less",
                tree.gate_from
            );
            ensure!(
                ((sorted_before + tree.update_every) as f64) < tree.freeze_from * n_steps as f64,
                "{key} leaves too few steps, of {n_steps}, to choose parents anew before tree.freeze_from = {}: they are \
                 chosen every {}",
                tree.freeze_from,
                tree.update_every
            );
        }
        Ok(())
    }

    fn validate_hierarchy(&self, at: &str) -> Result<()> {
        let has_coarse_parents = self.tree().is_some_and(|tree| tree.parents == ParentSet::Coarse);
        ensure!(self.n_coarse >= 1 || !has_coarse_parents, "{at}.tree.parents = coarse needs n_coarse of at least 1");
        let has_coarse_phase = self.curriculum().is_some_and(|curriculum| curriculum.fine_full_at > 0.0);
        ensure!(
            self.n_coarse >= 1 || !has_coarse_phase,
            "{at}.n_coarse = 0 leaves nothing to train while the curriculum is coarse; set n_coarse, or \
             curriculum: {{coarse_until: 0, fine_full_at: 0}}"
        );
        if let Some(prefixes) = &self.prefixes {
            for (i, &m) in prefixes.fixed.iter().enumerate() {
                ensure!(
                    m >= 1 && m < self.d_sae(),
                    "{at}.prefixes.fixed[{i}] = {m} must lie between 1 and d_sae = {}",
                    self.d_sae()
                );
            }
            at_least(&format!("{at}.prefixes.random_min"), prefixes.random_min, 1)?;
            not_negative(&format!("{at}.prefixes.beta"), prefixes.beta)?;
            positive(&format!("{at}.prefixes.beta_full"), prefixes.beta_full)?;
            if let Some(beta) = prefixes.beta_end {
                positive(&format!("{at}.prefixes.beta_end"), beta)?;
            }
            if let Some(sort_at) = prefixes.sort_at {
                inside(&format!("{at}.prefixes.sort_at"), sort_at, 0.0, 1.0)?;
            }
            fraction(&format!("{at}.prefixes.reach"), prefixes.reach)?;
            fraction(&format!("{at}.prefixes.anneal_from"), prefixes.anneal_from)?;
            fraction(&format!("{at}.prefixes.anneal_to"), prefixes.anneal_to)?;
            ensure!(prefixes.anneal_from <= prefixes.anneal_to, "{at}.prefixes.anneal_from exceeds anneal_to");
        }
        if let Some(tree) = &self.tree {
            let key = |name: &str| format!("{at}.tree.{name}");
            not_negative(&key("gate"), tree.gate)?;
            fraction(&key("gate_from"), tree.gate_from)?;
            fraction(&key("gate_to"), tree.gate_to)?;
            ensure!(tree.gate_from <= tree.gate_to, "{at}.tree.gate_from exceeds gate_to");
            fraction(&key("freeze_from"), tree.freeze_from)?;
            inside(&key("decay"), tree.decay, 0.0, 1.0)?;
            fraction(&key("min_excess"), tree.min_excess)?;
            not_negative(&key("min_count"), tree.min_count)?;
            at_least(&key("firings_per_step"), tree.firings_per_step, 1)?;
            // All that fires on them is kept until it is counted.
            ensure!(
                tree.recount_rows <= MAX_RECOUNT_ROWS,
                "{} = {} exceeds {MAX_RECOUNT_ROWS}",
                key("recount_rows"),
                tree.recount_rows
            );
            ensure!(tree.update_every >= 1, "{at}.tree.update_every = 0 must be at least 1");
            for (name, w) in [("w_mi", tree.w_mi), ("w_coverage", tree.w_coverage), ("w_geometry", tree.w_geometry)] {
                not_negative(&key(name), w)?;
            }
        }
        if let Some(curriculum) = &self.curriculum {
            let key = |name: &str| format!("{at}.curriculum.{name}");
            fraction(&key("coarse_until"), curriculum.coarse_until)?;
            fraction(&key("fine_full_at"), curriculum.fine_full_at)?;
            ensure!(
                curriculum.coarse_until <= curriculum.fine_full_at,
                "{at}.curriculum.coarse_until exceeds fine_full_at"
            );
            not_negative(&key("lr_coarse"), curriculum.lr_coarse)?;
            not_negative(&key("lr_fine"), curriculum.lr_fine)?;
        }
        Ok(())
    }
}

pub(super) fn at_least(key: &str, value: usize, least: usize) -> Result<()> {
    ensure!(value >= least, "{key} = {value} must be at least {least}");
    Ok(())
}

/// A number of which 0 means none at all.
fn zero_or_at_least(key: &str, value: usize, least: usize) -> Result<()> {
    ensure!(value == 0 || value >= least, "{key} = {value} must be 0 or at least {least}");
    Ok(())
}

// The comparisons below are written so that NaN fails them.

pub(super) fn positive(key: &str, value: f64) -> Result<()> {
    ensure!(value > 0.0 && value.is_finite(), "{key} = {value} must be a positive number");
    Ok(())
}

pub(super) fn not_negative(key: &str, value: f64) -> Result<()> {
    ensure!(value >= 0.0 && value.is_finite(), "{key} = {value} must be zero or a positive number");
    Ok(())
}

/// 0 and 1 included.
pub(super) fn fraction(key: &str, value: f64) -> Result<()> {
    ensure!((0.0..=1.0).contains(&value), "{key} = {value} must lie between 0 and 1");
    Ok(())
}

/// Both ends excluded.
pub(super) fn inside(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure!(value > low && value < high, "{key} = {value} must lie between {low} and {high}, ends excluded");
    Ok(())
}
