//! The model on the CPU: forward and backward pass by hand, on slices. A batch is cut into shards, whatever the number of
//! threads; a shard is one thread's from its first context to its gradients, and these are added in the order of shards.

mod attention;
mod group;
mod scaled;

use std::sync::Mutex;

use artifact::config::Products;
use artifact::random::stream;
use rand::Rng;
use rayon::prelude::*;

use crate::shape::Shape;
use group::{Drops, Room, contexts_per_group};
use scaled::{Gradients, Scaled};
use slices::{add, sum_of_squares_f64};

/// A batch has so many shards, if it has as many contexts: what threads beyond them would find nothing to do. Each has
/// gradients of its own. Fixed, since sums depend on it.
const N_SHARDS: usize = 8;
/// Gradients are folded, and weights updated, in pieces of so many values.
pub(crate) const PIECE: usize = 16_384;

/// Which values a step drops.
#[derive(Clone, Copy, Debug)]
pub struct DropoutOf {
    pub probability: f32,
    pub seed: u64,
    pub step: u64,
}

/// Room for passes and each shard's gradients, for contexts of one length.
pub struct HostPass {
    shape: Shape,
    products: Products,
    length: usize,
    /// As many as threads have needed at a time. They are large: the fewer there are, the more of one is in the cache.
    rooms: Mutex<Vec<Room>>,
    /// Of each shard.
    grads: Vec<Gradients>,
}

/// What a batch comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Mean over the tokens, in nats.
    pub loss: f64,
    /// Of the gradient: Σ of its squares.
    pub sum_of_squares: f64,
}

impl HostPass {
    /// For batches of any number of contexts of `length` tokens. `products` says what the operands of the
    /// layers' products are rounded to in training; a loss alone is f32's.
    pub fn new(shape: Shape, length: usize, products: Products) -> Self {
        Self { shape, products, length, rooms: Mutex::default(), grads: vec![Gradients::zeros(&shape); N_SHARDS] }
    }

    /// Loss and gradient of a batch. Shapes: inputs and targets [contexts · length].
    pub fn train(&mut self, weights: &[f32], batch: (&[u32], &[u32]), dropout: Option<DropoutOf>) -> Outcome {
        let loss = self.run(weights, batch, dropout, true);
        let (first, others) = self.grads.split_first_mut().expect("there are shards");
        fold(&mut first.values, others.iter().map(|grads| &grads.values));
        fold(&mut first.unembedding, others.iter().map(|grads| &grads.unembedding));
        first.take_apart(&self.shape, weights);
        let sums: Vec<f64> = first.values.par_chunks(PIECE).map(sum_of_squares_f64).collect();
        Outcome { loss, sum_of_squares: sums.iter().sum() }
    }

    /// Mean loss of a batch, in nats, nothing dropped.
    pub fn loss(&mut self, weights: &[f32], batch: (&[u32], &[u32])) -> f64 {
        self.run(weights, batch, None, false)
    }

    /// Of the last batch that was trained on, in the order of the parameters.
    pub fn gradient(&self) -> &[f32] {
        &self.grads[0].values
    }

    fn run(&mut self, weights: &[f32], batch: (&[u32], &[u32]), dropout: Option<DropoutOf>, is_training: bool) -> f64 {
        let (inputs, targets) = batch;
        let (shape, length) = (&self.shape, self.length);
        let n_contexts = inputs.len() / length;
        assert!(inputs.len() == targets.len() && inputs.len() == n_contexts * length, "whole contexts");
        let products = if is_training { self.products } else { Products::F32 };
        let scaled = Scaled::new(shape, weights, products, is_training);
        let scale = 1.0 / inputs.len() as f32;
        let (rooms, group) = (&self.rooms, contexts_per_group(length));
        let pass = |(i, grads): (usize, &mut Gradients)| {
            let end = |i: usize| i * n_contexts / N_SHARDS * length;
            let of_shard = end(i)..end(i + 1);
            let mut keys = dropout.map(|of| stream(of.seed, "pretrain/dropout", i as u64, of.step));
            if is_training {
                grads.clear();
            }
            if of_shard.is_empty() {
                return 0.0;
            }
            let groups = inputs[of_shard.clone()].chunks(group * length).zip(targets[of_shard].chunks(group * length));
            let room = rooms.lock().expect("no thread failed").pop();
            let mut room = room.unwrap_or_else(|| Room::new(shape, group, length));
            let mut sum = 0.0;
            for group in groups {
                let n_keys = Drops::n_keys(shape);
                let keys = keys.iter_mut().flat_map(|keys| (0..n_keys).map(|_| keys.next_u32())).collect();
                let drops = Drops { probability: dropout.map_or(0.0, |of| of.probability), keys };
                let grads = is_training.then_some(&mut *grads);
                sum += room.run(&scaled, length, group, &drops, scale, grads);
            }
            rooms.lock().expect("no thread failed").push(room);
            sum
        };
        let sums: Vec<f64> = self.grads.par_iter_mut().enumerate().map(pass).collect();
        sums.iter().sum::<f64>() / inputs.len() as f64
    }
}

/// Adds the others to the first, in their order.
fn fold<'a>(first: &mut [f32], others: impl Iterator<Item = &'a Vec<f32>>) {
    let others: Vec<&Vec<f32>> = others.collect();
    first.par_chunks_mut(PIECE).enumerate().for_each(|(i, sum)| {
        let place = i * PIECE..i * PIECE + sum.len();
        others.iter().for_each(|other| add(sum, &other[place.clone()]));
    });
}
