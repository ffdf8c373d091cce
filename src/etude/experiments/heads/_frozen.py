"""A frozen backbone and a tuned trial on its features, shared by the experiments on heads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from etude.lab.data import load_dataset
from etude.nets.encoders import ConvEncoder
from etude.tasks.base import Arm, Dataset, Split
from etude.tasks.probe import Probe
from etude.tasks.training import optimize

__all__ = ["clothes_tokens", "tuned_accuracy"]

N_KNOWN = 5  # classes of Fashion-MNIST that the backbone learns; the others are the task
KNOWN_ROWS, STEPS = 4_000, 500


def clothes_tokens(seed: int, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n_rows, 49, 64) and class ids (n_rows,) of five classes of Fashion-MNIST.

    The backbone, two strided convolutions, was trained to tell the other five classes apart and
    is frozen; which five depends on the seed. A token is a position of its last map (7 x 7).
    """
    data, generator = load_dataset("fashion_mnist"), np.random.default_rng([seed, 31])
    assert data.y is not None
    order, rows = generator.permutation(10), generator.permutation(len(data.x))
    rank = np.argsort(order)[data.y[rows]]  # known classes have ranks 0..4
    known, unseen = rows[rank < N_KNOWN][:KNOWN_ROWS], rows[rank >= N_KNOWN][:n_rows]
    ids = np.argsort(order)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = nn.Sequential(*list(ConvEncoder((1, 28, 28), N_KNOWN).blocks)[:2])
        pooled = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network = nn.Sequential(pooled, nn.Linear(64, N_KNOWN))
    x = torch.from_numpy(data.x[known]).reshape(-1, 1, 28, 28)
    y = torch.from_numpy(ids[data.y[known]])
    optimize(
        network.parameters(), lambda batch: F.cross_entropy(network(x[batch]), y[batch]), len(x),
        seed=seed, n_steps=STEPS,
    )  # fmt: skip
    network.eval()
    with torch.inference_mode():
        images = torch.from_numpy(data.x[unseen]).reshape(-1, 1, 28, 28)
        maps = torch.cat([blocks(part) for part in torch.split(images, 512)])
    return maps.flatten(2).transpose(1, 2).numpy().copy(), ids[data.y[unseen]] - N_KNOWN


def tuned_accuracy(
    arm: Arm, data: Dataset, split: Split, seed: int, search: Mapping[str, tuple[Any, ...]]
) -> tuple[float, float]:
    """Test accuracy of the configuration best on the validation part, and the seconds it took.

    Every combination of `search` is tried; of equals the first counts.
    """
    task, started, best = Probe(), time.perf_counter(), (-1.0, 0.0)
    for values in product(*search.values()):
        knobs = dict(zip(search, values, strict=True))
        predictor = task.fit(arm, data, split, knobs, seed=seed, budget_s=None)
        validation = task.measure(predictor, data, split, "validation")["accuracy"]
        if validation > best[0]:
            best = validation, task.measure(predictor, data, split, "test")["accuracy"]
    return best[1], time.perf_counter() - started
