"""Every loss on inputs at the edge: its documented answer, or an ``EtudeError``.

Each is called with (12, 6) embeddings or (12, 5) logits; classes 3 and 4 are never seen.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from etude import losses as library
from etude.core import EtudeError

DIM, CLASSES = 6, 5
TARGET = torch.arange(12) % 3
HALF = (torch.float16, torch.bfloat16)


def positives(y):
    return F.one_hot(y, CLASSES).bool()


def logits(x):
    return x[:, :CLASSES]


def sizes():
    return {"dim": DIM, "n_classes": CLASSES}


def own_distances(y):
    return (y[:, None] - y).abs().double()


LOSSES = {
    "bias": lambda x, y: library.BiasLoss()(x, logits(x), y),
    "cnn_svm": lambda x, y: library.L2SVMLoss(**sizes())(x, y),
    "comp_sum tau=0": lambda x, y: library.CompSumLoss(tau=0.0)(logits(x), y),
    "comp_sum tau=1": lambda x, y: library.CompSumLoss(tau=1.0)(logits(x), y),
    "comp_sum tau=1.5": lambda x, y: library.CompSumLoss()(logits(x), y),
    "ldr": lambda x, y: library.LDRKLLoss()(logits(x), y),
    "aldr": lambda x, y: library.ALDRKLLoss()(logits(x), y),
    "z_loss": lambda x, y: library.ZLoss()(logits(x), y),
    "decoupled": lambda x, y: library.DecoupledSoftmaxLoss()(logits(x), positives(y)),
    "soft_topk": lambda x, y: library.SoftTopKLoss(top_k=2)(logits(x), positives(y)),
    "normalized_softmax": lambda x, y: library.NormalizedSoftmaxLoss(**sizes())(x, y),
    "madacos": lambda x, y: library.MadaCosLoss(**sizes())(x, y),
    "ecaml": lambda x, y: library.ECAMLLoss(**sizes())(x, y),
    "binomial_deviance": lambda x, y: library.BinomialDevianceLoss()(x, y),
    "energy_confusion": lambda x, y: library.energy_confusion(x, y),
    "proto_triplet": lambda x, y: library.ProtoTripletLoss()(x, y),
    "icnn": lambda x, y: library.ICNNLoss()(x, y),
    "frechet": lambda x, y: library.FCCovLoss()(x, own_distances(y)),
    "subspace_margin": lambda x, y: library.subspace_margin_loss(x, y),
}
every = pytest.mark.parametrize("name", LOSSES)


def inputs():
    return torch.randn(12, DIM, generator=torch.Generator().manual_seed(0))


def answer(name, x, y=TARGET):
    """The loss and its gradient, both finite."""
    torch.manual_seed(0)  # first weights of the losses that own a layer
    x = x.clone().requires_grad_(True)
    loss = LOSSES[name](x, y)
    (slope,) = torch.autograd.grad(loss, x)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert torch.isfinite(slope).all()
    return loss.item(), slope


def test_no_loss_is_forgotten():
    """Every exported class of a loss is called above, or is named here with its own tests."""
    called = {
        "BiasLoss",
        "L2SVMLoss",
        "CompSumLoss",
        "LDRKLLoss",
        "ALDRKLLoss",
        "ZLoss",
        "DecoupledSoftmaxLoss",
        "SoftTopKLoss",
        "NormalizedSoftmaxLoss",
        "MadaCosLoss",
        "ECAMLLoss",
        "BinomialDevianceLoss",
        "ProtoTripletLoss",
        "ICNNLoss",
        "FCCovLoss",
    }
    elsewhere = {"FactoredZLoss", "SmoothAdversarialCompSumLoss"}
    assert {n for n in library.__all__ if n.endswith("Loss")} == called | elsewhere  # fmt: skip


@every
def test_scores_of_ten_thousand(name):
    value, _ = answer(name, 1e4 * inputs())
    same_scale, _ = answer(name, inputs())
    if name in ("z_loss", "aldr", "normalized_softmax", "madacos", "binomial_deviance"):
        assert value == pytest.approx(same_scale, rel=1e-3)  # these do not see the scale
    assert value >= 0


@every
@pytest.mark.parametrize("scale", [1e-8, 0.0])
def test_scores_of_nothing(name, scale):
    answer(name, scale * inputs())


@every
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_near_float32(name, dtype):
    x = inputs().to(dtype)
    value, slope = answer(name, x)
    assert slope.dtype == dtype
    assert value == pytest.approx(answer(name, x.float())[0], rel=1e-5, abs=1e-6)
    if name != "frechet":  # its penalty grows as the fourth power: float16 has no such slope
        answer(name, (1e4 * inputs()).to(dtype))


@every
def test_one_class_in_the_batch(name):
    """Metric losses that need two classes give 0 with a zero gradient; the others go on."""
    value, slope = answer(name, inputs(), torch.ones(12, dtype=torch.int64))
    if name in ("energy_confusion", "proto_triplet", "icnn", "subspace_margin"):
        assert value == pytest.approx(0, abs=1e-6)
        assert slope.abs().max() == 0
    else:
        assert slope.abs().max() > 0


@every
def test_one_row(name):
    if name == "icnn":
        with pytest.raises(EtudeError, match=r"k must be in 1\.\.0"):
            answer(name, inputs()[:1], TARGET[:1])
    else:
        answer(name, inputs()[:1], TARGET[:1])


@every
def test_every_row_its_own_class(name):
    answer(name, inputs()[:5], torch.arange(5))


@every
def test_labels_of_another_length(name):
    with pytest.raises(EtudeError, match="must be"):
        answer(name, inputs(), TARGET[:5])


@pytest.mark.parametrize("name", ["decoupled", "soft_topk"])
def test_rows_without_positives_add_nothing(name):
    loss = {"decoupled": library.DecoupledSoftmaxLoss, "soft_topk": library.SoftTopKLoss}[name]
    build = loss() if name == "decoupled" else loss(top_k=2)
    none = torch.zeros(12, CLASSES, dtype=torch.bool)
    x = logits(inputs()).clone().requires_grad_(True)
    value = build(x, none)
    (slope,) = torch.autograd.grad(value, x)
    assert value.item() == 0
    assert slope.abs().max() == 0
    some = positives(TARGET)
    some[6:] = False
    assert build(x, some).item() == pytest.approx(build(x[:6], some[:6]).item() / 2, rel=1e-6)


@pytest.mark.parametrize("name", ["normalized_softmax", "madacos", "cnn_svm", "ecaml"])
def test_a_class_never_seen_is_scored_all_the_same(name):
    loss = {
        "normalized_softmax": library.NormalizedSoftmaxLoss, "madacos": library.MadaCosLoss,
        "cnn_svm": library.L2SVMLoss, "ecaml": library.ECAMLLoss,
    }[name](**sizes())  # fmt: skip
    loss(inputs(), TARGET)
    scores = loss.classify(inputs())
    assert scores.shape == (12, CLASSES)
    assert torch.isfinite(scores).all()
    if name == "ecaml":  # a class without a mean has cosine 0 to everything
        assert scores[:, 3:].abs().max() == 0


def test_answers_that_are_known():
    """Uniform scores: log K for the softmax losses, 1 - 1/K and so on for the rest."""
    zero = torch.zeros(12, DIM)
    assert answer("comp_sum tau=1", zero)[0] == pytest.approx(math.log(5), rel=1e-6)
    assert answer("comp_sum tau=0", zero)[0] == pytest.approx(4, rel=1e-6)
    assert answer("decoupled", zero)[0] == pytest.approx(math.log(5), rel=1e-6)
    assert answer("bias", zero)[0] == pytest.approx(0.7 * math.log(5), rel=1e-6)
    assert answer("z_loss", zero)[0] == pytest.approx(math.log(2), rel=1e-6)
    assert answer("normalized_softmax", zero)[0] == pytest.approx(math.log(5), rel=1e-6)
    assert answer("proto_triplet", zero)[0] == pytest.approx(0.5, rel=1e-6)
    assert answer("frechet", zero)[0] == pytest.approx(0.1 * DIM, rel=1e-6)  # Cov(f) = 0
