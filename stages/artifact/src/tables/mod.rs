//! Every Parquet table of a run, in one place: names and columns are an interface, which users read with polars, pandas
//! and duckdb.
//!
//! A table is a struct whose fields are its columns; `rows!` derives schema, writer and reader. Activations have their own
//! file, since they are matrices and large.

pub mod activations;
mod cell;
mod foreign;
mod row;

pub use foreign::{ForeignRows, read_foreign_activations, read_foreign_doc_ids, read_texts};
pub use row::{Row, TableWriter, read_rows, write_rows};

use row::rows;

rows! {
    /// `harvest/contexts.parquet`: one row a context, enough to show any activation row in its context. A document that
    /// is longer than a context is cut into several, each starting anew with the separator.
    ///
    /// The rows of a split are the tokens of its contexts, one after another, in the order of this table: those of a
    /// context start at row `first_row` of the split and end where the next one's start. A row at `pos` stands for token
    /// `pos − 1`; a token that was left out for its norm (`harvest.max_norm_multiple`) has no row.
    pub struct Context {
        doc_id: u32,
        /// `train` or `heldout`.
        split: String,
        /// The row of its first token, counted over all parts of the split.
        first_row: u64,
        /// Where the text comes from: `wordnet`, `state-of-the-union`, `texts[0]`.
        source: String,
        /// The document's name within its source: a synset, a speech, a file.
        name: String,
        /// The part of the document that this context covers.
        text: String,
        /// One token after another, the separator in front left out.
        token_ids: Vec<u32>,
        /// Byte offset in `text` where each token starts; it ends where the next one starts.
        token_starts: Vec<u32>,
    }
}

rows! {
    /// `harvest/truth.parquet`: the planted features, for synthetic sources. What is the same for all of them is in
    /// `truth.json`. Together they are all that it takes to draw rows.
    pub struct TrueFeature {
        feature: u32,
        parent: Option<u32>,
        /// Share of rows in which it fires: of the training rows, or of a sample where training draws its own.
        firing_rate: f64,
        /// Mean magnitude over those of the same rows in which it fires.
        mean_magnitude: f64,
        /// Probability with which it is drawn; of a feature with a parent, given that the parent is on, and before
        /// siblings exclude each other.
        p_draw: f32,
        /// Of its magnitude as drawn: a normal number of this mean and standard deviation, cut at zero.
        magnitude_mean: f32,
        magnitude_std: f32,
        /// Whether at most one of its children fires in a row.
        children_exclude: bool,
        /// Whether its children's magnitudes are multiplied by its own over `magnitude_mean`.
        children_scale: bool,
        /// Its row of the factor whose product with itself is the correlation of the Gaussians behind firing, [rank].
        factor: Vec<f32>,
        /// Unit vector, [d_model].
        direction: Vec<f32>,
    }
}

rows! {
    /// `harvest/firing.parquet`: which planted features fire in a held-out row, in the order of the held-out rows.
    pub struct TrueFiring {
        doc_id: u32,
        pos: u16,
        features: Vec<u32>,
        magnitudes: Vec<f32>,
    }
}

rows! {
    /// `train/SAE/tree.parquet`: a row a latent.
    pub struct TreeNode {
        latent: u32,
        /// `coarse`, `fine` or `flat`.
        level: String,
        parent: Option<u32>,
        /// Mutual information of firing with the parent, bits.
        weight: Option<f64>,
        /// The second-best parent, and by how many bits it loses. Where the parent is a control's (`tree.rule`), the best
        /// one, which loses by less than nothing.
        runner_up: Option<u32>,
        margin: Option<f64>,
    }
}

rows! {
    /// `pretrain/curve.parquet`: a row a logged step. Losses are means per token, in nats.
    pub struct PretrainRow {
        /// Steps done.
        step: u64,
        /// Tokens read so far.
        tokens: u64,
        /// Mean over the steps since the row before, with what dropout leaves.
        train_loss: f64,
        /// Where it was measured.
        validation_loss: Option<f64>,
        lr: f64,
        /// Of the step's gradient, before it was cut.
        grad_norm: f64,
    }
}

rows! {
    /// `train/SAE/curve.parquet`: a row a logged step. Losses are means per token, in normalised units.
    pub struct CurveRow {
        step: u64,
        tokens: u64,
        lr_coarse: f64,
        lr_fine: f64,
        loss: f64,
        /// ‖x − x̂‖²; of a Tree SAE over the batch's variance, as all of its losses.
        mse: f64,
        /// Σ over inner prefixes, weighted.
        mse_prefixes: f64,
        l1: f64,
        aux: f64,
        mi: f64,
        coverage: f64,
        geometry: f64,
        /// Of the batch.
        fvu: f64,
        l0_coarse: f64,
        l0_fine: f64,
        /// Share of latents.
        dead: f64,
        grad_norm: f64,
        /// Of the L1 penalty.
        l1_coefficient: f64,
        /// The soft gate's present strength, in pre-activation units.
        gate: f64,
        n_edges: u64,
    }
}

rows! {
    /// `recover/recovery.parquet` and what the report compares.
    pub struct Metric {
        sae: String,
        seed: u64,
        /// `flat` or `gated`: whether the tree's gate takes part.
        view: String,
        /// `native` or `prior`: how active latents are chosen.
        threshold: String,
        metric: String,
        /// `all`, `coarse` or `fine`.
        level: String,
        value: f64,
        ci_low: Option<f64>,
        ci_high: Option<f64>,
    }
}

rows! {
    /// `recover/edges.parquet`: a row per parent-child edge (science.md §6). Counts are over held-out tokens.
    pub struct Edge {
        sae: String,
        seed: u64,
        view: String,
        threshold: String,
        /// `own`, `posthoc`, `rate-matched`, `cosine` or `permuted`.
        tree: String,
        parent: u32,
        child: u32,
        n11: u64,
        n_parent: u64,
        n_child: u64,
        n: u64,
        /// Plug-in minus Miller–Madow.
        mi_bits: f64,
        /// Null without resamples (`recover.n_bootstrap: 0`).
        mi_ci_low: Option<f64>,
        mi_ci_high: Option<f64>,
        mi_over_h_child: f64,
        mi_over_nested: f64,
        p_parent_given_child: f64,
        p_child_given_parent: f64,
        log_odds: f64,
        decoder_cosine: f64,
        /// Mean over circular shifts within documents, and its 97.5 % quantile; null without shifts.
        mi_null_bits: Option<f64>,
        mi_null_high_bits: Option<f64>,
        p_value: f64,
        q_value: f64,
        /// Gaussian-copula mutual information of magnitudes over co-active tokens; null below 200 of them.
        mi_magnitude_bits: Option<f64>,
    }
}

rows! {
    /// `recover/trees.parquet`: a row a latent of every tree whose edges were measured, with the columns of [`TreeNode`].
    pub struct MeasuredTreeNode {
        sae: String,
        seed: u64,
        view: String,
        threshold: String,
        /// As in [`Edge`].
        tree: String,
        latent: u32,
        level: String,
        parent: Option<u32>,
        /// Mutual information of firing with the parent on the documents that choose edges, bits.
        weight: Option<f64>,
        runner_up: Option<u32>,
        margin: Option<f64>,
    }
}

rows! {
    /// `recover/density.parquet`: how many latents fire how often over the held-out split. Dead latents are in no bin.
    pub struct DensityBin {
        sae: String,
        seed: u64,
        view: String,
        threshold: String,
        level: String,
        /// The bin holds log10 firing rates in [log10_low, log10_high).
        log10_low: f64,
        log10_high: f64,
        n_latents: u64,
    }
}

rows! {
    /// `recover/latents.parquet`: a row a latent, its firing over the held-out split.
    pub struct Latent {
        sae: String,
        seed: u64,
        view: String,
        threshold: String,
        latent: u32,
        level: String,
        n_firings: u64,
        firing_rate: f64,
        mean_activation: f64,
        max_activation: f64,
    }
}

rows! {
    /// `recover/stability.parquet`: two SAEs of one configuration and different seeds, whose latents are matched one to one
    /// by their decoder rows. A row a mode and tree that both have, and a second one with the two exchanged.
    pub struct Stability {
        sae: String,
        seed: u64,
        other: String,
        other_seed: u64,
        view: String,
        threshold: String,
        /// `own` or `posthoc`.
        tree: String,
        /// Mean |cosine| of all pairs, dead latents included.
        mcc: f64,
        n_latents: u64,
        /// Pairs whose |cosine| exceeds `recover.match_cosine`.
        n_matched: u64,
        /// Edges of the tree of `sae`; those whose both ends are matched; and those of these that, carried over, are edges
        /// of the tree of `other`.
        n_edges: u64,
        n_edges_matched: u64,
        n_edges_kept: u64,
        /// n_edges_kept / n_edges_matched; null where nothing is matched.
        edges_kept: Option<f64>,
        /// What it would be if the parents of the tree of `other` were dealt out to its children at random.
        edges_kept_by_chance: Option<f64>,
    }
}

rows! {
    /// `probe/probes.parquet`.
    pub struct ProbeScore {
        sae: String,
        seed: u64,
        view: String,
        threshold: String,
        task: String,
        /// `all`, `coarse` or `fine`: the latents the probe may choose from. `activations` and `embeddings` for the
        /// baselines, whose `sae` is empty.
        level: String,
        /// Latents used; null for the baselines, which use every coordinate.
        k: Option<u64>,
        /// Accuracy on the test half.
        score: f64,
        /// Share of the largest class in the test half.
        baseline: f64,
        ci_low: f64,
        ci_high: f64,
        n_test: u64,
    }
}

rows! {
    /// `probe/splice.parquet`: the model with an activation replaced.
    pub struct SpliceScore {
        /// Empty for the clean model and the ablations.
        sae: String,
        seed: u64,
        view: String,
        threshold: String,
        /// `clean`, `reconstruction`, `zero` or `mean`.
        intervention: String,
        /// Nats per token.
        cross_entropy: f64,
        /// KL(clean ‖ spliced), nats per token.
        kl: f64,
        /// (CE_zero − CE) / (CE_zero − CE_clean).
        ce_recovered: f64,
        ci_low: f64,
        ci_high: f64,
        n_tokens: u64,
    }
}
