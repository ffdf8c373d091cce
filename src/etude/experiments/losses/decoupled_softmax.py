"""Decoupled softmax against other multi-label losses, in a dual encoder on synthetic text.

Measured: precision at 1 and at 5 on held-out queries. Data, drawn anew from each seed: 500
labels in 50 groups, each with a text of words drawn from its group's and its own vocabulary;
3,000 queries with one to eight labels of one group, drawn with long-tailed (Zipf) weights. A
query's words come from its labels, but each label speaks with a loudness of its own, so that a
query has easy and hard positives; a third of its words are noise. Queries and labels are
counted words, encoded by the same linear tower, and scored by cosine over a temperature against
all labels.

Arms: the decoupled softmax (headline), and soft top-5 (a further pair), against one softmax over
all labels with its loss summed over the positives ("cross_entropy") and against one sigmoid a
label ("binary_cross_entropy", which also learns a bias, from the log odds of a label on). Every
arm starts from the same weights, sees the same batches for the same number of steps, and tunes
temperature and learning rate, nine configurations each, by the metric of the pair on validation
queries. The test queries are scored once, with the chosen one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.losses import DecoupledSoftmaxLoss, SoftTopKLoss
from etude.tasks.base import Pair

__all__ = ["measure"]

N_LABELS, N_GROUPS, N_WORDS, DIM = 500, 50, 600, 32
N_QUERIES = {"train": 1600, "validation": 400, "test": 1000}
BATCH, N_STEPS = 128, 150
TEMPERATURES = (0.05, 0.1, 0.2)
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
Loss = Callable[[Tensor, Tensor], Tensor]
METRICS = {"precision_at_1": 1, "precision_at_5": 5}


class Part(NamedTuple):
    """Queries (N, V) as square roots of word counts, and their labels (N, K) bool."""

    words: Tensor
    positives: Tensor


def measure(seed: int) -> list[Pair]:
    """Precision pairs of one seed; the first is decoupled against cross-entropy at 1."""
    labels, parts = _world(seed)
    arms: dict[str, Loss] = {
        "decoupled": DecoupledSoftmaxLoss(),
        "soft_top_5": SoftTopKLoss(
            top_k=5, n_steps=24, generator=torch.Generator().manual_seed(seed)
        ),
        "cross_entropy": _summed_softmax,
        "binary_cross_entropy": _sigmoids,
    }
    scores: dict[tuple[str, str], float] = {}
    seconds = {}
    for name, loss in arms.items():
        started = time.perf_counter()
        runs = [
            _train(labels, parts, loss, temperature, lr, seed, bias=name == "binary_cross_entropy")
            for temperature in TEMPERATURES
            for lr in LEARNING_RATES
        ]
        seconds[name] = time.perf_counter() - started
        for metric in METRICS:
            scores[name, metric] = max(runs, key=lambda run: run[metric][0])[metric][1]
    return [
        Pair(metric=metric, ours=scores[ours, metric], baseline=scores[theirs, metric],
             baseline_name=theirs, data="synthetic", setting=ours,
             ours_s=seconds[ours], baseline_s=seconds[theirs])
        for ours in ("decoupled", "soft_top_5")
        for metric in METRICS
        for theirs in ("cross_entropy", "binary_cross_entropy")
    ]  # fmt: skip


def _world(seed: int) -> tuple[Tensor, dict[str, Part]]:
    """Label texts (K, V), and queries with their labels, as the module's docstring says."""
    rng = np.random.default_rng([seed, 23_10])
    group = np.repeat(np.arange(N_GROUPS), N_LABELS // N_GROUPS)
    group_words = rng.dirichlet(np.full(N_WORDS, 0.01), N_GROUPS)
    own_words = rng.dirichlet(np.full(N_WORDS, 0.005), N_LABELS)
    says = 0.5 * group_words[group] + 0.5 * own_words  # (K, V), how each label speaks
    popularity = 1.0 / (1 + rng.permuted(np.tile(np.arange(10), (N_GROUPS, 1)), axis=1)).ravel()
    common = rng.dirichlet(np.full(N_WORDS, 0.5))
    texts = np.stack([rng.multinomial(10, p) for p in says])

    def queries(n: int) -> Part:
        words, positives = np.zeros((n, N_WORDS)), np.zeros((n, N_LABELS), dtype=bool)
        for i in range(n):
            members = np.flatnonzero(group == rng.integers(N_GROUPS))
            weights = popularity[members] / popularity[members].sum()
            chosen = rng.choice(members, size=rng.integers(1, 9), replace=False, p=weights)
            positives[i, chosen] = True
            loudness = rng.dirichlet(np.full(len(chosen), 0.5))
            words[i] = rng.multinomial(30, 2 / 3 * loudness @ says[chosen] + common / 3)
        return Part(torch.from_numpy(words).float().sqrt(), torch.from_numpy(positives))

    return torch.from_numpy(texts).float().sqrt(), {
        name: queries(n) for name, n in N_QUERIES.items()
    }


def _summed_softmax(logits: Tensor, positives: Tensor) -> Tensor:
    """One softmax over all labels; the loss is summed over a query's positives."""
    return -logits.log_softmax(dim=1)[positives].sum() / len(logits)


def _sigmoids(logits: Tensor, positives: Tensor) -> Tensor:
    """A sigmoid a label, summed over the labels."""
    terms = F.binary_cross_entropy_with_logits(logits, positives.float(), reduction="none")
    return terms.sum(dim=1).mean()


def _train(
    labels: Tensor, parts: dict[str, Part], loss: Loss, temperature: float, lr: float, seed: int,
    *, bias: bool,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Train the tower once; metric -> its values on the validation and the test queries."""
    generator = torch.Generator().manual_seed(seed)
    tower = (torch.randn(N_WORDS, DIM, generator=generator) / 8).requires_grad_(True)
    train = parts["train"]
    odds = torch.logit(train.positives.float().mean()) if bias else torch.zeros(())
    offset = odds.requires_grad_(bias)
    learned = [tower, offset] if bias else [tower]
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=1e-4)

    def score(words: Tensor) -> Tensor:
        cosine = F.normalize(words @ tower) @ F.normalize(labels @ tower).T
        return cosine / temperature + offset  # (B, K)

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    for _ in range(N_STEPS):
        rows = torch.randint(len(train.words), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(score(train.words[rows]), train.positives[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        held = [(score(p.words), p.positives) for p in (parts["validation"], parts["test"])]
    found = {}
    for metric, k in METRICS.items():
        first, second = (float(p.gather(1, s.topk(k).indices).double().mean()) for s, p in held)
        found[metric] = (first, second)
    return found
