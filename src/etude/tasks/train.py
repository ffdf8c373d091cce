"""train: an objective trains a small encoder. Which loss shapes the better representation?

A method is a torch module whose ``forward`` asks, by name, for any of logits, target,
embeddings, labels, positives, and returns the mean loss. Where it asks for logits this task
puts a linear classifier behind the encoder; where it owns its classifier it offers
``classify(embeddings) -> logits``; where it does neither, the classes are told by the nearest
class mean of the training embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.core import require
from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.facts import LEARNING, build, describe, scaling
from etude.tasks.training import optimize
from etude.tasks.wire import asks, missing

__all__ = ["EMBEDDING_DIM", "Train"]

EMBEDDING_DIM = 64
LEARNING_RATES = {"lr": (3e-3, 1e-3, 1e-2)}
TENSORS = ("logits", "target", "embeddings", "labels", "positives")


def _cross_entropy(*, smoothing: float = 0.0) -> Any:
    from etude.tasks.objectives import CrossEntropy

    return CrossEntropy(smoothing=smoothing)


class Train:
    """The task; stateless."""

    name = "train"
    question = "Which objective trains the better encoder?"
    metrics = ("accuracy", "recall_at_1", "log_loss")
    baselines: Mapping[str, Arm] = {
        "cross_entropy": Arm(
            "cross_entropy", "Cross-entropy", _cross_entropy,
            {"smoothing": (0.0, 0.1), **LEARNING_RATES},
        ),
    }  # fmt: skip

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """An objective must be content with what one labeled batch gives."""
        if not hasattr(arm.method, "forward"):
            return None
        lacking = missing(arm.method.forward, dict.fromkeys(TENSORS))
        return f"asks for {', '.join(lacking)}, which labeled rows do not give" if lacking else None

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20, each class in the same shares."""
        require(data.y is not None, f"{data.name}: the target", "given", None)
        return split_rows(data, seed)

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Encoder, objective, and the linear classifier where the objective asks for logits."""
        import torch
        from torch import nn

        from etude.nets.encoders import encoder_for

        with torch.random.fork_rng():
            torch.manual_seed(int(facts["seed"]))  # equal initial weights in both arms
            encoder = encoder_for(facts["dim"], facts.get("image_shape"), EMBEDDING_DIM)
            linear = nn.Linear(EMBEDDING_DIM, facts["n_classes"])
        objective = build(arm, {**facts, "dim": EMBEDDING_DIM}, knobs)
        parts = {"encoder": encoder, "objective": objective}
        if "logits" in asks(objective.forward):
            parts["classifier"] = linear
        return parts

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Train encoder, classifier and the objective's own weights on the training rows."""
        import torch

        assert data.y is not None
        facts = describe(data, split.train, seed)
        parts = self.assemble(arm, facts, knobs)
        arrays = scaling(data.x[split.train])
        x = torch.from_numpy((data.x[split.train] - arrays["mean"]) / arrays["scale"])
        y = torch.from_numpy(data.y[split.train])
        positives = torch.nn.functional.one_hot(y, facts["n_classes"]).bool()
        wanted = [name for name in TENSORS if name in asks(parts["objective"].forward)]

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            embeddings = parts["encoder"](x[rows])
            have = {"embeddings": embeddings, "target": y[rows], "labels": y[rows]}
            if "positives" in wanted:
                have["positives"] = positives[rows]
            if "classifier" in parts:
                have["logits"] = parts["classifier"](embeddings)
            return parts["objective"](**{name: have[name] for name in wanted})

        weights = [w for part in parts.values() for w in part.parameters()]
        for part in parts.values():
            part.train()
        learning = {k: v for k, v in knobs.items() if k in LEARNING}
        optimize(weights, loss_of, len(x), seed=seed, budget_s=budget_s, **learning)
        for part in parts.values():
            part.eval()
        predictor = Predictor(self.name, arm.name, facts, dict(knobs), parts, arrays)
        if "classifier" not in parts and not hasattr(parts["objective"], "classify"):
            arrays["class_means"] = _class_means(
                self.embed(predictor, data.x[split.train]), y.numpy()
            )
        return predictor

    def embed(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B, EMBEDDING_DIM)."""
        import torch

        scaled = (x - predictor.arrays["mean"]) / predictor.arrays["scale"]
        with torch.inference_mode():
            pieces = torch.split(torch.from_numpy(scaled.astype(np.float32)), 1024)
            return torch.cat([predictor.parts["encoder"](piece) for piece in pieces]).numpy()

    def logits(self, predictor: Predictor, embeddings: np.ndarray) -> np.ndarray:
        """(B, EMBEDDING_DIM) -> (B, K)."""
        import torch

        if "class_means" in predictor.arrays:
            return 10 * _unit(embeddings) @ predictor.arrays["class_means"].T
        with torch.inference_mode():
            given = torch.from_numpy(embeddings)
            if "classifier" in predictor.parts:
                return predictor.parts["classifier"](given).numpy()
            return predictor.parts["objective"].classify(given).numpy()

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """Accuracy and log loss of the classifier, and Recall@1 of the embeddings."""
        assert data.y is not None
        rows = getattr(split, part)
        embeddings = self.embed(predictor, data.x[rows])
        found = measures.classification(self.logits(predictor, embeddings), data.y[rows])
        found["recall_at_1"] = measures.recall_at_1(embeddings, data.y[rows])
        return {name: found[name] for name in self.metrics}

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B,) class ids."""
        return self.logits(predictor, self.embed(predictor, x)).argmax(axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _class_means(embeddings: np.ndarray, y: np.ndarray) -> np.ndarray:
    unit = _unit(embeddings)
    return _unit(np.stack([unit[y == k].mean(axis=0) for k in range(int(y.max()) + 1)]))
