"""train: an objective trains a small encoder. Which loss shapes the better representation?

A method is a torch module whose ``forward`` asks, by name, for any of logits, target,
embeddings, labels, positives, and returns the mean loss. Where it asks for logits this task
puts a linear classifier behind the encoder; where it owns its classifier it offers
``classify(embeddings) -> logits``; where it does neither, the classes are told by the nearest
class mean of the training embeddings.

Settings: `unseen` (retrieval among classes never trained on decides), `noise=SHARE` of wrong
training labels, `imbalance=RATIO` of the training classes. Rows with several labels each are
told by the labels whose score is above a threshold that is best on the training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from etude.core import EtudeError
from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.facts import LEARNING, build, describe, scaling
from etude.tasks.objectives import (
    ArcFace,
    BinaryCrossEntropy,
    CrossEntropy,
    Prototypical,
    Triplet,
)
from etude.tasks.settings import altered, read_settings, split_for
from etude.tasks.training import optimize
from etude.tasks.wire import asks, missing

__all__ = ["EMBEDDING_DIM", "Train"]

EMBEDDING_DIM = 64
LEARNING_RATES = {"lr": (3e-3, 1e-3, 1e-2)}
TENSORS = ("logits", "target", "embeddings", "labels", "positives")
RETRIEVAL = ("recall_at_1", "mean_average_precision", "normalized_mutual_information")


class Train:
    """The task under `settings`; otherwise stateless."""

    name = "train"
    question = "Which objective trains the better encoder?"
    metrics: tuple[str, ...] = ("accuracy", "balanced_accuracy", "log_loss", *RETRIEVAL)
    known_settings = ("unseen", "noise", "imbalance")
    baselines: Mapping[str, Arm] = {
        "cross_entropy": Arm(
            "cross_entropy", "Cross-entropy", CrossEntropy,
            {"smoothing": (0.0, 0.1), **LEARNING_RATES},
        ),
        "arcface": Arm(
            "arcface", "Normalized softmax with an angular margin (ArcFace)", ArcFace,
            {"margin": (0.1, 0.0, 0.3), "scale": (16.0, 32.0, 8.0), **LEARNING_RATES},
        ),
        "triplet": Arm(
            "triplet", "Triplets, mined in the batch", Triplet,
            {"mining": ("hard", "semi_hard"), "margin": (0.2, 0.1, 0.5), **LEARNING_RATES},
        ),
        "prototypical": Arm(
            "prototypical", "Prototypical networks", Prototypical,
            {"scale": (10.0, 3.0, 30.0), "normalize": (True, False), **LEARNING_RATES},
        ),
        "binary_cross_entropy": Arm(
            "binary_cross_entropy", "Binary cross-entropy, one a label", BinaryCrossEntropy,
            {"smoothing": (0.0, 0.1), **LEARNING_RATES},
        ),
    }  # fmt: skip

    def __init__(self, settings: Sequence[str] = ()) -> None:
        self.settings = read_settings(self.name, settings, self.known_settings)

    def metrics_of(self, data: Dataset) -> tuple[str, ...]:
        """What is measured on this data under these settings; the first decides."""
        if data.labels is not None:
            return ("micro_f1", "macro_f1", "precision_at_1")
        return RETRIEVAL if "unseen" in self.settings else self.metrics

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """An objective must be content with what one labeled batch gives."""
        forward, several = arm.method.forward, data.labels is not None  # type: ignore[attr-defined]
        have = ("logits", "embeddings", "positives") if several else TENSORS
        lacking = missing(forward, dict.fromkeys(have))
        if lacking and several:
            return f"asks for {', '.join(lacking)}: one class a row, and rows have several labels"
        if lacking:
            return f"asks for {', '.join(lacking)}, which labeled rows do not give"
        tells = "logits" in asks(forward) or hasattr(arm.method, "classify")
        if several and not tells:
            return "tells classes by their means, and rows have several labels"
        return None

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20, each class in the same shares; then the settings."""
        if data.labels is None:
            return split_for(self.name, data, seed, self.settings)
        if self.settings:
            raise EtudeError(
                f"--setting {next(iter(self.settings))} needs one class a row, and rows of "
                f"{data.name} have several labels"
            )
        return split_rows(Dataset(name=data.name, x=data.x, y=None), seed)

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

        seen, targets = _targets(altered(data, split.train, self.settings, seed), split.train)
        facts = describe(seen, split.train, seed)
        parts = self.assemble(arm, facts, knobs)
        arrays = scaling(data.x[split.train])
        x = torch.from_numpy((data.x[split.train] - arrays["mean"]) / arrays["scale"])
        have = {name: torch.from_numpy(array) for name, array in targets.items()}
        wanted = [name for name in TENSORS if name in asks(parts["objective"].forward)]

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            given = {name: have[name][rows] for name in wanted if name in have}
            embeddings = parts["encoder"](x[rows])
            if "embeddings" in wanted:
                given["embeddings"] = embeddings
            if "classifier" in parts:
                given["logits"] = parts["classifier"](embeddings)
            return parts["objective"](**given)

        weights = [w for part in parts.values() for w in part.parameters()]
        for part in parts.values():
            part.train()
        learning = {k: v for k, v in knobs.items() if k in LEARNING}
        optimize(weights, loss_of, len(x), seed=seed, budget_s=budget_s, **learning)
        for part in parts.values():
            part.eval()
        predictor = Predictor(self.name, arm.name, facts, dict(knobs), parts, arrays)
        embeddings = self.embed(predictor, data.x[split.train])
        if "target" not in targets:
            scores = self.logits(predictor, embeddings)
            arrays |= best_threshold(scores, targets["positives"])
        elif "classifier" not in parts and not hasattr(parts["objective"], "classify"):
            arrays["class_means"] = _class_means(embeddings, targets["target"])
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
        """What ``metrics_of`` names: of the classifier, of the embeddings, or of the labels."""
        rows = getattr(split, part)
        embeddings = self.embed(predictor, data.x[rows])
        if data.labels is not None:
            scores = _placed(self.logits(predictor, embeddings), predictor.arrays)
            return measures.multi_label(scores, data.labels[rows])
        assert data.y is not None
        found = measures.retrieval(embeddings, data.y[rows])
        if "unseen" not in self.settings:
            found |= measures.classification(self.logits(predictor, embeddings), data.y[rows])
        return {name: found[name] for name in self.metrics_of(data)}

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B,) class ids; where rows have several labels, that of the surest."""
        return self.logits(predictor, self.embed(predictor, x)).argmax(axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _class_means(embeddings: np.ndarray, y: np.ndarray) -> np.ndarray:
    unit = _unit(embeddings)
    return _unit(np.stack([unit[y == k].mean(axis=0) for k in range(int(y.max()) + 1)]))


def _targets(data: Dataset, rows: np.ndarray) -> tuple[Dataset, dict[str, np.ndarray]]:
    """What objectives may ask for, by name; and the data with the classes of these rows only."""
    if data.labels is not None:
        return data, {"positives": data.labels[rows]}
    assert data.y is not None
    present = np.unique(data.y[rows])
    if len(present) < data.n_classes:
        place = np.full(data.n_classes, -1, dtype=np.int64)
        place[present] = np.arange(len(present))
        names = tuple(data.classes[k] for k in present)
        data = replace(data, y=place[data.y], classes=names)
    assert data.y is not None
    y = data.y[rows]
    positives = np.eye(data.n_classes, dtype=bool)[y]
    return data, {"target": y, "labels": y, "positives": positives}


def best_threshold(scores: np.ndarray, positives: np.ndarray) -> dict[str, np.ndarray]:
    """`threshold` of the best micro F1 on these rows, and whether `relative` to the row's sum.

    Relative scores are log-probabilities of a softmax over the labels: an objective of that kind
    leaves a row's scores free up to a constant.
    """
    best = (-1.0, 0.0, False)
    for relative in (False, True):
        values = _relative(scores) if relative else scores
        order = np.argsort(-values, axis=None, kind="stable")
        hits = np.cumsum(positives.ravel()[order])
        n_chosen = np.arange(1, len(order) + 1)
        f1 = 2 * hits / (n_chosen + max(1, int(positives.sum())))
        k = int(f1.argmax())
        ranked = values.ravel()[order[k : k + 2]]
        if f1[k] > best[0]:
            best = float(f1[k]), float(ranked.mean()), relative
    return {"threshold": np.array([best[1]]), "relative": np.array([best[2]])}


def _relative(scores: np.ndarray) -> np.ndarray:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _placed(scores: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores with their threshold at 0."""
    values = _relative(scores) if bool(arrays["relative"][0]) else scores
    return np.asarray(values - float(arrays["threshold"][0]))
