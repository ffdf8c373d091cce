"""Comp-sum losses under label noise, against cross-entropy with label smoothing.

Measured: accuracy on clean test labels of a two-layer network whose training and validation
labels are wrong, uniformly among the other classes, for 40 % of the rows (headline), and for
none. Data: digits, and 4,000 rows of Fashion-MNIST averaged down to 14 x 14. Each seed is another
split, other noise and other initial weights, the same for every configuration of both arms.

Tuning: five values of tau for the comp-sum loss and five of label smoothing for cross-entropy,
each at two learning rates and three stopping points, are compared on the validation part, whose
labels are as wrong as the training part's; both arms have thirty candidates. The test part is
read once, for the chosen candidate. Further pairs show each tau by itself, with its learning
rate and stopping point tuned in the same way, against tuned cross-entropy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.lab.data import load_dataset
from etude.losses import CompSumLoss
from etude.tasks.base import Dataset, Pair, split_rows

__all__ = ["measure"]

TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)
SMOOTHINGS = (0.0, 0.1, 0.3, 0.5, 0.7)
LEARNING_RATES = (1e-3, 5e-3)
CHECKPOINTS = (100, 200, 400)  # steps after which training may be found to have stopped
BATCH, HIDDEN = 64, 128
Loss = Callable[[Tensor, Tensor], Tensor]
Tuned = tuple[float, float]  # validation and test accuracy


def measure(seed: int) -> list[Pair]:
    """Accuracy pairs of one seed; the first is digits under 40 % label noise."""
    digits, clothes = load_dataset("digits"), load_dataset("fashion_mnist", limit=4_000)
    small = clothes.x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    clothes = replace(clothes, x=small, image_shape=(1, 14, 14))
    return [
        *_pairs(digits, seed, 0.4),
        *_pairs(digits, seed, 0.0),
        *_pairs(clothes, seed, 0.4),
    ]


def _pairs(data: Dataset, seed: int, noise: float) -> list[Pair]:
    parts = _parts(data, seed, noise)

    def tune(losses: list[Loss]) -> tuple[list[Tuned], float]:
        started = time.perf_counter()
        by_rate = [_train(parts, losses, lr, seed) for lr in LEARNING_RATES]
        found = [max(runs, key=lambda run: run[0]) for runs in zip(*by_rate, strict=True)]
        return found, time.perf_counter() - started

    ours, ours_s = tune([CompSumLoss(tau=tau) for tau in TAUS])
    theirs, theirs_s = tune([_smoothed(smoothing) for smoothing in SMOOTHINGS])
    baseline = max(theirs, key=lambda run: run[0])[1]
    name = f"{round(100 * noise)} % label noise"
    settings = {name: max(ours, key=lambda run: run[0])[1]}
    settings |= {f"{name}, tau={tau:g}": test for tau, (_, test) in zip(TAUS, ours, strict=True)}
    return [
        Pair(metric="accuracy", ours=value, baseline=baseline, baseline_name="cross_entropy",
             data=data.name, setting=setting, ours_s=ours_s, baseline_s=theirs_s)
        for setting, value in settings.items()
    ]  # fmt: skip


def _smoothed(smoothing: float) -> Loss:
    return lambda logits, target: F.cross_entropy(logits, target, label_smoothing=smoothing)


def _parts(data: Dataset, seed: int, noise: float) -> list[tuple[Tensor, Tensor]]:
    """Train, validation and test as (x, y); the labels of the first two are noisy."""
    assert data.y is not None
    split = split_rows(data, seed)
    mean, scale = data.x[split.train].mean(axis=0), data.x[split.train].std(axis=0) + 1e-3
    rng = np.random.default_rng([seed, 40])
    parts = []
    for rows in (split.train, split.validation, split.test):
        y = data.y[rows].copy()
        if rows is not split.test:
            wrong = rng.permutation(len(y))[: round(noise * len(y))]
            y[wrong] = (y[wrong] + rng.integers(1, data.n_classes, len(wrong))) % data.n_classes
        parts.append((torch.from_numpy((data.x[rows] - mean) / scale), torch.from_numpy(y)))
    return parts


def _train(
    parts: list[tuple[Tensor, Tensor]], losses: list[Loss], lr: float, seed: int
) -> list[Tuned]:
    """One network a loss, from equal weights on equal batches; each stops at its best checkpoint.

    The networks are stacked in (M, ., .) weights: the sum of their losses gives each its own
    gradient, and AdamW works by coordinate, so this equals training them one after the other.
    """
    (x, y), *held = parts
    generator = torch.Generator().manual_seed(seed)
    sizes = [x.shape[1], HIDDEN, int(y.max()) + 1]
    weights = []
    for n_in, n_out in pairwise(sizes):
        for n_rows in (n_in, 1):
            first = (2 * torch.rand(n_rows, n_out, generator=generator) - 1) / math.sqrt(n_in)
            weights.append(first.repeat(len(losses), 1, 1).requires_grad_(True))

    def logits(batch: Tensor) -> Tensor:
        w1, b1, w2, b2 = weights
        return torch.relu(batch @ w1 + b1) @ w2 + b2  # (M, B, K)

    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-4)
    best: list[Tuned] = [(-1.0, 0.0)] * len(losses)
    for step in range(1, CHECKPOINTS[-1] + 1):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        scores = zip(losses, logits(x[rows]), strict=True)
        torch.stack([loss(one, y[rows]) for loss, one in scores]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in CHECKPOINTS:
            with torch.inference_mode():
                hits = [(logits(a).argmax(2) == b).double().mean(1).tolist() for a, b in held]
            now = list(zip(*hits, strict=True))
            best = [max(pair, key=lambda run: run[0]) for pair in zip(best, now, strict=True)]
    return best
