"""HNSW's recall under four orders of insertion, and over the dimension of the data.

Collections, each with queries drawn alike and held out: (a) "subspace_mixture", 1,000 points of
each of four random subspaces of 128 dimensions, of dimension 2, 8, 32 and 64, Gaussian inside,
all of expected squared length 1; (b) "one_subspace", 4,000 points of a single one of dimension
24, where the local dimension hardly varies; (c) digits, all but 400 queries; (d) 2,000
points of a single subspace of dimension 2 or 64.

The graph: M 8, a beam of 64 to build and of 20 to search, parameters at which recall is well
below 1; all orders share the levels by position of insertion. Orders: falling and rising local
intrinsic dimension (20 neighbors), random, and one category after the other (the subspace; of
digits the class), the categories and each one's rows in random order. Nothing is tuned in any
arm. The first pair is the claim, on (a); which order is best elsewhere is reported as it comes
out. Recall is against full search. The last pair is (d): recall where the data have 2
dimensions against where they have 64.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from etude.lab.data import load_dataset
from etude.retrieval import local_intrinsic_dim, order_experiment
from etude.tasks.base import Pair

__all__ = ["measure", "subspace_points"]

DIM, N_POINTS, N_QUERIES = 128, 4000, 400
SUBSPACES = (2, 8, 32, 64)
Collection = tuple[np.ndarray, np.ndarray, np.ndarray]  # points, queries, category of each point


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is falling local dimension against a random order, on (a)."""
    rng = np.random.default_rng([seed, 203])
    collections = {
        "subspace_mixture": subspace_points(rng, SUBSPACES, N_POINTS),
        "one_subspace": subspace_points(rng, (24,), N_POINTS),
        "digits": _digits(rng),
    }
    pairs = []
    for data, (points, queries, category) in collections.items():
        start = time.perf_counter()
        rising = np.argsort(local_intrinsic_dim(points), kind="stable")
        spent = time.perf_counter() - start
        shuffled = rng.permutation(len(points))
        orders = {"falling": rising[::-1], "rising": rising, "random_order": shuffled}
        if len(np.unique(category)) > 1:
            turn = rng.permutation(int(category.max()) + 1)  # which category comes when
            orders["category"] = shuffled[np.argsort(turn[category[shuffled]], kind="stable")]
        found = order_experiment(points, queries, orders, seed=seed)
        pairs += [
            Pair(
                metric="recall_at_10", ours=found[ours], baseline=found["random_order"],
                baseline_name="random_order", data=data, setting=setting, ours_s=spent,
            )
            for ours, setting in (
                ("falling", "falling local dimension"), ("rising", "rising local dimension"),
                ("category", "category by category"),
            )
            if ours in found
        ]  # fmt: skip
    low, high = (_one_order(rng, dim, seed) for dim in (2, 64))
    pairs.append(
        Pair(
            metric="recall_at_10",
            ours=low,
            baseline=high,
            baseline_name="dimension_64",
            data="one_subspace",
            setting="dimension 2, random order",
        )
    )
    return pairs


def subspace_points(rng: np.random.Generator, dims: Sequence[int], n_points: int) -> Collection:
    """Equally many points of a random subspace of each dimension, and held-out queries."""
    parts = []
    for dim in dims:
        basis = np.linalg.qr(rng.standard_normal((DIM, dim)))[0]
        inside = rng.standard_normal(((n_points + N_QUERIES) // len(dims), dim)) / np.sqrt(dim)
        parts.append(inside @ basis.T)
    kept = n_points // len(dims)
    return (
        np.concatenate([part[:kept] for part in parts]),
        np.concatenate([part[kept:] for part in parts]),
        np.repeat(np.arange(len(dims)), kept),
    )


def _digits(rng: np.random.Generator) -> Collection:
    digits = load_dataset("digits")
    rows = rng.permutation(len(digits.x))
    points, queries = rows[N_QUERIES:], rows[:N_QUERIES]
    category = np.zeros(len(rows), np.int64) if digits.y is None else digits.y
    return digits.x[points], digits.x[queries], category[points]


def _one_order(rng: np.random.Generator, dim: int, seed: int) -> float:
    points, queries, _ = subspace_points(rng, (dim,), N_POINTS // 2)
    orders = {"random": rng.permutation(len(points))}
    return order_experiment(points, queries, orders, seed=seed)["random"]
