"""The loops of the index that must not be Python; compiled at first use and kept on the disk.

They release the interpreter's lock, so that the segments of an index are searched by several
threads at once. All arrays that they read may be memory maps and are read-only.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import intrinsic

__all__ = [
    "add_words", "best_rows", "count_alive", "distances", "make_postings", "nearest_rows",
    "phrase_rows", "score_rows",
]  # fmt: skip

TITLE = 128  # the bit of a posting's mark that says: in the title too
MOST = 127  # occurrences in a document that are told apart


@intrinsic
def _ones(typing, word):  # type: ignore[no-untyped-def]
    """The number of one-bits of a 64-bit word, as one instruction."""
    return word(word), lambda context, builder, signature, args: builder.ctpop(args[0])


@njit(nogil=True, cache=True)
def make_postings(tokens, offsets, n_fields, n_terms):  # type: ignore[no-untyped-def]
    """CSR postings of documents: starts (V+1,), rows (P,) uint32, marks (P,) uint8.

    tokens (T,) are terms in 0..V-1, offsets (N * n_fields + 1,) bound each field of each
    document; field 0 is the title. A mark is the number of occurrences, and TITLE's bit.
    """
    n = (len(offsets) - 1) // n_fields
    starts = np.zeros(n_terms + 1, np.int64)
    last = np.full(n_terms, -1, np.int64)
    for row in range(n):
        for at in range(offsets[row * n_fields], offsets[(row + 1) * n_fields]):
            term = tokens[at]
            if last[term] != row:
                last[term] = row
                starts[term + 1] += 1
    for term in range(n_terms):
        starts[term + 1] += starts[term]
    rows = np.empty(starts[n_terms], np.uint32)
    marks = np.zeros(starts[n_terms], np.uint8)
    place = starts[:-1].copy()
    last[:] = -1
    for row in range(n):
        title_end = offsets[row * n_fields + 1]
        for at in range(offsets[row * n_fields], offsets[(row + 1) * n_fields]):
            term = tokens[at]
            if last[term] != row:
                last[term] = row
                rows[place[term]] = row
                place[term] += 1
            p = place[term] - 1
            if marks[p] & MOST < MOST:
                marks[p] += 1
            if at < title_end:
                marks[p] |= TITLE
    return starts, rows, marks


@njit(nogil=True, cache=True)
def add_words(scores, rows, marks, norms, weight, title, k1):  # type: ignore[no-untyped-def]
    """Add one term's BM25 to (N,) float32 scores; an occurrence in the title counts `title` more.

    norms (N,) float32 are k1 * (1 - b + b * length / mean length).
    """
    for p in range(len(rows)):
        mark = marks[p]
        tf = np.float32(mark & MOST)
        if mark & TITLE:
            tf += title
        row = rows[p]
        scores[row] += weight * tf * (k1 + np.float32(1.0)) / (tf + norms[row])


@njit(nogil=True, cache=True)
def best_rows(scores, mask, k):  # type: ignore[no-untyped-def]
    """The rows of the `k` highest scores above 0 (equal ones: the first), in order of rows.

    mask (N,) bool says which rows count; an empty one counts all.
    """
    n, every = len(scores), len(mask) == 0
    highest = np.float32(0.0)
    for row in range(n):
        if (every or mask[row]) and scores[row] > highest:
            highest = scores[row]
    if highest <= 0 or k < 1:
        return np.empty(0, np.int64)
    # A histogram finds the bin of the k-th score; only what is in that bin is sorted.
    bins = 4096
    scale = np.float32(bins - 1) / highest
    counts = np.zeros(bins, np.int64)
    for row in range(n):
        if scores[row] > 0 and (every or mask[row]):
            counts[int(scores[row] * scale)] += 1
    above, cut = 0, bins - 1
    while cut > 0 and above + counts[cut] < k:
        above += counts[cut]
        cut -= 1
    sure = np.empty(above, np.int64)
    open_ = np.empty(counts[cut], np.int64)
    a = o = 0
    for row in range(n):
        if scores[row] > 0 and (every or mask[row]):
            place = int(scores[row] * scale)
            if place > cut:
                sure[a] = row
                a += 1
            elif place == cut:
                open_[o] = row
                o += 1
    order = np.argsort(-scores[open_], kind="mergesort")
    return np.sort(np.concatenate((sure, open_[order[: k - above]])))


@njit(nogil=True, cache=True)
def distances(codes, code, mask, found):  # type: ignore[no-untyped-def]
    """Fill (N,) uint16 `found` with the Hamming distances of (N, W) codes; returns a histogram.

    Rows that the mask (N,) bool leaves out get the largest distance and are not counted; an
    empty mask counts all.
    """
    n, width = codes.shape
    every = len(mask) == 0
    counts = np.zeros(64 * width + 1, np.int64)
    for row in range(n):
        if every or mask[row]:
            distance = np.uint64(0)
            for j in range(width):
                distance += _ones(codes[row, j] ^ code[j])  # type: ignore[call-arg]
            found[row] = distance
            counts[distance] += 1
        else:
            found[row] = 65535
    return counts


@njit(nogil=True, cache=True)
def nearest_rows(found, counts, k):  # type: ignore[no-untyped-def]
    """The rows of the `k` smallest distances (equal ones: the first), in order of rows."""
    below, cut = 0, 0
    while cut < len(counts) and below + counts[cut] < k:
        below += counts[cut]
        cut += 1
    more = k - below  # of those at the cut
    total = below if cut == len(counts) else min(k, below + counts[cut])
    rows = np.empty(total, np.int64)
    at = 0
    for row in range(len(found)):
        if found[row] < cut:
            rows[at] = row
            at += 1
        elif found[row] == cut and more > 0 and cut < len(counts):
            rows[at] = row
            at += 1
            more -= 1
    return rows


@njit(nogil=True, cache=True)
def phrase_rows(tokens, offsets, n_fields, first, last, phrase, mask):  # type: ignore[no-untyped-def]
    """Take rows out of `mask` whose fields `first` to `last` do not hold the phrase of terms."""
    m = len(phrase)
    for row in range(len(mask)):
        if not mask[row]:
            continue
        holds = False
        for field in range(first, last + 1):
            start = offsets[row * n_fields + field]
            stop = offsets[row * n_fields + field + 1] - m + 1
            for at in range(start, stop):
                same = 0
                while same < m and tokens[at + same] == phrase[same]:
                    same += 1
                if same == m:
                    holds = True
                    break
            if holds:
                break
        mask[row] = holds


@njit(nogil=True, cache=True)
def count_alive(rows, alive):  # type: ignore[no-untyped-def]
    """How many of the rows are alive."""
    total = 0
    for row in rows:
        total += alive[row]
    return total


@njit(nogil=True, cache=True)
def score_rows(  # type: ignore[no-untyped-def]
    tokens, offsets, n_fields, rows, places, weights, norms, title, k1, n_terms
):
    """(R,) float32 BM25 of some rows, from their words: what ``add_words`` adds up for all.

    places (M,) are the terms that count, with weights (M,) float32.
    """
    m = len(places)
    lookup = np.full(n_terms, -1, np.int16)
    for j in range(m):
        lookup[places[j]] = j
    scores = np.zeros(len(rows), np.float32)
    counts = np.zeros(m, np.int64)
    titled = np.zeros(m, np.bool_)
    for i in range(len(rows)):
        row = rows[i]
        counts[:] = 0
        titled[:] = False
        title_end = offsets[row * n_fields + 1]
        for at in range(offsets[row * n_fields], offsets[row * n_fields + 2]):
            j = lookup[tokens[at]]
            if j >= 0:
                counts[j] += 1
                if at < title_end:
                    titled[j] = True
        for j in range(m):
            if counts[j] > 0:
                tf = np.float32(min(counts[j], MOST))
                if titled[j]:
                    tf += title
                scores[i] += weights[j] * tf * (k1 + np.float32(1.0)) / (tf + norms[row])
    return scores
