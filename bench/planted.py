"""Trains SAELens's own SAEs on the rows of a planted run and scores both by SAELens's own evaluators, beside ours.

    pip install sae-lens pyarrow polars
    make recover CONFIG=configs/runs/saelens.yaml RUN=data/runs/saelens
    python bench/planted.py data/runs/saelens [--only batchtopk]

The run has to write its training rows (`source.synthetic.n_train`). SAELens sees the same rows in the same number, in an order
of its own, with the same batch size, learning rate and decay; of an L1 penalty, the weight that ours ended with, in the
units of its loss. Every line gives F1, precision, recall, MCC, distinct features over latents (the published uniqueness),
explained variance and L0, on the held-out rows.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TQDM_DISABLE", "1")  # before anything reads it: a table is wanted, no progress bars

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.synthetic import evals
from sae_lens.training.sae_trainer import SAETrainer

METRICS = ["f1", "precision", "recall", "mcc", "distinct_features", "ev", "l0"]


def rows(folder):
    """[n, d_model] of all parts, as stored."""
    parts = [pq.read_table(part, columns=["activation"]) for part in sorted(folder.glob("part-*.parquet"))]
    values = [part["activation"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for part in parts]
    d_model = parts[0].schema.field("activation").type.list_size
    return np.concatenate(values).reshape(-1, d_model)


def truth(run):
    """Directions [n_features, d_model], and which features are on in each held-out row [n, n_features]."""
    features = pq.read_table(run / "harvest/truth.parquet", columns=["direction"])["direction"]
    directions = torch.tensor(np.stack(features.to_numpy()))
    firing = pq.read_table(run / "harvest/firing.parquet", columns=["features"])["features"].to_pylist()
    return directions, firing


def shuffled(train, batch_size, seed):
    """Batches without end, an order of its own each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(train))
        for at in range(0, len(order) - batch_size + 1, batch_size):
            yield torch.from_numpy(train[order[at : at + batch_size]].astype(np.float32))


def config_of(sae, run, d_in):
    if "arch" not in sae:
        raise SystemExit(f"{sae['name']}: imported, so that it is not known how it was trained")
    d_sae = sae["n_coarse"] + sae["n_fine"]
    if sae["arch"] == "batchtopk":
        return BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=sae["k"])
    if sae["arch"] == "matryoshka":
        prefixes = sae["prefixes"] or {}
        if prefixes.get("n_random") != 0 or not prefixes["fixed"]:
            raise SystemExit(f"{sae['name']}: SAELens knows fixed prefixes alone; write prefixes: {{fixed: […], n_random: 0}}")
        widths = prefixes["fixed"] + [d_sae]
        return MatryoshkaBatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=sae["k"], matryoshka_widths=widths)
    if sae["arch"] == "vanilla":
        # ‖s·x − s·x̂‖² + λ Σ s·z, divided by s².
        scale = json.loads((run / "harvest/stats.json").read_text())["scale"]
        weight = pl.read_parquet(run / "train" / sae["name"] / "curve.parquet")["l1_coefficient"][-1]
        return StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=weight / scale)
    raise SystemExit(f"{sae['name']}: no counterpart of arch {sae['arch']} here")


def train_in_sae_lens(config, train, settings, seed):
    torch.manual_seed(seed)
    sae = get_sae_training_class(config.architecture())[0](config)
    n_steps = settings["n_tokens"] // settings["batch_size"]
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=n_steps * settings["batch_size"],
            device="cpu",
            autocast=False,
            lr=settings["lr"],
            lr_end=0.0,
            lr_scheduler_name="constant",
            lr_warm_up_steps=int(settings["lr_warmup"] * n_steps),
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=int(settings["lr_decay"] * n_steps),
            n_restart_cycles=1,
            train_batch_size_samples=settings["batch_size"],
            dead_feature_window=max(1, 150_000 // settings["batch_size"]),
            feature_sampling_window=10**9,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=shuffled(train, settings["batch_size"], seed),
    )
    return trainer.fit()


@torch.no_grad()
def score(sae, heldout, directions, firing):
    sae.eval()
    classes = evals.ClassificationMetricsCalculator(sae.W_dec, directions)
    l0, variance = evals.L0Calculator(), evals.ExplainedVarianceCalculator()
    for at in range(0, len(heldout), 2048):
        x = torch.from_numpy(heldout[at : at + 2048].astype(np.float32))
        on = torch.zeros(len(x), len(directions))
        for i, features in enumerate(firing[at : at + len(x)]):
            on[i, features] = 1.0
        acts = sae.encode(x)
        classes.add_batch(acts, on)
        l0.add_batch(acts)
        variance.add_batch(sae.decode(acts), x)
    found = classes.compute()
    mcc = evals.mean_correlation_coefficient(sae.W_dec, directions)
    distinct = evals.feature_uniqueness(sae.W_dec, directions)
    return [found.f1_score, found.precision, found.recall, mcc, distinct, variance.compute(), l0.compute()]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", type=pathlib.Path)
    p.add_argument("--only", help="one SAE of the run")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    recovered = pl.read_parquet(args.run / "recover/recovery.parquet")
    ours = recovered.filter(view="flat", threshold="native", level="all")
    train, heldout = rows(args.run / "harvest/train"), rows(args.run / "harvest/heldout")
    directions, firing = truth(args.run)
    print(f"{len(train)} training rows, {len(heldout)} held-out ones")
    print(f"{'':32s}" + "".join(f"{metric:>19s}" for metric in METRICS))
    for listed in json.loads((args.run / "train/saes.json").read_text()):
        if args.only not in (None, listed["name"]):
            continue
        # How it was trained. Keys that stand for nothing of their own are null.
        trained_as = json.loads((args.run / listed["folder"] / "manifest.json").read_text())["key"]["config"]
        sae, settings = trained_as["sae"], dict(trained_as.get("train", {}))
        settings["lr"] = sae.get("lr") or settings.get("lr")
        of_ours = dict(ours.filter(sae=sae["name"]).select("metric", "value").iter_rows())
        print(f"{sae['name'] + ', ours':32s}" + "".join(f"{of_ours[metric]:19.4f}" for metric in METRICS), flush=True)
        trained = train_in_sae_lens(config_of(sae, args.run, train.shape[1]), train, settings, args.seed)
        values = score(trained, heldout, directions, firing)
        print(f"{sae['name'] + ', SAELens':32s}" + "".join(f"{value:19.4f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
