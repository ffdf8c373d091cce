"""Furniture sets against slow loops in float64, reductions and invariants.

There is no released code of this paper's method to compare with.
"""

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.retrieval import (
    ContextReranker,
    FurnitureSetRetriever,
    SiameseMultiTask,
    make_room_sets,
    pseudo_attributes,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def catalog(seed=0, m=9, d=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2 * m, d)), np.tile(np.arange(m), 2)


def context(m=9, dim=5):
    return ContextReranker(m, dim=dim, generator=torch.Generator().manual_seed(1))


def pieces(n=8, d=4):
    return np.random.default_rng(7).normal(size=(n, d)), np.array([3, 3, 3, 5, 5, 5, 5, 8])


def slow(vectors, labels, queries, rooms, u, k, weight, n_rounds):
    views = []
    for query in queries:
        best = {}
        for vector, label in zip(vectors, labels, strict=True):
            best[label] = max(best.get(label, -2), float(unit(vector) @ unit(query)))
        views.append(sorted(best.items(), key=lambda item: -item[1])[:k])
    choices = [view[0][0] for view in views]
    for _ in range(n_rounds):
        ranked = []
        for i, view in enumerate(views):
            others = [choices[j] for j in range(len(views)) if j != i and rooms[j] == rooms[i]]

            def score(item, others=others):
                fits = [float(unit(u[item[0]]) @ unit(u[c])) for c in others]
                return item[1] + weight * (sum(fits) / len(fits) if fits else 0.0)

            ranked.append(sorted(view, key=lambda item: -score(item)))
        views, choices = ranked, [view[0][0] for view in ranked]
    return [[label for label, _ in view] for view in views]


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_the_order_is_that_of_loops(n_rounds):
    (vectors, labels), (queries, rooms), net = catalog(), pieces(), context()
    rag = FurnitureSetRetriever(net, k=4, weight=0.7, n_rounds=n_rounds).fit(vectors, labels)
    u = net.u.detach().double().numpy()
    want = slow(vectors, labels, queries, rooms, u, 4, 0.7, n_rounds)
    found = rag.retrieve(queries, rooms)
    assert found.tolist() == want
    plain = FurnitureSetRetriever(k=4).fit(vectors, labels).retrieve(queries, rooms)
    assert (found != plain).any()


def test_without_weight_the_view_decides_and_context_only_permutes():
    (vectors, labels), (queries, rooms) = catalog(), pieces()
    plain = FurnitureSetRetriever(k=4).fit(vectors, labels).retrieve(queries, rooms)
    near = (unit(queries) @ unit(vectors).T).reshape(len(queries), 2, 9).max(axis=1)
    np.testing.assert_array_equal(plain, np.argsort(-near, axis=1)[:, :4])
    none = FurnitureSetRetriever(context(), k=4, weight=0.0).fit(vectors, labels)
    np.testing.assert_array_equal(none.retrieve(queries, rooms), plain)
    much = FurnitureSetRetriever(context(), k=4, weight=50.0).fit(vectors, labels)
    found = much.retrieve(queries, rooms)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(plain, axis=1))
    np.testing.assert_array_equal(found[-1], plain[-1])  # alone in its room
    assert (found[:-1] != plain[:-1]).any()


def test_compatibility_leaves_the_piece_itself_out():
    net = context()
    u = unit(net.u.detach().double().numpy())
    got = net.compatibility(np.array([[0, 1], [2, 3], [4, 5]]), np.array([6, 7, 8]), np.zeros(3))
    assert got[0, 1] == pytest.approx(u[1] @ (u[7] + u[8]) / 2)
    assert got[2, 0] == pytest.approx(u[4] @ (u[6] + u[7]) / 2)


def test_verification_is_symmetric():
    torch.manual_seed(0)
    net = SiameseMultiTask(6, 3, hidden_dim=8).double()
    a, b = net(torch.randn(2, 5, 6, dtype=torch.float64))
    torch.testing.assert_close(net.verify(a, b), net.verify(b, a))
    assert not torch.allclose(net.verify(a, b), net.verify(a, -b))


def test_the_siamese_loss_is_that_of_loops():
    torch.manual_seed(0)
    net = SiameseMultiTask(6, 3, hidden_dim=8, weight=0.4, attribute_weight=0.6).double()
    pairs = torch.randn(4, 2, 6, dtype=torch.float64)
    groups, same = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]]), torch.tensor([0, 1, 0, 1]).bool()
    total = 0.0
    for pair, group, one in zip(pairs, groups, same, strict=True):
        views = [net(view[None])[0] for view in pair]
        for view, g in zip(views, group, strict=True):
            total -= 0.6 * float(torch.softmax(net.classify(view), 0)[g].log().detach())
        odds = float(net.compare((views[0] - views[1]).abs()).detach())
        said = 1 / (1 + np.exp(-odds))
        total -= 0.4 * np.log(said if one else 1 - said)
    assert float(net.loss(pairs, groups, same).detach()) == pytest.approx(total / 4)
    assert torch.autograd.gradcheck(lambda x: net.loss(x, groups, same), pairs.requires_grad_())


def test_the_context_loss_is_that_of_loops():
    net = context()
    a, b, n = torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([[4, 5, 6], [7, 8, 0]])
    u, w = (x.detach().double().numpy() for x in (net.u, net.w))
    total = 0.0
    for i in range(2):
        total += np.log1p(np.exp(-u[a[i]] @ w[b[i]]))
        total += sum(np.log1p(np.exp(u[a[i]] @ w[j])) for j in n[i])
    assert float(net.loss(a, b, n).detach()) == pytest.approx(total / 2, rel=1e-5)


def test_identities_of_one_style_come_close():
    style = np.arange(20) % 2
    rng = np.random.default_rng(0)
    sets = [rng.choice(np.flatnonzero(style == n % 2), 4, replace=False) for n in range(60)]
    net = context(20).fit(sets, n_steps=150)
    u = unit(net.u.detach().double().numpy())
    near, same = u @ u.T, style[:, None] == style
    assert near[same & ~np.eye(20, dtype=bool)].mean() > near[~same].mean() + 0.3
    again = context(20).fit(sets, n_steps=150)
    assert torch.equal(net.u, again.u)


def test_pseudo_attributes_are_groups_of_means():
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 9.0], [9.0, 0.0]])
    kind = np.array([0, 1, 1, 0, 1, 0])
    labels = np.repeat(np.arange(6), [1, 1, 6, 6, 6, 4])  # a mean, not a sum, of the views
    vectors = centers[kind[labels]] + rng.normal(size=(24, 2))
    for seed in range(5):
        found = pseudo_attributes(vectors, labels, n_groups=2, seed=seed)
        assert ((found == found[0]) == (kind == kind[0])).all()
    # identities with the same views have the same group
    twice = pseudo_attributes(np.tile(vectors, (2, 1)), np.r_[labels, labels + 6], n_groups=2)
    np.testing.assert_array_equal(twice[:6], twice[6:])


def test_rooms_are_of_one_style_and_of_different_categories():
    categories = np.repeat(np.arange(6), 40)
    ids, rooms = make_room_sets(categories, n_rooms=30, n_pieces=4, purity=1.0, seed=1)
    assert np.bincount(rooms).tolist() == [4] * 30
    kinds = categories[ids].reshape(30, 4)
    assert all(len(set(row)) == 4 for row in kinds)


def test_styles_never_mix_and_outlast_the_rooms():
    categories = np.repeat(np.arange(6), 40)  # so that each category has all six styles
    draws = [
        make_room_sets(categories, n_rooms=400, n_pieces=4, purity=1.0, seed=1, room_seed=n)[0]
        for n in range(2)
    ]
    assert (draws[0] != draws[1]).any()
    group = np.arange(240)
    for row in np.concatenate(draws).reshape(800, 4):
        group[np.isin(group, group[row])] = group[row].min()
    assert len(np.unique(group[np.concatenate(draws)])) == 6
    loose, _ = make_room_sets(categories, n_rooms=300, n_pieces=4, purity=0.0, seed=1)
    for row in loose.reshape(300, 4):
        group[np.isin(group, group[row])] = group[row].min()
    assert len(np.unique(group[loose])) == 1


def test_refusals():
    vectors, labels = catalog()
    for knobs, message in (
        ({"k": 0}, "k must be at least 1"),
        ({"weight": -1.0}, "weight must be at least 0"),
        ({"n_rounds": 0}, "n_rounds must be at least 1"),
    ):
        with pytest.raises(EtudeError, match=message):
            FurnitureSetRetriever(**knobs)
    with pytest.raises(EtudeError, match="fitted first"):
        FurnitureSetRetriever().retrieve(*pieces())
    with pytest.raises(EtudeError, match="each at least once"):
        FurnitureSetRetriever().fit(vectors, labels + 1)
    rag = FurnitureSetRetriever().fit(vectors, labels)
    with pytest.raises(EtudeError, match="queries must be 4 wide"):
        rag.retrieve(np.ones((1, 3)), np.zeros(1))
    with pytest.raises(EtudeError, match="rooms must be"):
        rag.retrieve(np.ones((2, 4)), np.zeros(1))
    with pytest.raises(EtudeError, match=r"n_groups must be in 1\.\.9"):
        pseudo_attributes(vectors, labels, n_groups=10)
    with pytest.raises(EtudeError, match="sets must be rooms of two pieces"):
        context().fit([np.array([1])])
    with pytest.raises(EtudeError, match=r"sets must be identities in 0\.\.8"):
        context().fit([np.array([1, 9])])
    with pytest.raises(EtudeError, match=r"pairs must be \(B, 2, D\)"):
        SiameseMultiTask(4, 2).loss(torch.ones(3, 4), torch.zeros(3, 2), torch.zeros(3).bool())
    with pytest.raises(EtudeError, match=r"n_pieces must be in 1\.\.2"):
        make_room_sets(np.array([0, 1]), n_pieces=3)
