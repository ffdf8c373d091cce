"""match: each query has one right item. How often does it come first, among items never seen?

Pairs are given: a query's vector and its item's, of one encoder or of two (a title and its text,
a picture and its caption, a row by the new version of an encoder and by the old one). A method
learns from 60 % of the items and their queries. The items of the part that is measured are its
gallery; equal items are one, and all its queries lie in one part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import skew

from etude.core import EtudeError, card_of
from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split
from etude.tasks.facts import build, describe
from etude.tasks.matchers import (
    Csls,
    DualBank,
    LinearMap,
    RelativeCoordinates,
    distinct,
    inverted_softmax,
)

__all__ = ["Match"]

TOP = 10
FEWEST_ITEMS = 10
PENALTY = {"penalty": (1.0, 0.1, 10.0, 100.0)}
FINE = {"penalty": (1.0, 0.1, 10.0, 100.0, 0.3, 3.0, 30.0, 1000.0, 0.01)}  # its only knob
# For cosines; DBNorm's release takes 1/1.99 and 3 by default.
QUERY_SCALES, GALLERY_SCALES = (12.0, 4.0, 32.0, 1 / 1.99), (4.0, 12.0, 32.0, 3.0)


class Match:
    """The task; stateless."""

    name = "match"
    question = "How often is the right item the first of those never seen?"
    metrics = ("recall_at_1", "recall_at_10", "hub_skewness")
    baselines: Mapping[str, Arm] = {
        "linear_map": Arm("linear_map", "Ridge regression, then cosine", LinearMap, FINE),
        "inverted_softmax": Arm(
            "inverted_softmax", "Inverted softmax over a bank of queries", inverted_softmax,
            {**PENALTY, "query_scale": QUERY_SCALES},
        ),
        "csls": Arm(
            "csls", "Cross-domain similarity local scaling", Csls, {**PENALTY, "k": (10, 3, 50)}
        ),
    }  # fmt: skip

    @property
    def adopted(self) -> Mapping[str, Arm]:
        """Methods whose cards' own claims need an experiment."""
        scales = {"query_scale": QUERY_SCALES, "gallery_scale": GALLERY_SCALES}
        banks, relative = card_of("dbnorm"), card_of("relative_representation")
        anchors = {"n_anchors": (300, 100, 1000), **relative.search}
        return {
            banks.key: Arm(banks.key, banks.title, DualBank, {**PENALTY, **scales}),
            relative.key: Arm(relative.key, relative.title, RelativeCoordinates, anchors),
        }

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """A match is of pairs."""
        return None if data.items is not None else "needs pairs of a query and its item"

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20 of the different items, their queries with them.

        Raises:
            EtudeError: fewer than ten different items.
        """
        assert data.items is not None
        first, group = distinct(data.items)
        if len(first) < FEWEST_ITEMS:
            raise EtudeError(
                f"{data.name} has {len(first)} different items; a split into train, validation "
                f"and test needs at least {FEWEST_ITEMS}"
            )
        order = np.random.default_rng([seed, 25_11]).permutation(len(first))
        cut = np.split(order, [round(0.2 * len(order)), round(0.4 * len(order))])
        test, validation, train = (np.flatnonzero(np.isin(group, part)) for part in cut)
        return Split(train, validation, test)

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The matcher."""
        return {"method": build(arm, facts, knobs)}

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Learn from the training pairs; their items are what ``predict`` finds."""
        assert data.items is not None
        facts = describe(data, split.train, seed)
        parts = self.assemble(arm, facts, knobs)
        items = data.items[split.train]
        parts["method"].fit(data.x[split.train], items)
        first, _ = distinct(items)
        arrays = {"codes": parts["method"].encode_items(items[first]), "rows": split.train[first]}
        return Predictor(self.name, arm.name, facts, dict(knobs), parts, arrays)

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """Share of queries whose item is the first, or one of ten; skewness of the occurrence."""
        assert data.items is not None
        rows, method = getattr(split, part), predictor.parts["method"]
        items = data.items[rows]
        first, right = distinct(items)
        codes, asked = method.encode_items(items[first]), method.encode_queries(data.x[rows])
        found = measures.neighbors(asked, codes, min(TOP, len(codes)))
        counts = np.bincount(found.ravel(), minlength=len(codes)).astype(np.float64)
        return {
            "recall_at_1": float((found[:, 0] == right).mean()),
            "recall_at_10": float((found == right[:, None]).any(axis=1).mean()),
            "hub_skewness": float(skew(counts)) if counts.std() > 0 else 0.0,
        }

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) queries -> (B, 10) numbers of the training rows whose items rank first."""
        codes, rows = predictor.arrays["codes"], predictor.arrays["rows"]
        asked = predictor.parts["method"].encode_queries(np.asarray(x, dtype=np.float32))
        found: np.ndarray = rows[measures.neighbors(asked, codes, min(TOP, len(codes)))]
        return found
