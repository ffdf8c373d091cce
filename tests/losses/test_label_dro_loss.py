"""Label-distributionally robust losses against loops, their limits, and the released code."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.losses import ALDRKLLoss, LDRKLLoss

PLAIN = [(0.3, 0.0), (1.0, 0.5), (4.0, 2.0)]  # temperature, margin


def batch(n=6, n_classes=5, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(n_classes, (n,), generator=generator)


def closed_form(row, y, lam, c):
    terms = [math.exp((f - row[y] + (c if k != y else 0.0)) / lam) for k, f in enumerate(row)]
    return lam * math.log(sum(terms) / len(row))


def scaled(row, normalize):
    if normalize == "softplus":
        row = [math.log1p(math.exp(f)) for f in row]
    mean = 1.0 if normalize == "none" else sum(abs(f) for f in row) / len(row)
    return [f / mean for f in row]


def adaptive_by_loops(logits, target, before, lam0, c, alpha, normalize):
    """Loss and new lambdas of (3) to (5), sample by sample."""
    total, after = 0.0, []
    for row, y, last in zip(logits.tolist(), target.tolist(), before, strict=True):
        f = scaled(row, normalize)
        p = np.exp(np.array(f) / last) / np.exp(np.array(f) / last).sum() + 1e-5
        p = p / p.sum()
        log_k = math.log(len(f))
        kl = sum(q * math.log(len(f) * q) for q in p)
        lam = lam0 - lam0 * kl / (alpha * log_k)
        after.append(lam)
        total += closed_form(f, y, lam, c) - alpha * log_k / (2 * lam0) * (lam - lam0) ** 2
    return total / len(target), after


@pytest.mark.parametrize("normalize", ["mean_abs", "softplus", "none"])
@pytest.mark.parametrize(("temperature", "margin"), PLAIN)
def test_fixed_lambda_equals_the_equation_in_loops(temperature, margin, normalize):
    logits, target = batch()
    loss = LDRKLLoss(temperature=temperature, margin=margin, normalize=normalize)
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    terms = [closed_form(scaled(row, normalize), y, temperature, margin) for row, y in rows]
    assert loss(logits, target).item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


@pytest.mark.parametrize(("temperature", "margin"), PLAIN)
def test_it_is_the_maximum_over_label_weights(temperature, margin):
    """(1): no weights do better than the closed form, and the softmax of the gaps attains it."""
    logits, target = batch(n=1)
    value = LDRKLLoss(temperature=temperature, margin=margin, normalize="none")(logits, target)
    f, y = logits[0].numpy(), int(target[0])
    gap = f - f[y] + margin * (np.arange(5) != y)

    def charge(p):
        return p @ gap - temperature * (p * np.log(5 * p)).sum()

    rng = np.random.default_rng(0)
    assert max(charge(rng.dirichlet(np.ones(5))) for _ in range(500)) < value.item()
    best = np.exp(gap / temperature) / np.exp(gap / temperature).sum()
    assert charge(best) == pytest.approx(value.item(), rel=1e-12)


def test_lambda_one_without_margin_is_cross_entropy_minus_log_k():
    logits, target = batch()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = LDRKLLoss(temperature=1.0, margin=0.0, normalize="none")(ours, target)
    reference = F.cross_entropy(theirs, target)
    torch.testing.assert_close(loss, reference - math.log(5))
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_small_lambda_is_the_hinge_loss_and_large_lambda_a_mean():
    logits, target = batch()
    for c in (0.0, 1.0):
        gap = logits - logits.gather(1, target[:, None]) + c * (1 - F.one_hot(target, 5))
        for lam, limit in ((1e-6, gap.amax(1).mean()), (1e8, gap.mean())):
            loss = LDRKLLoss(temperature=lam, margin=c, normalize="none")(logits, target)
            torch.testing.assert_close(loss, limit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("c", [0.0, 0.1, 1.0])
def test_at_large_lambda_the_loss_is_symmetric(c):
    """Its sum over all labels is (K - 1) c for any scores, so uniform noise moves no minimum."""
    logits, _ = batch()
    loss = LDRKLLoss(temperature=1e9, margin=c, normalize="none")
    total = sum(loss(logits, torch.full((6,), y)) for y in range(5))
    assert total.item() == pytest.approx(4 * c, abs=1e-6)


def test_large_lambda_is_exact_in_single_precision():
    logits, target = batch()
    loss = LDRKLLoss(temperature=1e6, margin=0.1)
    single = loss(logits.float(), target).item()
    assert single == pytest.approx(loss(logits, target).item(), rel=1e-5)


@pytest.mark.parametrize("normalize", ["mean_abs", "softplus", "none"])
@pytest.mark.parametrize(("lam0", "alpha"), [(10.0, 2.0), (0.5, 1.2), (1.0, 5.0)])
def test_adaptive_equals_loops_over_two_visits(normalize, lam0, alpha):
    logits, target = batch()
    loss = ALDRKLLoss(
        temperature=lam0, margin=0.3, alpha=alpha, normalize=normalize, n_samples=9
    ).double()
    places, before = torch.tensor([8, 1, 3, 0, 7, 5]), [lam0] * 6
    for scores in (logits, -0.5 * logits):
        value = loss(scores, target, places)
        expected, before = adaptive_by_loops(scores, target, before, lam0, 0.3, alpha, normalize)
        assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(loss.lambdas[places].numpy(), before, rtol=1e-12)
    assert (loss.lambdas[[2, 4, 6]] == lam0).all()  # never visited


def test_equals_the_released_code():
    """Optimization-AI/ICML2023_LDR at 732fc85, loss.py, run in float64 on ``batch()``.

    LDRLoss_V1 (its threshold is the margin), and ALDRLoss_V1 with margin 1, lambda_0 = 0.5,
    alpha = 2 at two visits, the second with column k of the logits multiplied by k + 1. It
    keeps log K in float32, hence 1e-7 here.
    """
    logits, target = batch()
    assert LDRKLLoss(margin=2.0, temperature=1.0)(logits, target).item() == pytest.approx(
        3.3259017720617385, rel=1e-12
    )
    assert LDRKLLoss()(logits, target).item() == pytest.approx(0.6932125937865159, rel=1e-12)
    loss = ALDRKLLoss(margin=1.0, temperature=0.5, n_samples=6).double()
    for factor, value, lambdas, slope in RELEASED:
        scores = logits.clone().requires_grad_()
        found = loss(scores * torch.tensor(factor, dtype=torch.float64), target, torch.arange(6))
        found.backward()
        assert found.item() == pytest.approx(value, rel=1e-7)
        np.testing.assert_allclose(loss.lambdas.numpy(), lambdas, rtol=1e-7)
        np.testing.assert_allclose(scores.grad[0].numpy(), slope, rtol=1e-6, atol=1e-8)


RELEASED = [
    # factors of the columns, loss, lambdas, gradient of row 0
    (
        [1.0] * 5,
        2.2877184695983703,
        [0.331392346, 0.288071648, 0.363074081, 0.351275086, 0.374119258, 0.271795305],
        [0.026506559, 0.028305739, -0.047523887, 0.045244555, 0.026956566],
    ),
    (
        [1.0, 2.0, 3.0, 4.0, 5.0],
        2.587721562127624,
        [0.259694991, 0.250703143, 0.413757507, 0.323954444, 0.357479215, 0.250781371],
        [0.013911585, 0.027920358, -0.043566957, 0.057835951, 0.069524436],
    ),
]


def test_lambda_stays_within_its_bounds_and_is_small_where_the_network_is_sure():
    rows = torch.tensor([[9.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    for alpha, lam0 in itertools.product((1.01, 2.0, 10.0), (0.05, 1.0, 10.0)):
        loss = ALDRKLLoss(temperature=lam0, alpha=alpha, normalize="none", n_samples=2).double()
        for _ in range(5):
            loss(rows, torch.tensor([1, 1]), torch.arange(2))
        sure, unsure = loss.lambdas.tolist()
        assert (1 - 1 / alpha) * lam0 - 1e-12 <= sure < unsure <= lam0 + 1e-12


def test_lambda_carries_no_gradient_and_does_not_see_the_label():
    """With lambda_i held at what the buffer says, the gradient of (2) alone is the loss's."""
    logits, target = batch()
    loss = ALDRKLLoss(temperature=0.7, n_samples=6).double()
    ours = logits.clone().requires_grad_()
    loss(ours, target, torch.arange(6)).backward()
    held = loss.lambdas.clone()
    theirs = logits.clone().requires_grad_()
    total = sum(
        LDRKLLoss(temperature=held[i].item(), margin=0.1, normalize="mean_abs")(
            theirs[i : i + 1], target[i : i + 1]
        )
        for i in range(6)
    )
    (total / 6).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    other = ALDRKLLoss(temperature=0.7, n_samples=6).double()
    other(logits, (target + 1) % 5, torch.arange(6))
    torch.testing.assert_close(other.lambdas, held)


def test_evaluation_and_calls_without_indices_leave_the_memory_alone():
    logits, target = batch()
    loss = ALDRKLLoss(temperature=0.5, n_samples=6).double()
    first = loss(logits, target)
    assert (loss.lambdas == 0.5).all()
    torch.testing.assert_close(first, loss.eval()(logits, target, torch.arange(6)))
    assert (loss.lambdas == 0.5).all()
    loss.train()(logits, target, torch.arange(6))
    assert (loss.lambdas < 0.5).all()


@pytest.mark.parametrize("normalize", ["mean_abs", "softplus", "none"])
def test_gradcheck(normalize):
    logits, target = batch(n=4, n_classes=3)
    logits.requires_grad_(True)
    for lam in (0.3, 10.0):
        loss = LDRKLLoss(temperature=lam, margin=0.2, normalize=normalize)
        assert torch.autograd.gradcheck(lambda z, f=loss: f(z, target), (logits,))


def test_scale_does_not_matter_and_classes_may_be_permuted():
    logits, target = batch()
    for loss in (ALDRKLLoss(temperature=0.5), LDRKLLoss(normalize="mean_abs")):
        whole = loss(logits, target)
        torch.testing.assert_close(loss(7.0 * logits, target), whole)
        order = torch.tensor([3, 0, 4, 2, 1])
        torch.testing.assert_close(loss(logits[:, order], order.argsort()[target]), whole)
        singles = [loss(logits[i : i + 1], target[i : i + 1]) for i in range(6)]
        torch.testing.assert_close(torch.stack(singles).mean(), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", ["mean_abs", "softplus", "none"])
def test_value_and_gradient_stay_finite(dtype, normalize):
    for rows in ([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], [[0.0] * 3] * 2, [[-1e4] * 3] * 2):
        for lam in (0.05, 10.0):
            for loss in (
                LDRKLLoss(temperature=lam, normalize=normalize),
                ALDRKLLoss(temperature=lam, normalize=normalize, n_samples=2),
            ):
                logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
                target = torch.tensor([0, 0])  # one class, of three
                value = loss(logits, target) if lam > 1 or isinstance(loss, LDRKLLoss) else loss(
                    logits, target, torch.arange(2)
                )  # fmt: skip
                value.backward()
                assert torch.isfinite(value)
                assert torch.isfinite(logits.grad).all()


def test_half_precision_close_to_double():
    logits, target = batch()
    exact = ALDRKLLoss(temperature=0.5)(logits, target).item()
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        loss = ALDRKLLoss(temperature=0.5)(logits.to(dtype), target)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact, rel=tolerance)


def test_refusals():
    logits, target = batch()
    with pytest.raises(EtudeError, match="temperature must be a positive number, got 0"):
        LDRKLLoss(temperature=0.0)
    with pytest.raises(EtudeError, match="margin must be a number from 0 on"):
        LDRKLLoss(margin=-0.1)
    with pytest.raises(EtudeError, match="alpha must be a number above 1, got 1"):
        ALDRKLLoss(alpha=1.0)
    with pytest.raises(EtudeError, match="normalize must be one of mean_abs, softplus, none"):
        ALDRKLLoss(normalize="l2")
    with pytest.raises(EtudeError, match=r"logits must be of shape \(B, K\), K >= 2"):
        ALDRKLLoss()(logits[:, :1], target)
    with pytest.raises(EtudeError, match="target must be"):
        ALDRKLLoss()(logits, target[:-1])
    with pytest.raises(EtudeError, match="indices must be in"):
        ALDRKLLoss(n_samples=5)(logits, target, torch.arange(6))
    with pytest.raises(EtudeError, match="indices must be"):
        ALDRKLLoss(n_samples=6)(logits, target, torch.arange(5))
