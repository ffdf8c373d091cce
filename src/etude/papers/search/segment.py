"""One piece of an index: some documents as arrays, made once and never altered.

A segment knows its documents by rows 0..N-1, in the order in which they came. Its arrays, each a
file ``<name>.npy`` where the index is kept in a folder:

    terms (V,) uint64 sorted; starts (V+1,), rows (P,), marks (P,): postings (``make_postings``)
    tokens (T,) uint32, offsets (4N+1,): the words themselves, by document and FIELDS
    lengths (N,) uint32: telling words of title and text
    low, high (N,) int32: first and last day that the date may mean, as 20261124; 0 if unknown
    family (N,) uint64, runnable (N,) bool, sums (N, 16) uint8: facts of the documents
    ids (B,) uint8, id_offsets (N+1,), id_keys (N,) uint64 sorted, id_rows (N,): the ids
    vectors (N, D) float16, encoded (N,) bool: the meaning
    codes (N, W) uint64, factors (N,) float32: the same in short (``codes``)
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from mmap import mmap
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from etude.papers.search.codes import encode
from etude.papers.search.document import Document
from etude.papers.search.kernels import make_postings
from etude.papers.search.words import EMPTY, names, split, stem, term

__all__ = ["FIELDS", "Segment", "join", "make_segment"]

FIELDS = ("title", "text", "authors", "categories")
AUTHOR, CATEGORY, FAMILY, ID = "author", "category", "family", "id"  # kinds of terms
BREAK = term("", "break")  # between two authors: no phrase reaches over it
EMPTY_TERMS = np.sort(np.array([term(stem(word)) for word in EMPTY], np.uint64))


class Segment:
    """Documents as arrays; see the module.

    `maps`, `home`, `name`, `files` and `dead` say where it is kept (``keeping``).
    """

    maps: Mapping[str, tuple[mmap, ...]] = MappingProxyType({})  # read "often" and "seldom"
    home: Path | None = None
    name: str = ""
    files: dict[str, list[Any]]
    dead: tuple[list[Any], np.ndarray] | None = None  # the file's entry, and what is in it

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {}
        for name, values in arrays.items():
            plain = np.asarray(values).view()  # the compiled loops know no memory maps
            plain.flags.writeable = False
            self.arrays[name] = plain

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __len__(self) -> int:
        return len(self.arrays["lengths"])

    def place(self, word: int) -> int:
        """Where a term is among the segment's terms, or -1."""
        terms = self.arrays["terms"]
        at = int(np.searchsorted(terms, np.uint64(word)))
        return at if at < len(terms) and int(terms[at]) == word else -1

    def places(self, words: np.ndarray) -> np.ndarray:
        """(M,) int64 where each of (M,) uint64 terms is among the segment's terms, or -1."""
        terms = self.arrays["terms"]
        if not len(terms):
            return np.full(len(words), -1)
        at = np.minimum(np.searchsorted(terms, words), len(terms) - 1)
        return np.where(terms[at] == words, at, -1)

    def postings(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and marks of a term; empty where no document has it."""
        return self.postings_at(self.place(word))

    def postings_at(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and marks of the term at a place."""
        start, stop = (0, 0) if at < 0 else map(int, self.arrays["starts"][at : at + 2])
        return self.arrays["rows"][start:stop], self.arrays["marks"][start:stop]

    def id_of(self, row: int) -> str:
        """The id of a row."""
        start, stop = self.arrays["id_offsets"][row : row + 2]
        return self.arrays["ids"][start:stop].tobytes().decode()

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of ids, -1 where the segment does not have one."""
        keys = np.array([term(i, ID) for i in ids], np.uint64)
        at = np.searchsorted(self.arrays["id_keys"], keys)
        at[at == len(self)] = 0
        known = self.arrays["id_keys"][at] == keys if len(self) else np.zeros(len(at), bool)
        return np.where(known, self.arrays["id_rows"][at].astype(np.int64), -1)

    def words_of(self, row: int) -> np.ndarray:
        """The terms of a document's title and text, in order, uint64."""
        offsets = self.arrays["offsets"]
        tokens = self.arrays["tokens"][offsets[4 * row] : offsets[4 * row + 2]]
        found: np.ndarray = self.arrays["terms"][tokens]
        return found

    @cached_property
    def all_encoded(self) -> bool:
        """Whether every document has a vector."""
        return bool(self.arrays["encoded"].all())

    @cached_property
    def total_length(self) -> int:
        """Telling words of all documents."""
        return int(self.arrays["lengths"].sum(dtype=np.int64))


def make_segment(documents: Iterable[Document], vectors: np.ndarray, has: np.ndarray) -> Segment:
    """A segment of documents in their order.

    vectors (N, D) are unit vectors, and has (N,) bool says which documents have one.
    """
    known: dict[int, int] = {}
    tokens, offsets = array("I"), array("q", [0])
    facts: list[tuple[int, int, int, bool]] = []
    ids, sums = [], []
    # Ids of words by their spelling: one look-up a word is most of what building costs.
    spelled: dict[str, int] = {}
    for document in documents:
        for text in (document.title, document.text):
            for word in split(text):
                place = spelled.get(word)
                if place is None:
                    place = spelled[word] = known.setdefault(term(stem(word)), len(known))
                tokens.append(place)
            offsets.append(len(tokens))
        for author in document.authors:
            for number in (*(term(w, AUTHOR) for w in names(author)), BREAK):
                tokens.append(known.setdefault(number, len(known)))
        offsets.append(len(tokens))
        for category in document.categories:
            for number in category_terms(category):
                tokens.append(known.setdefault(number, len(known)))
        offsets.append(len(tokens))
        family = term(document.family, FAMILY) if document.family else 0
        facts.append((*days(document.date), family, document.runnable))
        ids.append(document.id)
        sums.append(document.sum)
    low, high, families, runnable = zip(*facts, strict=True) if facts else ((), (), (), ())
    arrays: dict[str, np.ndarray] = {
        "low": np.array(low, np.int32), "high": np.array(high, np.int32),
        "family": np.array(families, np.uint64), "runnable": np.array(runnable, bool),
        "sums": np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 16),
        "vectors": np.asarray(vectors, np.float16), "encoded": np.asarray(has, bool),
    }  # fmt: skip
    arrays["codes"], arrays["factors"] = encode(vectors)
    words = np.fromiter(known, np.uint64, len(known))
    return _finished(
        words, np.frombuffer(tokens, np.uint32), np.frombuffer(offsets, np.int64), ids, arrays
    )


def join(segments: Sequence[Segment], alive: Sequence[np.ndarray]) -> Segment:
    """One segment of several, without their dead documents; alive: a (N,) bool array each."""
    terms = np.unique(np.concatenate([s["terms"] for s in segments]))
    tokens, sizes, ids = [], [], []
    for segment, kept in zip(segments, alive, strict=True):
        place = np.searchsorted(terms, segment["terms"]).astype(np.uint32)
        size = np.diff(segment["offsets"]).reshape(-1, len(FIELDS))
        whole = np.repeat(kept, size.sum(axis=1))
        tokens.append(place[segment["tokens"][whole]])
        sizes.append(size[kept].ravel())
        ids += [segment.id_of(int(row)) for row in np.flatnonzero(kept)]
    names_ = (
        "low", "high", "family", "runnable", "sums", "vectors", "codes", "factors", "encoded"
    )  # fmt: skip
    arrays = {
        name: np.concatenate([s[name][kept] for s, kept in zip(segments, alive, strict=True)])
        for name in names_
    }
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    return _finished(terms, np.concatenate(tokens), offsets, ids, arrays)


def _finished(
    terms: np.ndarray, tokens: np.ndarray, offsets: np.ndarray, ids: list[str],
    arrays: dict[str, np.ndarray],
) -> Segment:  # fmt: skip
    """The segment of words and facts: terms sorted, those without a document left out."""
    used = np.bincount(tokens, minlength=len(terms)) > 0 if len(tokens) else np.zeros(0, bool)
    used = used if len(used) else np.zeros(len(terms), bool)
    order = np.argsort(terms)
    order = order[used[order]]
    place = np.zeros(len(terms), np.uint32)
    place[order] = np.arange(len(order), dtype=np.uint32)
    terms, tokens = terms[order], place[tokens]
    starts, rows, marks = make_postings(tokens, offsets, len(FIELDS), len(terms))
    telling = ~np.isin(terms, EMPTY_TERMS)[tokens] if len(tokens) else np.zeros(0, bool)
    ends = np.concatenate([[0], np.cumsum(telling)])
    bounds = offsets.reshape(-1)[:: len(FIELDS)]
    lengths = ends[offsets[2 :: len(FIELDS)]] - ends[bounds[:-1]]
    coded = [i.encode("utf-8", "replace") for i in ids]
    keys = np.array([term(i, ID) for i in ids], np.uint64)
    id_order = np.argsort(keys, kind="stable")
    made = {
        "terms": terms, "tokens": tokens, "offsets": offsets, "starts": starts, "rows": rows,
        "marks": marks, "lengths": lengths.astype(np.uint32),
        "ids": np.frombuffer(b"".join(coded), np.uint8),
        "id_offsets": np.cumsum([0, *map(len, coded)], dtype=np.int64),
        "id_keys": keys[id_order], "id_rows": id_order.astype(np.uint32),
    }  # fmt: skip
    return Segment(arrays | made)


def category_terms(category: str) -> list[int]:
    """A category, and what stands before its dot: cs.LG is found by cat:cs too."""
    whole = category.strip().casefold()
    first = whole.partition(".")[0]
    return [term(name, CATEGORY) for name in dict.fromkeys((whole, first)) if name]


def days(date: str) -> tuple[int, int]:
    """The first and last day that a date may mean, as numbers such as 20261124; 0 if unknown.

    Of a month the 28th stands for the last day, so that a month lies within itself.
    """
    part = [int(p) for p in date.split("-")] if date else []
    if not part:
        return 0, 0
    month, day = [*part[1:], 0, 0][:2]
    low = part[0] * 10_000 + (month or 1) * 100 + (day or 1)
    return low, part[0] * 10_000 + (month or 12) * 100 + (day or (28 if month else 31))
