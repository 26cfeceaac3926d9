//! The language model: open it, read activations at a hook, splice a replacement in, read off logits.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use artifact::config::Products;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::config::{Described, ModelConfig};
use crate::device::is_cpu;
use crate::forward::{self, At};
use crate::gguf::Gguf;
use crate::hook::{Hook, Site};
use crate::host::{HostPass, HostWeights};
use crate::rope::Rope;
use crate::safetensors::TensorFiles;
use crate::tensor_blocks::{TensorPass, TensorWeights, softcap};
use crate::tokenizer::Tokenizer;
use crate::weights::{FolderWeights, GgufWeights, Weights};

/// Tokens that one thread takes through the blocks together (whole contexts, at least one).
/// Fixed, so that nothing depends on the number of threads.
const TOKENS_PER_GROUP: usize = 512;
/// Rows whose logits are computed together where they are only summed up.
const ROWS_OF_LOGITS: usize = 256;

/// A model with its tokenizer.
#[derive(Debug)]
pub struct LanguageModel {
    config: ModelConfig,
    tokenizer: Tokenizer,
    blocks: BlocksOn,
    /// Token embeddings, [n_vocab, d_model].
    embedding: Tensor<2>,
    /// Of learned positions, [context_length, d_model].
    positions: Option<Tensor<2>>,
    /// [n_vocab, d_model]. None where it is the embedding.
    unembedding: Option<Tensor<2>>,
    device: Device,
    /// Where passes end, if they do not go to the end.
    last: Option<Hook>,
}

#[derive(Debug)]
enum BlocksOn {
    Host(Box<HostWeights>),
    Tensors(Box<TensorWeights>),
}

/// A forward pass stopped at a hook.
#[derive(Clone, Debug)]
pub struct Paused {
    hook: Hook,
    context: usize,
    at: At<Vec<f32>>,
}

impl Paused {
    /// The hooked activation, [batch · context, d_model] row-major.
    pub fn value(&self) -> &[f32] {
        &self.at.value
    }

    /// Tokens in a context.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The hook it stopped at.
    pub fn hook(&self) -> Hook {
        self.hook
    }
}

impl LanguageModel {
    /// Reads a model to a device, from a `.gguf` file or a folder in Hugging Face format: `config.json`,
    /// `tokenizer.json`, and `*.safetensors`.
    ///
    /// Errors: a file is damaged, or holds an architecture, variant, tokenizer or tensor type that is not supported;
    /// the message names the file and the key or tensor.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        // The CPU's own blocks are several times faster there than burn's operations.
        Self::open_as(path, device, is_cpu(device), None, Products::F32)
    }

    /// The same for passes that end at a hook: what lies behind it is not read, and takes no memory. Weights are held as
    /// their products want them: in 4 bytes, 2, or a little more than 1.
    ///
    /// Errors: as for `open`; rounded products on another device than the CPU.
    pub fn open_up_to(path: &Path, device: &Device, hook: Hook, products: Products) -> Result<Self> {
        Self::open_as(path, device, is_cpu(device), Some(hook), products)
    }

    pub(crate) fn open_as(
        path: &Path,
        device: &Device,
        on_host: bool,
        last: Option<Hook>,
        products: Products,
    ) -> Result<Self> {
        ensure!(on_host || products == Products::F32, "{products:?} products are the CPU's alone");
        let on_host = on_host.then_some(products);
        if path.is_dir() {
            let file = path.join("config.json");
            let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let described = Described::read(&text).with_context(|| file.display().to_string())?;
            let config = &described.config;
            let tokenizer = Tokenizer::from_folder(path, described.separator, config.n_vocab)?;
            let files = TensorFiles::open(path)?;
            return Self::read(&FolderWeights::new(&files, &described)?, config, tokenizer, device, on_host, last);
        }
        let gguf = Gguf::open(path)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let weights = GgufWeights::new(&gguf, &config)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        ensure!(
            tokenizer.n_vocab() == config.n_vocab,
            "{}: {} tokens, but {} rows of token_embd.weight",
            path.display(),
            tokenizer.n_vocab(),
            config.n_vocab
        );
        Self::read(&weights, &config, tokenizer, device, on_host, last)
    }

    fn read(
        weights: &impl Weights,
        config: &ModelConfig,
        tokenizer: Tokenizer,
        device: &Device,
        on_host: Option<Products>,
        last: Option<Hook>,
    ) -> Result<Self> {
        let n_blocks = last.map_or(config.n_layers, |hook| config.n_layers.min(hook.block + 1));
        let matrix = |rows: Vec<f32>| {
            let n_rows = rows.len() / config.d_model;
            Tensor::<2>::from_data(TensorData::new(rows, [n_rows, config.d_model]), device)
        };
        let embedding = matrix(weights.embedding()?);
        let positions = weights.positions()?;
        let positions = (!positions.is_empty()).then(|| matrix(positions));
        let unembedding = if last.is_none() { weights.unembedding()? } else { None };
        let unembedding = unembedding.map(|layer| matrix(layer.rows));
        let blocks = match on_host {
            Some(products) => BlocksOn::Host(Box::new(HostWeights::read(weights, config, n_blocks, products)?)),
            None => BlocksOn::Tensors(Box::new(TensorWeights::read(weights, config, device, n_blocks)?)),
        };
        let (config, device) = (config.clone(), device.clone());
        Ok(Self { config, tokenizer, blocks, embedding, positions, unembedding, device, last })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The activations at a hook; blocks behind it are not computed.
    ///
    /// Shapes: tokens [batch · context] row-major → [batch · context · d_model].
    /// A row depends on its own context alone, not on the others in the batch nor on the number of threads.
    /// On the CPU a thread takes about 512 tokens at a time: batches of some thousand tokens keep all threads busy.
    /// Errors: no such block, tokens that are no whole contexts, a context that is too long, an unknown token.
    pub fn activations(&self, tokens: &[u32], context: usize, hook: Hook) -> Result<Vec<f32>> {
        Ok(self.activations_at(tokens, context, &[hook])?.concat())
    }

    /// The same at several hooks in one pass, in their order.
    /// Shapes: tokens [batch · context] → for each hook [batch · context · d_model]. Errors: as for `activations`.
    pub fn activations_at(&self, tokens: &[u32], context: usize, hooks: &[Hook]) -> Result<Vec<Vec<f32>>> {
        self.check(tokens, context)?;
        hooks.iter().try_for_each(|&hook| self.check_hook(hook))?;
        let parts = self.in_groups(
            tokens,
            context,
            |pass, x| forward::values_at(pass, x, hooks),
            |pass, x| forward::values_at(pass, x, hooks).into_iter().map(to_host).collect(),
        )?;
        let mut of_hooks: Vec<Vec<f32>> =
            hooks.iter().map(|_| Vec::with_capacity(tokens.len() * self.config.d_model)).collect();
        for part in parts {
            of_hooks.iter_mut().zip(part).for_each(|(values, part)| values.extend(part));
        }
        Ok(of_hooks)
    }

    /// Runs up to a hook and keeps what is needed to go on. Shapes and errors as for `activations`.
    pub fn run_to(&self, tokens: &[u32], context: usize, hook: Hook) -> Result<Paused> {
        self.check(tokens, context)?;
        self.check_hook(hook)?;
        let parts = self.in_groups(
            tokens,
            context,
            |pass, x| forward::run_to(pass, x, hook),
            |pass, x| {
                let at = forward::run_to(pass, x, hook);
                Ok(At { value: to_host(at.value)?, residual: at.residual.map(to_host).transpose()? })
            },
        )?;
        Ok(Paused { hook, context, at: join(parts) })
    }

    /// Embeds some whole contexts at a time and takes each through a pass: on the CPU's own blocks a group a thread, on tensors
    /// one after the other.
    fn in_groups<T: Send>(
        &self,
        tokens: &[u32],
        context: usize,
        on_host: impl Fn(&HostPass<'_>, Vec<f32>) -> T + Sync,
        on_tensors: impl Fn(&TensorPass<'_>, Tensor<2>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let rope = self.rope(context);
        let groups: Vec<&[u32]> = tokens.chunks(group_tokens(context)).collect();
        match &self.blocks {
            BlocksOn::Host(weights) => {
                let pass = HostPass { weights, rope: &rope, context };
                let run = |group: &&[u32]| Ok(on_host(&pass, to_host(self.embed(group, context))?));
                groups.par_iter().map(run).collect()
            }
            BlocksOn::Tensors(weights) => {
                let pass = TensorPass::new(weights, &rope, context);
                groups.into_iter().map(|group| on_tensors(&pass, self.embed(group, context))).collect()
            }
        }
    }

    /// Goes on from a hook with the activation itself, or with a replacement of the same shape
    /// (in all blocks behind it, attention sees the replacement at every position).
    ///
    /// Returns the hidden state after the last norm, [batch · context, d_model], for `unembed`.
    /// Errors: the replacement has another length.
    pub fn resume(&self, paused: &Paused, replacement: Option<&[f32]>) -> Result<Tensor<2>> {
        if let Some(last) = self.last {
            bail!("this model was opened up to {last}, and cannot go on from there");
        }
        let value = replacement.unwrap_or(&paused.at.value);
        let (n, d_model) = (paused.at.value.len(), self.config.d_model);
        ensure!(value.len() == n, "a replacement of {} values at {}, which has {n}", value.len(), paused.hook);
        let rope = self.rope(paused.context);
        let group = group_tokens(paused.context) * d_model;
        let group_at = |(i, value): (usize, &[f32])| {
            let residual = paused.at.residual.as_ref().map(|x| x[i * group..][..value.len()].to_vec());
            At { value: value.to_vec(), residual }
        };
        match &self.blocks {
            BlocksOn::Host(weights) => {
                let pass = HostPass { weights, rope: &rope, context: paused.context };
                let run = |part| forward::resume(&pass, paused.hook, group_at(part));
                let parts: Vec<Vec<f32>> = value.par_chunks(group).enumerate().map(run).collect();
                Ok(self.to_device(parts.concat()))
            }
            BlocksOn::Tensors(weights) => {
                let pass = TensorPass::new(weights, &rope, paused.context);
                let run = |part| {
                    let At { value, residual } = group_at(part);
                    let at = At { value: self.to_device(value), residual: residual.map(|x| self.to_device(x)) };
                    forward::resume(&pass, paused.hook, at)
                };
                Ok(Tensor::cat(value.chunks(group).enumerate().map(run).collect(), 0))
            }
        }
    }

    /// The hidden state after the last norm, [batch · context, d_model]: the plain forward pass.
    /// Shapes and errors as for `activations`.
    pub fn hidden(&self, tokens: &[u32], context: usize) -> Result<Tensor<2>> {
        let start = Hook { block: 0, site: Site::ResidPre };
        self.resume(&self.run_to(tokens, context, start)?, None)
    }

    /// Next-token logits. Shapes: hidden [T, d_model] → [T, n_vocab].
    ///
    /// 256 rows of logits of SmolLM2 are 50 MB: call it on slices of a long batch.
    pub fn unembed(&self, hidden: Tensor<2>) -> Tensor<2> {
        let rows = self.unembedding.as_ref().unwrap_or(&self.embedding);
        softcap(hidden.matmul(rows.clone().transpose()), self.config.logit_softcap)
    }

    /// Negative log-likelihood of each row's target token, in nats: −log softmax(logits)[target].
    ///
    /// Shapes: hidden [T, d_model] of `resume` or `hidden`, targets [T] → [T]. Errors: lengths differ, unknown token.
    pub fn next_token_loss_nats(&self, hidden: Tensor<2>, targets: &[u32]) -> Result<Vec<f32>> {
        let [n_rows, _] = hidden.dims();
        ensure!(n_rows == targets.len(), "{n_rows} rows of hidden states, but {} targets", targets.len());
        self.check_ids(targets)?;
        let mut losses = Vec::with_capacity(n_rows);
        for (piece, targets) in targets.chunks(ROWS_OF_LOGITS).enumerate() {
            let rows = hidden.clone().narrow(0, piece * ROWS_OF_LOGITS, targets.len());
            let logits = to_host(self.unembed(rows))?; // [rows, n_vocab]
            let loss = |(row, &target): (&[f32], &u32)| {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
                (sum.ln() - f64::from(row[target as usize] - max)) as f32
            };
            losses.par_extend(logits.par_chunks(self.config.n_vocab).zip(targets).map(loss));
        }
        Ok(losses)
    }

    /// Token embeddings. Shapes: [T] → [T · d_model]. Errors: an unknown token.
    pub fn token_embeddings(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check_ids(tokens)?;
        if tokens.is_empty() { Ok(Vec::new()) } else { to_host(self.token_rows(tokens)) }
    }

    /// What enters the first block. Shapes: tokens of whole contexts [T] → [T, d_model].
    fn embed(&self, tokens: &[u32], context: usize) -> Tensor<2> {
        let rows = self.token_rows(tokens);
        let rows = if self.config.embedding_scale == 1.0 { rows } else { rows * self.config.embedding_scale };
        match &self.positions {
            None => rows,
            Some(positions) => rows + positions.clone().narrow(0, 0, context).repeat_dim(0, tokens.len() / context),
        }
    }

    /// Shapes: [T] → [T, d_model].
    fn token_rows(&self, tokens: &[u32]) -> Tensor<2> {
        let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &self.device);
        self.embedding.clone().select(0, ids)
    }

    fn check(&self, tokens: &[u32], context: usize) -> Result<()> {
        let longest = self.config.context_length;
        ensure!((1..=longest).contains(&context), "a context of {context} tokens: this model takes 1 to {longest}");
        ensure!(!tokens.is_empty(), "no tokens");
        ensure!(
            tokens.len().is_multiple_of(context),
            "{} tokens are no whole number of contexts of {context}",
            tokens.len()
        );
        self.check_ids(tokens)
    }

    fn check_ids(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().position(|&id| id as usize >= self.config.n_vocab) {
            None => Ok(()),
            Some(at) => bail!("token {} at row {at} is beyond the vocabulary of {}", tokens[at], self.config.n_vocab),
        }
    }

    /// Errors: the model has no such block.
    pub fn check_hook(&self, hook: Hook) -> Result<()> {
        let n_layers = self.config.n_layers;
        ensure!(hook.block < n_layers, "{hook}: this model has blocks 0 to {}", n_layers - 1);
        if let Some(last) = self.last {
            ensure!(hook.block <= last.block, "{hook} lies behind {last}, up to which this model was opened");
        }
        Ok(())
    }

    fn rope(&self, context: usize) -> Rope {
        Rope::new(context, &self.config.positions)
    }

    fn to_device(&self, rows: Vec<f32>) -> Tensor<2> {
        let n_rows = rows.len() / self.config.d_model;
        Tensor::from_data(TensorData::new(rows, [n_rows, self.config.d_model]), &self.device)
    }
}

/// Tokens of a group: as many whole contexts as fit, and at least one.
fn group_tokens(context: usize) -> usize {
    (TOKENS_PER_GROUP / context).max(1) * context
}

fn join(parts: Vec<At<Vec<f32>>>) -> At<Vec<f32>> {
    let (values, residuals): (Vec<_>, Vec<_>) = parts.into_iter().map(|at| (at.value, at.residual)).unzip();
    let residuals: Option<Vec<_>> = residuals.into_iter().collect();
    At { value: values.concat(), residual: residuals.map(|parts| parts.concat()) }
}

fn to_host(tensor: Tensor<2>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().context("reading a tensor from its device")?;
    data.try_into_vec::<f32>().map_err(|error| anyhow::anyhow!("a tensor that is not f32: {error:?}"))
}
