"""Bias loss against loops, its ranges, its reductions, and the released class.

`test_released_class` holds two numbers that the released class (lusinlu/biasloss-skipnet, read in
copies of it; global normalization, alpha = beta = 0.3) gives on two batches of torch's seed 5,
in float64; ours agrees to 1e-12.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.losses import BiasLoss, SkipBlock, feature_variance_weight

RELEASED = (1.0039116203177623, 1.8506025187969553)


def batch(seed=0, n=6, n_classes=4):
    g = torch.Generator().manual_seed(seed)
    scale = torch.rand(n, 1, 1, 1, generator=g, dtype=torch.float64) + 0.2
    maps = scale * torch.randn(n, 3, 2, 2, generator=g, dtype=torch.float64)
    logits = torch.randn(n, n_classes, generator=g, dtype=torch.float64)
    return maps, logits, torch.randint(n_classes, (n,), generator=g)


def by_loops(maps, logits, target, z_of, lowest=math.inf):
    variances = []
    for sample in maps.flatten(1).tolist():
        mean = sum(sample) / len(sample)
        variances.append(sum((a - mean) ** 2 for a in sample) / (len(sample) - 1))
    low, high = min(variances), max(variances)
    total = 0.0
    for row, y, var in zip(logits.tolist(), target.tolist(), variances, strict=True):
        cross = math.log(sum(math.exp(a) for a in row)) - row[y]
        total += z_of((var - min(low, lowest)) / (high - low)) * cross
    return total / len(target), low


@pytest.mark.parametrize("form", ["paper", "code"])
def test_equals_the_equation_in_loops(form):
    """The second batch of the global scope remembers the least variance of the first."""
    z_of = {
        "paper": lambda v: math.exp(0.4 * v) - 0.2,
        "code": lambda v: math.exp(0.2 * v) - 1 + 0.4,
    }[form]
    for scope in ("local", "global"):
        loss = BiasLoss(alpha=0.4, beta=0.2, scope=scope, form=form).double()
        first, second = batch(0), batch(1)
        second = (second[0] + 2 * second[0].sign(), *second[1:])
        expected, low = by_loops(*first, z_of)
        assert loss(*first).item() == pytest.approx(expected, rel=1e-12)
        expected, high = by_loops(*second, z_of, low if scope == "global" else math.inf)
        assert high > low
        assert loss(*second).item() == pytest.approx(expected, rel=1e-12)


def test_released_class():
    loss = BiasLoss(form="code").double()
    g = torch.Generator().manual_seed(5)
    for expected in RELEASED:
        maps = torch.randn(6, 3, 4, 4, generator=g, dtype=torch.float64)
        logits = torch.randn(6, 5, generator=g, dtype=torch.float64)
        target = torch.randint(5, (6,), generator=g)
        assert loss(maps, logits, target).item() == pytest.approx(expected, rel=1e-12)


def test_reductions_to_cross_entropy():
    maps, logits, target = batch()
    plain = F.cross_entropy(logits, target)
    torch.testing.assert_close(BiasLoss(alpha=0.0, beta=0.0)(maps, logits, target), plain)
    released = BiasLoss(alpha=1.0, beta=0.0, form="code")
    torch.testing.assert_close(released(maps, logits, target), plain)


def test_weights_span_their_range_and_rise():
    var = torch.tensor([3.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    for form, low, high in (
        ("paper", 0.7, math.exp(0.3) - 0.3),
        ("code", 0.3, math.exp(0.3) - 0.7),
    ):
        z = feature_variance_weight(var, form=form)
        assert z.min().item() == pytest.approx(low)
        assert z.max().item() == pytest.approx(high)
        assert z.argsort().tolist() == var.argsort().tolist()
        torch.testing.assert_close(feature_variance_weight(5 * var, form=form), z)
    lower = feature_variance_weight(var, torch.tensor(0.0))
    assert lower.max() > math.exp(0.3) - 0.3  # v exceeds 1


def test_the_weight_has_no_slope():
    maps, logits, target = batch()
    maps.requires_grad_(True)
    logits = logits + maps.flatten(1)[:, :4]
    loss = BiasLoss(scope="local")
    (found,) = torch.autograd.grad(loss(maps, logits, target), maps, retain_graph=True)
    fixed = loss.weights(maps.detach())
    each = F.cross_entropy(logits, target, reduction="none")
    (expected,) = torch.autograd.grad((fixed * each).mean(), maps)
    torch.testing.assert_close(found, expected)
    weight = feature_variance_weight(maps.flatten(1).var(dim=1))
    assert not weight.requires_grad


def test_gradcheck():
    maps, logits, target = batch()
    logits.requires_grad_(True)
    loss = BiasLoss().double()
    assert torch.autograd.gradcheck(lambda a: loss(maps, a, target), (logits,))


def test_only_training_moves_the_least_variance():
    maps, logits, target = batch()
    loss = BiasLoss().eval()
    loss(maps, logits, target)
    assert torch.isinf(loss.lowest)
    loss.train()(maps, logits, target)
    least = maps.flatten(1).var(dim=1).min()
    assert loss.lowest.item() == pytest.approx(least.item(), rel=1e-6)
    loss(9 * maps, logits, target)
    assert loss.lowest.item() == pytest.approx(least.item(), rel=1e-6)
    assert "lowest" in loss.state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_extreme_inputs_stay_finite(dtype, scope):
    for n in (1, 3):  # one sample, and constant variances: 0 / 0
        logits = (1e4 * torch.eye(n, 4)).to(dtype).requires_grad_(True)
        for maps in (torch.zeros(n, 2, 3), 1e4 * torch.ones(n, 2, 3), torch.ones(n, 1)):
            value = BiasLoss(scope=scope)(maps.to(dtype), logits, torch.full((n,), 3))
            value.backward()
            assert torch.isfinite(value)
            assert torch.isfinite(logits.grad).all()
    one_class = BiasLoss()(torch.randn(3, 5).to(dtype), torch.zeros(3, 1, dtype=dtype),
                           torch.zeros(3, dtype=torch.int64))  # fmt: skip
    assert one_class == 0


def test_skip_block_adds_what_it_projects():
    block = SkipBlock(2, 3)
    early, late = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4)
    weight = block.project.weight[:, :, 0, 0]
    small = early.reshape(2, 2, 4, 2, 4, 2).mean(dim=(3, 5))
    expected = late + torch.einsum("oc,bchw->bohw", weight, small)
    torch.testing.assert_close(block(early, late), expected)


def test_refusals():
    maps, logits, target = batch()
    with pytest.raises(EtudeError, match="alpha must be a number from 0 on, got -1"):
        BiasLoss(alpha=-1)
    with pytest.raises(EtudeError, match="beta must be"):
        BiasLoss(beta=math.nan)
    with pytest.raises(EtudeError, match="scope must be 'global' or 'local'"):
        BiasLoss(scope="all")
    with pytest.raises(EtudeError, match="form must be 'paper' or 'code'"):
        BiasLoss(form="other")
    with pytest.raises(EtudeError, match="embeddings must be of shape"):
        BiasLoss()(maps[:-1], logits, target)
    with pytest.raises(EtudeError, match=r"logits must be of shape \(B, K\)"):
        BiasLoss()(maps, logits[0], target)
    with pytest.raises(EtudeError, match="target must be"):
        BiasLoss()(maps, logits, target[:-1])
    with pytest.raises(EtudeError, match="variances must be"):
        feature_variance_weight(maps)
    with pytest.raises(EtudeError, match="form must be"):
        feature_variance_weight(torch.ones(2), form="x")
    with pytest.raises(EtudeError, match="n_early must be"):
        SkipBlock(0, 3)
    with pytest.raises(EtudeError, match="n_late must be"):
        SkipBlock(3, 0)
