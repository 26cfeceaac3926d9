//! The forward pass, told once for every kind of device: up to a hook, and on from it.

use crate::hook::{Hook, Site};

/// The two halves of every block and what surrounds the blocks, on some kind of memory.
/// A `Stream` holds rows of the residual stream, [T, d_model], of whole contexts.
pub(crate) trait Blocks {
    type Stream: Clone;

    fn n_layers(&self) -> usize;
    /// Whether the feed-forward part reads the block's input, as attention does, and not what attention has added to.
    fn is_parallel(&self) -> bool;
    /// What the attention of block `block` adds to its input `x`.
    fn attention(&self, block: usize, x: &Self::Stream) -> Self::Stream;
    /// What the feed-forward part of block `block` adds to its input `x`.
    fn feed_forward(&self, block: usize, x: &Self::Stream) -> Self::Stream;
    fn add(&self, x: Self::Stream, y: &Self::Stream) -> Self::Stream;
    /// The last norm.
    fn final_norm(&self, x: &Self::Stream) -> Self::Stream;
}

/// The state of a forward pass at a hook.
#[derive(Clone, Debug)]
pub(crate) struct At<S> {
    /// The hooked activation.
    pub(crate) value: S,
    /// The residual stream that the hooked activation is yet to be added to; none where it is the stream itself. At
    /// `AttnOut` that is the block's input.
    pub(crate) residual: Option<S>,
}

/// Runs from the token embeddings `x` up to the hook and no further.
pub(crate) fn run_to<B: Blocks>(blocks: &B, mut x: B::Stream, hook: Hook) -> At<B::Stream> {
    for block in 0..hook.block {
        x = whole_block(blocks, block, x);
    }
    let block = hook.block;
    match hook.site {
        Site::ResidPre => At { value: x, residual: None },
        Site::AttnOut => At { value: blocks.attention(block, &x), residual: Some(x) },
        Site::MlpOut => {
            let attention = blocks.attention(block, &x);
            if blocks.is_parallel() {
                At { value: blocks.feed_forward(block, &x), residual: Some(blocks.add(x, &attention)) }
            } else {
                let x = blocks.add(x, &attention);
                At { value: blocks.feed_forward(block, &x), residual: Some(x) }
            }
        }
        Site::ResidPost => At { value: whole_block(blocks, block, x), residual: None },
    }
}

/// Goes on from a hook to the hidden state after the last norm.
pub(crate) fn resume<B: Blocks>(blocks: &B, hook: Hook, at: At<B::Stream>) -> B::Stream {
    let (mut x, next) = match (hook.site, at.residual) {
        (Site::AttnOut, Some(input)) if blocks.is_parallel() => {
            let ffn = blocks.feed_forward(hook.block, &input);
            let x = blocks.add(input, &at.value);
            (blocks.add(x, &ffn), hook.block + 1)
        }
        (Site::AttnOut, Some(input)) => {
            let x = blocks.add(input, &at.value);
            let ffn = blocks.feed_forward(hook.block, &x);
            (blocks.add(x, &ffn), hook.block + 1)
        }
        (_, Some(residual)) => (blocks.add(residual, &at.value), hook.block + 1),
        (Site::ResidPre, None) => (at.value, hook.block),
        (_, None) => (at.value, hook.block + 1),
    };
    for block in next..blocks.n_layers() {
        x = whole_block(blocks, block, x);
    }
    blocks.final_norm(&x)
}

fn whole_block<B: Blocks>(blocks: &B, block: usize, x: B::Stream) -> B::Stream {
    let attention = blocks.attention(block, &x);
    let (x, ffn) = if blocks.is_parallel() {
        let ffn = blocks.feed_forward(block, &x);
        (blocks.add(x, &attention), ffn)
    } else {
        let x = blocks.add(x, &attention);
        let ffn = blocks.feed_forward(block, &x);
        (x, ffn)
    };
    blocks.add(x, &ffn)
}
