"""Loads every SAE of a run with SAELens and compares its encoding of held-out rows with ours.

    pip install sae-lens pyarrow
    make train CONFIG=configs/architectures.yaml        # one SAE of every architecture
    python tests/reference/saelens_roundtrip.py data/run-architectures [N_ROWS]

Ours comes from the example `encode` of the crate `hsae`, built here. An activation counts as different when it differs by more
than 1e-5 of the largest one; entries so close to their threshold that rounding decides (within 1e-5 as well) are counted
apart, and may be one in ten thousand.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import torch
from sae_lens import SAE


# With --workspace, since a package on its own has other features of the same dependencies, and would build them anew.
BUILD = ["cargo", "build", "--release", "--quiet", "--workspace", "--example", "encode"]
ENCODE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"), "release/examples/encode")


def ours(run, name, n_rows, d_sae):
    command = [ENCODE, run, name, str(n_rows)]
    acts = np.zeros((n_rows, d_sae), np.float32)
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        row, latent, value = line.split()
        acts[int(row), int(latent)] = float(value)
    return acts


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", metavar="RUN", help="the run's folder")
    p.add_argument("n_rows", metavar="N_ROWS", type=int, nargs="?", default=512, help="held-out rows; 512 by default")
    args = p.parse_args()
    return compare(args.run, args.n_rows)


def compare(run, n_rows):
    part = sorted(pathlib.Path(run, "harvest/heldout").glob("part-*.parquet"))[0]
    column = pq.read_table(part, columns=["activation"]).column(0).slice(0, n_rows).combine_chunks()
    x = column.values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(n_rows, -1)
    subprocess.run(BUILD, check=True)
    worst = 0.0
    for entry in json.loads(pathlib.Path(run, "train/saes.json").read_text()):
        sae = SAE.load_from_disk(pathlib.Path(run, entry["folder"]))
        with torch.no_grad():
            theirs = sae.encode(torch.from_numpy(x)).numpy()
            x_hat = sae.decode(torch.from_numpy(theirs)).numpy()
        mine = ours(run, entry["name"], n_rows, sae.cfg.d_sae)
        scale = theirs.max()
        both = (theirs > 0) & (mine > 0)
        difference = float(np.abs(theirs - mine)[both].max() / scale)
        one_only = (theirs > 0) != (mine > 0)
        flips = int(one_only.sum())
        ev = 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
        print(
            f"{entry['name']:<18} {sae.cfg.architecture():<16} b_dec from input {str(sae.cfg.apply_b_dec_to_input):<5} "
            f" {int(both.sum()):>6} active in both, largest relative difference {difference:.2e}, {flips} in one only, "
            f"EV {ev:.4f}"
        )
        is_alike = difference <= 1e-5 and flips <= 1e-4 * both.sum() and both.any()
        worst = max(worst, difference if is_alike else 1.0)
    print("worst", worst)
    return 0 if worst <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
