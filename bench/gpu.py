"""Training on a GPU beside SAELens and sparsify, on the same card, from the same weights, on the same batches.

    python3 bench/gpu.py                       our default build of feature cuda, bf16, three rounds
    python3 bench/gpu.py --offline             the same where LLVM cannot be downloaded (offline/cuda.toml)

Run it from the repository root on a machine with an NVIDIA GPU and a harvest (make harvest), by an interpreter that has
bench/gpu-requirements.txt: nothing is installed. Runs alternate, A B C A B C, each a process of its own. What is printed:
bench/README.md, "On a GPU".
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
OUT = pathlib.Path("data/bench")
STEP = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/examples/train_steps"
# Cards multiply at several precisions; SAELens and sparsify run in bf16 autocast.
LIBRARIES = ["saelens", "sparsify"]
AGREEMENT_STEPS = 50
AGREEMENT_SHAPE = (256, 2048, 1024, 16)   # d_model, d_sae, batch, k: quick on a CPU
TOLERANCE = 1e-4
LINES_OF_FAILURE = 20


def stop(message):
    sys.exit(f"gpu: {message}")


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--harvest", type=pathlib.Path, default=pathlib.Path("data/run/harvest"), help="a harvest's folder")
    p.add_argument("--shape", nargs=4, type=int, metavar=("D_MODEL", "D_SAE", "BATCH", "K"),
                   default=[768, 24576, 4096, 32])
    p.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="bf16", help="of our encoder's product")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=100, help="measured steps per run")
    p.add_argument("--warmup", type=int, default=20, help="steps before them")
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--offline", action="store_true", help="build with offline/cuda.toml")
    p.add_argument("--no-build", action="store_true", help="take the program as it is")
    p.add_argument("--child", choices=LIBRARIES, help=argparse.SUPPRESS)
    p.add_argument("--activations", help=argparse.SUPPRESS)
    p.add_argument("--init", help=argparse.SUPPRESS)
    args = p.parse_args()
    if min(*args.shape, args.rounds, args.steps) < 1 or args.warmup < 0:
        stop("--shape, --rounds and --steps are at least 1, --warmup at least 0")
    return args


# In a child: one library's training.

def saelens(torch, args, w_dec, mean):
    """SAELens' SAETrainer.step in bf16 autocast."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d_model, d_sae, batch, k = args.shape
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_model, d_sae=d_sae, k=k, dtype="float32", device="cuda",
                                                apply_b_dec_to_input=True, normalize_activations="none"))
    with torch.no_grad():
        sae.W_dec.copy_(w_dec), sae.W_enc.copy_(w_dec.T), sae.b_enc.zero_(), sae.b_dec.copy_(mean)
    config = SAETrainerConfig(total_training_samples=10**9 * batch, train_batch_size_samples=batch, lr=args.lr,
                              lr_end=args.lr, device="cuda", autocast=True)
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    def step(x):
        trainer.maybe_reset_sparsity()
        residual = x - trainer.step(x).sae_out.detach()
        trainer.n_training_steps += 1
        return residual

    return step


def sparsify(torch, args, w_dec, mean):
    """The steps of sparsify's Trainer on one hook point, with its Adam; its loss is FVU."""
    from sparsify import SparseCoder, SparseCoderConfig

    d_model, d_sae, _, k = args.shape
    sae = SparseCoder(d_model, SparseCoderConfig(num_latents=d_sae, k=k), device="cuda", dtype=torch.float32)
    with torch.no_grad():
        sae.W_dec.copy_(w_dec), sae.encoder.weight.copy_(w_dec), sae.b_dec.copy_(mean)
    optimizer = torch.optim.Adam(sae.parameters(), lr=args.lr)
    did_fire = torch.zeros(d_sae, dtype=torch.bool, device="cuda")

    def step(x):
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())   # as its trainer does for its log
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        did_fire.zero_()
        return x - out.sae_out.detach()

    return step


def peak_tflops(torch, dtype):
    """The best of a few products of 8192² matrices on this card."""
    n = 8192
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b = (torch.rand(n, n, device="cuda", dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * n**3 / best / 1e12


def child(args):
    os.environ.setdefault("WANDB_MODE", "disabled")
    import numpy as np
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU")
    d_model, d_sae, batch, _ = args.shape
    rows = np.memmap(args.activations, "<f4", "r").reshape(-1, d_model)
    n_batches = len(rows) // batch
    mean = torch.from_numpy(rows.mean(axis=0, dtype="f8").astype("f4"))
    w_dec = torch.from_numpy(np.fromfile(args.init, "<f4").reshape(d_sae, d_model))
    step = {"saelens": saelens, "sparsify": sparsify}[args.child](torch, args, w_dec, mean)
    seconds, fvu = [], []
    for i in range(args.warmup + args.steps):
        at = i % n_batches * batch
        x = torch.from_numpy(np.array(rows[at:at + batch]))
        torch.cuda.synchronize()
        start = time.perf_counter()
        x = x.to("cuda")              # ours takes rows from the host too
        residual = step(x)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        fvu.append((residual.double().pow(2).sum() / (x - x.mean(0)).double().pow(2).sum()).item())
    step_ms = [1e3 * s for s in seconds[args.warmup:]]
    path = torch.cuda.get_device_name()
    if args.child == "sparsify":
        from sparsify.utils import decoder_impl   # without Triton, or told so, it is another one
        path += f", {decoder_impl.__name__}"
    print(json.dumps({
        "tokens_per_s": 1e3 * batch / statistics.median(step_ms),
        "step_ms": step_ms,
        "fvu": fvu,
        "path": path,
        "peak_tflops": {dtype: peak_tflops(torch, dtype) for dtype in ("f32", "tf32", "bf16")},
    }))


# In the parent.

def run(command):
    """The JSON line that a process prints last."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()[-LINES_OF_FAILURE:] or ["no message"]
        stop("\n".join([f"{' '.join(map(str, command[:4]))} … failed ({done.returncode}):", *said]))
    return json.loads(lines[-1])


def prepare(what, *args):
    made = subprocess.run([sys.executable, str(HERE / "data.py"), what, *map(str, args)], capture_output=True, text=True)
    if made.returncode:
        stop(f"cannot prepare the {what}: {(made.stderr.strip() or 'no message').splitlines()[-1]}")
    return made.stdout.strip()


def ours(args, shape, steps, warmup, device, precision):
    d_model, d_sae, batch, k = shape
    n_rows = batch * (steps + warmup)
    options = {
        "activations": prepare("activations", args.harvest / "train", OUT, d_model, n_rows),
        "init": prepare("init", OUT, d_sae, d_model),
        "arch": "topk", "d-model": d_model, "d-sae": d_sae, "batch": batch, "k": k, "steps": steps, "warmup": warmup,
        "lr": args.lr, "threads": len(os.sched_getaffinity(0)), "device": device, "gpu-precision": precision,
    }
    return run([STEP, *(word for name, value in options.items() for word in (f"--{name}", value))])


def theirs(args, library):
    d_model, d_sae, batch, _ = args.shape
    n_rows = batch * (args.steps + args.warmup)
    activations = prepare("activations", args.harvest / "train", OUT, d_model, n_rows)
    return run([sys.executable, __file__, "--child", library, "--activations", activations,
                "--init", prepare("init", OUT, d_sae, d_model), "--shape", *args.shape,
                "--steps", args.steps, "--warmup", args.warmup, "--lr", args.lr])


def agreement(args):
    """Losses of the same training on the CPU and on the GPU, in f32."""
    cpu, gpu = (ours(args, AGREEMENT_SHAPE, AGREEMENT_STEPS, 0, device, "f32")["loss"] for device in ("cpu", "cuda"))
    worst = max(abs(a - b) / abs(a) for a, b in zip(cpu, gpu, strict=True))
    verdict = "within" if worst <= TOLERANCE else "NOT within"
    print(f"CPU and GPU: {len(cpu)} losses differ by at most {worst:.1e}, {verdict} {TOLERANCE:.0e}")
    return worst <= TOLERANCE


def build(args):
    config, locked = (["--config", "offline/cuda.toml"], []) if args.offline else ([], ["--locked"])
    what = ["-p", "hsae", "--features", "cuda", "--example", "train_steps"]
    command = ["cargo", *config, "build", "--release", *what, *locked]
    try:
        if subprocess.run(command).returncode:
            stop("cannot build; where LLVM cannot be downloaded, --offline")
    except FileNotFoundError:
        stop("no cargo; with a program that is there: --no-build")


def main():
    args = arguments()
    if args.child:
        return child(args)
    if not pathlib.Path("bench/gpu.py").exists():
        stop("run it from the repository root")
    if not list((args.harvest / "train").glob("*.parquet")):
        stop(f"no {args.harvest}/train/*.parquet; make harvest, or --harvest PATH")
    if not args.no_build:
        build(args)
    OUT.mkdir(parents=True, exist_ok=True)

    d_model, d_sae, batch, k = args.shape
    rates = {name: [] for name in ["ours", *LIBRARIES]}
    peaks, fvu, paths = {}, {}, {}
    for _ in range(args.rounds):
        for name in rates:
            if name == "ours":
                found = ours(args, args.shape, args.steps, args.warmup, "cuda", args.precision)
            else:
                found = theirs(args, name)
                peaks = found["peak_tflops"]
            rates[name].append(found["tokens_per_s"])
            fvu[name], paths[name] = found["fvu"][-1], found["path"]
            print(f"{name}: {found['tokens_per_s']:,.0f} tokens/s on {found['path']}", file=sys.stderr)

    ours_rate = statistics.median(rates["ours"])
    print(f"d_model {d_model}, d_sae {d_sae}, batch {batch}, k {k}, our product in {args.precision}")
    print(f"{'':10} {'tokens/s':>12} {'spread':>8} {'ours is x':>10} {'FVU, last step':>15}")
    for name, all_rates in rates.items():
        rate = statistics.median(all_rates)
        spread = (max(all_rates) - min(all_rates)) / 2 / rate
        print(f"{name:10} {rate:12,.0f} {spread:8.1%} {ours_rate / rate:10.2f} {fvu[name]:15.4f}   {paths[name]}")
    # Per token: the encoder's product; and five products over active latents (exact activations, decode, what flows back,
    # two of gradients), each k x d_model.
    encoder, rest = 2 * d_model * d_sae, 5 * 2 * k * d_model
    peak = peaks[args.precision]
    for what, flops in (("encoder's product", encoder), ("whole step", encoder + rest)):
        share = ours_rate * flops / 1e12 / peak
        print(f"{what}: {share:.1%} of {peak:.0f} TFLOP/s, the card's best {args.precision} product")
    sys.exit(0 if agreement(args) else 1)


if __name__ == "__main__":
    main()
