"""The vector of one short text by numpy alone: who only answers queries needs no torch.

The encoder is that of ``etude.nets.minilm``, equations (1) to (3) there, for one text at a time;
what a library of tensors costs a process to load, seconds and a quarter of a gigabyte, is many
times what one query costs. The weights are mapped: they share the memory of the file's cache.
"""

from __future__ import annotations

import json
import mmap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MOST_TOKENS", "query_vector"]

MOST_TOKENS = 256  # as ``encode`` cuts by default
PARTS = ("query", "key", "value")


def query_vector(text: str) -> np.ndarray:
    """(384,) float32, of unit length: that of ``etude.nets.minilm.encode`` up to rounding.

    Raises:
        ImportError, EtudeError: the extra etude[text] is not there, or not the published one.
    """
    from etude.nets.minilm import EPS, N_HEADS, N_LAYERS

    tokenizer, weights = _load()
    ids = tokenizer.encode(text).ids
    ids = [*ids[: MOST_TOKENS - 1], ids[-1]] if len(ids) > MOST_TOKENS else ids
    T = len(ids)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(1, keepdims=True) + EPS)
        return np.asarray(x * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    table = "embeddings.{}_embeddings.weight"
    h = weights[table.format("word")][ids] + weights[table.format("position")][:T]
    h = norm(h + weights[table.format("token_type")][0], "embeddings.LayerNorm")  # (1)
    for n in range(N_LAYERS):
        at = f"encoder.layer.{n}"
        q, k, v = (
            linear(h, f"{at}.attention.self.{part}").reshape(T, N_HEADS, -1).transpose(1, 0, 2)
            for part in PARTS
        )
        mixed = (_softmax(q @ k.transpose(0, 2, 1) / q.shape[2] ** 0.5) @ v).transpose(1, 0, 2)
        mixed = linear(mixed.reshape(T, -1), f"{at}.attention.output.dense")
        h = norm(h + mixed, f"{at}.attention.output.LayerNorm")  # (2)
        inner = _gelu(linear(h, f"{at}.intermediate.dense"))
        h = norm(h + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    vector = h.mean(0)
    return np.asarray(vector / np.linalg.norm(vector))  # (3)


def _softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return np.asarray(x * (0.5 + 0.5 * erf(x * np.float32(0.5**0.5))))


@cache
def _load() -> tuple[Any, dict[str, np.ndarray]]:
    """The tokenizer and the weights by name, once a process."""
    from etude.nets.minilm import published

    tokenizer, path = published()
    return tokenizer, _mapped(path)


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a safetensors file by name, read-only, in the file's own memory."""
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(whole[:8], "little")
    arrays = {}
    for name, fact in json.loads(whole[8:start]).items():
        if fact.get("dtype") == "F32":
            first, end = fact["data_offsets"]
            flat = np.frombuffer(whole, "<f4", (end - first) // 4, start + first)
            arrays[name] = flat.reshape(fact["shape"])
    return arrays
