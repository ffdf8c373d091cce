"""probe: a head on frozen features. Which classifier reads them best?

A method is an estimator (``fit(features, target)``, ``logits(features)``) or a torch module
(``forward(features)`` or ``forward(tokens)`` -> logits), which this task trains. An estimator
whose ``fit`` asks for features alone learns from unlabeled rows.

Where the rows are sentences, methods may ask for the classes by name: for `classes`, for
`class_embeddings` of the same encoder, for `descriptions`; on any data for `class_distances`.

Settings: `shots=K` training rows a class; `noise` and `imbalance` as in train; `unseen` (some
classes without training rows, accuracy over all); `transductive` (methods may see all rows that
they are asked about at once); `zero_shot` (no labels are learned from).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.core import card_of, load, require
from etude.tasks import measures
from etude.tasks.base import Arm, Dataset, Predictor, Split
from etude.tasks.baselines import (
    ClassNames,
    KNearestNeighbors,
    LinearDiscriminant,
    LogisticRegression,
    NearestMean,
)
from etude.tasks.facts import (
    LEARNING,
    build,
    class_facts,
    describe,
    has_tokens,
    patch_tokens,
    scaling,
    unscaled,
)
from etude.tasks.settings import altered, read_settings, split_for
from etude.tasks.training import optimize
from etude.tasks.wire import asks
from etude.tasks.words import are_words, is_text

__all__ = ["Probe"]

WIDEST = 4_096  # features whose covariance matrix is still computed
WORDS = ("classes", "class_embeddings", "descriptions")  # what needs rows that are sentences


def is_module(method: Any) -> bool:
    """Whether the method is trained by gradient steps."""
    return hasattr(method, "forward")


def wants_tokens(method: Any) -> bool:
    """Whether the method reads tokens rather than one vector a sample."""
    return is_module(method) and "tokens" in asks(method.forward)


def learns_from_labels(method: Any) -> bool:
    """Whether training needs the labels of the rows."""
    return is_module(method) or "target" in asks(method.fit)


BASELINES: Mapping[str, Arm] = {
    "logistic_regression": Arm(
        "logistic_regression", "Logistic regression", LogisticRegression,
        {"C": (1.0, 0.1, 0.01, 10.0, 100.0, 0.001)},
    ),
    "k_nearest_neighbors": Arm(
        "k_nearest_neighbors", "k nearest neighbors", KNearestNeighbors,
        {"n_neighbors": (5, 1, 3, 10, 20)},
    ),
    "nearest_mean": Arm(
        "nearest_mean", "Nearest class mean", NearestMean,
        {"distance": ("euclidean", "cosine"), "center": (True, False)},
    ),
    "linear_discriminant": Arm(
        "linear_discriminant", "Linear discriminant analysis", LinearDiscriminant,
        {"shrinkage": ("auto", 0.01, 0.1, 0.5, 0.9)},
    ),
    "class_names": Arm(
        "class_names", "Nearest class name", ClassNames,
        {"wording": ("{}", "a text about {}", "this is about {}"), "center": (False, True)},
    ),
}  # fmt: skip


class Probe:
    """The task under `settings`; otherwise stateless."""

    name = "probe"
    question = "Which head reads frozen features best?"
    metrics = ("accuracy", "balanced_accuracy", "log_loss")
    known_settings = ("shots", "unseen", "noise", "imbalance", "transductive", "zero_shot")

    def __init__(self, settings: Sequence[str] = ()) -> None:
        self.settings = read_settings(self.name, settings, self.known_settings)

    @property
    def baselines(self) -> Mapping[str, Arm]:
        """Arms by name; the first, the default, is one that needs no labels under zero_shot."""
        first = "class_names" if "zero_shot" in self.settings else "logistic_regression"
        return {first: BASELINES[first], **BASELINES}

    @property
    def adopted(self) -> Mapping[str, Arm]:
        """Heads that ask for more than features and classes, by key."""
        from etude.tasks.adapters import Aligned, Clustered, Described, FrechetMean

        wired: dict[str, tuple[Any, dict[str, tuple[Any, ...]]]] = {
            "classify_by_description": (Described, {}),
            "laplacian_transductive_clustering": (Clustered, {"n_neighbors": (2, 4, 8)}),
            "loki_frechet_mean": (FrechetMean, {"C": (1.0, 0.1, 0.01, 10.0)}),
            "self_structural_alignment": (Aligned, {}),
            "tfup_cache": (None, {}),
        }
        found = {}
        for slug, (method, more) in wired.items():
            card = card_of(slug)
            search = {**card.search, **more}
            found[card.key] = Arm(card.key, card.title, method or load(card), search)
        return found

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """A method needs what it reads: tokens, labels, sentences, facts of the classes."""
        method, names = arm.method, asks(arm.method)
        if wants_tokens(method) and not has_tokens(data):
            return "reads tokens: give images, or an NPZ file with an array 'tokens' (N, T, D)"
        if "zero_shot" in self.settings and learns_from_labels(method):
            return "learns from labels, and the setting zero_shot has none"
        if any(name in names for name in WORDS) and not is_text(data):
            return (
                "compares rows with the names of the classes: give a table whose only column "
                "besides the target is text"
            )
        if "descriptions" in names and data.descriptions is None:
            return "needs phrases that describe the classes: --descriptions FILE"
        given = data.class_distances is not None or are_words(data.classes)
        if "class_distances" in names and not given:
            return (
                "needs distances between the classes, whose names are no words: "
                "--labels-metric FILE"
            )
        if arm.name == "linear_discriminant" and data.x.shape[1] > WIDEST:
            return f"computes a covariance matrix, of at most {WIDEST:,} features"
        return self._why_not_at_once(method, data)

    def _why_not_at_once(self, method: Any, data: Dataset) -> str | None:
        most = getattr(method, "most_rows", None)
        if most is None:
            return None
        if "transductive" not in self.settings:
            return "looks at all rows of the test part at once: --setting transductive lets it"
        shots = self.settings.get("shots")
        n_train = 0.6 * len(data.x) if shots is None else shots * data.n_classes
        if n_train + 0.2 * len(data.x) > most:
            return f"clusters at most {most:,} rows together: try --setting shots=5 or less data"
        return None

    def split(self, data: Dataset, seed: int) -> Split:
        """60 / 20 / 20, each class in the same shares; then the settings."""
        return split_for(self.name, data, seed, self.settings)

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
        seen = altered(data, split.train, self.settings, seed)
        assert seen.y is not None
        facts = describe(seen, split.train, seed) | class_facts(arm, data)
        facts["given_tokens"] = data.tokens is not None and wants_tokens(arm.method)
        parts = self.assemble(arm, facts, knobs)
        inputs = _inputs(arm.method, _read(data, split.train, facts), facts)
        flat = inputs.reshape(-1, inputs.shape[-1])
        # Sentences are compared with names: both stay where the encoder put them.
        beside_words = any(name in asks(arm.method) for name in WORDS)
        arrays = unscaled(flat.shape[1]) if beside_words else scaling(flat)
        inputs, target = (inputs - arrays["mean"]) / arrays["scale"], seen.y[split.train]
        if not learns_from_labels(arm.method):
            parts["method"].fit(inputs)
        elif is_module(arm.method):
            learning = {k: v for k, v in knobs.items() if k in LEARNING}
            _train(parts["method"], inputs, target, seed, budget_s, learning)
        else:
            parts["method"].fit(inputs, target)
        return Predictor(self.name, arm.name, facts, dict(knobs), parts, arrays)

    def logits(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """(B, D) rows, or (B, T, D') where the head reads tokens that were given -> (B, K)."""
        method = predictor.parts["method"]
        inputs = _inputs(type(method), x, predictor.facts)
        inputs = (inputs - predictor.arrays["mean"]) / predictor.arrays["scale"]
        if not is_module(method):
            return _widened(np.asarray(method.logits(inputs)), predictor.facts["n_classes"])
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
        logits = self.logits(predictor, _read(data, rows, predictor.facts))
        return measures.classification(logits, data.y[rows])

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """Rows as ``logits`` reads them -> (B,) class ids."""
        return self.logits(predictor, x).argmax(axis=1)


def _read(data: Dataset, rows: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """The features of the rows, or their given tokens where the head reads those."""
    if not facts["given_tokens"]:
        return data.x[rows]
    assert data.tokens is not None
    return data.tokens[rows]


def _inputs(method: Any, x: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """What the head reads: features (B, D), or tokens (B, T, D'), given or cut from images."""
    if not wants_tokens(method):
        return x
    if facts["given_tokens"]:
        shape = (facts["n_tokens"], facts["token_dim"])
        require(x.shape[1:] == shape, "inputs", f"sets of {shape[0]} vectors, as it learned", x)
        return x
    return patch_tokens(x, tuple(facts["image_shape"]))


def _widened(logits: np.ndarray, n_classes: int) -> np.ndarray:
    """(B, M) -> (B, K): an estimator knows of no class behind the last one it saw."""
    gap = n_classes - logits.shape[1]
    return logits if gap <= 0 else np.pad(logits, ((0, 0), (0, gap)), constant_values=-1e4)


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
