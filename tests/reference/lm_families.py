"""A small random checkpoint of each supported family, saved by transformers, with its activations at every hook.

    python lm_families.py OUT                  (torch, transformers 5, tokenizers; OUT is ../golden/lm)
    python lm_families.py OUT pythia-70m       the same of pythia-70m-deduped's config at full size, 140 MB; then, in the
                                               repository: cargo run --release --example agree -- OUT/pythia-70m

Each folder under OUT holds config.json, model*.safetensors and tokenizer.json as a researcher's would, and expected.safetensors:
`tokens` [1, 24], `logits`, and `blocks.N.hook_*`, each [1, 24, d], computed in float64 from the saved weights, and of the last
token the logits `without` what the first block's attention or feed-forward part adds. Names of hooks are
TransformerLens's: attn_out and mlp_out are what is added to the residual stream, after a norm of their own where a model has one.
texts.json holds hard texts with their ids and places.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

N_VOCAB = 320  # the tokenizer has fewer
CONTEXT, BATCH = 24, 1

# Texts that are hard to cut, the same as for SmolLM2's tokenizer.
ROWS = (Path(__file__).parent / "lm_tokens.tsv").read_text().splitlines()
TEXTS = [json.loads(row.split("\t")[0]) for row in ROWS if row and not row.startswith("#")]

TEXT = """The quick brown fox jumps over the lazy dog. There the other one was, and then they were there together,
where the weather was rather better than either of them had thought it would be. naïve café 中文 12 34 \U0001f44b
def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"""

LLAMA = dict(
    vocab_size=N_VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
)


def byte_level(kind):
    """A tokenizer as the family's: GPT-2's pieces, digits apart, or normalised first."""
    tokenizer = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "digits":
        plain = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if kind == "nfc":
        tokenizer.normalizer = normalizers.NFC()
        # As GPT-NeoX's has it: it takes spaces out of places.
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.pre_tokenizer = plain
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def sentence_piece():
    """As Gemma's: spaces are a character, and what has no token falls apart into bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # The bytes are ordinary tokens: train without them, then put them in.
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    trained = json.loads(tokenizer.to_str())
    merges = trained["model"]["merges"]
    learned = [token for token in trained["model"]["vocab"] if token != "<unk>"]
    trained["model"]["vocab"] = {token: i for i, token in enumerate(special + learned)}
    trained["model"]["merges"] = merges
    trained["added_tokens"] = [
        dict(id=i, content=token, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, token in enumerate(["<eos>", "<bos>", "<unk>"])
    ]
    return Tokenizer.from_str(json.dumps(trained))


STRETCHED = dict(
    rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
MODELS = {
    "gpt_neox": (
        GPTNeoXConfig(
            vocab_size=N_VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, hidden_act="gelu", bos_token_id=0, eos_token_id=0,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5),
        ),
        torch.float16, byte_level("nfc"),
    ),
    "gpt_neox_serial": (
        GPTNeoXConfig(
            vocab_size=N_VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, hidden_act="gelu_new", use_parallel_residual=False, bos_token_id=0,
            eos_token_id=0, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1000.0, partial_rotary_factor=0.25),
        ),
        torch.float16, byte_level("plain"),
    ),
    "gpt2": (
        GPT2Config(
            vocab_size=N_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
        ),
        torch.float32, byte_level("plain"),
    ),
    "llama": (
        # As a chat model: what begins its turns is no beginning of a text.
        LlamaConfig(**{**LLAMA, "bos_token_id": 7, "eos_token_id": [8, 9]}, head_dim=16, rope_parameters=STRETCHED, attention_bias=True, mlp_bias=True),
        torch.bfloat16, byte_level("digits"),
    ),
    "qwen2": (
        Qwen2Config(**LLAMA, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        torch.bfloat16, byte_level("nfc"),
    ),
    "qwen3": (
        Qwen3Config(**LLAMA, head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        torch.bfloat16, byte_level("nfc"),
    ),
    "gemma2": (
        Gemma2Config(
            **{**LLAMA, "bos_token_id": 1}, head_dim=16, query_pre_attn_scalar=20, sliding_window=8, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, rope_parameters=dict(rope_type="default", rope_theta=1000.0),
        ),
        torch.bfloat16, sentence_piece(),
    ),
}


# As the hub's config.json has it.
FULL_SIZE = {
    "pythia-70m": (
        GPTNeoXConfig(
            vocab_size=50304, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8,
            max_position_embeddings=2048, hidden_act="gelu", layer_norm_eps=1e-5, use_parallel_residual=True, bos_token_id=0,
            eos_token_id=0, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25),
        ),
        torch.float16, byte_level("nfc"),
    ),
}


def randomised(config, dtype, seed):
    """Weights so large that every part matters, biases and norms too, and numbers that `dtype` holds exactly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * (1.5 / parameter.shape[-1] ** 0.5))
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype)


def blocks_of(model):
    base = model.base_model
    for name in ["layers", "h"]:
        if hasattr(base, name):
            return getattr(base, name)
    raise SystemExit("no blocks")


def parts_of(block):
    """The last module that has what is added to the residual stream by itself."""
    parts = dict(block.named_children())
    if "post_feedforward_layernorm" in parts:
        return {"attn_out": parts["post_attention_layernorm"], "mlp_out": parts["post_feedforward_layernorm"]}
    attention = next(parts[name] for name in ["attention", "attn", "self_attn"] if name in parts)
    return {"attn_out": attention, "mlp_out": parts["mlp"]}


def watch(model, found):
    for n, block in enumerate(blocks_of(model)):
        parts = parts_of(block)
        at = f"blocks.{n}.hook_"
        block.register_forward_pre_hook(entering(found, at + "resid_pre"), with_kwargs=True)
        block.register_forward_hook(leaving(found, at + "resid_post"))
        for site, part in parts.items():
            part.register_forward_hook(leaving(found, at + site))


def entering(found, name):
    def hook(module, inputs, kwargs):
        found[name] = inputs[0] if inputs else kwargs["hidden_states"]

    return hook


def leaving(found, name):
    def hook(module, inputs, output):
        found[name] = output[0] if isinstance(output, tuple) else output

    return hook


@contextlib.contextmanager
def replaced(model, site):
    """The first block's attention or feed-forward part adds nothing."""

    def hook(module, inputs, output):
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    handle = parts_of(blocks_of(model)[0])[site].register_forward_hook(hook)
    yield
    handle.remove()


def main(out, full_size=None):
    models = MODELS if full_size is None else {full_size: FULL_SIZE[full_size]}
    for seed, (name, (config, dtype, tokenizer)) in enumerate(models.items()):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        model = randomised(config, dtype, seed)
        # One family's weights are in several files.
        model.save_pretrained(folder, max_shard_size="30KB" if name == "qwen3" else "1GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))

        torch.manual_seed(100 + seed)
        tokens = torch.randint(0, tokenizer.get_vocab_size(), (BATCH, CONTEXT))
        exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        found = {}
        watch(exact, found)
        with torch.no_grad():
            found["logits"] = exact(tokens, use_cache=False).logits
            whole = dict(found)
            for site in ["attn_out", "mlp_out"]:
                # Nothing in its place, in the first block: the last token's logits.
                with replaced(exact, site):
                    whole[f"without.blocks.0.hook_{site}"] = exact(tokens, use_cache=False).logits[0, -1]
            found = whole
        found = {key: value.detach().to(torch.float32).contiguous() for key, value in found.items()}
        # As a check on the hooks: the stream is the sum of its parts.
        for n in range(len(blocks_of(exact))):
            at = lambda site: found[f"blocks.{n}.hook_{site}"]
            torch.testing.assert_close(at("resid_pre") + at("attn_out") + at("mlp_out"), at("resid_post"))
        save_file({"tokens": tokens.to(torch.int32), **found}, folder / "expected.safetensors")

        # What it does to places is no part of where tokens stand.
        plain = Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "post_processor": None}))
        plain.encode_special_tokens = True
        rows = []
        for text in TEXTS:
            encoding = plain.encode(text, add_special_tokens=False)
            places = [[len(text[:at].encode()) for at in place] for place in encoding.offsets]
            rows.append(dict(text=text, ids=encoding.ids, places=places))
        (folder / "texts.json").write_text(json.dumps(rows, ensure_ascii=True))
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(name, size, sorted(file.name for file in folder.iterdir()), "max", found["logits"].abs().max().item())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
