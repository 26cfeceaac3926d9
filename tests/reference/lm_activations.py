"""Golden activations of SmolLM2-135M-Instruct: an independent forward pass in numpy, in float64.

    python lm_activations.py MODEL.gguf > lm_activations.tsv        (numpy, gguf)

Differs from the Rust crate where it can: queries and keys stay in the file's order and are rotated as neighbouring
pairs (complex numbers), heads are looped over, everything is float64.

Rows of the table: `tokens SEQUENCE ids…`, `norm SEQUENCE HOOK position value`,
`value SEQUENCE HOOK position column value`, `loss SEQUENCE SPLICE nats` (mean over next tokens; SPLICE is `none`, or a
hook whose activation is replaced by zeros at every position but the first).
"""

import argparse

import numpy as np
from lm_gguf import Model

# Token ids, so that the table does not depend on a tokenizer; 0 is <|endoftext|>.
SEQUENCES = {
    # "The capital of France is Paris, and the capital of lifestyle is fur."
    "prose": [0, 504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 6814, 314, 9462, 30],
    # Any ids will do: a linear congruential generator over the vocabulary.
    "random": [0] + [(12_345 + 30_011 * i * i + 977 * i) % 49_152 for i in range(127)],
    "short": [0, 17, 49_151],
}
HOOKS = [
    "blocks.0.hook_resid_post",
    "blocks.15.hook_attn_out",
    "blocks.15.hook_mlp_out",
    "blocks.15.hook_resid_post",
    "blocks.29.hook_resid_post",
]
SPLICES = ["none", "blocks.15.hook_attn_out", "blocks.15.hook_mlp_out", "blocks.15.hook_resid_post"]


class Llama:
    def __init__(self, path):
        model = Model(path)
        get = lambda key: model.fields["llama." + key]
        self.n_layers = get("block_count")
        self.n_heads = get("attention.head_count")
        self.n_kv_heads = get("attention.head_count_kv")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.base = get("rope.freq_base")
        self.d_head = get("embedding_length") // self.n_heads
        self.weights = {name: model.tensor(name) for name in model.tensors}

    def forward(self, ids, splice="none"):
        """Activations by hook name, and the logits."""
        w = self.weights
        activations = {}

        def hook(name, x):
            if name == splice:
                x = x.copy()
                x[1:] = 0.0
            activations[name] = x
            return x

        x = w["token_embd.weight"][ids]
        for n in range(self.n_layers):
            part = lambda name: w[f"blk.{n}.{name}.weight"]
            x = x + hook(f"blocks.{n}.hook_attn_out", self.attention(self.norm(x, part("attn_norm")), part))
            y = self.norm(x, part("ffn_norm"))
            gate, up = y @ part("ffn_gate").T, y @ part("ffn_up").T
            x = x + hook(f"blocks.{n}.hook_mlp_out", (gate / (1 + np.exp(-gate)) * up) @ part("ffn_down").T)
            x = hook(f"blocks.{n}.hook_resid_post", x)
        logits = self.norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T
        return activations, logits

    def norm(self, x, gain):
        return x / np.sqrt((x * x).mean(1, keepdims=True) + self.eps) * gain

    def attention(self, x, part):
        n = len(x)
        out = np.zeros((n, self.n_heads * self.d_head))
        for head in range(self.n_heads):
            kv = head // (self.n_heads // self.n_kv_heads)
            rows = lambda name, h: part(name)[h * self.d_head : (h + 1) * self.d_head]
            q, k = self.rotate(x @ rows("attn_q", head).T), self.rotate(x @ rows("attn_k", kv).T)
            scores = np.where(np.tril(np.ones((n, n), bool)), q @ k.T / np.sqrt(self.d_head), -np.inf)
            pattern = np.exp(scores - scores.max(1, keepdims=True))
            pattern /= pattern.sum(1, keepdims=True)
            out[:, head * self.d_head : (head + 1) * self.d_head] = pattern @ (x @ rows("attn_v", kv).T)
        return out @ part("attn_output").T

    def rotate(self, x):
        angles = np.arange(len(x))[:, None] * self.base ** (-np.arange(0, self.d_head, 2) / self.d_head)
        pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)
        return np.stack([pairs.real, pairs.imag], axis=2).reshape(x.shape)


def mean_loss(logits, ids):
    logits = logits[:-1] - logits[:-1].max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_p[np.arange(len(ids) - 1), ids[1:]].mean()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL.gguf")
    llama = Llama(p.parse_args().model)
    for name, ids in SEQUENCES.items():
        print("tokens", name, *ids, sep="\t")
        activations, logits = llama.forward(ids)
        for hook in HOOKS:
            x = activations[hook]
            for position in sorted({0, 1, len(ids) // 2, len(ids) - 1}):
                print("norm", name, hook, position, f"{np.linalg.norm(x[position]):.9g}", sep="\t")
                for column in range(position % 7, x.shape[1], 71):
                    print("value", name, hook, position, column, f"{x[position, column]:.9g}", sep="\t")
        for splice in SPLICES:
            print("loss", name, splice, f"{mean_loss(llama.forward(ids, splice)[1], ids):.9g}", sep="\t")


if __name__ == "__main__":
    main()
