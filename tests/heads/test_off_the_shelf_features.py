"""Off-the-shelf features: the linear SVM, its votes and views, whitening, and retrieval."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.multiclass import OneVsOneClassifier
from sklearn.svm import LinearSVC

from etude.core import EtudeError, check_names, get_state, set_state
from etude.heads.off_the_shelf_features import (
    OffTheShelfRetriever,
    OffTheShelfSVM,
    pca_whiten,
    signed_sqrt,
)


def classes(seed: int, n: int = 120, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return generator.normal(size=(n_classes, 6))[y] + 0.9 * generator.normal(size=(n, 6)), y


def prepared(x: np.ndarray) -> np.ndarray:
    return np.hstack([x / np.linalg.norm(x, axis=1, keepdims=True), np.ones((len(x), 1))])


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_each_pair_s_weights_are_liblinear_s(C: float) -> None:
    """scikit-learn's LinearSVC with the plain hinge loss on the same rows."""
    x, y = classes(0)
    svm = OffTheShelfSVM(C=C).fit(x, y)
    for row, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
        kept = (y == a) | (y == b)
        reference = LinearSVC(C=C, loss="hinge", fit_intercept=False, tol=1e-9, max_iter=10**6)
        reference.fit(prepared(x[kept]), y[kept] == a)
        np.testing.assert_allclose(svm.weight_[row], reference.coef_[0], atol=2e-4)


def test_one_against_the_rest_is_liblinear_s() -> None:
    x, y = classes(1)
    svm = OffTheShelfSVM(C=2.0, multi="ovr").fit(x, y)
    reference = LinearSVC(C=2.0, loss="hinge", fit_intercept=False, tol=1e-9, max_iter=10**6)
    reference.fit(prepared(x), y)
    np.testing.assert_allclose(svm.weight_, reference.coef_, atol=2e-4)
    np.testing.assert_allclose(svm.logits(x), prepared(x) @ reference.coef_.T, atol=1e-3)


def test_votes_are_scikit_learn_s() -> None:
    x, y = classes(2, n=200, n_classes=5)
    svm = OffTheShelfSVM(C=1.0).fit(x[:100], y[:100])
    reference = OneVsOneClassifier(
        LinearSVC(C=1.0, loss="hinge", fit_intercept=False, tol=1e-9, max_iter=10**6)
    ).fit(prepared(x[:100]), y[:100])
    np.testing.assert_array_equal(svm.predict(x[100:]), reference.predict(prepared(x[100:])))
    # Votes outweigh responses: rounding gives whole votes, K (K - 1) / 2 in all.
    votes = np.round(svm.logits(x[100:]) + 2)
    assert (votes.sum(axis=1) == 10).all()
    assert set(np.unique(votes)) <= {0, 1, 2, 3, 4}


def test_the_dual_has_no_gap() -> None:
    """At the minimum of (1), w = sum a y x with a from the margins: the objective is stationary."""
    x, y = classes(3, n_classes=2)
    C, svm = 0.7, OffTheShelfSVM(C=0.7).fit(x, y)
    z, s, w = prepared(x), np.where(y == 0, 1.0, -1.0), svm.weight_[0]

    def objective(v: np.ndarray) -> float:
        return 0.5 * v @ v + C * np.maximum(0, 1 - s * (z @ v)).sum()

    generator = np.random.default_rng(0)
    for _ in range(200):
        step = generator.normal(size=7)
        assert objective(w + 1e-2 * step / np.linalg.norm(step)) > objective(w)


def test_scale_of_a_row_changes_nothing() -> None:
    x, y = classes(4)
    svm = OffTheShelfSVM().fit(x, y)
    scales = np.random.default_rng(1).uniform(0.01, 100, size=(len(x), 1))
    np.testing.assert_allclose(svm.logits(scales * x), svm.logits(x), atol=1e-9)
    np.testing.assert_allclose(OffTheShelfSVM().fit(scales * x, y).weight_, svm.weight_, atol=1e-6)


def test_views_are_samples_in_training_and_a_sum_in_the_test() -> None:
    x, y = classes(5)
    views = np.stack([x, x + 0.1, x[:, ::-1]], axis=1)
    svm = OffTheShelfSVM(multi="ovr").fit(views, y)
    flat = OffTheShelfSVM(multi="ovr").fit(
        np.concatenate([*views.transpose(1, 0, 2)]), np.tile(y, 3)
    )
    np.testing.assert_allclose(svm.weight_, flat.weight_, atol=1e-3)
    summed = sum(flat.logits(views[:, v]) for v in range(3))
    np.testing.assert_allclose(svm.logits(views), summed, atol=1e-2)
    same = np.repeat(x[:, None], 4, axis=1)
    np.testing.assert_allclose(svm.logits(same), 4 * svm.logits(x))
    pairs = OffTheShelfSVM().fit(views, y)
    np.testing.assert_array_equal(pairs.predict(same), pairs.predict(x))


def test_signed_sqrt_is_odd_and_increasing() -> None:
    x = np.linspace(-3, 3, 61)
    y = signed_sqrt(x)
    np.testing.assert_allclose(y, -y[::-1], atol=1e-15)
    assert (np.diff(y) > 0).all()
    np.testing.assert_allclose(y * np.abs(y), x, atol=1e-12)
    np.testing.assert_array_equal(signed_sqrt(x, power=1.0), x)


def test_power_acts_after_the_unit_length() -> None:
    x, y = classes(6)
    svm = OffTheShelfSVM(power=0.5, multi="ovr", intercept=0.0).fit(x, y)
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    z = np.sign(z) * np.sqrt(np.abs(z))
    np.testing.assert_allclose(svm.logits(x), z @ svm.weight_[:, :-1].T, atol=1e-12)
    np.testing.assert_array_equal(svm.weight_[:, -1], 0.0)


def test_whitened_vectors_have_the_identity_as_covariance() -> None:
    generator = np.random.default_rng(7)
    x = generator.normal(size=(300, 8)) @ generator.normal(size=(8, 8)) + 5
    mean, onto = pca_whiten(x, 5, eps=0.0)
    z = (x - mean) @ onto
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-10)
    np.testing.assert_allclose(z.T @ z / 300, np.eye(5), atol=1e-10)
    mean, onto = pca_whiten(x, 5, eps=0.1)  # each variance stands above a tenth of the largest
    z, variance = (x - mean) @ onto, np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    expected = np.diag(variance[:5] / (variance[:5] + 0.1 * variance[0]))
    np.testing.assert_allclose(z.T @ z / 300, expected, atol=1e-10)
    flat = np.hstack([x, x[:, :1]])  # a direction without variance is not blown up
    mean, onto = pca_whiten(flat, 9)
    assert np.abs((flat - mean) @ onto).max() < 1e2


def test_retrieval_distance_by_loops() -> None:
    generator = np.random.default_rng(8)
    documents = [generator.normal(size=(n, 6)) for n in (1, 4, 2, 5)]
    queries = [generator.normal(size=(n, 6)) for n in (3, 1)]
    retriever = OffTheShelfRetriever(n_components=4).fit(documents)

    def described(patch: np.ndarray) -> np.ndarray:
        z = (patch / np.linalg.norm(patch) - retriever.mean_) @ retriever.map_
        z = z / np.linalg.norm(z)
        return np.sign(z) * np.sqrt(np.abs(z))

    found = retriever.distances(queries)
    for b, query in enumerate(queries):
        for n, document in enumerate(documents):
            nearest = [
                min(np.linalg.norm(described(u) - described(v)) for v in document) for u in query
            ]
            assert found[b, n] == pytest.approx(np.mean(nearest), abs=1e-7)
    np.testing.assert_array_equal(retriever.rank(queries), found.argsort(axis=1))
    assert (retriever.rank(documents)[:, 0] == np.arange(4)).all()


def test_one_patch_gives_the_plain_distance_and_sets_are_not_symmetric() -> None:
    generator = np.random.default_rng(9)
    vectors = generator.normal(size=(12, 5))
    retriever = OffTheShelfRetriever(n_components=3).fit(vectors)
    z = retriever.patches_
    plain = np.linalg.norm(z[:, None] - z, axis=2)
    np.testing.assert_allclose(retriever.distances(vectors), plain, atol=1e-7)
    sets = [vectors[:3], vectors[3:]]
    across = OffTheShelfRetriever(n_components=3).fit(sets).distances(sets)
    assert abs(across[0, 1] - across[1, 0]) > 1e-3


def test_unseen_ids_one_class_and_round_trip() -> None:
    x, y = classes(10)
    gapped = np.array([0, 2, 5])[y]
    svm = OffTheShelfSVM().fit(x, gapped)
    assert svm.logits(x).shape == (120, 6)
    assert set(svm.predict(x).tolist()) == {0, 2, 5}
    again = OffTheShelfSVM()
    set_state(again, get_state(svm))
    np.testing.assert_array_equal(again.logits(x), svm.logits(x))
    assert set(OffTheShelfSVM().fit(x, np.zeros(120, dtype=int)).predict(x).tolist()) == {0}


def test_refusals() -> None:
    for call in (OffTheShelfSVM, OffTheShelfSVM.fit, OffTheShelfRetriever.fit):
        check_names(call)
    x, y = classes(11)
    with pytest.raises(EtudeError, match="C must be positive"):
        OffTheShelfSVM(C=0.0)
    with pytest.raises(EtudeError, match="multi must be ovo or ovr"):
        OffTheShelfSVM(multi="all")
    with pytest.raises(EtudeError, match="call fit first"):
        OffTheShelfSVM().logits(x)
    with pytest.raises(EtudeError, match="target must be class ids"):
        OffTheShelfSVM().fit(x, y.astype(float))
    with pytest.raises(EtudeError, match="features must be of width 6"):
        OffTheShelfSVM().fit(x, y).logits(x[:, :4])
    with pytest.raises(EtudeError, match="features must be finite"):
        OffTheShelfSVM().fit(np.full_like(x, np.inf), y)
    with pytest.raises(EtudeError, match="n_components must be from 1 to 6"):
        pca_whiten(x, 7)
    with pytest.raises(EtudeError, match="power must be in"):
        signed_sqrt(x, power=0.0)
    with pytest.raises(EtudeError, match="of one width"):
        OffTheShelfRetriever().fit([x[:2], x[:3, :4]])
