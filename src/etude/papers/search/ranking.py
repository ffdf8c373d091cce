"""Ranking: BM25 over words, inner products over vectors, and their fusion (``fusion``)."""

from __future__ import annotations

import math

import numpy as np

from etude.papers.search.codes import encode_bits
from etude.papers.search.conditions import Filter, allowed
from etude.papers.search.fusion import DEPTH, fuse
from etude.papers.search.kernels import add_words, best_rows, distances, nearest_rows
from etude.papers.search.query import Query
from etude.papers.search.snapshot import K1, Snapshot
from etude.papers.search.words import term

__all__ = ["nearest", "ranked"]

CANDIDATES = 2_000  # nearest by code, whose vectors are read
TITLE = np.float32(1.0)  # what a word's presence in the title adds to its occurrences
ALL = np.empty(0, bool)


def ranked(
    now: Snapshot, read: Query, vector: np.ndarray | None, wanted: Filter, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the best `k` documents for a query, best first."""
    masks = now.each(lambda place: allowed(now.segments[place], now.alive[place], wanted))
    if not read.words and vector is None:
        return _newest(now, masks, k)
    numbers, scores = by_words(now, read.words, masks)
    near = by_meaning(now, vector, masks)[0] if vector is not None else np.empty(0, np.int64)
    union = np.union1d(numbers, near)
    if not len(union):
        return union, np.empty(0)
    places, rows = now.split(union)
    words = np.empty(len(union))
    for place in np.unique(places):
        words[places == place] = scores[place][rows[places == place]]
    meaning = exact(now, vector, union) if vector is not None else None
    fused = fuse(words, meaning)
    order = np.argsort(-fused, kind="stable")[:k]
    return union[order], fused[order]


def by_words(
    now: Snapshot, words: tuple[str, ...], masks: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers of the best DEPTH documents by BM25, and each segment's (N,) float32 scores."""
    weights = {}
    for word in words:
        number = term(word)
        n = now.frequency(number)
        weights[number] = np.float32(math.log(1 + (now.n - n + 0.5) / (n + 0.5)))

    def work(place: int) -> tuple[np.ndarray, np.ndarray]:
        segment = now.segments[place]
        scores = np.zeros(len(segment), np.float32)
        for number, weight in weights.items():
            rows, marks = segment.postings(number)
            if len(rows):
                add_words(scores, rows, marks, now.norms[place], weight, TITLE, np.float32(K1))
        return best_rows(scores, masks[place], DEPTH), scores

    found = now.each(work)
    scores = [s for _, s in found]
    numbers = [rows + base for (rows, _), base in zip(found, now.bases, strict=False)]
    values = [s[rows] for rows, s in found]
    if not numbers:
        return np.empty(0, np.int64), scores
    every = np.concatenate(numbers)
    order = np.argsort(-np.concatenate(values), kind="stable")[:DEPTH]
    return every[order], scores


def by_meaning(
    now: Snapshot, vector: np.ndarray, masks: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and inner products of the best DEPTH documents: by code, then by their vectors."""
    code = encode_bits(vector[None])[0]

    def work(place: int) -> tuple[np.ndarray, np.ndarray]:
        segment = now.segments[place]
        mask = masks[place]
        if not segment.all_encoded:
            mask = segment["encoded"] & mask if len(mask) else segment["encoded"]
        found = np.empty(len(segment), np.uint16)
        counts = distances(segment["codes"], code, mask, found)
        rows = nearest_rows(found, counts, CANDIDATES)
        return rows + now.bases[place], found[rows]

    parts = now.each(work)
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    numbers = np.concatenate([part[0] for part in parts])
    order = np.argsort(np.concatenate([part[1] for part in parts]), kind="stable")[:CANDIDATES]
    numbers = np.sort(numbers[order])
    scores = exact(now, vector, numbers)
    order = np.argsort(-scores, kind="stable")[:DEPTH]
    return numbers[order], scores[order]


def exact(now: Snapshot, vector: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Inner products with documents' vectors, read from where they are kept; NaN without one."""
    if not len(numbers):
        return np.empty(0, np.float32)
    scores: np.ndarray = now.gather("vectors", numbers).astype(np.float32) @ vector
    scores[~now.gather("encoded", numbers)] = np.nan
    return scores


def nearest(now: Snapshot, vector: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and inner products of the `k` documents nearest in meaning."""
    numbers, scores = by_meaning(now, vector, list(now.alive))
    return numbers[:k], scores[:k]


def _newest(now: Snapshot, masks: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """What passes where nothing ranks: the newest first, all with score 0."""
    numbers, days = [], []
    for place, mask in enumerate(masks):
        rows = np.flatnonzero(mask) if len(mask) else np.arange(len(now.segments[place]))
        numbers.append(rows + now.bases[place])
        days.append(now.segments[place]["high"][rows])
    if not numbers:
        return np.empty(0, np.int64), np.empty(0)
    every = np.concatenate(numbers)
    order = np.argsort(-np.concatenate(days).astype(np.int64), kind="stable")[:k]
    return every[order], np.zeros(len(order))
