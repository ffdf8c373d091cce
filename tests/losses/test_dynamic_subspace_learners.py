"""Dynamic subspace learners against slow loops and the released code.

Compared with adigasu/Dynamic_subspace_learners at 84fce0a, in float64, inputs by seed as in
``batch``: lib/loss/margin_loss.py with its sampler gives 0.5239739349996019 and
0.4128616779927752 at spreads 1 and 0.3, gradient norms 0.06104313277514489 and
0.09822779991236709; ours differ by less than 1e-15. lib/model.py's scores (norm, then min-max)
of the inputs of ``test_scores`` are its expected numbers. lib/data/loader/reassignment.py
applies the inverse of the matching it finds: where ids were permuted by a 4-cycle it gives back
none of 60 ids, ours those that were not noise.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.core import EtudeError
from etude.losses import (
    DynamicSubspaceEmbedding,
    SubspaceMarginTrainer,
    neuron_scores,
    subspace_margin_loss,
)


def batch(spread):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(4).repeat_interleave(8)
    noise = torch.randn(32, 6, generator=generator, dtype=torch.float64)
    return (centers[y] + spread * noise).requires_grad_(True), y


def by_loops(z, y, margin=0.2, beta=1.2, cutoff=0.5):
    total, active = 0.0, 0
    for a in range(len(z)):
        d = [float((z[a] - z[i]).norm()) for i in range(len(z))]
        positives = [i for i in range(len(z)) if y[i] == y[a] and i != a]
        others = [i for i in range(len(z)) if y[i] != y[a]]
        others.sort(key=lambda i: (d[i] < cutoff, d[i]))
        negatives = sorted(others[: len(positives)])
        for p, n in zip(positives, negatives, strict=False):
            near = max(0.0, math.sqrt(d[p] ** 2 + 1e-8) - beta + margin)
            far = max(0.0, beta - math.sqrt(d[n] ** 2 + 1e-8) + margin)
            total += near + far
            active += near > 0 or far > 0
    return total / max(active, 1)


def head(**changes):
    generator = torch.Generator().manual_seed(0)
    return DynamicSubspaceEmbedding(6, generator=generator, **{"out_dim": 16, **changes})


@pytest.mark.parametrize(
    ("spread", "value", "norm"),
    [
        (1.0, 0.5239739349996019, 0.06104313277514489),
        (0.3, 0.4128616779927752, 0.09822779991236709),
    ],
)
def test_loss_equals_the_loops_and_the_release(spread, value, norm):
    e, y = batch(spread)
    z = F.normalize(e, dim=1)
    loss = subspace_margin_loss(z, y)
    assert loss.item() == pytest.approx(value, abs=1e-14)
    assert loss.item() == pytest.approx(by_loops(z.detach(), y), abs=1e-12)
    (slope,) = torch.autograd.grad(loss, e)
    assert slope.norm().item() == pytest.approx(norm, abs=1e-14)


def test_uneven_batches_take_as_many_negatives_as_positives():
    e, _ = batch(1.0)
    y = torch.tensor([0] * 20 + [1] * 3 + [2] * 8 + [3])
    z = F.normalize(e.detach(), dim=1)
    assert subspace_margin_loss(z, y).item() == pytest.approx(by_loops(z, y), abs=1e-12)
    # 20 of one class and 2 others: negatives run out, and only negatives are taken
    few = torch.tensor([0] * 20 + [1] * 2)
    expected = by_loops(z[:22], few)
    assert subspace_margin_loss(z[:22], few).item() == pytest.approx(expected, abs=1e-12)


def test_loss_gradcheck_and_limits():
    e, y = batch(1.0)
    small = e.detach()[::4].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda v: subspace_margin_loss(F.normalize(v, dim=1), y[::4]), (small,)
    )
    z = F.normalize(e, dim=1)
    for labels in (torch.zeros(32, dtype=torch.int64), torch.arange(32)):  # no couple at all
        loss = subspace_margin_loss(z, labels)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, e, retain_graph=True)[0].abs().max() == 0
    low = subspace_margin_loss(z.half(), y)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(0.524, abs=2e-3)
    apart = torch.eye(4, dtype=torch.float64).repeat_interleave(8, 0)  # d_ap = 0, d_an = sqrt 2
    assert subspace_margin_loss(apart, y).item() == 0


def test_scores():
    z = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 3.0, 0.5]], dtype=torch.float64)
    g = torch.tensor([[0.2, -0.1, 0.4, 0.0], [0.3, 0.1, 0.2, 1.0]], dtype=torch.float64)
    # means 0.1, -0.05, 0.1, 0.25 -> absolute, then the least becomes 0 and the largest 1
    expected = torch.tensor([0.25, 0.0, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(neuron_scores(z, g), expected)
    assert neuron_scores(z, torch.zeros_like(z)).abs().max() == 0


def test_every_block_has_length_one_and_only_its_own_loss_moves_it():
    layer = head(n_learners=3)
    sizes = [len(layer.neurons(k)) for k in range(3)]
    assert sizes == [6, 6, 4]
    features = torch.randn(5, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    z = layer(features)
    e = layer.layer(layer.pooled(features))
    for k in range(3):
        block = z[:, layer.neurons(k)]
        torch.testing.assert_close(block.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(block, F.normalize(e[:, layer.neurons(k)], dim=1))
    z[:, layer.neurons(1)].square().sum(0)[0].backward()
    moved = layer.layer.weight.grad.abs().sum(1) > 1e-8
    assert moved[layer.neurons(1)].all()
    assert not moved[layer.neurons(0)].any()
    assert not moved[layer.neurons(2)].any()


def test_attention_weighs_places():
    layer = head()
    features = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(1))
    a = layer.attention_map(features)
    assert a.shape == (2, 1, 5, 5)
    assert 0 < a.min() < a.max() < 1
    by_hand = torch.stack([(a[i, 0] * features[i]).sum((1, 2)) / 25 for i in range(2)])
    torch.testing.assert_close(layer.pooled(features), by_hand)
    torch.testing.assert_close(layer(by_hand), layer(features))
    assert layer.attention[0].weight.shape == (1, 6, 3, 3)
    assert DynamicSubspaceEmbedding(64).attention[1].weight.shape == (2, 8, 3, 3)


def test_split_keeps_what_matters_and_renews_the_rest():
    layer = head()
    before = layer.layer.weight.detach().clone()
    scores = torch.linspace(0, 1, 16).flip(0)
    new = layer.split(scores)
    assert new.tolist() == list(range(8, 16))  # at most 1/2: 7/15 and below
    assert layer.n_learners == 2
    assert torch.equal(layer.layer.weight[:8], before[:8])
    assert (layer.layer.weight[8:] - before[8:]).abs().amin() > 0
    assert layer.owner.tolist() == [0] * 8 + [1] * 8
    # the last learner has 8 neurons, too few to split again
    assert len(layer.split(torch.linspace(0, 1, 8))) == 0
    assert len(layer.split(torch.linspace(0, 1, 8), largest=7, fewest=4)) == 4
    assert layer.owner.tolist() == [0] * 8 + [2] * 4 + [1] * 4
    assert layer.n_learners == 3


def test_no_split_where_too_few_neurons_matter_or_all_do():
    layer, few = head(), torch.zeros(16)
    few[:4] = 1
    assert len(layer.split(few)) == 0
    few[4] = 1
    assert len(layer.split(torch.ones(16))) == 0
    assert layer.n_learners == 1
    assert len(layer.split(few)) == 11


def test_state_holds_the_learners():
    layer, other = head(), head(n_learners=2)
    layer.split(torch.linspace(0, 1, 16))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(other(x), layer(x))


def blobs():
    """Two kinds of samples, far apart, each with four classes told by other coordinates."""
    generator = torch.Generator().manual_seed(3)
    kind, fine = torch.arange(160) % 2, torch.arange(160) // 2 % 4
    x = 0.3 * torch.randn(160, 6, generator=generator)
    x[:, 0] += 4 * (2 * kind - 1)
    x[torch.arange(160), 1 + fine] += 2.0
    return x, kind * 4 + fine


def trainer(patience=2, n_epochs=12, **changes):
    layer = head(n_learners=changes.pop("n_learners", 1), out_dim=changes.pop("out_dim", 16))
    settings = {"joint_epoch": 9, "lr": 0.01, "seed": 0, **changes}
    return SubspaceMarginTrainer(
        nn.Identity(), head=layer, patience=patience, n_epochs=n_epochs, **settings
    )


def test_training_learns_and_splits_on_a_stall():
    x, y = blobs()
    fitted = trainer(out_dim=64)
    scores = iter([0.1, 0.2, 0.2, 0.1] + [0.1] * 8)  # best at 1, stalled from 3 on
    before = subspace_margin_loss(fitted.embed(x), y).item()
    fitted.fit(x, y, lambda: next(scores))
    assert fitted.n_learners_[:3].tolist() == [1, 1, 1]
    assert fitted.n_learners_[8:].tolist() == [2] * 4  # once, when enough neurons mattered
    assert fitted.scores_[:4].tolist() == [0.1, 0.2, 0.2, 0.1]
    whole = F.normalize(fitted.embed(x), dim=1)
    assert subspace_margin_loss(whole, y).item() < 0.6 * before


def test_a_further_split_needs_a_new_best_and_none_comes_late():
    x, y = blobs()
    late = trainer(patience=1, n_epochs=6, joint_epoch=2)
    late.fit(x, y, iter([0.1, 0.2, 0.1, 0.1, 0.1, 0.1]).__next__)
    assert late.head.n_learners == 1
    never = trainer(patience=20).fit(x, y, lambda: 0.5)
    assert never.head.n_learners == 1


def test_clusters_follow_the_features_and_keep_their_ids():
    x, _ = blobs()
    kind = (x[:, 0] > 0).numpy().astype(np.int64)
    fitted = trainer(n_learners=2)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        assert (fitted._clusters(x, kind, 2, rng) == kind).all()
        assert (fitted._clusters(x, 1 - kind, 2, rng) == 1 - kind).all()


def test_ids_follow_a_cycle_of_three(monkeypatch):
    """The inverse of the matching, as released, would differ."""
    last = np.arange(90) % 3

    def cycled(h, k, **options):
        return np.zeros((3, 6)), (last + 1) % 3

    monkeypatch.setattr("etude.losses.dynamic_subspace_learners.kmeans2", cycled)
    found = trainer()._clusters(torch.randn(90, 6), last, 3, np.random.default_rng(0))
    assert (found == last).all()


def test_batches_are_balanced_inside_one_cluster():
    y = np.array([0] * 9 + [1] * 9 + [2] + [3] * 3 + [4] * 9)
    inside = np.arange(31) < 22
    rows = trainer()._rows(y, inside, np.random.default_rng(0)).numpy()
    assert inside[rows].all()
    classes, counts = np.unique(y[rows], return_counts=True)
    assert classes.tolist() == [0, 1, 3]  # class 2 is alone here, class 4 elsewhere
    assert counts.tolist() == [8, 8, 8]


def test_a_batch_trains_its_block_only_and_new_rows_start_afresh():
    x, y = blobs()
    fitted = trainer(n_learners=2, weight_decay=0.0)
    before = fitted.head.layer.weight.detach().clone()
    adam = torch.optim.Adam(fitted.head.parameters(), lr=0.1)
    clusters = np.zeros(160, np.int64)  # everything in the first learner's cluster
    fitted._epoch(x, y, clusters, False, adam, np.random.default_rng(0))
    moved = (fitted.head.layer.weight - before).abs().amax(1) > 0
    assert moved[:8].all()
    assert not moved[8:].any()


def test_same_seed_same_result():
    x, y = blobs()
    first, again = (trainer(patience=1).fit(x, y, lambda: 0.5).embed(x) for _ in range(2))
    assert torch.equal(first, again)


def test_refusals():
    with pytest.raises(EtudeError, match="n_learners must be at least 1"):
        DynamicSubspaceEmbedding(4, out_dim=3, n_learners=4)
    with pytest.raises(EtudeError, match="dim, out_dim must be at least 1"):
        DynamicSubspaceEmbedding(0)
    with pytest.raises(EtudeError, match=r"features must be \(B, 6\)"):
        head()(torch.zeros(2, 5))
    with pytest.raises(EtudeError, match=r"scores must be of shape \(16,\)"):
        head().split(torch.zeros(3))
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, D\)"):
        subspace_margin_loss(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(EtudeError, match="gradients must be shaped as activations"):
        neuron_scores(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(EtudeError, match="batch_size must be two classes"):
        trainer(batch_size=12)
    with pytest.raises(EtudeError, match="patience must be at least 1"):
        trainer(patience=0)
    with pytest.raises(EtudeError, match="labels must be of two rows of a class"):
        trainer().fit(torch.zeros(3, 6), torch.arange(3), lambda: 0.0)
