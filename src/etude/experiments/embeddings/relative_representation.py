"""Stitching of encoders trained apart: cosines to anchors against coordinates.

Four encoders (one hidden layer of 64, 96, 128 and 160 units, latents of 32) are trained with a
head each, by cross-entropy, from seeds of their own, in two ways: the head reads the latent
("absolute"), or its cosines to 100 anchors, training rows drawn evenly from the classes
("relative"). Both heads begin with a LayerNorm and have one hidden layer. Measured on test rows
is the accuracy of each encoder with each other one's head, the mean of 12 combinations (first
pair a data set), and of each encoder with its own head ("unstitched": what relative coordinates
cost). "procrustes" is the absolute head after the latents were turned by the best orthogonal map
and scale between both encoders' latents of the same anchors, each centered by its own anchors:
it needs the head's encoder at hand, relative latents do not.

Data: digits, and 4,000 rows of Fashion-MNIST averaged down to 14 x 14. Learning rates of both
ways are chosen among three by the mean validation accuracy of encoders with their own heads;
test rows and anchors are disjoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.embeddings import RelativeProjection, anchor_select
from etude.lab.data import load_dataset
from etude.tasks.base import Pair, split_rows

__all__ = ["measure"]

HIDDEN = (64, 96, 128, 160)  # one an encoder
LATENT, N_ANCHORS, BATCH, N_STEPS = 32, 100, 64, 250
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
Part = tuple[Tensor, Tensor]  # x (N, D), y (N,)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is digits, relative against absolute, stitched."""
    return [pair for name in ("digits", "fashion_mnist") for pair in _pairs(name, seed)]


def _pairs(name: str, seed: int) -> list[Pair]:
    parts = _parts(name, seed)
    x, y = parts[0]
    anchors = x[anchor_select(x.numpy(), N_ANCHORS, labels=y.numpy(), seed=seed)]
    start = time.perf_counter()
    absolute = _tune(parts, None, seed)
    between = time.perf_counter()
    relative = _tune(parts, anchors, seed)
    spent = between - start, time.perf_counter() - between

    def pair(ours: float, other: float, against: str, setting: str) -> Pair:
        return Pair(
            metric="accuracy", ours=ours, baseline=other, baseline_name=against, data=name,
            setting=setting, ours_s=spent[1], baseline_s=spent[0],
        )  # fmt: skip

    test, others = parts[2], [(i, j) for i in range(len(HIDDEN)) for j in range(len(HIDDEN))]
    crossed = [(i, j) for i, j in others if i != j]

    def mean(found: Callable[[int, int], float], which: list[tuple[int, int]]) -> float:
        return float(np.mean([found(i, j) for i, j in which]))

    def direct(nets: list[_Net]) -> Callable[[int, int], float]:
        return lambda i, j: nets[j].accuracy(nets[i].describe(test[0]), test[1])

    ours = mean(direct(relative), crossed)
    turned = mean(
        lambda i, j: absolute[j].accuracy(
            _turn(absolute[i].encode(anchors), absolute[j].encode(anchors))(
                absolute[i].encode(test[0])
            ),
            test[1],
        ),
        crossed,
    )
    own = [(i, i) for i in range(len(HIDDEN))]
    return [
        pair(ours, mean(direct(absolute), crossed), "absolute", "stitched"),
        pair(ours, turned, "procrustes", "stitched"),
        pair(mean(direct(relative), own), mean(direct(absolute), own), "absolute", "unstitched"),
    ]


class _Net:
    """An encoder and a head; the head reads cosines where there are anchors."""

    def __init__(self, sizes: tuple[int, int, int], anchors: Tensor | None, seed: int) -> None:
        n_inputs, hidden, n_classes = sizes
        width = LATENT if anchors is None else len(anchors)
        self.anchors = anchors
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, LATENT)
            )
            self.head = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, n_classes)
            )
        self.relative = RelativeProjection()

    def latents(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x)
        if self.anchors is None:
            return z
        with torch.no_grad():
            anchors = self.encoder(self.anchors)
        out: Tensor = self.relative(z, anchors)
        return out

    @torch.inference_mode()
    def describe(self, x: Tensor) -> Tensor:
        return self.latents(x)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x)
        return z

    @torch.inference_mode()
    def accuracy(self, latents: Tensor, y: Tensor) -> float:
        return float((self.head(latents).argmax(1) == y).double().mean())

    def train(self, x: Tensor, y: Tensor, lr: float, seed: int) -> None:
        weights = [*self.encoder.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(N_STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(self.head(self.latents(x[rows])), y[rows]).backward()
            optimizer.step()
            schedule.step()


def _tune(parts: list[Part], anchors: Tensor | None, seed: int) -> list[_Net]:
    """One net a width; the learning rate with the best mean validation accuracy."""
    (x, y), validation, _ = parts
    found = []
    for lr in LEARNING_RATES:
        nets = [
            _Net((x.shape[1], hidden, int(y.max()) + 1), anchors, 100 * seed + n)
            for n, hidden in enumerate(HIDDEN)
        ]
        for n, net in enumerate(nets):
            net.train(x, y, lr, 100 * seed + n)
        score = sum(net.accuracy(net.describe(validation[0]), validation[1]) for net in nets)
        found.append((score, nets))
    return max(found, key=lambda one: one[0])[1]


def _turn(own: Tensor, other: Tensor) -> Callable[[Tensor], Tensor]:
    """The best map z -> scale * (z - mean) Q + mean' from one set of anchor latents to another."""
    mean, target = own.mean(0), other.mean(0)
    u, s, v = torch.linalg.svd((own - mean).T @ (other - target), full_matrices=False)
    scale = s.sum() / ((own - mean) ** 2).sum()
    return lambda z: scale * (z - mean) @ (u @ v) + target


def _parts(name: str, seed: int) -> list[Part]:
    """Train, validation and test, standardized by the training rows."""
    data = load_dataset(name, limit=4_000 if name == "fashion_mnist" else None)
    x, y = data.x, data.y
    assert y is not None
    if name == "fashion_mnist":
        x = x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    split = split_rows(data, seed)
    mean, scale = x[split.train].mean(axis=0), x[split.train].std(axis=0) + 1e-3
    return [
        (torch.from_numpy((x[rows] - mean) / scale), torch.from_numpy(y[rows]))
        for rows in (split.train, split.validation, split.test)
    ]
