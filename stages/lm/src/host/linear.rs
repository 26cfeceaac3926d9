//! A dense layer on slices.

use artifact::config::Products;
use slices::{RoundingRoom, Weight};

use super::kernels::add_to_rows;
use crate::weights::LinearWeights;

/// y = x W + b, on one thread.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight<'static>,
    /// [d_out]; empty where there is none.
    bias: Vec<f32>,
}

impl Linear {
    pub(crate) fn new(weights: &LinearWeights, d_in: usize, products: Products) -> Self {
        Self { weight: Weight::of_rows(&weights.rows, d_in, products), bias: weights.bias.clone() }
    }

    pub(crate) fn d_out(&self) -> usize {
        self.weight.d_out()
    }

    /// Puts the rows of x W + b behind those in `out`. The rows of x start `x_stride` apart; what follows a row's first
    /// d_in values is passed over.
    /// Shapes: x [T, x_stride] → [T, d_out].
    pub(crate) fn append(&self, x: &[f32], x_stride: usize, out: &mut Vec<f32>, room: &mut RoundingRoom) {
        let start = out.len();
        self.weight.append(x, x_stride, out, room);
        if !self.bias.is_empty() {
            add_to_rows(&mut out[start..], &self.bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_added_to_new_rows_alone() {
        let weights = LinearWeights { rows: vec![1.0, 2.0, 3.0, 4.0], bias: vec![10.0, 20.0] };
        let mut out = vec![7.0, 8.0];
        Linear::new(&weights, 2, Products::F32).append(
            &[1.0, 0.0, 0.0, 1.0],
            2,
            &mut out,
            &mut RoundingRoom::default(),
        );
        assert_eq!(out, [7.0, 8.0, 11.0, 23.0, 12.0, 24.0]);
    }
}
