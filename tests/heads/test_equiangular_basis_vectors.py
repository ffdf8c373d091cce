"""Equiangular basis vectors: their coherence, the fixed head on them, and its loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from etude.core import EtudeError, check_names, get_state, set_state
from etude.heads.equiangular_basis_vectors import EBVHead, EBVLoss, generate_ebv


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def worst_cosine(vectors: Tensor) -> float:
    """max over pairs of |cos|, by loops."""
    rows = [row.double() for row in vectors]
    worst = 0.0
    for i, a in enumerate(rows):
        for b in rows[:i]:
            worst = max(worst, abs(float(a @ b / (a.norm() * b.norm()))))
    return worst


@pytest.mark.parametrize(("n_vectors", "dim"), [(10, 5), (20, 19), (50, 12), (60, 30)])
def test_vectors_are_unit_and_no_pair_exceeds_alpha(n_vectors: int, dim: int) -> None:
    alpha = 1.5 * math.sqrt((n_vectors - dim) / (dim * (n_vectors - 1)))
    vectors = generate_ebv(n_vectors, dim, generator=seeded(0))
    assert vectors.shape == (n_vectors, dim)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(n_vectors))
    assert alpha / 1.5 <= worst_cosine(vectors) <= alpha + 1e-4 + 1e-6
    random = torch.randn(n_vectors, dim, generator=seeded(0))
    assert worst_cosine(random) > 1.3 * alpha


def test_in_the_plane_the_default_bound_stays_below_one() -> None:
    """1.5 times the Welch bound of ten vectors in two dimensions is 1: no bound at all."""
    vectors = generate_ebv(10, 2, generator=seeded(1))
    assert worst_cosine(vectors) <= 0.99 + 1e-4 + 1e-6


def test_up_to_dim_vectors_are_orthonormal_without_a_step() -> None:
    for n_vectors, dim in ((1, 1), (10, 10), (7, 20), (100, 100)):
        vectors = generate_ebv(n_vectors, dim, n_steps=0, generator=seeded(1))
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(n_vectors), atol=1e-5, rtol=0)


def test_bound_is_on_the_absolute_cosine() -> None:
    """A simplex code, whose cosines are negative only, could not have positive cosines."""
    cosines = generate_ebv(12, 6, generator=seeded(2))
    C = (cosines @ cosines.T).fill_diagonal_(0)
    assert (C > 0.1).any()
    assert (C < -0.1).any()


def test_vectors_depend_on_the_generator_only() -> None:
    torch.testing.assert_close(
        generate_ebv(12, 6, generator=seeded(3)), generate_ebv(12, 6, generator=seeded(3))
    )
    assert not torch.equal(
        generate_ebv(12, 6, generator=seeded(3)), generate_ebv(12, 6, generator=seeded(4))
    )


def test_slices_of_the_gram_matrix_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate_ebv(20, 10, generator=seeded(42))
    monkeypatch.setattr("etude.heads.equiangular_basis_vectors.SLICE", 7)
    torch.testing.assert_close(generate_ebv(20, 10, generator=seeded(42)), whole)


def test_release() -> None:
    """The release's loop (f56ec51, Generate_EBV/Generate_EBV.py) on a CPU, float32.

    20 vectors in 10 dimensions, threshold 0.344, slices of 7 rows, lr 1e-3, torch.manual_seed(42):
    it stops after 319 steps; ours does too, and all entries agree within 7e-7.
    """
    vectors = generate_ebv(20, 10, 0.344, n_steps=320, generator=seeded(42))
    released = torch.tensor(
        [[0.4134, 0.3858, 0.1307, -0.4889], [-0.1031, 0.0586, -0.0193, -0.1891]]
    )
    torch.testing.assert_close(vectors[[0, 19], :4], released, atol=1e-4, rtol=0)
    with pytest.raises(EtudeError, match="was not reached for 20 vectors in 10 dimensions"):
        generate_ebv(20, 10, 0.344, n_steps=319, generator=seeded(42))


def test_coinciding_rows_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows equal up to sign get a gradient along themselves, which never parts them."""
    draw, calls = torch.randn, []

    def twins(*shape: int, generator: torch.Generator | None) -> Tensor:
        rows = draw(*shape, generator=generator)
        if not calls:
            rows[1], rows[2] = rows[0], -rows[0]
        calls.append(shape)
        return rows

    monkeypatch.setattr(torch, "randn", twins)
    vectors = generate_ebv(8, 4, generator=seeded(5))
    assert worst_cosine(vectors) <= 1.5 * math.sqrt(4 / 28) + 1e-4 + 1e-6
    assert len(calls) > 1


def test_logits_and_loss_by_loops() -> None:
    loss = EBVLoss(4, 6, temperature=0.2, smoothing=0.1, generator=seeded(6)).double()
    z = torch.randn(5, 4, generator=seeded(7), dtype=torch.float64)
    target = torch.tensor([0, 5, 2, 2, 1])
    total = 0.0
    for i in range(5):
        length = math.sqrt(sum(float(v) ** 2 for v in z[i]))
        logits = []
        for k in range(6):
            inner = sum(float(z[i, j]) * float(loss.vectors[k, j]) for j in range(4))
            logits.append(inner / length / 0.2)
            assert float(loss.classify(z)[i, k]) == pytest.approx(logits[-1], abs=1e-12)
        log_sum = math.log(sum(math.exp(v) for v in logits))
        for k in range(6):
            share = 0.1 / 6 + (0.9 if k == target[i] else 0.0)
            total -= share * (logits[k] - log_sum) / 5
    assert float(loss(z, target)) == pytest.approx(total, abs=1e-12)


def test_nothing_of_the_classifier_is_trained() -> None:
    assert list(EBVLoss(4, 3).parameters()) == []
    assert list(EBVHead(4, 3, project=False).parameters()) == []
    head = EBVHead(8, 3, generator=seeded(8))
    assert [name for name, _ in head.named_parameters()] == ["projection.weight", "projection.bias"]
    assert head.projection.weight.shape == (3, 8)
    before = head.objective.vectors.clone()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1)
    x, target = torch.randn(30, 8, generator=seeded(9)), torch.arange(30) % 3
    first = head.loss(head(x), target)
    for _ in range(20):
        optimizer.zero_grad()
        loss = head.loss(head(x), target)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * float(first.detach())
    assert torch.equal(head.objective.vectors, before)


def test_logits_ignore_the_length_and_stay_within_the_temperature() -> None:
    head = EBVHead(5, 8, project=False, generator=seeded(10))
    x = torch.randn(6, 5, generator=seeded(11))
    torch.testing.assert_close(head(x), head(37.0 * x))
    assert head(1e6 * x).abs().max() <= 1 / 0.07 + 1e-4
    toward = head(head.objective.vectors)
    torch.testing.assert_close(toward.diagonal(), torch.full((8,), 1 / 0.07))
    assert torch.equal(toward.argmax(dim=1), torch.arange(8))
    assert torch.isfinite(head(torch.zeros(2, 5))).all()


def test_later_classes_take_unused_vectors() -> None:
    old = EBVHead(6, 3, n_vectors=10, generator=seeded(12))
    new = EBVHead(6, 5, n_vectors=10, generator=seeded(13))
    set_state(new, get_state(old))
    x = torch.randn(4, 6, generator=seeded(14))
    assert new(x).shape == (4, 5)
    torch.testing.assert_close(new(x)[:, :3], old(x))


def test_gradients() -> None:
    loss = EBVLoss(4, 6, generator=seeded(15)).double()
    z = torch.randn(3, 4, generator=seeded(16), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 5, 2])
    assert torch.autograd.gradcheck(lambda value: loss(value, target), (z,))
    (gradient,) = torch.autograd.grad(loss(z, target), z)
    torch.testing.assert_close((gradient * z).sum(dim=1), torch.zeros(3, dtype=torch.float64))


def test_head_and_loss_agree() -> None:
    head = EBVHead(4, 6, project=False, smoothing=0.1, generator=seeded(17))
    loss = EBVLoss(4, 6, smoothing=0.1, generator=seeded(17))
    x, target = torch.randn(7, 4, generator=seeded(18)), torch.arange(7) % 6
    torch.testing.assert_close(head.loss(head(x), target), loss(x, target))


def test_refusals() -> None:
    with pytest.raises(EtudeError, match=r"alpha must be from 0.3333 \(the Welch bound of 10"):
        generate_ebv(10, 5, 0.32)
    with pytest.raises(EtudeError, match="not reached"):
        generate_ebv(10, 5, 0.34, n_steps=50, generator=seeded(0))
    with pytest.raises(EtudeError, match="alpha must be"):
        generate_ebv(3, 1)
    with pytest.raises(EtudeError, match="n_vectors must be at least n_classes = 4"):
        EBVHead(8, 4, n_vectors=3)
    with pytest.raises(EtudeError, match="temperature must be positive"):
        EBVLoss(8, 4, temperature=0.0)
    with pytest.raises(EtudeError, match=r"smoothing must be in \[0, 1\)"):
        EBVLoss(8, 4, smoothing=1.0)
    with pytest.raises(EtudeError, match="ebv_dim must be dim = 8 without projection"):
        EBVHead(8, 4, project=False, ebv_dim=4)
    with pytest.raises(EtudeError, match="embeddings must be of width 8"):
        EBVLoss(8, 4)(torch.zeros(2, 5), torch.tensor([0, 1]))
    for method in (EBVHead, EBVHead.forward, EBVLoss, EBVLoss.forward):
        check_names(method)
