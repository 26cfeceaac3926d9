"""The validation loss of a pretrained model, by transformers, on the contexts that the stage measured it on during training.

    python3 tests/reference/pretrain_transformers.py data/run-shakespeare_char-small data/source/shakespeare/texts

Needs torch, transformers and pyarrow. Loads RUN/pretrain/model with AutoTokenizer and AutoModelForCausalLM, reads the texts as
the stage does (all files by name, each ending with white space), and compares with the lowest loss of RUN/pretrain/curve.parquet.
"""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

N_CONTEXTS, VALIDATION_FRACTION = 512, 0.1


def main(run, texts):
    folder = Path(run, "pretrain/model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = ""
    for file in sorted(Path(texts).glob("*.txt")):
        document = file.read_bytes().decode()
        text += document if document[-1].isspace() else document + "\n"
    n_bytes = len(text.encode())
    n_validation = int(n_bytes * VALIDATION_FRACTION + 0.5)
    validation = text.encode()[n_bytes - n_validation :].decode()
    ids = torch.tensor(tokenizer(validation, add_special_tokens=False)["input_ids"])
    assert len(ids) == n_validation and tokenizer.decode(ids[:1000]) == validation[:1000]
    length = model.config.n_positions
    n_there = (n_validation - 1) // length
    n = min(n_there, N_CONTEXTS)
    starts = [i * n_there // n * length for i in range(n)]
    losses = []
    with torch.inference_mode():
        for some in torch.tensor(starts).split(64):
            rows = torch.stack([ids[i : i + length + 1] for i in some])
            logits = model(rows[:, :-1]).logits
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"))
    found = torch.cat(losses).double().mean().item()
    measured = [x for x in pq.read_table(Path(run, "pretrain/curve.parquet"))["validation_loss"].to_pylist() if x is not None]
    print(f"transformers {found:.6f}, the stage {min(measured):.6f}")
    assert abs(found - min(measured)) <= 1e-5


main(*sys.argv[1:])
