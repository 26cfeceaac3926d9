//! `train.saes[].tree_sae`: what only a Tree SAE has.

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::validate::{at_least, fraction, not_negative, positive};
use super::{Arch, DecoderNorms, Sae};

/// Cao et al. 2026, "Tree SAE: Learning Hierarchical Feature Structures in Sparse Autoencoders". The authors count in steps
/// of 5,120 tokens, of which a training has 97,656; where they do, shares of training stand here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TreeSae {
    /// Children are dealt out anew for the first time after this share of training. Published: 3,000 steps, .031.
    pub interval: f64,
    /// Each further interval is so many times as long …
    pub growth: f64,
    /// … and at most this share of training. Published: 10,000 steps, .102.
    pub max_interval: f64,
    /// From this share of training on parents are final; all dead children go to the root then, which is always active.
    /// Published: 50,000 steps, .512.
    pub root_reset: f64,
    /// A coarse latent gets children only if it has fired within so many tokens.
    pub eligible_within: u64,
    /// A latent counts as active above this activation, for its children and for its life. In units of normalised
    /// activations.
    pub active_above: f64,
}

impl Default for TreeSae {
    fn default() -> Self {
        Self {
            interval: 0.03,
            growth: 2.0,
            max_interval: 0.1,
            root_reset: 0.5,
            eligible_within: 50_000,
            active_above: 1e-3,
        }
    }
}

impl Sae {
    /// None for every other architecture.
    pub fn tree_sae(&self) -> Option<TreeSae> {
        (self.arch == Arch::TreeSae).then(|| self.tree_sae.clone().unwrap_or_default())
    }

    /// Whether parents are part of it, and with them the gated view.
    pub fn has_own_tree(&self) -> bool {
        self.tree().is_some() || self.tree_sae().is_some()
    }

    /// The keys that a Tree SAE shares with others were seen before.
    pub(super) fn validate_tree_sae(&self, at: &str) -> Result<()> {
        ensure!(
            self.arch == Arch::TreeSae || self.tree_sae.is_none(),
            "{at}.tree_sae belongs to arch tree-sae, not {:?}",
            self.arch
        );
        let Some(tree) = self.tree_sae() else { return Ok(()) };
        at_least(&format!("{at}.n_fine"), self.n_fine, 1)?;
        ensure!(self.k >= 2, "{at}.k = {} leaves nothing for one of the levels of a Tree SAE", self.k);
        let k_coarse = self.k_coarse().unwrap_or_default();
        ensure!(
            (1..self.k).contains(&k_coarse),
            "{at}.k_coarse = {k_coarse} must lie between 1 and k − 1 = {}: both levels of a Tree SAE have a budget",
            self.k - 1
        );
        ensure!(self.prefixes.is_none(), "{at}.prefixes are given for a Tree SAE: the coarse level, and all latents");
        ensure!(self.curriculum.is_none(), "{at}.curriculum belongs to matryoshka and hiersae, not {:?}", self.arch);
        ensure!(
            self.decoder_norms != Some(DecoderNorms::Free),
            "{at}.decoder_norms = free has no meaning for a Tree SAE, whose rows are of length 1 but for a step's change"
        );
        ensure!(
            !self.aux_k.normalise,
            "{at}.aux_k.normalise has no meaning for a Tree SAE, which always divides by the residual's variance"
        );
        let key = |name: &str| format!("{at}.tree_sae.{name}");
        for (name, share) in [("interval", tree.interval), ("max_interval", tree.max_interval)] {
            positive(&key(name), share)?;
            fraction(&key(name), share)?;
        }
        ensure!(tree.interval <= tree.max_interval, "{at}.tree_sae.interval exceeds max_interval");
        ensure!(
            tree.growth >= 1.0 && tree.growth.is_finite(),
            "{at}.tree_sae.growth = {} must be at least 1",
            tree.growth
        );
        fraction(&key("root_reset"), tree.root_reset)?;
        not_negative(&key("active_above"), tree.active_above)?;
        ensure!(tree.eligible_within >= 1, "{at}.tree_sae.eligible_within = 0 must be at least 1");
        Ok(())
    }
}
