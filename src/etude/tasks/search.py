"""search: codes whose inner product ranks a collection. How much of the exact answer is found?

The documents are the training rows, the queries the test rows. The truth is the exact top 10:
by cosine for vectors; by the Chamfer score for token sets, the sum over the query's tokens of
the best inner product with a document token. A method's ``encode_documents`` asks for
`documents` (token sets, (N, T, D), unit tokens) or `vectors` (the rows themselves, (N, D),
of unit length). Sets may differ in size: then they come as a list of (T, D) arrays.

Where the truth of all queries would take minutes, as many are asked as `WORK` allows, at least
50. It is worked out once for all arms that meet the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.baselines import MeanToken, TruncatedPCA
from etude.tasks.facts import build, describe, has_sets, tokens_of
from etude.tasks.wire import asks

__all__ = ["Search", "exact"]

TOP = 10
WORK = 1e12  # multiplications that the exact answers of one part may take
FEWEST_QUERIES = 50
SCORES = 16_000_000  # numbers in memory
Sets = np.ndarray | Sequence[np.ndarray]
_truths: dict[str, np.ndarray] = {}  # the last few, by the content of data and rows


class Search:
    """The task; stateless."""

    name = "search"
    question = "Which codes find the true neighbors, and at how many bytes?"
    metrics = ("recall_at_10", "recall_at_1", "bytes")
    baselines: Mapping[str, Arm] = {
        "mean_token": Arm("mean_token", "Mean of the tokens", MeanToken),
        "flat_pca": Arm(
            "flat_pca", "Principal components", TruncatedPCA, {"n_components": (16, 8, 32, 64)}
        ),
    }

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """Any data will do: a vector is a set of one token."""
        return None

    def notes_of(self, data: Dataset) -> tuple[str, ...]:
        """What is missing where each row is one vector."""
        if has_sets(data):
            return ()
        return (
            "Each row is one vector, taken as a set of one: codes of token sets have little to do. "
            "Give a Parquet column of lists of vectors, NPZ tokens with lengths, or a text.",
        )

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20 whatever the labels."""
        unlabeled = Dataset(name=data.name, x=data.x, y=None)
        return split_rows(unlabeled, seed)

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The encoder; for token sets `dim` is the width of a token."""
        return {"method": build(arm, {**facts, "dim": facts.get("token_dim", facts["dim"])}, knobs)}

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Fit the encoder where it learns, and encode the documents."""
        facts = describe(data, split.train, seed)
        parts = self.assemble(arm, facts, knobs)
        method = parts["method"]
        by_vector = "vectors" in asks(method.encode_queries)
        facts["given_tokens"] = data.tokens is not None and not by_vector
        if hasattr(method, "fit"):
            method.fit(_unit(data.x[split.train]))
        codes = method.encode_documents(_asked(method.encode_documents, data, split.train))
        return Predictor(
            self.name, arm.name, facts, dict(knobs), parts, {"codes": np.asarray(codes)}
        )

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """Share of the exact top 10 (and top 1) among the 10 (and 1) found; bytes a document."""
        rows = _asking(data, getattr(split, part), split.train)
        truth = _truth(data, rows, split.train)
        found = self._find(predictor, data, rows)
        hits = (found[:, :, None] == truth[:, None, :]).any(axis=1)
        return {
            "recall_at_10": float(hits.mean()),
            "recall_at_1": float((found[:, 0] == truth[:, 0]).mean()),
            "bytes": float(predictor.arrays["codes"].nbytes / len(predictor.arrays["codes"])),
        }

    def _find(self, predictor: Predictor, data: Dataset, rows: np.ndarray) -> np.ndarray:
        method = predictor.parts["method"]
        codes = method.encode_queries(_asked(method.encode_queries, data, rows))
        return measures.neighbors(np.asarray(codes), predictor.arrays["codes"], TOP)

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B, 10) numbers of the training rows that rank first.

        Where the documents' token sets were given, rows are token sets too: (B, T, D) or B
        objects (T, D).
        """
        shape = predictor.facts.get("image_shape")
        given = predictor.facts.get("given_tokens", False)
        data = Dataset(
            name="rows", x=x, y=None, image_shape=None if shape is None else tuple(shape),
            tokens=x if given else None,
        )  # fmt: skip
        return self._find(predictor, data, np.arange(len(x)))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _sets(data: Dataset, rows: np.ndarray) -> Sets:
    """Unit tokens of the rows, (B, T, D) or B arrays (T, D); a vector is a set of one."""
    if not has_sets(data):
        return _unit(data.x[rows][:, None, :])
    tokens = tokens_of(data, rows)
    return [_unit(one) for one in tokens] if tokens.dtype == object else _unit(tokens)


def _asked(encode: Any, data: Dataset, rows: np.ndarray) -> Sets:
    return _unit(data.x[rows]) if "vectors" in asks(encode) else _sets(data, rows)


def _asking(data: Dataset, rows: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The first of the rows, so many that their exact answers take no longer than `WORK`."""
    some = _sets(data, rows[:100])
    n_tokens = np.mean([len(one) for one in some])
    each = float(n_tokens**2 * len(documents) * some[0].shape[1])
    return rows[: max(FEWEST_QUERIES, int(WORK / each))]


def _truth(data: Dataset, rows: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The exact answers, remembered where the data says what it holds."""
    if not data.hash:
        return exact(_sets(data, rows), _sets(data, documents), TOP)
    content = hashlib.sha256(data.hash.encode() + rows.tobytes() + documents.tobytes())
    key = content.hexdigest()
    if key not in _truths:
        while len(_truths) >= 8:
            _truths.pop(next(iter(_truths)))
        _truths[key] = exact(_sets(data, rows), _sets(data, documents), TOP)
    return _truths[key]


def exact(queries: Sets, documents: Sets, k: int) -> np.ndarray:
    """Sets of B queries and N documents -> (B, k) document ids by exact Chamfer score, best first.

    Sets as one array (N, T, D) or N arrays (T, D). One query at a time against blocks of
    documents whose scores take at most about 64 MB.
    """
    sizes = np.array([len(one) for one in documents])
    most = max(1, SCORES // max(len(one) for one in queries))
    cuts, held = [0], 0
    for n, size in enumerate(sizes):
        if held and held + size > most:
            cuts, held = [*cuts, n], 0
        held += int(size)
    blocks = []
    for start, stop in pairwise([*cuts, len(sizes)]):
        part = documents[start:stop]
        flat = part.reshape(-1, part.shape[-1]) if isinstance(part, np.ndarray) else (
            np.concatenate(part)
        )  # fmt: skip
        blocks.append((flat, np.cumsum(sizes[start:stop]) - sizes[start:stop]))
    found = np.empty((len(queries), min(k, len(sizes))), dtype=np.int64)
    for row, query in enumerate(queries):
        scores = [
            np.maximum.reduceat(query @ flat.T, starts, axis=1).sum(axis=0)
            for flat, starts in blocks
        ]
        found[row] = np.argsort(-np.concatenate(scores), kind="stable")[:k]
    return found
