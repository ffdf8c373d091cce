"""Loki: the Frechet mean as prediction, the labels that it can reach, and the next to observe."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from etude.core import EtudeError, check_names
from etude.heads.loki_frechet_mean import LokiHead, locus, next_class_selection, tree_metric


def random_metric(n: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(n, 3))
    return np.linalg.norm(points[:, None] - points, axis=2)


def random_tree(n: int, seed: int) -> tuple[list[tuple[int, int]], np.random.Generator]:
    """Each node hangs on a random earlier one; the generator goes on from there."""
    generator = np.random.default_rng(seed)
    return [(int(generator.integers(node)), node) for node in range(1, n)], generator


def grid_metric(side: int) -> np.ndarray:
    cells = np.array(list(itertools.product(range(side), repeat=2)))
    return np.abs(cells[:, None] - cells).sum(axis=2).astype(float)


def test_prediction_by_loops() -> None:
    d, observed = random_metric(9, 0), [7, 2, 5, 0]
    probs = np.random.default_rng(1).dirichlet(np.ones(4), 20)
    head = LokiHead(d, observed=observed).double()
    scores = head(torch.from_numpy(np.log(probs)))
    predicted = head.predict(probs)
    for b in range(20):
        sums = [sum(p * d[y, l] ** 2 for p, l in zip(probs[b], observed, strict=True))
                for y in range(9)]  # fmt: skip
        assert predicted[b] == int(np.argmin(sums))
        np.testing.assert_allclose(scores[b], -np.array(sums), atol=1e-6)
    assert len(set(predicted.tolist()) - set(observed)) > 0


def test_metric_of_equal_distances_is_argmax() -> None:
    probs = np.random.default_rng(2).dirichlet(np.ones(6), 50)
    head = LokiHead(np.ones((6, 6)) - np.eye(6))
    np.testing.assert_array_equal(head.predict(probs), probs.argmax(axis=1))


def test_path_with_both_ends_observed_predicts_the_node_at_the_share() -> None:
    """On 0-1-...-10 with P = (1 - t, t) the sum is least at 10 t: squares give a mean."""
    d = tree_metric([(n, n + 1) for n in range(10)])
    head = LokiHead(d, observed=[0, 10])
    t = np.array([0.0, 0.04, 0.21, 0.5, 0.68, 0.96, 1.0])
    predicted = head.predict(np.stack([1 - t, t], axis=1))
    assert predicted.tolist() == [0, 0, 2, 5, 7, 10, 10]


def test_temperature_moves_the_prediction_between_argmax_and_the_middle() -> None:
    d = tree_metric([(n, n + 1) for n in range(10)])
    logits = torch.tensor([[1.0, 3.0]])
    found = [
        int(LokiHead(d, observed=[0, 10], temperature=t)(logits).argmax()) for t in (0.1, 2.0, 1e4)
    ]
    assert found == [10, 7, 5]


def test_ties_go_to_the_label_s_own_probability_then_to_the_first() -> None:
    d = tree_metric([(0, 1), (1, 2), (2, 3)])
    head = LokiHead(d, observed=[3, 0])
    assert head.predict(np.array([[0.5, 0.5]])).tolist() == [1]  # 1 and 2 tie, neither observed
    assert LokiHead(d, observed=[2, 1]).predict(np.array([[0.5, 0.5]])).tolist() == [1]
    far = 1.0 - np.eye(3)
    nearly = np.array([[0.5 - 1e-12, 0.5 + 1e-12, 0.0]])
    assert LokiHead(far).predict(nearly).tolist() == [1]


@pytest.mark.parametrize("unit", [1.0, 0.1, 0.3, 1 / 3, 70.0])
@pytest.mark.parametrize("whole", [1.0, 1e-6, 1e6])
def test_ties_are_found_in_any_unit_of_the_metric_and_of_the_probabilities(unit, whole) -> None:
    """Halfway between two nodes of the path 0..10 the lower wins, and at the end the observed."""
    head = LokiHead(unit * tree_metric([(n, n + 1) for n in range(10)]), observed=[0, 10])
    t = np.arange(1, 20, 2) / 20
    predicted = head.predict(whole * np.stack([1 - t, t], axis=1))
    assert predicted.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]


def test_unnormalized_probabilities_change_nothing() -> None:
    probs = np.random.default_rng(3).dirichlet(np.ones(4), 30)
    head = LokiHead(random_metric(9, 4), observed=[1, 3, 5, 8])
    np.testing.assert_array_equal(head.predict(probs), head.predict(7 * probs))


@pytest.mark.parametrize("seed", range(4))
def test_locus_of_a_tree_is_the_union_of_paths(seed: int) -> None:
    edges, generator = random_tree(15, seed)
    d = np.where(np.eye(15, dtype=bool), 0.0, np.inf)
    for a, b in edges:
        d[a, b] = d[b, a] = 1.0
    for via in range(15):  # Floyd and Warshall
        d = np.minimum(d, d[:, [via]] + d[via])
    np.testing.assert_array_equal(tree_metric(edges), d)
    observed = generator.choice(15, 3, replace=False)
    on_a_path = [
        any(d[a, v] + d[v, b] == d[a, b] for a, b in itertools.combinations(observed, 2))
        for v in range(15)
    ]
    np.testing.assert_array_equal(locus(d, observed), on_a_path)
    degrees = np.bincount(np.array(edges).ravel())
    assert locus(d, np.flatnonzero(degrees == 1)).all()


def test_locus_of_a_grid_with_two_and_with_four_corners() -> None:
    """Two opposite corners tie everywhere; all four make every cell the one minimum of some P."""
    d = grid_metric(4)
    assert locus(d, [0, 15]).all()
    assert 0 < locus(d, [0, 15], unique=True).sum() < 16
    assert locus(d, [0, 3, 12, 15], unique=True).all()


def test_locus_holds_what_sampled_probabilities_reach() -> None:
    d, observed = random_metric(12, 5), [0, 3, 4, 9]
    probs = np.random.default_rng(6).dirichlet(0.5 * np.ones(4), 20_000)
    reached = np.zeros(12, dtype=bool)
    reached[LokiHead(d, observed=observed).predict(probs)] = True
    np.testing.assert_array_equal(reached, locus(d, observed))
    assert 4 < reached.sum() < 12


def test_locus_does_not_depend_on_the_unit_of_the_metric() -> None:
    d, observed = random_metric(12, 5), [0, 3, 4, 9]
    for unit in (1e-4, 1e4):
        np.testing.assert_array_equal(locus(unit * d, observed), locus(d, observed))


def test_of_equal_gains_the_class_farthest_from_the_locus_is_next() -> None:
    """Of a star with three observed tips every other tip adds one label; the longest arm wins."""
    d = tree_metric([(0, n) for n in range(1, 7)])
    d[5, :] += 0.5 * (np.arange(7) != 5)
    d[:, 5] += 0.5 * (np.arange(7) != 5)
    gains = [int(locus(d, [1, 2, 3, label]).sum()) for label in (4, 5, 6)]
    assert len(set(gains)) == 1
    assert next_class_selection(d, [1, 2, 3]) == 5


def test_next_class_enlarges_the_locus_most() -> None:
    d, observed = random_metric(9, 7), [0, 1]
    sizes = {label: int(locus(d, [*observed, label]).sum()) for label in range(2, 9)}
    chosen = next_class_selection(d, observed)
    assert sizes[chosen] == max(sizes.values())
    assert min(sizes.values()) < max(sizes.values())


def test_release() -> None:
    """The release's TreeWithLocus and ActiveSelection (7b010d8, active_learning/libs).

    Trees of 18 nodes by numpy seeds as in ``random_tree``, three observed nodes drawn next. Its
    locus equals ours, it selects the same nodes in the same order, and the locus grows alike
    (seeds 0 to 3, exactly; two of them here).
    """
    for seed, start, sizes, chosen in (
        (0, [9, 10, 17], [7, 10, 12, 14, 15, 16, 17, 18], [13, 4, 16, 3, 5, 6, 14]),
        (3, [0, 11, 12], [5, 8, 11, 13, 15, 16, 17, 18], [14, 15, 16, 17, 9, 10, 13]),
    ):
        edges, generator = random_tree(18, seed)
        d = tree_metric(edges)
        assert sorted(generator.choice(18, 3, replace=False).tolist()) == start
        for n, size in enumerate(sizes):
            observed = start + chosen[:n]
            assert locus(d, observed).sum() == size
            if 3 <= n < 7:  # the first choices take the longest to compute
                assert next_class_selection(d, observed) == chosen[n]


def test_gradients_reach_the_classifier() -> None:
    head = LokiHead(random_metric(5, 8), observed=[0, 2, 4], temperature=0.7).double()
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(head, (logits.requires_grad_(),))


def test_one_label() -> None:
    assert locus([[0.0]], [0]).tolist() == [True]
    assert LokiHead([[0.0]]).predict(np.ones((2, 1))).tolist() == [0, 0]


def test_refusals() -> None:
    check_names(LokiHead)
    with pytest.raises(EtudeError, match=r"class_distances must be .* symmetric"):
        LokiHead([[0.0, 1.0], [2.0, 0.0]])
    with pytest.raises(EtudeError, match="0 on the diagonal"):
        locus([[1.0, 1.0], [1.0, 0.0]], [0])
    with pytest.raises(EtudeError, match="observed must be"):
        LokiHead(random_metric(3, 0), observed=[0, 3])
    with pytest.raises(EtudeError, match="observed must be"):
        locus(random_metric(3, 0), [1, 1])
    with pytest.raises(EtudeError, match="temperature must be positive"):
        LokiHead(random_metric(3, 0), temperature=0.0)
    with pytest.raises(EtudeError, match="logits must be of the 2 observed labels"):
        LokiHead(random_metric(3, 0), observed=[0, 2])(torch.zeros(1, 3))
    with pytest.raises(EtudeError, match="probs must be at least 0"):
        LokiHead(random_metric(2, 0)).predict(np.array([[1.5, -0.5]]))
    with pytest.raises(EtudeError, match="observed must be short of some"):
        next_class_selection(random_metric(2, 0), [0, 1])
    with pytest.raises(EtudeError, match="connected, no cycle"):
        tree_metric([(0, 1), (1, 0), (2, 3)])
