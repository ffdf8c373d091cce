"""MadaCos and its local triplets against loops, what the median is promised, the released code."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.losses import HardNegativeLocalTriplet, MadaCosLoss, gem_pool


def batch(n=9, dim=4, k=5, pull=0.0, seed=0):
    """Embeddings, target and class weights; `pull` draws embeddings to their class."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(k, dim, generator=g, dtype=torch.float64)
    target = torch.randint(k, (n,), generator=g)
    e = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return e + pull * F.normalize(weight, dim=1)[target], target, weight


def build(weight, **knobs):
    loss = MadaCosLoss(dim=weight.shape[1], n_classes=len(weight), **knobs).double()
    loss.weight.data.copy_(weight)
    return loss


def by_loops(e, target, weight, alpha, rho, least, training=True):
    """Loss, scale, margin, median, and the median sample, from the equations."""
    unit = [[v / math.hypot(*row) for v in row] for row in e.tolist()]
    w = [[v / math.hypot(*row) for v in row] for row in weight.tolist()]
    c = [[sum(a * b for a, b in zip(z, v, strict=True)) for v in w] for z in unit]
    y = target.tolist()
    ranked = sorted(range(len(y)), key=lambda i: c[i][y[i]])
    h = ranked[(len(y) - 1) // 2]
    m = c[h][y[h]]
    s = max(least, math.log(rho * (1 - alpha) / alpha) / (1 - m))
    b = sum(math.exp(s * v) for k, v in enumerate(c[h]) if k != y[h])
    margin = max(0.0, m - math.log(b * alpha / (1 - alpha)) / s) if training else 0.0
    total, p = 0.0, []
    for row, label in zip(c, y, strict=True):
        z = [s * (v - margin * (k == label)) for k, v in enumerate(row)]
        p.append(math.exp(z[label]) / sum(math.exp(v) for v in z))
        total += math.log(sum(math.exp(v) for v in z)) - z[label]
    return total / len(y), s, margin, m, p[h]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alpha", [0.02, 0.3])
@pytest.mark.parametrize("pull", [0.0, 1.0, 3.0])
def test_equals_the_equations_in_loops(pull, alpha, training):
    for n in (9, 8):  # an even batch has the lower median
        e, target, weight = batch(n=n, pull=pull)
        loss = build(weight, alpha=alpha, perfect_odds=5e4, min_scale=8.0).train(training)
        value, s, margin, m, _ = by_loops(e, target, weight, alpha, 5e4, 8.0, training)
        assert loss(e, target).item() == pytest.approx(value, rel=1e-10)
        if training:
            found = (loss.scale.item(), loss.margin.item(), loss.median.item())
            assert found == pytest.approx((s, margin, m), rel=1e-10)


@pytest.mark.parametrize("least", [1.0, 400.0])
def test_the_median_sample_has_probability_alpha(least):
    """Whether or not the scale is clamped; where the margin is clamped it has less."""
    e, target, weight = batch(pull=3.0)
    loss = build(weight, alpha=0.2, min_scale=least)
    loss(e, target)
    assert (loss.scale.item() == least) == (least == 400.0)
    assert loss.margin > 0
    c = loss.cosines(e).detach()
    h = (c.gather(1, target[:, None])[:, 0] - loss.median).abs().argmin()
    z = loss.scale * (c[h] - loss.margin * F.one_hot(target[h], 5))
    assert z.softmax(0)[target[h]].item() == pytest.approx(0.2, rel=1e-9)
    e, target, weight = batch()
    clamped = build(weight, alpha=0.9, perfect_odds=100.0, min_scale=1.0)
    clamped(e, target)
    assert clamped.margin == 0
    assert by_loops(e, target, weight, 0.9, 100.0, 1.0)[4] < 0.9


def test_gradient_is_that_of_fixed_scale_and_margin():
    """s (p - onehot) / B on the cosines; nothing flows through median, scale or margin."""
    e, target, weight = batch(pull=2.0)
    loss = build(weight)
    loss(e, target).backward()
    w = weight.clone().requires_grad_()
    c = F.normalize(e, dim=1) @ F.normalize(w, dim=1).T
    onehot = F.one_hot(target, 5)
    p = (loss.scale * (c - loss.margin * onehot)).softmax(1).detach()
    c.backward(loss.scale * (p - onehot) / len(e))
    torch.testing.assert_close(loss.weight.grad, w.grad)


def test_scale_and_margin_grow_as_training_does():
    found = []
    for pull in (0.0, 2.0, 4.0, 8.0):
        e, target, weight = batch(n=101, dim=16, pull=pull)
        loss = build(weight)
        loss(e, target)
        found.append((loss.median.item(), loss.scale.item(), loss.margin.item()))
    assert found == sorted(found)
    assert found[0][1] == 32.0  # the clamp is active at first
    assert found[-1][1] > 100.0
    assert all(a[2] < b[2] for a, b in itertools.pairwise(found))


def test_equals_the_released_code():
    """bassyess/CFCD at 5db8545, core/model/madacos.py, alpha 0.02, float64, on ``batch()``.

    Value, scale, margin, and the gradient of the first embedding through its custom backward.
    """
    for pull, value, scale, margin, slope in (
        (0.0, 29.374775768603577, 32.0, 0.23026306000386967,
         [1.194266627, 2.037622941, 0.068269339, -1.111581848]),
        (3.0, 63.32985820204619, 325.17867798999276, 0.5169565374876732,
         [8.82377566, 5.419965127, -5.636929947, 6.251327914]),
    ):  # fmt: skip
        e, target, weight = batch(pull=pull)
        loss, e = build(weight), e.requires_grad_()
        found = loss(e, target)
        found.backward()
        assert found.item() == pytest.approx(value, rel=1e-12)
        assert (loss.scale.item(), loss.margin.item()) == pytest.approx((scale, margin), rel=1e-12)
        np.testing.assert_allclose(e.grad[0].numpy(), slope, rtol=1e-8)
    e, target, weight = batch()
    assert build(weight).eval()(e, target).item() == pytest.approx(22.39834943770003, rel=1e-12)


def test_margin_survives_scales_at_which_an_exponential_overflows():
    e, target, weight = batch(pull=12.0)
    loss = build(weight)
    loss(e, target)
    assert loss.scale > 800  # s times a cosine is beyond exp in float64
    assert 0 < loss.margin < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_stay_finite(dtype):
    """Embeddings of 1e4, one class in the batch, perfect cosines (m = 1), a class never seen."""
    loss = MadaCosLoss(dim=3, n_classes=3)
    loss.weight.data = torch.eye(3)
    for rows in ([[1e4, 0, 0], [1e4, 0, 0]], [[1e4, -1e4, 1.0], [0.0, 0.0, 2.0]]):
        for target in ([0, 0], [1, 0]):
            loss.zero_grad()
            e = torch.tensor(rows, dtype=dtype, requires_grad=True)
            value = loss(e, torch.tensor(target))
            value.backward()
            assert torch.isfinite(value)
            assert torch.isfinite(e.grad).all()
            assert torch.isfinite(loss.weight.grad).all()
            assert torch.isfinite(loss.scale)
    assert loss.classify(e).shape == (2, 3)
    assert value.dtype == torch.float32


def images(n_tuples=2, size=5, T=12, dim=6):
    """Each tuple: two noisy copies of one set of descriptors, then unrelated sets."""
    g = torch.Generator().manual_seed(1)

    def draw():
        return torch.rand(T, dim, generator=g, dtype=torch.float64)

    base = draw()
    copies = [base + 0.15 * draw() for _ in range(size)]
    return torch.stack([*copies, *(draw() for _ in range((n_tuples - 1) * size))])


def triplets_by_loops(x, size, margin, ratio):
    unit = [[[v / math.hypot(*r) for v in r] for r in image] for image in x.tolist()]
    total, count = 0.0, 0

    def gap(a, b):
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    for start in range(0, len(unit), size):
        anchor, positive, *negatives = unit[start : start + size]
        norms = [sum(abs(v) for v in row) for row in x[start + 1].tolist()]
        salient = sorted(range(len(norms)), key=lambda j: -norms[j])[: len(norms) // 2]
        for j in salient:
            d = sorted((math.sqrt(gap(a, positive[j])), i) for i, a in enumerate(anchor))
            i = d[0][1]
            back = min(range(len(positive)), key=lambda k: gap(anchor[i], positive[k]))
            if back != j or d[0][0] > ratio * d[1][0]:
                continue
            for negative in negatives:
                near = min(gap(anchor[i], row) for row in negative)
                total += max(0.0, gap(anchor[i], positive[j]) - near + margin)
                count += 1
    return total, count


@pytest.mark.parametrize("ratio", [0.6, 0.9, 1.0])
def test_local_triplets_equal_loops(ratio):
    x = images()
    total, count = triplets_by_loops(x, 5, 0.1, ratio)
    assert count > 0
    loss = HardNegativeLocalTriplet(tuple_size=5, ratio=ratio, local_weight=0.3)
    assert loss(x).item() == pytest.approx(0.3 * total, rel=1e-10)
    mean = HardNegativeLocalTriplet(tuple_size=5, ratio=ratio, local_weight=1.0, reduction="mean")
    assert mean(x).item() == pytest.approx(total / count, rel=1e-10)
    assert loss.matches(x)[1].sum().item() * 3 == count


def test_local_triplets_equal_the_released_code():
    """bassyess/CFCD at 5db8545, core/losses/super_loss.py, margin 0.1, weight 1, ``images()``."""
    x = images().requires_grad_()
    loss = HardNegativeLocalTriplet(tuple_size=5, local_weight=1.0)
    value = loss(x)
    value.backward()
    assert value.item() == pytest.approx(2.2135136347271374, rel=1e-12)
    assert loss.matches(x)[1].sum(1).tolist() == [6, 3]
    slope = [-0.087642011, -0.257591445, 0.065431083, -0.147382467, -0.210836004, 0.309252607]
    np.testing.assert_allclose(x.grad[1].sum(0).numpy(), slope, rtol=1e-7)


def test_local_triplets_without_a_match_give_zero_and_a_gradient():
    x = torch.ones(3, 4, 2, requires_grad=True)  # all alike: no clear nearest
    value = HardNegativeLocalTriplet(tuple_size=3)(x)
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()
    half = images()[:5].to(torch.float16) * 1e4
    assert torch.isfinite(HardNegativeLocalTriplet(tuple_size=5)(half))


def test_gem_pool_lies_between_mean_and_maximum():
    """p = 3 as F.adaptive_avg_pool2d of the powers (the release's way); p = 1 is the mean."""
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    release = F.adaptive_avg_pool2d(x.clamp(min=1e-6) ** 3, 1)[:, :, 0, 0] ** (1 / 3)
    torch.testing.assert_close(gem_pool(x), release)
    torch.testing.assert_close(gem_pool(x, power=1.0), x.mean(dim=(2, 3)))
    torch.testing.assert_close(gem_pool(x, power=300.0), x.amax(dim=(2, 3)), rtol=2e-2, atol=0)
    assert torch.isfinite(gem_pool(1e4 * x.to(torch.float16))).all()
    assert torch.autograd.gradcheck(gem_pool, (x.requires_grad_(),))
    torch.testing.assert_close(gem_pool(-x), torch.full((2, 3), 1e-6, dtype=torch.float64))


def test_refusals():
    e, target, weight = batch()
    with pytest.raises(EtudeError, match=r"alpha must be in \(0, 1\), got 1"):
        MadaCosLoss(dim=4, n_classes=5, alpha=1.0)
    with pytest.raises(EtudeError, match="n_classes must be at least 2, got 1"):
        MadaCosLoss(dim=4, n_classes=1)
    with pytest.raises(EtudeError, match="perfect_odds must be above"):
        MadaCosLoss(dim=4, n_classes=5, perfect_odds=0.01)
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, 4\)"):
        build(weight)(e[:, :3], target)
    with pytest.raises(EtudeError, match="target must be"):
        build(weight)(e, target[:-1])
    with pytest.raises(EtudeError, match="reduction must be sum or mean"):
        HardNegativeLocalTriplet(reduction="none")
    with pytest.raises(EtudeError, match="tokens must be whole tuples of 8"):
        HardNegativeLocalTriplet()(torch.rand(9, 4, 2))
    with pytest.raises(EtudeError, match="x must be of shape"):
        gem_pool(torch.rand(2, 3))
