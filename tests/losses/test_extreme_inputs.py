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


def of_zeros():
    """Each loss at embeddings and logits of 0, from its equations; `icnn` hangs on its ties."""
    torch.manual_seed(0)  # the first weights that `answer` gives
    weights = library.L2SVMLoss(**sizes()).readout.weight.square().mean().item()

    def softplus(x):
        return math.log1p(math.exp(x))

    return {
        "bias": 0.7 * math.log(5),  # all variances are equal: every weight is exp(0) - 0.3
        "cnn_svm": weights + (0.9**2 + 4 * 1.1**2) / 5,  # scores are the biases, 0.1
        "comp_sum tau=0": 4.0,
        "comp_sum tau=1": math.log(5),
        "comp_sum tau=1.5": (1 - 5**-0.5) / 0.5,
        "ldr": 10 * math.log((1 + 4 * math.exp(0.1 / 10)) / 5),
        "aldr": 10 * math.log((1 + 4 * math.exp(0.1 / 10)) / 5),
        "z_loss": math.log(2),
        "decoupled": math.log(5),
        "soft_topk": math.log(5 / 2),
        "normalized_softmax": math.log(5),
        "madacos": -math.log(0.02),  # all are the median sample, of probability alpha
        # all rows are the layer's bias: cosines of 1, and the least energy under the logarithm
        "ecaml": softplus(-1) + softplus(25) + 0.13 * math.log(1e-12),
        "binomial_deviance": softplus(1) + softplus(-25),
        "energy_confusion": math.log(1e-12),
        "proto_triplet": 0.5,
        "frechet": 0.1 * DIM,  # Cov(f) = 0
        "subspace_margin": 1.2 - 1e-4 + 0.2,  # d = 1e-4, the root of the release's 1e-8
    }


@every
@pytest.mark.parametrize("scale", [1e-8, 0.0])
def test_scores_of_nothing(name, scale):
    value, _ = answer(name, scale * inputs())
    if name == "icnn":  # (1 + 0) / 4 and half the share of 48 tied neighbors that is of the class
        share = 96 * (math.exp(-value) - 0.25)
        assert share == pytest.approx(round(share), abs=1e-3)
        assert 0 <= round(share) <= 48
    elif scale and name in ("normalized_softmax", "madacos", "binomial_deviance"):
        assert value == pytest.approx(answer(name, inputs())[0], rel=1e-5)  # directions are left
    elif scale and name == "bias":  # variances are left, and weigh from 0.7 to exp(0.3) - 0.3
        assert 0.7 * math.log(5) < value < (math.exp(0.3) - 0.3) * math.log(5)
    else:  # logits of 1e-8 divided by their own size and an epsilon are not quite 0
        near = 0.03 if scale and name in ("aldr", "z_loss") else 1e-5
        assert value == pytest.approx(of_zeros()[name], rel=near)


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
    """No two rows to bring together: what is left of each loss."""
    x, y = inputs()[:5], torch.arange(5)
    value, slope = answer(name, x, y)
    if name in ("proto_triplet", "subspace_margin"):  # no query, no couple
        assert value == 0
        assert slope.abs().max() == 0
    elif name in ("binomial_deviance", "ecaml", "energy_confusion"):
        i, j = torch.triu_indices(5, 5, 1)
        torch.manual_seed(0)
        z = library.ECAMLLoss(**sizes()).embed(x).detach() if name == "ecaml" else x
        unit = F.normalize(z, dim=1)
        apart = F.softplus(50 * ((unit[i] * unit[j]).sum(dim=1) - 0.5)).mean()
        energy = (z[i] - z[j]).square().sum(dim=1).mean().log()
        parts = {"binomial_deviance": (1, 0), "energy_confusion": (0, 1), "ecaml": (1, 0.13)}[name]
        assert value == pytest.approx(float(parts[0] * apart + parts[1] * energy), rel=1e-5)
    elif name == "icnn":  # every neighbor is of another class: their distances alone count
        d = torch.cdist(x, x)
        far = float(d.sum() / 20 / d.max())
        assert value == pytest.approx(-math.log((1 + far) / 4), rel=1e-5)
    elif name == "frechet":  # only the order of distances between labels counts
        assert value == pytest.approx(answer(name, x, 7 * y)[0], rel=1e-6)
        assert value != pytest.approx(answer(name, x, y.flip(0)[[1, 0, 2, 3, 4]])[0], rel=1e-3)
    else:  # a mean over the rows, each by itself
        rows = [answer(name, x[k : k + 1], y[k : k + 1])[0] for k in range(5)]
        if name == "bias":  # a row by itself has the weight 0.7, in a batch up to exp(0.3) - 0.3
            assert 1 < value / (sum(rows) / 5) < (math.exp(0.3) - 0.3) / 0.7
        else:
            assert value == pytest.approx(sum(rows) / 5, rel=1e-5)


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
