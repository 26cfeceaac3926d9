"""Training speed, memory and equal quality against PyTorch, what a step costs by size, and reading Parquet.

    python3 bench/bench.py            everything, into data/bench (make bench)
    python3 bench/bench.py --quick    one small shape, to see that it works

Run it from the repository root. What is measured, and how to read it: bench/README.md.
"""

import argparse
import csv
import dataclasses
import fnmatch
import functools
import itertools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import tables
from memory import TUNED

HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
OUT = pathlib.Path("data/bench")
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release/examples"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"
INSIDE = "HIERSAE_BENCH_INSIDE"   # set once the chosen interpreter runs

SHAPES = [(512, 8192, 4096, 32), (768, 24576, 4096, 32)]   # d_model, d_sae, batch, k
OURS = [f"ours/{arch}" for arch in ("topk", "batchtopk", "matryoshka", "hiersae", "vanilla")]
THEIRS = [
    *(f"dl/{arch}/{precision}{malloc}" for arch in ("topk", "batchtopk") for precision in ("f32", "bf16")
      for malloc in ("", "/tuned")),
    "dl/matryoshka/f32/tuned",
    "dl/vanilla/f32/tuned",
    *(f"saelens/{arch}/{precision}/tuned" for arch in ("topk", "batchtopk") for precision in ("f32", "bf16")),
]
QUALITY = ["ours/topk", "dl/topk/f32/tuned", "ours/batchtopk", "dl/batchtopk/f32/tuned"]
READ_WITH_PYARROW = """
import json, sys, time, pyarrow, pyarrow.dataset, pyarrow.parquet as pq
pyarrow.set_cpu_count(int(sys.argv[1]))
start = time.perf_counter()
table = pq.read_table(sys.argv[2:], columns=["activation"])
print(json.dumps({"rows": table.num_rows, "bytes": table.nbytes, "seconds": time.perf_counter() - start}))
"""


@dataclasses.dataclass(frozen=True)
class Run:
    section: str   # speed, quality, scaling or parquet
    name: str      # library/arch[/precision][/tuned]
    shape: tuple   # d_model, d_sae, batch, k
    steps: int
    warmup: int
    round: int

    def key(self):
        return (self.section, self.name, *map(str, self.shape), str(self.steps), str(self.round))


def stop(message):
    sys.exit(f"bench: {message}")


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--python", help="an interpreter that has bench/requirements.txt; nothing is installed")
    p.add_argument("--no-build", action="store_true", help="take the programs as they are")
    p.add_argument("--harvest", type=pathlib.Path, default=pathlib.Path("data/run/harvest"), help="a harvest's folder")
    p.add_argument("--shapes", nargs="+", metavar="D_MODEL,D_SAE,BATCH,K", help="instead of the two of README.md")
    p.add_argument("--quick", action="store_true", help="one small shape, one round, few steps")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=6, help="measured steps per run")
    p.add_argument("--warmup", type=int, default=2, help="steps before them")
    p.add_argument("--quality-steps", type=int, default=300)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--only", action="append", metavar="NAME",
                   help="only runs of which section/name contains this (or matches it, with *); may be repeated")
    p.add_argument("--resume", action="store_true", help="keep the rows of data/bench/bench.csv, make the missing runs")
    args = p.parse_args()
    try:
        args.shapes = [tuple(int(n) for n in shape.split(",")) for shape in args.shapes or []]
        assert all(len(shape) == 4 and min(shape) > 0 and shape[3] <= shape[1] for shape in args.shapes)
    except (ValueError, AssertionError):
        stop("--shapes takes four whole numbers each: D_MODEL,D_SAE,BATCH,K, K not above D_SAE")
    if min(args.rounds, args.steps, args.quality_steps, args.threads) < 1 or args.warmup < 0:
        stop("--rounds, --steps, --quality-steps and --threads are at least 1, --warmup at least 0")
    return args


def enter_interpreter(args):
    """Goes on in the interpreter asked for, or in the benchmark's own venv, made if need be."""
    if os.environ.get(INSIDE):
        return
    if args.python:
        python = shutil.which(args.python)
        if python is None:
            stop(f"--python {args.python}: no such program")
    else:
        venv = OUT / "venv"
        python, installed = str(venv / "bin/python"), venv / "requirements.txt"
        if not installed.exists() or installed.read_bytes() != REQUIREMENTS.read_bytes():
            make_venv(venv, python)
            shutil.copy(REQUIREMENTS, installed)
    modules = ("torch", "dictionary_learning", "sae_lens", "numpy", "pyarrow")
    find = f"import importlib.util as u; print(*[m for m in {modules} if u.find_spec(m) is None])"
    missing = subprocess.run([python, "-c", find], capture_output=True, text=True)
    if missing.returncode or missing.stdout.strip():
        stop(f"{python} lacks {missing.stdout.strip() or 'Python'}; pip install -r bench/requirements.txt into it")
    sys.stdout.flush()
    os.execve(python, [python, __file__, *sys.argv[1:]], os.environ | {INSIDE: "1"})


def make_venv(venv, python):
    print(f"bench: installing bench/requirements.txt into {venv}", file=sys.stderr)
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        cpu = subprocess.run([*pip, "--retries", "0", "--index-url", TORCH_CPU, torch], capture_output=True)
        if cpu.returncode:
            print("bench: no CPU wheel of torch within reach, taking PyPI's", file=sys.stderr)
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    except (subprocess.CalledProcessError, OSError):
        stop("cannot install bench/requirements.txt; with an interpreter that has it: --python PATH")


def planned(args):
    """Every run, in the order in which they are made: within a shape A B C, A B C, ..."""
    if args.quick:
        shapes, rounds, quality_steps = [(128, 1024, 512, 16)], 1, min(args.quality_steps, 20)
        quality_shape, width, batch = (576, 512, 512, 16), 128, 512
        d_saes, ks, base = (512, 1024), (8, 32), 1024
    else:
        shapes, rounds, quality_steps = SHAPES, args.rounds, args.quality_steps
        quality_shape, width, batch = (576, 4096, 2048, 32), 512, 4096
        d_saes, ks, base = (4096, 8192, 16384, 32768, 65536), (8, 32, 128), 8192
    few = min(args.steps, 5)
    sizes = [(width, d_sae, batch, 32) for d_sae in d_saes] + [(width, base, batch, k) for k in ks]
    sizes = list(dict.fromkeys(sizes))
    runs = [Run("speed", name, shape, args.steps, args.warmup, r)
            for shape, r, name in itertools.product(args.shapes or shapes, range(1, rounds + 1), OURS + THEIRS)]
    runs += [Run("quality", name, quality_shape, quality_steps, 0, 1) for name in QUALITY]
    runs += [Run("scaling", name, shape, few, args.warmup, 1)
             for shape, name in itertools.product(sizes, ("ours/topk", "ours/hiersae"))]
    runs += [Run("parquet", name, (0, 0, 0, 0), 1, 0, r)
             for r, name in itertools.product(range(1, rounds + 1), ("ours/parquet", "pyarrow/parquet"))]
    if args.only:
        wanted = [only if "*" in only else f"*{only}*" for only in args.only]
        runs = [run for run in runs if any(fnmatch.fnmatch(f"{run.section}/{run.name}", only) for only in wanted)]
        if not runs:
            stop(f"no run is called like {' or '.join(args.only)}; see bench/README.md for the names")
    return runs


@functools.cache
def prepare(what, *args):
    made = subprocess.run([sys.executable, str(HERE / "data.py"), what, *map(str, args)], capture_output=True, text=True)
    if made.returncode:
        stop(f"cannot prepare the {what}: {last_line(made.stderr)}")
    return made.stdout.strip()


def last_line(text):
    return text.strip().splitlines()[-1] if text.strip() else "no message"


def command(run, args, parts):
    library, arch, *how = run.name.split("/")
    if run.section == "parquet":
        if library == "ours":
            return [str(BIN / "read_activations"), *parts]
        return [sys.executable, "-c", READ_WITH_PYARROW, str(args.threads), *parts]
    d_model, d_sae, batch, k = run.shape
    options = {
        "activations": prepare("activations", args.harvest / "train", OUT, d_model, batch * (run.steps + run.warmup)),
        "init": prepare("init", OUT, d_sae, d_model),
        "arch": arch, "d-model": d_model, "d-sae": d_sae, "batch": batch, "k": k,
        "steps": run.steps, "warmup": run.warmup, "lr": args.lr, "threads": args.threads,
    }
    if library == "ours":
        program = [str(BIN / "train_steps")]
    else:
        program = [sys.executable, str(HERE / "torch_step.py"), "--library", library, "--precision", how[0]]
    return program + [word for name, value in options.items() for word in (f"--{name}", str(value))]


def measure(run, args, parts):
    """The row of a run: what its process printed, or why it failed."""
    row = {"section": run.section, "round": run.round, "name": run.name, "steps": run.steps, "warmup": run.warmup,
           "threads": args.threads} | dict(zip(("d_model", "d_sae", "batch", "k"), run.shape))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    env |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    env |= TUNED if run.name.endswith(("/tuned", "/parquet")) or run.name.startswith("ours/") else {}
    child = subprocess.run(command(run, args, parts), env=env, capture_output=True, text=True)
    try:
        if child.returncode:
            raise ValueError(f"exit {child.returncode}: {last_line(child.stderr)}")
        return row | json.loads(last_line(child.stdout))
    except ValueError as error:
        return row | {"error": str(error)[:300]}


def write_row(path, row):
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, tables.COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})


def machine(args):
    cpu = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"bench: the load is {load:.1f} already; figures of a busy machine mislead", file=sys.stderr)
    return f"{cpu}, {args.threads} threads; commit {git or 'unknown'}; {time.strftime('%Y-%m-%d')}; load before {load:.1f}"


def main():
    args = arguments()
    if not pathlib.Path("bench/bench.py").exists():
        stop("run it from the repository root")
    parts = sorted(map(str, (args.harvest / "train").glob("*.parquet")))
    if not parts:
        stop(f"no {args.harvest}/train/*.parquet; make harvest, or --harvest PATH")
    runs = planned(args)
    enter_interpreter(args)
    if not args.no_build:
        build = ["cargo", "build", "--release", "--workspace", "--locked"]
        examples = ["--example", "train_steps", "--example", "read_activations"]
        if shutil.which("cargo") is None or subprocess.run(build + examples).returncode:
            stop("cannot build (cargo); with programs that are there: --no-build")
    for program in {"read_activations" if run.section == "parquet" else "train_steps" for run in runs
                    if run.name.startswith("ours/")}:
        if not (BIN / program).exists():
            stop(f"no {BIN / program}; leave out --no-build")

    OUT.mkdir(parents=True, exist_ok=True)
    on = machine(args)
    path = OUT / "bench.csv"
    if path.exists() and not args.resume:
        path.rename(OUT / "bench-before.csv")
    there = {tuple(row[c] for c in tables.KEY) for row in tables.read(path) if not row["error"]}
    if any(run.section == "parquet" for run in runs):   # both readers find the files in the page cache
        for part in parts:
            pathlib.Path(part).read_bytes()
    interrupted = False
    try:
        for i, run in enumerate(runs, 1):
            if run.key() in there:
                continue
            row = measure(run, args, parts)
            write_row(path, row)
            said = row.get("error") or (f"{row['seconds']:.3f} s" if "seconds" in row
                                        else f"{row['tokens_per_s']:,.0f} tokens/s")
            print(f"[{i}/{len(runs)}] {run.section} {run.shape[0]}x{run.shape[1]} {run.name} round {run.round}: {said}",
                  file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
        print("bench: interrupted; --resume goes on", file=sys.stderr)
    rows = tables.read(path)
    text, within = tables.markdown(rows, on)
    (OUT / "bench.md").write_text(text)
    (OUT / "bench.svg").write_text(tables.svg(rows))
    print(text)
    print(f"bench: {path}, {OUT / 'bench.md'}, {OUT / 'bench.svg'}", file=sys.stderr)
    failed = [row for row in rows if row["error"]]
    for row in failed:
        print(f"bench: {row['section']} {row['name']} failed: {row['error']}", file=sys.stderr)
    sys.exit(130 if interrupted else 1 if failed or not within else 0)


if __name__ == "__main__":
    main()
