//! Rows cut into slices of a few columns, each slice in one piece: going over latents, their tokens' rows are read again
//! and again in no order, and a slice of all tokens stays in the second-level cache where whole rows would not.

use rayon::prelude::*;

use super::axpy;

/// Columns of a slice: with 4,096 tokens that makes 1 MiB.
pub(crate) const WIDTH: usize = 64;

/// Shapes: [channels, d_model / WIDTH, n_rows, WIDTH], the last slice padded with zeros.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sliced {
    n_rows: usize,
    d_model: usize,
    /// At least as long.
    values: Vec<f32>,
}

impl Sliced {
    /// Values of so many rows.
    pub(crate) fn len(n_channels: usize, n_rows: usize, d_model: usize) -> usize {
        n_channels * d_model.div_ceil(WIDTH) * n_rows * WIDTH
    }

    /// Lends or takes back the memory: what is in it then means nothing.
    pub(crate) fn swap_room(&mut self, room: &mut Vec<f32>) {
        std::mem::swap(&mut self.values, room);
    }

    /// Room for some rows; what it held before may still be there.
    pub(crate) fn resize(&mut self, n_channels: usize, n_rows: usize, d_model: usize) {
        (self.n_rows, self.d_model) = (n_rows, d_model);
        let len = Self::len(n_channels, n_rows, d_model);
        if self.values.len() < len {
            self.values.resize(len, 0.0);
        }
        let last = d_model % WIDTH;
        if last > 0 && n_rows > 0 {
            // Padding stays zero, whatever the room held.
            let slice = n_rows * WIDTH;
            let slices =
                self.values[..len].par_chunks_mut(slice).skip(d_model / WIDTH).step_by(d_model.div_ceil(WIDTH));
            slices.for_each(|slice| slice.chunks_exact_mut(WIDTH).for_each(|row| row[last..].fill(0.0)));
        }
    }

    pub(crate) fn n_slices(&self) -> usize {
        self.d_model.div_ceil(WIDTH)
    }

    /// The columns of a slice.
    pub(crate) fn columns(&self, slice: usize) -> std::ops::Range<usize> {
        slice * WIDTH..((slice + 1) * WIDTH).min(self.d_model)
    }

    /// One slice of a channel, [n_rows, WIDTH].
    pub(crate) fn slice(&self, channel: usize, slice: usize) -> &[[f32; WIDTH]] {
        let len = self.n_rows * WIDTH;
        self.values[(channel * self.n_slices() + slice) * len..][..len].as_chunks().0
    }

    /// Cuts rows of one channel. Shapes: rows [n, d_model].
    pub(crate) fn fill(&mut self, rows: &[f32], d_model: usize) {
        self.resize(1, rows.len() / d_model, d_model);
        let blocks = self.blocks(1);
        let rows = rows.par_chunks(BLOCK_ROWS * d_model);
        blocks.into_par_iter().zip(rows).for_each(|(mut block, rows)| {
            rows.chunks_exact(d_model).enumerate().for_each(|(i, row)| block.write(i, 0, row));
        });
    }

    /// Blocks of BLOCK_ROWS rows, in order, each of which may be written by another thread.
    pub(crate) fn blocks(&mut self, n_channels: usize) -> Vec<BlockMut<'_>> {
        let (n_slices, d_model) = (n_channels * self.n_slices(), self.d_model);
        let n_blocks = self.n_rows.div_ceil(BLOCK_ROWS);
        let mut blocks: Vec<BlockMut> =
            (0..n_blocks).map(|_| BlockMut { d_model, slices: Vec::with_capacity(n_slices) }).collect();
        if self.n_rows > 0 {
            for slice in self.values.chunks_exact_mut(self.n_rows * WIDTH).take(n_slices) {
                for (block, part) in blocks.iter_mut().zip(slice.chunks_mut(BLOCK_ROWS * WIDTH)) {
                    block.slices.push(part);
                }
            }
        }
        blocks
    }
}

/// Rows per block.
pub(crate) const BLOCK_ROWS: usize = 64;

/// Some rows of all slices.
pub(crate) struct BlockMut<'a> {
    d_model: usize,
    /// [channels · slices], each [rows, WIDTH].
    slices: Vec<&'a mut [f32]>,
}

impl BlockMut<'_> {
    /// Writes a row of a channel; rows count from the block's first.
    #[inline(always)]
    pub(crate) fn write(&mut self, i: usize, channel: usize, row: &[f32]) {
        let n_slices = self.d_model.div_ceil(WIDTH);
        let slices = &mut self.slices[channel * n_slices..(channel + 1) * n_slices];
        for (slice, part) in slices.iter_mut().zip(row.chunks(WIDTH)) {
            slice[i * WIDTH..i * WIDTH + part.len()].copy_from_slice(part);
        }
    }

    /// Adds to a row of a channel.
    pub(crate) fn add(&mut self, i: usize, channel: usize, row: &[f32]) {
        let n_slices = self.d_model.div_ceil(WIDTH);
        let slices = &mut self.slices[channel * n_slices..(channel + 1) * n_slices];
        for (slice, part) in slices.iter_mut().zip(row.chunks(WIDTH)) {
            axpy(&mut slice[i * WIDTH..], 1.0, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_hold_the_rows_and_zeros_beside_them() {
        for (n_rows, d_model) in [(1, 3), (70, 64), (130, 100)] {
            let rows: Vec<f32> = (1..=n_rows * d_model).map(|i| i as f32).collect();
            let mut sliced = Sliced::default();
            // Whatever was there before.
            sliced.fill(&vec![7.0; 200 * 128], 128);
            sliced.fill(&rows, d_model);
            for slice in 0..sliced.n_slices() {
                for (t, row) in sliced.slice(0, slice).iter().enumerate() {
                    let columns = sliced.columns(slice);
                    assert_eq!(row[..columns.len()], rows[t * d_model..][columns.clone()]);
                    assert!(row[columns.len()..].iter().all(|&padding| padding == 0.0));
                }
            }
        }
    }
}
