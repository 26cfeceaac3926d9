//! `source.synthetic`: planted features in a forest, by the published SynthSAEBench recipe (arXiv 2602.14687, its second
//! model version; science.md §8), at three sizes, and every number of it as a key.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Planted ground truth. A key that is left out takes the value of the preset; [`Synthetic::recipe`] has them all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Synthetic {
    pub preset: Preset,
    /// Parents fire alone about a third of the time, and features outside the tree are as frequent as those in it. In the
    /// published recipe hardly a parent ever does, so that parent and children are as good as one. It makes trees of
    /// depth 2, twice as many, draws a child with `p_child` where its parent is on, without compensation, and shuffles
    /// mean magnitudes.
    pub loose: bool,
    /// Features in all: the tree's, and as many outside it as are left.
    pub n_features: Option<usize>,
    pub d_model: Option<usize>,
    /// Trees of the forest.
    pub n_roots: Option<usize>,
    /// Children of every feature above the deepest level.
    pub branching: Option<usize>,
    /// Levels below the roots; 0 plants no tree.
    pub depth: Option<usize>,
    /// Share of the parents whose children exclude each other: of those that are drawn, a random one stays.
    pub exclusive: Option<f64>,
    /// Probability of the most and of the least frequent feature; between them a Zipf law, moved and stretched to these
    /// ends. Roots come first, then level by level, and features outside the tree last. Not with `loose`.
    pub p_max: Option<f64>,
    pub p_min: Option<f64>,
    /// Of every Zipf law here: the i-th probability falls as i^−exponent.
    pub zipf_exponent: Option<f64>,
    /// Whether children are drawn so much more often as their parents and their siblings silence them, up to always. Not
    /// with `loose`.
    pub compensate: Option<bool>,
    /// With `loose`: probability that a child is drawn where its parent is on, before siblings exclude each other.
    pub p_child: Option<f64>,
    /// With `loose`: the range of the roots' probabilities, by a Zipf law of their own.
    pub p_root_max: Option<f64>,
    pub p_root_min: Option<f64>,
    /// With `loose`: the range of the probabilities of features outside the tree, by a Zipf law of their own.
    pub p_alone_max: Option<f64>,
    pub p_alone_min: Option<f64>,
    /// A child's magnitude is multiplied by its parent's magnitude over the mean of that.
    pub scale_by_parent: Option<bool>,
    /// Features fire together as the signs of Gaussians do, whose correlations are of this rank; 0 for independent ones.
    pub correlation_rank: Option<usize>,
    /// Standard deviation of the entries of that factor, [n_features, rank].
    pub correlation_scale: Option<f64>,
    /// Mean magnitude of the first and of the last feature; in between, a straight line.
    pub magnitude_first: Option<f64>,
    pub magnitude_last: Option<f64>,
    /// Whether mean magnitudes are dealt to the features at random.
    pub magnitude_shuffled: Option<bool>,
    /// A feature's standard deviation is |a normal number| of this mean and this standard deviation; magnitudes are
    /// normal, cut at zero.
    pub magnitude_std_mean: Option<f64>,
    pub magnitude_std_std: Option<f64>,
    /// Steps that move the features' directions apart.
    pub orthogonal_steps: Option<usize>,
    /// Norm of what is added to every row.
    pub bias: Option<f64>,
    /// Standard deviation of the isotropic Gaussian noise, per coordinate.
    pub noise_std: Option<f64>,
    /// Training rows to write. Unset, none are: training draws rows as it goes, never the same twice.
    pub n_train: Option<u64>,
    pub n_heldout: Option<u64>,
    /// Rows are grouped into documents of this length, so that bootstrap and shifts work as on text.
    pub rows_per_doc: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// As published: 16,384 features in 768 dimensions, 128 trees; meant for SAEs of 4096 latents.
    Full,
    /// 8192 features in 384 dimensions, 64 trees; SAEs of 2048 latents.
    Half,
    /// 1024 features in 160 dimensions, 8 trees; SAEs of 256 latents.
    #[default]
    Small,
}

/// [`Synthetic`] with nothing left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    pub n_features: usize,
    pub d_model: usize,
    pub n_roots: usize,
    pub branching: usize,
    pub depth: usize,
    pub exclusive: f64,
    pub probabilities: Probabilities,
    pub zipf_exponent: f64,
    pub scale_by_parent: bool,
    pub correlation_rank: usize,
    pub correlation_scale: f64,
    pub magnitude_first: f64,
    pub magnitude_last: f64,
    pub magnitude_shuffled: bool,
    pub magnitude_std_mean: f64,
    pub magnitude_std_std: f64,
    pub orthogonal_steps: usize,
    pub bias: f64,
    pub noise_std: f64,
    pub n_train: Option<u64>,
    pub n_heldout: u64,
    pub rows_per_doc: u64,
}

/// How often features are drawn. Ranges are (highest, lowest).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probabilities {
    Tight { p: (f64, f64), compensate: bool },
    Loose { p_child: f64, p_root: (f64, f64), p_alone: (f64, f64) },
}

impl Synthetic {
    pub fn recipe(&self) -> Recipe {
        let (n_features, d_model, n_roots) = match self.preset {
            Preset::Full => (16_384, 768, 128),
            Preset::Half => (8192, 384, 64),
            Preset::Small => (1024, 160, 8),
        };
        let range =
            |max: Option<f64>, min: Option<f64>, preset: (f64, f64)| (max.unwrap_or(preset.0), min.unwrap_or(preset.1));
        let probabilities = if self.loose {
            Probabilities::Loose {
                p_child: self.p_child.unwrap_or(0.22),
                p_root: range(self.p_root_max, self.p_root_min, (0.4, 0.1)),
                p_alone: range(self.p_alone_max, self.p_alone_min, (0.1, 5e-4)),
            }
        } else {
            Probabilities::Tight {
                p: range(self.p_max, self.p_min, (0.4, 5e-4)),
                compensate: self.compensate.unwrap_or(true),
            }
        };
        Recipe {
            n_features: self.n_features.unwrap_or(n_features),
            d_model: self.d_model.unwrap_or(d_model),
            n_roots: self.n_roots.unwrap_or(if self.loose { 2 * n_roots } else { n_roots }),
            branching: self.branching.unwrap_or(4),
            depth: self.depth.unwrap_or(if self.loose { 2 } else { 3 }),
            exclusive: self.exclusive.unwrap_or(1.0),
            probabilities,
            zipf_exponent: self.zipf_exponent.unwrap_or(0.5),
            scale_by_parent: self.scale_by_parent.unwrap_or(true),
            correlation_rank: self.correlation_rank.unwrap_or(25),
            correlation_scale: self.correlation_scale.unwrap_or(0.1),
            magnitude_first: self.magnitude_first.unwrap_or(5.0),
            magnitude_last: self.magnitude_last.unwrap_or(4.0),
            magnitude_shuffled: self.magnitude_shuffled.unwrap_or(self.loose),
            magnitude_std_mean: self.magnitude_std_mean.unwrap_or(0.5),
            magnitude_std_std: self.magnitude_std_std.unwrap_or(0.5),
            orthogonal_steps: self.orthogonal_steps.unwrap_or(100),
            bias: self.bias.unwrap_or(0.5),
            noise_std: self.noise_std.unwrap_or(0.0),
            n_train: self.n_train,
            n_heldout: self.n_heldout.unwrap_or(100_000),
            rows_per_doc: self.rows_per_doc.unwrap_or(64),
        }
    }
}

impl Recipe {
    /// Features of the forest; None where their number overflows.
    pub fn n_in_trees(&self) -> Option<usize> {
        if self.depth == 0 {
            return Some(0);
        }
        let mut level = self.n_roots;
        let mut n = level;
        for _ in 0..self.depth {
            level = level.checked_mul(self.branching)?;
            n = n.checked_add(level)?;
        }
        Some(n)
    }
}
