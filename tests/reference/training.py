"""Golden training curves: every SAE recipe for 50 steps from the same weights on the same data.

    pip install dictionary-learning sae-lens
    python tests/reference/training.py OUT_DIR [RECIPE…]      writes OUT_DIR/RECIPE.txt
    python tests/reference/training.py --check [RECIPE…]      how far rounding alone can move each curve
    python tests/reference/training.py --help

The committed goldens are in tests/golden/training. Recipes that have a published trainer are trained by it: its own
`update` on its own loss. The rest are written out below, plainly.

Contents
    data        splitmix64, batches, first weights: reproducible anywhere, no files
    curves      what is recorded, and how
    package     dictionary_learning: vanilla, vanilla_decoder_norm, gated, topk, topk_dead, batchtopk, batchtopk_dead,
                matryoshka, matryoshka_dead, panneal
    saelens     SAELens: jumprelu_step, jumprelu_quadratic, jumprelu_tanh, jumprelu_tanh_dead, matching_pursuit
    tree        Tree SAE (arXiv 2605.07922): tree, tree_plain
    hiersae     ours: hiersae, hiersae_two_levels, hiersae_edges

A golden is text: `#` lines say what the recipe is, then `step loss part…` as its `# columns:` line names them, all
taken before the step's update, then `final NAME value`: sums of squares of the trained parameters, and the last step's
L0. data.txt holds a few numbers of the data and the first weights, to find a difference there first.
"""

import argparse
import copy
import math
import pathlib
import warnings
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import torch

warnings.filterwarnings("ignore")

from dictionary_learning.trainers import batch_top_k, gdm, matryoshka_batch_top_k  # noqa: E402
from dictionary_learning.trainers import p_anneal, standard, top_k  # noqa: E402
from sae_lens.saes import jumprelu_sae, matching_pursuit_sae  # noqa: E402
from sae_lens.saes.sae import TrainStepInput  # noqa: E402

D_MODEL, D_SAE, N_COARSE, N_FEATURES, BATCH, N_STEPS = 24, 64, 16, 96, 64, 50
LR, K, DEAD_AFTER = 1e-3, 6, 256  # DEAD_AFTER in tokens

# ---------------------------------------------------------------------------------------------------------------- data


def uniform(stream, i):
    """u(stream, i) in [0, 1): the 24 top bits of splitmix64 at stream·2^40 + i. `i` is an array of any shape."""
    z = (np.uint64(stream) * np.uint64(2**40) + np.asarray(i, dtype=np.uint64) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**24


def unit_rows_of(stream, n_rows):
    """[n_rows, D_MODEL] in float64: 2u − 1, each row divided by its length, squares added in index order."""
    rows = 2.0 * uniform(stream, np.arange(n_rows * D_MODEL).reshape(n_rows, D_MODEL)) - 1.0
    square = np.zeros(n_rows)
    for c in range(D_MODEL):
        square += rows[:, c] * rows[:, c]
    return rows / np.sqrt(square)[:, None]


def weakened(w, rows):
    """Encoder rows of an eighth: they are positive about as often, and hardly ever among the largest."""
    w = w.clone()
    w[rows] *= 0.125
    return w


def make_world(noise=0.0):
    """Batches [N_STEPS, BATCH, D_MODEL] and first weights [D_SAE, D_MODEL]. `noise` disturbs the weights, for
    --check.
    """
    directions = unit_rows_of(1, N_FEATURES)
    at = np.arange(N_STEPS * BATCH)[:, None] * 64
    x = np.zeros((N_STEPS * BATCH, D_MODEL))
    for m in range(4):
        feature = np.floor(N_FEATURES * uniform(2, at[:, 0] + 2 * m)).astype(int)
        coef = 0.5 + 1.5 * uniform(2, at[:, 0] + 2 * m + 1)
        x += coef[:, None] * directions[feature]
    x = 2.0 * x + 0.1 * (2.0 * uniform(2, at + 16 + np.arange(D_MODEL)) - 1.0)
    rows = unit_rows_of(3, D_SAE)
    rows = rows * (1.0 + noise * (2.0 * uniform(9, np.arange(rows.size).reshape(rows.shape)) - 1.0))
    batches = torch.tensor(x.astype(np.float32)).reshape(N_STEPS, BATCH, D_MODEL)
    return SimpleNamespace(batches=batches, w=torch.tensor(rows.astype(np.float32)))


def data_golden(world):
    x = world.batches.reshape(-1, D_MODEL)
    values = {"x_0": x[0], "x_1": x[1], "x_last": x[-1], "w_0": world.w[0], "w_last": world.w[-1]}
    lines = ["# the data and the first weights, made by tests/reference/training.py: four coordinates of some rows"]
    lines += [" ".join([name, *(number(value.item()) for value in row[:4])]) for name, row in values.items()]
    lines += [f"sum_sq_x {number(x.double().square().sum().item())}", f"sum_x {number(x.double().sum().item())}"]
    lines += [f"sum_w {number(world.w.double().sum().item())}"]
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------------------------------------------------- curves

RECIPES = {}


def recipe(function):
    """Registers a recipe: world → Curve. Its docstring is the golden's header."""
    RECIPES[function.__name__] = function
    return function


class Curve:
    def __init__(self, *columns):
        self.columns, self.rows, self.finals = ["step", "loss", *columns, "l0"], [], {}

    def add(self, loss, *parts):
        self.rows.append([len(self.rows), loss, *parts])

    def finish(self, **parameters):
        """Sums of squares of tensors; numbers as they are."""
        for name, value in parameters.items():
            square = value.detach().double().square().sum().item() if torch.is_tensor(value) else value
            self.finals[name] = square
        self.finals["l0"] = self.rows[-1][-1]
        return self


def l0(acts):
    return (acts != 0).sum().item() / len(acts)


def number(value):
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:.9g}"


def golden(name, curve):
    header = [line.strip() for line in RECIPES[name].__doc__.strip().splitlines()]
    header += [
        f"d_model {D_MODEL}, d_sae {D_SAE}, batch {BATCH}, {N_STEPS} steps, lr {LR} constant, float32 on a cpu",
        "first weights: w_enc = w_dec = rows of stream 3, biases 0, except where said above",
        ", ".join(f"{package} {version(package)}" for package in ("torch", "dictionary_learning", "sae_lens")),
        "made by tests/reference/training.py",
        "columns: " + " ".join(curve.columns),
    ]
    lines = ["# " + line if line else "#" for line in header]
    lines += [" ".join(number(value) for value in row) for row in curve.rows]
    lines += [f"final {name} {number(value)}" for name, value in curve.finals.items()]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------- dictionary_learning

COMMON = dict(
    steps=N_STEPS + 2, activation_dim=D_MODEL, dict_size=D_SAE, layer=0, lm_name="none", lr=LR, warmup_steps=0,
    decay_start=None, device="cpu",
)  # fmt: skip
NO_SPARSITY_WARMUP = dict(sparsity_warmup_steps=None)


def put(**pairs):
    """Overwrites parameters in place: name=(parameter, values)."""
    with torch.no_grad():
        for parameter, values in pairs.values():
            parameter.copy_(values)


def put_linear(ae, w):
    """Of a dictionary made of nn.Linear, whose encoder's bias does not start at 0."""
    put(w_enc=(ae.encoder.weight, w), b_enc=(ae.encoder.bias, 0.0), w_dec=(ae.decoder.weight, w.T))


def twin(trainer):
    """A copy whose loss can be asked for without counting this batch twice."""
    for name in ("pre_norm_auxk_loss", "lp_loss", "scaled_lp_loss"):
        if hasattr(trainer, name):
            setattr(trainer, name, None)  # logged tensors of the last step, which cannot be copied
    return copy.deepcopy(trainer)


def follow(trainer, world, curve, parts, first_step=0):
    """Runs the package's own `update` and records the loss that it is about to minimise. `parts(twin, x, step)`."""
    for step, x in enumerate(world.batches, start=first_step):
        assert all(group["lr"] == LR for group in trainer.optimizer.param_groups)
        curve.add(twin(trainer).loss(x, step=step).item(), *parts(twin(trainer), x, step))
        trainer.update(step, x)


def logged(*names, dead=False):
    """The parts that the trainer logs, the number of dead latents where it has one, and L0."""

    def parts(twin, x, step):
        log = twin.loss(x, step=step, logging=True)
        return [*(log.losses[name] for name in names), *([twin.dead_features] if dead else []), l0(log.f)]

    return parts


def linear_weights(ae):
    """Of a dictionary made of nn.Linear: its decoder's weight is [d_model, d_sae]."""
    return dict(w_enc=ae.encoder.weight, b_enc=ae.encoder.bias, w_dec=ae.decoder.weight)


@recipe
def vanilla(world):
    """StandardTrainer: ReLU, L1 penalty 0.1, unit decoder rows.
    loss = mean ‖x − x̂‖² + 0.1 · mean Σ z. No clipping.
    ConstrainedAdam (.9, .999, eps 1e-8): the gradient's component along each decoder row (divided by its length, no
    epsilon) removed, Adam, then each row divided by its length (no epsilon).
    Columns: mse, and Σ z before its coefficient.
    """
    trainer = standard.StandardTrainer(**COMMON, **NO_SPARSITY_WARMUP, l1_penalty=0.1)
    put_linear(trainer.ae, world.w)
    curve = Curve("mse", "l1")
    follow(trainer, world, curve, logged("mse_loss", "sparsity_loss"))
    return curve.finish(**linear_weights(trainer.ae), b_dec=trainer.ae.bias)


@recipe
def vanilla_decoder_norm(world):
    """StandardTrainerAprilUpdate: ReLU, L1 penalty 0.1 on z·‖decoder row‖, decoder norms free.
    loss = mean ‖x − x̂‖² + 0.1 · mean Σ z_j ‖W_dec,j‖; the gradient goes through the norm.
    Adam (.9, .999, eps 1e-8) after clipping the whole gradient to length 1 (torch: factor 1/(norm + 1e-6), at most 1).
    Columns: mse, and Σ z·norm before its coefficient.
    """
    trainer = standard.StandardTrainerAprilUpdate(**COMMON, **NO_SPARSITY_WARMUP, l1_penalty=0.1)
    put_linear(trainer.ae, world.w)
    curve = Curve("mse", "l1")
    follow(trainer, world, curve, logged("mse_loss", "sparsity_loss"))
    return curve.finish(**linear_weights(trainer.ae), b_dec=trainer.ae.bias)


@recipe
def gated(world):
    """GatedSAETrainer: L1 penalty 0.1 on the gate's ReLU.
    e = W_enc (x − b_dec); gate = e + b_gate; magnitude = exp(r_mag)·e + b_mag; z = 1[gate > 0] · relu(magnitude).
    loss = mean ‖x − x̂‖² + 0.1 · mean Σ relu(gate) + mean ‖x − x̂_gate‖², x̂_gate = relu(gate) W_dec + b_dec with W_dec
    and b_dec detached there (b_dec still gets a gradient through e). No gradient through 1[gate > 0]. r_mag starts at
    0.
    ConstrainedAdam (0, .999, eps 1e-8) as in vanilla; no clipping.
    Columns: mse, Σ relu(gate) before its coefficient, and the auxiliary error.
    """
    trainer = gdm.GatedSAETrainer(**COMMON, **NO_SPARSITY_WARMUP, l1_penalty=0.1)
    ae = trainer.ae
    put(w_enc=(ae.encoder.weight, world.w), w_dec=(ae.decoder.weight, world.w.T))
    curve = Curve("mse", "l1", "aux")
    follow(trainer, world, curve, logged("mse_loss", "sparsity_loss", "aux_loss"))
    return curve.finish(
        w_enc=ae.encoder.weight, w_dec=ae.decoder.weight, b_dec=ae.decoder_bias, r_mag=ae.r_mag, b_gate=ae.gate_bias,
        b_mag=ae.mag_bias,
    )  # fmt: skip


@recipe
def topk(world):
    """TopKTrainer: k 6 of relu(pre) per token, AuxK 1/32, dead after 256 tokens (package: 10 million).
    loss = mean ‖x − x̂‖² + auxk/32.
    AuxK: a latent is dead when its tokens since it last fired are >= 256, this batch's 64 already counted. Fired means
    chosen by the top-k on any token, even with the value 0 (batchtopk: with a value above 0). k_aux = min(12, dead), 12
    = d_model/2; the largest relu(pre) among dead latents; ê has no b_dec; e = x − x̂ is detached. auxk = mean ‖e − ê‖²
    / mean ‖e − mean e‖², the denominator's mean over the batch (per coordinate); NaN counts as 0. Not scaled down when
    few latents are dead.
    Adam (.9, .999, eps 1e-8). Order: backward, the component along each decoder row removed (row / (norm + 1e-6)), the
    whole gradient clipped to length 1 (factor 1/(norm + 1e-6), at most 1), Adam, rows divided by (norm + 1.1920929e-7).
    b_dec starts at 0, not at the geometric median: `update` is called with steps from 1, which is all that its step is
    used for.
    Columns: mse, auxk before its weight, dead latents.
    """
    return with_auxk(top_k.TopKTrainer(**COMMON, k=K, auxk_alpha=1 / 32), world)


@recipe
def topk_dead(world):
    """As topk, with the rows 48 to 63 of the first w_enc an eighth as long (w_dec is not changed): those latents lose,
    are dead from step 3 on, and AuxK acts.
    """
    return with_auxk(top_k.TopKTrainer(**COMMON, k=K, auxk_alpha=1 / 32), world, weak=slice(48, 64))


@recipe
def batchtopk(world):
    """BatchTopKTrainer: the 6·64 largest of relu(pre) in the batch, AuxK 1/32, dead after 256 tokens (package: 10
    million).
    loss = mean ‖x − x̂‖² + auxk/32. AuxK and the order of operations as in topk, except: fired means an activation
    above 0.
    b_dec starts at 0, not at the geometric median: `update` is called with steps from 1, which is all that its step is
    used for.
    Columns: mse, auxk before its weight, dead latents.
    """
    return with_auxk(batch_top_k.BatchTopKTrainer(**COMMON, k=K, auxk_alpha=1 / 32), world)


@recipe
def batchtopk_dead(world):
    """As batchtopk, with the rows 48 to 63 of the first w_enc an eighth as long, as in topk_dead."""
    return with_auxk(batch_top_k.BatchTopKTrainer(**COMMON, k=K, auxk_alpha=1 / 32), world, weak=slice(48, 64))


def with_auxk(trainer, world, weak=slice(0)):
    trainer.dead_feature_threshold = DEAD_AFTER
    put(w_enc=(trainer.ae.encoder.weight, weakened(world.w, weak)), w_dec=(trainer.ae.decoder.weight, world.w.T))
    curve = Curve("mse", "auxk", "n_dead")
    follow(trainer, world, curve, logged("l2_loss", "auxk_loss", dead=True), first_step=1)
    return curve.finish(**linear_weights(trainer.ae), b_dec=trainer.ae.b_dec)


@recipe
def matryoshka(world):
    """MatryoshkaBatchTopKTrainer: groups 16 + 48, k 6 per token over the batch and all groups, AuxK 1/32, dead after
    256 tokens.
    loss = (½ mean ‖x − x̂_16‖² + ½ mean ‖x − x̂‖²) / 2 + auxk/32: the default group weights are 1/groups, and the
    weighted errors are averaged over groups once more, not added. AuxK on the full x̂; it and the order of operations
    as in batchtopk.
    b_dec starts at 0, not at the geometric median: `update` is called with steps from 1, which is all that its step is
    used for.
    Columns: the mean of the weighted errors, auxk before its weight, dead latents.
    """
    return train_matryoshka(world)


@recipe
def matryoshka_dead(world):
    """As matryoshka, with the rows 48 to 63 of the first w_enc an eighth as long, as in topk_dead."""
    return train_matryoshka(world, weak=slice(48, 64))


def train_matryoshka(world, weak=slice(0)):
    trainer = matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(
        **COMMON, k=K, auxk_alpha=1 / 32, group_fractions=[0.25, 0.75]
    )
    trainer.dead_feature_threshold = DEAD_AFTER
    ae = trainer.ae
    put(w_enc=(ae.W_enc, weakened(world.w, weak).T), w_dec=(ae.W_dec, world.w))
    curve = Curve("mse", "auxk", "n_dead")
    follow(trainer, world, curve, logged("l2_loss", "auxk_loss", dead=True), first_step=1)
    return curve.finish(w_enc=ae.W_enc, b_enc=ae.b_enc, w_dec=ae.W_dec, b_dec=ae.b_dec)


@recipe
def panneal(world):
    """PAnnealTrainer: ReLU, penalty on Σ z^p ('Lp^p'), p from 1 to 0.2 between steps 10 and 50 in 10 values, first
    coefficient 0.1.
    loss = mean ‖x − x̂‖² + α · mean Σ z^p.
    Values of p: evenly spaced, both ends among them. They are taken at the whole parts of evenly spaced steps: 10 14 18
    23 27 32 36 41 45 and 50, and 50 is never reached. The first value is 1, so that p changes at step 14 first.
    At such a step, after this step's loss is computed: α *= mean of Σ z^p over the queue / mean of Σ z^p_next over the
    queue (not at the first one, where there is no p_next yet); then p and p_next move on. The queue holds the last 10
    steps, this one too, from the step after the first such step; it is not emptied when p moves on, so that it mixes
    exponents. This step's loss has the old p and α. z^p has gradient 0 where z = 0, by the ReLU.
    ConstrainedAdam (.9, .999, eps 1e-8) as in vanilla; no clipping.
    Columns: mse, mean Σ z^p, α and p that this step's loss used.
    """
    trainer = p_anneal.PAnnealTrainer(
        **{**COMMON, "steps": N_STEPS}, **NO_SPARSITY_WARMUP, sparsity_function="Lp^p", initial_sparsity_penalty=0.1,
        anneal_start=10, anneal_end=50, p_start=1, p_end=0.2, n_sparsity_updates=10, sparsity_queue_length=10,
    )  # fmt: skip
    ae = trainer.ae
    put_linear(ae, world.w)

    def parts(twin, x, step):
        coefficient, p = twin.sparsity_coeff, twin.p
        x, x_hat, acts, log = twin.loss(x, step=step, logging=True)
        return [(x - x_hat).pow(2).sum(-1).mean().item(), log["lp_loss"], coefficient, p, l0(acts)]

    curve = Curve("mse", "lp", "alpha", "p")
    follow(trainer, world, curve, parts)
    return curve.finish(**linear_weights(ae), b_dec=ae.bias)


# ------------------------------------------------------------------------------------------------------------- SAELens


def saelens_step(sae, x, dead=None):
    coefficients = {name: config.value for name, config in sae.get_coefficients().items()}
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )


def saelens_jumprelu(world, mode, first_b_enc=None, **settings):
    sae = jumprelu_sae.JumpReLUTrainingSAE(
        jumprelu_sae.JumpReLUTrainingSAEConfig(
            d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=True, jumprelu_sparsity_loss_mode=mode, l0_coefficient=0.1,
            jumprelu_bandwidth=0.1, jumprelu_init_threshold=0.05, **settings,
        )
    )  # fmt: skip
    put(w_enc=(sae.W_enc, world.w.T), w_dec=(sae.W_dec, world.w), threshold=(sae.threshold, 0.05))
    if first_b_enc is not None:
        put(b_enc=(sae.b_enc, first_b_enc))
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, betas=(0.9, 0.999))
    tokens_since_fired = torch.zeros(D_SAE, dtype=torch.long)
    with_pre_act = settings.get("pre_act_loss_coefficient") is not None
    curve = Curve("mse", "sparsity", *(["pre_act", "n_dead"] if with_pre_act else []))
    for x in world.batches:
        dead = tokens_since_fired >= DEAD_AFTER
        output = saelens_step(sae, x, dead)
        names = ["mse_loss", "l0_loss", *(["pre_act_loss"] if with_pre_act else [])]
        parts = [output.losses[name].item() for name in names] + ([dead.sum().item()] if with_pre_act else [])
        curve.add(output.loss.item(), *parts, l0(output.feature_acts))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        tokens_since_fired += BATCH
        tokens_since_fired[(output.feature_acts > 0).any(0)] = 0
    return curve.finish(w_enc=sae.W_enc, b_enc=sae.b_enc, w_dec=sae.W_dec, b_dec=sae.b_dec, threshold=sae.threshold)


@recipe
def jumprelu_step(world):
    """SAELens JumpReLUTrainingSAE, mode "step": L0 coefficient 0.1, bandwidth 0.1, thresholds start at 0.05.
    pre = (x − b_dec) W_enc + b_enc; z = pre · 1[pre > θ]; loss = mean ‖x − x̂‖² + 0.1 · mean Σ 1[pre > θ].
    Gradients: pre gets 1[pre > θ] from z and none from the count; θ gets −(θ/0.1) · 1[|pre − θ|/0.1 < ½] from z and
    −(1/0.1) · 1[|pre − θ|/0.1 < ½] from the count. θ is the parameter itself (no logarithm), set to at least 0 before
    each forward pass.
    Adam (.9, .999, eps 1e-8) in a plain loop: nothing removed, nothing clipped, decoder norms free.
    Columns: mse, the sparsity term with its coefficient.
    """
    return saelens_jumprelu(world, "step")


@recipe
def jumprelu_quadratic(world):
    """As jumprelu_step, mode "quadratic": the sparsity term is 0.1 · mean over tokens of 2/6 · (Σ 1[pre > θ] − 6)².
    Columns: mse, the sparsity term with its coefficient.
    """
    return saelens_jumprelu(world, "quadratic", target_l0=6)


TANH = dict(jumprelu_tanh_scale=4.0, jumprelu_ste_to_input=True, pre_act_loss_coefficient=3e-3)


@recipe
def jumprelu_tanh(world):
    """SAELens JumpReLUTrainingSAE, mode "tanh": coefficient 0.1, tanh scale 4, bandwidth 0.1, straight-through gradient
    to the input, pre-activation loss 3e-3, thresholds start at 0.05.
    pre = (x − b_dec) W_enc + b_enc; z = pre · 1[pre > θ].
    loss = mean ‖x − x̂‖² + 0.1 · mean Σ tanh(4 z_j ‖W_dec,j‖) + 3e-3 · mean Σ_dead relu(θ_j − pre_j) ‖W_dec,j‖.
    Gradients: θ gets −(θ/0.1) · 1[|pre − θ|/0.1 < ½] from z, pre gets 1[pre > θ] plus the negative of that; both also
    from the tanh term (through z), and θ, pre and the decoder norms from the last term. θ is set to at least 0 before
    each forward pass.
    Dead: tokens since the latent last had z > 0 are >= 256, counted over the batches before this one (all start at 0
    tokens).
    Adam (.9, .999, eps 1e-8) in a plain loop: nothing removed, nothing clipped, decoder norms free.
    Columns: mse, the tanh term and the pre-activation term with their coefficients, dead latents.
    """
    return saelens_jumprelu(world, "tanh", **TANH)


@recipe
def jumprelu_tanh_dead(world):
    """As jumprelu_tanh, except that b_enc of the last eight latents starts at −20, so that they are dead and the
    pre-activation loss acts from step 4 on.
    """
    first_b_enc = torch.zeros(D_SAE)
    first_b_enc[-8:] = -20.0
    return saelens_jumprelu(world, "tanh", first_b_enc, **TANH)


@recipe
def matching_pursuit(world):
    """SAELens MatchingPursuitTrainingSAE: 6 iterations, residual threshold 0 (no early stop), no stop on duplicate
    support.
    r = x − b_dec; six times: j = argmax relu(r · W_dec,j) (of equal ones the first), a = relu(r · W_dec,j), z_j += a, r
    −= a W_dec,j.
    x̂ = z W_dec + b_dec; loss = mean ‖x − x̂‖². There is no encoder: W_enc = W_decᵀ. The gradient goes through every a
    and through r from iteration to iteration; not through the argmax. A latent chosen twice adds up.
    Order: backward, the component along each decoder row removed (row / norm), the whole gradient clipped to length 1,
    Adam (.9, .999, eps 1e-8), rows divided by their length (no epsilon). The loop is ours, not SAELens's.
    """
    sae = matching_pursuit_sae.MatchingPursuitTrainingSAE(
        matching_pursuit_sae.MatchingPursuitTrainingSAEConfig(
            d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=True, max_iterations=K, residual_threshold=0.0,
            stop_on_duplicate_support=False, decoder_init_norm=1.0,
        )
    )  # fmt: skip
    put(w_dec=(sae.W_dec, world.w))
    assert {name for name, _ in sae.named_parameters()} == {"W_dec", "b_dec"}
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, betas=(0.9, 0.999))
    curve = Curve()
    for x in world.batches:
        output = saelens_step(sae, x)
        curve.add(output.loss.item(), l0(output.feature_acts))
        update(optimizer, output.loss, sae.W_dec, clip=True)
    return curve.finish(w_dec=sae.W_dec, b_dec=sae.b_dec)


# ------------------------------------------------------------------------------------------- steps of the plain recipes


def normalise_rows(w):
    with torch.no_grad():
        w /= w.norm(dim=1, keepdim=True)


def remove_parallel_part(w):
    """Of the gradient of decoder rows, w [d_sae, d_model]."""
    with torch.no_grad():
        unit = w / w.norm(dim=1, keepdim=True)
        w.grad -= (w.grad * unit).sum(dim=1, keepdim=True) * unit


def update(optimizer, loss, w_dec, clip):
    optimizer.zero_grad()
    loss.backward()
    remove_parallel_part(w_dec)
    if clip:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    normalise_rows(w_dec)


def checksum(parents):
    """Σ (j + 1)(parent_j + 1) over latents j with a parent, counted from 0 among those that can have one."""
    return sum((j + 1) * (int(parent) + 1) for j, parent in enumerate(parents) if parent is not None)


# ------------------------------------------------------------------------------------------------------------ Tree SAE

TREE = SimpleNamespace(
    k=[2, 1], k_aux=3, w_aux=1 / 32, active_above=1e-3, dead_after=4, eligible_within=3, interval=10, interval_growth=2,
    max_interval=15, root_reset=40,
)  # fmt: skip


@recipe
def tree(world):
    """Tree SAE: Cao et al. 2026, "Tree SAE: Learning Hierarchical Feature Structures in Sparse Autoencoders", arXiv
    2605.07922, in the details that the paper leaves open as in the authors' code (github.com/tue147/tree-sae).
    Written out here.
    Two levels, 16 parents and 48 children. x' = (x − mean) / (std + 1e-5), per token over coordinates, std with n − 1.
    pre = (x' − b_dec) W_enc, no b_enc. Each child has one parent: a coarse latent or the root (index 16), which is
    always active.
    z: level by level and per token the top k (2, then 1) of pre · 1[the parent's z > 1e-3], then ReLU. No gradient
    through the gate.
    x̂_m = (b_dec + z[:m] W_dec[:m]) · std + mean, m = 16 and 64.
    loss = Σ_m mean (x − x̂_m)² / (Var x + 1e-8) + aux / 32. Means over all elements; Var over all elements of the batch
    with n − 1.
    aux, on the coarse level only: e = x − x̂_16, NOT detached; ê = b_dec + Σ relu of the top 3 of pre · 1[dead], b_dec
    included, not scaled back; aux = mean (e − ê)² / mean (e − mean of e over coordinates)². It acts also while nothing
    is dead.
    Dead: steps since fired >= 4; a latent with z > 1e-3 on any token has 1 after this step, else one more (start: 0).
    Counted with this batch before aux.
    Parents at first: floor(17 · u(4, child)). After the loss of a step, before its update, capacity of each possible
    parent += loss / (coarse latents that fired in this batch + 1) if it fired, the root always. Every 10 steps, then
    after every 15 (doubled each time, at most 15): children are reallocated. Quotas: 48 times one child to the possible
    parent with the largest capacity / (quota + 1), of equal ones the first; possible: steps since fired < 3 and
    capacity > 0, or the root. Only dead children move: from parents in index order over their quota, their first dead
    children; to parents in index order under theirs; paired until one list ends. Then capacities are 0. After step
    index 39 (40 steps): instead every dead child goes to the root, and parents stay from then on. Moved children keep
    weights, moments and counts.
    Order: backward, decoder rows divided by their length, the component along them removed, Adam (.9, .999, eps
    6.25e-10); no clipping.
    Rows are not divided again after Adam. Rows 12 to 15 of the first w_enc are an eighth as long (w_dec is not
    changed), so that these parents and their children are dead.
    Scaled down for 50 steps: published are dead after 10 million tokens, possible within 50,000 tokens, intervals of
    3000 to 10,000 steps, root reset at step 50,000 of 97,657, k_aux 256, b_dec from the geometric median, lr 1e-4,
    mixed precision.
    Columns: error of x̂_16 and of x̂ over Var, aux with its weight, dead latents of each level, children moved after
    this step.
    """
    return train_tree(world, standardise=True)


@recipe
def tree_plain(world):
    """As tree, without the standardisation of each token: x' = x, mean 0, std 1. For an engine that normalises
    beforehand.
    """
    return train_tree(world, standardise=False)


def train_tree(world, standardise):
    w_enc, w_dec = torch.nn.Parameter(weakened(world.w, slice(12, 16))), torch.nn.Parameter(world.w.clone())
    b_dec = torch.nn.Parameter(torch.zeros(D_MODEL))
    optimizer = torch.optim.Adam([w_enc, w_dec, b_dec], lr=LR, betas=(0.9, 0.999), eps=6.25e-10)
    family = Family()
    curve = Curve("mse_16", "mse", "aux", "n_dead_16", "n_dead_48", "n_moved")
    for x in world.batches:
        mean, std, scaled = torch.zeros(BATCH, 1), torch.ones(BATCH, 1), x
        if standardise:
            mean = x.mean(1, keepdim=True)
            std = (x - mean).std(1, keepdim=True)
            scaled = (x - mean) / (std + 1e-5)
        pre = (scaled - b_dec) @ w_enc.T
        coarse = top(pre[:, :N_COARSE], TREE.k[0])
        with_root = torch.cat([coarse, torch.ones(BATCH, 1)], 1)
        is_open = (with_root[:, family.parent] > TREE.active_above).float()
        fine = top(pre[:, N_COARSE:] * is_open, TREE.k[1])
        acts = torch.cat([coarse, fine], 1).relu()
        family.count(acts)

        variance = x.var() + 1e-8
        x_hats = [(acts[:, :m] @ w_dec[:m] + b_dec) * std + mean for m in (N_COARSE, D_SAE)]
        errors = [(x_hat - x).square().mean() / variance for x_hat in x_hats]
        dead = family.dead[:N_COARSE].float()
        residual = x - x_hats[0]
        residual_hat = top(pre[:, :N_COARSE] * dead, TREE.k_aux).relu() @ w_dec[:N_COARSE] + b_dec
        spread = (residual - residual.mean(1, keepdim=True)).square().mean()
        aux = TREE.w_aux * ((residual - residual_hat).square().mean() / spread).nan_to_num(0.0)
        loss = sum(errors) + aux
        n_dead = [family.dead[:N_COARSE].sum().item(), family.dead[N_COARSE:].sum().item()]
        n_moved = family.follow(loss.item())
        curve.add(loss.item(), *(error.item() for error in errors), aux.item(), *n_dead, n_moved, l0(acts))

        optimizer.zero_grad()
        loss.backward()
        normalise_rows(w_dec)
        remove_parallel_part(w_dec)
        optimizer.step()
    return curve.finish(w_enc=w_enc, w_dec=w_dec, b_dec=b_dec, parents=checksum(family.parent))


def top(values, k):
    """The k largest entries of each row in their places, zero elsewhere."""
    best = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, best.indices, best.values)


class Family:
    """Parents of a Tree SAE's children, and what decides when they change."""

    def __init__(self):
        self.parent = np.floor((N_COARSE + 1) * uniform(4, np.arange(D_SAE - N_COARSE))).astype(int)
        self.steps_since_fired = torch.zeros(D_SAE, dtype=torch.long)
        self.capacity = np.zeros(N_COARSE + 1)
        self.n_steps, self.n_since, self.interval, self.is_fixed = 0, 0, TREE.interval, False

    @property
    def dead(self):
        return self.steps_since_fired >= TREE.dead_after

    def count(self, acts):
        self.fired = (acts > TREE.active_above).any(0)
        self.steps_since_fired = torch.where(self.fired, 0, self.steps_since_fired) + 1

    def follow(self, loss):
        """Capacities, and parents if it is time. Returns how many children changed their parent."""
        before = self.parent.copy()
        self.n_steps, self.n_since = self.n_steps + 1, self.n_since + 1
        fired = np.append(self.fired[:N_COARSE].numpy(), True)
        self.capacity[fired] += loss / fired.sum()
        if not self.is_fixed and self.n_steps >= TREE.root_reset:
            self.parent[self.dead[N_COARSE:].numpy()] = N_COARSE
            self.is_fixed = True
        if not self.is_fixed and self.n_since >= self.interval:
            self.reallocate()
            self.n_since, self.interval = 0, min(TREE.max_interval, self.interval * TREE.interval_growth)
        return int((before != self.parent).sum())

    def reallocate(self):
        is_near = np.append((self.steps_since_fired[:N_COARSE] < TREE.eligible_within).numpy(), True)
        possible = np.flatnonzero(is_near & (self.capacity > 0))
        assert len(possible) > 0, "the root always has some"
        quota = np.zeros(N_COARSE + 1, dtype=int)
        for _ in self.parent:
            payoff = self.capacity[possible] / (quota[possible] + 1)
            quota[possible[payoff.argmax()]] += 1
        n_children = np.bincount(self.parent, minlength=N_COARSE + 1)
        dead = self.dead[N_COARSE:].numpy()
        movers, places = [], []
        for parent in range(N_COARSE + 1):
            surplus = n_children[parent] - quota[parent]
            movers += list(np.flatnonzero((self.parent == parent) & dead)[: max(0, surplus)])
            places += [parent] * max(0, -surplus)
        for child, parent in zip(movers, places):
            self.parent[child] = parent
        self.capacity[:] = 0.0


# ------------------------------------------------------------------------------------------------------------- HierSAE

HIER = SimpleNamespace(
    beta=1.0, gate=0.5, gate_from=0.2, gate_to=0.4, freeze_from=0.85, update_every=5, decay=0.995, min_count=5.0,
    average_decay=0.98,
)  # fmt: skip


@recipe
def hiersae(world):
    """HierSAE: BatchTopK k 6 over 16 coarse and 48 fine latents, prefixes 4, 16 and 40, the soft tree; no AuxK, no
    curriculum, constant learning rate. Written out here.
    pre = (x − b_dec) W_enc + b_enc. Without gate, the 384 largest positive pre of the batch are active (the tree is
    learned from these); with it, the 384 largest positive scores, score = pre − g where the latent's parent is not
    active without gate; z = pre there.
    g = 0.5 · mean activation · ramp, the ramp rising from 0 to 1 between shares .2 and .4 of training (share = step /
    50), the mean activation a moving average (decay .98, first value as it is) of the mean of z over active entries in
    the batches before.
    Tree: moving sums (decay .995 per step) of tokens n, firings n1 and co-firings n11, this batch included; every 5
    steps from step 0 while the share is below .85: the parent of j is the latent i with the largest mutual information
    of firing among those with n1_i > n1_j, n11 > 5 tokens of the latest step's weight and (P(i|j) − P(i)) / (1 − P(i))
    > .5, else none. It gates from the next step on.
    Sums and firings are kept in f32, tokens weigh 1/.995^step, so that ties fall as in the Rust code.
    loss = mean ‖x − x̂‖² + 1 · Σ_m mean ‖x − x̂_m‖², x̂_m = b_dec + z[:m] W_dec[:m].
    Order: backward, the component along each decoder row removed, the whole gradient clipped to length 1 (factor
    1/(norm + 1e-6), at most 1), Adam (.9, .999, eps 1e-8), rows divided by their length.
    Columns: mse, sum of the prefixes' errors, g, edges after this step's choice.
    """
    return train_hiersae(world, [4, 16, 40])


@recipe
def hiersae_two_levels(world):
    """As hiersae, with the single prefix 16."""
    return train_hiersae(world, [16])


@recipe
def hiersae_edges(world):
    """As hiersae_two_levels, with an excess of .05 instead of .5, so that many latents keep a parent and the gate
    acts to the end.
    """
    return train_hiersae(world, [16], min_excess=0.05)


def train_hiersae(world, prefixes, min_excess=0.5):
    w_enc, w_dec = (torch.nn.Parameter(world.w.clone()) for _ in range(2))
    b_enc, b_dec = torch.nn.Parameter(torch.zeros(D_SAE)), torch.nn.Parameter(torch.zeros(D_MODEL))
    optimizer = torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=LR, betas=(0.9, 0.999))
    learner, mean_activation = TreeLearner(min_excess), None
    curve = Curve("mse", "prefixes", "gate", "n_edges")
    for step, x in enumerate(world.batches):
        share = step / N_STEPS
        ramp = min(1.0, max(0.0, (share - HIER.gate_from) / (HIER.gate_to - HIER.gate_from)))
        strength = ramp * HIER.gate * (mean_activation or 0.0)
        pre = (x - b_dec) @ w_enc.T + b_enc
        ungated = best_of_batch(pre.detach())
        active = best_of_batch(pre.detach() - learner.is_gated(ungated) * torch.tensor(strength))
        acts = pre * active
        if share < HIER.freeze_from:
            learner.observe(ungated)
            if step % HIER.update_every == 0:
                learner.choose()

        errors = [(x - b_dec - acts[:, :m] @ w_dec[:m]).square().sum(1).mean() for m in [*prefixes, D_SAE]]
        inner = HIER.beta * sum(errors[:-1])
        loss = errors[-1] + inner
        n_edges = sum(parent is not None for parent in learner.parents)
        curve.add(loss.item(), errors[-1].item(), inner.item(), strength, n_edges, l0(acts))
        update(optimizer, loss, w_dec, clip=True)

        now = acts.detach().double().sum().item() / active.sum().item()
        keep = HIER.average_decay
        mean_activation = now if mean_activation is None else keep * mean_activation + (1 - keep) * now
    return curve.finish(w_enc=w_enc, b_enc=b_enc, w_dec=w_dec, b_dec=b_dec, parents=checksum(learner.parents))


def best_of_batch(scores):
    """1 for the K·BATCH largest positive scores, of equal ones the first; 0 elsewhere."""
    order = scores.flatten().sort(descending=True, stable=True).indices[: K * BATCH]
    kept = torch.zeros(scores.numel()).index_fill(0, order, 1.0).reshape(scores.shape)
    return kept * (scores > 0)


class TreeLearner:
    """Moving sums of firing and co-firing, and the parents that they say."""

    def __init__(self, min_excess):
        self.min_excess = min_excess
        self.n11, self.n1 = np.zeros((D_SAE, D_SAE), np.float32), np.zeros(D_SAE, np.float32)
        self.n, self.weight = 0.0, 1.0
        self.parents = [None] * D_SAE

    def is_gated(self, active):
        """1 where a latent has a parent that is silent."""
        gated = torch.zeros_like(active)
        for j, parent in enumerate(self.parents):
            if parent is not None:
                gated[:, j] = 1.0 - active[:, parent]
        return gated

    def observe(self, active):
        on = active.numpy().astype(bool)
        for row in on:  # token by token: the order of additions is part of the sums
            self.n11[np.ix_(row, row)] += np.float32(self.weight)
            self.n1[row] += np.float32(self.weight)
        self.n += self.weight * len(on)
        self.weight /= HIER.decay

    def choose(self):
        least = HIER.min_count * self.weight * HIER.decay
        n11, n1 = self.n11.astype(np.float64), self.n1.astype(np.float64)
        for j in range(D_SAE):
            best = None
            for i in range(D_SAE):
                if i == j or n11[j, i] <= least or n1[i] <= n1[j]:
                    continue
                p, q = n1[i] / self.n, n1[j] / self.n
                if (n11[j, i] / self.n / q - p) / (1 - p) <= self.min_excess:
                    continue
                mi = mutual_information(n11[j, i] / self.n, p, q)
                if best is None or mi > best[0]:
                    best = (mi, i)
            self.parents[j] = best and best[1]


def mutual_information(p11, p, q):
    """Of two binary variables, in bits."""
    p11 = min(p11, p, q)
    cells = [(p11, p * q), (p - p11, p * (1 - q)), (q - p11, (1 - p) * q), (1 - p - q + p11, (1 - p) * (1 - q))]
    return sum(joint * math.log2(joint / alone) for joint, alone in cells if joint > 0)


# ---------------------------------------------------------------------------------------------------------------- main


def arguments():
    """OUT_DIR and RECIPE share a list, since the first is one more RECIPE beside --check."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage="%(prog)s [--check] [OUT_DIR] [RECIPE…]")
    p.add_argument("--check", action="store_true", help="how far rounding alone can move each curve; writes nothing")
    p.add_argument("words", nargs="*", metavar="[OUT_DIR] [RECIPE…]", help="where to write, and what; all without a name")
    args = p.parse_args()
    if not args.check and not args.words:
        p.error("name OUT_DIR, or say --check")
    names = args.words if args.check else args.words[1:]
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        p.error(f"no recipe {unknown[0]}; there are {', '.join(RECIPES)}")
    return (None if args.check else pathlib.Path(args.words[0])), names or list(RECIPES)


def check(names):
    for name in names:
        curve, other = (np.array(RECIPES[name](make_world(noise)).rows) for noise in (0.0, 1e-6))
        relative = np.abs(other[:, 1] / curve[:, 1] - 1.0)
        print(f"{name}: first weights moved by 1e-6, losses by at most {relative.max():.1e}")


def main():
    folder, names = arguments()
    torch.set_num_threads(1)
    if folder is None:
        return check(names)
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world()
    (folder / "data.txt").write_text(data_golden(world), encoding="utf-8")
    for name in names:
        (folder / f"{name}.txt").write_text(golden(name, RECIPES[name](world)), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
