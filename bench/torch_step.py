"""Trains one SAE for a few steps with a PyTorch library, and prints one JSON line of what it cost.

    python bench/torch_step.py --library dl|saelens --arch topk --precision f32 --activations F --init F ...

The libraries' own trainers make the steps; nothing of theirs is replaced. What is set from outside: the weights, the
learning rate (constant), and the batches. The time of a step is the call of the trainer and nothing else: the batch is
in memory before, and FVU is computed afterwards. The keys of the JSON line are listed in bench/README.md.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import time

from peak import peak_gflops

MATRYOSHKA_FRACTIONS = [1 / 8, 7 / 8]   # of the latents, as train_steps has them
L1_PENALTY = 0.1                        # StandardTrainer's default, held constant


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--library", choices=["dl", "saelens"], required=True)
    p.add_argument("--arch", choices=["topk", "batchtopk", "matryoshka", "vanilla"], required=True)
    p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    p.add_argument("--activations", required=True, help="raw f32 [n, d_model]")
    p.add_argument("--init", required=True, help="raw f32 w_dec [d_sae, d_model], unit rows")
    for name in ("d-model", "d-sae", "batch", "k", "steps", "threads"):
        p.add_argument(f"--{name}", type=int, required=True)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--lr", type=float, required=True)
    return p.parse_args()


def memory_mb(field):
    """VmHWM or VmRSS, in MiB. Not getrusage: there a child starts with its parent's peak."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")


class Parts:
    """Time spent in some of the calls within a step; the rest is the backward pass and what the trainer does besides."""

    def __init__(self):
        self.now, self.steps = {}, []

    def time(self, owner, method, part):
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args, **kwargs):
            start = time.perf_counter()
            out = inner(*args, **kwargs)
            self.now[part] = self.now.get(part, 0.0) + time.perf_counter() - start
            return out

        setattr(owner, method, timed)

    def end_step(self, seconds):
        self.steps.append(self.now | {"backward and rest": seconds - sum(self.now.values())})
        self.now = {}

    def medians_ms(self, warmup):
        measured = self.steps[warmup:]
        return {part: round(1e3 * statistics.median(s[part] for s in measured), 3) for part in measured[0]}


def dictionary_learning(args, w_dec, mean, parts):
    """Returns step(i, x) -> residual and features(x), both of dictionary_learning's trainer for the architecture."""
    import torch
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = dict(steps=10**9, activation_dim=args.d_model, dict_size=args.d_sae, layer=0, lm_name="bench", lr=args.lr,
                  warmup_steps=0, seed=0, device="cpu")
    if args.arch == "topk":
        trainer = TopKTrainer(k=args.k, **common)
    elif args.arch == "batchtopk":
        trainer = BatchTopKTrainer(k=args.k, **common)
    elif args.arch == "matryoshka":
        trainer = MatryoshkaBatchTopKTrainer(k=args.k, group_fractions=MATRYOSHKA_FRACTIONS, **common)
    else:
        trainer = StandardTrainer(l1_penalty=L1_PENALTY, sparsity_warmup_steps=None, **common)

    ae, seen = trainer.ae, {}
    with torch.no_grad():   # in place, so that each tensor keeps the layout the library gave it
        if args.arch == "matryoshka":
            ae.W_dec.copy_(w_dec), ae.W_enc.copy_(w_dec.T), ae.b_enc.zero_()
        else:
            ae.decoder.weight.copy_(w_dec.T), ae.encoder.weight.copy_(w_dec), ae.encoder.bias.zero_()
        (ae.bias if args.arch == "vanilla" else ae.b_dec).copy_(mean)

    # The residual of the step, for FVU: StandardTrainer calls the SAE, the others hand it to their auxiliary loss.
    if args.arch == "vanilla":
        ae.register_forward_hook(lambda _, inputs, out: seen.update(residual=(inputs[0] - out[0]).detach()))
        features = ae.encode
    else:
        auxiliary = trainer.get_auxiliary_loss

        def get_auxiliary_loss(residual, acts):
            seen["residual"] = residual
            return auxiliary(residual, acts)

        trainer.get_auxiliary_loss = get_auxiliary_loss
        features = functools.partial(ae.encode, use_threshold=False)

    parts.time(trainer, "loss", "forward")
    parts.time(trainer.optimizer, "step", "optimizer")
    autocast = torch.autocast("cpu", torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()

    def step(i, x):
        with autocast:
            trainer.update(i + 1, x)   # at step 0 it would put the geometric median in place of the given b_dec
        return lambda: seen.pop("residual")

    return step, features


def saelens(args, w_dec, mean, parts):
    """The same of SAELens: its SAETrainer.step, called as SAETrainer.fit does."""
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    classes = {"topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
               "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)}
    if args.arch not in classes:
        sys.exit(f"torch_step: no {args.arch} for SAELens here")
    sae_class, config_class = classes[args.arch]
    sae = sae_class(config_class(d_in=args.d_model, d_sae=args.d_sae, k=args.k, dtype="float32", device="cpu",
                                 apply_b_dec_to_input=True, normalize_activations="none"))
    with torch.no_grad():
        sae.W_dec.copy_(w_dec), sae.W_enc.copy_(w_dec.T), sae.b_enc.zero_(), sae.b_dec.copy_(mean)
    config = SAETrainerConfig(total_training_samples=10**9 * args.batch, train_batch_size_samples=args.batch, lr=args.lr,
                              lr_end=args.lr, device="cpu", autocast=args.precision == "bf16")
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
    parts.time(sae, "training_forward_pass", "forward")
    parts.time(trainer.optimizer, "step", "optimizer")

    def step(i, x):
        trainer.maybe_reset_sparsity()
        out = trainer.step(x).sae_out.detach()
        trainer.n_training_steps += 1
        return lambda: x - out

    return step, sae.encode


def main():
    args = arguments()
    os.environ.setdefault("WANDB_MODE", "disabled")
    import numpy as np
    import torch

    torch.set_num_threads(args.threads)
    n_rows = os.path.getsize(args.activations) // (4 * args.d_model)
    n_batches = n_rows // args.batch
    if n_batches == 0:
        sys.exit(f"torch_step: {args.activations} has {n_rows} rows, fewer than a batch of {args.batch}")

    def batch(i):
        offset = i % n_batches * args.batch * args.d_model
        rows = np.fromfile(args.activations, "<f4", args.batch * args.d_model, offset=4 * offset)
        return torch.from_numpy(rows.reshape(args.batch, args.d_model))

    rows = np.memmap(args.activations, "<f4", "r", shape=(n_rows, args.d_model))
    mean = torch.from_numpy(rows.mean(axis=0, dtype="f8").astype("f4"))
    del rows
    w_dec = torch.from_numpy(np.fromfile(args.init, "<f4").reshape(args.d_sae, args.d_model))

    parts, seconds, fvu = Parts(), [], []
    step, features = {"dl": dictionary_learning, "saelens": saelens}[args.library](args, w_dec, mean, parts)
    del w_dec
    weights_mb = 2 * 4 * args.d_sae * args.d_model / 2**20
    start_rss = memory_mb("VmRSS") - weights_mb   # what the interpreter and the imports take
    for i in range(args.warmup + args.steps):
        x = batch(i)
        start = time.perf_counter()
        residual = step(i, x)
        seconds.append(time.perf_counter() - start)
        parts.end_step(seconds[-1])
        squared = residual().double().pow(2).sum()
        fvu.append((squared / (x - x.mean(dim=0)).double().pow(2).sum()).item())
        del residual
    peak_rss = memory_mb("VmHWM")
    with torch.no_grad():
        l0 = (features(x) > 0).sum().item() / args.batch

    measured = seconds[args.warmup:]
    print(json.dumps({
        "arch": args.arch,
        "tokens_per_s": round(args.batch / statistics.median(measured), 1),
        "step_ms": [round(1e3 * s, 3) for s in measured],
        "parts_ms": parts.medians_ms(args.warmup),
        "fvu": fvu,
        "l0": l0,
        "peak_rss_mb": round(peak_rss, 1),
        "start_rss_mb": round(start_rss, 1),
        "peak_gflops": round(peak_gflops(torch), 1),
        "path": "torch-" + args.precision,
    }))


if __name__ == "__main__":
    main()
