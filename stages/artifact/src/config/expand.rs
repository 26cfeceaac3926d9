//! `train.seeds` and `train.ks`: one SAE in the file, several to train. What comes after sees plain SAEs.

use std::fmt::Display;

use anyhow::{Result, bail, ensure};

use super::{Sae, Train};

impl Train {
    /// Replaces each SAE by one for each k of `ks`, unless it has a `k` of its own, and each seed of `seeds`, unless it has a
    /// `seed` of its own, k by k. Its name is then that in the file followed by `-kK` and `-sSEED`, each where it was
    /// multiplied by it; its family is the name in the file. Finished SAEs stay as they are. Both lists are empty afterwards.
    ///
    /// `says_k`: for each SAE, whether the file gives its `k`.
    ///
    /// Errors: a value is listed twice; a k is 0; a key fixes the budget of an SAE whose k is to vary.
    pub(super) fn expand(&mut self, says_k: &[bool]) -> Result<()> {
        refuse_repeated("train.seeds", &self.seeds)?;
        refuse_repeated("train.ks", &self.ks)?;
        let zero = self.ks.iter().position(|&k| k == 0);
        ensure!(zero.is_none(), "train.ks[{}] = 0 must be at least 1", zero.unwrap_or_default());
        let (seeds, ks) = (std::mem::take(&mut self.seeds), std::mem::take(&mut self.ks));
        self.places.clear();
        for (place, sae) in std::mem::take(&mut self.saes).into_iter().enumerate() {
            let is_finished = sae.import.is_some();
            let takes_ks = !ks.is_empty() && !is_finished && !says_k.get(place).copied().unwrap_or_default();
            let takes_seeds = !seeds.is_empty() && !is_finished && sae.seed.is_none();
            if takes_ks {
                refuse_fixed_budget(&sae, &format!("train.saes[{place}]"))?;
            }
            let of_ks = if takes_ks { ks.iter().map(|&k| with_k(&sae, k)).collect() } else { vec![sae] };
            for sae in of_ks {
                let of_seeds =
                    if takes_seeds { seeds.iter().map(|&seed| with_seed(&sae, seed)).collect() } else { vec![sae] };
                self.places.extend(of_seeds.iter().map(|_| place));
                self.saes.extend(of_seeds);
            }
        }
        Ok(())
    }

    /// Where the SAE of this number stands in the file.
    pub fn place(&self, sae: usize) -> usize {
        self.places.get(sae).copied().unwrap_or(sae)
    }
}

impl Sae {
    /// What it is called in comparisons over seeds and budgets.
    pub fn family(&self) -> &str {
        self.family.as_deref().unwrap_or(&self.name)
    }
}

fn with_k(sae: &Sae, k: usize) -> Sae {
    Sae { name: format!("{}-k{k}", sae.name), family: Some(sae.family().into()), k, ..sae.clone() }
}

fn with_seed(sae: &Sae, seed: u64) -> Sae {
    Sae { name: format!("{}-s{seed}", sae.name), family: Some(sae.family().into()), seed: Some(seed), ..sae.clone() }
}

/// What does not follow a varying k. The share of a Tree SAE's levels does, where `k_coarse` is left out; the prior's
/// strength does not depend on k.
fn refuse_fixed_budget(sae: &Sae, at: &str) -> Result<()> {
    if let Some(k_coarse) = sae.k_coarse {
        bail!("{at}.k_coarse = {k_coarse} goes with a k of its own, since train.ks would leave it as it is");
    }
    if let Some(l1) = sae.l1 {
        bail!("{at}.l1 = {l1} goes with a k of its own, since it decides how many latents are active whatever k is");
    }
    Ok(())
}

fn refuse_repeated<T: PartialEq + Display>(key: &str, values: &[T]) -> Result<()> {
    for (i, value) in values.iter().enumerate() {
        ensure!(!values[..i].contains(value), "{key}[{i}] = {value} is there already");
    }
    Ok(())
}
