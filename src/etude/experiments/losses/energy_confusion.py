"""Energy confusion on classes never trained on, against binomial deviance alone.

Data: Fashion-MNIST averaged down to 14 x 14, 3,000 rows, and digits. Each seed draws four classes
to train on, three to tune on and three to test on, and other initial weights. A two-layer backbone
and a linear embedding layer train on the first; recall at 1 and the normalized mutual
information of k-means clusters are measured among all rows of the test classes (headline: recall
at 1 on Fashion-MNIST), recall at 1 also among rows of the trained classes held out from training.

Tuning: ours has three confusion weights, binomial deviance three weight decays (so that it too
has a regularizer to turn), each at two learning rates and for the same steps; recall at 1 on the
tuning classes chooses. Further pairs: each confusion weight by itself, its learning rate tuned in
the same way, and the confusion gradient let through to the backbone ("whole network").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from etude.experiments.losses._baselines import clustering, embed, small_images, train_encoder
from etude.losses import ECAMLLoss
from etude.tasks.base import Pair
from etude.tasks.measures import recall_at_1

__all__ = ["measure"]

N_STEPS, LEARNING_RATES, BACKBONE_DIM, OUT_DIM = 200, (1e-3, 4e-3), 64, 32
WEIGHTS, DECAYS = (0.05, 0.13, 0.5), (1e-4, 1e-2, 1e-1)


def _loss(dim: int, n_classes: int, *, weight: float, detach: bool = True) -> nn.Module:
    return ECAMLLoss(dim=dim, n_classes=n_classes, out_dim=OUT_DIM, confusion_weight=weight,
                     detach_backbone=detach)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One trained network: recall on the tuning classes, and its unit embeddings of all rows."""

    validation: float
    vectors: np.ndarray


def measure(seed: int) -> list[Pair]:
    """The pairs of one seed; the first is recall at 1 on new classes of Fashion-MNIST."""
    return [*_pairs("fashion_mnist", 3_000, seed), *_pairs("digits", None, seed)]


def _pairs(name: str, limit: int | None, seed: int) -> list[Pair]:
    x, y = small_images(name, limit)
    rng = np.random.default_rng([seed, 105])
    old, tuning, new = np.split(rng.permutation(10), [4, 7])
    order = rng.permutation(len(x))
    rows = [order[np.isin(y[order], classes)] for classes in (old, tuning, new)]
    held, train = np.split(rows[0], [len(rows[0]) // 4])
    place = np.zeros(10, dtype=np.int64)
    place[old] = np.arange(len(old))
    tensor, target = torch.from_numpy(x), torch.from_numpy(place[y[train]])

    def best_rate(build: Callable[[int, int], nn.Module], decay: float) -> Trained:
        found = []
        for lr in LEARNING_RATES:
            encoder, loss = train_encoder(
                tensor[train], target, build, lr=lr, n_steps=N_STEPS, seed=seed,
                out_dim=BACKBONE_DIM, weight_decay=decay,
            )  # fmt: skip
            assert isinstance(loss, ECAMLLoss)
            vectors = embed(nn.Sequential(encoder, loss.layer), tensor)
            found.append(Trained(recall_at_1(vectors[rows[1]], y[rows[1]]), vectors))
        return max(found, key=lambda run: run.validation)

    def arm(candidates: list[tuple[Callable[[int, int], nn.Module], float]]) -> list[Trained]:
        return [best_rate(build, decay) for build, decay in candidates]

    started = time.perf_counter()
    ours = arm([(partial(_loss, weight=w), DECAYS[0]) for w in WEIGHTS])
    ours_s = time.perf_counter() - started
    theirs = arm([(partial(_loss, weight=0.0), decay) for decay in DECAYS])
    theirs_s = time.perf_counter() - started - ours_s
    whole = arm([(partial(_loss, weight=w, detach=False), DECAYS[0]) for w in WEIGHTS])
    best, base, through = (max(a, key=lambda run: run.validation) for a in (ours, theirs, whole))

    def pair(metric: str, setting: str, run: Trained) -> Pair:
        part = held if setting == "trained classes" else rows[2]
        values = [
            clustering(r.vectors[part], y[part], seed) if metric != "recall_at_1"
            else recall_at_1(r.vectors[part], y[part])
            for r in (run, base)
        ]  # fmt: skip
        return Pair(
            metric=metric, ours=values[0], baseline=values[1], data=name, setting=setting,
            baseline_name="binomial_deviance", ours_s=ours_s, baseline_s=theirs_s,
        )  # fmt: skip

    return [
        pair("recall_at_1", "new classes", best),
        pair("normalized_mutual_information", "new classes", best),
        pair("recall_at_1", "trained classes", best),
        *(
            pair("recall_at_1", f"new classes, weight {w:g}", run)
            for w, run in zip(WEIGHTS, ours, strict=True)
        ),
        pair("recall_at_1", "new classes, whole network", through),
        pair("normalized_mutual_information", "new classes, whole network", through),
    ]
