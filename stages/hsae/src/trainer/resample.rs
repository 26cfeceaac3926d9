//! Dead latents of ReLU SAEs start anew at tokens that are reconstructed badly.
//!
//! Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on resampling, in the form of dictionary_learning:
//! tokens are drawn in proportion to the length of their residual, the encoder's row gets a fifth of the mean length of
//! live ones.

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;

use super::Trainer;
use crate::kernels::{Bounds, EncoderInput, collect, decode_rows, dot};
use crate::weights::normalise_row;

/// Length of a new encoder row, as a share of the mean length of live ones.
const ENCODER_SHARE: f32 = 0.2;

impl Trainer {
    /// Shapes: x, target [B, d_model]: the encoder's input, and what it should come out as, without b_dec.
    pub(super) fn resample_if_due(&mut self, x: &[f32], target: &[f32]) {
        let Some(resample) = &self.config.resample else { return };
        let done = self.state.step + 1;
        let is_over = done as f64 > resample.until * self.n_steps as f64;
        if is_over || !done.is_multiple_of(resample.every) {
            return;
        }
        let silent_for = resample.every / 2 * self.train.batch_size as u64;
        let since = self.state.tokens_since_fired.iter().enumerate();
        let dead: Vec<usize> = since.filter(|&(_, &tokens)| tokens > silent_for).map(|(j, _)| j).collect();
        if !dead.is_empty() {
            self.restart(&dead, x, target);
            self.repack();
        }
    }

    fn restart(&mut self, dead: &[usize], x: &[f32], target: &[f32]) {
        let weights = &self.state.weights;
        let d_model = weights.d_model;
        let input =
            EncoderInput { x_centered: x, w_enc: &weights.w_enc, b_enc: &weights.b_enc, d_model, packed: &self.packed };
        let acts = collect(input, Bounds::above(0.0));
        let x_hat = decode_rows(&acts, &weights.w_dec, &vec![0.0; d_model], weights.d_sae);
        let lengths = |rows: &[f32]| rows.chunks_exact(d_model).map(|row| dot(row, row).sqrt()).collect::<Vec<_>>();
        let residuals: Vec<f32> = target.iter().zip(&x_hat).map(|(x, x_hat)| x - x_hat).collect();
        let Ok(tokens) = WeightedIndex::new(lengths(&residuals)) else { return };
        let encoder_lengths = lengths(&weights.w_enc);
        let is_dead = |j: &usize| dead.binary_search(j).is_ok();
        let alive: Vec<f32> = (0..weights.d_sae).filter(|j| !is_dead(j)).map(|j| encoder_lengths[j]).collect();
        let length = if alive.is_empty() { 1.0 } else { alive.iter().sum::<f32>() / alive.len() as f32 };

        let mut rng = artifact::random::stream(self.seed, "train/resample", 0, self.state.step);
        let state = &mut self.state;
        for &j in dead {
            let token = tokens.sample(&mut rng);
            let row = j * d_model..(j + 1) * d_model;
            let mut direction = target[token * d_model..(token + 1) * d_model].to_vec();
            normalise_row(&mut direction);
            state.weights.w_dec[row.clone()].copy_from_slice(&direction);
            let encoder = state.weights.w_enc[row.clone()].iter_mut().zip(&direction);
            encoder.for_each(|(w, direction)| *w = ENCODER_SHARE * length * direction);
            state.weights.b_enc[j] = 0.0;
            for moments in [&mut state.adam.first, &mut state.adam.second] {
                moments.w_enc[row.clone()].fill(0.0);
                moments.w_dec[row.clone()].fill(0.0);
                moments.b_enc[j] = 0.0;
            }
            state.tokens_since_fired[j] = 0;
        }
    }
}
