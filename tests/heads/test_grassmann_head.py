"""Grassmann class representation: the subspace head, its Riemannian SGD, and the probe of both."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.core import EtudeError, check_names, get_state, set_state
from etude.heads.grassmann_head import (
    GrassmannHead,
    GrassmannProbe,
    GrassmannSGD,
    grassmann_retract,
)
from etude.heads.naive_bayes_probe import LogisticProbe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def head(dim: int = 6, n_classes: int = 3, k: int = 2, seed: int = 1) -> GrassmannHead:
    model = GrassmannHead(dim, n_classes, subspace_dim=k, generator=seeded(seed)).double()
    model.bases.data = torch.linalg.qr(model.bases.data)[0]  # to the last bit of float64
    return model


def gap_from_orthonormal(bases: Tensor) -> float:
    k = bases.shape[-1]
    return float((bases.mT @ bases - torch.eye(k, dtype=bases.dtype)).abs().max())


def train(
    model: GrassmannHead, optimizer: GrassmannSGD, n_steps: int, seed: int = 2
) -> list[float]:
    K, D, _ = model.bases.shape
    x = normal(60, D, seed=seed).to(model.bases.dtype)
    y = torch.arange(60) % K
    losses = []
    for _ in range(n_steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_logits_by_loops() -> None:
    model, x = head(), normal(4, 6)
    logits = model(x).detach()
    for b in range(4):
        for c in range(3):
            S, unit = model.bases[c].detach(), x[b] / x[b].norm()
            squares = sum(float(S[:, j] @ unit) ** 2 for j in range(2))
            assert logits[b, c].item() == pytest.approx(25 * squares**0.5, abs=1e-12)


def test_logits_know_the_subspace_not_its_basis_nor_the_feature_s_length() -> None:
    model, x = head(), normal(5, 6)
    logits = model(x).detach()
    rotation = torch.linalg.qr(normal(3, 2, 2, seed=7))[0]
    model.bases.data = model.bases.data @ rotation
    torch.testing.assert_close(model(x).detach(), logits)
    torch.testing.assert_close(model(-3.7 * x).detach(), logits)
    assert (logits >= 0).all()
    assert (logits <= 25).all()


def test_dimension_1_is_the_absolute_cosine_and_the_full_one_says_nothing() -> None:
    x = normal(5, 6)
    line = head(k=1)
    cosine = F.cosine_similarity(x[:, None], line.bases.detach()[None, :, :, 0], dim=2)
    torch.testing.assert_close(line(x).detach(), 25 * cosine.abs())
    torch.testing.assert_close(head(k=6)(x).detach(), torch.full((5, 3), 25.0).double())


def test_retract_is_the_geodesic_of_principal_angles() -> None:
    """Between S and the end lie the angles |t| Sigma; at t = 0 nothing moves; it has no kink."""
    S = head(dim=7, k=3).bases.detach()
    M = normal(3, 7, 3, seed=3)
    H = M - S @ (S.mT @ M)
    H = H / H.norm() * 0.9  # every angle below pi / 2, so that principal angles can tell them
    torch.testing.assert_close(grassmann_retract(S, H, 0.0), S)
    end = grassmann_retract(S, H, -0.8)
    assert gap_from_orthonormal(end) < 1e-14
    cosines = torch.linalg.svdvals(S.mT @ end)
    torch.testing.assert_close(
        cosines.clamp(max=1).acos().sort().values, 0.8 * torch.linalg.svdvals(H).sort().values
    )
    small = 1e-6
    torch.testing.assert_close((grassmann_retract(S, H, small) - S) / small, H, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "every", "allowed"),
    [(torch.float32, 5, 1e-6), (torch.float64, 5, 1e-14), (torch.float64, 10**9, 1e-12)],
)
def test_bases_stay_orthonormal_for_a_thousand_steps(
    dtype: torch.dtype, every: int, allowed: float
) -> None:
    model = GrassmannHead(32, 5, subspace_dim=4, generator=seeded(0)).to(dtype)
    optimizer = GrassmannSGD([model.bases], lr=0.1, reorthonormalize_every=every)
    start, losses = model.bases.detach().clone(), train(model, optimizer, 1000)
    assert gap_from_orthonormal(model.bases.detach()) < allowed
    assert losses[-1] < 0.5 * losses[0]
    assert (model.bases.detach() - start).abs().max() > 0.1


def test_one_step_lowers_the_loss_and_lr_0_changes_nothing() -> None:
    model = head()
    model.bases.data[:, :, 1] *= -1  # a QR decomposition would turn this column over
    before = model.bases.detach().clone()
    train(model, GrassmannSGD([model.bases], lr=0.0), 3)
    torch.testing.assert_close(model.bases.detach(), before)
    losses = train(model, GrassmannSGD([model.bases], lr=1e-3, momentum=0.0), 20)
    assert all(after < earlier for earlier, after in pairwise(losses))


def test_momentum_is_projected_at_the_current_bases() -> None:
    """A step of momentum alone (no gradient) leaves along H = M - S S^T M, from zero distance."""
    model = head()
    optimizer = GrassmannSGD([model.bases], lr=0.1, reorthonormalize_every=10**9)
    train(model, optimizer, 4)
    S = model.bases.detach().clone()
    M = optimizer.state[model.bases]["momentum_buffer"].clone()
    assert (S.mT @ M).abs().max() > 1e-3  # the buffer itself is not tangent
    model.bases.grad = torch.zeros_like(S)
    optimizer.step()
    H = 0.9 * (M - S @ (S.mT @ M))
    torch.testing.assert_close(model.bases.detach(), grassmann_retract(S, H, -0.1))


def test_bases_are_made_orthonormal_at_the_first_update_and_every_fifth() -> None:
    model = head()
    optimizer = GrassmannSGD([model.bases], lr=0.0, reorthonormalize_every=5)
    gaps = []
    for _ in range(7):
        model.bases.data = model.bases.data * 1.01
        model.bases.grad = torch.zeros_like(model.bases)
        optimizer.step()
        gaps.append(gap_from_orthonormal(model.bases.detach()))
    assert [gap < 1e-12 for gap in gaps] == [n % 5 == 0 for n in range(7)]


def test_other_parameters_take_the_steps_of_sgd() -> None:
    ours, theirs = torch.nn.Linear(6, 6).double(), torch.nn.Linear(6, 6).double()
    theirs.load_state_dict(ours.state_dict())
    a, b = head(), head()
    first = GrassmannSGD([a.bases], ours.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
    second = GrassmannSGD([b.bases], lr=0.05, momentum=0.8)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
    x, y = normal(9, 6), torch.arange(9) % 3
    for _ in range(5):
        for model, body, optimizers in ((a, ours, [first]), (b, theirs, [second, reference])):
            loss = F.cross_entropy(model(body(x)), y)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(a.bases, b.bases)  # weight decay never reached them


def test_release() -> None:
    """The release's _single_tensor_sgd (6e61485, gcr/rsgd.py) on a CPU in float64.

    Two classes, D = 5, k = 2, inputs by torch seed 5 as below, 7 steps at lr 0.1 with weight
    decay 1e-4. With momentum 0.9 and no QR all entries agreed within 3e-15; without momentum and
    with a QR at steps 1 and 6, where columns may flip, the projectors S S^T within 1e-15.
    """
    generator = seeded(5)
    S = torch.linalg.qr(torch.randn(2, 5, 2, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)

    def run(momentum: float, every: int) -> tuple[Tensor, float]:
        model = head(dim=5, n_classes=2)
        model.bases.data = S.clone()
        optimizer = GrassmannSGD(
            [model.bases], lr=0.1, momentum=momentum, reorthonormalize_every=every
        )
        for _ in range(7):
            loss = F.cross_entropy(model(x), torch.arange(12) % 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.bases.detach(), loss.item()

    bases, loss = run(0.9, 10**9)
    released = [-0.464756064694, 0.094755882159, -0.026483918480, 0.600334067221, 0.643366717295]
    assert bases[0, :, 0].tolist() == pytest.approx(released, abs=1e-11)
    released = [0.241295835676, -0.906795207381, 0.228066961475, -0.130332136702, -0.224717081644]
    assert bases[1, :, 1].tolist() == pytest.approx(released, abs=1e-11)
    assert loss == pytest.approx(1.3144563044779631, abs=1e-12)
    bases, loss = run(0.0, 5)
    projector = bases @ bases.mT
    assert projector[0].diagonal().tolist() == pytest.approx(
        [0.4083603938924, 0.1717298582496, 0.4608302143998, 0.5837798954388, 0.3752996380196],
        abs=1e-11,
    )
    assert loss == pytest.approx(0.45698789570857845, abs=1e-12)


def test_gradients_also_where_a_projection_is_zero() -> None:
    model, x = head(), normal(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(model, (x,))
    bases = torch.eye(4)[:, :2][None]
    flat = GrassmannHead(4, 1, subspace_dim=2, generator=seeded(0))
    flat.bases.data = bases
    rows = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    logits = flat(rows)
    logits.sum().backward()
    assert logits.tolist() == [[0.0], [0.0]]
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(flat.bases.grad).all()


def test_probe_finds_classes_that_are_planes_where_no_direction_is() -> None:
    """Three random planes in 12 dimensions, rows of both signs: their class means are zero."""
    generator = np.random.default_rng(0)
    planes = np.linalg.qr(generator.normal(size=(3, 12, 2)))[0]
    y = np.arange(450) % 3
    x = np.einsum("ndk,nk->nd", planes[y], generator.normal(size=(450, 2)))
    x = x + 0.05 * generator.normal(size=x.shape)
    probe = GrassmannProbe(12, 3, subspace_dim=2, n_steps=300, seed=3).fit(x[:300], y[:300])
    assert (probe.logits(x[300:]).argmax(axis=1) == y[300:]).mean() > 0.95
    assert gap_from_orthonormal(torch.from_numpy(probe.bases_).double()) < 1e-6
    linear = LogisticProbe().fit(x[:300], y[:300])
    assert (linear.predict(x[300:]) == y[300:]).mean() < 0.5


def test_learning_rate_of_the_probe_falls_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, step = [], GrassmannSGD.step

    def recorded(self: GrassmannSGD) -> float | None:
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(GrassmannSGD, "step", recorded)
    x, y = normal(20, 4).numpy(), np.arange(20) % 2
    GrassmannProbe(4, 2, subspace_dim=2, lr=0.3, n_steps=8).fit(x, y)
    np.testing.assert_allclose(rates, 0.15 * (1 + np.cos(np.pi * np.arange(8) / 8)))


def test_probe_repeats_round_trips_and_takes_narrow_features() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(50, 3)), np.arange(50) % 2
    first, second = (GrassmannProbe(3, 2, n_steps=9, seed=4).fit(x, y) for _ in range(2))
    np.testing.assert_array_equal(first.bases_, second.bases_)
    assert first.bases_.shape == (2, 3, 3)
    again = GrassmannProbe(3, 2, n_steps=9, seed=4)
    set_state(again, get_state(first))
    np.testing.assert_array_equal(again.logits(x), first.logits(x))


def test_refusals() -> None:
    check_names(GrassmannHead)
    for wrong in (0, 7):
        with pytest.raises(EtudeError, match="subspace_dim must be from 1 to dim = 6"):
            GrassmannHead(6, 3, subspace_dim=wrong)
    with pytest.raises(EtudeError, match="scale must be positive"):
        GrassmannHead(6, 3, scale=0.0)
    with pytest.raises(EtudeError, match="features must be of width 6"):
        head()(normal(2, 5))
    with pytest.raises(EtudeError, match="lr must be at least 0"):
        GrassmannSGD([head().bases], lr=-1.0)
    with pytest.raises(EtudeError, match="directions must be of the bases' shape"):
        grassmann_retract(normal(2, 5, 2), normal(5, 2), 0.1)
    probe = GrassmannProbe(6, 2)
    with pytest.raises(EtudeError, match="call fit first"):
        probe.logits(np.zeros((1, 6)))
    with pytest.raises(EtudeError, match="class ids below 2"):
        probe.fit(np.zeros((3, 6)), np.array([0, 1, 2]))
    with pytest.raises(EtudeError, match="features must be finite"):
        probe.fit(np.full((3, 6), np.nan), np.array([0, 1, 1]))
