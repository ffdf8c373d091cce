"""The baselines: strong and simple, tuned as hard as the methods they meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression as SklearnRegression
from sklearn.neighbors import NearestNeighbors

from etude.core import require
from etude.tasks.words import name_vectors

__all__ = [
    "ClassNames", "KNearestNeighbors", "LinearDiscriminant", "LogisticRegression", "MeanToken",
    "NearestMean", "TruncatedPCA",
]  # fmt: skip


class LogisticRegression:
    """Multinomial logistic regression with an L2 penalty, by scikit-learn's L-BFGS.

    `C` is the inverse strength of the penalty. Features arrive standardized.
    """

    def __init__(self, *, C: float = 1.0) -> None:
        require(C > 0, "C", "positive", C)
        self.C = C

    def fit(self, features: np.ndarray, target: np.ndarray) -> LogisticRegression:
        """features (N, D), target (N,) class ids -> self."""
        solver = SklearnRegression(C=self.C, max_iter=1000).fit(features, target)
        weight, bias = solver.coef_, solver.intercept_
        if len(solver.classes_) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        n_classes = int(solver.classes_.max()) + 1
        self.weight_ = np.zeros((n_classes, features.shape[1]), dtype=np.float32)
        self.bias_ = np.full(n_classes, -1e4, dtype=np.float32)  # a class never seen
        self.weight_[solver.classes_] = weight
        self.bias_[solver.classes_] = bias
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K)."""
        return features @ self.weight_.T + self.bias_


class KNearestNeighbors:
    """Votes of the `n_neighbors` nearest training rows, weighted by inverse distance."""

    def __init__(self, *, n_neighbors: int = 5) -> None:
        require(n_neighbors >= 1, "n_neighbors", "at least 1", n_neighbors)
        self.n_neighbors = n_neighbors

    def fit(self, features: np.ndarray, target: np.ndarray) -> KNearestNeighbors:
        """features (N, D), target (N,) class ids -> self (keeps the rows)."""
        self.rows_ = np.asarray(features, dtype=np.float32)
        self.target_ = np.asarray(target)
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K) log of the share of votes."""
        k = min(self.n_neighbors, len(self.rows_))
        distance, near = NearestNeighbors(n_neighbors=k).fit(self.rows_).kneighbors(features)
        weight = 1 / np.maximum(distance, 1e-9)
        votes = np.zeros((len(features), int(self.target_.max()) + 1))
        np.add.at(votes, (np.arange(len(features))[:, None], self.target_[near]), weight)
        return np.log(votes / votes.sum(axis=1, keepdims=True) + 1e-6)


class NearestMean:
    """The class whose mean is nearest: by Euclidean distance, or by cosine.

    `center` first takes the mean of all training rows off, which only the cosine feels.
    """

    def __init__(self, *, distance: str = "euclidean", center: bool = True) -> None:
        require(distance in ("euclidean", "cosine"), "distance", "euclidean or cosine", distance)
        self.distance, self.center = distance, center

    def fit(self, features: np.ndarray, target: np.ndarray) -> NearestMean:
        """features (N, D), target (N,) class ids -> self."""
        x = np.asarray(features, dtype=np.float32)
        self.mean_ = x.mean(axis=0) if self.center else np.zeros(x.shape[1], dtype=np.float32)
        x = self._placed(x)
        self.classes_ = np.unique(target)
        self.means_ = np.stack([x[target == k].mean(axis=0) for k in self.classes_])
        return self

    def _placed(self, x: np.ndarray) -> np.ndarray:
        x = x - self.mean_
        if self.distance == "euclidean":
            return x
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K)."""
        x, means = self._placed(np.asarray(features, dtype=np.float32)), self.means_
        if self.distance == "cosine":
            unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
            scores = 10 * x @ unit.T
        else:
            scores = x @ means.T - (means**2).sum(axis=1) / 2
        return _spread(scores, self.classes_)


class LinearDiscriminant:
    """Gaussian classes of one covariance, shrunk toward the mean variance by `shrinkage`.

    "auto" shrinks by the formula of Ledoit and Wolf. By scikit-learn.
    """

    def __init__(self, *, shrinkage: float | str = "auto") -> None:
        good = shrinkage == "auto" or (not isinstance(shrinkage, str) and 0 <= shrinkage <= 1)
        require(good, "shrinkage", "auto or from 0 to 1", shrinkage)
        self.shrinkage = shrinkage

    def fit(self, features: np.ndarray, target: np.ndarray) -> LinearDiscriminant:
        """features (N, D), target (N,) class ids -> self."""
        solver = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.shrinkage)
        solver.fit(np.asarray(features, dtype=np.float64), target)
        weight, bias = solver.coef_, solver.intercept_
        if len(solver.classes_) == 2:  # scikit-learn keeps one row for two classes
            weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.classes_ = solver.classes_
        self.weight_, self.bias_ = weight.astype(np.float32), bias.astype(np.float32)
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K)."""
        return _spread(features @ self.weight_.T + self.bias_, self.classes_)


class ClassNames:
    """The class whose name, in a wording, is nearest by cosine: no training rows are needed.

    `center` takes the mean of the unlabeled rows off the rows, and that of the names off the
    names: two clouds of sentences seldom have one center.
    """

    def __init__(
        self, classes: Sequence[str], *, wording: str = "{}", center: bool = False
    ) -> None:
        require("{}" in wording, "wording", "a sentence with {} for the name", wording)
        self.classes, self.wording, self.center = tuple(classes), wording, center

    def fit(self, features: np.ndarray) -> ClassNames:
        """features (N, D), of the sentence encoder and unlabeled -> self."""
        vectors = name_vectors(self.classes, self.wording)
        self.mean_ = np.zeros(vectors.shape[1], dtype=np.float32)
        if self.center:
            self.mean_ = np.asarray(features, dtype=np.float32).mean(axis=0)
            vectors = vectors - vectors.mean(axis=0)
        self.weight_ = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K), twenty times the cosines."""
        x = np.asarray(features, dtype=np.float32) - self.mean_
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return 20 * unit @ self.weight_.T


def _spread(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(B, M) scores of the classes seen -> (B, max id + 1), a very low one for the others."""
    wide = np.full((len(scores), int(classes.max()) + 1), -1e4, dtype=np.float32)
    wide[:, classes] = scores
    return wide


class MeanToken:
    """One vector a document: the mean of its token vectors, normalized."""

    def encode_documents(self, documents: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """documents (N, T, D), or N arrays (T, D), -> (N, D) unit vectors."""
        mean = np.stack([np.mean(one, axis=0, dtype=np.float32) for one in documents])
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)

    def encode_queries(self, queries: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """queries (B, T, D) -> (B, D); the same as for documents."""
        return self.encode_documents(queries)


class TruncatedPCA:
    """The first `n_components` principal components of vectors: the plain way to shrink them."""

    def __init__(self, *, n_components: int = 16) -> None:
        require(n_components >= 1, "n_components", "at least 1", n_components)
        self.n_components = n_components

    def fit(self, vectors: np.ndarray) -> TruncatedPCA:
        """vectors (N, D) -> self; uncentered, since inner products are to be kept."""
        _, _, right = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)
        self.directions_ = right[: self.n_components].T.astype(np.float32)
        return self

    def encode_documents(self, vectors: np.ndarray) -> np.ndarray:
        """vectors (N, D) -> (N, n_components)."""
        return vectors.astype(np.float32) @ self.directions_

    def encode_queries(self, vectors: np.ndarray) -> np.ndarray:
        """vectors (B, D) -> (B, n_components)."""
        return self.encode_documents(vectors)
