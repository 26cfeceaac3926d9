"""Forward passes to a hook: ours at each kind of products, transformers in f32, and llama.cpp on the same GGUF file, in turns.

    python3 bench/forward.py --model data/source/smollm2-135m/MODEL.gguf --contexts data/run/harvest/contexts.parquet

Needs torch, transformers, gguf, pyarrow, and llama-cpp-python where it is to be measured too (bench/forward-requirements.txt), and
`cargo build --release --workspace --examples` before. All take the same contexts of equal length; transformers computes the
blocks up to the hook and no more; llama.cpp has no way to stop, so that it is compared at the last block, where we compute all of
them as well. Malloc is tuned for all (memory.py). Speeds are the median of the rounds, ratios are of rounds side by side. f32
peak: torch's product of large matrices.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from memory import start_tuned

start_tuned()  # before anything is loaded

import numpy as np
import pyarrow.parquet as pq
import torch
from peak import peak_gflops
from transformers import AutoModelForCausalLM


def contexts_of(path, n, length):
    """Contexts of exactly this length, end to end of what was harvested, each behind token 0."""
    ids = [id for row in pq.read_table(path, columns=["token_ids"])["token_ids"].to_pylist() for id in row]
    rows = np.array(ids[: n * (length - 1)], dtype=np.uint32).reshape(n, length - 1)
    return np.concatenate([np.zeros((n, 1), dtype=np.uint32), rows], axis=1)


PRODUCTS = ["f32", "bf16", "int8"]


class Ours:
    def __init__(self, model, block, tokens, products):
        file = tempfile.NamedTemporaryFile(suffix=".tokens", delete=False)
        file.write(tokens.astype("<u4").tobytes())
        file.close()
        hook = f"blocks.{block}.hook_resid_post"
        command = ["target/release/examples/forward", model, hook, str(tokens.shape[1]), file.name, products]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, self.mean_square = map(float, self.process.stdout.readline().split())
        return seconds


class Transformers:
    def __init__(self, model, block, tokens):
        model = Path(model)
        self.model = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
        self.base = self.model.model.eval()
        self.base.layers = self.base.layers[: block + 1]
        self.base.norm = torch.nn.Identity()
        self.batches = torch.from_numpy(tokens.astype(np.int64)).split(32)

    @torch.inference_mode()
    def run(self):
        start = time.perf_counter()
        sums = [self.base(batch, use_cache=False).last_hidden_state.square().mean() for batch in self.batches]
        seconds = time.perf_counter() - start
        self.mean_square = float(torch.stack(sums).mean())
        return seconds


class LlamaCpp:
    def __init__(self, model, tokens, threads):
        from llama_cpp import Llama

        self.model = Llama(
            model, n_ctx=tokens.shape[1], n_batch=tokens.shape[1], n_ubatch=tokens.shape[1], n_threads=threads,
            n_threads_batch=threads, verbose=False,
        )
        self.rows = tokens.tolist()

    def run(self):
        start = time.perf_counter()
        for row in self.rows:
            self.model.reset()
            self.model.eval(row)
        return time.perf_counter() - start


def flops_per_token(config, n_blocks, length):
    d_head = config.head_dim or config.hidden_size // config.num_attention_heads
    heads, keys = config.num_attention_heads * d_head, config.num_key_value_heads * d_head
    attention = config.hidden_size * (2 * heads + 2 * keys) + heads * (length + 1)
    return 2 * n_blocks * (attention + 3 * config.hidden_size * config.intermediate_size)


def turns(subjects, rounds):
    for subject in subjects.values():
        subject.run()
    times = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            times[name].append(subject.run())
    return times


def ratios(times, other):
    """How many times as fast as another ours are, round by round."""
    out = {}
    for products in PRODUCTS:
        of_rounds = [theirs / ours for ours, theirs in zip(times[products], times[other])]
        median, least = round(statistics.median(of_rounds), 2), round(min(of_rounds), 2)
        out[f"{products}_over_{other}"] = {"median": median, "min": least}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--contexts", required=True)
    parser.add_argument("--block", type=int, default=15)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--n", type=int, default=64, help="contexts in a pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-llama-cpp", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    tokens = contexts_of(args.contexts, args.n, args.length)

    theirs = Transformers(args.model, args.block, tokens)
    config, n_layers = theirs.model.config, theirs.model.config.num_hidden_layers
    peak = peak_gflops(torch)
    out = {"threads": args.threads, "peak_gflops": round(peak)}
    ours = {products: Ours(args.model, args.block, tokens, products) for products in PRODUCTS}
    times = turns({**ours, "transformers": theirs}, args.rounds)
    if not abs(ours["f32"].mean_square / theirs.mean_square - 1) <= 1e-4:
        raise SystemExit(f"they do not compute the same: {ours['f32'].mean_square} and {theirs.mean_square}")
    flops = flops_per_token(config, args.block + 1, args.length)
    speed = {name: tokens.size / statistics.median(seconds) for name, seconds in times.items()}
    out["to the hook"] = {
        **{f"{name}_tokens_per_s": round(value) for name, value in speed.items()},
        **{f"{name}_share_of_f32_peak": round(value * flops / peak / 1e9, 3) for name, value in speed.items()},
        **ratios(times, "transformers"),
    }
    if not args.no_llama_cpp:
        whole = {products: Ours(args.model, n_layers - 1, tokens, products) for products in PRODUCTS}
        times = turns({**whole, "llama_cpp": LlamaCpp(args.model, tokens, args.threads)}, args.rounds)
        out["all blocks"] = {
            **{f"{name}_tokens_per_s": round(tokens.size / statistics.median(t)) for name, t in times.items()},
            **ratios(times, "llama_cpp"),
        }
    print(json.dumps(out, indent=1))


main()
