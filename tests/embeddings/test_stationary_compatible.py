"""The d-simplex, HOC and the compatibility matrix against loops, theorems and the released code.

Released code: miccunifi/iamcl2r at 18495ac, `dsimplex(5)` of models/__init__.py (first and last
row; float32), `HocLoss(10)` of methods/hoc.py, and compatibility_metrics.py. Inputs: numpy
default_rng(0), normal(size=(6, 4)) old features, (6, 4) new ones, rows normalized, labels
0 0 1 2 2 1 (and all 0); then the lower triangle of uniform(0.2, 0.9, size=(5, 5)). Ours were
equal to 1e-7 (simplex) and 1e-15 (HOC with the release's mask, the average compatibility).
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.embeddings import (
    DSimplexClassifier,
    HOCLoss,
    average_compatibility,
    compatibility_matrix,
)
from etude.embeddings.stationary_compatible import _simplex

RELEASED_FIRST = [0.9635255336761475, *[-0.15450850129127502] * 3]
RELEASED_LAST = [-0.5] * 4
RELEASED_HOC, RELEASED_ONE_CLASS = 9.550514633563655, 4.291247112135244
RELEASED_AC = 0.6
LABELS = torch.tensor([0, 0, 1, 2, 2, 1])


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    old, new = (torch.tensor(rng.normal(size=(6, 4))) for _ in range(2))
    return old, new, np.tril(rng.uniform(0.2, 0.9, size=(5, 5)))


@pytest.mark.parametrize("dim", [1, 2, 5, 31, 300])
def test_theorem_a_regular_simplex(dim):
    w = _simplex(dim)
    want = torch.full((dim + 1, dim + 1), -1 / dim, dtype=torch.float64)
    want.fill_diagonal_(1.0)
    torch.testing.assert_close(w @ w.T, want, rtol=0, atol=1e-13)
    assert w.sum(0).abs().max() < 1e-13
    torch.testing.assert_close(DSimplexClassifier(dim).prototypes, w.float())


def test_same_simplex_as_the_released_code():
    ours = DSimplexClassifier(4).prototypes
    np.testing.assert_allclose(ours[0], RELEASED_FIRST, atol=2e-7)
    np.testing.assert_allclose(ours[4], RELEASED_LAST, atol=2e-7)


def test_theorem_stationary_it_has_no_weights_and_training_moves_nothing():
    head, other = DSimplexClassifier(4), DSimplexClassifier(4)
    assert list(head.parameters()) == []
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), head)
    before = head.prototypes.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert torch.equal(head.prototypes, before)
    assert torch.equal(head.prototypes, other.prototypes)
    assert head.prototypes.grad is None


def test_theorem_a_feature_on_its_ray_is_drawn_along_the_ray_only():
    # at z = s w_y the gradient of cross-entropy is -c w_y with c > 0: the direction is stationary
    head = DSimplexClassifier(5).double()
    w = _simplex(5)
    head.prototypes = w
    z = (3.0 * w).requires_grad_()
    F.cross_entropy(head(z), torch.arange(6), reduction="sum").backward()
    along = (z.grad * w).sum(1, keepdim=True)
    assert (along < -0.01).all()
    torch.testing.assert_close(z.grad, along * w, rtol=0, atol=1e-14)


def test_logits_are_inner_products_of_features_as_they_are():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    head = DSimplexClassifier(4)
    want = [[float(z[i] @ head.prototypes[k]) for k in range(5)] for i in range(3)]
    np.testing.assert_allclose(head(z), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head(7 * z), 7 * head(z))
    assert head(z).sum(1).abs().max() < 1e-5


def slow_hoc(old, new, labels, scale):
    old, new = (F.normalize(one, dim=1).numpy() for one in (old, new))
    losses = []
    for i in range(len(old)):
        away = [math.exp(scale * (old[i] @ new[j])) for j in range(6) if labels[j] != labels[i]]
        losses.append(-scale * (old[i] @ new[i]) + math.log(sum(away)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_hoc_by_loops(drawn, scale):
    old, new, _ = drawn
    ours = HOCLoss(scale=scale)(5 * new, 0.1 * old, LABELS)
    assert float(ours) == pytest.approx(slow_hoc(old, new, LABELS, scale), rel=1e-12)


def test_same_hoc_as_the_released_code(drawn):
    old, new, _ = drawn
    loss = HOCLoss(zero_mask=True)
    assert float(loss(new, old, LABELS)) == pytest.approx(RELEASED_HOC, rel=1e-12)
    one_class = loss(new, old, torch.zeros(6, dtype=torch.int64))
    assert float(one_class) == pytest.approx(RELEASED_ONE_CLASS, rel=1e-12)
    cosines = F.cosine_similarity(old, new)
    assert float(one_class) == pytest.approx(float(-10 * cosines.mean()) + math.log(6))


@pytest.mark.parametrize("zero_mask", [False, True])
def test_gradients_of_hoc_reach_the_new_features_only(drawn, zero_mask):
    old, new = (one.clone().requires_grad_() for one in drawn[:2])
    loss = HOCLoss(scale=3.0, zero_mask=zero_mask)
    assert torch.autograd.gradcheck(lambda z: loss(z, old, LABELS), new)
    loss(new, old, LABELS).backward()
    assert old.grad is None


def test_hoc_with_large_scales_is_finite(drawn):
    old, new, _ = drawn
    assert torch.isfinite(HOCLoss(scale=1e4)(new.float(), old.float(), LABELS))


def slow_matrix(queries, galleries, asked, there):
    found = np.full((len(queries), len(queries)), np.nan)
    for i in range(len(queries)):
        for j in range(i + 1):
            hits = 0
            for q, label in zip(queries[i], asked, strict=True):
                alike = [q @ g / math.sqrt(q @ q) / math.sqrt(g @ g) for g in galleries[j]]
                hits += there[int(np.argmax(alike))] == label
            found[i, j] = hits / len(asked)
    return found


@pytest.mark.parametrize("most", [512, 3])  # queries at once
def test_matrix_by_loops(monkeypatch, most):
    monkeypatch.setattr("etude.embeddings.stationary_compatible.MOST_QUERIES", most)
    rng = np.random.default_rng(1)
    queries, galleries = rng.normal(size=(3, 7, 2)), rng.normal(size=(3, 9, 2))
    asked, there = rng.integers(0, 3, 7), rng.integers(0, 3, 9)
    ours = compatibility_matrix(list(queries), list(galleries), asked, there)
    np.testing.assert_allclose(ours, slow_matrix(queries, galleries, asked, there))


def test_a_model_that_turned_keeps_its_own_search_and_loses_the_other():
    rng = np.random.default_rng(2)
    asked, there = np.arange(40) % 8, np.arange(80) % 8
    centers = np.eye(8)
    queries = centers[asked] + 0.1 * rng.normal(size=(40, 8))
    gallery = centers[there] + 0.1 * rng.normal(size=(80, 8))
    turn = np.roll(np.eye(8), 3, axis=1)
    m = compatibility_matrix([queries, queries @ turn], [gallery, gallery @ turn], asked, there)
    assert m[0, 0] == m[1, 1] == 1.0
    assert m[1, 0] == 0.0
    assert average_compatibility(m) == 0.0


def test_average_compatibility_of_the_released_code(drawn):
    matrix = drawn[2]
    assert average_compatibility(matrix) == pytest.approx(RELEASED_AC)


def test_average_compatibility_is_strict():
    same = np.full((4, 4), 0.7)
    assert average_compatibility(same) == 0.0
    better = same + 0.01 * np.arange(4)[:, None]
    assert average_compatibility(better) == 1.0


def test_refusals(drawn):
    old, new, _ = drawn
    with pytest.raises(EtudeError, match="dim must be at least 1"):
        DSimplexClassifier(0)
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, 4\)"):
        DSimplexClassifier(4)(torch.zeros(2, 5))
    with pytest.raises(EtudeError, match="scale must be above 0"):
        HOCLoss(scale=0.0)
    with pytest.raises(EtudeError, match="labels must be of at least two classes"):
        HOCLoss()(new, old, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(EtudeError, match=r"old_embeddings must be \(6, 4\)"):
        HOCLoss()(new, old[:, :3], LABELS)
    with pytest.raises(EtudeError, match=r"labels must be \(B,\)"):
        HOCLoss()(new, old, LABELS[:5])
    one = np.zeros((2, 3))
    with pytest.raises(EtudeError, match="galleries must be 1 arrays"):
        compatibility_matrix([one], [], np.zeros(2), np.zeros(2))
    with pytest.raises(EtudeError, match=r"galleries must be all \(2, 3\)"):
        compatibility_matrix([one], [np.zeros((2, 4))], np.zeros(2), np.zeros(2))
    with pytest.raises(EtudeError, match=r"matrix must be \(T, T\) with T at least 2"):
        average_compatibility(np.ones((1, 1)))
    with pytest.raises(EtudeError, match="matrix must be free of NaN"):
        average_compatibility(np.full((2, 2), np.nan))
