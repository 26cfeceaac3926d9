//! The model by burn's operations and its automatic differentiation: for any device that burn knows, and for tests what the
//! passes by hand are held against.

use anyhow::{Context, Result, bail};
use artifact::random::stream;
use burn::tensor::activation::{gelu_approximate, log_softmax, softmax};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use rand::Rng;

use crate::adamw::{AdamW, Rule, State};
use crate::host::{DropoutOf, Outcome};
use crate::kernels::NORM_EPSILON;
use crate::shape::{Kind, Parameter, Shape};

/// What hides a key from a query: far below any score, and finite, so that no gradient becomes NaN.
const HIDDEN: f32 = -1e9;

/// Whether this build has CUDA.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// The first GPU that CUDA reports. Errors: there is none, or no driver, or CUDA is not compiled in.
pub fn cuda() -> Result<Device> {
    #[cfg(feature = "cuda")]
    {
        // burn panics where there is no driver.
        let found = artifact::guarded::guarded("CUDA", || {
            let device = Device::cuda(0);
            let two = Tensor::<1>::from_data(TensorData::new(vec![2f32], [1]), &device);
            scalar(two + 1.0).map(|sum| (device, sum))
        });
        match found {
            Ok((device, 3.0)) => Ok(device),
            _ => bail!("there is no GPU that CUDA can use"),
        }
    }
    #[cfg(not(feature = "cuda"))]
    bail!("this build has no CUDA")
}

/// A training whose state lives on a device. Each parameter is a vector there, [its number of values].
pub struct TensorTraining {
    shape: Shape,
    length: usize,
    device: Device,
    list: Vec<Parameter>,
    weights: Vec<Tensor<1>>,
    first: Vec<Tensor<1>>,
    second: Vec<Tensor<1>>,
    step: u64,
    /// Of the last step, where it was asked for.
    grads: Vec<Tensor<1>>,
}

impl TensorTraining {
    /// `device` without autodiff. Contexts have `length` tokens.
    pub fn new(shape: Shape, length: usize, state: &State, device: &Device) -> Self {
        let mut training = Self {
            shape,
            length,
            device: device.clone(),
            list: shape.parameters(),
            weights: Vec::new(),
            first: Vec::new(),
            second: Vec::new(),
            step: 0,
            grads: Vec::new(),
        };
        training.restore(state);
        training
    }

    /// Puts a state in the place of the present one.
    pub fn restore(&mut self, state: &State) {
        let tensors = |values: &[f32]| {
            let of = |p: &Parameter| {
                Tensor::from_data(TensorData::new(values[p.place.clone()].to_vec(), [p.place.len()]), &self.device)
            };
            self.list.iter().map(of).collect::<Vec<Tensor<1>>>()
        };
        (self.weights, self.first, self.second) =
            (tensors(&state.weights), tensors(&state.first), tensors(&state.second));
        self.step = state.step;
    }

    /// Errors: the device does not answer.
    pub fn state(&self) -> Result<State> {
        let (weights, first, second) = (to_host(&self.weights)?, to_host(&self.first)?, to_host(&self.second)?);
        Ok(State { weights, first, second, step: self.step })
    }

    /// The gradient of the last step, in the order of the parameters. Errors: the device does not answer.
    pub fn gradient(&self) -> Result<Vec<f32>> {
        to_host(&self.grads)
    }

    /// One step of training. Shapes: inputs and targets [contexts · length].
    ///
    /// Errors: the device does not answer.
    pub fn train(
        &mut self,
        adam: &AdamW,
        batch: (&[u32], &[u32]),
        lr: f64,
        dropout: Option<DropoutOf>,
    ) -> Result<Outcome> {
        let device = self.device.clone().autodiff();
        let leaves: Vec<Tensor<1>> = self.weights.iter().map(|w| w.clone().autodiff().require_grad()).collect();
        let dropout = dropout.filter(|of| of.probability > 0.0);
        if let Some(of) = dropout {
            // The device's own numbers, begun anew in each step, so that a resumed training draws the same.
            device.seed(stream(of.seed, "pretrain/dropout", 0, of.step).next_u64());
        }
        let loss = self.forward(&leaves, batch, dropout.map_or(0.0, |of| of.probability), &device);
        let mut grads = loss.backward();
        let grads = leaves.iter().map(|leaf| leaf.grad_remove(&mut grads).context("a parameter without a gradient"));
        let grads = grads.collect::<Result<Vec<_>>>()?;
        let squares = Tensor::cat(grads.iter().map(|grad| grad.clone().square().sum()).collect(), 0);
        let sum_of_squares = scalar(squares.sum())?;
        self.step += 1;
        let rule = adam.rule(self.step, lr, sum_of_squares.sqrt());
        for (i, grad) in grads.iter().enumerate() {
            let keep = if self.list[i].kind == Kind::Gain { 1.0 } else { rule.keep };
            let (w, m, v) = (self.weights[i].clone(), self.first[i].clone(), self.second[i].clone());
            (self.weights[i], self.first[i], self.second[i]) = updated(&Rule { keep, ..rule }, w, m, v, grad.clone());
        }
        self.grads = grads;
        Ok(Outcome { loss: scalar(loss)?, sum_of_squares })
    }

    /// Mean loss of a batch, in nats, nothing dropped. Errors: the device does not answer.
    pub fn loss(&self, batch: (&[u32], &[u32])) -> Result<f64> {
        scalar(self.forward(&self.weights, batch, 0.0, &self.device))
    }

    /// Mean loss. Shapes: inputs and targets [contexts · length] → [1].
    fn forward(&self, weights: &[Tensor<1>], batch: (&[u32], &[u32]), dropout: f32, device: &Device) -> Tensor<1> {
        let (shape, length) = (&self.shape, self.length);
        let n = batch.0.len();
        let ids = |tokens: &[u32]| {
            let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
            Tensor::<1, Int>::from_data(TensorData::new(ids, [n]), device)
        };
        let drop = |x: Tensor<2>| dropped(x, dropout);
        let mut rest = weights.iter().zip(&self.list);
        // The next parameter; a gain as one row.
        let mut next = || {
            let (weight, parameter) = rest.next().expect("as many tensors as parameters");
            match parameter.shape[..] {
                [n_rows, width] => weight.clone().reshape([n_rows, width]),
                _ => weight.clone().reshape([1, parameter.place.len()]),
            }
        };
        let (embedding, positions) = (next(), next());
        let places: Vec<u32> = (0..n).map(|i| (i % length) as u32).collect();
        let mut x = drop(embedding.clone().select(0, ids(batch.0)) + positions.select(0, ids(&places))); // [n, d]
        let mask = causal_mask(length, device);
        for _ in 0..shape.n_layers {
            let qkv = norm(x.clone(), next()).matmul(next()); // [n, 3d]
            let attended = self.attend(qkv, mask.clone(), dropout);
            x = x + drop(attended.matmul(next()));
            let up = norm(x.clone(), next()).matmul(next()); // [n, 4d]
            x = x + drop(gelu_approximate(up).matmul(next()));
        }
        let logits = norm(x, next()).matmul(embedding.transpose()); // [n, n_vocab]
        let of_targets = log_softmax(logits, 1).gather(1, ids(batch.1).reshape([n, 1])); // [n, 1]
        of_targets.mean().neg()
    }

    /// Shapes: qkv [n, 3d], mask [length, length] → [n, d].
    fn attend(&self, qkv: Tensor<2>, mask: Tensor<2>, dropout: f32) -> Tensor<2> {
        let (shape, length) = (&self.shape, self.length);
        let [n, _] = qkv.dims();
        let (d, contexts) = (shape.d_model, n / length);
        let part = |kind: usize| {
            let rows = qkv.clone().narrow(1, kind * d, d);
            rows.reshape([contexts, length, shape.n_heads, shape.d_head()]).swap_dims(1, 2)
        };
        let scale = 1.0 / (shape.d_head() as f32).sqrt();
        let scores = part(0).matmul(part(1).swap_dims(2, 3)) * scale; // [contexts, heads, length, length]
        let shares = dropped(softmax(scores + mask.unsqueeze::<4>(), 3), dropout);
        shares.matmul(part(2)).swap_dims(1, 2).reshape([n, d])
    }
}

/// (x − mean x) / √(variance + ε) · gain. Shapes: x [n, d], gain [1, d] → [n, d].
fn norm(x: Tensor<2>, gain: Tensor<2>) -> Tensor<2> {
    let x = x.clone() - x.mean_dim(1);
    let variance = x.clone().square().mean_dim(1);
    x / (variance + NORM_EPSILON).sqrt() * gain
}

fn dropped<const D: usize>(x: Tensor<D>, probability: f32) -> Tensor<D> {
    if probability == 0.0 {
        return x;
    }
    let keep = 1.0 - f64::from(probability);
    let kept = x.random_like(Distribution::Bernoulli(keep));
    x * kept.div_scalar(keep)
}

/// 0 where a query (row) sees a key (column), and far below otherwise.
fn causal_mask(length: usize, device: &Device) -> Tensor<2> {
    let value = |i: usize| if i % length <= i / length { 0.0 } else { HIDDEN };
    let values: Vec<f32> = (0..length * length).map(value).collect();
    Tensor::from_data(TensorData::new(values, [length, length]), device)
}

/// One AdamW step of a parameter: (weights, first, second).
fn updated(
    rule: &Rule,
    w: Tensor<1>,
    m: Tensor<1>,
    v: Tensor<1>,
    grad: Tensor<1>,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let grad = grad * rule.clip;
    let m = m * rule.beta1 + grad.clone() * (1.0 - rule.beta1);
    let v = v * rule.beta2 + grad.square() * (1.0 - rule.beta2);
    let step = m.clone() * rule.rate / (v.clone().sqrt() * rule.second_scale + rule.epsilon);
    (w * rule.keep - step, m, v)
}

fn scalar(tensor: Tensor<1>) -> Result<f64> {
    Ok(f64::from(values(tensor)?[0]))
}

fn to_host(tensors: &[Tensor<1>]) -> Result<Vec<f32>> {
    Ok(tensors.iter().map(|tensor| values(tensor.clone())).collect::<Result<Vec<_>>>()?.concat())
}

fn values(tensor: Tensor<1>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().context("reading a tensor from its device")?;
    data.try_into_vec::<f32>().map_err(|error| anyhow::anyhow!("a tensor that is not f32: {error:?}"))
}
