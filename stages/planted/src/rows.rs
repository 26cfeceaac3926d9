//! Rows by the block.

use std::ops::Range;

use artifact::random::stream;
use pulp::{Arch, NullaryFnOnce};
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use crate::firing::Firing;
use crate::world::World;

/// Rows that share a random stream.
pub const BLOCK_ROWS: u64 = 256;

/// An endless sequence of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    pub purpose: &'static str,
}

impl World {
    /// What fires in a block.
    pub fn firing(&self, rows: Stream, block: u64) -> Firing {
        self.draws.draw(&mut stream(rows.seed, rows.purpose, 0, block), BLOCK_ROWS as usize)
    }

    /// The rows of a block in which `firing` fires, times `scale`. Shapes: out [n, d_model], row-major, the rows
    /// `first..first + n` of the block.
    pub fn activations(&self, rows: Stream, block: u64, firing: &Firing, first: usize, scale: f32, out: &mut [f32]) {
        let d_model = self.d_model();
        Arch::new().dispatch(Sum { world: self, firing, first, out });
        if self.shared.noise_std > 0.0 {
            // A row of noise has a stream of its own, so that a part of a block has the noise that the whole has.
            for (i, x) in out.chunks_exact_mut(d_model).enumerate() {
                let mut rng = stream(rows.seed, rows.purpose, 1, block * BLOCK_ROWS + (first + i) as u64);
                for x in x {
                    let normal: f32 = StandardNormal.sample(&mut rng);
                    *x += self.shared.noise_std * normal;
                }
            }
        }
        if scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Rows `positions` of a stream, times `scale`, on all threads. Shapes: out [n, d_model], row-major.
    pub fn fill(&self, rows: Stream, positions: Range<u64>, scale: f32, out: &mut [f32]) {
        let d_model = self.d_model();
        // Blocks that the positions cut are drawn whole.
        let mut parts = Vec::new();
        let (mut at, mut rest) = (positions.start, out);
        while at < positions.end {
            let block = at / BLOCK_ROWS;
            let end = positions.end.min((block + 1) * BLOCK_ROWS);
            let (part, others) = std::mem::take(&mut rest).split_at_mut((end - at) as usize * d_model);
            parts.push((block, (at % BLOCK_ROWS) as usize, part));
            (at, rest) = (end, others);
        }
        parts.into_par_iter().for_each(|(block, first, part)| {
            self.activations(rows, block, &self.firing(rows, block), first, scale, part);
        });
    }
}

/// Bias and directions, added up. A closure would not be inlined into the vector instructions.
struct Sum<'a> {
    world: &'a World,
    firing: &'a Firing,
    first: usize,
    /// [n, d_model]
    out: &'a mut [f32],
}

impl NullaryFnOnce for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let d_model = self.world.d_model();
        let direction = |feature: u32| &self.world.features.directions[feature as usize * d_model..][..d_model];
        for (i, x) in self.out.chunks_exact_mut(d_model).enumerate() {
            x.copy_from_slice(&self.world.shared.bias);
            let (features, magnitudes) = self.firing.row(self.first + i);
            for (place, (&feature, &magnitude)) in features.iter().zip(magnitudes).enumerate() {
                // All directions together are too large for a cache; which are next is known.
                features.get(place + 2).into_iter().for_each(|&ahead| prefetch(direction(ahead)));
                x.iter_mut().zip(direction(feature)).for_each(|(x, u)| *x += magnitude * u);
            }
        }
    }
}

/// Asks for a row to be brought into the cache, where there is a way to ask.
#[inline(always)]
fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(16) {
        // SAFETY: fetching ahead has no effect but on time.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}
