"""Ranking: BM25 over words, inner products over vectors, and their fusion (``fusion``)."""

from __future__ import annotations

import math

import numpy as np

from etude.papers.search.codes import encode_bits
from etude.papers.search.conditions import Filter, allowed
from etude.papers.search.fusion import RECIPE, Recipe, expanded, fused
from etude.papers.search.kernels import add_words, best_rows, distances, nearest_rows, score_rows
from etude.papers.search.query import Query
from etude.papers.search.snapshot import K1, Snapshot
from etude.papers.search.words import term

__all__ = ["nearest", "ranked"]

CANDIDATES = 2_000  # nearest by code, at least, whose vectors are read
TITLE = np.float32(1.0)  # what a word's presence in the title adds to its occurrences


def ranked(
    now: Snapshot, read: Query, vector: np.ndarray | None, wanted: Filter, k: int,
    recipe: Recipe = RECIPE,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Numbers and scores of the best `k` documents for a query, best first.

    Without words or without a vector the other ranks alone.
    """
    masks = now.each(lambda place: allowed(now.segments[place], now.alive[place], wanted))
    query = {term(word): math.sqrt(said) for word, said in read.words}
    if not query and vector is None:
        return _newest(now, masks, k)
    depth = max(recipe.depth, k)
    numbers, scores, every = by_words(now, query, masks, depth)
    if vector is None:
        return numbers[:k], scores[:k]
    near, products = by_meaning(now, vector, masks, depth)
    union = np.union1d(numbers, near)
    if not len(union):
        return union, np.empty(0)
    meaning = np.empty(len(union), np.float32)
    meaning[np.searchsorted(union, near)] = products
    rest = np.isin(union, near, assume_unique=True, invert=True)
    meaning[rest] = exact(now, vector, union[rest])
    words = np.zeros(len(union), np.float32)
    places, rows = now.split(union)
    for place in np.unique(places):
        words[places == place] = every[place][rows[places == place]]
    mixed = fused(words, meaning, recipe.share)
    if recipe.feedback and query:
        best = union[np.argsort(-mixed, kind="stable")[: recipe.feedback]]
        again = words_at(now, expanded(now, query, best, recipe), union)
        mixed = fused(again, meaning, recipe.share)
    now.release()
    order = np.argsort(-mixed, kind="stable")[:k]
    return union[order], mixed[order]


def weighed(now: Snapshot, query: dict[int, float]) -> dict[int, np.float32]:
    """The query's weights by term, times the terms' inverse frequencies."""
    weights = {}
    for word, value in query.items():
        n = now.frequency(word)
        weights[word] = np.float32(value * math.log(1 + (now.n - n + 0.5) / (n + 0.5)))
    return weights


def by_words(
    now: Snapshot, query: dict[int, float], masks: list[np.ndarray], depth: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Numbers and scores of the best `depth` documents by BM25, and each segment's scores."""
    weights = weighed(now, query)

    def work(place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segment = now.segments[place]
        scores = np.zeros(len(segment), np.float32)
        for number, weight in weights.items():
            rows, marks = segment.postings(number)
            if len(rows):
                add_words(scores, rows, marks, now.norms[place], weight, TITLE, np.float32(K1))
        rows = best_rows(scores, masks[place], depth)
        return rows + now.bases[place], scores[rows], scores

    found = now.each(work)
    numbers, values = _best([(numbers, values) for numbers, values, _ in found], depth, -1)
    return numbers, values, [scores for _, _, scores in found]


def words_at(now: Snapshot, query: dict[int, float], numbers: np.ndarray) -> np.ndarray:
    """(N,) float32 BM25 scores of some documents."""
    weights = weighed(now, query)
    scores = np.zeros(len(numbers), np.float32)
    places, rows = now.split(numbers)
    for place in np.unique(places):
        segment = now.segments[place]
        at = [(segment.place(word), weight) for word, weight in weights.items()]
        at = [(p, weight) for p, weight in at if p >= 0]
        here = places == place
        scores[here] = score_rows(
            segment["tokens"], segment["offsets"], 4, rows[here],
            np.array([p for p, _ in at], np.int64), np.array([w for _, w in at], np.float32),
            now.norms[place], TITLE, np.float32(K1), len(segment["terms"]),
        )  # fmt: skip
    return scores


def by_meaning(
    now: Snapshot, vector: np.ndarray, masks: list[np.ndarray], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and inner products of the best `depth` documents: by code, then by vector."""
    n = max(CANDIDATES, 4 * depth)
    code = encode_bits(vector[None])[0]

    def work(place: int) -> tuple[np.ndarray, np.ndarray]:
        segment = now.segments[place]
        mask = masks[place]
        if not segment.all_encoded:
            mask = segment["encoded"] & mask if len(mask) else segment["encoded"]
        found = np.empty(len(segment), np.uint16)
        counts = distances(segment["codes"], code, mask, found)
        rows = nearest_rows(found, counts, n)
        return rows + now.bases[place], found[rows]

    numbers, _ = _best(now.each(work), n, 1)
    numbers = np.sort(numbers)
    return _best([(numbers, exact(now, vector, numbers))], depth, -1)


def _best(
    parts: list[tuple[np.ndarray, np.ndarray]], k: int, sign: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` numbers with the smallest sign * value and these values; equal ones in order."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    numbers = np.concatenate([part[0] for part in parts])
    values = np.concatenate([part[1] for part in parts])
    order = np.argsort(sign * values.astype(np.float64), kind="stable")[:k]
    return numbers[order], values[order]


def exact(now: Snapshot, vector: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Inner products with documents' vectors, read from where they are kept; NaN without one."""
    if not len(numbers):
        return np.empty(0, np.float32)
    scores: np.ndarray = now.gather("vectors", numbers).astype(np.float32) @ vector
    scores[~now.gather("encoded", numbers)] = np.nan
    return scores


def nearest(now: Snapshot, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and inner products of the `k` documents nearest in meaning."""
    numbers, scores = by_meaning(now, vector, list(now.alive), k)
    return numbers[:k], scores[:k]


def _newest(now: Snapshot, masks: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """What passes where nothing ranks: the newest first, all with score 0."""
    parts = []
    for place, mask in enumerate(masks):
        rows = np.flatnonzero(mask) if len(mask) else np.arange(len(now.segments[place]))
        parts.append((rows + now.bases[place], now.segments[place]["high"][rows]))
    numbers, _ = _best(parts, k, -1)
    return numbers, np.zeros(len(numbers))
