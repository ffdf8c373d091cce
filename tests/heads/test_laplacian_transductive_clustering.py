"""Transductive clustering of a few-shot task: descent of its energy, reductions, the release."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from etude.core import EtudeError, check_names
from etude.heads.laplacian_transductive_clustering import (
    TransductiveClusterer,
    _affinity,
    _modes,
    _spread,
    bound_update,
)


def task(
    seed: int, n_classes: int = 4, shots: int = 1, n_queries: int = 12, noise: float = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """support, support_labels, query, query labels of Gaussian classes in 8 dimensions."""
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(n_classes, 8))
    given, asked = np.repeat(np.arange(n_classes), shots), np.arange(n_classes * n_queries)
    asked = asked % n_classes
    return (
        means[given] + noise * generator.normal(size=(len(given), 8)), given,
        means[asked] + noise * generator.normal(size=(len(asked), 8)), asked,
    )  # fmt: skip


def random_problem(seed: int, n: int = 25, k: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(n, 6)) * (generator.random((n, 1)) < 0.7)
    unary = 3 * generator.random((n, k))
    return unary, generator.dirichlet(np.ones(k), n), root @ root.T


def energy(z: np.ndarray, unary: np.ndarray, W: np.ndarray, weight: float) -> float:
    """(1) by loops."""
    total = 0.0
    for p in range(len(z)):
        for k in range(z.shape[1]):
            total += z[p, k] * unary[p, k]
            if z[p, k] > 0:
                total += z[p, k] * np.log(z[p, k])
        for q in range(len(z)):
            total -= 0.5 * weight * W[p, q] * float(z[p] @ z[q])
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [0.1, 1.0, 5.0])
def test_parallel_updates_never_raise_the_energy(seed: int, weight: float) -> None:
    unary, start, W = random_problem(seed)
    start[:3] = np.eye(4)[:3]
    z, energies = bound_update(unary, start, W, laplacian_weight=weight, fixed=3)
    assert (np.diff(energies) <= 1e-9 * np.abs(energies[:-1])).all()
    assert energies[0] == pytest.approx(energy(start, unary, W, weight))
    assert energies[-1] == pytest.approx(energy(z, unary, W, weight))
    assert energies[-1] < energies[0]
    np.testing.assert_array_equal(z[:3], start[:3])
    np.testing.assert_allclose(z.sum(axis=1), 1.0)


def test_without_the_shift_two_points_may_swap_for_ever() -> None:
    """W with eigenvalues 1 and -1; a multiple of the identity makes it semi-definite."""
    unary, start = np.zeros((2, 2)), np.array([[0.9, 0.1], [0.1, 0.9]])
    W = np.array([[0.0, 1.0], [1.0, 0.0]])

    def labels(affinity: np.ndarray, n_steps: int) -> list[int]:
        z, _ = bound_update(
            unary, start, affinity, laplacian_weight=50.0, n_steps=n_steps, tolerance=0.0
        )
        return z.argmax(axis=1).tolist()

    assert [labels(W, n) for n in (1, 2, 3)] == [[1, 0], [0, 1], [1, 0]]
    shifted = W + 1.5 * np.eye(2)
    assert [labels(shifted, n) for n in (1, 2, 3)] == [[0, 1]] * 3


def test_affinity_is_symmetric_semidefinite_and_links_the_nearest() -> None:
    x = np.random.default_rng(1).normal(size=(30, 5))
    W = _affinity(x, 2)
    np.testing.assert_array_equal(W, W.T)
    assert np.linalg.eigvalsh(W)[0] > -1e-9
    distance = np.linalg.norm(x[:, None] - x, axis=2)
    for p in range(30):
        nearest = np.argsort(distance[p])[1:3]
        assert (W[p, nearest] == 1).all()
        for q in np.flatnonzero(W[p] == 1):
            assert q in nearest or p in np.argsort(distance[q])[1:3]
    assert _affinity(np.zeros((4, 2)), 9).shape == (4, 4)  # duplicates, fewer than neighbors


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_soft_rounds_never_raise_the_energy(seed: int, modes: bool) -> None:
    support, labels, query, _ = task(seed)
    fitted = TransductiveClusterer(hard=False, laplacian_weight=1.0, modes=modes).fit(
        support, labels, query
    )
    assert len(fitted.energies_) > 4
    assert (np.diff(fitted.energies_) <= 1e-9 * np.abs(fitted.energies_[:-1])).all()


def test_weight_0_is_k_means_from_the_support_means() -> None:
    support, labels, query, _ = task(3, shots=2)
    fitted = TransductiveClusterer(laplacian_weight=0.0, normalize=False).fit(
        support, labels, query
    )
    m = np.stack([support[labels == k].mean(axis=0) for k in range(4)])
    for _ in range(100):
        clusters = [int(np.argmin([((row - center) ** 2).sum() for center in m])) for row in query]
        m = np.stack(
            [
                np.concatenate([support[labels == k], query[np.array(clusters) == k]]).mean(axis=0)
                for k in range(4)
            ]
        )
    np.testing.assert_array_equal(fitted.assignments_.argmax(axis=1), clusters)
    np.testing.assert_allclose(fitted.prototypes_, m)
    assert set(np.unique(fitted.assignments_)) == {0.0, 1.0}


def mode(x: np.ndarray, start: np.ndarray, sigma2: float) -> np.ndarray:
    """Mean shift over the rows of x, by loops, until nothing moves."""
    m = start
    for _ in range(3000):
        g = [np.exp(-((row - m) ** 2).sum() / (2 * sigma2)) for row in x]
        last, m = m, sum(a * row for a, row in zip(g, x, strict=True)) / sum(g)
        if np.abs(m - last).max() < 1e-10:
            break
    return m


def test_weight_0_with_modes_is_k_modes_from_the_support_means() -> None:
    support, labels, query, _ = task(3, shots=2)
    fitted = TransductiveClusterer(laplacian_weight=0.0, modes=True, normalize=False).fit(
        support, labels, query
    )
    x = np.concatenate([support, query])
    squares = ((x[:, None] - x) ** 2).sum(axis=2)
    sigma2 = np.sort(squares, axis=1)[:, 1:3].mean()
    assert _spread(x, 2) == pytest.approx(sigma2)
    m = np.stack([support[labels == k].mean(axis=0) for k in range(4)])
    for _ in range(5):
        clusters = ((query[:, None] - m) ** 2).sum(axis=2).argmin(axis=1)
        every = np.concatenate([labels, clusters])
        m = np.stack([mode(x[every == k], m[k], sigma2) for k in range(4)])
    np.testing.assert_array_equal(fitted.assignments_.argmax(axis=1), clusters)
    np.testing.assert_allclose(fitted.prototypes_, m, atol=2e-3)
    means = np.stack([x[every == k].mean(axis=0) for k in range(4)])
    assert np.abs(m - means).max() > 0.05


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_two_rounds_by_hand(hard: bool, modes: bool) -> None:
    """(2) from the prototypes, then (3) or (4); hard rounds start (2) anew, soft ones go on."""
    support, labels, query, _ = task(8, shots=2)
    fitted = TransductiveClusterer(
        laplacian_weight=0.7, hard=hard, modes=modes, normalize=False, n_steps=2
    ).fit(support, labels, query)
    x, S = np.concatenate([support, query]), len(support)
    W, sigma2, given = _affinity(x, 2), _spread(x, 2), np.eye(4)[labels]
    m, z = np.stack([support[labels == k].mean(axis=0) for k in range(4)]), None
    for _ in range(2):
        squares = ((x[:, None] - m) ** 2).sum(axis=2)
        unary = -np.exp(-squares / (2 * sigma2)) if modes else squares
        if hard or z is None:
            z = np.vstack([given, softmax(-unary[S:], axis=1)])
        z, _ = bound_update(unary, z, W, laplacian_weight=0.7, fixed=S)
        weights = np.eye(4)[z.argmax(axis=1)] if hard else z
        if modes:
            m = _modes(x, weights, m, sigma2)
        else:
            m = weights.T @ x / weights.sum(axis=0)[:, None]
    np.testing.assert_allclose(fitted.assignments_, z[S:], atol=1e-12)
    np.testing.assert_allclose(fitted.prototypes_, m, atol=1e-12)


def test_a_prototype_out_of_reach_of_its_cluster_stays() -> None:
    x, far = np.eye(4), np.array([[1e3, 0, 0, 0], [0, 0, 0, 1.0]])
    found = _modes(x, np.repeat(np.eye(2), 2, axis=0), far, 1e-3)
    np.testing.assert_allclose(found, far, atol=1e-9)


def test_no_steps_is_the_nearest_support_mean() -> None:
    support, labels, query, _ = task(4, shots=3)
    found = TransductiveClusterer(n_steps=0, normalize=False).predict(support, labels, query)
    m = np.stack([support[labels == k].mean(axis=0) for k in range(4)])
    nearest = np.linalg.norm(query[:, None] - m, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(found, nearest)


def test_normalization_takes_scale_base_mean_and_a_shift_of_the_queries_away() -> None:
    support, labels, query, _ = task(5, shots=2)
    base = np.full(8, 0.3)
    plain = TransductiveClusterer(base_mean=base).fit(support, labels, query)
    moved = TransductiveClusterer(base_mean=base + 5).fit(
        7 * (support - base) + base + 5, labels, 2 * (query - base) + base + 5
    )
    np.testing.assert_allclose(plain.assignments_, moved.assignments_, atol=1e-8)
    unit = (query - base) / np.linalg.norm(query - base, axis=1, keepdims=True)
    given = (support - base) / np.linalg.norm(support - base, axis=1, keepdims=True)
    aligned = unit + given.mean(axis=0) - unit.mean(axis=0)
    same = TransductiveClusterer(normalize=False).fit(given, labels, aligned)
    np.testing.assert_allclose(plain.assignments_, same.assignments_, atol=1e-8)


def test_clustering_beats_the_nearest_mean_and_neighbors_help() -> None:
    """One shot of overlapping Gaussians, 40 tasks."""
    right: dict[str, list[float]] = {"nearest": [], "k_means": [], "graph": []}
    for seed in range(40):
        support, labels, query, y = task(seed, n_queries=20)
        for name, arm in (
            ("nearest", TransductiveClusterer(n_steps=0)),
            ("k_means", TransductiveClusterer(laplacian_weight=0.0)),
            ("graph", TransductiveClusterer(laplacian_weight=0.3)),
        ):
            right[name].append(float((arm.predict(support, labels, query) == y).mean()))
    mean = {name: np.mean(values) for name, values in right.items()}
    assert mean["k_means"] > mean["nearest"] + 0.03
    assert mean["graph"] > mean["nearest"] + 0.03


def test_labels_of_any_kind_in_any_order_and_one_class() -> None:
    support, labels, query, _ = task(6, shots=2)
    names = np.array(["d", "b", "c", "a"])
    order = np.random.default_rng(0).permutation(len(support))
    found = TransductiveClusterer().predict(support, labels, query)
    other = TransductiveClusterer().predict(support[order], names[labels][order], query)
    np.testing.assert_array_equal(names[found], other)
    one = TransductiveClusterer().predict(support, np.full(8, 9), query)
    assert set(one.tolist()) == {9}


def test_release() -> None:
    """The release's bound_update (c2071eb, src/bound_update.py), float64, no point fixed.

    Twelve points of numpy seed 3, the first three as prototypes, its directed 2-neighbor graph,
    weight 0.7. After 1 and after 5 updates all entries were equal; three rows here.
    """
    x = np.random.default_rng(3).normal(size=(12, 4))
    unary = ((x[:, None] - x[:3]) ** 2).sum(axis=2)
    near = np.argsort(((x[:, None] - x) ** 2).sum(axis=2), axis=1)[:, 1:3]
    W = np.zeros((12, 12))
    W[np.arange(12)[:, None], near] = 1
    start = np.exp(-unary) / np.exp(-unary).sum(axis=1, keepdims=True)
    z, _ = bound_update(unary, start, W, laplacian_weight=0.7, n_steps=5, tolerance=0.0)
    released = [
        [8.359982038777e-01, 1.626832664532e-01, 1.318529669189e-03],
        [2.374704041356e-08, 9.851952229275e-01, 1.480475332543e-02],
        [5.360770440284e-01, 3.623274957197e-01, 1.015954602519e-01],
    ]
    np.testing.assert_allclose(z[[4, 7, 11]], released, atol=1e-12)


def test_release_of_the_modes() -> None:
    """The release's MS (c2071eb, src/SLK.py), sigma 1.1, from the means of two clusters.

    Twelve points of numpy seed 3, the first five and the others; both stop at moves below a share
    of 1e-5 (there of one prototype, here of the largest) and agree within 1e-5.
    """
    x = np.random.default_rng(3).normal(size=(12, 4))
    weights = np.eye(2)[[0] * 5 + [1] * 7]
    m = _modes(x, weights, np.stack([x[:5].mean(axis=0), x[5:].mean(axis=0)]), 1.1**2)
    released = [
        [-0.322979152279, -0.448777618640, -1.405103219466, -0.311758591160],
        [0.155859117889, 0.878687999926, 0.143557955371, -0.260558690479],
    ]
    np.testing.assert_allclose(m, released, atol=2e-5)


def test_refusals() -> None:
    check_names(TransductiveClusterer)
    check_names(TransductiveClusterer.fit)
    support, labels, query, _ = task(7)
    with pytest.raises(EtudeError, match="laplacian_weight must be at least 0"):
        TransductiveClusterer(laplacian_weight=-1.0)
    with pytest.raises(EtudeError, match="n_neighbors must be at least 1"):
        TransductiveClusterer(n_neighbors=0)
    with pytest.raises(EtudeError, match="query must be of the support's width 8"):
        TransductiveClusterer().fit(support, labels, query[:, :5])
    with pytest.raises(EtudeError, match="support must be finite"):
        TransductiveClusterer().fit(np.full_like(support, np.nan), labels, query)
    with pytest.raises(EtudeError, match=r"support_labels must be \(S,\)"):
        TransductiveClusterer().fit(support, labels[:2], query)
    with pytest.raises(EtudeError, match="base_mean must be of width 8"):
        TransductiveClusterer(base_mean=np.zeros(3)).fit(support, labels, query)
    with pytest.raises(EtudeError, match="affinity must be"):
        bound_update(np.ones((3, 2)), np.ones((3, 2)) / 2, np.eye(2), laplacian_weight=1.0)
