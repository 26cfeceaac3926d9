"""What rounded products change: the same harvest with f32, bf16 and int8 products, row by row.

    python3 bench/products.py                (numpy, pyarrow; `make build` and `make fetch` before)

Prints, for each kind and hook, the squared difference to f32 as a share of the variance, and the mean cosine.
"""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HOOK, ALSO = "blocks.15.hook_resid_post", "blocks.3.hook_mlp_out"
PIPELINE = """source:
  model:
    name: smollm2-135m
    texts: [{{from: wordnet, n_tokens: 10000}}, {{from: state-of-the-union, n_tokens: 10000, max_tokens_per_document: 2000}}]
harvest: {{hook: {hook}, also: [{also}], context_length: 128, heldout_fraction: 0.15, products: {products}, dtype: f32}}
train: {{saes: [{{name: none, arch: topk, n_fine: 64, k: 4}}]}}
"""


def harvested(products):
    run = Path("data/bench/products") / products
    run.mkdir(parents=True, exist_ok=True)
    config = run / "pipeline.yaml"
    config.write_text(PIPELINE.format(hook=HOOK, also=ALSO, products=products))
    for stage in ["fetch", "harvest"]:
        subprocess.run([f"target/release/{stage}", "--config", config, "--run", run, "--quiet"], check=True)
    return {HOOK: rows(run / "harvest"), ALSO: rows(run / "at" / ALSO / "harvest")}


def rows(folder):
    """(document, context, position) → row. Which few rows are left out for their norm may differ."""
    out = {}
    for part in sorted((folder / "train").glob("*.parquet")):
        table = pq.read_table(part)
        pos = table["pos"].to_numpy().astype(int)
        context = np.concatenate([[0], np.cumsum(np.diff(pos) < 0)])
        values = np.asarray(table["activation"].combine_chunks().flatten(), dtype=np.float64).reshape(len(table), -1)
        out.update(zip(zip(table["doc_id"].to_numpy(), context, pos), values))
    return out


def main():
    exact = harvested("f32")
    for products in ["bf16", "int8"]:
        for hook, found in harvested(products).items():
            shared = [key for key in exact[hook] if key in found]
            a = np.array([exact[hook][key] for key in shared])
            b = np.array([found[key] for key in shared])
            off = ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
            cosine = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
            print(f"{products} {hook}: off by {off:.2g} of the variance, mean cosine {cosine:.6f}, {len(shared)} rows")


main()
