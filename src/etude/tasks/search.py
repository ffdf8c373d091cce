"""search: codes whose inner product ranks a collection. How much of the exact answer is found?

The documents are the training rows, the queries the test rows. The truth is the exact top 10:
by cosine for vectors; by the Chamfer score for token sets, the sum over the query's tokens of
the best inner product with a document token. A method's ``encode_documents`` asks for
`documents` (token sets, (N, T, D), unit tokens) or `vectors` (the rows themselves, (N, D),
of unit length).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.baselines import MeanToken, TruncatedPCA
from etude.tasks.facts import build, describe, has_tokens, tokens_of
from etude.tasks.wire import asks

__all__ = ["Search"]

TOP = 10


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
        rows = getattr(split, part)
        truth = exact(_sets(data, rows), _sets(data, split.train), TOP)
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
        """(B, D) rows -> (B, 10) numbers of the training rows that rank first."""
        shape = predictor.facts.get("image_shape")
        data = Dataset(
            name="rows", x=x, y=None, image_shape=None if shape is None else tuple(shape)
        )
        return self._find(predictor, data, np.arange(len(x)))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _sets(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """(B, T, D) unit tokens of the rows; a vector is a set of one."""
    return _unit(tokens_of(data, rows) if has_tokens(data) else data.x[rows][:, None, :])


def _asked(encode: Any, data: Dataset, rows: np.ndarray) -> np.ndarray:
    return _unit(data.x[rows]) if "vectors" in asks(encode) else _sets(data, rows)


def exact(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    """(B, T, D) and (N, T, D) -> (B, k) document ids by exact Chamfer score, best first.

    One query at a time against all documents: N * T * T scores in memory, in blocks of
    documents of at most about 64 MB.
    """
    n_documents, n_tokens = documents.shape[:2]
    block = max(1, 16_000_000 // (n_tokens * n_tokens))
    found = np.empty((len(queries), min(k, n_documents)), dtype=np.int64)
    for row, query in enumerate(queries):
        scores = np.concatenate(
            [
                (documents[start : start + block] @ query.T).max(axis=1).sum(axis=1)
                for start in range(0, n_documents, block)
            ]
        )
        found[row] = np.argsort(-scores, kind="stable")[:k]
    return found
