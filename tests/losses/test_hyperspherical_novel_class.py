"""The normalized softmax and its class means against loops, invariances and the simplex bound."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from etude.core import EtudeError
from etude.losses import HypersphereEmbedder, NormalizedSoftmaxLoss, NovelClassCentroid


def batch(n=8, dim=4, k=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return e, torch.randint(k, (n,), generator=g)


def build(dim=4, k=5, **knobs):
    torch.manual_seed(1)
    return NormalizedSoftmaxLoss(dim=dim, n_classes=k, **knobs).double()


def cosine(a, b):
    dot = sum(u * v for u, v in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("scale", [0.5, 16.0])
def test_loss_equals_the_equation_in_loops(scale):
    e, target = batch()
    loss, total = build(scale=scale), 0.0
    for z, y in zip(e.tolist(), target.tolist(), strict=True):
        logits = [scale * cosine(w, z) for w in loss.weight.tolist()]
        total -= logits[y] - math.log(sum(math.exp(v) for v in logits))
    assert loss(e, target).item() == pytest.approx(total / len(target), rel=1e-10)


def test_lengths_do_not_matter_and_the_gradient_is_orthogonal():
    e, target = batch()
    loss = build()
    e.requires_grad_()
    value = loss(e, target)
    value.backward()
    dots = (e.grad * e).sum(dim=1)
    torch.testing.assert_close(dots, torch.zeros_like(dots), rtol=0, atol=1e-12)
    assert e.grad.abs().max() > 1e-3
    torch.testing.assert_close(loss(e * torch.arange(1, 9)[:, None], target), value)
    loss.weight.data *= torch.tensor([0.1, 2.0, 3.0, 5.0, 70.0])[:, None]
    torch.testing.assert_close(loss(e, target), value)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("k", [5, 20])
def test_the_simplex_attains_the_bound_and_random_points_do_not(k, scale):
    bound = np.logaddexp(0.0, math.log(k - 1) - scale * k / (k - 1))
    simplex = torch.eye(k, dtype=torch.float64) - 1 / k  # spans k - 1 dimensions
    loss, target = build(dim=k, k=k, scale=scale), torch.arange(k)
    loss.weight.data = simplex
    assert loss(3.0 * simplex, target).item() == pytest.approx(bound, rel=1e-9)
    for seed in range(20):
        e, _ = batch(n=k, dim=k, seed=seed)
        loss.weight.data = batch(n=k, dim=k, seed=seed + 99)[0]
        assert loss(e, target).item() > bound
        loss.weight.data = e
        assert loss(e, target).item() > bound


def test_gradcheck_and_a_learned_scale():
    e, target = batch(n=4)
    assert torch.autograd.gradcheck(lambda z: build()(z, target), (e.requires_grad_(),))
    fixed, learned = build(), build(learn_scale=True)
    torch.testing.assert_close(fixed(e, target), learned(e, target))
    fixed(e, target).backward()
    learned(e, target).backward()
    assert fixed.log_scale.grad is None
    assert learned.log_scale.grad != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_batches_stay_finite(dtype):
    """Entries of 1e4, an embedding of zeros, one class in the batch, a class never seen."""
    loss = NormalizedSoftmaxLoss(dim=3, n_classes=4, scale=1000.0)
    rows = torch.tensor([[1e4, -1e4, 1e4], [1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    value = loss(rows, torch.tensor([2, 2]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(loss.weight.grad).all()
    assert torch.isfinite(loss.classify(torch.zeros(1, 3, dtype=dtype))).all()


def test_embedder_gives_unit_vectors_and_trains_its_network():
    embedder = HypersphereEmbedder(nn.Linear(3, 4).double())
    e = embedder(torch.randn(5, 3, dtype=torch.float64))
    torch.testing.assert_close(e.norm(dim=1), torch.ones(5, dtype=torch.float64))
    e[:, 0].sum().backward()
    assert embedder.network.weight.grad.abs().sum() > 0
    assert (HypersphereEmbedder(nn.Identity())(torch.zeros(1, 2)) == 0).all()


def supports(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(11, 4)), rng.permutation([9, 9, 9, 9, 4, 4, 4, -2, -2, -2, -2])


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
def test_predictions_equal_loops(rule):
    support, labels = supports()
    query = np.random.default_rng(1).normal(size=(50, 4))
    found = NovelClassCentroid(rule=rule).fit(support, labels)
    np.testing.assert_array_equal(found.classes_, [-2, 4, 9])
    for q, logits, predicted in zip(query, found.logits(query), found.predict(query), strict=True):
        expected = []
        for c in (-2, 4, 9):
            rows = [row.tolist() for row, label in zip(support, labels, strict=True) if label == c]
            if rule == "nearest":
                expected.append(max(cosine(row, q.tolist()) for row in rows))
            else:
                unit = [[v / math.hypot(*row) for v in row] for row in rows]
                mean = [sum(column) for column in zip(*unit, strict=True)]
                expected.append(cosine(mean, q.tolist()))
        np.testing.assert_allclose(logits, expected, rtol=1e-10)
        assert predicted == (-2, 4, 9)[int(np.argmax(expected))]


def test_lengths_of_the_support_do_not_matter():
    support, labels = supports()
    lengths = np.random.default_rng(2).uniform(0.01, 100, size=(11, 1))
    for rule in ("centroid", "nearest"):
        plain = NovelClassCentroid(rule=rule).fit(support, labels)
        scaled = NovelClassCentroid(rule=rule).fit(lengths * support, labels)
        np.testing.assert_allclose(plain.logits(support), scaled.logits(5 * support))


def test_one_example_a_class_makes_both_rules_one_and_order_does_not_matter():
    support, _ = supports()
    labels = np.arange(11)[::-1]
    one, other = (NovelClassCentroid(rule=r).fit(support, labels) for r in ("centroid", "nearest"))
    np.testing.assert_allclose(one.logits(support), other.logits(support))
    np.testing.assert_array_equal(one.predict(support), labels)
    order = np.random.default_rng(3).permutation(11)
    again = NovelClassCentroid().fit(support[order], labels[order])
    np.testing.assert_allclose(one.logits(support), again.logits(support))


def test_a_new_class_is_known_after_training_on_others():
    """Three blobs; the network sees two. Five examples make the third known."""
    g = torch.Generator().manual_seed(0)
    centers = 4 * torch.eye(3, 6)
    y = torch.arange(300) % 3
    x = centers[y] + 0.5 * torch.randn(300, 6, generator=g)
    torch.manual_seed(0)
    network, loss = nn.Linear(6, 4), NormalizedSoftmaxLoss(dim=4, n_classes=2)
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=1e-2)
    old = y < 2
    for _ in range(60):
        optimizer.zero_grad()
        loss(network(x[old]), y[old]).backward()
        optimizer.step()
    e = HypersphereEmbedder(network)(x).detach().numpy()
    found = NovelClassCentroid().fit(e[:15], y[:15].numpy()).predict(e[15:])
    assert (found == y[15:].numpy()).mean() > 0.95


def test_refusals():
    e, target = batch()
    support, labels = supports()
    with pytest.raises(EtudeError, match="scale must be a positive number, got 0"):
        NormalizedSoftmaxLoss(dim=4, n_classes=5, scale=0.0)
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, 4\)"):
        build()(e[:, :3], target)
    with pytest.raises(EtudeError, match="target must be"):
        build()(e, target[:-1])
    with pytest.raises(EtudeError, match="rule must be centroid or nearest, got 'mean'"):
        NovelClassCentroid(rule="mean")
    with pytest.raises(EtudeError, match="support_labels must be"):
        NovelClassCentroid().fit(support, labels[:-1])
    with pytest.raises(EtudeError, match="support must be finite"):
        NovelClassCentroid().fit(np.full((2, 2), np.nan), np.arange(2))
    with pytest.raises(EtudeError, match="support must be at least one row"):
        NovelClassCentroid().fit(support[:0], labels[:0])
    with pytest.raises(EtudeError, match="call fit first"):
        NovelClassCentroid().predict(support)
    with pytest.raises(EtudeError, match="query must be of width 4"):
        NovelClassCentroid().fit(support, labels).predict(support[:, :3])
