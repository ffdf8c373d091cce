"""detect: tell samples of classes never seen from those of known ones.

Each seed holds some classes back: a fifth of them (at least one) are the outliers of the
validation part, as many others those of the test part. A network is trained with
cross-entropy on the rest, the same one in both arms; the method is fitted to its features and
scores new samples, higher = more anomalous.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.core import EtudeError, require
from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split, split_rows
from etude.tasks.facts import LEARNING, build, describe, scaling
from etude.tasks.train import EMBEDDING_DIM
from etude.tasks.training import optimize
from etude.tasks.wire import arguments, missing

__all__ = ["Detect"]

TENSORS = ("features", "layer_features", "logits", "labels")


class MaxSoftmax:
    """The largest softmax probability, negated (Hendrycks and Gimpel, arXiv:1610.02136)."""

    def __init__(self, *, temperature: float = 1.0) -> None:
        require(temperature > 0, "temperature", "positive", temperature)
        self.temperature = temperature

    def score(self, logits: np.ndarray) -> np.ndarray:
        """logits (B, K) -> (B,), higher = more anomalous."""
        scaled = logits.astype(np.float64) / self.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        return -1 / np.exp(scaled).sum(axis=1)


class Detect:
    """The task; stateless."""

    name = "detect"
    question = "Which score tells unseen classes from known ones?"
    metrics = ("auroc", "fpr_at_95_tpr", "tnr_at_95_tpr")
    baselines: Mapping[str, Arm] = {
        "max_softmax": Arm(
            "max_softmax", "Largest softmax probability", MaxSoftmax,
            {"temperature": (1.0, 2.0, 5.0, 10.0, 100.0)},
        ),
    }  # fmt: skip

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """At least four classes: two known, one outlier to tune on, one to test on."""
        if data.n_classes < 4:
            return (
                f"needs at least 4 classes, of which 2 are held back; the data has {data.n_classes}"
            )
        lacking = _lacking(arm)
        return (
            f"asks for {', '.join(lacking)}, which a trained network does not give"
            if lacking
            else None
        )

    def split(self, data: Dataset, seed: int) -> Split:
        """Known classes 60 / 20 / 20; the held-back classes join validation or test whole."""
        if data.y is None or data.n_classes < 4:
            raise EtudeError(f"{data.name}: detect needs a target with at least 4 classes")
        rows = split_rows(data, seed)
        order = np.random.default_rng([seed, 7]).permutation(data.n_classes)
        held = max(1, data.n_classes // 5)
        for_validation, for_test = order[:held], order[held : 2 * held]
        y = data.y

        def known(part: np.ndarray) -> np.ndarray:
            return part[~np.isin(y[part], order[: 2 * held])]

        def joined(part: np.ndarray, classes: np.ndarray) -> np.ndarray:
            return np.concatenate([known(part), part[np.isin(y[part], classes)]])

        return Split(
            known(rows.train),
            joined(rows.validation, for_validation),
            joined(rows.test, for_test),
        )

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The network (encoder and classifier) and the detector."""
        import torch
        from torch import nn

        from etude.nets.encoders import encoder_for

        with torch.random.fork_rng():
            torch.manual_seed(int(facts["seed"]))
            encoder = encoder_for(facts["dim"], facts.get("image_shape"), EMBEDDING_DIM)
            classifier = nn.Linear(EMBEDDING_DIM, len(facts["known"]))
        inner = {**facts, "dim": EMBEDDING_DIM, "n_classes": len(facts["known"])}
        return {"encoder": encoder, "classifier": classifier, "method": build(arm, inner, knobs)}

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Train the network on the known classes, then fit the detector to its features."""
        import torch
        import torch.nn.functional as F

        assert data.y is not None
        facts = describe(data, split.train, seed)
        facts["known"] = np.unique(data.y[split.train]).tolist()
        facts["class_counts"] = [c for c in facts["class_counts"] if c]
        parts, arrays = self.assemble(arm, facts, knobs), scaling(data.x[split.train])
        x = torch.from_numpy((data.x[split.train] - arrays["mean"]) / arrays["scale"])
        labels = np.searchsorted(facts["known"], data.y[split.train])
        y = torch.from_numpy(labels)
        encoder, classifier = parts["encoder"].train(), parts["classifier"]
        learning = {k: v for k, v in knobs.items() if k in LEARNING}
        optimize(
            [*encoder.parameters(), *classifier.parameters()],
            lambda rows: F.cross_entropy(classifier(encoder(x[rows])), y[rows]),
            len(x), seed=seed, budget_s=budget_s, **learning,
        )  # fmt: skip
        encoder.eval()
        predictor = Predictor(self.name, arm.name, facts, dict(knobs), parts, arrays)
        if hasattr(parts["method"], "fit"):
            have = self._read(predictor, data.x[split.train]) | {"labels": labels}
            parts["method"].fit(**arguments(parts["method"].fit, have))
        return predictor

    def _read(self, predictor: Predictor, x: np.ndarray) -> dict[str, Any]:
        """What the network says of rows: features of each layer, embedding, logits."""
        import torch

        scaled = ((x - predictor.arrays["mean"]) / predictor.arrays["scale"]).astype(np.float32)
        pieces = []
        with torch.inference_mode():
            for piece in torch.split(torch.from_numpy(scaled), 1024):
                layers = predictor.parts["encoder"].layers(piece)
                pieces.append([*layers, predictor.parts["classifier"](layers[-1])])
        *layers, logits = [torch.cat(column).numpy() for column in zip(*pieces, strict=True)]
        return {"layer_features": layers, "features": layers[-1], "logits": logits}

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """AUROC of outliers against inliers, and the rates at 95 % of inliers accepted."""
        assert data.y is not None
        rows = getattr(split, part)
        is_outlier = ~np.isin(data.y[rows], predictor.facts["known"])
        return measures.detection(self.predict(predictor, data.x[rows]), is_outlier)

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows -> (B,) scores, higher = more anomalous."""
        score = predictor.parts["method"].score
        return np.asarray(score(**arguments(score, self._read(predictor, x))), dtype=np.float64)


def _lacking(arm: Arm) -> list[str]:
    score = getattr(arm.method, "score", None)
    return (
        [] if score is None else [n for n in missing(score, dict.fromkeys(TENSORS)) if n != "self"]
    )
