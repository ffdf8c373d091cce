"""Fréchet cumulative covariance against the triple loop, and its invariances."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from etude.core import EtudeError
from etude.losses import FCCovLoss, FCCovNet, fccov, metric_responses, response_distances

KINDS = ("euclidean", "sphere", "wasserstein", "spd")


def sample(n=14, d=2, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    f = torch.from_numpy(rng.normal(size=(n, d)))
    y = rng.integers(0, 4, n).astype(float) if ties else rng.normal(size=n)
    return f, torch.from_numpy(response_distances(y, "euclidean"))


def by_loops(f, distances):
    n, d = f.shape
    mean = f.mean(0)
    m = torch.zeros(d, d, dtype=torch.float64)
    for k in range(n):
        for j in range(n):
            c = torch.zeros(d, dtype=torch.float64)
            for i in range(n):
                if distances[i, k] < distances[j, k]:
                    c += (f[i] - mean) / n
            m += torch.outer(c, c) / n**2
    return m


@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_triple_loop(ties):
    f, distances = sample(ties=ties)
    torch.testing.assert_close(fccov(f, distances), by_loops(f, distances), rtol=1e-12, atol=1e-15)


def test_the_column_is_the_center():
    """Not symmetric on purpose: a transposed read gives another number."""
    f, _ = sample()
    skew = torch.rand(14, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(fccov(f, skew), by_loops(f, skew), rtol=1e-12, atol=1e-15)
    assert (fccov(f, skew) - fccov(f, skew.T)).abs().max() > 1e-4


def test_invariances():
    f, distances = sample()
    m = fccov(f, distances)
    assert torch.equal(fccov(f, distances.square() + distances), m)
    torch.testing.assert_close(fccov(f + 7, distances), m)
    mix = torch.tensor([[1.0, 2.0], [-0.5, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(fccov(f @ mix, distances), mix.T @ m @ mix)
    assert (torch.linalg.eigvalsh(m) > -1e-15).all()
    order = torch.randperm(14, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fccov(f[order], distances[order][:, order]), m)


def test_constant_responses_and_one_far_outlier():
    f, distances = sample()
    assert fccov(f, torch.zeros_like(distances)).abs().max() == 0
    y = np.random.default_rng(0).normal(size=14)
    y[3] = 10
    near = fccov(f, torch.from_numpy(response_distances(y, "euclidean")))
    y[3] = 1e9
    torch.testing.assert_close(
        fccov(f, torch.from_numpy(response_distances(y, "euclidean"))), near, rtol=0.1, atol=0.0
    )


def test_dependence_is_told_from_independence():
    rng = np.random.default_rng(1)
    y = rng.normal(size=200)
    distances = torch.from_numpy(response_distances(y, "euclidean"))
    own = torch.from_numpy(y[:, None])
    other = torch.from_numpy(rng.permutation(y)[:, None])
    assert fccov(own, distances).item() > 10 * fccov(other, distances).item()


def test_loss_in_words_and_gradcheck():
    f, distances = sample(ties=True)
    gap = torch.cov(f.T, correction=0) - torch.eye(2, dtype=torch.float64)
    expected = -by_loops(f, distances).trace() + 0.7 * gap.square().sum()
    loss = FCCovLoss(penalty=0.7)
    torch.testing.assert_close(loss(f, distances), expected)
    assert torch.autograd.gradcheck(lambda e: loss(e, distances), (f.requires_grad_(True),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_large_inputs_stay_finite(dtype):
    f, distances = sample()
    low = (100 * f).to(dtype).requires_grad_(True)
    m = fccov(low, 1e6 * distances.float())
    m.trace().backward()
    assert m.dtype == torch.float32
    assert torch.isfinite(low.grad).all()
    torch.testing.assert_close(m.double(), 1e4 * fccov(f, distances), rtol=0.1, atol=1.0)
    huge = FCCovLoss()(1e4 * f, distances)
    assert torch.isfinite(huge)


@pytest.mark.parametrize("metric", KINDS)
def test_distances_are_metrics_and_responses_follow_the_index(metric):
    rng = np.random.default_rng(0)
    index = np.linspace(-2, 2, 40)
    y = metric_responses(index, metric, rng)
    d = response_distances(y, metric)
    assert d.shape == (40, 40)
    np.testing.assert_allclose(d, d.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(d), 0, atol=1e-7)
    for a, b, c in rng.integers(0, 40, (200, 3)):
        assert d[a, c] <= d[a, b] + d[b, c] + 1e-9
    assert d[0, 39] > d[0, 10]


def test_known_distances():
    turn = np.array([[1.0, 0, 0], [0, 1.0, 0], [-1.0, 0, 0]])
    np.testing.assert_allclose(response_distances(turn, "sphere")[0], [0, math.pi / 2, math.pi])
    shifted = np.array([[0.0, 1, 2], [3.0, 4, 5]])
    assert response_distances(shifted, "wasserstein")[0, 1] == pytest.approx(3)
    matrices = np.stack([np.eye(2), math.e * np.eye(2)])
    assert response_distances(matrices, "spd")[0, 1] == pytest.approx(math.sqrt(2))


def distance_correlation(a, b):
    """By its definition, from doubly centered distances."""
    parts = []
    for v in (a.reshape(len(a), -1), b.reshape(len(b), -1)):
        d = np.linalg.norm(v[:, None] - v, axis=2)
        parts.append(d - d.mean(0) - d.mean(1)[:, None] + d.mean())
    first, second = parts
    return math.sqrt((first * second).mean() / math.sqrt((first**2).mean() * (second**2).mean()))


@pytest.mark.parametrize("metric", ["wasserstein", "sphere", "spd"])
def test_the_network_finds_the_planted_index(metric):
    """On samples it has not seen; a rotation of the two directions would give the same score."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 4))
    index = x[:, 0] + 0.5 * x[:, 1] ** 2
    net = FCCovNet(metric=metric).fit(x[:200], metric_responses(index[:200], metric, rng))
    found = net.transform(x)
    assert found.shape == (500, 2)
    assert distance_correlation(found[200:], index[200:]) > 0.85
    assert distance_correlation(found[200:], x[200:, 2]) < 0.25
    np.testing.assert_allclose(np.cov(found[:200].T, bias=True), np.eye(2), atol=0.35)


def test_the_gradients_of_the_network_span_the_planted_subspace():
    """Trace correlation of the two projections, which knows neither rotation nor sign."""
    rng = np.random.default_rng(5)
    planted = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    x = rng.normal(size=(200, 6))
    inner = x @ planted
    y = np.stack([inner[:, 0], np.sin(inner[:, 1])], axis=1) + 0.1 * rng.normal(size=(200, 2))
    net = FCCovNet(n_directions=3).fit(x, y)
    step = 1e-4
    rises = [(net.transform(x + step * e) - net.transform(x - step * e)) for e in np.eye(6)]
    jacobians = np.stack(rises, axis=2) / (2 * step)  # (200, 3, 6)
    _, vectors = np.linalg.eigh(np.einsum("ntp,ntq->pq", jacobians, jacobians))
    found = vectors[:, -2:]
    assert np.trace(found @ found.T @ planted @ planted.T) / 2 > 0.9


def test_one_direction_may_be_an_even_function_of_the_index():
    """Why d is more than one: with long tails, near-or-far tells more than the index itself."""
    t = scipy.stats.laplace.ppf((np.arange(300) + 0.5) / 300)
    d = torch.from_numpy(response_distances(t, "euclidean"))
    both = torch.from_numpy(np.stack([(v - v.mean()) / v.std() for v in (t, abs(t))], axis=1))
    m = fccov(both, d)
    assert m[1, 1] > 1.5 * m[0, 0]
    assert abs(m[0, 1]) < 1e-5


def test_same_seed_same_network():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    first, again, other = (FCCovNet(n_steps=3, seed=s).fit(x, y).transform(x) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_refusals():
    f, distances = sample()
    with pytest.raises(EtudeError, match="penalty must be a number from 0 on, got -1"):
        FCCovLoss(penalty=-1)
    with pytest.raises(EtudeError, match=r"embeddings must be of shape \(n, d\)"):
        fccov(f[:, 0], distances)
    with pytest.raises(EtudeError, match=r"distances must be of shape \(14, 14\)"):
        fccov(f, distances[:3])
    with pytest.raises(EtudeError, match="distances must be numbers, none NaN"):
        fccov(f, distances.where(distances > 0, math.nan))
    with pytest.raises(EtudeError, match="features must be finite"):
        FCCovNet().fit(np.full((4, 2), np.nan), np.zeros(4))
    with pytest.raises(EtudeError, match="metric must be one of"):
        response_distances(np.zeros(3), "cosine")
    with pytest.raises(EtudeError, match="metric must be one of"):
        metric_responses(np.zeros(3), "cosine", np.random.default_rng(0))
    with pytest.raises(EtudeError, match="y must be finite"):
        response_distances(np.array([0.0, np.nan]), "euclidean")
    with pytest.raises(EtudeError, match="y must be positive definite"):
        response_distances(-np.eye(2)[None], "spd")
    with pytest.raises(EtudeError, match="y must be of shape"):
        response_distances(np.eye(2), "spd")
    with pytest.raises(EtudeError, match="n_directions must be at least 1"):
        FCCovNet(n_directions=0)
    with pytest.raises(EtudeError, match="lr must be positive"):
        FCCovNet(lr=0.0)
    with pytest.raises(EtudeError, match="must be fitted before transform"):
        FCCovNet().transform(np.zeros((3, 2)))
    with pytest.raises(EtudeError, match="features must be of shape"):
        FCCovNet().fit(np.zeros(3), np.zeros(3))
    with pytest.raises(EtudeError, match="y must be one response a row"):
        FCCovNet().fit(np.zeros((4, 2)), np.zeros(3))
