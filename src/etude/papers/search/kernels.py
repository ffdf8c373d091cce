"""The loops of the index that must not be Python; compiled at first use and kept on the disk.

They release the interpreter's lock, so that the segments of an index are searched by several
threads at once. All arrays that they read may be memory maps and are read-only.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from etude.core.scan import bits_set

__all__ = [
    "add_words", "best_rows", "count_alive", "distances", "make_postings", "nearest_rows",
    "phrase_rows", "products", "score_rows",
]  # fmt: skip

TITLE = 128  # the bit of a posting's mark that says: in the title too
MOST = 127  # occurrences in a document that are told apart
BLOCK = 64  # rows whose highest score is looked at first


@intrinsic
def _as_float(typing, word):  # type: ignore[no-untyped-def]
    """The float32 that has the bits of an uint32."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


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


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def highest_of_blocks(scores):  # type: ignore[no-untyped-def]
    """The highest of each BLOCK of (N,) float32 scores; "nnan": comparing whole registers."""
    n = len(scores)
    found = np.empty((n + BLOCK - 1) // BLOCK, np.float32)
    for block in range(len(found)):
        part = scores[block * BLOCK : min((block + 1) * BLOCK, n)]
        highest = np.float32(0.0)
        for i in range(len(part)):
            highest = max(highest, part[i])
        found[block] = highest
    return found


@njit(nogil=True, cache=True)
def best_rows(scores, mask, k):  # type: ignore[no-untyped-def]
    """The rows of the `k` highest scores above 0 (equal ones: the first), in order of rows.

    mask (N,) bool says which rows count, an empty one counts all; the others' scores become 0.
    """
    n = len(scores)
    for row in range(len(mask)):
        scores[row] = scores[row] if mask[row] else np.float32(0.0)
    highest = highest_of_blocks(scores)
    # The k-th of the blocks' highest is no higher than the k-th score: other blocks are skipped.
    bar = np.partition(highest, len(highest) - k)[len(highest) - k] if len(highest) > k else 0
    rows = np.empty(BLOCK * np.sum((highest >= bar) & (highest > 0)), np.int64)
    held = 0
    for block in range(len(highest)):
        if highest[block] >= bar and highest[block] > 0:
            for row in range(block * BLOCK, min((block + 1) * BLOCK, n)):
                if scores[row] >= bar and scores[row] > 0:
                    rows[held] = row
                    held += 1
    rows = rows[:held]
    if held <= k:
        return rows
    found = scores[rows]
    bar = np.partition(found, held - k)[held - k]
    spare = k - np.sum(found > bar)  # places for those exactly at the bar
    kept = 0
    for i in range(held):
        if found[i] > bar or (found[i] == bar and spare > 0):
            spare -= found[i] == bar
            rows[kept] = rows[i]
            kept += 1
    return rows[:kept]


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
                distance += bits_set(codes[row, j] ^ code[j])
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


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def products(vectors, rows, query, found):  # type: ignore[no-untyped-def]
    """Fill (R,) float32 `found` with the inner products of a query (D,) float32 and some vectors.

    vectors (N, D) are float16 seen as uint16: a half is a float whose exponent is 112 less. The
    query takes part of that up first, so that no product is too small for a float.
    """
    query = query * np.float32(2.0**60)
    for i in range(len(rows)):
        row = rows[i]
        total = np.float32(0.0)
        for d in range(len(query)):
            half = np.uint32(vectors[row, d])
            bits = ((half & np.uint32(0x8000)) << np.uint32(16)) | (
                (half & np.uint32(0x7FFF)) << np.uint32(13)
            )
            total += _as_float(bits) * query[d]  # type: ignore[call-arg]
        found[i] = total * np.float32(2.0**52)


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
def score_rows(scores, wanted, rows, marks, norms, weight, title, k1):  # type: ignore[no-untyped-def]
    """Add one term's BM25 to (R,) float32 scores of the `wanted` rows, as ``add_words`` does.

    wanted and rows, the term's postings, ascend; what lies between is leapt over.
    """
    at, n = 0, len(rows)
    for i in range(len(wanted)):
        row = wanted[i]
        step = 1
        while at + step < n and rows[at + step] <= row:
            at += step
            step *= 2
        # The row is in at..at + step, if it is there at all.
        last = min(at + step, n)
        while at + 1 < last:
            middle = (at + last) // 2
            if rows[middle] <= row:
                at = middle
            else:
                last = middle
        if at < n and rows[at] == row:
            mark = marks[at]
            tf = np.float32(mark & MOST)
            if mark & TITLE:
                tf += title
            scores[i] += weight * tf * (k1 + np.float32(1.0)) / (tf + norms[row])
