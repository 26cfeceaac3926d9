"""Tiny SAEs as SAELens and dictionary_learning save them, and what they make of five inputs: what the import has to read.

    pip install sae-lens dictionary-learning
    python tests/reference/import_goldens.py            # rewrites tests/golden/import

Each folder there is one finished SAE, saved by the package itself. `expected.txt` holds, by the package's own loading,
encoding and decoding:

    sae NAME KIND K               K: what the files state, 0 where L0 is to be measured
    x T VALUE…                    the inputs, the same for all SAEs
    act NAME T VALUE…             activations, for decoder rows of length 1: times the length of the row that was saved
    x_hat NAME T VALUE…           the reconstruction

A TopK SAE that compares activations of decoder rows of different lengths keeps those lengths but for a common factor:
dividing each by its own would change which are the largest. Its activations are multiplied by the mean length.
"""

import argparse
import json
import pathlib
import shutil

import dictionary_learning
import dictionary_learning.dictionary as dl
import sae_lens
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary

FOLDER = pathlib.Path(__file__).parent.parent / "golden/import"
D_MODEL, D_SAE, N_ROWS, K = 6, 10, 5, 3


def randomise(parameters, seed):
    """Values of about 1, so that everything matters; rows of W_dec of lengths around 1.5."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters):
        if parameter.dtype.is_floating_point:
            values = 0.6 * torch.randn(parameter.shape, generator=generator)
            if "threshold" in name:
                values = values.abs() + 0.2
            parameter.data = values.to(parameter.dtype)


def inputs():
    return 1.5 * torch.randn((N_ROWS, D_MODEL), generator=torch.Generator().manual_seed(0))


class Golden:
    def __init__(self):
        self.x = inputs()
        self.lines = [row("x", t, x) for t, x in enumerate(self.x)]

    def add(self, name, kind, k, acts, x_hat):
        active = [(acts[t] > 0).sum().item() for t in range(N_ROWS)]
        assert 0 < sum(active) < N_ROWS * D_SAE, (name, active)
        self.lines.append(f"sae {name} {kind} {k}")
        self.lines += [row(f"act {name}", t, z) for t, z in enumerate(acts)]
        self.lines += [row(f"x_hat {name}", t, z) for t, z in enumerate(x_hat)]


def row(what, t, values):
    return f"{what} {t} " + " ".join(f"{value:.9g}" for value in values.tolist())


def sae_lens_saes(golden):
    common = {"d_in": D_MODEL, "d_sae": D_SAE}
    free = common | {"apply_b_dec_to_input": False}
    finished = [
        ("standard", sae_lens.StandardSAEConfig(**common), 0),
        ("standard_f16", sae_lens.StandardSAEConfig(**free, dtype="float16"), 0),
        ("topk", sae_lens.TopKSAEConfig(**common, k=K), K),
        ("topk_rescaled", sae_lens.TopKSAEConfig(**free, k=K, rescale_acts_by_decoder_norm=True), K),
        ("jumprelu", sae_lens.JumpReLUSAEConfig(**free), 0),
        ("jumprelu_bf16", sae_lens.JumpReLUSAEConfig(**common, dtype="bfloat16"), 0),
        ("gated", sae_lens.GatedSAEConfig(**common), 0),
        ("gated_free", sae_lens.GatedSAEConfig(**free), 0),
    ]
    for seed, (name, cfg, k) in enumerate(finished):
        sae = sae_lens.SAE.from_dict(cfg.to_dict())
        randomise(sae.named_parameters(), seed + 1)
        sae.save_model(FOLDER / f"sae_lens_{name}")
        compare_sae_lens(golden, name, k)
    in_training = [
        ("batchtopk", sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig(**common, k=2.0)),
        (
            "matryoshka",
            sae_lens.MatryoshkaBatchTopKTrainingSAE,
            sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**common, k=2.0, matryoshka_widths=[4, 7, D_SAE]),
        ),
    ]
    for seed, (name, sae_class, cfg) in enumerate(in_training):
        sae = sae_class(cfg)
        randomise(sae.named_parameters(), 50 + seed)
        sae.topk_threshold = torch.tensor(1.1, dtype=torch.double)
        sae.save_inference_model(FOLDER / f"sae_lens_{name}")
        compare_sae_lens(golden, name, 2)
    pursuit = sae_lens.MatchingPursuitSAEConfig(
        **common, residual_threshold=0.0, max_iterations=K, stop_on_duplicate_support=False
    )
    sae = sae_lens.SAE.from_dict(pursuit.to_dict())
    randomise(sae.named_parameters(), 60)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.save_model(FOLDER / "sae_lens_matching_pursuit")
    compare_sae_lens(golden, "matching_pursuit", K)


def compare_sae_lens(golden, name, k):
    # In float32 throughout: the weights may be saved in less, our arithmetic is not.
    sae = sae_lens.SAE.load_from_disk(FOLDER / f"sae_lens_{name}", dtype="float32")
    with torch.no_grad():
        acts = sae.encode(golden.x)
        x_hat = sae.decode(acts)
        lengths = sae.W_dec.norm(dim=1)
        if name == "topk":
            lengths = lengths.mean()
        elif name == "topk_rescaled":
            lengths = 1
        pre = (golden.x - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc
        if sae.cfg.architecture() == "jumprelu":
            margin = (pre + sae.b_enc - sae.threshold).abs().min()
            assert margin > 1e-3, (name, margin)
    golden.add(f"sae_lens_{name}", sae.cfg.architecture(), k, acts * lengths, x_hat)


def dictionary_learning_saes(golden):
    saes = [
        ("AutoEncoder", dl.AutoEncoder(D_MODEL, D_SAE), 0),
        ("AutoEncoderNew", dl.AutoEncoderNew(D_MODEL, D_SAE), 0),
        ("GatedAutoEncoder", dl.GatedAutoEncoder(D_MODEL, D_SAE), 0),
        ("JumpReluAutoEncoder", dl.JumpReluAutoEncoder(D_MODEL, D_SAE), 0),
        ("AutoEncoderTopK", AutoEncoderTopK(D_MODEL, D_SAE, K), K),
        ("BatchTopKSAE", BatchTopKSAE(D_MODEL, D_SAE, 2), 2),
        ("MatryoshkaBatchTopKSAE", MatryoshkaBatchTopKSAE(D_MODEL, D_SAE, 2, [4, 3, 3]), 2),
    ]
    for seed, (kind, sae, k) in enumerate(saes):
        for half in [False, True] if kind in ("AutoEncoder", "MatryoshkaBatchTopKSAE") else [False]:
            name = f"dictionary_learning_{kind}" + ("_half" if half else "")
            randomise([*sae.named_parameters(), *sae.named_buffers()], 100 + seed)
            if kind == "MatryoshkaBatchTopKSAE":
                # As its trainer leaves it: transposed in memory.
                sae.W_dec.data = sae.W_dec.data.T.contiguous().T
            state = sae.state_dict()
            if half:
                dtype = torch.float16 if kind == "AutoEncoder" else torch.bfloat16
                # As the package's training ends: a plain dictionary of tensors. Above, an OrderedDict with metadata.
                state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in state.items()}
            folder = FOLDER / name
            folder.mkdir(parents=True)
            torch.save(state, folder / "ae.pt")
            trainer = {"dict_class": kind, "activation_dim": D_MODEL, "dict_size": D_SAE} | ({"k": k} if k else {})
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}, indent=1))
            compare_dictionary_learning(golden, name, k)


def compare_dictionary_learning(golden, name, k):
    sae, config = load_dictionary(str(FOLDER / name), device="cpu")
    sae = sae.float()
    with torch.no_grad():
        acts = sae.encode(golden.x)
        x_hat = sae.decode(acts)
        lengths = sae.W_dec.norm(dim=1) if hasattr(sae, "W_dec") else sae.decoder.weight.norm(dim=0)
        if isinstance(sae, AutoEncoderTopK):
            lengths = lengths.mean()
        if hasattr(sae, "threshold") and not isinstance(sae, AutoEncoderTopK):
            plain = acts.clone()
            sae.threshold += 1e-3
            assert torch.equal(plain, sae.encode(golden.x)), name
            sae.threshold -= 2e-3
            assert torch.equal(plain, sae.encode(golden.x)), name
    golden.add(name, config["trainer"]["dict_class"], k, acts * lengths, x_hat)


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    golden = Golden()
    sae_lens_saes(golden)
    dictionary_learning_saes(golden)
    head = [
        "# made by tests/reference/import_goldens.py, which says what the lines mean",
        f"# torch {torch.__version__}, sae_lens {sae_lens.__version__}, dictionary_learning {dictionary_learning.__version__}",
    ]
    (FOLDER / "expected.txt").write_text("\n".join(head + golden.lines) + "\n")


if __name__ == "__main__":
    main()
