"""The baselines of the metric losses against pytorch-metric-learning 2.9.0, numbers written down.

Inputs of ``batch`` (torch's generator with seed 2025, float64): 24 embeddings of width 8, weights
of 5 classes, labels 0 1 2 3 4 0 ... There: NormalizedSoftmaxLoss(temperature=1/16),
ArcFaceLoss(margin in degrees, scale), CosFaceLoss and TripletMarginLoss(margin=0.2,
LpDistance(power=2), MeanReducer) on the triplets of BatchHardMiner, and on the semi-hard ones that
loops pick as the docstring of ``Triplet`` says. Value, norms of the gradients and the first
three entries of that of the embeddings agree to 1e-12.
"""

import pytest
import torch

from etude.losses import NormalizedSoftmaxLoss
from etude.tasks.objectives import ArcFace, CosFace, Triplet


def batch():
    generator = torch.Generator().manual_seed(2025)
    embeddings = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    return embeddings.requires_grad_(True), weight, torch.arange(24) % 5


def check(loss, value, norms, entries):
    embeddings, weight, target = batch()
    wanted = [embeddings]
    if hasattr(loss, "weight"):
        loss.double()
        with torch.no_grad():
            loss.weight.copy_(weight)
        wanted.append(loss.weight)
    found = loss(embeddings, target)
    slopes = torch.autograd.grad(found, wanted)
    assert found.item() == pytest.approx(value, rel=1e-12)
    assert [slope.norm().item() for slope in slopes] == pytest.approx(norms, rel=1e-12)
    assert slopes[0].flatten()[:3].tolist() == pytest.approx(entries, rel=1e-10)


@pytest.mark.parametrize(
    "loss",
    [NormalizedSoftmaxLoss(dim=8, n_classes=5, scale=16.0), ArcFace(8, 5, scale=16.0, margin=0.0)],
    ids=["ours", "arcface without margin"],
)  # fmt: skip
def test_normalized_softmax(loss):
    check(
        loss, 7.649091087250052, [1.5153669529511264, 2.2124741187407952],
        [-0.06220821032154214, -0.13156271097833938, -0.007511199162667383],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("margin", "scale", "value", "norms", "entries"),
    [
        (0.1, 16.0, 8.96840802379947, [1.5482026560658266, 2.2369742067110874],
         [-0.05629551343629996, -0.11606571916564515, -0.022953954667134943]),
        (0.5, 64.0, 56.3220037972435, [6.453295500659735, 10.022175282480529],
         [-0.16280145337308796, -0.05533725973011597, -0.35056901626585135]),
        (2.5, 4.0, 8.217383742204133, [0.3731478130034317, 0.5216037994500285],
         [-0.01577918523402203, -0.03851734794436158, 0.005851463730362694]),
    ],
)  # fmt: skip
def test_arcface(margin, scale, value, norms, entries):
    """At margin 2.5 half of the angles are beyond pi - margin, on the line."""
    check(ArcFace(8, 5, scale=scale, margin=margin), value, norms, entries)


def test_cosface():
    check(
        CosFace(8, 5, scale=64.0, margin=0.1), 35.80943398440452,
        [6.456465125594845, 9.341605194795658],
        [-0.2974817463892713, -0.40832983940205697, 0.0011872143540711672],
    )  # fmt: skip


def test_triplets():
    check(
        Triplet(8, 5, margin=0.2, mining="hard"), 2.16701504611382, [0.34208264818503215],
        [-0.016622933960273444, 0.004323797842446643, 0.0007315191828451842],
    )  # fmt: skip
    check(
        Triplet(8, 5, margin=0.2), 0.11460867573205084, [0.17678966774266774],
        [-0.00046694881458921684, 0.001663854531929196, 0.00828609014963084],
    )  # fmt: skip


def test_nothing_to_learn_from_is_zero():
    embeddings, _, _ = batch()
    for target in (torch.zeros(24, dtype=torch.int64), torch.arange(24)):
        for mining in ("hard", "semi_hard"):
            loss = Triplet(8, 5, mining=mining)(embeddings, target)
            assert loss.item() == 0
            assert torch.autograd.grad(loss, embeddings)[0].abs().max() == 0
