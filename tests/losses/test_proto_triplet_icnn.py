"""The prototype triplet and the neighborhood score: loops, limits, gradients, and training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from etude.core import EtudeError, check_names
from etude.losses.proto_triplet_icnn import (
    EpisodicTrainer,
    ICNNLoss,
    ProtoTripletLoss,
    icnn_score,
)


def episode(apart: float = 1.5, seed: int = 129) -> tuple[torch.Tensor, torch.Tensor]:
    """Thirty rows of five classes in six features; `apart` scales the class centers."""
    generator = np.random.default_rng(seed)
    y = np.arange(30) % 5
    x = generator.normal(size=(30, 6)) + apart * np.eye(6)[:5][y]
    return torch.from_numpy(x), torch.from_numpy(y)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True)) + 1e-6)


@pytest.mark.parametrize(("n_shot", "margin"), [(1, 0.5), (3, 0.1)])
def test_triplet_is_that_of_loops(n_shot: int, margin: float) -> None:
    x, y = episode()
    support = {c: [n for n in range(30) if y[n] == c][:n_shot] for c in range(5)}
    prototypes = {c: np.mean([x[n].numpy() for n in rows], axis=0) for c, rows in support.items()}
    losses = []
    for n in range(30):
        if n not in support[int(y[n])]:
            d = {c: distance(x[n], p) for c, p in prototypes.items()}
            own = d.pop(int(y[n]))
            losses.append(max(0.0, own - min(d.values()) + margin))
    found = ProtoTripletLoss(n_shot=n_shot, margin=margin)(x, y)
    assert float(found) == pytest.approx(sum(losses) / len(losses), abs=1e-12)


@pytest.mark.parametrize("m", [4, 6, 20])
def test_score_is_that_of_loops(m: int) -> None:
    x, y = episode(4.0)  # rows whose first neighbors are all of their class, and others
    top = 0.0
    rows = []
    for i in range(30):
        near = sorted((distance(x[i], x[j]), j) for j in range(30) if j != i)[:m]
        o = min((d for d, j in near if y[j] != y[i]), default=math.inf)
        e = [d / o for d, _ in near[:4]]
        inner = [v / max(1, max(e)) for v, (_, j) in zip(e, near[:4], strict=True) if y[j] == y[i]]
        outer = [d for d, j in near[:4] if y[j] != y[i]]
        top = max([top, *outer])
        rows.append((inner, outer))
    same = 1 - np.mean([np.mean(inner) for inner, _ in rows if inner])
    other = np.mean([np.mean(outer) / top for _, outer in rows if outer])
    gamma = np.mean([len(inner) / 4 for inner, _ in rows])
    expected = ((same + other) / 2 + gamma) / 2
    assert float(icnn_score(x, y, n_neighbors=m)) == pytest.approx(expected, abs=1e-6)
    loss = float(ICNNLoss(n_neighbors=m)(x, y))
    assert loss == pytest.approx(-math.log(expected), abs=1e-6)


def test_release() -> None:
    """The authors' loss file (modified_score, proto_triplet_loss), on ``episode(4.0)``, float64.

    The scores agree within 2e-8 (its counts are float32), the triplet, with the first two rows of
    a class as its support, to the last digit; the numbers are of the file's run.
    """
    x, y = episode(4.0)
    released = {
        4: 0.7863554384916932,
        6: 0.6902269176261405,
        12: 0.6902269176261405,
    }
    for m, score in released.items():
        assert float(icnn_score(x, y, n_neighbors=m)) == pytest.approx(score, abs=1e-7)
    assert float(ProtoTripletLoss(n_shot=2)(x, y)) == pytest.approx(0.1688873102781453, abs=1e-12)


def test_triplet_is_zero_exactly_where_the_margin_is_kept() -> None:
    x = torch.tensor([[0.0], [4.0], [0.0], [4.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    assert float(ProtoTripletLoss(n_shot=1, margin=3.9)(x, labels)) == 0
    assert float(ProtoTripletLoss(n_shot=1, margin=4.5)(x, labels)) == pytest.approx(0.5, abs=2e-3)


def test_score_rises_from_mixed_to_separated_classes() -> None:
    scores = [float(icnn_score(*episode(apart))) for apart in (0, 1, 3, 10, 100)]
    assert scores == sorted(scores)
    assert 0 < scores[0] < 0.45
    assert 0.95 < scores[-1] <= 1


def test_rotation_and_scale_change_nothing() -> None:
    x, y = episode()
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 6))))[0]
    torch.testing.assert_close(icnn_score(x @ rotation, y), icnn_score(x, y))
    torch.testing.assert_close(icnn_score(30 * x, y), icnn_score(x, y), atol=1e-5, rtol=0)
    triplet = ProtoTripletLoss()
    torch.testing.assert_close(triplet(x @ rotation + 2, y), triplet(x, y))


def test_few_neighbors_of_a_separated_episode_give_score_one_and_no_gradient() -> None:
    x, y = episode(100.0)
    for m, moves in ((4, False), (6, True)):
        x.grad = None
        score = icnn_score(x.requires_grad_(), y, n_neighbors=m)
        score.backward()
        assert (float(score.detach()) == pytest.approx(1, abs=1e-6)) is not moves
        assert bool((x.grad.abs() > 1e-9).any()) is moves
        assert bool(x.grad.isfinite().all())
        x = x.detach()


def test_gradients() -> None:
    x, y = episode()
    x.requires_grad_()
    for loss in (ProtoTripletLoss(), ICNNLoss()):
        assert torch.autograd.gradcheck(lambda e, f=loss: f(e, y), x, atol=1e-5)
    equal = torch.zeros(12, 3, requires_grad=True)
    labels = torch.arange(12) % 3
    (ProtoTripletLoss()(equal, labels) + ICNNLoss(k=2)(equal, labels)).backward()
    assert bool(equal.grad.isfinite().all())


def test_no_queries_or_one_class_is_loss_zero() -> None:
    x, y = episode()
    assert float(ProtoTripletLoss(n_shot=6)(x, y)) == 0
    assert float(ProtoTripletLoss(n_shot=2)(x, y * 0)) == 0


@pytest.mark.parametrize("losses", [("proto_triplet",), ("icnn",), ("prototypical", "icnn")])
def test_episodes_train_a_network_for_classes_it_has_not_seen(losses: tuple[str, ...]) -> None:
    """Two of twenty features tell the classes apart; the network must find them."""
    generator = np.random.default_rng(0)
    y = np.arange(400) % 20
    x = generator.normal(size=(400, 20))
    x[:, :4] += 4 * generator.normal(size=(20, 4))[y]
    data, target = torch.from_numpy(x).float(), torch.from_numpy(y)
    torch.manual_seed(0)
    network = torch.nn.Linear(20, 8)
    unseen = target >= 14

    def accuracy() -> float:
        with torch.no_grad():
            z, t = network(data[unseen]), target[unseen]
        centers = torch.stack([z[t == c][:2].mean(0) for c in range(14, 20)])
        return float((torch.cdist(z, centers).argmin(1) + 14 == t).double().mean())

    before = accuracy()
    trainer = EpisodicTrainer(network, losses=losses, n_shot=2, n_steps=60, lr=0.02)
    assert trainer.fit(data[~unseen], target[~unseen]) is trainer
    assert accuracy() > before + 0.03


def test_trainer_is_the_mean_of_its_losses() -> None:
    x, y = episode()
    names = ("prototypical", "proto_triplet", "icnn")
    net = torch.nn.Identity()
    each = [float(EpisodicTrainer(net, losses=(n,), n_shot=2, n_query=4).loss(x, y)) for n in names]
    both = float(EpisodicTrainer(net, losses=names, n_shot=2, n_query=4).loss(x, y))
    assert both == pytest.approx(np.mean(each), abs=1e-12)
    assert each[1] == pytest.approx(float(ProtoTripletLoss(n_shot=2)(x, y)))
    assert each[2] == pytest.approx(float(ICNNLoss(n_neighbors=6)(x, y)))


def test_refusals() -> None:
    x, y = episode()
    with pytest.raises(EtudeError, match="margin must be finite, not negative"):
        ProtoTripletLoss(margin=-1.0)
    with pytest.raises(EtudeError, match="n_shot must be at least 1"):
        ProtoTripletLoss(n_shot=0)
    with pytest.raises(EtudeError, match=r"labels must be \(B,\)"):
        ProtoTripletLoss()(x, y[:3])
    with pytest.raises(EtudeError, match=r"k must be in 1\.\.2"):
        icnn_score(x[:3], y[:3])
    with pytest.raises(EtudeError, match="n_neighbors must be at least k"):
        ICNNLoss(n_neighbors=2)
    with pytest.raises(EtudeError, match="losses must be some of"):
        EpisodicTrainer(torch.nn.Identity(), losses=("triplet",))
    with pytest.raises(EtudeError, match="of 5 classes or more"):
        EpisodicTrainer(torch.nn.Identity()).fit(x, y % 2)
    with pytest.raises(EtudeError, match="of 11 rows a class or more"):
        EpisodicTrainer(torch.nn.Identity(), n_query=10).fit(x, y)
    check_names(ProtoTripletLoss.forward)
    check_names(ICNNLoss.forward)
