"""Checks of the parts of the experiment of theory.rankme; losses against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from etude.experiments.theory.rankme import probe, simclr_loss, vicreg_loss, view
from etude.lab.data import load_dataset
from etude.tasks.base import split_rows


def views() -> tuple[torch.Tensor, torch.Tensor]:
    """Two views (5, 3) in float64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    return a, a + 0.5 * torch.randn(5, 3, generator=generator, dtype=torch.float64)


def test_simclr_loss() -> None:
    a, b = views()
    z = [np.array(row) / np.linalg.norm(row) for row in torch.cat([a, b]).tolist()]
    total = 0.0
    for i in range(10):
        others = [math.exp(z[i] @ z[j] / 0.3) for j in range(10) if j != i]
        total -= math.log(math.exp(z[i] @ z[(i + 5) % 10] / 0.3) / sum(others))
    assert simclr_loss(a, b, 0.3).item() == pytest.approx(total / 10, rel=1e-9)


def test_vicreg_loss() -> None:
    a, b = views()
    want = 25 * sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)) / 15
    for z in (a.numpy(), b.numpy()):
        covariance = np.cov(z.T)
        for i in range(3):
            want += 25 * max(0.0, 1 - math.sqrt(covariance[i, i] + 1e-4)) / 3 / 2
            want += sum(2.0 * covariance[i, j] ** 2 / 3 for j in range(3) if j != i)
    assert vicreg_loss(a, b, 2.0).item() == pytest.approx(float(want), rel=1e-9)


def test_views_differ_and_repeat() -> None:
    x = torch.from_numpy(load_dataset("digits").x[:40])
    first = view(x, torch.Generator().manual_seed(0))
    assert torch.equal(first, view(x, torch.Generator().manual_seed(0)))
    assert 0.1 < (first == 0).float().mean() < 0.35
    generator = torch.Generator().manual_seed(1)
    apart = torch.stack([torch.cdist(view(x, generator), x) for _ in range(30)]).mean(dim=0)
    assert (apart.diagonal() < apart.median(dim=1).values).float().mean() > 0.9  # still itself
    assert (first - x).abs().mean() > 0.05


def test_probe_values_features_and_not_noise() -> None:
    data = load_dataset("digits")
    split = split_rows(data, 0, test=0.4)
    validation, test = probe(data, split, data.x)
    assert validation > 0.9
    assert test > 0.9
    noise = np.random.default_rng(0).normal(size=(len(data.x), 10))
    assert max(probe(data, split, noise)) < 0.25
