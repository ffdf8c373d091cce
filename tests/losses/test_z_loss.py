"""The Z-loss against loops, its invariances, and the factored layer against dense descent.

`test_official_expression` holds numbers from pascal20100/factored_output_layer at 5fbe04e: the
expression of example/timing_example.py (its Theano does not run any more) in numpy float64 on
the arrays that numpy's RandomState(7) gives. They agree to 1e-12.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.losses import FactoredZLoss, ZLoss, spherical_statistics

SETTINGS = ((1.0, 0.0), (0.1, 10.0), (2.0, 3.0))
OFFICIAL = 6.639120116172249


def batch(n=7, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(n_classes, (n,), generator=generator)


@pytest.mark.parametrize(("slope", "location"), SETTINGS)
def test_equals_the_equation_in_loops(slope, location):
    logits, target = batch()
    total = 0.0
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((o - mean) ** 2 for o in row) / len(row))
        total += math.log(1 + math.exp(slope * (location - (row[y] - mean) / deviation))) / slope
    value = ZLoss(slope=slope, location=location)(logits, target).item()
    assert value == pytest.approx(total / len(target), rel=1e-11)


def test_official_expression():
    rng = np.random.RandomState(7)
    weight = torch.from_numpy(rng.normal(0, 0.3, (50, 6)))
    h = torch.from_numpy(rng.normal(0, 1, (8, 6)))
    target = torch.from_numpy(rng.randint(0, 50, 8)).long()
    value = ZLoss()(h @ weight.T, target)
    assert 8 * value.item() == pytest.approx(OFFICIAL, rel=1e-11)


def test_shift_and_scale_do_not_matter_but_the_sign_does():
    logits, target = batch()
    loss = ZLoss(slope=0.5, location=2.0)
    whole = loss(logits, target)
    torch.testing.assert_close(loss(3 * logits - 40, target), whole)
    torch.testing.assert_close(loss(1e-3 * logits, target), whole, rtol=1e-5, atol=0.0)
    assert (loss(-logits, target) - whole).abs() > 0.1


def test_gradient_is_orthogonal_to_ones_and_to_the_outputs():
    logits, target = batch()
    logits.requires_grad_(True)
    ZLoss()(logits, target).backward()
    assert logits.grad.norm() > 0.05
    assert logits.grad.sum(dim=1).abs().max() < 1e-12
    assert (logits.grad * logits).sum(dim=1).abs().max() < 1e-9


@pytest.mark.parametrize(("slope", "location"), SETTINGS)
def test_one_hot_outputs_reach_the_least_loss(slope, location):
    n = 9
    loss = ZLoss(slope=slope, location=location)
    least = math.log1p(math.exp(slope * (location - math.sqrt(n - 1)))) / slope
    one_hot = torch.eye(n, dtype=torch.float64)
    assert loss(one_hot, torch.arange(n)).item() == pytest.approx(least, rel=1e-9)
    logits, target = batch(n=50, n_classes=n)
    assert loss(logits, target) > least


def test_a_steep_slope_is_a_hinge():
    logits, target = batch()
    mean, deviation = logits.mean(1), logits.std(1, correction=0)
    z = (logits.gather(1, target[:, None])[:, 0] - mean) / deviation
    hinge = (0.7 - z).clamp(min=0).mean()
    steep = ZLoss(slope=1e6, location=0.7)(logits, target)
    torch.testing.assert_close(steep, hinge, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("slope", "location"), SETTINGS)
def test_gradcheck(slope, location):
    logits, target = batch(n=4, n_classes=3)
    logits.requires_grad_(True)
    loss = ZLoss(slope=slope, location=location)
    assert torch.autograd.gradcheck(lambda o: loss(o, target), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_outputs_stay_finite(dtype):
    rows = [[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [1e4, 1e4, 0.0]]
    for chosen in (rows, rows[1:2]):
        logits = torch.tensor(chosen, dtype=dtype).requires_grad_(True)
        loss = ZLoss()(logits, torch.arange(len(chosen)) % 3)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
    assert ZLoss()(torch.tensor([[3.0]], dtype=dtype), torch.tensor([0])).item() == pytest.approx(
        math.log(2)
    )  # one class: z = 0


def test_large_offset_in_single_precision():
    """q / K - mu^2 would lose every digit here."""
    logits, target = batch()
    shifted = (logits + 4096).float()
    exact = ZLoss()(shifted.double(), target).item()
    assert ZLoss()(shifted, target).item() == pytest.approx(exact, rel=1e-5)


def test_spherical_statistics_equal_the_outputs():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    h = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    s, q = spherical_statistics(h, weight.T @ weight, weight.sum(0))
    torch.testing.assert_close(s, (h @ weight.T).sum(1))
    torch.testing.assert_close(q, (h @ weight.T).square().sum(1))


def layer(dim=6, n_classes=30, lr=0.5, check_every=10**9, **settings):
    generator = torch.Generator().manual_seed(3)
    return FactoredZLoss(
        dim, n_classes, lr=lr, check_every=check_every, dtype=torch.float64, generator=generator,
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize(("slope", "location"), SETTINGS)
def test_the_factored_layer_is_dense_gradient_descent(slope, location):
    """200 steps, batches with repeated targets, and three classes that are never a target."""
    ours = layer(slope=slope, location=location)
    dense = ours.weight.clone().requires_grad_(True)
    loss_of, generator = ZLoss(slope=slope, location=location), torch.Generator().manual_seed(4)
    for _ in range(200):
        h = torch.randn(5, 6, generator=generator, dtype=torch.float64).requires_grad_(True)
        target = torch.randint(27, (5,), generator=generator)
        target[0] = target[1]
        expected = loss_of(h @ dense.T, target)
        slope_h, slope_w = torch.autograd.grad(expected, (h, dense))
        value, back = ours.step(h.detach(), target)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(back, slope_h, rtol=1e-8, atol=1e-10)
        with torch.no_grad():
            dense -= 0.5 * slope_w
    dense = dense.detach()
    assert (dense - layer().weight).norm() > 0.1 * dense.norm()
    torch.testing.assert_close(ours.weight, dense, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours.gram, dense.T @ dense, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours.total, dense.sum(0), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours.classify(h.detach()), h.detach() @ dense.T)


def test_a_fold_changes_nothing_but_the_factors():
    ours, generator = layer(lr=2.0, check_every=5), torch.Generator().manual_seed(5)
    plain = layer(lr=2.0)
    for _ in range(60):
        h = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        target = torch.randint(30, (4,), generator=generator)
        first, second = ours.step(h, target), plain.step(h, target)
        torch.testing.assert_close(first[0], second[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-6, atol=1e-8)
    assert ours.n_folds >= 1
    assert plain.n_folds == 0
    before = plain.weight.clone()
    plain.fold()
    torch.testing.assert_close(plain.weight, before)
    torch.testing.assert_close(plain.u @ plain.u_inverse, torch.eye(6, dtype=torch.float64))


def test_a_step_writes_only_the_targets_rows_and_learns_without_a_pass():
    ours = layer()
    rows = ours.v.clone()
    ours.step(
        torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 4, 9])
    )
    changed = (ours.v != rows).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == [4, 9]
    assert (ours.weight != rows).any(dim=1).all()  # yet every class has learned


def test_the_layer_learns_in_single_precision():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(200, 16, generator=generator)
    ours = FactoredZLoss(16, 200, location=5.0, lr=3.0, generator=generator)
    for _ in range(400):
        target = torch.randint(200, (32,), generator=generator)
        loss, back = ours.step(centers[target], target)
        assert loss.dtype == back.dtype == torch.float32
    hits = (ours.classify(centers).argmax(1) == torch.arange(200)).float().mean()
    assert hits > 0.9
    dense = F.linear(centers, ours.weight)
    torch.testing.assert_close(ours.classify(centers), dense, rtol=1e-4, atol=1e-5)


def test_refusals():
    logits, target = batch()
    with pytest.raises(EtudeError, match="slope must be positive, got 0"):
        ZLoss(slope=0.0)
    with pytest.raises(EtudeError, match="location must be a finite number"):
        ZLoss(location=float("inf"))
    with pytest.raises(EtudeError, match="eps must be positive"):
        ZLoss(eps=0.0)
    with pytest.raises(EtudeError, match=r"logits must be of shape \(B, K\)"):
        ZLoss()(logits[0], target)
    with pytest.raises(EtudeError, match="target must be"):
        ZLoss()(logits, target[:-1])
    with pytest.raises(EtudeError, match="gram must be of shape"):
        spherical_statistics(logits, torch.eye(3), torch.ones(5))
    with pytest.raises(EtudeError, match="total must be of shape"):
        spherical_statistics(logits, torch.eye(5), torch.ones(3))
    with pytest.raises(EtudeError, match="n_classes must be at least 2"):
        FactoredZLoss(4, 1)
    with pytest.raises(EtudeError, match="dim must be at least 1"):
        FactoredZLoss(0, 3)
    with pytest.raises(EtudeError, match="lr must be"):
        FactoredZLoss(4, 3, lr=-1.0)
    with pytest.raises(EtudeError, match="check_every must be"):
        FactoredZLoss(4, 3, check_every=0)
    with pytest.raises(EtudeError, match=r"embeddings must be of shape \(B, 6\)"):
        layer().step(logits, target)
    with pytest.raises(EtudeError, match="target must be"):
        layer().step(torch.ones(7, 6), target[:-1])
