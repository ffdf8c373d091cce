"""Checks of theory.rankme.

Oracle: the singular values as square roots of the eigenvalues of the Gram matrix, and the
entropy by a loop (the effective rank of Roy and Vetterli). There is no official code.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.core import EtudeError, check_names, get_state, set_state
from etude.theory import RankMeSelector, effective_rank_curve, rankme


def embeddings(n: int = 60, dim: int = 8, decay: float = 0.7, seed: int = 0) -> np.ndarray:
    """Rows with directions of falling strength, and a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) + 0.5) * decay ** np.arange(dim)


def loop_rank(Z: np.ndarray, eps: float) -> float:
    """Equations (1) and (2) by loops, without a singular value decomposition."""
    sigma = [math.sqrt(max(v, 0.0)) for v in np.linalg.eigvalsh(Z.T @ Z)]
    entropy = 0.0
    for s in sigma:
        p = s / sum(sigma) + eps
        entropy -= p * math.log(p)
    return math.exp(entropy)


@pytest.mark.parametrize("eps", [1e-7, 1e-2])
@pytest.mark.parametrize("decay", [1.0, 0.7, 0.3])
def test_is_the_exponential_of_the_entropy(decay: float, eps: float) -> None:
    Z = embeddings(decay=decay)
    assert rankme(Z, eps=eps) == pytest.approx(loop_rank(Z, eps), rel=1e-9)


def test_known_ranks() -> None:
    orthonormal = np.linalg.qr(embeddings())[0]
    assert rankme(orthonormal) == pytest.approx(8, abs=1e-4)
    assert rankme(orthonormal, eps=0.0) == pytest.approx(8, abs=1e-9)
    one = np.outer(np.arange(1, 21), np.ones(5))
    assert rankme(one, eps=0.0) == pytest.approx(1, abs=1e-9)
    assert rankme(one) == pytest.approx(1, abs=1e-4)
    # two directions of strengths 3 and 1: entropy of (3/4, 1/4), not of the squares (9/10, 1/10)
    two = np.diag([3.0, 1.0])
    want = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert rankme(two, eps=0.0) == pytest.approx(want, rel=1e-12)


def test_is_not_centered() -> None:
    Z = embeddings(decay=1.0)
    assert rankme(Z + 100) < 1.5 < 7 < rankme(Z - Z.mean(axis=0))


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_invariants(seed: int, n: int, dim: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, dim)) + 0.1
    value = rankme(Z)
    assert 1 - 1e-5 <= value <= min(n, dim) * (1 + 1e-5)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    assert rankme(Z @ rotation * factor) == pytest.approx(value, rel=1e-7)
    assert rankme(Z[rng.permutation(n)]) == pytest.approx(value, rel=1e-9)
    assert rankme(np.vstack([Z, Z])) == pytest.approx(value, rel=1e-4)


def test_limits_and_tensors() -> None:
    Z = embeddings()
    want = rankme(Z)
    assert rankme(Z * 1e200) == pytest.approx(want)
    assert rankme(Z * 1e-200) == pytest.approx(want)
    tensor = torch.from_numpy(Z).float().requires_grad_()
    assert rankme(tensor) == pytest.approx(want, rel=1e-5)
    assert rankme([[2.0]], eps=0.0) == 1.0


def test_curve_is_of_nested_parts_and_ends_with_all() -> None:
    Z = embeddings(200)
    sizes, ranks = effective_rank_curve(Z)
    assert sizes.tolist() == [12, 25, 50, 100, 200]
    assert ranks[-1] == pytest.approx(rankme(Z))
    assert abs(ranks[-2] / ranks[-1] - 1) < 0.1
    order = np.random.default_rng(3).permutation(200)
    sizes, ranks = effective_rank_curve(Z, (50, 20), seed=3)
    assert sizes.tolist() == [20, 50]
    want = [rankme(Z[order[:20]]), rankme(Z[order[:50]])]
    np.testing.assert_allclose(ranks, want, rtol=1e-12)
    assert effective_rank_curve(Z[:3])[0].tolist() == [3]


def test_selector_takes_the_highest_rank() -> None:
    runs = [embeddings(decay=decay) for decay in (0.3, 0.9, 0.6)]
    selector = RankMeSelector().fit(runs)
    assert selector.selected_ == 1
    np.testing.assert_allclose(selector.rankmes_, [rankme(run) for run in runs])


def test_equals_are_decided_by_the_value() -> None:
    runs = [embeddings(decay=0.3), embeddings(decay=0.9), embeddings(decay=0.9) * 2]
    runs.append(embeddings(decay=0.88))
    values = (0.0, 3.0, 1.0, 0.5)
    assert RankMeSelector(tolerance=1e-6).fit(runs, values).selected_ == 2
    assert RankMeSelector(tolerance=1e-6, prefer="largest").fit(runs, values).selected_ == 1
    assert RankMeSelector(tolerance=0.1).fit(runs, values).selected_ == 3
    assert RankMeSelector(tolerance=0.1).fit(runs).selected_ == 1


def test_only_max_samples_rows_count() -> None:
    Z = embeddings(100)
    selector = RankMeSelector(max_samples=40, seed=5).fit([Z, Z[:40]])
    rows = np.random.default_rng(5).permutation(100)[:40]
    np.testing.assert_allclose(selector.rankmes_, [rankme(Z[rows]), rankme(Z[:40])])


def test_state_round_trips() -> None:
    first = RankMeSelector().fit([embeddings(decay=0.3), embeddings()])
    second = RankMeSelector()
    set_state(second, get_state(first))
    assert second.selected_ == first.selected_ == 1
    np.testing.assert_array_equal(second.rankmes_, first.rankmes_)


def test_refusals() -> None:
    Z = embeddings()
    for call, message in (
        (lambda: rankme(Z[0]), r"embeddings must be \(N, D\)"),
        (lambda: rankme(Z * np.nan), "embeddings must be finite"),
        (lambda: rankme(Z * 0), "not all zero"),
        (lambda: rankme(Z, eps=-1.0), "eps must be at least 0"),
        (lambda: effective_rank_curve(Z, (0, 5)), r"sizes must be in 1\.\.60"),
        (lambda: effective_rank_curve(Z, (61,)), r"sizes must be in 1\.\.60"),
        (lambda: effective_rank_curve(Z, ()), r"sizes must be in 1\.\.60"),
        (lambda: RankMeSelector(prefer="any"), "prefer must be"),
        (lambda: RankMeSelector(tolerance=1.0), "tolerance must be"),
        (lambda: RankMeSelector(max_samples=0), "max_samples must be"),
        (lambda: RankMeSelector().fit([]), r"one \(N, D\) array a run"),
        (lambda: RankMeSelector().fit([Z, Z[:, :4]]), "equally wide"),
        (lambda: RankMeSelector().fit([Z, Z[:7]]), "at least D = 8 rows"),
        (lambda: RankMeSelector(max_samples=7).fit([Z]), "at least D = 8 rows"),
        (lambda: RankMeSelector().fit([Z, Z], (1.0,)), "one number a run"),
    ):
        with pytest.raises(EtudeError, match=message):
            call()


def test_names_are_of_the_vocabulary() -> None:
    for method in (rankme, effective_rank_curve, RankMeSelector, RankMeSelector.fit):
        check_names(method)
