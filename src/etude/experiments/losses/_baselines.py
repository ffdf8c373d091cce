"""Losses, data and measures that the experiments on unseen classes share.

Every objective is a module called with (embeddings, target) that owns what it learns beside the
encoder, and is built by ``(dim, n_classes)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.lab.data import load_dataset
from etude.nets.encoders import VectorEncoder
from etude.tasks.measures import clustering, mean_average_precision
from etude.tasks.objectives import (
    ArcFace,
    Contrastive,
    CosFace,
    Prototypical,
    Softmax,
    Triplet,
)
from etude.tasks.training import optimize

__all__ = [
    "ArcFace", "Contrastive", "CosFace", "Prototypical", "Softmax", "Triplet", "clustering",
    "embed", "mean_average_precision", "small_images", "train_encoder",
]  # fmt: skip

DIM = 32  # of the embeddings
Build = Callable[[int, int], nn.Module]


def small_images(name: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) in [0, 1] and (N,): digits, or Fashion-MNIST averaged down to 14 x 14."""
    data = load_dataset(name, limit=limit)
    assert data.y is not None
    x = data.x / data.x.max()
    if name == "fashion_mnist":
        x = x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    return x.astype(np.float32), data.y


def train_encoder(
    x: Tensor, y: Tensor, build: Build, *, lr: float, n_steps: int, seed: int, out_dim: int = DIM,
    weight_decay: float = 1e-4,
) -> tuple[VectorEncoder, nn.Module]:  # fmt: skip
    """An encoder and its objective, trained from the seed's weights on the seed's batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = VectorEncoder(x.shape[1], out_dim)
        objective = build(out_dim, int(y.max()) + 1)
    weights = [*encoder.parameters(), *objective.parameters()]
    optimize(
        weights, lambda rows: objective(encoder(x[rows]), y[rows]), len(x), seed=seed, lr=lr,
        n_steps=n_steps, weight_decay=weight_decay,
    )  # fmt: skip
    return encoder.eval(), objective.eval()


def embed(network: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """(N, D) rows -> (N, M) unit vectors."""
    with torch.inference_mode():
        return F.normalize(network(x), dim=1).numpy()
