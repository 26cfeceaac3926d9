//! A training: by hand on the CPU, by burn's tensors on a GPU.

use std::borrow::Cow;

use anyhow::Result;
use artifact::config::Products;
use burn::tensor::Device;

use crate::adamw::{AdamW, State};
use crate::host::{DropoutOf, HostPass, Outcome};
use crate::shape::Shape;
use crate::tensors::TensorTraining;

pub struct Trainer {
    shape: Shape,
    adam: AdamW,
    engine: Engine,
}

enum Engine {
    Host(HostPass, State),
    Tensors(TensorTraining),
}

impl Trainer {
    /// On a device of burn's, where `products` have no say, or by hand on the CPU where there is none.
    pub fn new(shape: Shape, adam: AdamW, state: State, device: Option<&Device>, products: Products) -> Self {
        let length = shape.context_length;
        let engine = match device {
            Some(device) => Engine::Tensors(TensorTraining::new(shape, length, &state, device)),
            None => Engine::Host(HostPass::new(shape, length, products), state),
        };
        Self { shape, adam, engine }
    }

    /// One step. Shapes: inputs and targets [contexts · context_length]. Errors: the device does not answer.
    pub fn step(&mut self, batch: (&[u32], &[u32]), lr: f64, dropout: DropoutOf) -> Result<Outcome> {
        match &mut self.engine {
            Engine::Host(pass, state) => {
                let outcome = pass.train(&state.weights, batch, Some(dropout));
                self.adam.update(&self.shape, state, pass.gradient(), lr, outcome.sum_of_squares.sqrt());
                Ok(outcome)
            }
            Engine::Tensors(training) => training.train(&self.adam, batch, lr, Some(dropout)),
        }
    }

    /// Mean loss of a batch, in nats, nothing dropped.
    /// Errors: the device does not answer.
    pub fn loss(&mut self, batch: (&[u32], &[u32])) -> Result<f64> {
        match &mut self.engine {
            Engine::Host(pass, state) => Ok(pass.loss(&state.weights, batch)),
            Engine::Tensors(training) => training.loss(batch),
        }
    }

    /// Errors: the device does not answer.
    pub fn state(&self) -> Result<Cow<'_, State>> {
        match &self.engine {
            Engine::Host(_, state) => Ok(Cow::Borrowed(state)),
            Engine::Tensors(training) => Ok(Cow::Owned(training.state()?)),
        }
    }

    /// Puts a state in the place of the present one.
    pub fn restore(&mut self, state: State) {
        match &mut self.engine {
            Engine::Host(_, own) => *own = state,
            Engine::Tensors(training) => training.restore(&state),
        }
    }
}
