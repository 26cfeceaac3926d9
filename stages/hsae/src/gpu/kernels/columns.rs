//! The same entries latent by latent, in the order of tokens: a counting sort that reads the lists as bits. Tokens are cut
//! into blocks of ROWS_PER_BLOCK; block_counts are [n_blocks, d_sae].

use cubecl::prelude::*;

use super::cube::{UNITS, count_before};

pub(crate) const ROWS_PER_BLOCK: usize = 128;

/// How often each latent is active in each block of tokens. A unit per latent; blocks along y.
#[cube(launch_unchecked)]
pub(crate) fn count_blocks(kept: &[u32], block_counts: &mut [u32], n_rows: usize, n_cols: usize, n_words: usize) {
    let j = CUBE_POS_X as usize * UNITS as usize + UNIT_POS as usize;
    if j < n_cols {
        let block = CUBE_POS_Y as usize;
        let end = min((block + 1) * ROWS_PER_BLOCK, n_rows);
        let mut n = 0u32;
        for t in block * ROWS_PER_BLOCK..end {
            n += (kept[t * n_words + j / 32] >> (j % 32) as u32) & 1u32;
        }
        block_counts[block * n_cols + j] = n;
    }
}

/// In place: the number of a latent's entries in earlier blocks; totals [n_cols]. A unit per latent.
#[cube(launch_unchecked)]
pub(crate) fn sum_blocks(block_counts: &mut [u32], totals: &mut [u32], n_blocks: usize, n_cols: usize) {
    let j = CUBE_POS * UNITS as usize + UNIT_POS as usize;
    if j < n_cols {
        let mut sum = 0u32;
        for block in 0..n_blocks {
            let n = block_counts[block * n_cols + j];
            block_counts[block * n_cols + j] = sum;
            sum += n;
        }
        totals[j] = sum;
    }
}

/// Where each latent's entries start: totals [n_cols] → col_ptr [n_cols + 1]. One cube.
#[cube(launch_unchecked)]
pub(crate) fn start_columns(totals: &[u32], col_ptr: &mut [u32], n_cols: usize) {
    let mut room = Shared::<[u32]>::new_slice(UNITS as usize);
    let per_unit = n_cols.div_ceil(UNITS as usize);
    let first = min(UNIT_POS as usize * per_unit, n_cols);
    let end = min(first + per_unit, n_cols);
    let mut sum = 0u32;
    for j in first..end {
        sum += totals[j];
    }
    let mut next = count_before(sum, &mut room);
    for j in first..end {
        col_ptr[j] = next;
        next += totals[j];
        if j + 1 == n_cols {
            col_ptr[n_cols] = next;
        }
    }
}

/// Token and place in the lists of every entry, latent by latent. A unit per latent; blocks along y.
/// Shapes: kept, word_start [B, W] → row, entry [nnz].
#[cube(launch_unchecked)]
pub(crate) fn fill_columns(
    kept: &[u32],
    word_start: &[u32],
    block_counts: &[u32],
    col_ptr: &[u32],
    row: &mut [u32],
    entry: &mut [u32],
    n_rows: usize,
    n_cols: usize,
    n_words: usize,
) {
    let j = CUBE_POS_X as usize * UNITS as usize + UNIT_POS as usize;
    if j < n_cols {
        let block = CUBE_POS_Y as usize;
        let end = min((block + 1) * ROWS_PER_BLOCK, n_rows);
        let mut next = col_ptr[j] + block_counts[block * n_cols + j];
        let bit = (j % 32) as u32;
        for t in block * ROWS_PER_BLOCK..end {
            let word = kept[t * n_words + j / 32];
            if (word >> bit) & 1u32 == 1u32 {
                let before = word & ((1u32 << bit) - 1);
                row[next as usize] = t as u32;
                entry[next as usize] = word_start[t * n_words + j / 32] + before.count_ones();
                next += 1;
            }
        }
    }
}
