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
            let (x, ffn) = add_attention(blocks, block, x, &attention);
            At { value: ffn, residual: Some(x) }
        }
        Site::ResidPost => At { value: whole_block(blocks, block, x), residual: None },
    }
}

/// Runs from the token embeddings `x` through the last of several hooks, and gives the activation at each, in the order of
/// `hooks`.
pub(crate) fn values_at<B: Blocks>(blocks: &B, mut x: B::Stream, hooks: &[Hook]) -> Vec<B::Stream> {
    let mut found: Vec<Option<B::Stream>> = hooks.iter().map(|_| None).collect();
    let mut keep = |block, site, value: &B::Stream| {
        let here = hooks.iter().zip(&mut found).filter(|(hook, _)| **hook == Hook { block, site });
        here.for_each(|(_, found)| *found = Some(value.clone()));
    };
    let last = hooks.iter().copied().max().unwrap_or(Hook { block: 0, site: Site::ResidPre });
    for block in 0..=last.block {
        let ends_at = |site| last == Hook { block, site };
        keep(block, Site::ResidPre, &x);
        if ends_at(Site::ResidPre) {
            break;
        }
        let attention = blocks.attention(block, &x);
        keep(block, Site::AttnOut, &attention);
        if ends_at(Site::AttnOut) {
            break;
        }
        let ffn;
        (x, ffn) = add_attention(blocks, block, x, &attention);
        keep(block, Site::MlpOut, &ffn);
        if ends_at(Site::MlpOut) {
            break;
        }
        x = blocks.add(x, &ffn);
        keep(block, Site::ResidPost, &x);
    }
    found.into_iter().map(|value| value.expect("every hook lies on the way to the last")).collect()
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
    let (x, ffn) = add_attention(blocks, block, x, &attention);
    blocks.add(x, &ffn)
}

/// The block's input with what attention adds to it, and what the feed-forward part is yet to add.
fn add_attention<B: Blocks>(blocks: &B, block: usize, x: B::Stream, attention: &B::Stream) -> (B::Stream, B::Stream) {
    if blocks.is_parallel() {
        let ffn = blocks.feed_forward(block, &x);
        (blocks.add(x, attention), ffn)
    } else {
        let x = blocks.add(x, attention);
        let ffn = blocks.feed_forward(block, &x);
        (x, ffn)
    }
}
