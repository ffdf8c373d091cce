"""Energy confusion against loops, its identities, and the released layers."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

from etude.core import EtudeError
from etude.losses import BinomialDevianceLoss, ECAMLLoss, energy_confusion, energy_distance


def batch(n=10, dim=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64), torch.arange(n) // 2


def energy_by_loops(e, labels):
    rows, y = e.tolist(), labels.tolist()
    gaps = [
        sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))
        for i in range(len(y))
        for j in range(i + 1, len(y))
        if y[i] != y[j]
    ]
    return sum(gaps) / len(gaps)


def test_energy_equals_loops_with_unequal_classes():
    e, _ = batch()
    for labels in ([0, 0, 0, 7, 7, 3, 3, 3, 3, 3], list(range(10)), [5] * 9 + [2]):
        y = torch.tensor(labels)
        expected = energy_by_loops(e + 100.0, y)
        assert energy_confusion(e, y, log=False).item() == pytest.approx(expected, rel=1e-10)
        assert energy_confusion(e + 100.0, y).item() == pytest.approx(math.log(expected), rel=1e-9)


def test_for_two_classes_it_is_means_and_covariances():
    """Exactly |mu_I - mu_J|^2 + tr S_I + tr S_J; half the squared energy distance at least."""
    e, _ = batch()
    y = torch.tensor([0] * 4 + [1] * 6)
    i, j = e[:4], e[4:]
    traces = i.var(0, correction=0).sum() + j.var(0, correction=0).sum()
    expected = (i.mean(0) - j.mean(0)).square().sum() + traces
    found = energy_confusion(e, y, log=False)
    torch.testing.assert_close(found, expected)
    assert found >= energy_distance(i, j, exponent=2.0) / 2


def test_each_sample_is_pulled_to_the_other_classs_mean():
    e, _ = batch()
    y = torch.tensor([0] * 4 + [1] * 6)
    e.requires_grad_()
    energy_confusion(e, y, log=False).backward()
    torch.testing.assert_close(e.grad[:4], 2 * (e[:4] - e[4:].mean(0)).detach() / 4)
    torch.testing.assert_close(e.grad[4:], 2 * (e[4:] - e[:4].mean(0)).detach() / 6)


def test_the_logarithm_makes_the_gradient_free_of_scale():
    e, y = batch()
    grads = []
    for c in (1.0, 1000.0):
        z = (c * e).requires_grad_()
        energy_confusion(z, y).backward()
        assert (z * z.grad).sum().item() == pytest.approx(2.0, rel=1e-10)
        grads.append(c * z.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_sampling_is_right_on_average_and_repeats_with_its_generator():
    e, y = batch()
    generator = torch.Generator().manual_seed(0)
    drawn = [
        energy_confusion(e, y, log=False, n_sampled=20, generator=generator).item()
        for _ in range(400)
    ]
    mean, error = np.mean(drawn), np.std(drawn) / 20
    assert abs(mean - energy_by_loops(e, y)) < 4 * error
    once, again = (
        energy_confusion(e, y, n_sampled=5, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert once == again


def test_gradients_equal_the_released_layers():
    """chenbinghui1/ECAML at 7359d4e, its two C++ layers written out as loops and run in float64.

    src/energy_confusion.cpp, Backward with every pair i < j of different classes flagged (its
    loss E is half of ours, which the logarithm's gradient does not see), and
    src/BIER_loss_layer.cpp, Backward with one learner, alpha 2, beta 0.5, costs 1 and 25. Input
    is ``batch()``; the numbers are the first row's gradient and E.
    """
    e, y = batch()
    z = e.clone().requires_grad_()
    energy_confusion(z, y).backward()
    np.testing.assert_allclose(z.grad[0].numpy(), [-0.036870672, -0.011053823, 0.167612825],
                               rtol=1e-7)  # fmt: skip
    assert energy_confusion(e, y, log=False).item() / 2 == pytest.approx(2.5091631359768525)
    z = e.clone().requires_grad_()
    BinomialDevianceLoss()(z, y).backward()
    np.testing.assert_allclose(z.grad[0].numpy(), [-0.108774692, -0.176372354, -0.119228584],
                               rtol=1e-7)  # fmt: skip


def test_energy_distance():
    """scipy gives its root in one dimension; with exponent 2 only the means matter."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 1, generator=g, dtype=torch.float64)
    y = torch.rand(5, 1, generator=g, dtype=torch.float64)
    root = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert energy_distance(x, y).item() == pytest.approx(root**2, rel=1e-10)
    x, y = torch.randn(7, 3, generator=g), torch.randn(5, 3, generator=g)
    twice = 2 * (x.mean(0) - y.mean(0)).square().sum()
    torch.testing.assert_close(energy_distance(x, y, exponent=2.0), twice)
    x.requires_grad_()
    energy_distance(x, x.detach().clone()).backward()
    assert torch.isfinite(x.grad).all()


def test_binomial_deviance_equals_loops():
    e, y = batch()
    same, other = [], []
    for i in range(10):
        for j in range(i + 1, 10):
            s = (e[i] @ e[j] / (e[i].norm() * e[j].norm())).item() - 0.5
            if y[i] == y[j]:
                same.append(math.log(1 + math.exp(-2 * s)))
            else:
                other.append(math.log(1 + math.exp(50 * s)))
    expected = sum(same) / len(same) + sum(other) / len(other)
    assert BinomialDevianceLoss()(e, y).item() == pytest.approx(expected, rel=1e-12)
    alone = BinomialDevianceLoss()(e[::2], y[::2])  # no positive pair
    every = BinomialDevianceLoss()(e, torch.zeros_like(y))  # no negative pair
    assert torch.isfinite(alone)
    assert every.item() == pytest.approx(
        np.mean([math.log(1 + math.exp(-2 * (F.cosine_similarity(e[i], e[j], dim=0) - 0.5)))
                 for i in range(10) for j in range(i + 1, 10)])
    )  # fmt: skip


def confusion_gradients(**knobs):
    """Gradients of loss(w) - loss(0) on a backbone and on the embedding layer."""
    torch.manual_seed(0)
    backbone = nn.Linear(3, 4).double()
    x, y = batch()
    found = []
    for weight in (0.4, 0.0):
        torch.manual_seed(1)
        loss = ECAMLLoss(
            dim=4, n_classes=5, out_dim=6, confusion_weight=weight, **knobs
        ).double()  # fmt: skip
        backbone.zero_grad()
        value = loss(backbone(x), y)
        value.backward()
        found.append((value.detach(), backbone.weight.grad.clone(), loss.layer.weight.grad.clone()))
    (with_it, b1, l1), (without, b0, l0) = found
    return with_it - without, (b1 - b0).abs().max(), (l1 - l0).abs().max(), loss, backbone(x)


def test_confusion_trains_the_embedding_layer_and_not_the_backbone():
    added, on_backbone, on_layer, loss, h = confusion_gradients()
    assert on_backbone == 0
    assert on_layer > 1e-3
    torch.testing.assert_close(added, 0.4 * energy_confusion(loss.embed(h), batch()[1]).detach())
    _, on_backbone, on_layer, *_ = confusion_gradients(detach_backbone=False)
    assert on_backbone > 1e-3
    assert on_layer > 1e-3


def test_switches_of_the_confusion_term():
    y = batch()[1]
    added, *_, loss, h = confusion_gradients(normalize=True, log=False)
    unit = F.normalize(loss.embed(h), dim=1)
    torch.testing.assert_close(added, 0.4 * energy_confusion(unit, y, log=False).detach())


def test_any_metric_loss_may_be_the_base():
    class Spread(nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.square().sum()

    h, y = batch()
    loss = ECAMLLoss(dim=3, n_classes=5, base=Spread(), confusion_weight=0.0).double()
    e = h @ loss.layer.weight.T + loss.layer.bias
    torch.testing.assert_close(loss(h, y), e.square().sum())


def test_classify_compares_with_class_means():
    h = 5 * torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0)
    y = torch.arange(3).repeat_interleave(4)
    loss = ECAMLLoss(dim=3, n_classes=4, out_dim=5).double()
    for _ in range(30):
        loss(h, y)
    means = F.normalize(F.normalize(loss.embed(h[::4]), dim=1), dim=1)
    expected = 10 * F.normalize(loss.embed(h), dim=1) @ means.T
    torch.testing.assert_close(loss.classify(h)[:, :3], expected)
    assert (loss.classify(h)[:, 3] == 0).all()  # a class never seen
    before = loss.class_means.clone()
    loss(-h[:4], y[:4])  # classes that are absent from a batch keep their means
    assert (loss.class_means[0] != before[0]).any()
    assert (loss.class_means[1:] == before[1:]).all()
    before = loss.class_means.clone()
    loss.eval()(-h, y)
    assert (loss.class_means == before).all()


def test_gradcheck():
    e, y = batch(n=6)
    e.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: energy_confusion(z, y), (e,))
    assert torch.autograd.gradcheck(lambda z: BinomialDevianceLoss(scale=1.0)(z, y), (e,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_batches_stay_finite(dtype):
    e = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [3.0, 1.0]], dtype=dtype)
    for labels in ([0, 1, 2, 3], [1, 1, 1, 1], [0, 0, 1, 1]):
        for rows in (e, torch.ones_like(e)):  # collapsed: E is 0
            z = rows.clone().requires_grad_()
            value = energy_confusion(z, torch.tensor(labels))
            value = value + BinomialDevianceLoss()(z, torch.tensor(labels))
            value.backward()
            assert value.dtype == torch.float32
            assert torch.isfinite(value)
            assert torch.isfinite(z.grad).all()
    assert energy_confusion(e, torch.ones(4)) == 0


def test_refusals():
    e, y = batch()
    with pytest.raises(EtudeError, match="confusion_weight must be a number from 0 on, got -1"):
        ECAMLLoss(dim=3, n_classes=2, confusion_weight=-1)
    with pytest.raises(EtudeError, match="n_sampled must be None or at least 1, got 0"):
        energy_confusion(e, y, n_sampled=0)
    with pytest.raises(EtudeError, match=r"labels must be \(B,\)"):
        energy_confusion(e, y[:-1])
    with pytest.raises(EtudeError, match=r"embeddings must be of shape \(B, D\)"):
        BinomialDevianceLoss()(e[0], y)
    with pytest.raises(EtudeError, match=r"exponent must be in \(0, 2\], got 3"):
        energy_distance(e, e, exponent=3)
    with pytest.raises(EtudeError, match="y must be"):
        energy_distance(e, e[:, :2])
    with pytest.raises(EtudeError, match="margin must be a cosine"):
        BinomialDevianceLoss(margin=2)
