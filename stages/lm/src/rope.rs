//! Angles of the rotary position embedding (Su et al. 2021, "RoFormer", equations 15 and 34).

use std::f64::consts::TAU;

use crate::config::{Positions, Rotary, Stretch};

/// Cosines and sines of positions 0 to n − 1: angle(position, i) = position · frequency(i).
#[derive(Debug)]
pub(crate) struct Rope {
    /// Values of a head that are turned; 0 where positions are not told this way.
    pub(crate) n_rotary: usize,
    /// [n_positions, n_rotary / 2], both.
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(n_positions: usize, positions: &Positions) -> Self {
        let Positions::Rotary(rotary) = positions else {
            return Self { n_rotary: 0, cos: Vec::new(), sin: Vec::new() };
        };
        let frequencies = frequencies(rotary);
        let angles = || (0..n_positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
        Self {
            n_rotary: rotary.n_rotary,
            cos: angles().map(|a| a.cos() as f32).collect(),
            sin: angles().map(|a| a.sin() as f32).collect(),
        }
    }

    /// Of one position.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.n_rotary / 2;
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// base^(−2i / n_rotary), divided where the model was stretched to longer contexts.
fn frequencies(rotary: &Rotary) -> Vec<f64> {
    let n = rotary.n_rotary as f64;
    let frequency = |i: usize| {
        let plain = rotary.base.powf(-2.0 * i as f64 / n) / rotary.factor / rotary.divisors.get(i).unwrap_or(&1.0);
        rotary.stretch.as_ref().map_or(plain, |stretch| stretched(plain, stretch))
    };
    (0..rotary.n_rotary / 2).map(frequency).collect()
}

/// Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models"; the passage is that of Meta's published code.
fn stretched(frequency: f64, stretch: &Stretch) -> f64 {
    // How many waves a context of the original length holds, between the two limits from 0 to 1.
    let n_waves = stretch.original_context * frequency / TAU;
    let kept = ((n_waves - stretch.low) / (stretch.high - stretch.low)).clamp(0.0, 1.0);
    kept * frequency + (1.0 - kept) * frequency / stretch.factor
}

/// Undoes GGUF's arrangement of query and key rows. The converter writes each head's rotary pairs side by side
/// (rows 2i and 2i + 1); this crate, like the published weights, rotates rows i and i + d_head / 2.
/// Taking one for the other runs, and is wrong.
///
/// Shapes: rows [n_heads · d_head, d_in], in place of the same.
pub(crate) fn unpermute(rows: &[f32], d_head: usize, d_in: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(d_head * d_in) {
        for parity in 0..2 {
            for i in 0..d_head / 2 {
                let row = 2 * i + parity;
                out.extend_from_slice(&head[row * d_in..(row + 1) * d_in]);
            }
        }
    }
    out
}
