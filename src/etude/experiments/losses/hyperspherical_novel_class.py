"""A normalized softmax and class means for classes never trained on, against metric losses.

Data: Fashion-MNIST averaged down to 14 x 14, 4,000 rows, and digits. Each seed draws five classes
to train on, two to tune on and three to test on, and other initial weights. From a trained
encoder, unit embeddings of k examples a class give class means (k = 1, 5, 20, mean over 20 draws)
and the other rows are told by cosine: among the three new classes (disjoint), or among these and
the five old ones, whose examples and queries are rows held out from training (joint: accuracy is
the mean over the eight classes). The headline is joint, k = 5, on Fashion-MNIST.

Tuning: each loss has three values of its one knob (a weight decay for the plain softmax) at two
learning rates, all for the same steps; the joint accuracy at k = 5 with the two tuning classes in
the place of the test classes chooses. All arms classify in the same way. A further pair gives
the nearest example instead of the mean as rule, both on the normalized softmax.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from etude.experiments.losses._baselines import (
    Contrastive,
    Prototypical,
    Softmax,
    Triplet,
    embed,
    small_images,
    train_encoder,
)
from etude.losses import NormalizedSoftmaxLoss, NovelClassCentroid
from etude.tasks.base import Pair

__all__ = ["measure"]

N_STEPS, LEARNING_RATES, N_DRAWS, PER_CLASS = 200, (1e-3, 4e-3), 20, 100
SHOTS = (1, 5, 20)


def _normalized(dim: int, n_classes: int, *, scale: float) -> nn.Module:
    return NormalizedSoftmaxLoss(dim=dim, n_classes=n_classes, scale=scale)


ARMS: dict[str, list[tuple[Callable[[int, int], nn.Module], float]]] = {  # loss, weight decay
    "ours": [(partial(_normalized, scale=s), 1e-4) for s in (8.0, 16.0, 30.0)],
    "triplet": [(partial(Triplet, margin=m), 1e-4) for m in (0.1, 0.3, 0.8)],
    "contrastive": [(partial(Contrastive, margin=m), 1e-4) for m in (0.5, 1.0, 1.4)],
    "prototypical": [(partial(Prototypical, scale=s), 1e-4) for s in (0.1, 1.0, 10.0)],
    "cross_entropy": [(Softmax, decay) for decay in (1e-4, 1e-2, 1e-1)],
}


def measure(seed: int) -> list[Pair]:
    """The pairs of one seed; the first is joint, five examples, Fashion-MNIST, against triplet."""
    return [*_pairs("fashion_mnist", 4_000, seed), *_pairs("digits", None, seed)]


def _pairs(name: str, limit: int | None, seed: int) -> list[Pair]:
    x, y = small_images(name, limit)
    rng = np.random.default_rng([seed, 36])
    old, tuning, new = np.split(rng.permutation(10), [5, 7])
    order = rng.permutation(len(x))
    rows = {k: order[y[order] == k] for k in range(10)}
    # of the old classes, rows for tuning and rows for the test are kept from training
    held = {k: np.split(rows[k], [40, 80]) for k in old}
    train = np.concatenate([held[k][2] for k in old])
    place = np.zeros(10, dtype=np.int64)
    place[old] = np.arange(5)
    tensor, target = torch.from_numpy(x), torch.from_numpy(place[y[train]])
    pools = [
        {k: held[k][part] for k in old} | {k: rows[k][:PER_CLASS] for k in others}
        for part, others in ((0, tuning), (1, new))
    ]

    def tuned(arm: str) -> tuple[np.ndarray, float]:
        started, found = time.perf_counter(), []
        for build, decay in ARMS[arm]:
            for lr in LEARNING_RATES:
                encoder, _ = train_encoder(
                    tensor[train], target, build, lr=lr, n_steps=N_STEPS, seed=seed,
                    weight_decay=decay,
                )  # fmt: skip
                vectors = embed(encoder, tensor)
                found.append((_accuracy(vectors, pools[0], None, 5, seed), vectors))
        return max(found, key=lambda run: run[0])[1], time.perf_counter() - started

    chosen = {arm: tuned(arm) for arm in ARMS}

    def value(arm: str, only: np.ndarray | None, shots: int, rule: str = "centroid") -> float:
        return _accuracy(chosen[arm][0], pools[1], only, shots, seed, rule)

    pairs = [
        Pair(
            metric="accuracy", ours=value("ours", only, shots), data=name,
            baseline=value(other, only, shots), baseline_name=other,
            setting=f"{setting}, {shots} examples", ours_s=chosen["ours"][1],
            baseline_s=chosen[other][1],
        )
        for setting, only in (("joint", None), ("disjoint", new))
        for shots in sorted(SHOTS, key=lambda n: n != 5)
        for other in list(ARMS)[1:]
    ]  # fmt: skip
    return [
        *pairs,
        Pair(metric="accuracy", ours=value("ours", None, 5), data=name,
             baseline=value("ours", None, 5, "nearest"), baseline_name="nearest_example",
             setting="joint, 5 examples"),
    ]  # fmt: skip


def _accuracy(
    vectors: np.ndarray, pool: dict[int, np.ndarray], only: np.ndarray | None, shots: int,
    seed: int, rule: str = "centroid",
) -> float:  # fmt: skip
    """Mean over draws of the mean over classes; `only` limits the candidates to these classes."""
    rng, found = np.random.default_rng([seed, shots]), []
    classes = [k for k in pool if only is None or k in only]
    for _ in range(N_DRAWS):
        drawn = {k: rng.permutation(pool[k]) for k in classes}
        support = np.concatenate([drawn[k][:shots] for k in classes])
        labels = np.repeat(classes, shots)
        means = NovelClassCentroid(rule=rule).fit(vectors[support], labels)
        found += [(means.predict(vectors[drawn[k][shots:]]) == k).mean() for k in classes]
    return float(np.mean(found))
