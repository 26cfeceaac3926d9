//! The sizes of a model, and where each of its parameters lies: all of them stand in one vector, so that an optimiser, a
//! checkpoint and a sum over shards are each one pass.

use std::ops::Range;

/// A GPT-2 without biases, whose unembedding is its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub n_layers: usize,
    pub n_heads: usize,
    /// Width of the residual stream; the feed-forward part is four times as wide.
    pub d_model: usize,
    /// Positions that the model knows.
    pub context_length: usize,
    pub n_vocab: usize,
}

/// What a parameter is, which decides how it begins and whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A matrix.
    Matrix,
    /// A matrix whose product is added to the residual stream.
    ToResidual,
    /// The gain of a layer norm.
    Gain,
}

/// One parameter by its name in GPT-2's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    /// Row-major. A layer's matrix is [d_in, d_out], as GPT-2 has it.
    pub shape: Vec<usize>,
    pub kind: Kind,
    /// Where it lies in the vector.
    pub place: Range<usize>,
}

/// Where a block's parameters lie.
#[derive(Clone, Debug)]
pub(crate) struct BlockPlaces {
    pub(crate) attn_gain: Range<usize>,
    /// [d_model, 3·d_model]: queries, keys, values.
    pub(crate) qkv: Range<usize>,
    /// [d_model, d_model].
    pub(crate) attn_out: Range<usize>,
    pub(crate) ffn_gain: Range<usize>,
    /// [d_model, 4·d_model].
    pub(crate) up: Range<usize>,
    /// [4·d_model, d_model].
    pub(crate) down: Range<usize>,
}

impl Shape {
    pub fn d_head(&self) -> usize {
        self.d_model / self.n_heads
    }

    /// All parameters, in the order of the vector.
    pub fn parameters(&self) -> Vec<Parameter> {
        let &Self { n_layers, d_model: d, context_length, n_vocab, .. } = self;
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut add = |name: String, shape: &[usize], kind: Kind| {
            let start = parameters.last().map_or(0, |last| last.place.end);
            let place = start..start + shape.iter().product::<usize>();
            parameters.push(Parameter { name, shape: shape.to_vec(), kind, place });
        };
        add("wte.weight".into(), &[n_vocab, d], Kind::Matrix);
        add("wpe.weight".into(), &[context_length, d], Kind::Matrix);
        for block in 0..n_layers {
            let name = |part: &str| format!("h.{block}.{part}.weight");
            add(name("ln_1"), &[d], Kind::Gain);
            add(name("attn.c_attn"), &[d, 3 * d], Kind::Matrix);
            add(name("attn.c_proj"), &[d, d], Kind::ToResidual);
            add(name("ln_2"), &[d], Kind::Gain);
            add(name("mlp.c_fc"), &[d, 4 * d], Kind::Matrix);
            add(name("mlp.c_proj"), &[4 * d, d], Kind::ToResidual);
        }
        add("ln_f.weight".into(), &[d], Kind::Gain);
        parameters
    }

    pub fn n_parameters(&self) -> usize {
        self.blocks_start() + self.n_layers * self.block_size() + self.d_model
    }

    /// [n_vocab, d_model].
    pub(crate) fn embedding(&self) -> Range<usize> {
        0..self.n_vocab * self.d_model
    }

    /// [context_length, d_model].
    pub(crate) fn positions(&self) -> Range<usize> {
        self.n_vocab * self.d_model..self.blocks_start()
    }

    pub(crate) fn block(&self, block: usize) -> BlockPlaces {
        let d = self.d_model;
        let mut at = self.blocks_start() + block * self.block_size();
        let mut take = |n: usize| {
            at += n;
            at - n..at
        };
        BlockPlaces {
            attn_gain: take(d),
            qkv: take(3 * d * d),
            attn_out: take(d * d),
            ffn_gain: take(d),
            up: take(4 * d * d),
            down: take(4 * d * d),
        }
    }

    pub(crate) fn final_gain(&self) -> Range<usize> {
        self.n_parameters() - self.d_model..self.n_parameters()
    }

    fn blocks_start(&self) -> usize {
        (self.n_vocab + self.context_length) * self.d_model
    }

    fn block_size(&self) -> usize {
        self.d_model * (12 * self.d_model + 2)
    }

    /// Operations of one training step per token, multiplications and additions counted apart: three times those of the
    /// forward pass, in which a position attends to half of the context on average.
    pub fn flops_per_token(&self) -> f64 {
        let &Self { n_layers, d_model: d, context_length, n_vocab, .. } = self;
        let block = 2 * 12 * d * d + 2 * d * (context_length + 1);
        (3 * (n_layers * block + 2 * n_vocab * d)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_list() {
        let shape = Shape { n_layers: 2, n_heads: 2, d_model: 6, context_length: 5, n_vocab: 7 };
        let list = shape.parameters();
        assert_eq!(list.last().unwrap().place.end, shape.n_parameters());
        let place = |name: &str| list.iter().find(|parameter| parameter.name == name).unwrap().place.clone();
        let block = shape.block(1);
        for (name, expected) in [
            ("wte.weight", shape.embedding()),
            ("wpe.weight", shape.positions()),
            ("h.1.ln_1.weight", block.attn_gain),
            ("h.1.attn.c_attn.weight", block.qkv),
            ("h.1.attn.c_proj.weight", block.attn_out),
            ("h.1.ln_2.weight", block.ffn_gain),
            ("h.1.mlp.c_fc.weight", block.up),
            ("h.1.mlp.c_proj.weight", block.down),
            ("ln_f.weight", shape.final_gain()),
        ] {
            assert_eq!(place(name), expected, "{name}");
        }
    }
}
