r"""Read frozen features with naive Bayes: class means and one variance a feature.

Linear evaluation trains a logistic regression by habit. A naive Bayes classifier whose diagonal
variances are shared by all classes is linear too, but it is fitted by counting: every number in
it is an average, so it settles after few samples. With prior pi_k = N_k / N, class mean mu_k and
within-class variance, biased, pooled over the classes,

    sigma_j^2 = sum_k pi_k Var_kj + eps                                              (1)
    score_k(x) = log pi_k - 1/2 sum_j (x_j - mu_kj)^2 / sigma_j^2                    (2)

where x_j^2 / sigma_j^2 is the same for all classes and drops out of a softmax:

    logit_k(x) = sum_j x_j mu_kj / sigma_j^2 - 1/2 sum_j mu_kj^2 / sigma_j^2 + log pi_k   (3)

The theory compares it with multinomial logistic regression in n features: naive Bayes comes near
its own (possibly worse) error with O(log n) samples, logistic regression near its (better) one
with O(n). Hence two regimes: the generative classifier leads first, the discriminative later.

Source: Zheng, Wu, Bao, Cao, Li, Zhu, "Revisiting Discriminative vs. Generative Classifiers:
Theory and Implications", ICML 2023, arXiv:2302.02334. The abstract and the authors' release were
read; the constants of the theorems were not.
Departures: as in the release, eps acts on features scaled to [0, 1] by the range of the training
rows; here that range enters (1) as eps * range_j^2, so that (3) needs no scaled copy of the rows.
eps is added once, also after merging batches (the release adds it for every batch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from etude.core import Card, refuse, require

__all__ = ["GaussianNBProbe", "LogisticProbe", "sample_complexity_curve"]

CARD = Card(
    slug="naive_bayes_probe",
    family="heads",
    title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    year=2023,
    arxiv="2302.02334",
    move="Read frozen features with a naive Bayes classifier whose variances all classes share: "
    "a linear head fitted by averages alone.",
    task="probe",
    claim="With four samples a class of the authors' mixture of five Gaussians in 128 features, "
    "naive Bayes is more accurate than a logistic regression with a tuned penalty.",
    baseline="logistic_regression",
    metric="accuracy",
    better="higher",
    published="The abstract states O(log n) samples for naive Bayes and O(n) for logistic "
    "regression in n features, and two regimes on supervised backbones; no single figure.",
    fidelity="full",
    cost="S",
    data=("digits", "wine", "breast_cancer"),
    code="ML-GSAI/Revisiting-Dis-vs-Gen-Classifiers",
    departs=(
        "The variance floor scales with the squared range of a feature, instead of scaling the "
        "features to [0, 1].",
        "It is added once, also where batches were merged, not once a batch.",
    ),
    search={"eps": (1e-9, 1e-4, 1e-2)},
    example={"eps": 1e-9},
)

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Classifier(Protocol):
    """What ``sample_complexity_curve`` measures."""

    def fit(self, features: np.ndarray, target: np.ndarray) -> object:
        """(N, D), (N,) class ids."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(B, D) -> (B,) class ids."""


def _checked(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features in float64 and class ids, of one length."""
    features, target = np.asarray(features, dtype=np.float64), np.asarray(target)
    require(features.ndim == 2 and len(features) > 0, "features", "(N, D), N > 0", features)
    require(bool(np.isfinite(features).all()), "features", "finite", features)
    require(target.shape == features.shape[:1], "target", "(N,), one a row of features", target)
    whole = np.issubdtype(target.dtype, np.integer) and target.min() >= 0
    require(bool(whole), "target", "class ids: integers from 0", target.dtype)
    return features, target


def _ranges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The width of each feature's range; a constant feature has width 1."""
    return np.where(high > low, high - low, 1.0)


class GaussianNBProbe:
    """Equations (1) to (3). `eps`: floor of the variances in units of the squared range.

    Fitted: `counts_` (K,), `means_` (K, D), `squares_` (K, D) sums of squared deviations,
    `low_` and `high_` (D,), and of (3) `weight_` (K, D), `bias_` (K,) on x - `center_` (D,).
    `n_classes`: K, else the largest class id + 1.
    """

    def __init__(self, *, eps: float = 1e-9, n_classes: int | None = None) -> None:
        require(eps > 0, "eps", "positive", eps)
        require(n_classes is None or n_classes >= 1, "n_classes", "at least 1", n_classes)
        self.eps = eps
        self.n_classes = n_classes

    def fit(self, features: np.ndarray, target: np.ndarray) -> GaussianNBProbe:
        """features (N, D), target (N,) class ids 0..K-1, every class present -> self."""
        features, target = _checked(features, target)
        K = int(target.max()) + 1 if self.n_classes is None else self.n_classes
        self.counts_ = np.zeros(K)
        self.means_ = np.zeros((K, features.shape[1]))
        self.squares_ = np.zeros((K, features.shape[1]))
        self.low_, self.high_ = features[0].copy(), features[0].copy()
        self.partial_fit(features, target)
        absent = np.flatnonzero(self.counts_ == 0)
        if len(absent):
            refuse("target", "of every class: draw the rows again", f"no row of {absent.tolist()}")
        return self

    def partial_fit(self, features: np.ndarray, target: np.ndarray) -> GaussianNBProbe:
        """Merge a further batch into the statistics; the order of batches does not matter.

        Before the first ``fit`` it needs `n_classes`; a class may be missing from a batch.
        """
        features, target = _checked(features, target)
        if not hasattr(self, "counts_"):
            require(self.n_classes is not None, "n_classes", "given for partial_fit", None)
            K = int(self.n_classes or 0)
            self.counts_ = np.zeros(K)
            self.means_, self.squares_ = np.zeros((2, K, features.shape[1]))
            self.low_, self.high_ = features[0].copy(), features[0].copy()
        K, D = self.means_.shape
        require(features.shape[1] == D, "features", f"of width {D}, as before", features)
        require(int(target.max()) < K, "target", f"below n_classes = {K}", int(target.max()))
        member = np.eye(K)[target]  # (N, K)
        new = member.sum(axis=0)
        mean = member.T @ features / np.maximum(new, 1.0)[:, None]
        squares = member.T @ (features - mean[target]) ** 2
        total = self.counts_ + new
        share = new / np.maximum(total, 1.0)
        # Of two groups' squared deviations from their common mean: each group's own, and the
        # gap of the means weighted by the harmonic count.
        gap = mean - self.means_
        self.squares_ = self.squares_ + squares + (self.counts_ * share)[:, None] * gap**2
        self.means_ = self.means_ + share[:, None] * gap
        self.counts_ = total
        self.low_ = np.minimum(self.low_, features.min(axis=0))
        self.high_ = np.maximum(self.high_, features.max(axis=0))
        self._solve()
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K): (2) up to a constant of the row; softmax is posterior."""
        require(hasattr(self, "weight_"), "probe", "fitted: call fit first", "an unfitted one")
        features = np.asarray(features, dtype=np.float64)
        return np.asarray((features - self.center_) @ self.weight_.T + self.bias_)  # (3)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B,) class ids."""
        return np.asarray(self.logits(features).argmax(axis=1))

    def _solve(self) -> None:
        """(3) from the statistics, about the grand mean: far from it, squares would cancel."""
        pi = self.counts_ / self.counts_.sum()
        # pi_k Var_kj is the class's sum of squares over N
        floor = self.eps * _ranges(self.low_, self.high_) ** 2
        variance = self.squares_.sum(axis=0) / self.counts_.sum() + floor  # (1)
        self.center_ = pi @ self.means_
        mu = self.means_ - self.center_
        self.weight_ = mu / variance
        with np.errstate(divide="ignore"):  # a class not yet seen has prior 0
            self.bias_ = np.log(pi) - 0.5 * (mu**2 / variance).sum(axis=1)


class LogisticProbe:
    """Multinomial logistic regression with an L2 penalty: the discriminative counterpart.

    Minimizes |W|^2 / 2 + C * summed log loss by L-BFGS on features scaled to [0, 1] by the range
    of the training rows (`min_max`); the intercept is free. For K = 2 the two weight rows are
    opposite, so a classifier with a single row has this solution at half the penalty (2 C).
    Fitted: `weight_` (K, D) and `bias_` (K,) for features as they come.
    """

    def __init__(self, *, C: float = 1.0, min_max: bool = True, n_steps: int = 1000) -> None:
        require(C > 0, "C", "positive", C)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        self.C = C
        self.min_max = min_max
        self.n_steps = n_steps

    def fit(self, features: np.ndarray, target: np.ndarray) -> LogisticProbe:
        """features (N, D), target (N,) class ids 0..K-1 -> self."""
        features, target = _checked(features, target)
        low, high = features.min(axis=0), features.max(axis=0)
        if not self.min_max:
            low, high = np.zeros_like(low), np.ones_like(high)
        x, member = (features - low) / _ranges(low, high), np.eye(int(target.max()) + 1)[target]
        shape = (x.shape[1] + 1, member.shape[1])

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            W, b = flat.reshape(shape)[:-1], flat.reshape(shape)[-1]
            log_probs = log_softmax(x @ W + b, axis=1)
            value = 0.5 * (W**2).sum() - self.C * (member * log_probs).sum()
            residual = self.C * (np.exp(log_probs) - member)
            return float(value), np.vstack([x.T @ residual + W, residual.sum(axis=0)]).ravel()

        options = {"maxiter": self.n_steps, "ftol": 1e-10, "gtol": 1e-5}
        found = minimize(
            objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options
        )
        solution = found.x.reshape(shape)
        self.weight_ = (solution[:-1] / _ranges(low, high)[:, None]).T
        self.bias_ = solution[-1] - self.weight_ @ low
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K)."""
        require(hasattr(self, "weight_"), "probe", "fitted: call fit first", "an unfitted one")
        logits = np.asarray(features, dtype=np.float64) @ self.weight_.T + self.bias_
        return np.asarray(logits)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B,) class ids."""
        return np.asarray(self.logits(features).argmax(axis=1))


def sample_complexity_curve(
    build: Callable[[], Classifier],
    draw: Draw,
    sizes: Iterable[int],
    *,
    stop_below: float = 0.0,
    n_repeats: int = 5,
    n_test: int = 10_000,
    seed: int = 0,
) -> dict[int, float]:
    """Test error by the number m of training samples, mean of `n_repeats` draws each.

    Args:
        build: makes a new classifier for each fit.
        draw: (m, generator) -> features (m, D) and target (m,) of a known distribution. A draw
            that misses a class of the test rows is drawn again, at most 100 times.
        sizes: the m to try, ascending; the curve ends at the first whose mean error is below
            `stop_below`, so that its last key is the smallest sufficient m if its error is.
        n_test: rows of the one test set that all sizes share.
    """
    require(n_repeats >= 1 and n_test >= 1, "n_repeats, n_test", "at least 1", n_repeats)
    features, target = draw(n_test, np.random.default_rng([seed, 0]))
    K, curve = len(np.unique(target)), {}
    for m in sizes:
        require(m >= K, "sizes", f"at least {K}, the number of classes", m)
        errors = []
        for repeat in range(n_repeats):
            generator = np.random.default_rng([seed, 1, m, repeat])
            for _ in range(100):
                x, y = draw(m, generator)
                if len(np.unique(y)) == K:
                    break
            else:
                refuse("sizes", f"large enough for draws of all {K} classes", m)
            classifier = build()
            classifier.fit(x, y)
            errors.append(float((classifier.predict(features) != target).mean()))
        curve[int(m)] = float(np.mean(errors))
        if curve[int(m)] < stop_below:
            break
    return curve
