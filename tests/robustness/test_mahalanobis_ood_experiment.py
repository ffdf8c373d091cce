"""Checks of the parts of the experiment of robustness.mahalanobis_ood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.experiments.robustness.mahalanobis_ood import (
    ATTACK_BOUND,
    SmallCNN,
    abnormal_sets,
    attacked,
    auroc,
    odin,
    tnr_at_95_tpr,
    trained,
    tuned_detector,
)
from etude.robustness import MahalanobisDetector


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Three classes: a bright square in one of three corners."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.rand(192, 1, 28, 28, generator=generator)
    y = torch.arange(192) % 3
    for label, (top, left) in enumerate([(2, 2), (2, 16), (16, 2)]):
        x[y == label, :, top : top + 10, left : left + 10] += 0.6
    return x, y


@pytest.fixture(scope="module")
def network(images: tuple[Tensor, Tensor]) -> SmallCNN:
    """The network after training."""
    return trained(*images, 3, seed=0)


def test_training_learns_and_repeats(images: tuple[Tensor, Tensor], network: SmallCNN) -> None:
    x, y = images
    assert (network(x).argmax(dim=1) == y).float().mean() > 0.8
    again = trained(x, y, 3, seed=0)
    torch.testing.assert_close(again(x), network(x))


@pytest.mark.parametrize("n_steps", [1, 5])
def test_attack_raises_the_loss_within_its_bound(
    images: tuple[Tensor, Tensor], network: SmallCNN, n_steps: int
) -> None:
    x, y = images
    moved = attacked(network, x, y, n_steps)
    assert (moved - x).abs().max() <= ATTACK_BOUND + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert F.cross_entropy(network(moved), y) > F.cross_entropy(network(x), y)


def test_odin_without_step_is_the_softmax_maximum(
    images: tuple[Tensor, Tensor], network: SmallCNN
) -> None:
    x = images[0][:20]
    want = -network(x).double().softmax(dim=1).max(dim=1).values.numpy()
    np.testing.assert_allclose(odin(network, x, 1.0, 0.0), want)
    assert (odin(network, x, 1.0, 1e-4) < want + 1e-9).mean() > 0.9  # more certain


def test_measures() -> None:
    normal = np.arange(100.0)
    assert auroc(normal, normal + 1000) == 1.0
    assert auroc(normal, normal) == 0.5
    assert tnr_at_95_tpr(normal, np.array([94.0, 96.0, 99.0, 200.0])) == 0.75


def test_abnormal_sets_are_images(images: tuple[Tensor, Tensor]) -> None:
    sets = abnormal_sets(images[0][:50], seed=0)
    for x in sets.values():
        assert x.shape == (50, 1, 28, 28)
        assert x.min() >= 0
        assert x.max() <= 1
    torch.testing.assert_close(sets["inverted"], 1 - images[0][:50])


def test_tuning_leaves_the_best_step_of_validation(
    images: tuple[Tensor, Tensor], network: SmallCNN
) -> None:
    x, y = images
    bad = attacked(network, x, y, 1)
    halves = [(x[:40], bad[:40]), (x[40:80], bad[40:80])]
    features = [layer.numpy() for layer in network.features(x)]
    detector = MahalanobisDetector().fit(features, y.numpy())
    score = tuned_detector(network, detector, halves, (0.0,))
    want = detector.score([layer.numpy() for layer in network.features(x[:9])])
    np.testing.assert_allclose(score(x[:9]), want, rtol=1e-6)
    assert auroc(score(x[80:]), score(bad[80:])) > 0.8
