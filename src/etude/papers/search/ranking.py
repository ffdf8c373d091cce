"""Ranking: BM25 over words, inner products over vectors, and their fusion (``fusion``)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from etude.core.nearest import best, highest
from etude.papers.search.codes import ask
from etude.papers.search.conditions import Filter, allowed
from etude.papers.search.fusion import RECIPE, Recipe, expanded, fused
from etude.papers.search.kernels import (
    add_words,
    best_rows,
    distances,
    nearest_rows,
    products,
    score_rows,
)
from etude.papers.search.query import Query
from etude.papers.search.snapshot import K1, Snapshot
from etude.papers.search.words import term

__all__ = ["Near", "nearest", "ranked"]

# (snapshot, vector, k) -> the numbers of about the k nearest, in order
Near = Callable[[Snapshot, np.ndarray, int], np.ndarray]

NEAR = 10_000  # documents of the fewest unlike bits, at least, that are estimated
CANDIDATES = 2_000  # of the highest estimates, at least, whose vectors are read
TITLE = np.float32(1.0)  # what a word's presence in the title adds to its occurrences


def ranked(
    now: Snapshot, read: Query, vector: np.ndarray | None, wanted: Filter, k: int,
    recipe: Recipe = RECIPE, near: Near | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Numbers and scores of the best `k` documents for a query, best first.

    Without words or without a vector the other ranks alone. `near` finds candidates in place of
    the codes where nothing is filtered.
    """
    masks = now.each(lambda place: allowed(now.segments[place], now.alive[place], wanted))
    query = {term(word): math.sqrt(said) for word, said in read.words}
    if not query and vector is None:
        return _newest(now, masks, k)
    depth = max(recipe.depth, k)
    numbers, scores, every = by_words(now, query, masks, depth)
    if vector is None:
        return numbers[:k], scores[:k]
    if near is not None and wanted.passes_all:
        some = near(now, vector, max(CANDIDATES, 4 * depth))
        found, products = best(exact(now, vector, some), some, depth)
    else:
        found, products = by_meaning(now, vector, masks, depth)
    union = np.union1d(numbers, found)
    if not len(union):
        return union, np.empty(0)
    meaning = np.empty(len(union), np.float32)
    meaning[np.searchsorted(union, found)] = products
    rest = np.isin(union, found, assume_unique=True, invert=True)
    meaning[rest] = exact(now, vector, union[rest])
    words = now.each_of(union, lambda place, rows: every[place][rows])
    mixed = fused(words, meaning, recipe.share)
    if recipe.feedback and query:
        first, _ = best(mixed, union, recipe.feedback)
        again = words_at(now, expanded(now, query, first, recipe), union)
        mixed = fused(again, meaning, recipe.share)
    now.release()
    return best(mixed, union, k)


Weights = tuple[list[np.ndarray], np.ndarray]  # each segment's places of the terms, their weights


def weighed(now: Snapshot, query: dict[int, float]) -> Weights:
    """The query's weights (M,) float32 by term, times the terms' inverse frequencies."""
    words = np.fromiter(query, np.uint64, len(query))
    places = now.places(words)
    n = now.frequencies(words, places)
    idf = np.log(1 + (now.n - n + 0.5) / (n + 0.5))
    return places, (np.fromiter(query.values(), float, len(query)) * idf).astype(np.float32)


def by_words(
    now: Snapshot, query: dict[int, float], masks: list[np.ndarray], depth: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Numbers and scores of the best `depth` documents by BM25, and each segment's scores."""
    places, weights = weighed(now, query)

    def work(place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segment = now.segments[place]
        scores = np.zeros(len(segment), np.float32)
        for at, weight in zip(places[place], weights, strict=True):
            if at >= 0:
                rows, marks = segment.postings_at(at)
                add_words(scores, rows, marks, now.norms[place], weight, TITLE, np.float32(K1))
        rows = best_rows(scores, masks[place], depth)
        return rows + now.bases[place], scores[rows], scores

    found = now.each(work)
    numbers, values = _best([(numbers, values) for numbers, values, _ in found], depth)
    return numbers, values, [scores for _, _, scores in found]


def words_at(now: Snapshot, query: dict[int, float], numbers: np.ndarray) -> np.ndarray:
    """(N,) float32 BM25 scores of some documents."""
    places, weights = weighed(now, query)

    def work(place: int, rows: np.ndarray) -> np.ndarray:
        segment = now.segments[place]
        scores = np.zeros(len(rows), np.float32)
        for at, weight in zip(places[place], weights, strict=True):
            if at >= 0:
                held, marks = segment.postings_at(at)
                norms = now.norms[place]
                score_rows(scores, rows, held, marks, norms, weight, TITLE, np.float32(K1))
        return scores

    return now.each_of(numbers, work)


def by_meaning(
    now: Snapshot, vector: np.ndarray, masks: list[np.ndarray], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and inner products of the best `depth` documents: by code, then by vector.

    The codes leave the NEAR documents with the fewest unlike bits, then of these the CANDIDATES
    of the highest estimates.
    """
    from etude.core.scan import table_scores_at

    code, table = ask(vector)
    n_near, n_candidates = max(NEAR, 8 * depth), max(CANDIDATES, 4 * depth)

    def count(place: int) -> tuple[np.ndarray, np.ndarray]:
        segment = now.segments[place]
        mask = masks[place]
        if not segment.all_encoded:
            mask = segment["encoded"] & mask if len(mask) else segment["encoded"]
        unlike = np.empty(len(segment), np.uint16)
        return unlike, distances(segment["codes"], code, mask, unlike)

    counted = now.each(count)
    # Up to which distance the near documents of all segments reach; equal ones all take part.
    total = np.cumsum(sum(counts for _, counts in counted)) if counted else np.zeros(1)
    radius = int(np.searchsorted(total, min(n_near, total[-1])))

    def estimate(place: int) -> tuple[np.ndarray, np.ndarray]:
        segment = now.segments[place]
        unlike, counts = counted[place]
        rows = nearest_rows(unlike, counts, min(int(counts[: radius + 1].sum()), n_near))
        rough = np.empty(len(rows), np.float32)
        table_scores_at(segment["codes"].view(np.uint8), rows, table, rough)
        return rows + now.bases[place], segment["factors"][rows] * rough

    parts = now.each(estimate)
    numbers = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.int64)
    if len(numbers) > n_candidates:
        numbers = numbers[highest(np.concatenate([part[1] for part in parts]), n_candidates)]
    return best(exact(now, vector, numbers), numbers, depth)


def _best(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """``best`` of several segments' numbers and values."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    numbers, values = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return best(values, numbers, k)


def exact(now: Snapshot, vector: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Inner products with documents' vectors, read from where they are kept; NaN without one."""

    def work(place: int, rows: np.ndarray) -> np.ndarray:
        segment = now.segments[place]
        scores = np.empty(len(rows), np.float32)
        products(segment["vectors"].view(np.uint16), rows, vector, scores)
        if not segment.all_encoded:
            scores[~segment["encoded"][rows]] = np.nan
        return scores

    return now.each_of(numbers, work)


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
    numbers, _ = _best(parts, k)
    return numbers, np.zeros(len(numbers))
