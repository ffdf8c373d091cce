r"""Unified embedding: all categorical features look their rows up in one store, by salted hashes.

A table for every feature means a size to choose for every feature, and rows that lie idle where
it was chosen too large. Here a store of rows of width d serves all. The value v of feature f gets
t_f lookups; lookup c hashes v by a function of its own, keyed by the pair (f, c), and the t_f
rows are put side by side, so the feature is t_f d wide:

    r(f, c, v) = SipHash-2-4(text of v; key = (f, c)) mod B                               (1)
    e_f(v) = [W[r(f, 0, v)], ..., W[r(f, t_f - 1, v)]],   output = [e_1, ..., e_F]        (2)

Values of different features that share a row meet different weights of the next layer, and the
gradient of a shared row is the sum over features of what separate copies would get,

    dL/dW[r] = sum_f dL/dW_f[r],                                                          (3)

whose terms lie in the spans of those different weight blocks, so training can keep them apart.
Two values of one feature meet the same weights: they stay apart only if not all t_f hashes
agree, which happens with a probability of about B^-t_f. The store may be S equal tables of B
rows: successive lookups, counted over all features, are dealt to the tables in turn.    (4)

Source: Coleman, Kang, Fahrbach, Wang, Hong, Chi, Cheng, "Unified Embedding: Battle-Tested Feature
Representations for Web-Scale ML Systems", NeurIPS 2023, arXiv:2305.12102; TensorFlow Recommenders
at cf1dafa (layers/feature_multiplexing), whose hashing layer is (1). SipHash: Aumasson, Bernstein,
"SipHash: a fast short-input PRF", INDOCRYPT 2012.
Not found in the text at hand: the paper's tables and constants of its theorems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["UnifiedEmbedding", "SeparateTables", "multiplexed_hash", "proportional_rows"]

CARD = Card(
    slug="unified_embedding",
    family="embeddings",
    title="Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
    year=2023,
    arxiv="2305.12102",
    move="Let every categorical feature look its values up in one shared store of rows, by several "
    "hashes salted with feature and lookup, instead of in a table of its own.",
    task="experiment",
    claim="On clicks over six features of 10 to 20,000 values, a store of 400 rows shared by all "
    "gives a higher AUROC than hashed tables of each feature's own with the same total.",
    baseline="separate_tables",
    metric="auroc",
    better="higher",
    published="abstract: Pareto-optimal space and accuracy on three public data sets; no single "
    "figure",
    fidelity="full",
    cost="M",
    data=("generated_clicks",),
    code="tensorflow/recommenders",
    departs=("A feature has one value a sample; lists of values and their combiner are left out.",),
    example={"dim": 4, "n_lookups": (1, 2), "n_rows": 16},
)

MOST_ROWS = 1 << 31


class UnifiedEmbedding(nn.Module):
    """The shared store; (2) with the tables of (4).

    Args:
        dim: width d of a row.
        n_lookups: t_f of each feature, in the order of the columns of `ids`.
        n_rows: rows B of each table.
        n_tables: tables S; all parameters are n_tables * n_rows * dim numbers.
        generator: of the starting rows (normal, deviation 1 / sqrt(d), cut at two of it).

    Raises:
        EtudeError: no feature, or a number below 1.
    """

    def __init__(
        self, dim: int = 16, *, n_lookups: Sequence[int] = (1,), n_rows: int = 4096,
        n_tables: int = 1, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(dim, n_lookups)
        require(1 <= n_rows <= MOST_ROWS, "n_rows", f"in 1..{MOST_ROWS:,}", n_rows)
        require(n_tables >= 1, "n_tables", "at least 1", n_tables)
        self.dim, self.n_lookups = dim, tuple(n_lookups)
        self.n_rows, self.n_tables = n_rows, n_tables
        self.table = nn.Parameter(_start(n_tables * n_rows, dim, generator))

    def rows(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, sum of t_f) row numbers, by feature, then by lookup."""
        ids = _checked(ids, self.n_lookups)
        found: list[Tensor] = []
        for feature, t in enumerate(self.n_lookups):
            values = ids[:, feature].numpy(force=True)
            for lookup in range(t):
                row = multiplexed_hash(values, feature=feature, lookup=lookup, n_rows=self.n_rows)
                table = len(found) % self.n_tables  # (4)
                found.append(torch.from_numpy(row + table * self.n_rows))
        return torch.stack(found, dim=1).to(ids.device)

    def look_up(self, rows: Tensor) -> Tensor:
        """(B, L) row numbers of ``rows`` -> (B, L d); for who hashes once and trains long."""
        return self.table[rows].flatten(1)  # (2)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) int64 -> (B, d * sum of t_f), feature after feature.

        Raises:
            EtudeError: not whole numbers, or another number of features.
        """
        return self.look_up(self.rows(ids))


class SeparateTables(nn.Module):
    """What the shared store is compared with: a hashed table for every feature.

    Args:
        dim: width d of a row.
        n_lookups: t_f of each feature; its lookups share the feature's table.
        n_rows: rows of each feature's table.
        n_values: size of each feature's vocabulary 0..n - 1, where known: a table with a row for
            every value is not hashed, its rows are the values.
        generator: of the starting rows, as in ``UnifiedEmbedding``.
    """

    def __init__(
        self, dim: int = 16, *, n_lookups: Sequence[int] = (1,), n_rows: Sequence[int] = (4096,),
        n_values: Sequence[int] | None = None, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(dim, n_lookups)
        fits = len(n_rows) == len(n_lookups) and all(1 <= n <= MOST_ROWS for n in n_rows)
        require(fits, "n_rows", f"{len(n_lookups)} positive numbers", n_rows)
        fits = n_values is None or len(n_values) == len(n_lookups)
        require(fits, "n_values", f"{len(n_lookups)} numbers or None", n_values)
        self.dim, self.n_lookups, self.n_rows = dim, tuple(n_lookups), tuple(n_rows)
        self.n_values = None if n_values is None else tuple(n_values)
        self.table = nn.Parameter(_start(sum(n_rows), dim, generator))

    def rows(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, sum of t_f) row numbers in the tables laid end to end."""
        ids = _checked(ids, self.n_lookups)
        found, first = [], 0
        for feature, (t, n) in enumerate(zip(self.n_lookups, self.n_rows, strict=True)):
            values = ids[:, feature].numpy(force=True)
            whole = self.n_values is not None and self.n_values[feature] <= n
            if whole:
                inside = len(values) == 0 or bool(values.min() >= 0 and values.max() < n)
                require(inside, "ids", f"in 0..{n - 1} for feature {feature}", values)
            for lookup in range(t):
                row = values if whole else multiplexed_hash(
                    values, feature=feature, lookup=lookup, n_rows=n
                )  # fmt: skip
                found.append(torch.from_numpy(row + first))
            first += n
        return torch.stack(found, dim=1).to(ids.device)

    def look_up(self, rows: Tensor) -> Tensor:
        """(B, L) row numbers -> (B, L d)."""
        return self.table[rows].flatten(1)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) int64 -> (B, d * sum of t_f)."""
        return self.look_up(self.rows(ids))


def multiplexed_hash(
    ids: np.ndarray | Sequence[str], *, feature: int = 0, lookup: int = 0, n_rows: int = 4096
) -> np.ndarray:
    """Row numbers (1) of one feature's values: the same on every machine, now and later.

    Args:
        ids: (N,) whole numbers, hashed as their decimal digits, or N texts, hashed as UTF-8; so 7
            and "7" are one value.
        feature, lookup: the key (f, c), at least 0.
        n_rows: B.

    Returns:
        (N,) int64 in 0..n_rows - 1.
    """
    for name, number in {"feature": feature, "lookup": lookup}.items():
        require(0 <= number < 1 << 64, name, "in 0..2^64 - 1", number)
    require(1 <= n_rows <= MOST_ROWS, "n_rows", f"in 1..{MOST_ROWS:,}", n_rows)
    numbers = ids if isinstance(ids, np.ndarray) else None
    if numbers is not None and numbers.dtype.kind in "iu":
        require(numbers.ndim == 1, "ids", "of shape (N,)", numbers)
        values, inverse = np.unique(numbers, return_inverse=True)
        texts = [str(value).encode() for value in values.tolist()]
    else:
        ok = (numbers is None or numbers.ndim == 1) and all(isinstance(v, str) for v in ids)
        require(ok, "ids", "(N,) whole numbers or texts", ids)
        texts = [str(value).encode("utf-8", "surrogatepass") for value in ids]
        inverse = np.arange(len(texts))
    row = np.empty(len(texts), dtype=np.int64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    for length in np.unique(lengths):  # texts of one length take the same rounds
        which = np.flatnonzero(lengths == length)
        size = (length // 8 + 1) * 8  # the last block ends in the length's low byte
        tail = bytes(size - length - 1) + bytes([length % 256])
        whole = b"".join(texts[i] + tail for i in which)
        blocks = np.frombuffer(whole, dtype="<u8").reshape(len(which), -1)
        row[which] = (_siphash(blocks, feature, lookup) % np.uint64(n_rows)).astype(np.int64)
    return row[inverse]  # (1)


def proportional_rows(
    n_values: Sequence[int], total: int, *, power: float = 1.0
) -> tuple[int, ...]:
    """Rows of each feature's table: `total` shared in proportion to vocabulary ** power.

    Every feature gets 1 row at least and no more rows than values; what the cap leaves over goes
    to the others. The sum is min(total, all values).

    Raises:
        EtudeError: an empty vocabulary, fewer rows than features, or a power outside 0..1.
    """
    require(min(n_values, default=0) >= 1, "n_values", "positive numbers", n_values)
    require(total >= len(n_values), "total", f"at least {len(n_values)}", total)
    require(0 <= power <= 1, "power", "in 0..1", power)
    sizes = np.asarray(n_values, dtype=np.float64)
    weights = sizes**power
    low, high = 0.0, float(sizes.max())  # of the factor by which weights become rows
    for _ in range(100):
        middle = (low + high) / 2
        too_many = np.clip(middle * weights, 1, sizes).sum() > total
        low, high = (low, middle) if too_many else (middle, high)
    shares = np.clip(low * weights, 1, sizes)
    rows = np.floor(shares + 1e-9)
    left = int(min(total, sizes.sum()) - rows.sum())
    rows[np.argsort(rows - shares, kind="stable")[:left]] += 1  # the largest remainders
    return tuple(int(n) for n in rows)


def _siphash(blocks: np.ndarray, k0: int, k1: int) -> np.ndarray:
    """(N, n) uint64 padded messages -> (N,) uint64, SipHash-2-4; uint64 arithmetic wraps."""
    n = len(blocks)
    keys = (k0, k1, k0, k1)
    start = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    v0, v1, v2, v3 = (np.full(n, s ^ k, dtype=np.uint64) for s, k in zip(start, keys, strict=True))

    def turned(v: np.ndarray, bits: int) -> np.ndarray:
        return np.asarray((v << np.uint64(bits)) | (v >> np.uint64(64 - bits)))

    for block in [*blocks.T, None]:
        if block is None:
            v2 = v2 ^ np.uint64(0xFF)
        else:
            v3 = v3 ^ block
        for _ in range(4 if block is None else 2):
            v0, v2 = v0 + v1, v2 + v3
            v1, v3 = turned(v1, 13) ^ v0, turned(v3, 16) ^ v2
            v0, v2 = turned(v0, 32) + v3, v2 + v1
            v1, v3 = turned(v1, 17) ^ v2, turned(v3, 21) ^ v0
            v2 = turned(v2, 32)
        if block is not None:
            v0 = v0 ^ block
    return np.asarray(v0 ^ v1 ^ v2 ^ v3)


def _check(dim: int, n_lookups: Sequence[int]) -> None:
    require(dim >= 1, "dim", "at least 1", dim)
    positive = len(n_lookups) > 0 and all(t >= 1 for t in n_lookups)
    require(positive, "n_lookups", "positive numbers, one a feature", n_lookups)


def _checked(ids: Tensor, n_lookups: Sequence[int]) -> Tensor:
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    require(whole, "ids", "whole numbers", ids)
    n = len(n_lookups)
    require(ids.ndim == 2 and ids.shape[1] == n, "ids", f"of shape (B, {n})", ids)
    return ids


def _start(n_rows: int, dim: int, generator: torch.Generator | None) -> Tensor:
    spread = 1 / math.sqrt(dim)
    return nn.init.trunc_normal_(
        torch.empty(n_rows, dim), 0.0, spread, -2 * spread, 2 * spread, generator=generator
    )
