"""Five models in a row, one of them replaced, and one search over all their galleries.

Digits come in five tasks of two classes. Each model is the one before it, fine-tuned on its task
with a memory of ten samples a class of earlier tasks, in batches balanced over the classes seen.
The first starts from a network trained elsewhere, on 600 rows of five classes of Fashion-MNIST
(as 8 x 8 pixels, like the digits); before the fourth task it is replaced by a better one,
trained on 3,000 rows of all ten. M[i, j] has test digits by model i as queries and training
digits by model j as gallery, all ten classes throughout, learned or not; reported are the mean of
M on and below its diagonal (precision_at_1, first pair) and the average compatibility.

Ours: a simplex of 32 corners, in all networks, with the loss (5). Against it: "trained_classifier"
(a trained one, from scratch at each download, with the same memory), "distillation" (it, with
the squared distance of normalized features to the frozen model's), "simplex" (the fixed
classifier with cross-entropy alone), and "other_classifier": ours, but the replacement was
trained elsewhere with a classifier of its own. All but the last choose among four settings by the
mean of M with validation queries: learning rates, or two of them and two weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.embeddings import (
    DSimplexClassifier,
    HOCLoss,
    average_compatibility,
    compatibility_matrix,
)
from etude.lab.data import load_dataset
from etude.tasks.base import Pair, split_rows

__all__ = ["measure"]

DIM, HIDDEN, BATCH = 31, 128, 64
N_TASKS, REPLACED, KEPT = 5, 3, 10
PRETRAIN_STEPS, N_STEPS = 300, 100
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
Data = tuple[Tensor, Tensor]  # x (N, 64), y (N,)


@dataclass(frozen=True)
class _Way:
    """How a model is fine-tuned: `weight` is lam of (5), or that of the distillation."""

    simplex: bool
    tie: str  # "hoc", "distance" or ""
    lr: float
    weight: float = 1.0


WAYS: dict[str, list[_Way]] = {
    "hoc": [_Way(True, "hoc", lr, lam) for lr in (1e-3, 3e-3) for lam in (0.1, 0.5)],
    "trained_classifier": [_Way(False, "", lr) for lr in RATES],
    "distillation": [_Way(False, "distance", lr, w) for lr in (1e-3, 3e-3) for w in (1.0, 10.0)],
    "simplex": [_Way(True, "", lr) for lr in RATES],
}


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is ours against a trained classifier."""
    clothes, digits, held, test = _data(seed)
    few = (clothes[0][clothes[1] < 5][:600], clothes[1][clothes[1] < 5][:600])
    downloads = {
        simplex: [_pretrain(part, simplex, seed + n) for n, part in enumerate((few, clothes))]
        for simplex in (True, False)
    }
    found: dict[str, tuple[np.ndarray, float]] = {}
    best: dict[str, _Way] = {}
    for name, ways in WAYS.items():
        start = time.perf_counter()
        stories = [_story(way, downloads[way.simplex], digits, seed) for way in ways]
        top = max(range(len(ways)), key=lambda n: np.nanmean(_matrix(stories[n], held, digits)))
        best[name] = ways[top]
        found[name] = _matrix(stories[top], test, digits), time.perf_counter() - start
    mixed = [downloads[True][0], downloads[False][1]]
    other = _story(best["hoc"], mixed, digits, seed)
    found["other_classifier"] = _matrix(other, test, digits), 0.0

    def pairs(metric: str, value: Callable[[np.ndarray], float], setting: str) -> list[Pair]:
        ours, ours_s = found["hoc"]
        return [
            Pair(
                metric=metric, ours=value(ours), baseline=value(matrix), baseline_name=name,
                data="digits", setting=setting, ours_s=ours_s, baseline_s=spent,
            )
            for name, (matrix, spent) in found.items() if name != "hoc"
        ]  # fmt: skip

    return [
        *pairs("precision_at_1", lambda m: float(np.nanmean(m)), "all galleries"),
        *pairs("average_compatibility", average_compatibility, "ten pairs of models"),
    ]


def _network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM, bias=False))


def _classifier(simplex: bool, seed: int) -> nn.Module:
    if simplex:
        return DSimplexClassifier(DIM)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(DIM, 10, bias=False)


def _pretrain(data: Data, simplex: bool, seed: int) -> nn.Module:
    """The network trained elsewhere; on a simplex it takes the first corners."""
    net, classifier = _network(seed), _classifier(simplex, seed)
    optimizer = torch.optim.AdamW([*net.parameters(), *classifier.parameters()], lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PRETRAIN_STEPS):
        rows = torch.randint(len(data[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(classifier(net(data[0][rows])), data[1][rows]).backward()
        optimizer.step()
    return net


def _story(way: _Way, downloads: list[nn.Module], data: Data, seed: int) -> list[nn.Module]:
    """The five models."""
    generator = torch.Generator().manual_seed(seed)
    net, classifier, models = downloads[0], _classifier(way.simplex, seed), []
    hoc, pools = HOCLoss(), [torch.empty(0, dtype=torch.int64)] * 10
    for task in range(N_TASKS):
        if task == REPLACED:
            net, classifier = downloads[1], _classifier(way.simplex, seed + 1)
        frozen, net = net, copy.deepcopy(net)
        for label in range(10):
            if label // 2 == task:
                pools[label] = torch.nonzero(data[1] == label)[:, 0]
            else:
                pools[label] = pools[label][:KEPT]
        seen = 2 * (task + 1)
        optimizer = torch.optim.AdamW([*net.parameters(), *classifier.parameters()], lr=way.lr)
        for _ in range(N_STEPS):
            y = torch.arange(BATCH) % seen
            draws = torch.rand(BATCH, generator=generator)
            rows = torch.stack(
                [pools[k][int(u * len(pools[k]))] for k, u in zip(y.tolist(), draws, strict=True)]
            )
            z = net(data[0][rows])
            # local classes count from the end; a trained classifier has those seen so far
            logits = classifier(z) if way.simplex else classifier(z)[:, :seen]
            loss = F.cross_entropy(logits, DIM - y if way.simplex else y)
            if way.tie:
                with torch.no_grad():
                    old = frozen(data[0][rows])
                if way.tie == "hoc":
                    loss = way.weight * loss + (1 - way.weight) * hoc(z, old, y)  # (5)
                else:
                    apart = F.normalize(z, dim=1) - F.normalize(old, dim=1)
                    loss = loss + way.weight * (apart**2).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append(net)
    return models


@torch.inference_mode()
def _matrix(models: list[nn.Module], asked: Data, there: Data) -> np.ndarray:
    return compatibility_matrix(
        [net(asked[0]).numpy() for net in models], [net(there[0]).numpy() for net in models],
        asked[1].numpy(), there[1].numpy(),
    )  # fmt: skip


def _data(seed: int) -> tuple[Data, Data, Data, Data]:
    """3,000 rows of clothes, and training, validation and test rows of digits."""
    clothes = load_dataset("fashion_mnist", limit=3_000)
    wide = np.pad(clothes.x.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    small = wide.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)
    digits = load_dataset("digits")
    split = split_rows(digits, seed)
    assert clothes.y is not None
    assert digits.y is not None

    def scaled(x: np.ndarray, y: np.ndarray, like: np.ndarray) -> Data:
        return torch.from_numpy((x / like.std()).astype(np.float32)), torch.from_numpy(y)

    train = digits.x[split.train]
    parts = [
        scaled(digits.x[r], digits.y[r], train) for r in (split.train, split.validation, split.test)
    ]
    return scaled(small, clothes.y, small), parts[0], parts[1], parts[2]
