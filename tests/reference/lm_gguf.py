"""Reads a GGUF file for the lm_* references: metadata, and tensors dequantised to float64.

Needs numpy and the `gguf` package (for the container only; the dequantisation is written out here).
"""

import numpy as np
from gguf import GGUFReader


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.fields = {key: field.contents() for key, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def tensor(self, name):
        """The tensor as float64, shaped [d_out, d_in] or [n]."""
        tensor = self.tensors[name]
        shape = [int(n) for n in reversed(tensor.shape)]
        return dequantise(tensor.tensor_type.name, np.asarray(tensor.data)).reshape(shape)


def dequantise(kind, data):
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    if kind == "F32":
        return raw.view(np.float32).astype(np.float64)
    if kind == "F16":
        return raw.view(np.float16).astype(np.float64)
    # The product and the sum are rounded to f32, as every GGUF reader does.
    if kind == "Q4_1":
        blocks = raw.reshape(-1, 20)
        scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
        minimum = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
        quants = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
        return (scale * quants + minimum).astype(np.float64).reshape(-1)
    if kind == "Q8_0":
        blocks = raw.reshape(-1, 34)
        scale = blocks[:, 0:2].copy().view(np.float16).astype(np.float32)
        quants = blocks[:, 2:].copy().view(np.int8).astype(np.float32)
        return (scale * quants).astype(np.float64).reshape(-1)
    raise ValueError(f"tensor type {kind}")
