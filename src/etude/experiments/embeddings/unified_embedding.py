"""One shared store against a hashed table a feature, on generated clicks at equal parameters.

A sample has six features of 20,000, 5,000, 1,000, 200, 50 and 10 values, drawn by a power law
(the r-th commonest value with a weight of r^-1.1). Every value has a main effect and four latent
numbers, and the logit of a click is the sum of the effects and of all pairs' inner products,
scaled to a deviation of 2. A seed draws all of it: 40,000 samples to train on, 10,000 to choose
on, 20,000 to report.

The network behind the rows (8 numbers each) is a hidden layer of 32; Adam, two passes. Every arm
chooses one or two lookups a feature and one of two learning rates by log loss on the validation
part. The arms at 400 and 3,200 rows in all:
- ours: one store;
- separate_tables: each feature's own; also chosen is whether rows go in proportion to the
  vocabularies or to their square roots. A table that holds its whole vocabulary is not hashed;
- proportional_tables: the former alone, as the paper compares;
and, for the larger budget, full_tables: a row for each of the 26,260 values, nothing hashed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

from etude.embeddings import SeparateTables, UnifiedEmbedding, proportional_rows
from etude.tasks.base import Pair

__all__ = ["Clicks", "generated_clicks", "measure"]

N_VALUES = (20_000, 5_000, 1_000, 200, 50, 10)
N_TRAIN, N_HELD, N_TEST = 40_000, 10_000, 20_000
DIM, HIDDEN, BATCH, PASSES = 8, 32, 256, 2
BUDGETS = (400, 3_200)
RATES = (3e-3, 1e-2)
POWERS = {"separate_tables": (1.0, 0.5)}  # of a vocabulary's size


@dataclass(frozen=True)
class Clicks:
    """ids (N, 6) and clicks (N,) of the three parts."""

    ids: tuple[Tensor, ...]
    clicks: tuple[Tensor, ...]


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is the smallest budget against separate tables, by AUROC."""
    data = generated_clicks(seed)
    found: dict[tuple[str, int], tuple[float, float, float]] = {}
    for budget in BUDGETS:
        for name in ("ours", "separate_tables", "proportional_tables"):
            found[name, budget] = _arm(name, budget, data, seed)
    found["full_tables", BUDGETS[-1]] = _arm("full_tables", sum(N_VALUES), data, seed)

    def pair(metric: str, other: str, budget: int) -> Pair:
        place = ("auroc", "log_loss").index(metric)
        ours, theirs = found["ours", budget], found[other, budget]
        return Pair(
            metric=metric, ours=ours[place], baseline=theirs[place], baseline_name=other,
            data="generated_clicks", setting=f"{budget:,} rows",
            ours_s=ours[2], baseline_s=theirs[2],
        )  # fmt: skip

    return [
        *(pair("auroc", "separate_tables", budget) for budget in BUDGETS),
        *(pair("log_loss", "separate_tables", budget) for budget in BUDGETS),
        *(pair("auroc", "proportional_tables", budget) for budget in BUDGETS),
        pair("auroc", "full_tables", BUDGETS[-1]),
    ]


def _arm(name: str, budget: int, data: Clicks, seed: int) -> tuple[float, float, float]:
    """AUROC and log loss on the test part of the settings best on validation, and seconds."""
    start, best, answer = time.perf_counter(), np.inf, np.zeros(0)
    lookups = (1,) if name == "full_tables" else (1, 2)  # a copy of one's own row adds nothing
    for t, power, lr in product(lookups, POWERS.get(name, (1.0,)), RATES):
        held, test = _fit(_store(name, budget, t, power, seed), data, lr, seed)
        loss = log_loss(data.clicks[1], held)
        if loss < best:
            best, answer = loss, test
    spent = time.perf_counter() - start
    truth = data.clicks[2]
    return float(roc_auc_score(truth, answer)), float(log_loss(truth, answer)), spent


def _store(
    name: str, budget: int, t: int, power: float, seed: int
) -> UnifiedEmbedding | SeparateTables:
    generator = torch.Generator().manual_seed(seed)
    n_lookups = (t,) * len(N_VALUES)
    if name == "ours":
        return UnifiedEmbedding(DIM, n_lookups=n_lookups, n_rows=budget, generator=generator)
    return SeparateTables(
        DIM, n_lookups=n_lookups, n_values=N_VALUES, generator=generator,
        n_rows=proportional_rows(N_VALUES, budget, power=power),
    )  # fmt: skip


def _fit(
    store: UnifiedEmbedding | SeparateTables, data: Clicks, lr: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a click for the validation and the test part."""
    rows = [store.rows(ids) for ids in data.ids]  # hashed once
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = DIM * rows[0].shape[1]
        network = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.Adam([*store.parameters(), *network.parameters()], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(N_TRAIN, generator=generator) for _ in range(PASSES)])
    for part in order.split(BATCH):
        logit = network(store.look_up(rows[0][part])).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logit, data.clicks[0][part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        held, test = (network(store.look_up(r)).squeeze(1).sigmoid().double() for r in rows[1:])
    return held.numpy(), test.numpy()


def generated_clicks(seed: int) -> Clicks:
    """The samples of a seed."""
    rng = np.random.default_rng([seed, 15])
    n = N_TRAIN + N_HELD + N_TEST
    columns, main, latent = [], np.zeros(n), []
    for size in N_VALUES:
        weight = np.arange(1, size + 1) ** -1.1
        values = rng.choice(size, n, p=weight / weight.sum())
        columns.append(rng.permutation(size)[values])  # ids tell nothing of how common they are
        main += rng.standard_normal(size)[values]
        latent.append(rng.standard_normal((size, 4))[values] / 2)
    whole = np.stack(latent)
    pairs = ((whole.sum(axis=0) ** 2).sum(axis=1) - (whole**2).sum(axis=(0, 2))) / 2
    logit = main + pairs
    logit = 2 * (logit - logit.mean()) / logit.std()
    clicks = torch.from_numpy((rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32))
    cut = [N_TRAIN, N_HELD, N_TEST]
    ids = torch.from_numpy(np.stack(columns, axis=1))
    return Clicks(tuple(ids.split(cut)), tuple(clicks.split(cut)))
