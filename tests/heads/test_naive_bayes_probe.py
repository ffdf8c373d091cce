"""Naive Bayes with shared variances: the formula, its merging, and the sample complexity curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from etude.core import EtudeError, check_names, get_state, set_state
from etude.heads.naive_bayes_probe import (
    Draw,
    GaussianNBProbe,
    LogisticProbe,
    sample_complexity_curve,
)


def rows(seed: int, n: int = 90, dim: int = 5, n_classes: int = 3) -> tuple:
    """Gaussian classes of unequal sizes, features of unequal scales."""
    generator = np.random.default_rng(seed)
    target = np.concatenate([np.arange(n_classes), generator.integers(n_classes, size=n)])
    target = np.minimum(target, generator.integers(1, n_classes, size=len(target)))
    target[:n_classes] = np.arange(n_classes)
    x = generator.normal(size=(len(target), dim)) * 10.0 ** np.arange(-2, dim - 2)
    return x + target[:, None] * 0.5 * 10.0 ** np.arange(-2, dim - 2), target


def log_joint(x: np.ndarray, y: np.ndarray, point: np.ndarray, eps: float) -> list[float]:
    """(2) in loops: log prior + log density of one point, for each class."""
    n, dim, n_classes = len(x), x.shape[1], max(y) + 1
    scores = []
    for k in range(n_classes):
        prior = sum(1 for label in y if label == k) / n
        score = math.log(prior)
        for j in range(dim):
            variance = 0.0
            for c in range(n_classes):
                column = [x[i, j] for i in range(n) if y[i] == c]
                mean = sum(column) / len(column)
                spread = sum((value - mean) ** 2 for value in column) / len(column)
                variance += len(column) / n * spread
            variance += eps * (max(x[:, j]) - min(x[:, j])) ** 2
            mean = sum(x[i, j] for i in range(n) if y[i] == k) / (prior * n)
            score -= 0.5 * (point[j] - mean) ** 2 / variance
        scores.append(score)
    return scores


@pytest.mark.parametrize("eps", [1e-9, 0.1])
def test_logits_are_the_log_posterior_of_loops(eps: float) -> None:
    x, y = rows(0)
    points = rows(1)[0][:6]
    expected = log_softmax([log_joint(x, y, point, eps) for point in points], axis=1)
    logits = GaussianNBProbe(eps=eps).fit(x, y).logits(points)
    np.testing.assert_allclose(log_softmax(logits, axis=1), expected, atol=1e-10)


def test_it_is_linear_discriminant_analysis_on_one_feature() -> None:
    """With D = 1 a diagonal covariance is the covariance; LDA's is the biased one too (lsqr)."""
    x, y = rows(2, dim=1)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    logits = GaussianNBProbe(eps=1e-15).fit(x, y).logits(x)
    np.testing.assert_allclose(log_softmax(logits, axis=1), lda.predict_log_proba(x), atol=1e-8)


def test_logits_are_affine_in_x() -> None:
    x, y = rows(3)
    probe = GaussianNBProbe().fit(x, y)
    a, b = x[:4], x[4:8]
    middle = probe.logits(0.25 * a + 0.75 * b)
    blend = 0.25 * probe.logits(a) + 0.75 * probe.logits(b)
    np.testing.assert_allclose(middle, blend, atol=1e-9)


def test_scaling_and_shifting_a_feature_changes_nothing() -> None:
    x, y = rows(4)
    moved = x * [1e-3, 7.0, -2.0, 1e4, 1.0] + [5.0, 1e3, 0.0, -3.0, 1e5]
    for build in (GaussianNBProbe, LogisticProbe):
        plain, other = build().fit(x, y), build().fit(moved, y)
        atol = 1e-6 if build is GaussianNBProbe else 0.02  # L-BFGS stops at a tolerance
        np.testing.assert_allclose(
            log_softmax(plain.logits(x), axis=1), log_softmax(other.logits(moved), axis=1),
            atol=atol,
        )  # fmt: skip


def test_merged_batches_equal_one_fit_even_where_a_batch_misses_classes() -> None:
    x, y = rows(5)
    order = np.argsort(y, kind="stable")  # the first batch holds class 0 only
    whole = GaussianNBProbe().fit(x, y)
    merged = GaussianNBProbe(n_classes=3)
    for part in np.array_split(order, 4):
        merged.partial_fit(x[part], y[part])
    for name, value in get_state(whole).items():
        np.testing.assert_allclose(get_state(merged)[name], value, rtol=1e-9, atol=1e-12)


def test_release() -> None:
    """The authors' GaussianNB (86a0bcc, models/gaussnb.py) on 60 rows scaled to [0, 1], eps 1e-9.

    Inputs: the generator below. Posteriors of its likelihoods and priors agree with ours within
    1e-13 (both float64); the numbers are of its run.
    """
    generator = np.random.default_rng(5)
    y = np.arange(60) % 4
    generator.shuffle(y)
    x = generator.normal(size=(60, 7)) * np.arange(1, 8) + y[:, None]
    points = generator.normal(size=(5, 7)) * np.arange(1, 8) + 1.5
    low, width = x.min(axis=0), np.ptp(x, axis=0)
    probe = GaussianNBProbe().fit((x - low) / width, y)
    released = [
        [-5.36890735, -1.14507262, -0.82437503, -1.43283681],
        [-10.36814995, -3.88719842, -1.29454758, -0.34892779],
    ]
    ours = log_softmax(probe.logits((points - low) / width), axis=1)
    np.testing.assert_allclose(ours[:2], released, atol=6e-9)


def test_far_from_the_origin_nothing_cancels() -> None:
    x, y = rows(6)
    near, far = GaussianNBProbe().fit(x, y), GaussianNBProbe().fit(x + 1e8, y)
    assert (near.predict(x) == far.predict(x + 1e8)).mean() > 0.98


def test_constant_feature_one_class_and_one_row_a_class_stay_finite() -> None:
    x, y = rows(7)
    x[:, 2] = 3.0
    assert np.isfinite(GaussianNBProbe().fit(x, y).logits(x)).all()
    assert (GaussianNBProbe().fit(x, np.zeros(len(x), dtype=int)).predict(x) == 0).all()
    one_each = GaussianNBProbe().fit(x[:3], np.arange(3))
    assert (one_each.predict(x[:3]) == np.arange(3)).all()


def test_logistic_probe_finds_the_minimum_that_sklearn_finds() -> None:
    x, y = rows(8, n=60)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    ours = LogisticProbe(C=0.3, min_max=False).fit(x, y)
    theirs = LogisticRegression(C=0.3, tol=1e-8, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(ours.weight_, theirs.coef_, atol=2e-4)
    np.testing.assert_allclose(
        log_softmax(ours.logits(x), axis=1), theirs.predict_log_proba(x), atol=1e-3
    )
    two = (y > 0).astype(int)
    ours = LogisticProbe(C=0.3, min_max=False).fit(x, two)
    single_row = LogisticRegression(C=0.6, tol=1e-8, max_iter=5000).fit(x, two)
    np.testing.assert_allclose(ours.weight_[1] - ours.weight_[0], single_row.coef_[0], atol=2e-4)


def test_state_rebuilds_the_probe() -> None:
    x, y = rows(9)
    probe, copy = GaussianNBProbe().fit(x, y), GaussianNBProbe()
    set_state(copy, get_state(probe))
    np.testing.assert_array_equal(copy.logits(x), probe.logits(x))


def mixture(dim: int) -> Draw:
    """The release's two classes: means -1 and 1, variance `dim` on half of the features, else 1."""

    def draw(m: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        target = np.arange(m) % 2
        spread = np.where(np.arange(dim) < dim // 2, np.sqrt(dim), 1.0)
        return generator.normal(size=(m, dim)) * spread + (2.0 * target - 1)[:, None], target

    return draw


def test_naive_bayes_needs_fewer_samples_and_no_more_as_features_grow() -> None:
    """The release's simulation, where C = 1 and the features come as they are."""

    def unscaled() -> LogisticProbe:
        return LogisticProbe(min_max=False)

    needed = {}
    for dim in (32, 128):
        for name, build in (("nb", GaussianNBProbe), ("lr", unscaled)):
            sizes = [4, 6, 8, 10, 20, 40, 80, 160, 320, 640]
            curve = sample_complexity_curve(
                build, mixture(dim), sizes, stop_below=0.01, n_repeats=3, n_test=2000
            )
            assert list(curve) == sizes[: len(curve)]
            assert min(curve.values()) == list(curve.values())[-1] < 0.01
            needed[name, dim] = list(curve)[-1]
    assert needed["nb", 32] <= 10
    assert needed["nb", 128] <= 10
    assert needed["lr", 32] >= 40
    assert needed["lr", 128] > needed["lr", 32]


def test_a_curve_is_reproducible_and_its_errors_are_means_over_draws() -> None:
    class Constant:
        def fit(self, features: np.ndarray, target: np.ndarray) -> None:
            self.label = int(target[-1])

        def predict(self, features: np.ndarray) -> np.ndarray:
            return np.full(len(features), self.label)

    def draw(m: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = (generator.random(m) < 0.25).astype(int)
        return y[:, None].astype(float), y

    first, again = (
        sample_complexity_curve(Constant, draw, [20, 30], n_repeats=40, n_test=5000, seed=3)
        for _ in range(2)
    )
    assert first == again
    assert list(first) == [20, 30]
    for error in first.values():  # 3/4 of the draws end in class 0, which errs in 1/4
        assert error == pytest.approx(0.75 * 0.25 + 0.25 * 0.75, abs=0.12)


def test_a_draw_that_misses_a_class_is_drawn_again() -> None:
    """Half of the draws of three rows lack class 1; naive Bayes would refuse them."""
    seen = []

    def draw(m: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = (generator.random(m) < 0.2).astype(int)
        seen.append(len(np.unique(y)))
        return y[:, None] + generator.normal(size=(m, 1)), y

    curve = sample_complexity_curve(GaussianNBProbe, draw, [3], n_repeats=20, n_test=500)
    assert 0 < curve[3] < 1
    assert seen.count(1) >= 5
    assert seen.count(2) == 21  # the test rows and twenty draws

    def single(m: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(m) % 2 if m == 500 else np.zeros(m, dtype=int)
        return y[:, None].astype(float), y

    with pytest.raises(EtudeError, match="large enough for draws of all 2 classes"):
        sample_complexity_curve(GaussianNBProbe, single, [3], n_test=500)


def test_refusals() -> None:
    x, y = rows(10)
    with pytest.raises(EtudeError, match="no row of"):
        GaussianNBProbe(n_classes=4).fit(x, y)
    with pytest.raises(EtudeError, match="eps must be positive"):
        GaussianNBProbe(eps=0.0)
    with pytest.raises(EtudeError, match="features must be finite"):
        GaussianNBProbe().fit(np.full((4, 2), np.nan), np.array([0, 1, 0, 1]))
    with pytest.raises(EtudeError, match="target must be class ids"):
        GaussianNBProbe().fit(x, y.astype(float))
    with pytest.raises(EtudeError, match="fitted"):
        GaussianNBProbe().logits(x)
    with pytest.raises(EtudeError, match="n_classes must be given"):
        GaussianNBProbe().partial_fit(x, y)
    with pytest.raises(EtudeError, match="width 5"):
        GaussianNBProbe().fit(x, y).partial_fit(x[:, :2], y)
    with pytest.raises(EtudeError, match="C must be positive"):
        LogisticProbe(C=0.0)
    with pytest.raises(EtudeError, match="sizes must be at least 2"):
        sample_complexity_curve(GaussianNBProbe, mixture(4), [1])
    check_names(GaussianNBProbe)
    check_names(GaussianNBProbe.logits)
