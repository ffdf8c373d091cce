"""Comp-sum losses against loops, their special cases, and the bound that they promise."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.core import EtudeError
from etude.losses import CompSumLoss, SmoothAdversarialCompSumLoss, h_consistency_transform

TAUS = (0.0, 0.5, 0.9, 1.0, 1.3, 1.7, 2.0, 2.5)


def batch(n=7, n_classes=5, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(n_classes, (n,), generator=generator)


def phi(u, tau):
    return math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


def by_loops(logits, target, tau):
    total = 0.0
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        u = sum(math.exp(h - row[y]) for k, h in enumerate(row) if k != y)
        total += phi(u, tau)
    return total / len(target)


@pytest.mark.parametrize("tau", TAUS)
def test_equals_the_equation_in_loops(tau):
    logits, target = batch()
    assert CompSumLoss(tau=tau)(logits, target).item() == pytest.approx(
        by_loops(logits, target, tau), rel=1e-12
    )


def test_special_cases():
    logits, target = batch()
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(
        CompSumLoss(tau=1.0)(logits, target), F.cross_entropy(logits, target)
    )
    torch.testing.assert_close(CompSumLoss(tau=2.0)(logits, target), (1 - p).mean())
    q = 0.7
    generalized = ((1 - p**q) / q).mean()
    torch.testing.assert_close(CompSumLoss(tau=1 + q)(logits, target), generalized)
    torch.testing.assert_close(CompSumLoss(tau=0.0)(logits, target), (1 / p - 1).mean())


def test_the_family_is_continuous_at_cross_entropy():
    logits, target = batch()
    at_one = CompSumLoss(tau=1.0)(logits, target).item()
    for tau in (1 - 1e-9, 1 + 1e-9):
        assert CompSumLoss(tau=tau)(logits, target).item() == pytest.approx(at_one, rel=1e-7)


@pytest.mark.parametrize("tau", TAUS)
def test_gradcheck(tau):
    logits, target = batch(n=4, n_classes=3)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: CompSumLoss(tau=tau)(z, target), (logits,))


@pytest.mark.parametrize("tau", TAUS)
def test_shift_permutation_and_batch(tau):
    logits, target = batch()
    loss = CompSumLoss(tau=tau)
    whole = loss(logits, target)
    torch.testing.assert_close(loss(logits + 100.0, target), whole)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(loss(logits[:, order], order.argsort()[target]), whole)
    singles = [loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(target))]
    torch.testing.assert_close(torch.stack(singles).mean(), whole)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_value_and_gradient_stay_finite_at_logits_of_ten_thousand(tau, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [3.0, 1.0, 2.0]], dtype=dtype)
    logits.requires_grad_(True)
    loss = CompSumLoss(tau=tau)(logits, torch.tensor([0, 0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_tangent_joins_smoothly_and_keeps_growing(tau):
    """Beyond e^30 the loss goes on along its tangent: no jump, and never less for a worse p_y."""
    end = 30 / (1 - tau)
    logits = torch.tensor([[0.0, end + d] for d in (-1e-6, 1e-6, 1.0, 50.0)], dtype=torch.float64)
    values = torch.stack([CompSumLoss(tau=tau)(z[None], torch.tensor([0])) for z in logits])
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=0.0)
    assert (values[1:] > values[:-1]).all()
    slope = (values[2] - values[1]) / (1.0 - 1e-6)
    torch.testing.assert_close(slope, torch.tensor(math.exp(30), dtype=torch.float64), rtol=1e-6,
                               atol=0.0)  # fmt: skip


def test_half_precision_close_to_double():
    logits, target = batch()
    exact = CompSumLoss(tau=1.5)(logits, target).item()
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        loss = CompSumLoss(tau=1.5)(logits.to(dtype), target)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact, rel=tolerance)


def conditional(p, scores, tau):
    """Conditional surrogate risk in loops, and its least value in closed form."""
    risk = sum(
        p[y] * phi(sum(math.exp(s - scores[y]) for k, s in enumerate(scores) if k != y), tau)
        for y in range(len(p))
    )
    if tau >= 2:
        return risk, (1 - p.max()) / (tau - 1)
    best = p ** (1 / (2 - tau)) / (p ** (1 / (2 - tau))).sum()
    return risk, sum(p[y] * phi(1 / best[y] - 1, tau) for y in range(len(p)) if p[y] > 0)


@pytest.mark.parametrize(("tau", "n"), list(itertools.product(TAUS, (2, 3, 5))))
def test_the_bound_holds_for_random_distributions_and_scores(tau, n):
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.dirichlet(np.full(n, rng.choice([0.2, 1.0, 5.0])))
        scores = rng.normal(scale=rng.choice([0.01, 0.5, 3.0]), size=n)
        risk, best = conditional(p, scores, tau)
        gap = p.max() - p[scores.argmax()]
        assert h_consistency_transform(gap, tau=tau, n_classes=n) <= risk - best + 1e-9


@pytest.mark.parametrize("b", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_bound_is_tight_up_to_cross_entropy(tau, b):
    """Two likely classes with tied scores reach it: a smaller T_tau would be wrong as well."""
    risk, best = conditional(np.array([(1 + b) / 2, (1 - b) / 2, 0.0]), [0.0, 0.0, -700.0], tau)
    assert h_consistency_transform(b, tau=tau) == pytest.approx(risk - best, rel=1e-9)


def test_the_bound_is_tight_for_mean_absolute_error():
    n, b = 4, 0.2
    q = (1 + b) / n
    risk, best = conditional(np.array([q, q, q, q - b]), [0.0] * 4, 2.0)
    assert h_consistency_transform(b, tau=2, n_classes=n) == pytest.approx(risk - best, rel=1e-9)


@pytest.mark.parametrize("tau", TAUS)
def test_the_inverse_undoes_the_transform(tau):
    gaps = np.linspace(0, 1, 11)
    costs = h_consistency_transform(gaps, tau=tau, n_classes=3)
    back = h_consistency_transform(costs, tau=tau, n_classes=3, inverse=True)
    np.testing.assert_allclose(back, gaps, atol=1e-7)
    assert h_consistency_transform(costs[-1] + 9, tau=tau, n_classes=3, inverse=True) == 1.0


def test_attack_finds_the_largest_margin_shift_of_a_linear_network():
    """Two classes: the shift is |(w_0 - w_1) . (x' - x)|, at most radius |w_0 - w_1|_1."""
    network = nn.Linear(6, 2).double()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = torch.tensor([0, 1, 1, 0, 1])
    loss = SmoothAdversarialCompSumLoss(
        tau=1.0, temperature=0.5, smooth_weight=0.7, radius=0.1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    largest = 0.1 * (network.weight[0] - network.weight[1]).abs().sum()
    expected = F.cross_entropy(network(x) / 0.5, target) + 0.7 * largest
    torch.testing.assert_close(loss(network, x, target), expected)
    assert ((loss.attack(network, x, target) - x).abs() <= 0.1 + 1e-12).all()
    bounded = SmoothAdversarialCompSumLoss(radius=0.5, bounds=(-0.2, 0.2))
    assert bounded.attack(network, x.clamp(-0.2, 0.2), target).abs().max() <= 0.2


def test_smooth_loss_is_above_the_adversarial_margin_loss():
    """With the default weight (5) bounds Phi of the clipped margins at every attacked point."""
    generator = torch.Generator().manual_seed(5)
    for tau, rho, n in itertools.product((0.0, 1.0, 1.5, 2.0), (0.4, 1.0, 3.0), (2, 4)):
        network = nn.Linear(3, n).double()
        x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
        target = torch.randint(n, (20,), generator=generator)
        loss = SmoothAdversarialCompSumLoss(
            tau=tau, temperature=rho, radius=0.3, generator=generator
        )
        for i in range(20):
            one, y = x[i : i + 1], target[i : i + 1]
            value = loss(network, one, y).item()
            worst = 0.0
            for corner in itertools.product((-0.3, 0.3), repeat=3):
                h = network(one + torch.tensor(corner, dtype=torch.float64))[0].tolist()
                clipped = [min(max(0.0, 1 - (h[y] - h[k]) / rho), 1.0) for k in range(n) if k != y]
                worst = max(worst, phi(sum(clipped), tau))
            assert value >= worst - 1e-9


def test_no_attack_leaves_the_comp_sum_loss_and_gradients_reach_the_network():
    network = nn.Linear(4, 3)
    x, target = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    plain = SmoothAdversarialCompSumLoss(tau=1.5, radius=0.0)(network, x, target)
    torch.testing.assert_close(plain, CompSumLoss(tau=1.5)(network(x), target))
    SmoothAdversarialCompSumLoss(radius=0.1)(network, x, target).backward()
    assert network.weight.grad.abs().sum() > 0


def test_refusals():
    logits, target = batch()
    with pytest.raises(EtudeError, match="tau must be a number from 0 on, got -1"):
        CompSumLoss(tau=-1)
    with pytest.raises(EtudeError, match="tau must be"):
        CompSumLoss(tau=float("nan"))
    with pytest.raises(EtudeError, match=r"logits must be of shape \(B, K\)"):
        CompSumLoss()(logits[0], target)
    with pytest.raises(EtudeError, match="target must be"):
        CompSumLoss()(logits, target[:-1])
    with pytest.raises(EtudeError, match="gap must be a zero-one regret"):
        h_consistency_transform(1.5)
    with pytest.raises(EtudeError, match="gap must be non-negative"):
        h_consistency_transform(-0.1, inverse=True)
    with pytest.raises(EtudeError, match="n_classes must be at least 2"):
        h_consistency_transform(0.5, n_classes=1)
    with pytest.raises(EtudeError, match="temperature must be positive"):
        SmoothAdversarialCompSumLoss(temperature=0.0)
    with pytest.raises(EtudeError, match="smooth_weight must be"):
        SmoothAdversarialCompSumLoss(smooth_weight=-1.0)
    with pytest.raises(EtudeError, match="radius must be"):
        SmoothAdversarialCompSumLoss(radius=-1.0)
    with pytest.raises(EtudeError, match="n_steps must be"):
        SmoothAdversarialCompSumLoss(n_steps=0)
