"""Search of a new model in an old model's gallery, and in its own: BT^2 against plain BCT.

Data: 4,000 rows of Fashion-MNIST averaged down to 14 x 14. The old model is trained on the rows
of five classes, the new ones on those of all ten; all have one hidden layer of 128 and features
of 32 coordinates, BT^2 eight more. "bct" is backward-compatible training (Shen et al., 2020) with
the same class means as second classifier: CE(V f) + alpha CE(T f), features as wide as the old.
"independent" knows nothing of the old model, "old" queries the old gallery with itself.

Half of the test rows are queries, half the gallery; the share of queries whose nearest item
(cosine) has their class is reported with the old gallery (first pair) and with the new one. Old
and independent choose a learning rate of three by that share with their own galleries on
validation rows; BCT and BT^2 choose among the three with two weights each (alpha 10 or 1; l2, l3
10, 5 or 2, 1), by the mean of both shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.embeddings import BasisTransformationHead, bt2_loss, zero_pad_old
from etude.lab.data import load_dataset
from etude.tasks.base import Pair, split_rows

__all__ = ["measure"]

WIDTH, N_EXTRA, HIDDEN, BATCH, N_STEPS = 32, 8, 128, 64, 300
RATES = (1e-3, 3e-3, 1e-2)
Part = tuple[Tensor, Tensor]  # x (N, 196), y (N,)
Embed = Callable[[Tensor], Tensor]


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is BT^2 against BCT in the old gallery."""
    train, held, test = _parts(seed)
    few = train[1] < 5
    old = max(
        (_plain((train[0][few], train[1][few]), lr, seed) for lr in RATES),
        key=lambda f: _share(f(held[0]), f(held[0]), held[1]),
    )
    f_old = old(train[0])
    means = torch.stack([f_old[train[1] == k].mean(0) for k in range(10)])

    def both(embed: Embed, part: Part) -> tuple[float, float]:
        """Shares of right answers in the old gallery and in its own."""
        z, there = embed(part[0]), old(part[0])
        return _share(z, zero_pad_old(there, z.shape[1]), part[1]), _share(z, z, part[1])

    def choose(candidates: list[Embed], score: Callable[[tuple[float, float]], float]) -> Embed:
        return max(candidates, key=lambda embed: score(both(embed, held)))

    start = time.perf_counter()
    alone = choose([_plain(train, lr, seed + 1) for lr in RATES], lambda s: s[1])
    f_new = alone(train[0])
    times = [time.perf_counter()]
    bct = choose(
        [_plain(train, lr, seed + 1, means, a) for lr, a in product(RATES, (10.0, 1.0))], sum
    )
    times.append(time.perf_counter())
    ours = choose(
        [_bt2(train, f_old, f_new, means, lr, w, seed + 1)
         for lr, w in product(RATES, ((10.0, 5.0), (2.0, 1.0)))],
        sum,
    )  # fmt: skip
    times.append(time.perf_counter())
    spent = {"bct": times[1] - times[0], "independent": times[0] - start, "old": 0.0}
    shares = {
        "bct": both(bct, test),
        "independent": both(alone, test),
        "old": (_share(old(test[0]), old(test[0]), test[1]),) * 2,
    }
    found = both(ours, test)

    def pair(name: str, n: int) -> Pair:
        return Pair(
            metric="precision_at_1", ours=found[n], baseline=shares[name][n], baseline_name=name,
            data="fashion_mnist", setting=("old gallery", "new gallery")[n],
            ours_s=times[2] - times[1], baseline_s=spent[name],
        )  # fmt: skip

    return [pair("bct", 0), pair("bct", 1), pair("old", 0)] + [
        pair("independent", n) for n in (0, 1)
    ]


def _backbone(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(196, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width))


def _train(
    modules: list[nn.Module], loss: Callable[[Tensor], Tensor], n: int, lr: float, seed: int
) -> None:
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        loss(torch.randint(n, (BATCH,), generator=generator)).backward()
        optimizer.step()
        schedule.step()


def _plain(
    part: Part, lr: float, seed: int, means: Tensor | None = None, alpha: float = 0.0
) -> Embed:
    """A model by itself or, with means, trained to be compatible (BCT)."""
    x, y = part
    net = _backbone(WIDTH, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(WIDTH, 10, bias=False)

    def loss(rows: Tensor) -> Tensor:
        f = F.normalize(net(x[rows]), dim=1)
        total = F.cross_entropy(head(f), y[rows])
        if means is not None:
            total = total + alpha * F.cross_entropy(f @ means.T, y[rows])
        return total

    _train([net, head], loss, len(x), lr, seed)
    return _frozen(lambda x: F.normalize(net(x), dim=1))


def _bt2(
    part: Part, f_old: Tensor, f_new: Tensor, means: Tensor, lr: float,
    weights: tuple[float, float], seed: int,
) -> Embed:  # fmt: skip
    x, y = part
    net = _backbone(2 * WIDTH, seed)
    head = BasisTransformationHead(
        2 * WIDTH, 10, old_dim=WIDTH, n_extra=N_EXTRA,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip

    def loss(rows: Tensor) -> Tensor:
        return bt2_loss(
            head.parts(net(x[rows])), y[rows], f_old[rows], f_new[rows], means,
            class_weight=weights[0], old_weight=weights[1],
        )  # fmt: skip

    _train([net, head], loss, len(x), lr, seed)
    return _frozen(lambda x: head(net(x)))


def _frozen(embed: Embed) -> Embed:
    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return embed(x)

    return call


def _share(queries: Tensor, gallery: Tensor, y: Tensor) -> float:
    """Even rows look among odd rows; the first of equally near ones counts."""
    near = (queries[::2] @ F.normalize(gallery[1::2], dim=1).T).argmax(1)
    return float((y[1::2][near] == y[::2]).double().mean())


def _parts(seed: int) -> list[Part]:
    """Train, validation and test, standardized by the training rows."""
    data = load_dataset("fashion_mnist", limit=4_000)
    assert data.y is not None
    x = data.x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    split = split_rows(data, seed)
    mean, scale = x[split.train].mean(axis=0), x[split.train].std(axis=0) + 1e-3
    return [
        (torch.from_numpy(((x[rows] - mean) / scale).astype(np.float32)),
         torch.from_numpy(data.y[rows]))
        for rows in (split.train, split.validation, split.test)
    ]  # fmt: skip
