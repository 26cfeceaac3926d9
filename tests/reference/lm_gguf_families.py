"""Small random Llama, Qwen2 and Qwen3 models as GGUF files, with their activations, and texts with their tokens.

    python lm_gguf_families.py OUT       (torch, transformers 5, tokenizers, gguf, llama-cpp-python; OUT is ../golden/lm/gguf)

Each folder under OUT holds model.gguf, arranged as llama.cpp's converter arranges the family (Llama's queries and keys with
rotary pairs side by side, its stretched frequencies as a tensor of divisors), expected.safetensors as lm_families.py has it,
computed by transformers from the same weights in float64, and texts.json: hard texts with their ids by the tokenizers library
with the family's own pieces. llama.cpp then reads each file: its tokens of the same texts and its logits must agree.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from lm_families import LLAMA, N_VOCAB, STRETCHED, TEXT, TEXTS, blocks_of, randomised, watch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

CONTEXT = 24
ROPE = dict(rope_type="default", rope_theta=1000.0)
# As the families' tokenizer.json have them.
ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
# Architecture, configuration, what ggml calls the pieces, the pieces, whether text is normalised.
FAMILIES = {
    "llama": (
        LlamaConfig(**LLAMA, head_dim=16, rope_parameters=STRETCHED, tie_word_embeddings=False),
        "llama-bpe", WORDS + r"\p{N}{1,3}" + ENDS, False,
    ),
    "qwen2": (Qwen2Config(**LLAMA, tie_word_embeddings=True, rope_parameters=ROPE), "qwen2", WORDS + r"\p{N}" + ENDS, True),
    "qwen3": (
        Qwen3Config(**LLAMA, head_dim=16, rope_parameters=ROPE, tie_word_embeddings=False),
        "qwen2", WORDS + r"\p{N}" + ENDS, True,
    ),
}


def tokenizer_of(pieces, is_normalised, ignores_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    if is_normalised:
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pieces), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def side_by_side(weight, n_heads):
    """Rotary pairs i and i + d_head / 2 become rows 2i and 2i + 1."""
    return weight.reshape(n_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def divisors(config, d_head):
    """Of the frequencies, for contexts beyond the original length."""
    rope = config.rope_parameters
    frequencies = rope["rope_theta"] ** -(np.arange(0, d_head, 2) / d_head)
    waves = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    kept = np.clip((waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path, family, config, weights, tokenizer, pre):
    writer = gguf.GGUFWriter(path, family)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(d_head)
    writer.add_value_length(d_head)
    writer.add_rope_dimension_count(d_head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items()}
    names = sorted(vocabulary, key=vocabulary.get)
    kinds = [gguf.TokenType.CONTROL if name.startswith("<|") else gguf.TokenType.NORMAL for name in names]
    # Rows of the embedding that no token has.
    n_unused = config.vocab_size - len(names)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names + [f"[PAD{i}]" for i in range(n_unused)])
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * n_unused)
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    tensors = {"token_embd": weights["model.embed_tokens.weight"], "output_norm": weights["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["output"] = weights["lm_head.weight"]
    out = {f"{name}.weight": tensor for name, tensor in tensors.items()}
    for n in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            for part in ["weight", "bias"]:
                tensor = weights.get(f"model.layers.{n}.{theirs}.{part}")
                if tensor is not None:
                    if family == "llama" and ours in ("attn_q", "attn_k"):
                        heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                        tensor = side_by_side(tensor, heads)
                    out[f"blk.{n}.{ours}.{part}"] = tensor
    if config.rope_parameters["rope_type"] == "llama3":
        out["rope_freqs.weight"] = divisors(config, d_head)
    for name, tensor in out.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor if tensor.ndim == 2 else tensor.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_by_llama_cpp(path, tokens, logits, rows):
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    for row in rows:
        found = model.tokenize(row["text"].encode(), add_bos=False, special=False)
        # It has no NFC, and tells some of Unicode's newer characters apart otherwise.
        if found != row["ids"]:
            print(f"  llama.cpp reads {row['text'][:40]!r} otherwise")
    model.eval(tokens)
    found = model.scores[: len(tokens)]
    off = np.linalg.norm(found - logits) / np.linalg.norm(logits)
    print(f"  llama.cpp's logits are off by {off:.1e} of their norm")
    if not off <= 5e-3:  # f16 activations
        raise SystemExit("llama.cpp computes something else")


def main(out):
    for seed, (name, (config, pre, pieces, is_normalised)) in enumerate(FAMILIES.items()):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tokenizer = tokenizer_of(pieces, is_normalised, pre == "llama-bpe")
        model = randomised(config, torch.float16, 40 + seed)
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        write_gguf(folder / "model.gguf", name, config, weights, tokenizer, pre)
        torch.manual_seed(140 + seed)
        tokens = torch.randint(0, tokenizer.get_vocab_size(), (1, CONTEXT))
        # Read back, since the cast to f16 has rounded what rotary frequencies are made of.
        with tempfile.TemporaryDirectory() as saved:
            model.save_pretrained(saved)
            exact = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float64, attn_implementation="eager").eval()
        found = {}
        watch(exact, found)
        with torch.no_grad():
            found["logits"] = exact(tokens, use_cache=False).logits
        assert len(blocks_of(exact)) == 2
        found = {key: value.detach().to(torch.float32).contiguous() for key, value in found.items()}
        save_file({"tokens": tokens.to(torch.int32), **found}, folder / "expected.safetensors")
        tokenizer.encode_special_tokens = True
        rows = [dict(text=text, ids=tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS]
        (folder / "texts.json").write_text(json.dumps(rows, ensure_ascii=True))
        print(name, sum(file.stat().st_size for file in folder.iterdir()))
        check_by_llama_cpp(folder / "model.gguf", tokens[0].tolist(), found["logits"][0].numpy(), rows)


main(Path(sys.argv[1]))
