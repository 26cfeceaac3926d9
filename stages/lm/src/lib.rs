//! Host language models with hook points: weights and tokenizer from a GGUF file or a folder, the forward pass, activations at
//! named hooks, and a forward pass with a replacement activation spliced in.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let model = lm::LanguageModel::open("model.gguf".as_ref(), &lm::cpu())?;
//! let mut tokens = vec![model.tokenizer().separator()];
//! tokens.extend(model.tokenizer().encode("The capital of France is")?.ids);
//! let hook = "blocks.15.hook_resid_post".parse()?;
//! let paused = model.run_to(&tokens, tokens.len(), hook)?; // stops at the hook
//! let zeros = vec![0.0; paused.value().len()];
//! let hidden = model.resume(&paused, Some(&zeros))?; // goes on with another activation
//! let logits = model.unembed(hidden); // [tokens, n_vocab]
//! # Ok(()) }
//! ```

mod config;
mod device;
mod forward;
mod gguf;
mod hook;
mod host;
mod model;
mod rope;
mod safetensors;
mod tensor_blocks;
#[cfg(test)]
mod tests;
mod tokenizer;
mod weights;

pub use artifact::config::Products;
pub use config::{Activation, Attention, FeedForward, ModelConfig, Norm, NormKind, Positions, Rotary, Stretch};
pub use device::cpu;
pub use hook::{Hook, Site};
pub use model::{LanguageModel, Paused};
pub use tokenizer::{Encoding, Tokenizer};
