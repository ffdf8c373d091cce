"""Facts of a data set as JSON values, and the arguments that a method asks for made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from etude.tasks.base import Arm, Dataset
from etude.tasks.wire import arguments, asks
from etude.tasks.words import name_distances, name_vectors

__all__ = [
    "build", "class_facts", "describe", "has_sets", "has_tokens", "patch_tokens", "scaling",
    "tokens_of", "unscaled",
]  # fmt: skip

LEARNING = ("lr", "weight_decay", "n_steps")  # knobs of the training loop, not of a method


def describe(data: Dataset, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """What a task can hand to a constructor, from the training rows alone; JSON values."""
    facts: dict[str, Any] = {"dim": int(data.x.shape[1]), "seed": seed}
    if data.y is not None:
        facts["n_classes"] = data.n_classes
        facts["class_counts"] = np.bincount(data.y[rows], minlength=data.n_classes).tolist()
    if data.labels is not None:
        facts["n_classes"] = data.n_classes
        facts["class_counts"] = data.labels[rows].sum(axis=0).tolist()
    if data.image_shape is not None:
        facts["image_shape"] = list(data.image_shape)
    if data.tokens is not None and data.tokens.dtype == object:
        facts["token_dim"] = int(data.tokens[0].shape[1])
    elif has_tokens(data):
        example = tokens_of(data, rows[:1])
        facts["n_tokens"], facts["token_dim"] = example.shape[1:]
    return facts


def class_facts(arm: Arm, data: Dataset) -> dict[str, Any]:
    """What the arm's constructor asks to know of the classes; JSON values.

    The vectors and distances of names are made anew from the names by ``build``.
    """
    names, facts = asks(arm.method), dict[str, Any]()
    if any(name in names for name in ("classes", "class_embeddings", "class_distances")):
        facts["classes"] = list(data.classes)
    if "descriptions" in names and data.descriptions is not None:
        facts["descriptions"] = {name: list(data.descriptions[name]) for name in data.classes}
    if "class_distances" in names and data.class_distances is not None:
        facts["class_distances"] = data.class_distances.tolist()
    return facts


def build(arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
    """The arm's object: its constructor gets the facts and knobs that it asks for."""
    values = dict(facts)
    values["generator"] = torch.Generator().manual_seed(int(facts["seed"]))
    if "class_counts" in facts:
        values["class_counts"] = torch.tensor(facts["class_counts"], dtype=torch.float32)
    names = asks(arm.method)
    if "class_embeddings" in names and "classes" in facts:
        values["class_embeddings"] = name_vectors(facts["classes"])
    if "class_distances" in names and "class_distances" not in facts and "classes" in facts:
        values["class_distances"] = name_distances(facts["classes"])
    own = {k: v for k, v in knobs.items() if k not in LEARNING or k in asks(arm.method)}
    with torch.random.fork_rng():
        # Initial weights of both arms come from the seed, whatever ran before.
        torch.manual_seed(int(facts["seed"]))
        return arm.method(**arguments(arm.method, values, own))


def scaling(x: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and scale of the training columns; a constant column gets scale 1."""
    spread = x.std(axis=0)
    scale = np.where(spread > 1e-7, spread, 1.0)
    return {"mean": x.mean(axis=0).astype(np.float32), "scale": scale.astype(np.float32)}


def unscaled(dim: int) -> dict[str, np.ndarray]:
    """The arrays of ``scaling`` that leave columns as they are."""
    return {"mean": np.zeros(dim, np.float32), "scale": np.ones(dim, np.float32)}


def has_tokens(data: Dataset) -> bool:
    """Whether a sample is T tokens, T the same for all: given so, or an image's patches."""
    given = data.tokens is not None and data.tokens.dtype != object
    return given or (data.tokens is None and data.image_shape is not None)


def has_sets(data: Dataset) -> bool:
    """Whether a sample is a set of tokens, of any number."""
    return data.tokens is not None or data.image_shape is not None


def tokens_of(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """(B, T, D') tokens of the rows; (B,) objects (T, D') where the sets differ in size."""
    if data.tokens is not None:
        return data.tokens[rows]
    assert data.image_shape is not None
    return patch_tokens(data.x[rows], data.image_shape)


def patch_tokens(x: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Overlapping patches of flattened images: (B, C*H*W) -> (B, T, C*s*s), T at most 64.

    The stride makes at most 8 x 8 patches; a patch is two pixels wider than the stride, so
    that neighbors overlap. It is the plainest frozen tokenizer there is: nothing is learned.
    """
    channels, height, width = image_shape
    stride = max(1, -(-max(height, width) // 8))
    size = min(stride + 2, height, width)
    images = x.reshape(-1, channels, height, width)
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (B, C, h, w, s, s)
    tokens = windows.transpose(0, 2, 3, 1, 4, 5).reshape(len(x), -1, channels * size * size)
    return np.ascontiguousarray(tokens, dtype=np.float32)
