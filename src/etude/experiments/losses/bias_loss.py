"""Bias loss against cross-entropy on a very small network, and against shuffled weights.

Measured: test accuracy of a convolutional network with 1,898 weights on 4,000 rows of
Fashion-MNIST, averaged down to 14 x 14; a tenth of all images, chosen by the seed, is blurred by
a 9 x 9 mean (headline), or none is. The last convolution's 16 maps of 7 x 7 give the
variances. Each seed is another 60 / 20 / 20 split, other weights and other batches, the same for
every candidate of every arm.

The arms: the bias loss in the paper's form; cross-entropy; and, as a control, the bias loss whose
weights are shuffled within each batch, which keeps their distribution and loses their meaning.
Adam does not see a constant factor of the loss, so a mean weight that is not one is no other
learning rate. Tuning: two learning rates and two stopping points, chosen on the validation part
by every arm; alpha and beta are the paper's. The test part is read once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.lab.data import load_dataset
from etude.losses import BiasLoss
from etude.tasks.base import Dataset, Pair, split_rows

__all__ = ["measure"]

LEARNING_RATES = (3e-3, 1e-2)
CHECKPOINTS = (150, 300)  # steps after which training may be found to have stopped
BATCH, SIDE = 64, 14
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # maps, logits, target
Parts = list[tuple[Tensor, Tensor]]


def measure(seed: int) -> list[Pair]:
    """Accuracy on blurred data against both baselines, then on clean data."""
    data = load_dataset("fashion_mnist", limit=4_000)
    pairs = []
    for share in (0.1, 0.0):
        parts = _parts(data, seed, share)
        ours, ours_s = _arm(parts, BiasLoss, seed)
        rivals = {"cross_entropy": _plain}
        if share:
            rivals["shuffled_weights"] = _shuffled
        for name, make in rivals.items():
            theirs, theirs_s = _arm(parts, make, seed)
            pairs.append(
                Pair(metric="accuracy", ours=ours, baseline=theirs, baseline_name=name,
                     data=data.name, setting=f"{round(100 * share)} % blurred",
                     ours_s=ours_s, baseline_s=theirs_s)
            )  # fmt: skip
    return pairs


def _plain() -> Loss:
    return lambda maps, logits, target: F.cross_entropy(logits, target)


def _shuffled() -> Loss:
    bias, generator = BiasLoss(), torch.Generator().manual_seed(0)

    def loss(maps: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        z = bias.weights(maps)
        z = z[torch.randperm(len(z), generator=generator)]
        return (z * F.cross_entropy(logits, target, reduction="none")).mean()

    return loss


def _parts(data: Dataset, seed: int, share: float) -> Parts:
    """Train, validation and test as (x, y), x (N, 1, SIDE, SIDE), `share` of all rows blurred."""
    assert data.y is not None
    images = torch.from_numpy(data.x).reshape(-1, 1, 28, 28)
    images = F.avg_pool2d(images / images.max(), 28 // SIDE)
    generator = torch.Generator().manual_seed(seed)
    blurred = torch.randperm(len(images), generator=generator)[: round(share * len(images))]
    if len(blurred):
        images[blurred] = F.avg_pool2d(images[blurred], 9, stride=1, padding=4)
    split, y = split_rows(data, seed), torch.from_numpy(data.y)
    return [(images[rows], y[rows]) for rows in (split.train, split.validation, split.test)]


def _arm(parts: Parts, make: Callable[[], Loss], seed: int) -> tuple[float, float]:
    """Test accuracy of the candidate that the validation part chooses, and seconds."""
    started = time.perf_counter()
    stops = [stop for lr in LEARNING_RATES for stop in _train(parts, make(), lr, seed)]
    return max(stops, key=lambda stop: stop[0])[1], time.perf_counter() - started


def _train(parts: Parts, loss: Loss, lr: float, seed: int) -> list[tuple[float, float]]:
    """Validation and test accuracy at each checkpoint."""
    (x, y), *held = parts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*maps.parameters(), *head.parameters()], lr=lr)
    stops = []
    for step in range(1, CHECKPOINTS[-1] + 1):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        found = maps(x[rows])
        loss(found, head(found), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in CHECKPOINTS:
            with torch.inference_mode():
                hits = [(head(maps(a)).argmax(1) == b).double().mean().item() for a, b in held]
            stops.append((hits[0], hits[1]))
    return stops
