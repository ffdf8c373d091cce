"""Fixed equiangular vectors against a learned softmax layer, on networks trained end to end.

Measured: test accuracy. A network from the same initial encoder sees the same batches for the
same number of steps with each head; the encoder's 64 features go to
- the fully connected softmax layer ("logistic_regression": that is what it is, on features that
  are learned along with it),
- a linear layer of width d and N fixed equiangular vectors in d dimensions (ours),
- the same with random fixed unit vectors ("random_vectors", on the second data with d < N),
- learned class vectors compared by cosine ("cosine_softmax").
Fixed one-hot vectors are no arm of their own: with d = N ours are those, rotated.

Data: 6,000 rows of Fashion-MNIST, averaged down to 14 x 14, on a small convolutional network
(headline, d = N = 10); and pairs of scikit-learn's digits side by side, N = 100 classes, on a
perceptron, for several d. The digits of a pair come from one part of the split only.

Tuning: each arm has six configurations, two learning rates times three values of a knob of its
own (label smoothing for the softmax layer, temperature for the others), chosen on the validation
part; the test part is read for the chosen one. The values were widened, for every arm alike,
after one run of seed 0, whose test figures were seen: weigh the other seeds more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import EtudeError
from etude.heads import EBVHead
from etude.lab.data import load_dataset
from etude.nets.encoders import ConvEncoder, VectorEncoder
from etude.tasks.base import Pair, split_rows
from etude.tasks.training import optimize

__all__ = ["measure"]

WIDTH = 64
RATES = (3e-3, 1e-2)
SMOOTHINGS = (0.0, 0.1, 0.2)
TEMPERATURES = (0.07, 0.2, 0.5)
CLOTHES_STEPS, PAIR_STEPS = 400, 600
PAIRS_A_CLASS = {"train": 60, "validation": 20, "test": 40}
DIMENSIONS = (12, 25, 100)
Part = tuple[Tensor, Tensor]
Found = tuple[float, float]  # test accuracy of the best configuration, seconds of all


class Softmax(nn.Module):
    """The fully connected softmax layer; its knob is label smoothing."""

    def __init__(self, n_classes: int, smoothing: float) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, n_classes)
        self.smoothing = smoothing

    def forward(self, features: Tensor) -> Tensor:
        """(B, 64) -> (B, n_classes)."""
        logits: Tensor = self.layer(features)
        return logits

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with label smoothing."""
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)


class CosineSoftmax(nn.Module):
    """Learned class vectors, compared by cosine; its knob is the temperature."""

    def __init__(self, n_classes: int, temperature: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_classes, WIDTH) / WIDTH**0.5)
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        """(B, 64) -> (B, n_classes)."""
        z, w = F.normalize(features, dim=1, eps=1e-6), F.normalize(self.weight, dim=1)
        return z @ w.T / self.temperature

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Plain cross-entropy."""
        return F.cross_entropy(logits, target)


Head = Softmax | CosineSoftmax | EBVHead
Build = Callable[[float], Head]


def ebv(n_classes: int, dim: int, seed: int) -> Build:
    """Ours with `dim`-dimensional vectors."""

    def build(temperature: float) -> Head:
        generator = torch.Generator().manual_seed(seed)
        return EBVHead(WIDTH, n_classes, ebv_dim=dim, temperature=temperature, generator=generator)

    return build


def random_vectors(n_classes: int, dim: int, seed: int) -> Build:
    """Ours, but with unit vectors in random directions."""
    rows = torch.randn(n_classes, dim, generator=torch.Generator().manual_seed(seed))

    def build(temperature: float) -> Head:
        # Of as many dimensions as classes, so that no vectors are searched in vain.
        head = EBVHead(WIDTH, n_classes, temperature=temperature)
        head.projection = nn.Linear(WIDTH, dim)
        head.objective.vectors = F.normalize(rows, dim=1)
        return head

    return build


def measure(seed: int) -> list[Pair]:
    """Accuracy pairs of one seed; the first is Fashion-MNIST against the softmax layer."""
    return [*_clothes(seed), *_digit_pairs(seed)]


def _clothes(seed: int) -> list[Pair]:
    data = load_dataset("fashion_mnist", limit=6_000)
    assert data.y is not None
    x = data.x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    split = split_rows(replace(data, x=x, image_shape=(1, 14, 14)), seed)
    mean, scale = x[split.train].mean(), x[split.train].std()
    rows = (split.train, split.validation, split.test)
    parts = [(torch.from_numpy((x[r] - mean) / scale), torch.from_numpy(data.y[r])) for r in rows]

    def encoder() -> nn.Module:
        return ConvEncoder((1, 14, 14), WIDTH, width=16)

    def run(build: Build, knobs: tuple[float, ...]) -> Found:
        return _tuned(encoder, build, knobs, parts, seed, CLOTHES_STEPS)

    ours = run(ebv(10, 10, seed), TEMPERATURES)
    others = {
        "logistic_regression": run(lambda knob: Softmax(10, knob), SMOOTHINGS),
        "cosine_softmax": run(lambda knob: CosineSoftmax(10, knob), TEMPERATURES),
    }
    return _pairs(ours, others, "fashion_mnist", "d=N=10")


def _digit_pairs(seed: int) -> list[Pair]:
    data = load_dataset("digits")
    assert data.y is not None
    split, generator, parts = split_rows(data, seed), np.random.default_rng([seed, 100]), []
    mean, scale = data.x[split.train].mean(), data.x[split.train].std()
    for part, count in PAIRS_A_CLASS.items():
        rows = getattr(split, part)
        y = np.repeat(np.arange(100), count)
        pools = [rows[data.y[rows] == digit] for digit in range(10)]
        halves = [
            np.concatenate([generator.choice(pools[digit], count) for digit in digits])
            for digits in (np.arange(100) // 10, np.arange(100) % 10)
        ]
        x = (np.concatenate([data.x[half] for half in halves], axis=1) - mean) / scale
        parts.append((torch.from_numpy(x), torch.from_numpy(y)))

    def encoder() -> nn.Module:
        return VectorEncoder(128, WIDTH)

    def run(build: Build, knobs: tuple[float, ...]) -> Found:
        return _tuned(encoder, build, knobs, parts, seed, PAIR_STEPS)

    learned = {
        "logistic_regression": run(lambda knob: Softmax(100, knob), SMOOTHINGS),
        "cosine_softmax": run(lambda knob: CosineSoftmax(100, knob), TEMPERATURES),
    }
    pairs = []
    for dim in DIMENSIONS:
        ours, others = run(ebv(100, dim, seed), TEMPERATURES), dict(learned)
        if dim < 100:
            others["random_vectors"] = run(random_vectors(100, dim, seed), TEMPERATURES)
        pairs += _pairs(ours, others, "digit pairs", f"d={dim}, N=100")
    return pairs


def _pairs(ours: Found, others: Mapping[str, Found], data: str, setting: str) -> list[Pair]:
    return [
        Pair(metric="accuracy", ours=ours[0], baseline=theirs[0], baseline_name=name, data=data,
             setting=setting, ours_s=ours[1], baseline_s=theirs[1])
        for name, theirs in others.items()
    ]  # fmt: skip


def _tuned(
    encoder: Callable[[], nn.Module], build: Build, knobs: tuple[float, ...],
    parts: list[Part], seed: int, n_steps: int,
) -> Found:  # fmt: skip
    started, best = time.perf_counter(), (-1.0, 0.0)
    for lr, knob in product(RATES, knobs):
        found = _accuracies(encoder, build, knob, lr, parts, seed, n_steps)
        best = max(best, found, key=lambda one: one[0])  # the first of equals: never by the test
    return best[1], time.perf_counter() - started


def _accuracies(
    encoder: Callable[[], nn.Module], build: Build, knob: float, lr: float,
    parts: list[Part], seed: int, n_steps: int,
) -> tuple[float, float]:  # fmt: skip
    """Validation and test accuracy; a configuration that diverges counts as 0."""
    (x, y), *held = parts
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = encoder()
        head = build(knob)
    network = nn.Sequential(body, head).train()
    try:
        optimize(
            network.parameters(), lambda rows: head.loss(network(x[rows]), y[rows]), len(x),
            seed=seed, lr=lr, n_steps=n_steps,
        )  # fmt: skip
    except EtudeError:
        return 0.0, 0.0
    network.eval()
    with torch.inference_mode():
        right = [float((network(a).argmax(dim=1) == b).double().mean()) for a, b in held]
    return right[0], right[1]
