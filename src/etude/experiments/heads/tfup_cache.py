"""TFUP on banking requests, against the best wording of the names and against other caches.

Data: the 3,080 test requests of BANKING77 (77 intents), read by a sentence encoder that was not
trained on them (all-MiniLM-L6-v2); the class vectors are the names of the intents. As in the
release the cache is built from the very requests that are classified, without their labels.
A seed draws a fifth of the requests whose labels choose between candidates; accuracy is measured
on the others.

Arms, with twelve to fifteen candidates each:
- ours: four wordings of the names x three weights of the cache's votes;
- zero_shot: four wordings, and the mean vector of any two, three or four of them;
- confidence_cache: as ours, but the most confident rows are cached and the votes weigh by the
  cosine alone, so that the pair is what typicality and semantic similarity add;
- pseudo_label_means: means of the rows that zero-shot gives to a class, three weights against
  the names, four wordings.
The last pair is TFUP-T after ten epochs at the better of two learning rates, with the first
wording, against zero_shot; its strong view is the vector without a tenth of its coordinates.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np

from etude.heads import TFUP, TFUPT
from etude.lab.data import find_data
from etude.nets.minilm import encode
from etude.tasks.base import Pair

__all__ = ["measure"]

WORDINGS = ("{}", "a question about {}", "i need help: {}", "the customer asks about {}")
WEIGHTS = (0.3, 1.0, 3.0)
BLENDS = (0.25, 0.5, 0.75)
RATES = (0.012, 0.003)
DROPPED = 0.1


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is TFUP against zero-shot."""
    x, y, names = _requests()
    rng = np.random.default_rng([seed, 118])
    held = np.zeros(len(x), dtype=bool)
    held[rng.permutation(len(x))[: len(x) // 5]] = True
    strong = x * (rng.random(x.shape) >= DROPPED)
    spent: dict[str, float] = {}
    right: dict[str, float] = {}
    arms: dict[str, list[Callable[[], np.ndarray]]] = {
        "ours": [lambda w=w, a=a: _tfup(x, w, a) for w in names for a in WEIGHTS],
        "zero_shot": [
            lambda some=some: x @ np.mean(some, axis=0).T
            for n in range(1, 5)
            for some in combinations(names, n)
        ],
        "confidence_cache": [
            lambda w=w, a=a: _confident(x, w, a) for w in names for a in WEIGHTS
        ],
        "pseudo_label_means": [lambda w=w, b=b: _means(x, w, b) for w in names for b in BLENDS],
        "trained": [
            lambda lr=lr: TFUPT(names[0], lr=lr, n_epochs=10, seed=seed).fit(x, strong).logits(x)
            for lr in RATES
        ],
    }  # fmt: skip
    for name, candidates in arms.items():
        started = time.perf_counter()
        hits = [candidate().argmax(axis=1) == y for candidate in candidates]
        right[name] = float(max(hits, key=lambda h: h[held].mean())[~held].mean())
        spent[name] = time.perf_counter() - started

    def pair(ours: str, other: str, setting: str) -> Pair:
        return Pair(
            metric="accuracy", ours=right[ours], baseline=right[other], baseline_name=other,
            data="banking77", setting=setting, ours_s=spent[ours], baseline_s=spent[other],
        )  # fmt: skip

    others = ("zero_shot", "confidence_cache", "pseudo_label_means")
    return [*(pair("ours", o, "TFUP") for o in others), pair("trained", "zero_shot", "TFUP-T")]


@cache
def _requests() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Vectors and labels of the requests, and the class vectors by wording; once a process."""
    with find_data("banking77/test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["category"] for row in rows})
    y = np.array([classes.index(row["category"]) for row in rows])
    words = [name.replace("_", " ").rstrip("?").lower() for name in classes]
    vectors = encode([row["text"] for row in rows])
    return vectors, y, tuple(encode([w.format(n) for n in words]) for w in WORDINGS)


def _tfup(x: np.ndarray, w: np.ndarray, alpha: float) -> np.ndarray:
    return TFUP(w, alpha=alpha).fit(x).logits(x)


def _confident(x: np.ndarray, w: np.ndarray, alpha: float) -> np.ndarray:
    """The most confident rows of each class, as many as TFUP keeps; votes by the cosine."""
    n = min(max(int(0.3 * len(x) / len(w)), 9), 16)
    p = np.exp(10 * x @ w.T)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.argsort(-p, axis=0, kind="stable")[:n].T.ravel()
    votes = np.exp(x @ x[rows].T - 1) @ np.repeat(np.eye(len(w)), n, axis=0)
    return np.asarray(100 * x @ w.T + alpha * votes)


def _means(x: np.ndarray, w: np.ndarray, blend: float) -> np.ndarray:
    """Class vectors moved toward the mean of the rows that they win."""
    won = np.eye(len(w))[(x @ w.T).argmax(axis=1)]
    means = won.T @ x
    length = np.linalg.norm(means, axis=1, keepdims=True)
    means = np.where(length > 0, means / np.maximum(length, 1e-12), w)
    moved = (1 - blend) * w + blend * means
    return np.asarray(x @ (moved / np.linalg.norm(moved, axis=1, keepdims=True)).T)
