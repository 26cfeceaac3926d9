"""Prepares what the benchmark trains on. A process of its own, so that its memory is not the benchmark's.

    python bench/data.py activations HARVEST OUT_DIR D_MODEL N_ROWS    rows of a harvest, shuffled, scaled, at a width
    python bench/data.py init OUT_DIR D_SAE D_MODEL                    decoder rows to start from

Writes raw little-endian f32 and prints the path. What is there already, from the same inputs, is kept.
"""

import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq

SEED = 20240
WIDENING_NOISE = 0.05   # the norm of the noise of a widened row, relative to the row's
CHUNK = 8192


def kept(path, key):
    """Whether path was written from the same inputs; the key lies beside it."""
    beside = path.with_suffix(".json")
    return path.exists() and beside.exists() and json.loads(beside.read_text()) == key


def write(path, key, array):
    partial = path.with_suffix(".partial")
    array.astype("<f4", copy=False).tofile(partial)
    partial.rename(path)
    path.with_suffix(".json").write_text(json.dumps(key, indent=1))


def read_rows(parts, n_rows):
    """n_rows rows of the parts (all, if there are fewer), shuffled, in the harvest's own precision."""
    table = pq.read_table(parts, columns=["activation"])
    width = table.schema.field("activation").type.list_size
    rows = np.concatenate([c.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
                           for c in table.column("activation").chunks])
    return rows[np.random.default_rng(SEED).permutation(len(rows))[:n_rows]]


def to_width(rows, d_model):
    """Rows at another width: projected on random orthonormal directions, or embedded isometrically with a little noise."""
    n, width = rows.shape
    rng = np.random.default_rng(SEED + d_model)
    basis = None
    if d_model != width:   # orthonormal columns of the taller of the two orientations
        gaussian = rng.standard_normal((max(width, d_model), min(width, d_model)))
        basis, _ = np.linalg.qr(gaussian)
        basis = (basis if d_model < width else basis.T).astype("f4")
    out = np.empty((n, d_model), "f4")
    for at in range(0, n, CHUNK):
        chunk = rows[at:at + CHUNK].astype("f4")
        if basis is not None:
            chunk = chunk @ basis
        if d_model > width:
            scale = WIDENING_NOISE * np.linalg.norm(chunk, axis=1, keepdims=True) / np.sqrt(d_model)
            chunk += scale * rng.standard_normal(chunk.shape, dtype="f4")
        out[at:at + CHUNK] = chunk
    sum_of_norms = sum(float(np.linalg.norm(out[at:at + CHUNK], axis=1).sum()) for at in range(0, n, CHUNK))
    out *= np.float32(np.sqrt(d_model) * n / sum_of_norms)
    return out


def activations(harvest, out_dir, d_model, n_rows):
    parts = sorted(pathlib.Path(harvest).glob("*.parquet"))
    n_there = sum(pq.read_metadata(p).num_rows for p in parts)
    n_rows = min(n_rows, n_there)
    path = pathlib.Path(out_dir) / f"activations-{n_rows}x{d_model}.f32"
    key = {"seed": SEED, "parts": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in parts]}
    if not kept(path, key):
        write(path, key, to_width(read_rows(parts, n_rows), d_model))
    print(path)


def init(out_dir, d_sae, d_model):
    path = pathlib.Path(out_dir) / f"init-{d_sae}x{d_model}.f32"
    key = {"seed": SEED}
    if not kept(path, key):
        rows = np.random.default_rng(SEED).standard_normal((d_sae, d_model), dtype="f4")
        write(path, key, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    print(path)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "activations":
        activations(rest[0], rest[1], int(rest[2]), int(rest[3]))
    else:
        init(rest[0], int(rest[1]), int(rest[2]))
