//! The training loss of one batch and its gradient (science.md §3):
//!
//! L = ‖x − x̂‖² + β Σ_m ‖x − x̂_m‖² + penalties + w_aux · AuxK + the tree's terms,    all means over tokens
//!
//! Only the encoder's product is dense, and only it looks at all latents. Everything after the selection goes over the
//! entries that are active.

use crate::activation::{Activation, Penalty};
use crate::gradients::{Extra, Gradients, weighted_sum_of_rows};
use crate::kernels::{Aux, Backward, Dense, Prefixes, Sliced, Totals, backward, dense, finish_rows, reconstruct};
use crate::rows::total_variance;
use crate::sparse::{Columns, SparseRows};
use crate::weights::Weights;

/// A batch, and the terms that count now.
pub(crate) struct Objective<'a, A> {
    pub(crate) activation: &'a A,
    pub(crate) weights: &'a Weights,
    /// The encoder's input and the target without b_dec, [B, d_model]; the same where b_dec is taken from the input.
    pub(crate) x: &'a [f32],
    pub(crate) target: &'a [f32],
    pub(crate) prefixes: &'a Prefixes,
    pub(crate) aux: Option<AuxK<'a>>,
    /// Decoder rows keep their length.
    pub(crate) is_constrained: bool,
    /// b_dec is taken from the encoder's input, so that gradients come back this way.
    pub(crate) centers_input: bool,
}

/// Dead latents, and how they are asked to help.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuxK<'a> {
    /// Ascending.
    pub(crate) dead: &'a [u32],
    pub(crate) k: usize,
    pub(crate) weight: f64,
    /// Divide by the variance of the residual, as the authors' own code does.
    pub(crate) is_normalised: bool,
}

/// The loss and its parts, as means per token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    pub(crate) total: f64,
    pub(crate) mse: f64,
    /// Weighted sum over inner prefixes; a gate's reconstruction counts as one.
    pub(crate) prefixes: f64,
    /// Penalties times their coefficients.
    pub(crate) l1: f64,
    pub(crate) aux: f64,
}

/// Gradients are in the buffer that was given; this is the rest.
pub(crate) struct Found {
    pub(crate) losses: Losses,
    /// Of the whole gradient, without what goes along constrained decoder rows.
    pub(crate) sum_of_squares: f64,
    /// How far decoder rows' gradients go along them, [d_sae]; 0 for free ones.
    pub(crate) along: Vec<f32>,
    /// See `Penalty`, as a sum over tokens.
    pub(crate) watched: f64,
}

/// Room for what every step makes anew.
#[derive(Default)]
pub(crate) struct Room {
    flow: Sliced,
    x: Sliced,
}

/// What a dense pass finds beside.
pub(crate) struct DenseCounts {
    /// Tokens on which each latent is active, [d_sae].
    pub(crate) firings: Vec<u64>,
    pub(crate) sum_acts: f64,
}

impl<A: Activation> Objective<'_, A> {
    /// Over the entries that were selected.
    pub(crate) fn sparse(
        &self,
        pre_acts: &SparseRows,
        columns: &Columns,
        terms: Vec<Extra>,
        room: &mut Room,
        grads: &mut Gradients,
    ) -> Found {
        let d_model = self.weights.d_model;
        let mut residuals = self.aux.map(|_| vec![0f32; self.target.len()]);
        // What flows back is read for the last time before the encoder's gradient is written: one memory serves both.
        let n_channels = self.prefixes.len() + usize::from(A::HAS_GATE);
        let flow_is_lent = Sliced::len(n_channels, pre_acts.n_rows(), d_model) <= grads.w_enc.len();
        if flow_is_lent {
            room.flow.swap_room(&mut grads.w_enc);
        }
        let found = reconstruct(
            self.activation,
            self.target,
            pre_acts,
            &self.weights.w_dec,
            d_model,
            self.prefixes,
            &mut room.flow,
            residuals.as_deref_mut(),
        );
        room.x.fill(self.x, d_model);
        grads.b_dec.copy_from_slice(&found.grad_b_dec);
        let mut losses = self.losses(&found.errors);
        let mut extras = terms;
        if let (Some(aux), Some(residuals)) = (self.aux, &residuals) {
            extras.push(self.aux_k(aux, residuals, &mut losses));
        }
        let (of_tokens, token_factors) = self.tokens(pre_acts);
        let input = Backward {
            x: &room.x,
            pre_acts,
            columns,
            prefixes: self.prefixes,
            token_factors: &token_factors,
            w_dec: &self.weights.w_dec,
            d_model,
            extras: &extras,
        };
        let mut totals = backward(self.activation, &input, &mut room.flow, flow_is_lent, self.is_constrained, grads);
        totals.penalty.value += of_tokens;
        self.finish(losses, totals, grads)
    }

    /// By dense products, for a batch of which much is active.
    pub(crate) fn dense(&self, terms: Vec<Extra>, grads: &mut Gradients) -> (Found, DenseCounts) {
        let d_model = self.weights.d_model;
        let input = Dense {
            x: self.x,
            target: self.target,
            w_enc: &self.weights.w_enc,
            b_enc: &self.weights.b_enc,
            w_dec: &self.weights.w_dec,
            d_model,
            prefixes: self.prefixes,
        };
        let found = dense(self.activation, &input, grads);
        grads.b_dec.copy_from_slice(&found.reconstruction.grad_b_dec);
        let losses = self.losses(&found.reconstruction.errors);
        let mut totals = finish_rows(grads, &terms, &self.weights.w_dec, d_model, self.is_constrained);
        totals.penalty = found.penalty;
        let counts = DenseCounts { firings: found.firings, sum_acts: found.sum_acts.iter().sum() };
        (self.finish(losses, totals, grads), counts)
    }

    /// What the numbers of active latents cost, and the factor for each token; none where they do not matter.
    fn tokens(&self, pre_acts: &SparseRows) -> (f64, Vec<f32>) {
        if !A::COUNTS_ACTIVE {
            return (0.0, Vec::new());
        }
        let is_active = |(&j, &pre): (&u32, &f32)| self.activation.act(j as usize, pre) > 0.0;
        let of_token = |t: usize| {
            let (idx, pre) = pre_acts.row(t);
            self.activation.token(idx.iter().zip(pre).filter(|&entry| is_active(entry)).count())
        };
        let (costs, factors): (Vec<f64>, Vec<f32>) = (0..pre_acts.n_rows()).map(of_token).unzip();
        (costs.iter().sum(), factors)
    }

    fn losses(&self, errors: &[f64]) -> Losses {
        let last = self.prefixes.len() - 1;
        let weighted = |p: usize| f64::from(self.prefixes.weights[p]) * errors[p];
        let gate: f64 = errors[last + 1..].iter().sum();
        Losses {
            total: 0.0,
            mse: weighted(last),
            prefixes: (0..last).map(weighted).sum::<f64>() + gate,
            ..Losses::default()
        }
    }

    fn aux_k(&self, aux: AuxK, residuals: &[f32], losses: &mut Losses) -> Extra {
        let d_model = self.weights.d_model;
        let mut weight = aux.weight;
        if aux.is_normalised {
            weight /= total_variance(residuals, d_model) / (residuals.len() / d_model) as f64;
        }
        let (error, extra) = Aux {
            x: self.x,
            residuals,
            w_enc: &self.weights.w_enc,
            b_enc: &self.weights.b_enc,
            w_dec: &self.weights.w_dec,
            d_model,
            dead: aux.dead,
            k: aux.k,
            weight: weight as f32,
        }
        .run(None);
        losses.aux = weight * error;
        extra
    }

    fn finish(&self, mut losses: Losses, totals: Totals, grads: &mut Gradients) -> Found {
        let Penalty { value, watched } = totals.penalty;
        losses.l1 = value;
        losses.total = losses.mse + losses.prefixes + losses.l1 + losses.aux;
        if self.centers_input {
            let sums = grads.b_enc.iter().zip(&grads.own).enumerate();
            let sums: Vec<f32> = sums.map(|(j, (&bias, own))| self.activation.sum(j, bias, own)).collect();
            let through = weighted_sum_of_rows(&self.weights.w_enc, &sums, self.weights.d_model);
            grads.b_dec.iter_mut().zip(through).for_each(|(g, sum)| *g -= sum);
        }
        let of_b_dec: f64 = grads.b_dec.iter().map(|&g| f64::from(g).powi(2)).sum();
        let sum_of_squares = totals.sum_of_squares + of_b_dec;
        Found { losses, sum_of_squares, along: totals.along, watched }
    }
}

mod tree_sae;

#[cfg(test)]
#[path = "objective/tests.rs"]
mod tests;
