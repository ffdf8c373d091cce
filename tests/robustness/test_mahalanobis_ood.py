"""Checks of robustness.mahalanobis_ood.

Oracle: loops in float64 from equations (1) to (4), and scikit-learn's discriminant analysis and
logistic regression. Against the release (pokaxpoka/deep_Mahalanobis_detector at 90c2105, its
sample_estimator and get_Mahalanobis_score, run on CPU in float32): the numbers of
`test_agrees_with_the_release` are -2 times what it printed for the inputs of seed 0, and agree
to 2e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from etude.core import EtudeError, check_names, get_state, set_state
from etude.robustness import MahalanobisDetector


def gaussians(seed: int = 0, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Unbalanced classes of 4 correlated features, overlapping."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=n, p=[0.6, 0.3, 0.1])
    mix = rng.normal(size=(4, 4))
    return (rng.normal(size=(n, 4)) + np.eye(3, 4)[labels]) @ mix, labels


def loop_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Smallest squared distances by loops over samples and classes."""
    D, means, sigma = train.shape[1], {}, np.zeros((train.shape[1],) * 2)
    for c in set(labels.tolist()):
        rows = [x for x, y in zip(train, labels, strict=True) if y == c]
        means[c] = sum(rows) / len(rows)
        for x in rows:
            for i in range(D):
                for j in range(D):
                    sigma[i, j] += (x - means[c])[i] * (x - means[c])[j] / len(train)
    inverse = np.linalg.inv(sigma)
    return np.array([min((x - m) @ inverse @ (x - m) for m in means.values()) for x in test])


def test_score_is_the_smallest_squared_distance() -> None:
    x, y = gaussians()
    test = gaussians(1, 20)[0] * 3
    got = MahalanobisDetector().fit(x, y).score(test)
    np.testing.assert_allclose(got, loop_scores(x, y, test), rtol=1e-9)


def test_each_layer_has_its_own_gaussians_and_maps_are_averaged() -> None:
    x, y = gaussians()
    maps = np.random.default_rng(2).normal(size=(len(x), 3, 2, 5)) + y[:, None, None, None]
    pooled = np.array([[channel.mean() for channel in sample] for sample in maps])
    detector = MahalanobisDetector().fit([maps, x], y)
    want = np.stack([loop_scores(pooled, y, pooled[:9]), loop_scores(x, y, x[:9])], axis=1)
    np.testing.assert_allclose(detector.layer_scores([maps[:9], x[:9]]), want, rtol=1e-9)
    np.testing.assert_allclose(detector.score([maps[:9], x[:9]]), want[:, 1], rtol=1e-9)
    mean = MahalanobisDetector(combine="mean").fit([maps, x], y)
    got = mean.score([maps[:9], x[:9]])
    np.testing.assert_allclose(got, (want[:, 0] / 3 + want[:, 1] / 4) / 2, rtol=1e-9)


def test_classifier_is_linear_discriminant_analysis_with_equal_priors() -> None:
    x, y = gaussians(n=400)
    lda = LinearDiscriminantAnalysis(solver="svd", priors=[1 / 3] * 3).fit(x, y)
    test = gaussians(5, 500)[0]
    got = MahalanobisDetector().fit(x, y).classify(test)
    assert np.array_equal(got, lda.predict(test))
    assert len(np.unique(got)) == 3


def test_affine_maps_change_nothing_when_refit() -> None:
    x, y = gaussians()
    test = gaussians(1, 30)[0] * 2
    A, b = np.random.default_rng(3).normal(size=(4, 4)) + np.eye(4), np.array([5.0, -3, 0, 9])
    want = MahalanobisDetector().fit(x, y).score(test)
    got = MahalanobisDetector().fit(x @ A + b, y).score(test @ A + b)
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_full_shrinkage_ranks_as_the_nearest_class_mean() -> None:
    x, y = gaussians()
    test = gaussians(1, 50)[0] * 2
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    nearest = ((test[:, None] - means) ** 2).sum(axis=2).min(axis=1)
    assert (
        spearmanr(MahalanobisDetector(shrinkage=1.0).fit(x, y).score(test), nearest)[0] > 1 - 1e-9
    )
    assert spearmanr(MahalanobisDetector().fit(x, y).score(test), nearest)[0] < 0.99


def test_a_dead_unit_is_not_seen() -> None:
    x, y = gaussians()
    dead = np.column_stack([x, np.zeros(len(x)), x[:, 0]]).astype(np.float32)
    test = gaussians(1, 10)[0]
    moved = np.column_stack([test, np.full(10, 7.0), test[:, 0]])
    want = MahalanobisDetector().fit(x, y).score(test)
    np.testing.assert_allclose(MahalanobisDetector().fit(dead, y).score(moved), want, rtol=1e-3)


def small_network() -> tuple:
    """The network, training and test inputs of seed 0 that the release was run on."""
    rng = np.random.default_rng(0)
    A = torch.from_numpy(rng.normal(size=(6, 12)).astype(np.float32))
    B = torch.from_numpy((rng.normal(size=(12, 5)) / 2).astype(np.float32))

    def network(x: torch.Tensor) -> list[torch.Tensor]:
        hidden = torch.tanh(x @ A.to(x.dtype))
        return [hidden.view(-1, 4, 3, 1), torch.tanh(hidden @ B.to(x.dtype))]

    labels = np.arange(60) % 3
    train = rng.normal(size=(60, 6)) + np.eye(3, 6)[labels] * 2
    test = rng.normal(size=(5, 6)) * 1.5
    return (
        network,
        torch.from_numpy(train.astype(np.float32)),
        labels,
        torch.from_numpy(test.astype(np.float32)),
    )


RELEASE = {
    0.0: [[9.04336, 4.64462], [5.73376, 11.37045], [1.15966, 6.34211], [3.25143, 4.78565],
          [1.38265, 4.12786]],
    0.01: [[8.96389, 4.56319], [5.70707, 11.22679], [1.08187, 6.00399], [3.20193, 4.68015],
           [1.33125, 4.0578]],
    0.1: [[8.27582, 4.64728], [5.46092, 10.09657], [0.55594, 3.78849], [2.73895, 3.98356],
          [1.13089, 3.61202]],
}  # fmt: skip


@pytest.mark.parametrize("magnitude", RELEASE)
def test_agrees_with_the_release(magnitude: float) -> None:
    network, train, labels, test = small_network()
    detector = MahalanobisDetector().fit([h.numpy() for h in network(train)], labels)
    got = detector.perturbed_layer_scores(network, test, magnitude=magnitude)
    np.testing.assert_allclose(got, RELEASE[magnitude], atol=3e-5)


def test_perturbation_follows_the_gradient_of_the_closest_class() -> None:
    network, train, labels, test = small_network()
    test = test.double()
    detector = MahalanobisDetector().fit([h.numpy() for h in network(train.double())], labels)

    def distances(x: np.ndarray, layer: int) -> np.ndarray:
        features = [h.numpy() for h in network(torch.from_numpy(x))]
        return detector.squared_distances(features, layer=layer)

    std = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0], dtype=torch.float64)
    got = detector.perturbed_layer_scores(network, test, magnitude=0.02, input_std=std)
    want = np.empty_like(got)
    for layer in (0, 1):
        for b, x in enumerate(test.numpy()):
            c = distances(x[None], layer)[0].argmin()
            moved = x.copy()
            for i in range(6):
                step = np.eye(6)[i] * 1e-6
                slope = distances(np.stack([x + step, x - step]), layer)[:, c]
                moved[i] -= 0.02 * np.sign(slope[0] - slope[1]) / std[i].item()
            want[b, layer] = distances(moved[None], layer)[0].min()
    np.testing.assert_allclose(got, want, rtol=1e-8)
    still = detector.layer_scores([h.numpy() for h in network(test)])
    small = detector.perturbed_layer_scores(network, test, magnitude=1e-4)
    assert (small < still).all()  # the step raises the confidence
    detector.weights_, detector.bias_ = np.array([2.0, -0.5]), 3.0
    scored = detector.score_with_perturbation(network, test, magnitude=0.02, input_std=std)
    np.testing.assert_allclose(scored, 2 * got[:, 0] - got[:, 1] / 2 + 3)


def test_ensemble_is_logistic_regression() -> None:
    x, y = gaussians()
    rng = np.random.default_rng(4)
    noise = rng.normal(size=x.shape)
    detector = MahalanobisDetector().fit([x, noise], y)
    far = x + 2 * rng.normal(size=x.shape)
    scores = np.vstack([detector.layer_scores([x, noise]), detector.layer_scores([far, noise])])
    target = np.repeat([0, 1], len(x))
    detector.fit_ensemble(scores, target, penalties=(0.3,))
    z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    oracle = LogisticRegression(C=0.3, tol=1e-10, max_iter=1000).fit(z, target)
    got = np.concatenate([detector.score([x, noise]), detector.score([far, noise])])
    np.testing.assert_allclose(got, oracle.decision_function(z), atol=1e-4)
    detector.fit_ensemble(scores, target)
    spread = scores.std(axis=0)
    assert detector.weights_[0] > 0
    assert abs(detector.weights_ * spread)[1] < 0.3 * (detector.weights_ * spread)[0]


@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_penalty_is_the_best_in_cross_validation(signal: float) -> None:
    rng = np.random.default_rng(0)
    detector = MahalanobisDetector().fit([rng.normal(size=(40, 3))] * 8, np.arange(40) % 2)
    target = np.repeat([1, 0], [25, 35])
    scores = rng.normal(size=(60, 8))
    scores[:, 2] += signal * target
    z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    fold = np.concatenate([np.arange(25) % 5, np.arange(35) % 5])
    penalties, losses = (1e-3, 0.1, 10.0), []
    for C in penalties:
        losses.append(0.0)
        for k in range(5):
            model = LogisticRegression(C=C, tol=1e-10).fit(z[fold != k], target[fold != k])
            for probs, t in zip(model.predict_proba(z[fold == k]), target[fold == k], strict=True):
                losses[-1] -= np.log(probs[t])
    best = penalties[int(np.argmin(losses))]
    assert best == (1e-3 if signal == 0 else 10.0)
    want = LogisticRegression(C=best, tol=1e-10).fit(z, target)
    detector.fit_ensemble(scores, target, penalties=penalties)
    np.testing.assert_allclose(detector.weights_ * scores.std(axis=0), want.coef_[0], atol=1e-4)


def test_a_class_can_be_added() -> None:
    x, y = gaussians(n=300)
    detector = MahalanobisDetector().fit(x[y < 2], y[y < 2])
    old = detector.covariances_.reshape(4, 4).copy()
    new = x[y == 2]
    detector.add_class(new, label=7)
    residual = new - new.mean(axis=0)
    want = old * 2 / 3 + residual.T @ residual / len(new) / 3
    np.testing.assert_allclose(detector.covariances_.reshape(4, 4), want, rtol=1e-9)
    far = new.mean(axis=0)[None] + 3 * (new.mean(axis=0) - x.mean(axis=0))[None]
    assert detector.classify(far)[0] == 7
    np.testing.assert_allclose(detector.score(new.mean(axis=0)[None]), 0, atol=1e-9)


def test_state_round_trips() -> None:
    x, y = gaussians()
    first = MahalanobisDetector().fit([x, x[:, :2]], y)
    first.fit_ensemble(first.layer_scores([x, x[:, :2]]), np.arange(len(x)) % 2)
    second = MahalanobisDetector()
    set_state(second, get_state(first))
    np.testing.assert_array_equal(second.score([x, x[:, :2]]), first.score([x, x[:, :2]]))
    assert get_state(second).keys() == get_state(first).keys()


def test_limits() -> None:
    x, y = gaussians()
    one = MahalanobisDetector().fit(x, np.zeros(len(x), dtype=int))
    np.testing.assert_allclose(one.score(x).mean(), 4.0)  # the trace of Sigma^-1 Sigma
    assert np.isfinite(one.score(x * 1e6)).all()
    far = MahalanobisDetector().fit(x + 1e6, y).score(x + 1e6)
    np.testing.assert_allclose(far, MahalanobisDetector().fit(x, y).score(x), rtol=1e-4)
    order = np.random.default_rng(0).permutation(len(x))
    shuffled = MahalanobisDetector().fit(x[order], y[order])
    np.testing.assert_allclose(shuffled.score(x), MahalanobisDetector().fit(x, y).score(x))


def test_refusals() -> None:
    x, y = gaussians()
    detector = MahalanobisDetector().fit([x, x], y)
    for call, message in (
        (lambda: MahalanobisDetector(shrinkage=2.0), r"shrinkage must be in \[0, 1\]"),
        (lambda: MahalanobisDetector(combine="max"), "combine must be 'last' or 'mean'"),
        (lambda: MahalanobisDetector().fit(x, y[:-1]), "labels must be"),
        (lambda: MahalanobisDetector().fit([x, x[:-1]], y), "of equally many samples"),
        (lambda: MahalanobisDetector().fit(x * np.nan, y), "layer_features must be finite"),
        (lambda: MahalanobisDetector().fit(y[:, None] * 0.1, y), "constant within every class"),
        (lambda: MahalanobisDetector().score(x), "fit first"),
        (lambda: detector.score([x, x[:, :3]]), r"fitted widths \[4, 4\]"),
        (lambda: detector.score(x), r"fitted widths \[4, 4\]"),
        (lambda: detector.add_class([x, x], label=1), "a new class id"),
        (lambda: detector.fit_ensemble(x, y > 0), "one column a layer"),
        (lambda: detector.fit_ensemble(x[:, :2], y), "0 and 1, both present"),
        (lambda: detector.fit_ensemble(x[:, :2], np.arange(120) < 4), "at least 5 of each side"),
    ):
        with pytest.raises(EtudeError, match=message):
            call()


def test_names_are_of_the_vocabulary() -> None:
    for method in (
        MahalanobisDetector,
        MahalanobisDetector.fit,
        MahalanobisDetector.score,
        MahalanobisDetector.layer_scores,
        MahalanobisDetector.score_with_perturbation,
        MahalanobisDetector.fit_ensemble,
    ):
        check_names(method)
