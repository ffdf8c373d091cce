r"""Take a frozen network's features, scale them to unit length, and train a linear SVM.

A network trained on one large recognition task is used as it is: the activations of a late layer
describe images of other tasks, and nothing is fine-tuned. With unit features x and labels +-1,

    min_w 1/2 |w|^2 + C sum_i max(0, 1 - y_i w . x_i)                                (1)

Where labels exclude each other, one such SVM is trained for each pair of classes and they vote
("ovo"); where a sample may have several, one for each class against the rest ("ovr"). (1) is
solved in its dual, a quadratic program in a box,

    min_a 1/2 |sum_i a_i y_i x_i|^2 - sum_i a_i,  0 <= a_i <= C,  w = sum_i a_i y_i x_i   (2)

With several views of an image (crops, rotations, mirrored), each is a training sample of its own,
components are compressed by sign(x) |x|^power, and a test image gets the sum of its views'
responses. For retrieval, features are scaled to unit length, projected on principal components,
whitened, scaled again, and compressed; an image is a set of patches, and

    distance(query, document) = mean_{u in query} min_{v in document} |u - v|        (3)

Source: Sharif Razavian, Azizpour, Sullivan, Carlsson, "CNN Features off-the-shelf: an Astounding
Baseline for Recognition", CVPR Workshops 2014, arXiv:1403.6382. The abstract and the opening were
read; the rest of the recipe is from descriptions of it, and there is no official code.
Departures: a constant feature, penalized with the others, stands for the intercept that (1) lacks;
the sixteen views of an image and the patches of its levels are given, not cut here.
Not found in the text that could be read: how a vote decides ties (here: the larger sum of
responses), and the number of principal components (here: a parameter).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from etude.core import Card, require

__all__ = ["OffTheShelfSVM", "OffTheShelfRetriever", "pca_whiten", "signed_sqrt"]

CARD = Card(
    slug="off_the_shelf_features",
    family="heads",
    title="CNN Features off-the-shelf: an Astounding Baseline for Recognition",
    year=2014,
    arxiv="1403.6382",
    move="Scale a frozen network's features to unit length and train a linear SVM on them, views "
    "of an image added up.",
    task="probe",
    claim="With five labels a class, a linear SVM on the features of a published network that was "
    "trained for another task is more accurate than the same SVM on features made by hand.",
    baseline="word_counts_svm",
    metric="accuracy",
    better="higher",
    published="First figure, MIT-67 indoor scenes in %: features and SVM 58.4, with augmentation "
    "69.0, best earlier method 64.0.",
    fidelity="miniature",
    cost="S",
    data=("banking77", "fashion_mnist"),
    departs=(
        "The claim is measured with a published sentence encoder on questions; for images, with a "
        "small network trained on five classes of Fashion-MNIST.",
        "A penalized constant feature takes the place of an intercept.",
        "Features of views and of patches are given: no image is cropped or turned here.",
    ),
    search={"C": (1.0, 0.1, 10.0, 100.0), "power": (1.0, 0.5)},
    example={"C": 1.0},
)

EPS = 1e-12


def signed_sqrt(x: np.ndarray, *, power: float = 0.5) -> np.ndarray:
    """sign(x) |x|^power, component by component; odd and increasing."""
    require(0 < power <= 1, "power", "in (0, 1]", power)
    return np.asarray(np.sign(x) * np.abs(x) ** power)


def pca_whiten(
    vectors: np.ndarray, n_components: int, *, eps: float = 1e-9
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and map (D, n_components) so that (vectors - mean) @ map has covariance I.

    `eps`, times the largest variance, is added to each: a direction that hardly varies is not
    blown up.
    """
    x = _finite(vectors, "vectors")
    most = min(len(x) - 1, x.shape[1])
    require(1 <= n_components <= most, "n_components", f"from 1 to {most}", n_components)
    require(eps >= 0, "eps", "at least 0", eps)
    mean = x.mean(axis=0)
    _, singular, right = np.linalg.svd(x - mean, full_matrices=False)
    variance = singular**2 / len(x)
    scale = np.sqrt(variance[:n_components] + eps * variance[0])
    return mean, right[:n_components].T / np.maximum(scale, EPS)


class OffTheShelfSVM:
    """Equation (1) for each pair of classes, or for each class against the rest.

    Args:
        C: weight of the hinge losses.
        multi: "ovo" (a vote of all pairs) or "ovr".
        power: exponent of the compression after scaling to unit length; 1 leaves it out.
        intercept: value of the constant feature; 0 leaves it out.
        n_steps: at most so many L-BFGS-B iterations a problem.

    Fitted: `weight_` (problems, D + 1), the constant's weight last; `classes_` (K,) those seen.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        multi: str = "ovo",
        power: float = 1.0,
        intercept: float = 1.0,
        n_steps: int = 2000,
    ) -> None:
        require(0 < C < np.inf, "C", "positive", C)
        require(multi in ("ovo", "ovr"), "multi", "ovo or ovr", multi)
        require(0 < power <= 1, "power", "in (0, 1]", power)
        require(0 <= intercept < np.inf, "intercept", "at least 0", intercept)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        self.C = C
        self.multi = multi
        self.power = power
        self.intercept = intercept
        self.n_steps = n_steps

    def fit(self, features: np.ndarray, target: np.ndarray) -> OffTheShelfSVM:
        """features (N, D), or (N, V, D) with V views a sample; target (N,) class ids -> self."""
        x, y = self._prepared(features), np.asarray(target)
        require(y.shape == (len(x),), "target", "(N,), one a sample", y)
        whole = np.issubdtype(y.dtype, np.integer) and y.min() >= 0
        require(bool(whole), "target", "class ids: integers from 0", y.dtype)
        y = np.repeat(y, x.shape[1])
        x = x.reshape(len(y), -1)
        self.classes_ = np.unique(y)
        rows = []
        for positive, negative in self._problems():
            kept = (y == positive) | (y == negative) | (negative < 0)
            rows.append(self._solved(x[kept], np.where(y[kept] == positive, 1.0, -1.0)))
        self.weight_ = np.array(rows).reshape(-1, x.shape[1])
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) or (B, V, D) -> (B, largest class id + 1); responses summed over views.

        "ovo": the votes, plus at most 1/3 of a vote for the sum of a class's responses.
        """
        require(hasattr(self, "weight_"), "probe", "fitted: call fit first", "an unfitted one")
        x = self._prepared(features)
        wide = x.shape[2] == self.weight_.shape[1]
        require(wide, "features", f"of width {self.weight_.shape[1] - 1}", features)
        responses = (x @ self.weight_.T).sum(axis=1)
        K = len(self.classes_)
        scores = responses
        if self.multi == "ovo":
            first, second = np.triu_indices(K, 1)
            sign = np.zeros((len(first), K))
            sign[np.arange(len(first)), first], sign[np.arange(len(first)), second] = 1.0, -1.0
            votes = np.sign(responses) @ sign / 2
            total = responses @ sign
            scores = votes + total / (3 * (1 + np.abs(total)))
        lowest = scores.min(initial=0.0) - K  # a class never seen
        found = np.full((len(x), int(self.classes_.max()) + 1), lowest)
        found[:, self.classes_] = scores
        return found

    def predict(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) or (B, V, D) -> (B,) class ids."""
        return np.asarray(self.logits(features).argmax(axis=1))

    def _problems(self) -> list[tuple[int, int]]:
        """The class on the positive side and the one on the other; -1 for all the rest."""
        if self.multi == "ovr":
            return [(int(k), -1) for k in self.classes_]
        first, second = np.triu_indices(len(self.classes_), 1)
        pairs = zip(self.classes_[first], self.classes_[second], strict=True)
        return [(int(a), int(b)) for a, b in pairs]

    def _prepared(self, features: np.ndarray) -> np.ndarray:
        """(N, V, D + 1): unit length, compressed, the constant appended."""
        x = np.asarray(features, dtype=np.float64)
        require(x.ndim in (2, 3) and len(x) > 0, "features", "(N, D) or (N, V, D), N > 0", x)
        require(bool(np.isfinite(x).all()), "features", "finite", x)
        x = x[:, None] if x.ndim == 2 else x
        x = signed_sqrt(_unit(x), power=self.power)
        return np.concatenate([x, np.full((*x.shape[:2], 1), self.intercept)], axis=2)

    def _solved(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(D,) minimum of (1) by its dual."""
        signed = x * y[:, None]

        def dual(a: np.ndarray) -> tuple[float, np.ndarray]:
            w = a @ signed
            return float(0.5 * w @ w - a.sum()), signed @ w - 1.0  # (2)

        options = {"maxiter": self.n_steps, "maxfun": 2 * self.n_steps, "ftol": 1e-12, "gtol": 1e-6}
        found = minimize(
            dual, np.zeros(len(x)), jac=True, method="L-BFGS-B", bounds=[(0.0, self.C)] * len(x),
            options=options,
        )  # fmt: skip
        return np.asarray(found.x @ signed)


class OffTheShelfRetriever:
    """Equation (3) on patches that are whitened and compressed.

    Args:
        n_components: principal components kept, at most the width and the patches minus one.
        power: exponent of the compression.
        eps: as in ``pca_whiten``.

    Fitted: `mean_` (D,), `map_` (D, n_components), `patches_` (P, n_components), and `starts_`
    (N + 1,), where each document's patches begin.
    """

    def __init__(self, *, n_components: int = 64, power: float = 0.5, eps: float = 1e-9) -> None:
        require(n_components >= 1, "n_components", "at least 1", n_components)
        require(0 < power <= 1, "power", "in (0, 1]", power)
        require(eps >= 0, "eps", "at least 0", eps)
        self.n_components = n_components
        self.power = power
        self.eps = eps

    def fit(self, documents: np.ndarray | Sequence[np.ndarray]) -> OffTheShelfRetriever:
        """documents (N, D), or N arrays (T, D) of patches -> self."""
        patches, self.starts_ = _stacked(documents, "documents")
        unit = _unit(patches)
        count = min(self.n_components, len(unit) - 1, unit.shape[1])
        self.mean_, self.map_ = pca_whiten(unit, count, eps=self.eps)
        self.patches_ = self._whitened(patches)
        return self

    def distances(self, queries: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """queries (B, D), or B arrays (T, D) of patches -> (B, N) by (3)."""
        require(hasattr(self, "map_"), "retriever", "fitted: call fit first", "an unfitted one")
        patches, starts = _stacked(queries, "queries")
        u, v = self._whitened(patches), self.patches_
        squares = (u**2).sum(axis=1)[:, None] + (v**2).sum(axis=1) - 2 * u @ v.T
        apart = np.sqrt(np.maximum(squares, 0.0))
        nearest = np.minimum.reduceat(apart, self.starts_[:-1], axis=1)
        total = np.add.reduceat(nearest, starts[:-1], axis=0)
        return np.asarray(total / np.diff(starts)[:, None])  # (3)

    def rank(self, queries: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """queries -> (B, N) document numbers, the nearest first."""
        return np.asarray(self.distances(queries).argsort(axis=1, kind="stable"))

    def _whitened(self, patches: np.ndarray) -> np.ndarray:
        projected = (_unit(patches) - self.mean_) @ self.map_
        return signed_sqrt(_unit(projected), power=self.power)


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), EPS))


def _finite(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    require(x.ndim == 2 and len(x) > 0, name, "(N, D), N > 0", x)
    require(bool(np.isfinite(x).all()), name, "finite", x)
    return x


def _stacked(sets: np.ndarray | Sequence[np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """All patches (P, D), and where each image's begin (N + 1,)."""
    require(len(sets) > 0, name, "at least one image", sets)
    parts = [np.atleast_2d(np.asarray(part, dtype=np.float64)) for part in sets]
    same = len({part.shape[1:] for part in parts}) == 1 and all(len(part) for part in parts)
    require(same, name, "(T, D) each, T > 0, of one width", [part.shape for part in parts])
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return _finite(np.concatenate(parts), name), starts
