"""Fréchet cumulative covariance against distance covariance, on simulated random objects.

Measured: distance correlation on 500 new samples between the two learned directions and the index
that made the responses; it is the same for rotated or rescaled directions. X has ten standard
normal coordinates, the index is (x_0 + x_1) / sqrt(2) + (x_2^2 - 1) / 2, and responses are normal
distributions on the line (Wasserstein), unit vectors in space (angle) or positive definite
matrices (log-Euclidean). A tenth of the 200 training responses is replaced by responses of an
index of +-8, far out (headline: the mean over the three kinds; then each kind, and each without
outliers). Each seed is another sample and other first weights, the same for both networks.

Baselines: kernel sufficient dimension reduction (generalized sliced inverse regression: Gaussian
kernels on X and on the distances; the headline's, for it is the stronger one), and the same
network trained by distance covariance.

Tuning: every arm has two strengths of its penalty (of |Cov(f) - I|^2, or the ridge) and keeps the
one whose directions tell more of 100 validation samples, made like the training samples: the
median distance between a response and those of the five nearest training samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from etude.losses import fccov, metric_responses, response_distances
from etude.tasks.base import Pair

__all__ = ["measure"]

KINDS = ("wasserstein", "sphere", "spd")
PENALTIES = (0.1, 1.0)
RIDGES = (0.01, 0.1)
N_TRAIN, N_VALIDATION, N_TEST, DIM, HIDDEN, N_DIRECTIONS = 200, 100, 500, 10, 32, 2
N_STEPS, LR, OUTLIERS = 150, 0.01, 0.1
Dependence = Callable[[Tensor, Tensor], Tensor]  # (n, d) directions, (n, n) distances -> scalar
ARMS = ("frechet", "kernel_reduction", "distance_covariance")


def measure(seed: int) -> list[Pair]:
    """The mean over the kinds with outliers against both baselines; each kind; each without."""
    found = {(s, k): _arms(k, s, seed) for s in (OUTLIERS, 0.0) for k in KINDS}
    dirty = np.mean([found[OUTLIERS, kind] for kind in KINDS], axis=0)
    setting = "three kinds, 10 % outliers"
    pairs = [_pair(dirty, arm, setting) for arm in ARMS[1:]]
    for (share, kind), values in found.items():
        pairs.append(_pair(values, ARMS[2], f"{kind}, {round(100 * share)} % outliers"))
    return pairs


def _pair(values: np.ndarray, arm: str, setting: str) -> Pair:
    (ours, ours_s), (theirs, theirs_s) = values[0].tolist(), values[ARMS.index(arm)].tolist()
    return Pair(metric="distance_correlation", ours=ours, baseline=theirs, baseline_name=arm,
                data="simulated", setting=setting, ours_s=ours_s, baseline_s=theirs_s)  # fmt: skip


def _arms(kind: str, share: float, seed: int) -> np.ndarray:
    """(3, 2) of each arm: the distance correlation and the seconds."""
    rng = np.random.default_rng([seed, KINDS.index(kind), round(100 * share)])
    n = N_TRAIN + N_VALIDATION
    x = rng.normal(size=(n + N_TEST, DIM))
    index = (x[:, 0] + x[:, 1]) / math.sqrt(2) + (x[:, 2] ** 2 - 1) / 2
    shown = index[:n].copy()
    for first, last in ((0, N_TRAIN), (N_TRAIN, n)):
        far = first + rng.permutation(last - first)[: round(share * (last - first))]
        shown[far] = rng.choice([-8.0, 8.0], size=len(far))
    distances = response_distances(metric_responses(shown, kind, rng), kind)
    rows = []
    for arm in ARMS:
        started = time.perf_counter()
        tried = list(_directions(arm, x, distances[:N_TRAIN, :N_TRAIN], seed))
        best = min(tried, key=lambda f: _held_distance(f, distances))
        seconds = time.perf_counter() - started
        rows.append((distance_correlation(best[n:], index[n:, None]), seconds))
    return np.array(rows)


def _directions(arm: str, x: np.ndarray, distances: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The arm's directions of every row of `x`, one (n, 2) for each strength of its penalty."""
    if arm == "kernel_reduction":
        for ridge in RIDGES:
            yield kernel_reduction(x, distances, ridge)
        return
    dependence = _frechet if arm == "frechet" else distance_covariance
    for penalty in PENALTIES:
        yield _train(torch.from_numpy(x), torch.from_numpy(distances), dependence, penalty, seed)


def _held_distance(f: np.ndarray, distances: np.ndarray) -> float:
    n = N_TRAIN + N_VALIDATION
    f = f / f[:N_TRAIN].std(axis=0)
    nearest = np.argsort(cdist(f[N_TRAIN:n], f[:N_TRAIN]), axis=1)[:, :5]
    between = np.take_along_axis(distances[N_TRAIN:, :N_TRAIN], nearest, axis=1)
    return float(np.median(between.mean(axis=1)))


def distance_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of (n, p) and (n, q): 0 to 1, Székely and others (2007), the biased estimate."""
    first, second = (_doubly_centered(cdist(v, v)) for v in (a, b))
    both = (first * second).mean()
    return float(np.sqrt(both / np.sqrt((first**2).mean() * (second**2).mean())))


def _doubly_centered(d: np.ndarray) -> np.ndarray:
    return np.asarray(d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean())


def kernel_reduction(x: np.ndarray, distances: np.ndarray, ridge: float) -> np.ndarray:
    """Generalized sliced inverse regression: (n, p), training distances -> (n, 2) directions."""
    n = len(distances)
    squares, gaps = cdist(x, x[:n], "sqeuclidean"), distances**2
    k_x = np.exp(-squares / np.median(squares[:n]))
    k_y = np.exp(-gaps / np.median(gaps[gaps > 0]))
    center = np.eye(n) - 1 / n
    seen = (k_x - k_x[:n].mean(axis=0)) @ center  # all rows against the centered features
    g = center @ k_x[:n] @ center
    inverse = np.linalg.inv(g + ridge * np.linalg.norm(g, 2) * np.eye(n))
    operator = inverse @ g @ center @ k_y @ center @ g @ inverse
    _, vectors = np.linalg.eigh((operator + operator.T) / 2)
    return np.asarray(seen @ inverse @ vectors[:, -N_DIRECTIONS:])


def _frechet(f: Tensor, distances: Tensor) -> Tensor:
    return fccov(f, distances).trace()


def distance_covariance(f: Tensor, distances: Tensor) -> Tensor:
    """Squared distance covariance of (n, d) directions and responses, whose mean distance is 1."""

    def centered(d: Tensor) -> Tensor:
        return d - d.mean(0) - d.mean(1, keepdim=True) + d.mean()

    between = ((f[:, None] - f).square().sum(-1) + 1e-12).sqrt()
    return (centered(between) * centered(distances / distances.mean())).mean()


def _train(
    x: Tensor, distances: Tensor, dependence: Dependence, penalty: float, seed: int
) -> np.ndarray:
    """The directions of all rows of `x`; trained on the first, as many as `distances` has."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for n_in, n_out in pairwise((DIM, HIDDEN, HIDDEN, N_DIRECTIONS)):
        first = torch.randn(n_in, n_out, generator=generator, dtype=torch.float64)
        bias = torch.zeros(n_out, dtype=torch.float64)
        weights += [(first * math.sqrt(2 / n_in)).requires_grad_(True), bias.requires_grad_(True)]

    def direction(inputs: Tensor) -> Tensor:
        h = torch.relu(inputs @ weights[0] + weights[1])
        return torch.relu(h @ weights[2] + weights[3]) @ weights[4] + weights[5]

    optimizer = torch.optim.Adam(weights, lr=LR, weight_decay=1e-3)
    eye = torch.eye(N_DIRECTIONS, dtype=torch.float64)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        f = direction(x[: len(distances)])
        gap = torch.cov(f.T, correction=0) - eye
        (penalty * gap.square().sum() - dependence(f, distances)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        return direction(x).numpy()
