"""Naive Bayes against logistic regression as the number of training samples grows.

Measured: test accuracy at m training samples. Data:
- "released mixture": K Gaussian classes in n features; class 0 has mean -1 in every feature and
  class k >= 1 mean 2^(k-1); half of the features have variance n, the others 1.
- "correlated mixture": the same with off-diagonal covariances, so that naive Bayes is wrong.
- "equally hard mixture": class means in random directions, at a distance that stays the same
  as n grows (any two classes about 3 standard deviations apart), variances as above.
- features of unseen Fashion-MNIST classes from a frozen convolutional network, averaged over
  positions.

Both arms get standardized features, the same training rows, and 1,000 validation rows (never
trained on) to tune on: six strengths C of the L2 penalty for logistic regression, three variance
floors for naive Bayes. Values are means over draws of the training rows; 5,000 test rows. One
further pair has the baseline of the release: C = 1 and features as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from etude.experiments.heads._frozen import clothes_tokens
from etude.heads import GaussianNBProbe
from etude.tasks.base import Pair
from etude.tasks.baselines import LogisticRegression

__all__ = ["measure"]

STRENGTHS = (1.0, 0.1, 0.01, 10.0, 100.0, 0.001)
FLOORS = (1e-9, 1e-4, 1e-2)
N_DRAWS = 5
N_VALIDATION, N_TEST = 1_000, 5_000
APART = 3.0  # standard deviations between two classes of the equally hard mixture
Rows = tuple[np.ndarray, np.ndarray]
Draw = Callable[[int, np.random.Generator], Rows]


def measure(seed: int) -> list[Pair]:
    """Accuracy pairs of one seed; the first: released mixture, 5 classes, n = 128, m = 20."""
    pairs = []
    for name, n_classes, n, m in (
        ("released mixture", 5, 128, 20),
        ("released mixture", 5, 32, 20),
        ("released mixture", 5, 512, 20),
        ("released mixture", 2, 128, 8),
        ("correlated mixture", 5, 32, 20),
        ("correlated mixture", 5, 32, 640),
        ("equally hard mixture", 5, 128, 20),
        ("equally hard mixture", 5, 128, 320),
    ):
        draw = mixture(name, n_classes, n, seed)
        pairs.append(_pair(draw, m, seed, name, f"{n_classes} classes, n={n}, m={m}"))
    tokens, y = clothes_tokens(seed, N_VALIDATION + N_TEST + 2_000)
    draw = _from_rows(tokens.mean(axis=1), y)
    frozen = [
        _pair(draw, m, seed, "fashion_mnist", f"frozen features, n=64, m={m}")
        for m in (10, 50, 1_500)
    ]
    return [*pairs, *frozen, _as_released(seed)]


def mixture(name: str, n_classes: int, n: int, seed: int) -> Draw:
    """One of the three mixtures; classes have equal shares, up to one sample."""
    generator = np.random.default_rng([seed, 7])
    variance = np.where(np.arange(n) < n // 2, float(n), 1.0)
    levels = np.array([-1.0, *(2.0**k for k in range(n_classes - 1))])
    means, root = np.repeat(levels[:, None], n, axis=1), np.diag(np.sqrt(variance))
    if name == "equally hard mixture":
        direction = generator.normal(size=(n_classes, n))
        means = direction * APART / np.sqrt(2 * n) * np.sqrt(variance)
    if name == "correlated mixture":
        mixing = generator.uniform(-1.0, 1.0, size=(n, n))
        covariance = mixing.T @ mixing
        np.fill_diagonal(covariance, variance)
        values, axes = np.linalg.eigh(covariance)
        root = axes * np.sqrt(np.maximum(values, 0.0))  # as sampled: negative ones count as 0

    def draw(m: int, generator: np.random.Generator) -> Rows:
        y = generator.permutation(np.arange(m) % n_classes)
        return means[y] + generator.normal(size=(m, n)) @ root.T, y

    return draw


def _from_rows(x: np.ndarray, y: np.ndarray) -> Draw:
    """Draws from a fixed set: the first rows are held out, training rows come from the rest."""
    held = N_VALIDATION + N_TEST

    def draw(m: int, generator: np.random.Generator) -> Rows:
        if m == held:
            return x[:held], y[:held]
        pools = [generator.permutation(held + np.flatnonzero(y[held:] == k)) for k in range(5)]
        rows = np.concatenate([pool[: m // 5] for pool in pools])
        return x[rows], y[rows]

    return draw


def _pair(draw: Draw, m: int, seed: int, data: str, setting: str) -> Pair:
    x, y = draw(N_VALIDATION + N_TEST, np.random.default_rng([seed, 8]))
    ours, theirs, seconds = [], [], np.zeros(2)
    for repeat in range(N_DRAWS):
        train, target = draw(m, np.random.default_rng([seed, 9, m, repeat]))
        mean, scale = train.mean(axis=0), train.std(axis=0)
        scale = np.where(scale > 1e-7, scale, 1.0)
        train, held = (train - mean) / scale, (x - mean) / scale
        started = time.perf_counter()
        ours.append(_best([GaussianNBProbe(eps=e) for e in FLOORS], train, target, held, y))
        between = time.perf_counter()
        theirs.append(_best([LogisticRegression(C=C) for C in STRENGTHS], train, target, held, y))
        seconds += (between - started, time.perf_counter() - between)
    return Pair(
        metric="accuracy", ours=float(np.mean(ours)), baseline=float(np.mean(theirs)),
        baseline_name="logistic_regression", data=data, setting=setting,
        ours_s=float(seconds[0]), baseline_s=float(seconds[1]),
    )  # fmt: skip


def _best(
    arms: Sequence[Any], train: np.ndarray, target: np.ndarray, held: np.ndarray, y: np.ndarray
) -> float:
    """Test accuracy of the arm that is best on the validation rows."""
    right = [arm.fit(train, target).logits(held).argmax(axis=1) == y for arm in arms]
    return float(max(right, key=lambda hits: hits[:N_VALIDATION].mean())[N_VALIDATION:].mean())


def _as_released(seed: int) -> Pair:
    """The headline's data with the baseline untuned and on features as they come."""
    draw = mixture("released mixture", 5, 128, seed)
    ours: list[float] = []
    theirs: list[float] = []
    x, y = draw(N_TEST, np.random.default_rng([seed, 8]))
    for repeat in range(N_DRAWS):
        train, target = draw(20, np.random.default_rng([seed, 9, 20, repeat]))
        for arm, found in ((GaussianNBProbe(), ours), (LogisticRegression(C=1.0), theirs)):
            found.append(float((arm.fit(train, target).logits(x).argmax(axis=1) == y).mean()))
    return Pair(
        metric="accuracy", ours=float(np.mean(ours)), baseline=float(np.mean(theirs)),
        baseline_name="logistic_regression_as_released", data="released mixture",
        setting="5 classes, n=128, m=20, C=1, not standardized",
    )  # fmt: skip
