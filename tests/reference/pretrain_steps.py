"""Five steps of training a small GPT, by PyTorch in double precision: losses, norms of gradients, and sums of parameters.

    python3 tests/reference/pretrain_steps.py > tests/golden/pretrain_steps.txt

Needs torch. Weights and tokens follow from formulas that stages/gpt/src/tests/golden.rs has as well. The recipe: layer norms
without biases, GELU by tanh, tied embeddings, AdamW (0.9, 0.99) with decay 0.1 on matrices, the gradient's norm cut to 1, three
steps of warm-up and a cosine from 1e-2 to 1e-3 in 10.
"""

import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
N_LAYERS, N_HEADS, D, CONTEXT, N_VOCAB, BATCH = 2, 3, 24, 20, 17, 9


def value(i):
    """In [-0.15, 0.15), the same in f32."""
    return torch.tensor([(j * 7919 + 13) % 1009 / 1009 * 0.3 - 0.15 for j in i], dtype=torch.float32).double()


def parameters():
    shapes = {"wte": (N_VOCAB, D), "wpe": (CONTEXT, D)}
    for block in range(N_LAYERS):
        shapes |= {
            f"h.{block}.ln_1": (D,), f"h.{block}.attn.c_attn": (D, 3 * D), f"h.{block}.attn.c_proj": (D, D),
            f"h.{block}.ln_2": (D,), f"h.{block}.mlp.c_fc": (D, 4 * D), f"h.{block}.mlp.c_proj": (4 * D, D),
        }
    shapes["ln_f"] = (D,)
    at, out = 0, {}
    for name, shape in shapes.items():
        n = math.prod(shape)
        weight = value(range(at, at + n)).reshape(shape)
        out[f"{name}.weight"] = (weight + 1 if len(shape) == 1 else weight).requires_grad_()
        at += n
    return out


def tokens(step):
    ids = [(i * i * 31 + i * 7 + step * 101) % 1013 % N_VOCAB for i in range(BATCH * (CONTEXT + 1))]
    rows = torch.tensor(ids).reshape(BATCH, CONTEXT + 1)
    return rows[:, :-1], rows[:, 1:]


def loss_of(p, inputs, targets):
    norm = lambda x, name: F.layer_norm(x, (D,), p[f"{name}.weight"], eps=1e-5)
    heads = lambda x: x.view(BATCH, CONTEXT, N_HEADS, D // N_HEADS).transpose(1, 2)
    x = p["wte.weight"][inputs] + p["wpe.weight"]
    for block in range(N_LAYERS):
        h = f"h.{block}"
        q, k, v = (norm(x, f"{h}.ln_1") @ p[f"{h}.attn.c_attn.weight"]).split(D, dim=2)
        y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
        x = x + y.transpose(1, 2).reshape(BATCH, CONTEXT, D) @ p[f"{h}.attn.c_proj.weight"]
        up = norm(x, f"{h}.ln_2") @ p[f"{h}.mlp.c_fc.weight"]
        x = x + F.gelu(up, approximate="tanh") @ p[f"{h}.mlp.c_proj.weight"]
    logits = norm(x, "ln_f") @ p["wte.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def lr_of(step, lr=1e-2, lr_min=1e-3, warmup=3, n_steps=10):
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    return lr_min + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (n_steps - warmup))) * (lr - lr_min)


def main():
    p = parameters()
    groups = [
        {"params": [w for w in p.values() if w.dim() == 2], "weight_decay": 0.1},
        {"params": [w for w in p.values() if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99))
    print("what\tvalue")
    for step in range(5):
        for group in optimiser.param_groups:
            group["lr"] = lr_of(step)
        loss = loss_of(p, *tokens(step))
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
        optimiser.step()
        print(f"loss {step}\t{loss.item():.9f}")
        print(f"norm {step}\t{norm.item():.9f}")
    for name, weight in p.items():
        print(f"sum {name}\t{weight.sum().item():.9f}")
        print(f"size {name}\t{weight.abs().sum().item():.9f}")


main()
