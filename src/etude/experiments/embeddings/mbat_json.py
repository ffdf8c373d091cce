"""MBAT on generated JSON: does the cosine follow the number of edits, at any depth?

A document is a spine of nested objects; every level carries three short leaves (words, numbers,
booleans). From it 40 others are made by 1 to 12 edits, each at a uniformly drawn level: a leaf
changed, a key renamed, a leaf deleted. Reported is Spearman's correlation of minus the number of
edits with the cosine of the two encodings, over 40 documents of one seed, at nesting depths 20,
5 and 1. The arms differ in the matrices alone: Haar-orthogonal, or the earlier MBAT's
independent Gaussian or +-1 entries of variance 1 / dim; all have the seed's own matrices.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from etude.embeddings import OrthogonalMBAT, encode_json
from etude.tasks.base import Pair

__all__ = ["measure"]

DIM = 256
WORDS = [f"{a}{b}" for a in ("lo", "mi", "ta", "re", "su", "ka") for b in ("n", "r", "s", "t", "x")]
N_DOCUMENTS, N_EDITED, MOST_EDITS = 8, 40, 12


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is depth 20 against Gaussian matrices."""
    found = []
    for depth in (20, 5, 1):
        rng = np.random.default_rng([seed, 222, depth])
        families = [_family(rng, depth) for _ in range(N_DOCUMENTS)]
        arms = {m: _correlation(families, m, seed) for m in ("orthogonal", "gaussian", "sign")}
        ours, ours_s = arms["orthogonal"]
        for name in ("gaussian", "sign"):
            value, spent = arms[name]
            found.append(
                Pair(
                    metric="spearman",
                    ours=ours,
                    baseline=value,
                    baseline_name=f"{name}_mbat",
                    data="generated_json",
                    setting=f"depth {depth}",
                    ours_s=ours_s,
                    baseline_s=spent,
                )
            )
    return found


def _correlation(
    families: list[tuple[Any, list[tuple[int, Any]]]], matrices: str, seed: int
) -> tuple[float, float]:
    start = time.perf_counter()
    encoder = OrthogonalMBAT(DIM, seed=seed, matrices=matrices)
    values = []
    for original, edited in families:
        base = encode_json(original, encoder=encoder)
        others = np.stack([encode_json(value, encoder=encoder) for _, value in edited])
        cosines = others @ base / np.linalg.norm(others, axis=1) / np.linalg.norm(base)
        values.append(spearmanr([-n for n, _ in edited], cosines).statistic)
    return float(np.mean(values)), time.perf_counter() - start


def _family(rng: np.random.Generator, depth: int) -> tuple[Any, list[tuple[int, Any]]]:
    """A document, and (number of edits, edited copy) pairs."""
    levels = [{f"k{i}{j}": _leaf(rng) for j in range(3)} for i in range(depth)]
    edited = []
    for _ in range(N_EDITED):
        n_edits = int(rng.integers(1, MOST_EDITS + 1))
        copy = [dict(level) for level in levels]
        for _ in range(n_edits):
            _edit(copy[rng.integers(depth)], rng)
        edited.append((n_edits, _nest(copy)))
    return _nest(levels), edited


def _edit(level: dict[str, Any], rng: np.random.Generator) -> None:
    if not level:
        level[f"new{rng.integers(100)}"] = _leaf(rng)
        return
    key = sorted(level)[rng.integers(len(level))]
    kind = rng.integers(3)
    value = level.pop(key)
    if kind == 0:
        level[key] = _leaf(rng)
    elif kind == 1:
        level[f"{key}x"] = value


def _nest(levels: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for level in reversed(levels):
        document = {**level, "next": document} if document else dict(level)
    return document


def _leaf(rng: np.random.Generator) -> Any:
    kind = rng.integers(3)
    if kind == 0:
        return bool(rng.integers(2))
    if kind == 1:
        return round(float(rng.lognormal(3, 2)), 2)
    return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=2))
