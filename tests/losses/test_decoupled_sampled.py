"""Decoupled softmax with sampled negatives: exact with all of them, right on average with few.

Few of them are also held to (1) in loops, from the same draw.
"""

import math

import pytest
import torch

from etude.core import EtudeError
from etude.losses import DecoupledSoftmaxLoss


def dual(n_labels=40):
    """Three rows, a table of labels, and their scores; six positives."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    table = torch.randn(n_labels, 6, generator=generator, dtype=torch.float64)
    positives = torch.zeros(3, n_labels, dtype=torch.bool)
    positives[0, [3, 20, 31]] = positives[1, [3]] = positives[2, [0, 39]] = True
    return rows.requires_grad_(True), table.requires_grad_(True), positives


def test_all_negatives_sampled_is_the_full_loss():
    rows, table, positives = dual()
    for n_sampled in (None, 1):
        losses = [
            DecoupledSoftmaxLoss(
                temperature=0.7, n_sampled=n_sampled, generator=torch.Generator().manual_seed(0)
            )
            for _ in range(2)
        ]
        torch.randperm(40, generator=losses[0].generator)  # what `sampled` draws first
        full = losses[0](rows @ table.T, positives)
        part = losses[1].sampled(rows, positives, lambda ids: table[ids], n_negatives=40)
        torch.testing.assert_close(part, full, rtol=1e-12, atol=0)
        for one, other in zip(
            *(torch.autograd.grad(x, (rows, table)) for x in (part, full)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_sampled_sums_over_negatives_are_right_on_average():
    """Of one positive, exp(loss) - 1 is the scaled sum over the sampled negatives."""
    rows, table, positives = dual()
    rows, table, positives = rows.detach()[1:2], table.detach(), positives[1:2]
    loss = DecoupledSoftmaxLoss(generator=torch.Generator().manual_seed(1))
    drawn = torch.stack([
        loss.sampled(rows, positives, lambda ids: table[ids], n_negatives=8) for _ in range(3000)
    ])  # fmt: skip
    full = DecoupledSoftmaxLoss()(rows @ table.T, positives)
    sums, expected = drawn.expm1(), full.expm1().item()
    error = sums.std().item() / math.sqrt(3000)
    assert abs(sums.mean().item() - expected) < 4 * error
    assert error < 0.03 * expected
    assert drawn.mean() < full  # the logarithm of a sum that varies
    more = torch.stack([
        loss.sampled(rows, positives, lambda ids: table[ids], n_negatives=32) for _ in range(300)
    ])  # fmt: skip
    assert full - more.mean() < 0.5 * (full - drawn.mean())


def test_only_drawn_labels_and_positives_are_encoded():
    rows, table, positives = dual()
    asked = []

    def encode(ids):
        asked.append(ids)
        return table[ids]

    DecoupledSoftmaxLoss().sampled(rows, positives, encode, n_negatives=5)
    assert len(asked) == 1
    assert len(asked[0]) == 5 + 6
    assert asked[0][5:].tolist() == [3, 20, 31, 3, 0, 39]
    with pytest.raises(EtudeError, match="n_negatives must be from 1 to 40, got 41"):
        DecoupledSoftmaxLoss().sampled(rows, positives, encode, n_negatives=41)
    every = torch.ones(3, 40, dtype=torch.bool)  # nothing is a negative
    assert DecoupledSoftmaxLoss().sampled(rows, every, encode, n_negatives=5).item() == 0


def test_few_negatives_are_the_equation_in_loops():
    rows, table, positives = dual()
    loss = DecoupledSoftmaxLoss(temperature=0.7, generator=torch.Generator().manual_seed(8))
    value = loss.sampled(rows, positives, lambda ids: table[ids], n_negatives=20)
    drawn = torch.randperm(40, generator=torch.Generator().manual_seed(8))[:20].tolist()
    assert positives[:, drawn].any()  # a drawn positive is no negative
    total = 0.0
    for b in range(3):
        s = (table @ rows[b] / 0.7).tolist()
        against = 40 / 20 * sum(math.exp(s[n]) for n in drawn if not positives[b, n])
        right = positives[b].nonzero()[:, 0].tolist()
        total += sum(math.log1p(against / math.exp(s[p])) for p in right) / len(right) / 3
    assert value.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_answered_in_float32(dtype):
    rows, table, positives = (x.detach() for x in dual())
    loss = DecoupledSoftmaxLoss(temperature=1e-5)  # scores above 65,504, where float16 ends
    got = loss.sampled(rows.to(dtype), positives, lambda i: table.to(dtype)[i], n_negatives=40)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loss(rows @ table.T, positives).item(), rel=0.05)


def test_rows_without_a_term_have_no_slope():
    rows, table, positives = dual()
    for labels in (torch.zeros_like(positives), torch.ones_like(positives)):
        loss = DecoupledSoftmaxLoss().sampled(rows, labels, lambda i: table[i], n_negatives=5)
        assert loss.item() == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, (rows, table)))


def test_refusals():
    rows, table, positives = dual()
    sampled = DecoupledSoftmaxLoss().sampled
    for r, p, message in (
        (rows[:2], positives, r"positives must be \(B, K\), with embeddings"),
        (rows, positives[0], r"positives must be \(B, K\), with embeddings"),
        (rows, positives.long(), "positives must be bool"),
    ):
        with pytest.raises(EtudeError, match=message):
            sampled(r, p, lambda ids: table[ids], n_negatives=3)
    with pytest.raises(EtudeError, match="n_negatives must be from 1 to 40, got 0"):
        sampled(rows, positives, lambda ids: table[ids], n_negatives=0)
