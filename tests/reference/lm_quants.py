"""Blocks of ggml's quantised types and the values that the Python package `gguf` makes of them.

    python lm_quants.py ../golden/lm/quants.safetensors        (numpy, gguf, safetensors)

Of each type NAME: `NAME.bytes`, random but for the scales, and `NAME.values`.
"""

import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where a block has its 16-bit scales.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

rng = np.random.default_rng(0)
tensors = {}
for name, scales in SCALES.items():
    kind = GGMLQuantizationType[name]
    _, n_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (3, n_bytes), dtype=np.uint8)
    for at in scales:
        blocks[:, at : at + 2] = rng.normal(size=(3, 1)).astype(np.float16).view(np.uint8).reshape(3, 2)
    tensors[f"{name}.bytes"] = blocks.reshape(-1)
    tensors[f"{name}.values"] = dequantize(blocks, kind).astype(np.float32).reshape(-1)
save_file(tensors, sys.argv[1])
