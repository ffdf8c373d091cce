"""The landmarks protocol on mosaics of digits: what confidence to give, and which loss to train.

Data: ``make_instance_benchmark`` on the 1,797 digits; 80 instances with 40 to 2 known images
each, 100 queries of an instance and 1,900 of none, twice: one draw of views for validation, one
for the report, of the same instances and known images but other distractors in the queries.
Three embeddings are trained on the known images alone, from the same weights, with equal steps:
softmax, ArcFace (additive angular margin) and triplets (hardest in the batch); a step sees each
image shifted by up to one pixel, with noise. Each loss's learning rate is chosen from three
values by the validation GAP of the plain confidence.

Confidences, all with the label of the nearest known image. Ours: its similarity less 0.5 or 1
times the mean similarity to the 1, 3 or 10 nearest of 500 free distractors. Without them: the
similarity; its lead over the next class; the softmax over the classes' similarities at scales 5,
10, 20 and 40. Six settings each, chosen by validation GAP. The first pair is the claim, for the
softmax embedding; then the other two; then the losses compared by GAP and mAP@100.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.lab.data import load_dataset
from etude.retrieval import (
    InstanceBenchmark,
    LandmarkProtocol,
    make_instance_benchmark,
    micro_average_precision,
)
from etude.tasks.base import Pair

__all__ = ["measure"]

N_INSTANCES, N_STEPS, BATCH = 80, 400, 128
RATES = (1e-3, 3e-3, 1e-2)
LOSSES = ("softmax", "arcface", "triplet")
SETTINGS = tuple((weight, n) for weight in (0.5, 1.0) for n in (1, 3, 10))
SHARPNESS = (5.0, 10.0, 20.0, 40.0)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is the confidence with distractors against that without."""
    digits = load_dataset("digits").x.reshape(-1, 8, 8)
    span = float(digits.max())
    held, test = (
        make_instance_benchmark(digits / span, n_instances=N_INSTANCES, seed=seed, view_seed=view)
        for view in (0, 1)
    )
    plain, aware, found, spent = {}, {}, {}, {}
    for loss in LOSSES:
        start = time.perf_counter()
        networks = [_train(held, loss, rate, seed) for rate in RATES]
        network = max(networks, key=lambda net: max(_plain(net, held)))
        spent[loss] = time.perf_counter() - start
        plain[loss] = _plain(network, test)[int(np.argmax(_plain(network, held)))]
        aware[loss] = _aware(network, test)[int(np.argmax(_aware(network, held)))]
        found[loss] = LandmarkProtocol(distractor_weight=0.0).run(
            _embed(network, test.images), test.labels, _embed(network, test.queries),
            test.positives,
        )  # fmt: skip
    pairs = [
        Pair(
            metric="micro_average_precision", ours=aware[loss], baseline=plain[loss],
            baseline_name="plain_confidence", data="digit_mosaics", setting=f"{loss} embedding",
            ours_s=spent[loss], baseline_s=spent[loss],
        )
        for loss in LOSSES
    ]  # fmt: skip
    return pairs + [
        Pair(
            metric=metric, ours=found[loss][metric], baseline=found["softmax"][metric],
            baseline_name="softmax_loss", data="digit_mosaics", setting=f"{loss} loss",
            ours_s=spent[loss], baseline_s=spent["softmax"],
        )
        for metric in ("micro_average_precision", "mean_average_precision", "accuracy")
        for loss in ("arcface", "triplet")
    ]  # fmt: skip


def _aware(network: nn.Module, data: InstanceBenchmark) -> list[float]:
    """GAP of each setting with the free distractors."""
    parts = [_embed(network, x) for x in (data.images, data.queries, data.distractors)]
    return [
        micro_average_precision(
            LandmarkProtocol(distractor_weight=weight, n_neighbors=n).recognize(
                parts[0], data.labels, parts[1], parts[2]
            ),
            data.positives,
        )
        for weight, n in SETTINGS
    ]


def _plain(network: nn.Module, data: InstanceBenchmark) -> list[float]:
    """GAP of each confidence that needs no distractors."""
    scores = LandmarkProtocol(distractor_weight=0.0).recognize(
        _embed(network, data.images), data.labels, _embed(network, data.queries)
    )
    second = np.sort(scores, axis=1)[:, -2:-1]
    offsets = [np.zeros_like(second), second]
    # A softmax ranks as its logarithm does, and that is the score less one number a query.
    offsets += [np.log(np.exp(s * scores).sum(1, keepdims=True)) / s for s in SHARPNESS]
    return [micro_average_precision(scores - offset, data.positives) for offset in offsets]


def _train(data: InstanceBenchmark, loss: str, lr: float, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    images, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    shifted = torch.stack([images.roll(step, (1, 2)).flatten(1) for step in steps])
    network = nn.Sequential(nn.Linear(shifted.shape[2], 128), nn.ReLU(), nn.Linear(128, 64))
    classes = nn.Parameter(torch.empty(N_INSTANCES, 64))
    with torch.no_grad():
        for weight in (*network.parameters(), classes):
            weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    optimizer = torch.optim.AdamW([*network.parameters(), classes], lr=lr, weight_decay=1e-2)
    for _ in range(N_STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        x = shifted[torch.randint(len(steps), (BATCH,), generator=generator), rows]
        z = network(x + 0.1 * torch.randn(x.shape, generator=generator))
        value = _triplet(z, y[rows]) if loss == "triplet" else _margin(z, classes, y[rows], loss)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return network


def _margin(z: Tensor, classes: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "softmax":
        return F.cross_entropy(z @ classes.T, y)
    cosine = (F.normalize(z) @ F.normalize(classes).T).clamp(-0.999, 0.999)
    own = F.one_hot(y, len(classes)).bool()
    return F.cross_entropy(16 * torch.where(own, (cosine.acos() + 0.3).cos(), cosine), y)


def _triplet(z: Tensor, y: Tensor) -> Tensor:
    near = F.normalize(z) @ F.normalize(z).T
    same = y[:, None] == y
    hardest = torch.where(same, near, 2.0).amin(1) - torch.where(same, -2.0, near).amax(1)
    return F.relu(0.3 - hardest).mean()


def _embed(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(images).flatten(1)).numpy()
