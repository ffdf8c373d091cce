"""Class subspaces against class vectors, on networks trained end to end, and what transfers.

Measured: test accuracy, and test accuracy of a logistic regression on the frozen features for
another task ("transfer"). A network from the same initial encoder sees the same batches for the
same number of steps of SGD (momentum 0.9, cosine decay, weight decay 1e-4, as in the release)
with each head on the encoder's 64 features:
- the fully connected softmax layer ("logistic_regression": that is what it is, on features that
  are learned along with it),
- learned class vectors compared by cosine ("cosine_softmax"),
- class subspaces of dimension 8, the release's choice for most networks, trained on the
  Grassmann manifold (ours).

Data: 5,000 rows of Fashion-MNIST, averaged down to 14 x 14. Transfer: scikit-learn's digits,
enlarged to 14 x 14, 200 rows for the logistic regression.

Tuning: each arm has four configurations, two learning rates times two values of a knob of its
own (label smoothing for the softmax layer, scale of the logits for the others), chosen on the
validation part of Fashion-MNIST; the test part is read for the chosen one, and its encoder is
the one that is transferred. The penalty of the logistic regression is chosen on validation rows
of the digits, from four values for each encoder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.heads import GrassmannHead, GrassmannSGD
from etude.lab.data import load_dataset
from etude.nets.encoders import ConvEncoder
from etude.tasks.base import Arm, Pair, split_rows
from etude.tasks.baselines import LogisticRegression
from etude.tasks.probe import Probe

__all__ = ["measure"]

WIDTH, SIDE, N_CLASSES = 64, 14, 10
ROWS, STEPS, BATCH = 5_000, 300, 64
RATES = (0.1, 0.02)
SMOOTHINGS, SCALES = (0.0, 0.1), (25.0, 10.0)
SUBSPACE_DIM = 8
TRANSFER_ROWS = 200
PENALTIES = (1.0, 0.1, 0.01, 10.0)
Part = tuple[Tensor, Tensor]


class Softmax(nn.Module):
    """The fully connected softmax layer; its knob is label smoothing."""

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, N_CLASSES)
        self.smoothing = smoothing

    def forward(self, features: Tensor) -> Tensor:
        """(B, 64) -> (B, 10)."""
        logits: Tensor = self.layer(features)
        return logits


class CosineSoftmax(nn.Module):
    """Learned class vectors, compared by cosine; its knob is the scale of the logits."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N_CLASSES, WIDTH) / WIDTH**0.5)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, 64) -> (B, 10)."""
        z, w = F.normalize(features, dim=1, eps=1e-6), F.normalize(self.weight, dim=1)
        return self.scale * z @ w.T


Head = Softmax | CosineSoftmax | GrassmannHead


def measure(seed: int) -> list[Pair]:
    """Accuracy pairs of one seed; the first is Fashion-MNIST against the softmax layer."""
    data = load_dataset("fashion_mnist", limit=ROWS)
    assert data.y is not None
    x = data.x.reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4)).reshape(-1, SIDE * SIDE)
    split = split_rows(replace(data, x=x, image_shape=(1, SIDE, SIDE)), seed)
    mean, scale = x[split.train].mean(), x[split.train].std()
    rows = (split.train, split.validation, split.test)
    parts = [(torch.from_numpy((x[r] - mean) / scale), torch.from_numpy(data.y[r])) for r in rows]

    def subspaces(scale: float) -> Head:
        generator = torch.Generator().manual_seed(seed)
        return GrassmannHead(
            WIDTH, N_CLASSES, subspace_dim=SUBSPACE_DIM, scale=scale, generator=generator
        )  # fmt: skip

    arms: dict[str, tuple[Callable[[float], Head], tuple[float, ...]]] = {
        "ours": (subspaces, SCALES),
        "logistic_regression": (Softmax, SMOOTHINGS),
        "cosine_softmax": (CosineSoftmax, SCALES),
    }
    found = {}
    for name, (build, knobs) in arms.items():
        started, best = time.perf_counter(), (-1.0, 0.0)
        for lr, knob in product(RATES, knobs):
            encoder, validation, test = _trained(build, knob, lr, parts, seed)
            if validation > best[0]:
                best, kept = (validation, test), encoder
        found[name] = best[1], _transferred(kept, seed), time.perf_counter() - started
    here, there, ours_s = found.pop("ours")
    pairs = []
    for data_name, setting, ours, which in (
        ("fashion_mnist", "", here, 0), ("digits", "transfer", there, 1),
    ):  # fmt: skip
        pairs += [
            Pair(metric="accuracy", ours=ours, baseline=theirs[which], baseline_name=name,
                 data=data_name, setting=setting, ours_s=ours_s, baseline_s=theirs[2])
            for name, theirs in found.items()
        ]  # fmt: skip
    return pairs


def _trained(
    build: Callable[[float], Head], knob: float, lr: float, parts: list[Part], seed: int
) -> tuple[nn.Module, float, float]:
    """The encoder, and the network's validation and test accuracy."""
    (x, y), *held = parts
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ConvEncoder((1, SIDE, SIDE), WIDTH, width=16)
        head = build(knob)
    bases: Iterable[nn.Parameter] = [head.bases] if isinstance(head, GrassmannHead) else []
    others = [*encoder.parameters(), *(head.parameters() if not bases else ())]
    optimizer = GrassmannSGD(bases, others, lr=lr)  # without bases it is plain SGD
    smoothing = head.smoothing if isinstance(head, Softmax) else 0.0
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    for step in range(STEPS):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        loss = F.cross_entropy(head(encoder(x[rows])), y[rows], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    encoder.eval()
    with torch.inference_mode():
        right = [float((head(encoder(a)).argmax(dim=1) == b).double().mean()) for a, b in held]
    return encoder, right[0], right[1]


def _transferred(encoder: nn.Module, seed: int) -> float:
    """Test accuracy on the digits of a logistic regression on the encoder's features."""
    data = load_dataset("digits")
    assert data.y is not None
    images = torch.from_numpy(data.x.reshape(-1, 1, 8, 8))
    large = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear").flatten(1)
    with torch.inference_mode():
        features = encoder((large - large.mean()) / large.std()).numpy()
    digits = replace(data, x=np.ascontiguousarray(features), image_shape=None)
    split = split_rows(digits, seed)
    few = replace(split, train=split.train[:TRANSFER_ROWS])
    task, arm, best = Probe(), Arm("lr", "", LogisticRegression, {}), (-1.0, 0.0)
    for C in PENALTIES:
        fitted = task.fit(arm, digits, few, {"C": C}, seed=seed, budget_s=None)
        validation = task.measure(fitted, digits, few, "validation")["accuracy"]
        if validation > best[0]:
            best = validation, task.measure(fitted, digits, few, "test")["accuracy"]
    return best[1]
