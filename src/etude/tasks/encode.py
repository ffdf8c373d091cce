"""encode: which code, or which index, for these vectors? Recall against bytes and time.

The documents are the training rows, the queries the validation and test rows, all scaled to
unit length; the truth is the exact ten best by cosine. What an arm may spend is a setting:

- ``recall=0.95``: the arm takes its cheapest setting that reaches the recall on the validation
  queries (by a standard error at least), the score is queries a second, and a setting that falls
  short on the test queries (by a standard error at most) is a failure. Indexes and codes compete.
- ``bytes=48``: the arm takes its best setting of at most so many bytes a vector in memory, and
  the score is the recall. Without a setting: one bit a coordinate and four bytes, at least 64.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.core import EtudeError
from etude.core.nearest import Exact
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.codes import EightBits, OneBit, Prefixes, ProductCodes
from etude.tasks.facts import build, describe
from etude.tasks.indexes import ExactSearch, FaissIndex, PrefixFunnel, SignsVerified, has_faiss
from etude.tasks.measures import unit
from etude.tasks.settings import read_settings

__all__ = ["Encode"]

TOP = 10
MOST_QUERIES = 1000
TIMED = 100  # queries that are asked one at a time for the rate


def _principal() -> Prefixes:
    return Prefixes(principal=True)


def _inverted_lists() -> FaissIndex:
    return FaissIndex(kind="ivf")


ARMS = {
    "exact": Arm("exact", "Every vector, exactly", ExactSearch),
    "components": Arm("components", "First principal components", _principal),
    "prefix": Arm("prefix", "First coordinates", Prefixes),
    "eight_bits": Arm("eight_bits", "A byte a coordinate", EightBits),
    "one_bit": Arm("one_bit", "A bit a coordinate", OneBit),
    "product_codes": Arm("product_codes", "Product codes (OPQ)", ProductCodes),
    "retrieval.bidr": Arm("retrieval.bidr", "Signs, then full vectors (BiDR)", SignsVerified),
    "funnel_verified": Arm("funnel_verified", "Components, then full vectors", PrefixFunnel),
    "faiss_hnsw": Arm("faiss_hnsw", "faiss HNSW16", FaissIndex),
    "faiss_ivf": Arm("faiss_ivf", "faiss IVF", _inverted_lists),
}

LEAST = 64  # bytes a vector that are given where none are told, however narrow the vectors


class Encode:
    """The task; its settings are what an arm may spend."""

    name = "encode"
    question = "Which code or index finds the true neighbors, at how many bytes and how fast?"
    known_settings = ("recall", "bytes")

    def __init__(self, settings: Sequence[str] = ()) -> None:
        self.settings = read_settings(self.name, settings, self.known_settings)
        if len(self.settings) > 1:
            raise EtudeError("--setting recall and --setting bytes exclude each other: give one")
        self.metrics: tuple[str, ...] = ("recall_at_10", "bytes", "queries_per_s", "seconds")
        if "recall" in self.settings:  # then the rate decides
            self.metrics = ("queries_per_s", "bytes", "recall_at_10", "seconds")

    @property
    def baselines(self) -> Mapping[str, Arm]:
        """Every arm; the first is what the others are compared with."""
        if "recall" in self.settings:
            return ARMS
        return {"components": ARMS["components"], **ARMS}

    @property
    def adopted(self) -> Mapping[str, Arm]:
        """BiDR's index over the vectors as they are; what its encoders learn needs queries."""
        return {"retrieval.bidr": ARMS["retrieval.bidr"]}

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """faiss is a peer that need not be there; what verifies by vectors is no code."""
        if arm.name.startswith("faiss") and not has_faiss():
            return "needs faiss: pip install faiss-cpu"
        if "recall" not in self.settings:
            dim = data.x.shape[1]
            least = {"exact": 4 * dim, "eight_bits": dim, "one_bit": _one_bit(dim)}
            if arm.name.startswith("faiss") or least.get(arm.name, 0) > self._limit(dim):
                return f"takes more than {self._limit(dim):g} bytes a vector"
        return None

    def _limit(self, dim: int) -> float:
        return self.settings.get("bytes", max(LEAST, _one_bit(dim)))

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20 whatever the labels."""
        return split_rows(Dataset(name=data.name, x=data.x, y=None), seed)

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The index or code; the knobs say which of its settings, and are no arguments of it."""
        return {"method": build(arm, facts, {})}

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Build on the documents; take the setting that the validation queries ask for.

        Raises:
            EtudeError: no setting reaches the recall, or fits into the bytes.
        """
        facts = describe(data, split.train, seed)
        parts = self.assemble(arm, facts, knobs)
        method, rows = parts["method"], unit(data.x[split.train])
        method.fit(rows)
        if "rung" in knobs:
            rung = int(knobs["rung"])
            method.turn(rung)
        elif "recall" in self.settings:
            rung = self._cheapest(arm, method, data, split)
        else:
            rung = self._largest(arm, method, rows.shape[1])
        chosen = {**knobs, "rung": rung, **method.rungs[rung]}
        return Predictor(self.name, arm.name, facts, chosen, parts, {})

    def _cheapest(self, arm: Arm, method: Any, data: Dataset, split: Split) -> int:
        goal, reached = self.settings["recall"], 0.0
        for rung in range(len(method.rungs)):
            method.turn(rung)
            hits = _hits(method, data, split, "validation")
            reached = max(reached, float(hits.mean()))
            if hits.mean() - _error(hits) >= goal or reached == 1.0:
                return rung
        raise EtudeError(
            f"{arm.name} finds at most {reached:.4f} of the {TOP} best of the validation queries; "
            f"{goal:g} and a standard error are asked for"
        )

    def _largest(self, arm: Arm, method: Any, dim: int) -> int:
        for rung in reversed(range(len(method.rungs))):
            method.turn(rung)
            if method.n_bytes <= self._limit(dim):
                return rung
        raise EtudeError(
            f"{arm.name} takes {method.n_bytes:g} bytes a vector at least, more than "
            f"{self._limit(dim):g}"
        )

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """Recall, bytes a vector in memory, the rate of single queries, seconds of one build.

        Raises:
            EtudeError: the test queries find less than was asked for.
        """
        method, rows = predictor.parts["method"], unit(data.x[split.train])
        hits = _hits(method, data, split, part)
        goal = self.settings.get("recall", 0.0)
        if part == "test" and hits.mean() + _error(hits) < goal:
            raise EtudeError(
                f"finds {hits.mean():.4f} of the {TOP} best of the test queries, {goal:g} was asked"
            )
        queries, times = unit(data.x[getattr(split, part)][:TIMED]), []
        for query in queries:
            started = time.perf_counter()
            method.search(query[None], TOP)
            times.append(time.perf_counter() - started)
        return {
            "recall_at_10": float(hits.mean()),
            "bytes": float(method.n_bytes),
            "queries_per_s": 1 / float(np.median(times)),
            "seconds": _build_seconds(self, predictor, rows),
        }

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B, 10) numbers of the training rows that rank first."""
        found: np.ndarray = predictor.parts["method"].search(unit(x), TOP)
        return found


def _build_seconds(task: Encode, predictor: Predictor, rows: np.ndarray) -> float:
    """One build with the setting that was chosen, measured once a predictor."""
    if "seconds" not in predictor.facts:
        method = build(ARMS[predictor.arm], predictor.facts, {})
        started = time.perf_counter()
        method.fit(rows)
        method.turn(predictor.knobs["rung"])
        _ = method.n_bytes  # indexes that are made when first needed
        predictor.facts["seconds"] = time.perf_counter() - started
    return float(predictor.facts["seconds"])


def _one_bit(dim: int) -> int:
    return -(-dim // 64) * 8 + 4


def _error(hits: np.ndarray) -> float:
    """Of the mean."""
    return float(hits.std() / len(hits) ** 0.5)


def _hits(method: Any, data: Dataset, split: Split, part: str) -> np.ndarray:
    """(B,) share of the exact ten best that each query of the part finds.

    Rows that are equal tie: a row found counts where its score is that of the tenth.
    """
    rows = unit(data.x[split.train])
    queries = unit(data.x[getattr(split, part)][:MOST_QUERIES])
    k = min(TOP, len(rows))
    _, scores = Exact(rows).search(queries, k)
    found = method.search(queries, k)
    products = np.einsum("bkd,bd->bk", rows[np.maximum(found, 0)], queries)
    right = (products >= scores[:, -1:] - 1e-5) & (found >= 0)
    hits: np.ndarray = right.mean(axis=1)
    return hits
