"""Heads that ask for more than features and classes, as estimators that the task probe can wire.

What each of them lacks is named by its constructor: vectors of the class names, phrases about
the classes, distances between them. Fitted attributes end in "_" and are arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from etude.core import EtudeError, require
from etude.heads import S3A, DescriptionClassifier, LokiHead, TransductiveClusterer
from etude.tasks.baselines import LogisticRegression

__all__ = ["Aligned", "Clustered", "Described", "FrechetMean"]

MOST_ROWS = 6_000  # of support and queries together: a graph's matrix of 290 MB


class Described:
    """``classify_by_description``; a class without phrases is told by its name."""

    def __init__(
        self, descriptions: Mapping[str, Sequence[str]], *, aggregation: str = "mean",
        with_name: bool = True,
    ) -> None:  # fmt: skip
        self.descriptions, self.aggregation = descriptions, aggregation
        self.with_name = with_name

    def _head(self) -> DescriptionClassifier:
        return DescriptionClassifier(aggregation=self.aggregation, with_name=self.with_name)

    def fit(self, features: np.ndarray) -> Described:
        """features (N, D) of the sentence encoder, which are not looked at -> self."""
        from etude.nets.minilm import encode

        head = self._head().describe(self.descriptions, encode)
        self.vectors_, self.owner_ = head.vectors_, head.owner_
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K), twenty times the agreement."""
        head = self._head()
        head.vectors_, head.owner_ = self.vectors_, self.owner_
        return 20 * head.logits(features)


class Clustered:
    """``laplacian_transductive_clustering``: the rows asked about are clustered together."""

    most_rows = MOST_ROWS

    def __init__(
        self, n_classes: int, *, laplacian_weight: float = 0.3, n_neighbors: int = 2
    ) -> None:
        self.n_classes, self.laplacian_weight = n_classes, laplacian_weight
        self.n_neighbors = n_neighbors

    def fit(self, features: np.ndarray, target: np.ndarray) -> Clustered:
        """features (N, D), target (N,) class ids -> self (keeps the rows)."""
        self.support_ = np.asarray(features, dtype=np.float32)
        self.target_ = np.asarray(target)
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D), all that are asked about -> (B, K) log of the assignments.

        Raises:
            EtudeError: too many rows for the graph's matrix.
        """
        n_rows = len(self.support_) + len(features)
        if n_rows > MOST_ROWS:
            raise EtudeError(
                f"clusters at most {MOST_ROWS:,} rows together, got {n_rows:,}: "
                "--setting shots=5 keeps few of them, or take a part of the data"
            )
        head = TransductiveClusterer(
            laplacian_weight=self.laplacian_weight, n_neighbors=self.n_neighbors
        ).fit(self.support_, self.target_, features)
        found = np.full((len(features), self.n_classes), 1e-9)
        found[:, head.classes_] += head.assignments_
        return np.asarray(np.log(found))


class FrechetMean:
    """``loki_frechet_mean`` on top of a logistic regression of the classes with training rows."""

    def __init__(
        self, class_distances: np.ndarray | Sequence[Sequence[float]], *, temperature: float = 1.0,
        C: float = 1.0,
    ) -> None:  # fmt: skip
        self.class_distances = np.asarray(class_distances, dtype=np.float64)
        self.temperature, self.C = temperature, C

    def fit(self, features: np.ndarray, target: np.ndarray) -> FrechetMean:
        """features (N, D), target (N,) class ids -> self."""
        self.observed_, ids = np.unique(target, return_inverse=True)
        require(len(self.observed_) >= 2, "target", "of two classes or more", self.observed_)
        classifier = LogisticRegression(C=self.C).fit(features, ids)
        self.weight_, self.bias_ = classifier.weight_, classifier.bias_
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K), minus the mean squared distances, in units of the median."""
        import torch

        classes = torch.from_numpy(features @ self.weight_.T + self.bias_)
        squared = self.class_distances[~np.eye(len(self.class_distances), dtype=bool)] ** 2
        head = LokiHead(self.class_distances, observed=self.observed_, temperature=self.temperature)
        return head(classes).numpy() / max(float(np.median(squared)), 1e-12)


class Aligned:
    """``self_structural_alignment`` with as many clusters as there are classes."""

    def __init__(
        self, class_embeddings: np.ndarray, *, n_votes: int = 1, lr: float = 3e-4, seed: int = 0
    ) -> None:
        self.class_embeddings = np.asarray(class_embeddings, dtype=np.float64)
        self.n_votes, self.lr, self.seed = n_votes, lr, seed

    def _head(self) -> S3A:
        K = len(self.class_embeddings)
        return S3A(
            self.class_embeddings, n_clusters=K, n_votes=min(self.n_votes, K), lr=self.lr,
            seed=self.seed,
        )  # fmt: skip

    def fit(self, features: np.ndarray) -> Aligned:
        """features (N, D) of the sentence encoder, unlabeled -> self."""
        self.weight_ = self._head().fit(features).weight_
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K)."""
        head = self._head()
        head.weight_ = self.weight_
        return head.logits(features)
