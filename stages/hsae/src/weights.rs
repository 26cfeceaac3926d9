//! The parameters of an SAE: as plain slices, where kernels and the optimiser work on them, and as a burn module, where
//! autodiff does.

use anyhow::{Result, ensure};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// The parameters, row-major; coarse latents come first.
///
/// `w_enc` is kept transposed against the usual notation, so that a latent is a row in both matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub d_model: usize,
    pub d_sae: usize,
    /// [d_sae, d_model].
    pub w_enc: Vec<f32>,
    /// [d_sae].
    pub b_enc: Vec<f32>,
    /// [d_sae, d_model], unit rows.
    pub w_dec: Vec<f32>,
    /// [d_model].
    pub b_dec: Vec<f32>,
    /// Parameters that only some architectures have, [d_sae] each: JumpReLU's threshold; a gated SAE's r_mag and b_mag.
    pub own: Vec<Vec<f32>>,
}

/// z = select((x − b_dec) W_encᵀ + b_enc), x̂ = z W_dec + b_dec.
#[derive(Module, Debug)]
pub struct SaeModule {
    /// [d_sae, d_model].
    pub w_enc: Param<Tensor<2>>,
    /// [d_sae].
    pub b_enc: Param<Tensor<1>>,
    /// [d_sae, d_model].
    pub w_dec: Param<Tensor<2>>,
    /// [d_model].
    pub b_dec: Param<Tensor<1>>,
}

/// Gradients of the module's parameters, shaped like them.
pub(crate) struct ModuleGradients {
    pub(crate) w_enc: Vec<f32>,
    pub(crate) b_enc: Vec<f32>,
    pub(crate) w_dec: Vec<f32>,
}

impl Weights {
    /// Random unit decoder rows, the encoder their transpose, b_enc zero, b_dec the mean of the data.
    /// Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.1.
    pub fn init(seed: u64, d_model: usize, d_sae: usize, mean: &[f32]) -> Self {
        let mut rng = artifact::random::stream(seed, "train/init", 0, 0);
        let mut w_dec: Vec<f32> = (0..d_sae * d_model).map(|_| StandardNormal.sample(&mut rng)).collect();
        w_dec.chunks_exact_mut(d_model).for_each(normalise_row);
        Self { d_model, d_sae, w_enc: w_dec.clone(), b_enc: vec![0.0; d_sae], w_dec, b_dec: mean.to_vec(), own: vec![] }
    }

    /// Zeros of the same shapes.
    pub fn zeros_like(&self) -> Self {
        let zeros = |values: &[f32]| vec![0.0; values.len()];
        Self {
            d_model: self.d_model,
            d_sae: self.d_sae,
            w_enc: zeros(&self.w_enc),
            b_enc: zeros(&self.b_enc),
            w_dec: zeros(&self.w_dec),
            b_dec: zeros(&self.b_dec),
            own: self.own.iter().map(|own| zeros(own)).collect(),
        }
    }

    /// ‖W_dec\[j\]‖, [d_sae].
    pub(crate) fn decoder_lengths(&self) -> Vec<f32> {
        self.w_dec.par_chunks_exact(self.d_model).map(|row| crate::kernels::dot(row, row).sqrt()).collect()
    }

    /// All parameters by name.
    pub fn named(&self) -> Vec<(String, &Vec<f32>)> {
        let own = self.own.iter().enumerate().map(|(i, own)| (format!("own{i}"), own));
        let all = [("w_enc", &self.w_enc), ("b_enc", &self.b_enc), ("w_dec", &self.w_dec), ("b_dec", &self.b_dec)];
        all.into_iter().map(|(name, values)| (name.to_owned(), values)).chain(own).collect()
    }

    pub fn named_mut(&mut self) -> Vec<(String, &mut Vec<f32>)> {
        let own = self.own.iter_mut().enumerate().map(|(i, own)| (format!("own{i}"), own));
        let all = [
            ("w_enc", &mut self.w_enc),
            ("b_enc", &mut self.b_enc),
            ("w_dec", &mut self.w_dec),
            ("b_dec", &mut self.b_dec),
        ];
        all.into_iter().map(|(name, values)| (name.to_owned(), values)).chain(own).collect()
    }

    /// Errors: a parameter holds NaN or an infinity; the first is named.
    pub fn check_finite(&self) -> Result<()> {
        for (name, values) in self.named() {
            let at = values.iter().position(|value| !value.is_finite());
            ensure!(at.is_none(), "{name} has become NaN or infinite; lower the learning rate (train.lr)");
        }
        Ok(())
    }
}

/// Scales a row to length 1; a row of zeros stays.
pub(crate) fn normalise_row(row: &mut [f32]) {
    let norm = crate::kernels::dot(row, row).sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|value| *value /= norm);
    }
}

impl SaeModule {
    pub fn new(weights: &Weights, device: &Device) -> Self {
        let matrix = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [weights.d_sae, weights.d_model]);
            Param::from_tensor(Tensor::<2>::from_data(data, device))
        };
        let vector = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Param::from_tensor(Tensor::<1>::from_data(data, device))
        };
        Self {
            w_enc: matrix(&weights.w_enc),
            b_enc: vector(&weights.b_enc),
            w_dec: matrix(&weights.w_dec),
            b_dec: vector(&weights.b_dec),
        }
    }

    /// The gradients of a loss made from this module's parameters; zero where the loss does not depend on one.
    pub(crate) fn gradients(&self, loss: &Tensor<1>) -> ModuleGradients {
        let grads = loss.backward();
        let of_matrix = |param: &Param<Tensor<2>>| match param.val().grad(&grads) {
            Some(grad) => to_vec(grad.into_data()),
            None => vec![0.0; param.val().shape().num_elements()],
        };
        let of_vector = |param: &Param<Tensor<1>>| match param.val().grad(&grads) {
            Some(grad) => to_vec(grad.into_data()),
            None => vec![0.0; param.val().shape().num_elements()],
        };
        ModuleGradients { w_enc: of_matrix(&self.w_enc), b_enc: of_vector(&self.b_enc), w_dec: of_matrix(&self.w_dec) }
    }
}

fn to_vec(data: TensorData) -> Vec<f32> {
    data.try_into_vec().expect("parameters are f32")
}
