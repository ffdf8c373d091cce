"""Rows that come in batches: small arrays of them in memory, the wide one on disk if saved.

A segment is what one call added. Saving writes the segments that the folder lacks and swaps its
manifest, so a collection grows without being copied, and processes that read it are not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.errors import EtudeError, require
from etude.core.nearest import inner_products
from etude.core.sealed import read_arrays, write_arrays, write_manifest

__all__ = ["Segments"]

NAMES = ("codes", "factors", "ids", "vectors")
ON_DISK = ("ids", "vectors")
Encode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class _Segment:
    ids: np.ndarray
    vectors: np.ndarray
    folder: Path | None = None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)


class Segments:
    """Codes (N, P) uint8 and factors (N,) float32 as one array each; ids and vectors by segment."""

    def __init__(self, dim: int, code_bytes: int) -> None:
        self.codes = np.empty((0, code_bytes), dtype=np.uint8)
        self.factors = np.empty(0, dtype=np.float32)
        self.dim = dim
        self._segments: list[_Segment] = []
        self._starts = np.zeros(1, dtype=np.int64)  # of each segment, and the end

    def __len__(self) -> int:
        return len(self.codes)

    def append(
        self, encode: Encode, coded: np.ndarray, ids: np.ndarray, vectors: np.ndarray
    ) -> None:
        """Add rows with the codes of `coded`; `vectors` is kept by reference. Codes and factors
        are copied to grow, so add in large parts.

        Raises:
            EtudeError: an id that is there already, or twice among the new ones.
        """
        fits = ids.ndim == 1 and len(ids) == len(vectors) and ids.dtype.kind in "iu"
        require(fits, "ids", f"{len(vectors)} integers", ids)
        ids = ids.astype(np.int64, copy=False)
        every = np.sort(np.concatenate([*(segment.ids for segment in self._segments), ids]))
        twice = np.flatnonzero(every[1:] == every[:-1])
        if len(twice):
            raise EtudeError(f"ids must differ, got {every[twice[0]]} twice; remove one of the two")
        if len(ids):
            codes, factors = encode(coded)
            self.codes = np.concatenate([self.codes, codes])
            self.factors = np.concatenate([self.factors, factors])
            self._segments.append(_Segment(ids, vectors))
            self._starts = np.append(self._starts, len(self.codes))

    def _by_segment(self, rows: np.ndarray) -> list[tuple[_Segment, slice, np.ndarray]]:
        """For ascending rows: each segment touched, its part of `rows`, the rows inside it."""
        cuts = np.searchsorted(rows, self._starts)
        return [
            (self._segments[n], slice(cuts[n], cuts[n + 1]), rows[cuts[n] : cuts[n + 1]] - start)
            for n, start in enumerate(self._starts[:-1])
            if cuts[n] < cuts[n + 1]
        ]

    def products(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """(n,) float32 inner products of the query with the full vectors of ascending `rows`."""
        out = np.empty(len(rows), dtype=np.float32)
        for segment, part, inside in self._by_segment(rows):
            out[part] = inner_products(segment.vectors, inside, query)
        return out

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 ids of ascending `rows`."""
        out = np.empty(len(rows), dtype=np.int64)
        for segment, part, inside in self._by_segment(rows):
            out[part] = segment.ids[inside]
        return out

    @property
    def n_bytes(self) -> int:
        """Bytes in memory: codes, factors, and ids that are not on disk."""
        ids = sum(s.ids.nbytes for s in self._segments if s.folder is None)
        return self.codes.nbytes + self.factors.nbytes + ids

    def save(
        self, folder: Path, kind: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """Write what the folder lacks, then the manifest with `facts` (JSON values)."""
        folder = folder.resolve()
        further = write_arrays(folder, arrays)
        for n, segment in enumerate(self._segments):
            if segment.folder != folder:
                span = slice(self._starts[n], self._starts[n + 1])
                four = (self.codes[span], self.factors[span], segment.ids, segment.vectors)
                segment.entries = write_arrays(folder, dict(zip(NAMES, four, strict=True)))
                segment.folder = folder
                kept = {name: segment.entries[name] for name in ON_DISK}
                found = read_arrays(folder, kept, mapped=ON_DISK, verify=False)
                segment.ids, segment.vectors = found["ids"], found["vectors"]
        segments = [segment.entries for segment in self._segments]
        write_manifest(folder, {"kind": kind, **facts, "arrays": further, "segments": segments})

    def load(self, folder: Path, entries: list[dict[str, Any]], *, verify: bool) -> None:
        """Read the segments of a manifest; vectors and ids stay on disk.

        Raises:
            EtudeError: a file is missing, cut, changed, or of another shape: by its name.
        """
        codes, factors = [self.codes], [self.factors]
        for one in entries:
            found = read_arrays(folder, one, mapped=ON_DISK, verify=verify)
            n = len(found["codes"])
            shapes = [found[name].shape for name in NAMES]
            if shapes != [(n, self.codes.shape[1]), (n,), (n,), (n, self.dim)]:
                raise EtudeError(f"{folder / one['codes']['file']}: its arrays do not fit together")
            codes.append(found["codes"])
            factors.append(found["factors"])
            segment = _Segment(found["ids"], found["vectors"], folder.resolve(), dict(one))
            self._segments.append(segment)
            self._starts = np.append(self._starts, self._starts[-1] + n)
        self.codes, self.factors = np.concatenate(codes), np.concatenate(factors)
