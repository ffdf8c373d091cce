"""CNN-SVM against softmax cross-entropy on the same convolutional network, on Fashion-MNIST.

Measured: test accuracy on 4,000 rows of Fashion-MNIST, averaged down to 14 x 14, of the paper's
network at a quarter of its widths (8 and 16 channels, 128 hidden units). The headline takes the
largest score as the class for both; the second pair gives the SVM by the released rule, the
argmax of the scores' signs. Each seed is another 60 / 20 / 20 split, other weights and other
batches, the same for every candidate of both arms.

Tuning: Adam's learning rate, three values an arm, and two stopping points, chosen on the
validation part, for each of the two rules by itself; the penalty is the paper's for the SVM, and
cross-entropy has no smoothing. The test part is read once, for the chosen candidate.
"""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.lab.data import load_dataset
from etude.losses import CNNSVM
from etude.tasks.base import Dataset, Pair, split_rows

__all__ = ["measure"]

LEARNING_RATES = (1e-3, 3e-3, 1e-2)
CHECKPOINTS = (200, 400)  # steps after which training may be found to have stopped
BATCH, SIDE = 64, 14
WIDTHS, HIDDEN = (8, 16), 128
Rule = Literal["score", "sign"]
Stop = dict[Rule, tuple[float, float]]  # validation and test accuracy


def measure(seed: int) -> list[Pair]:
    """Accuracy by the largest score, then by the released rule."""
    data = load_dataset("fashion_mnist", limit=4_000)
    parts = _parts(data, seed)
    svm, svm_s = _arm(parts, True, seed)
    softmax, softmax_s = _arm(parts, False, seed)
    baseline = max(stop["score"] for stop in softmax)[1]
    settings: dict[Rule, str] = {"score": "largest score", "sign": "largest sign, as released"}
    return [
        Pair(metric="accuracy", ours=max(stop[rule] for stop in svm)[1], baseline=baseline,
             baseline_name="cross_entropy", data=data.name, setting=setting,
             ours_s=svm_s, baseline_s=softmax_s)
        for rule, setting in settings.items()
    ]  # fmt: skip


def _parts(data: Dataset, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Train, validation and test as (x, y), x (N, 1, SIDE, SIDE) in [0, 1]."""
    assert data.y is not None
    images = torch.from_numpy(data.x).reshape(-1, 1, 28, 28)
    images = F.avg_pool2d(images / images.max(), 28 // SIDE)
    split, y = split_rows(data, seed), torch.from_numpy(data.y)
    return [(images[rows], y[rows]) for rows in (split.train, split.validation, split.test)]


def _arm(parts: list[tuple[Tensor, Tensor]], svm: bool, seed: int) -> tuple[list[Stop], float]:
    started = time.perf_counter()
    runs = [_train(parts, svm, lr, seed) for lr in LEARNING_RATES]
    return [stop for run in runs for stop in run], time.perf_counter() - started


def _train(parts: list[tuple[Tensor, Tensor]], svm: bool, lr: float, seed: int) -> list[Stop]:
    """One network at its checkpoints; only the objective depends on `svm`."""
    (x, y), *held = parts
    generator = torch.Generator().manual_seed(seed)
    network = CNNSVM(
        10, image_shape=(1, SIDE, SIDE), widths=WIDTHS, hidden_dim=HIDDEN, generator=generator
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    stops: list[Stop] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for step in range(1, CHECKPOINTS[-1] + 1):
            network.train()
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            loss = network.loss if svm else lambda a, b: F.cross_entropy(network(a), b)
            loss(x[rows], y[rows]).backward()
            optimizer.step()
            if step in CHECKPOINTS:
                network.eval()
                stops.append(
                    {"score": _hits(network, held, False), "sign": _hits(network, held, True)}
                )
    return stops


@torch.inference_mode()
def _hits(network: CNNSVM, held: list[tuple[Tensor, Tensor]], by_sign: bool) -> tuple[float, float]:
    validation, test = (
        float((network.predict(x, by_sign=by_sign) == y).double().mean()) for x, y in held
    )
    return validation, test
