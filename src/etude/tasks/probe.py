"""probe: a head on frozen features. Which classifier reads them best?

A method is an estimator (``fit(features, target)``, ``logits(features)``) or a torch module
(``forward(features)`` or ``forward(tokens)`` -> logits), which this task trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.core import require
from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.baselines import KNearestNeighbors, LogisticRegression
from etude.tasks.facts import LEARNING, build, describe, has_tokens, patch_tokens, scaling
from etude.tasks.training import optimize
from etude.tasks.wire import asks

__all__ = ["Probe"]


def is_module(method: Any) -> bool:
    """Whether the method is trained by gradient steps."""
    return hasattr(method, "forward")


def wants_tokens(method: Any) -> bool:
    """Whether the method reads tokens rather than one vector a sample."""
    return is_module(method) and "tokens" in asks(method.forward)


class Probe:
    """The task; stateless."""

    name = "probe"
    question = "Which head reads frozen features best?"
    metrics = ("accuracy", "balanced_accuracy", "log_loss")
    baselines: Mapping[str, Arm] = {
        "logistic_regression": Arm(
            "logistic_regression", "Logistic regression", LogisticRegression,
            {"C": (1.0, 0.1, 0.01, 10.0, 100.0, 0.001)},
        ),
        "k_nearest_neighbors": Arm(
            "k_nearest_neighbors", "k nearest neighbors", KNearestNeighbors,
            {"n_neighbors": (5, 1, 3, 10, 20)},
        ),
    }  # fmt: skip

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """A method on tokens needs data that has them."""
        if wants_tokens(arm.method) and not has_tokens(data):
            return "reads tokens: give images, or an NPZ file with an array 'tokens' (N, T, D)"
        return None

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20, each class in the same shares."""
        require(data.y is not None, f"{data.name}: the target", "given", None)
        return split_rows(data, seed)

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The head alone; for a head on tokens `dim` is the width of a token."""
        if wants_tokens(arm.method):
            facts = {**facts, "dim": facts["token_dim"]}
        return {"method": build(arm, facts, knobs)}

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Standardize by the training rows, then fit or train the head on them."""
        assert data.y is not None
        facts = describe(data, split.train, seed)
        facts["given_tokens"] = data.tokens is not None
        parts = self.assemble(arm, facts, knobs)
        inputs = _inputs(arm.method, data.x[split.train], data.tokens, split.train, facts)
        arrays = scaling(inputs.reshape(-1, inputs.shape[-1]))
        inputs, target = (inputs - arrays["mean"]) / arrays["scale"], data.y[split.train]
        if is_module(arm.method):
            learning = {k: v for k, v in knobs.items() if k in LEARNING}
            _train(parts["method"], inputs, target, seed, budget_s, learning)
        else:
            parts["method"].fit(inputs, target)
        return Predictor(self.name, arm.name, facts, dict(knobs), parts, arrays)

    def logits(
        self, predictor: Predictor, x: np.ndarray, tokens: np.ndarray | None = None
    ) -> np.ndarray:
        """(B, D) rows (or their given tokens) -> (B, K)."""
        method, rows = predictor.parts["method"], np.arange(len(x))
        inputs = _inputs(type(method), x, tokens, rows, predictor.facts)
        inputs = (inputs - predictor.arrays["mean"]) / predictor.arrays["scale"]
        if not is_module(method):
            return np.asarray(method.logits(inputs))
        import torch

        method.eval()
        with torch.inference_mode():
            pieces = [method(part) for part in torch.split(torch.from_numpy(inputs), 1024)]
        return torch.cat(pieces).numpy()

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """Accuracy, balanced accuracy and log loss of the part."""
        assert data.y is not None
        rows = getattr(split, part)
        tokens = None if data.tokens is None else data.tokens[rows]
        return measures.classification(self.logits(predictor, data.x[rows], tokens), data.y[rows])

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B,) class ids."""
        return self.logits(predictor, x).argmax(axis=1)


def _inputs(
    method: Any,
    x: np.ndarray,
    tokens: np.ndarray | None,
    rows: np.ndarray,
    facts: Mapping[str, Any],
) -> np.ndarray:
    """What the head reads: features (B, D), or tokens (B, T, D), given or cut from images."""
    if not wants_tokens(method):
        return x
    if facts["given_tokens"]:
        if tokens is None:  # served rows are token sets, flattened
            return x.reshape(len(x), facts["n_tokens"], facts["token_dim"])
        return tokens[rows]
    return patch_tokens(x, tuple(facts["image_shape"]))


def _train(
    head: Any, inputs: np.ndarray, target: np.ndarray, seed: int, budget_s: float | None,
    learning: Mapping[str, Any],
) -> None:  # fmt: skip
    import torch
    import torch.nn.functional as F

    x, y = torch.from_numpy(inputs), torch.from_numpy(target)
    loss = getattr(head, "loss", None) or F.cross_entropy
    head.train()
    optimize(
        head.parameters(), lambda rows: loss(head(x[rows]), y[rows]), len(x),
        seed=seed, budget_s=budget_s, **learning,
    )  # fmt: skip
    head.eval()
