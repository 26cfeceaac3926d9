//! A model as files in Hugging Face format: GPT-2 with biases of zero, which `lm`, `transformers` and others read.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::shape::Shape;
use crate::vocabulary::Vocabulary;

/// The files of a model's folder, by their names.
pub fn files(shape: &Shape, weights: &[f32], vocabulary: &Vocabulary) -> Result<Vec<(&'static str, Vec<u8>)>> {
    Ok(vec![
        ("config.json", text(&config(shape, vocabulary))?),
        ("model.safetensors", tensors(shape, weights)?),
        ("tokenizer.json", text(&vocabulary.tokenizer_json())?),
        ("tokenizer_config.json", text(&tokenizer_config(shape, vocabulary))?),
    ])
}

/// A model from the files that it was made into: shape, weights, vocabulary. Other models are `lm`'s to read.
///
/// Errors name the file: it cannot be read, or holds no model that was made here.
pub fn read(folder: &Path) -> Result<(Shape, Vec<f32>, Vocabulary)> {
    let bytes = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let json =
        |name: &str| serde_json::from_slice(&bytes(name)?).with_context(|| folder.join(name).display().to_string());
    let (config, tokenizer): (Value, Value) = (json("config.json")?, json("tokenizer.json")?);
    let number = |key: &str| {
        let number =
            config[key].as_u64().with_context(|| format!("{}: {key}", folder.join("config.json").display()))?;
        Ok::<_, anyhow::Error>(number as usize)
    };
    let shape = Shape {
        n_layers: number("n_layer")?,
        n_heads: number("n_head")?,
        d_model: number("n_embd")?,
        context_length: number("n_positions")?,
        n_vocab: number("vocab_size")?,
    };
    ensure!(
        shape.n_heads > 0 && shape.d_model.is_multiple_of(shape.n_heads),
        "{}: n_embd = {} does not divide into n_head = {}",
        folder.join("config.json").display(),
        shape.d_model,
        shape.n_heads
    );
    let vocabulary = Vocabulary::from_json(&tokenizer, number("bos_token_id")?)
        .with_context(|| folder.join("tokenizer.json").display().to_string())?;
    ensure!(
        vocabulary.n_tokens() == shape.n_vocab,
        "{}: {} tokens, and {} in config.json",
        folder.join("tokenizer.json").display(),
        vocabulary.n_tokens(),
        shape.n_vocab
    );
    let weights = values(&shape, &bytes("model.safetensors")?)
        .with_context(|| folder.join("model.safetensors").display().to_string())?;
    Ok((shape, weights, vocabulary))
}

fn values(shape: &Shape, bytes: &[u8]) -> Result<Vec<f32>> {
    let tensors = SafeTensors::deserialize(bytes)?;
    ensure!(shape.n_layers <= tensors.len(), "{} tensors, too few for {} blocks", tensors.len(), shape.n_layers);
    let mut weights = Vec::new();
    for parameter in shape.parameters() {
        let name = format!("transformer.{}", parameter.name);
        let tensor = tensors.tensor(&name)?;
        ensure!(
            tensor.dtype() == Dtype::F32 && tensor.shape() == parameter.shape,
            "{name} is {:?} {:?}, expected f32 {:?}",
            tensor.dtype(),
            tensor.shape(),
            parameter.shape
        );
        weights.extend(tensor.data().as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)));
    }
    Ok(weights)
}

fn text(value: &Value) -> Result<Vec<u8>> {
    Ok(format!("{}\n", serde_json::to_string_pretty(value)?).into_bytes())
}

fn config(shape: &Shape, vocabulary: &Vocabulary) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_embd": shape.d_model,
        "n_head": shape.n_heads,
        "n_layer": shape.n_layers,
        "n_positions": shape.context_length,
        "vocab_size": shape.n_vocab,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true,
        "bos_token_id": vocabulary.separator(),
        "eos_token_id": null, // a line's end is no text's
        "torch_dtype": "float32",
    })
}

/// The class that reads `tokenizer.json` as it is.
fn tokenizer_config(shape: &Shape, vocabulary: &Vocabulary) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context_length,
        "clean_up_tokenization_spaces": false,
        "model_input_names": ["input_ids", "attention_mask"],
        "separator": vocabulary.decode(&[vocabulary.separator()]),
    })
}

fn tensors(shape: &Shape, weights: &[f32]) -> Result<Vec<u8>> {
    let mut values: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for parameter in shape.parameters() {
        let name = format!("transformer.{}", parameter.name);
        if let Some(layer) = name.strip_suffix(".weight").filter(|_| name.contains(".h.") || name.contains(".ln_f.")) {
            let width = parameter.shape[parameter.shape.len() - 1];
            values.insert(format!("{layer}.bias"), (vec![width], vec![0; 4 * width]));
        }
        values.insert(name, (parameter.shape, bytes(&weights[parameter.place])));
    }
    let views = values
        .iter()
        .map(|(name, (shape, bytes))| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    // transformers asks which library the tensors are for.
    let about = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(about))?)
}
