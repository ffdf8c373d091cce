"""Matryoshka prefixes against networks trained at each size, and against cut plain embeddings.

Measured: accuracy on test rows from the first m of 64 coordinates, m = 8 (headline), 2, 4, 16,
32 and 64. Data: digits, and 4,000 rows of Fashion-MNIST averaged down to 14 x 14; each seed is
another split and other initial weights. One Matryoshka network serves all sizes.

Baselines: "cross_entropy" is a network of its own for each size, whose embedding has m
coordinates. "truncated" and "pca" are the first m coordinates, and the first m principal
components, of the embedding that cross-entropy trained at 64 coordinates, each with a logistic
regression refitted on them, its C tuned. All networks have the same hidden layer, batches,
steps and three learning rates, chosen on validation rows: for the Matryoshka network by the
mean over its sizes, once, for the others at each size. A last pair compares the nearest
neighbor's class by adaptive retrieval (shortlist of 50 by 8 coordinates, reordered by 64) with
exact search at 64 ("exact_search"), both with the Matryoshka embedding.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from etude.embeddings import MatryoshkaLoss, adaptive_retrieval
from etude.lab.data import load_dataset
from etude.tasks.base import Dataset, Pair, split_rows

__all__ = ["measure"]

SIZES = (2, 4, 8, 16, 32, 64)
CUT = (8, 2, 4)  # sizes at which the plain embedding is cut
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
INVERSE_PENALTIES = (0.01, 1.0, 100.0)
HIDDEN, BATCH, N_STEPS = 128, 64, 500
Part = tuple[Tensor, Tensor]  # x (N, D), y (N,)


def measure(seed: int) -> list[Pair]:
    """Accuracy pairs of one seed; the first is digits at 8 coordinates."""
    clothes = load_dataset("fashion_mnist", limit=4_000)
    small = clothes.x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    clothes = replace(clothes, x=small, image_shape=(1, 14, 14))
    return [pair for data in (load_dataset("digits"), clothes) for pair in _pairs(data, seed)]


def _pairs(data: Dataset, seed: int) -> list[Pair]:
    parts = _parts(data, seed)
    started = time.perf_counter()
    nested = _tune(parts, SIZES, seed)
    nested_s = time.perf_counter() - started
    ours = dict(zip(SIZES, nested.accuracies(*parts[2]), strict=True))
    pairs = []
    for size in sorted(SIZES, key=lambda m: m != 8):
        started = time.perf_counter()
        alone = _tune(parts, (size,), seed)
        pairs.append(
            Pair(metric="accuracy", ours=ours[size], baseline=alone.accuracies(*parts[2])[0],
                 baseline_name="cross_entropy", data=data.name, setting=f"dim={size}",
                 ours_s=nested_s, baseline_s=time.perf_counter() - started)
        )  # fmt: skip
    plain = [alone.embed(x) for x, _ in parts]  # the last one trained has all coordinates
    turned = PCA(random_state=seed).fit(plain[0])
    for name, codes in (("truncated", plain), ("pca", [turned.transform(z) for z in plain])):
        pairs += [
            Pair(metric="accuracy", ours=ours[size], baseline_name=name, data=data.name,
                 baseline=_refitted([z[:, :size] for z in codes], parts), setting=f"dim={size}")
            for size in CUT
        ]  # fmt: skip
    documents, queries = nested.embed(parts[0][0]), nested.embed(parts[2][0])
    neighbor = []
    for short, n in ((8, 50), (SIZES[-1], 1)):
        found, _ = adaptive_retrieval(queries, documents, short_dim=short, n_candidates=n, top_k=1)
        neighbor.append(float((parts[0][1][found[:, 0]] == parts[2][1]).double().mean()))
    pairs.append(
        Pair(metric="accuracy", ours=neighbor[0], baseline=neighbor[1],
             baseline_name="exact_search", data=data.name, setting="nearest neighbor")
    )  # fmt: skip
    return pairs


def _parts(data: Dataset, seed: int) -> list[Part]:
    """Train, validation and test, standardized by the training rows."""
    assert data.y is not None
    split = split_rows(data, seed)
    mean, scale = data.x[split.train].mean(axis=0), data.x[split.train].std(axis=0) + 1e-3
    return [
        (torch.from_numpy((data.x[rows] - mean) / scale), torch.from_numpy(data.y[rows]))
        for rows in (split.train, split.validation, split.test)
    ]


class _Network:
    """An encoder with its heads; with one size it is an ordinary classifier."""

    def __init__(self, n_inputs: int, n_classes: int, sizes: tuple[int, ...], seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Linear(n_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, sizes[-1])
            )
        generator = torch.Generator().manual_seed(seed)
        self.loss = MatryoshkaLoss(sizes[-1], n_classes, sizes=sizes, generator=generator)

    def train(self, x: Tensor, y: Tensor, lr: float, seed: int) -> None:
        weights = [*self.encoder.parameters(), *self.loss.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(N_STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            self.loss(self.encoder(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()

    def embed(self, x: Tensor) -> np.ndarray:
        with torch.inference_mode():
            z: np.ndarray = self.encoder(x).numpy()
        return z

    def accuracies(self, x: Tensor, y: Tensor) -> list[float]:
        """One a size."""
        with torch.inference_mode():
            logits = self.loss.head(self.encoder(x))
        return [float((one.argmax(1) == y).double().mean()) for one in logits]


def _tune(parts: list[Part], sizes: tuple[int, ...], seed: int) -> _Network:
    """The network of the learning rate with the best mean validation accuracy."""
    (x, y), validation, _ = parts
    networks = [_Network(x.shape[1], int(y.max()) + 1, sizes, seed) for _ in LEARNING_RATES]
    for network, lr in zip(networks, LEARNING_RATES, strict=True):
        network.train(x, y, lr, seed)
    return max(networks, key=lambda network: sum(network.accuracies(*validation)))


def _refitted(codes: list[np.ndarray], parts: list[Part]) -> float:
    """Test accuracy of a logistic regression on the codes, C chosen on validation."""
    train, validation, test = codes
    y = [part[1].numpy() for part in parts]
    scale = train.std(axis=0) + 1e-9
    fitted = [
        LogisticRegression(C=c, max_iter=500).fit(train / scale, y[0]) for c in INVERSE_PENALTIES
    ]
    best = max(fitted, key=lambda model: model.score(validation / scale, y[1]))
    return float(best.score(test / scale, y[2]))
