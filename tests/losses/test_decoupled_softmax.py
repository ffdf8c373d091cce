"""Decoupled softmax and soft top-k against loops, their limits, and the released code.

Official code: nilesh2797/DEXML at 7690769, losses.py (`SimLoss.compute_loss` with loss_sample
off) and utils/topk_utils.py, run on the inputs of `official_inputs`; the numbers stand in
`test_equals_the_released_code`. Decoupled loss and gradient agree to 1e-12; soft top-k to 1e-8,
which is the error of 32 halvings from another starting interval.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.losses import DecoupledSoftmaxLoss, SoftTopKLoss, log_soft_topk, soft_topk

HALF = (torch.float16, torch.bfloat16)


def official_inputs():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 12, generator=generator, dtype=torch.float64)
    positives = torch.zeros(3, 12, dtype=torch.bool)
    positives[0, [1, 5, 7]] = True
    positives[1, [0]] = True
    positives[2, [2, 3, 4, 8]] = True
    return logits, positives


def gradient(loss, logits, positives, mask=None):
    logits = logits.clone().requires_grad_(True)
    value = loss(logits, positives, mask)
    value.backward()
    return value.detach(), logits.grad


def decoupled_by_loops(logits, positives, mask=None):
    total = 0.0
    for b, row in enumerate(logits.tolist()):
        keep = [True] * len(row) if mask is None else mask[b].tolist()
        right = [k for k in range(len(row)) if positives[b, k] and keep[k]]
        wrong = [k for k in range(len(row)) if not positives[b, k] and keep[k]]
        terms = [math.log1p(sum(math.exp(row[n] - row[p]) for n in wrong)) for p in right]
        total += sum(terms) / len(terms) if terms else 0.0
    return total / len(logits)


def threshold_by_newton(row, k, a):
    """t of (2) by another road than halving: safeguarded Newton steps from the top scores."""
    t = -sorted(row)[-k]
    for _ in range(200):
        theta = [1 / (1 + math.exp(-a * (s + t))) for s in row]
        slope = sum(a * p * (1 - p) for p in theta)
        t -= max(-0.5, min(0.5, (sum(theta) - k) / slope))
    return t


def test_decoupled_equals_the_equation_in_loops():
    logits, positives = official_inputs()
    value = DecoupledSoftmaxLoss()(logits, positives).item()
    assert value == pytest.approx(decoupled_by_loops(logits, positives), rel=1e-12)
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    masked = DecoupledSoftmaxLoss()(logits, positives, mask).item()
    assert masked == pytest.approx(decoupled_by_loops(logits, positives, mask), rel=1e-12)
    cooler = DecoupledSoftmaxLoss(temperature=0.5)(logits, positives).item()
    assert cooler == pytest.approx(decoupled_by_loops(2 * logits, positives), rel=1e-12)


def test_soft_topk_equals_the_equation_in_loops():
    logits, positives = official_inputs()
    theta = soft_topk(logits, top_k=4, steepness=1.5, n_steps=60)
    total = 0.0
    for b, row in enumerate(logits.tolist()):
        t = threshold_by_newton(row, 4, 1.5)
        expected = [1 / (1 + math.exp(-1.5 * (s + t))) for s in row]
        torch.testing.assert_close(theta[b], torch.tensor(expected, dtype=torch.float64))
        right = [expected[k] for k in range(12) if positives[b, k]]
        total -= sum(math.log(p) for p in right) / len(right) / 3
    loss = SoftTopKLoss(top_k=4, steepness=1.5, n_steps=60)(logits, positives)
    assert loss.item() == pytest.approx(total, rel=1e-10)


def test_equals_the_released_code():
    logits, positives = official_inputs()
    value, slope = gradient(DecoupledSoftmaxLoss(), logits, positives)
    assert value.item() == pytest.approx(5.679642173530444, rel=1e-12)
    assert slope.norm().item() == pytest.approx(0.510082963110665, rel=1e-12)
    value, slope = gradient(SoftTopKLoss(top_k=4), logits, positives)
    assert value.item() == pytest.approx(3.042912917497732, rel=1e-8)
    assert slope.norm().item() == pytest.approx(0.5434961611779917, rel=1e-8)
    assert slope[0, 1].item() == pytest.approx(0.06591008710845508, rel=1e-8)


def test_one_positive_is_cross_entropy():
    logits, _ = official_inputs()
    target = torch.tensor([4, 0, 11])
    positives = F.one_hot(target, 12).bool()
    torch.testing.assert_close(
        DecoupledSoftmaxLoss()(logits, positives), F.cross_entropy(logits, target)
    )


def test_positives_do_not_feel_each_other():
    """A term's slope in another positive is 0, and the loss falls to 0; softmax stops at log|P|."""
    logits, positives = official_inputs()
    logits.requires_grad_(True)
    one = torch.zeros_like(positives)
    one[0, 1] = True
    others = positives & ~one
    DecoupledSoftmaxLoss()(logits, one, ~others).backward()
    assert (logits.grad[others] == 0).all()
    assert logits.grad[0, 1] < 0
    good = torch.where(positives, 60.0, -60.0)
    assert DecoupledSoftmaxLoss()(good, positives).item() < 1e-12
    log_p = good.log_softmax(1)[0][positives[0]]
    assert -log_p.mean().item() == pytest.approx(math.log(3), rel=1e-6)


def test_sampled_positives_average_to_the_whole():
    """Each positive is drawn equally often, and the unsampled ones are no negatives."""
    logits, positives = official_inputs()
    loss = DecoupledSoftmaxLoss(n_sampled=1, generator=torch.Generator().manual_seed(1))
    draws = torch.stack([loss(logits, positives) for _ in range(4000)])
    whole = DecoupledSoftmaxLoss()(logits, positives)
    assert abs(draws.mean() - whole) < 4 * draws.std() / math.sqrt(4000)
    assert draws.std() > 0
    everything = DecoupledSoftmaxLoss(n_sampled=4, generator=torch.Generator())
    torch.testing.assert_close(everything(logits, positives), whole)
    _, slope = gradient(loss, logits, positives)
    assert ((slope[0, positives[0]] != 0).sum()) == 1
    same = DecoupledSoftmaxLoss(n_sampled=1, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(same(logits, positives), draws[0])


def test_soft_topk_adds_up_and_ignores_a_shift():
    generator = torch.Generator().manual_seed(0)
    scores = 40 * torch.rand(8, 4000, generator=generator, dtype=torch.float64) - 20
    for k in (1, 5, 100, 3999):
        theta = soft_topk(scores, top_k=k)
        torch.testing.assert_close(theta.sum(1), torch.full((8,), float(k), dtype=torch.float64),
                                   atol=2e-6, rtol=0)  # fmt: skip
        torch.testing.assert_close(soft_topk(scores + 7, top_k=k), theta, atol=1e-7, rtol=0)
    torch.testing.assert_close(log_soft_topk(scores).exp(), soft_topk(scores))


def test_soft_topk_reaches_the_hard_choice():
    scores = torch.tensor([[3.0, 1.0, 2.0, -4.0]], dtype=torch.float64)
    hard = soft_topk(scores, top_k=2, steepness=200.0)
    torch.testing.assert_close(hard, torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64),
                               atol=1e-9, rtol=0)  # fmt: skip
    mixed = soft_topk(scores.repeat(2, 1), top_k=torch.tensor([1, 3]), steepness=200.0)
    assert mixed.round().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_the_bracket_holds_for_more_labels_than_the_released_one():
    """With 60,000 equal scores and k = 1 the threshold lies below the release's -max - 10 / a."""
    theta = soft_topk(torch.zeros(1, 60_000, dtype=torch.float64), top_k=1)
    assert theta.sum().item() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("log", [False, True])
def test_implicit_gradient(log):
    logits, _ = official_inputs()
    logits = (logits / 4).requires_grad_(True)
    operator = log_soft_topk if log else soft_topk
    assert torch.autograd.gradcheck(
        lambda s: operator(s, top_k=torch.tensor([2, 1, 5]), steepness=1.5, n_steps=60), (logits,)
    )
    operator(logits, top_k=3).mul(torch.arange(12.0)).sum().backward()
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(3, dtype=torch.float64))


def test_gradcheck_of_both_losses():
    logits, positives = official_inputs()
    logits = (logits / 4).requires_grad_(True)
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.8
    for loss in (DecoupledSoftmaxLoss(temperature=0.7), SoftTopKLoss(top_k=4, n_steps=60)):
        assert torch.autograd.gradcheck(lambda s, f=loss: f(s, positives, mask), (logits,))


def test_soft_topk_loss_options():
    logits, positives = official_inputs()
    per_row = SoftTopKLoss(top_k=None, n_steps=60)(logits, positives)
    rows = [
        SoftTopKLoss(top_k=k, n_steps=60)(logits[i : i + 1], positives[i : i + 1])
        for i, k in enumerate((3, 1, 4))
    ]
    torch.testing.assert_close(per_row, torch.stack(rows).mean())
    generator = torch.Generator().manual_seed(0)
    drawing = SoftTopKLoss(top_k=2, generator=generator, n_steps=60)
    _, slope = gradient(drawing, logits, positives)
    assert (slope[2, positives[2]] == 0).sum() == 2  # two of four drawn, two left out
    cold = SoftTopKLoss(top_k=4, temperature=0.5)(logits, positives)
    torch.testing.assert_close(cold, SoftTopKLoss(top_k=4)(2 * logits, positives))


@pytest.mark.parametrize(
    "loss",
    [
        DecoupledSoftmaxLoss(),
        SoftTopKLoss(top_k=4),
        SoftTopKLoss(top_k=6, n_steps=1),  # every sigmoid saturates: all v are 0
        SoftTopKLoss(top_k=None),
    ],
)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_value_and_gradient_stay_finite(loss, dtype):
    _, positives = official_inputs()
    signs = torch.where(torch.arange(12) % 2 == 0, 1e4, -1e4).to(dtype)
    for logits in (signs.repeat(3, 1), torch.zeros(3, 12, dtype=dtype)):
        value, slope = gradient(loss, logits, positives)
        assert torch.isfinite(value)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize("loss", [DecoupledSoftmaxLoss(), SoftTopKLoss(top_k=4)])
def test_half_precision_close_to_double(loss):
    logits, positives = official_inputs()
    exact = loss(logits, positives).item()
    for dtype, tolerance in zip(HALF, (3e-3, 3e-2), strict=True):
        value = loss(logits.to(dtype), positives)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("loss", [DecoupledSoftmaxLoss(), DecoupledSoftmaxLoss(n_sampled=1),
                                  SoftTopKLoss(top_k=4), SoftTopKLoss(top_k=None)])  # fmt: skip
def test_rows_with_nothing_to_tell_apart_add_zero(loss):
    logits, positives = official_inputs()
    none, every = torch.zeros_like(positives), torch.ones_like(positives)
    for labels in (none, every[:, :4]):
        value, slope = gradient(loss, logits[:, : labels.shape[1]], labels)
        assert value.item() == 0
        assert (slope == 0).all()
    one = positives.clone()
    one[1:] = False
    if not getattr(loss, "n_sampled", None):
        first = loss(logits[:1], positives[:1])
        torch.testing.assert_close(loss(logits, one), first / 3)


def test_label_order_and_batch_do_not_matter():
    logits, positives = official_inputs()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for loss in (DecoupledSoftmaxLoss(), SoftTopKLoss(top_k=4)):
        whole = loss(logits, positives)
        torch.testing.assert_close(loss(logits[:, order], positives[:, order]), whole)
        singles = [loss(logits[i : i + 1], positives[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(torch.stack(singles).mean(), whole)


def test_refusals():
    logits, positives = official_inputs()
    with pytest.raises(EtudeError, match="positives must be bool"):
        DecoupledSoftmaxLoss()(logits, positives.long())
    with pytest.raises(EtudeError, match="positives must be of the shape of logits"):
        SoftTopKLoss()(logits, positives[:, :5])
    with pytest.raises(EtudeError, match="mask must be bool"):
        DecoupledSoftmaxLoss()(logits, positives, torch.ones(3, 12))
    with pytest.raises(EtudeError, match=r"logits must be of shape \(B, K\)"):
        DecoupledSoftmaxLoss()(logits[0], positives[0])
    with pytest.raises(EtudeError, match="temperature must be positive"):
        DecoupledSoftmaxLoss(temperature=0)
    with pytest.raises(EtudeError, match="n_sampled must be None or >= 1"):
        DecoupledSoftmaxLoss(n_sampled=0)
    with pytest.raises(EtudeError, match="top_k must be None or at least 1"):
        SoftTopKLoss(top_k=0)
    for k in (0, 12, torch.tensor([1, 2, 12])):
        with pytest.raises(EtudeError, match="top_k must be at least 1 and less than"):
            soft_topk(logits, top_k=k)
    with pytest.raises(EtudeError, match="steepness must be positive"):
        log_soft_topk(logits, steepness=0.0)
    with pytest.raises(EtudeError, match="n_steps must be at least 1"):
        soft_topk(logits, n_steps=0)
    with pytest.raises(EtudeError, match=r"scores must be of shape \(B, K\)"):
        soft_topk(logits[0])
