"""HNSW against full search and slow loops, and the estimate of local dimension against geometry.

No official code was found. The loop oracle of the walk is the textbook's two heaps (Malkov and
Yashunin, algorithm 2), of the choice of neighbors algorithm 4 without its options. hnswlib 0.8.0
and faiss 1.15.1, given the experiment's mixture of subspaces (seeds 100 and 101) in each of its
four orders, reached our recall within 0.007.
"""

import heapq

import numpy as np
import pytest

from etude.core import EtudeError
from etude.core.graph_walk import beam, choose
from etude.experiments.retrieval.hnsw_order_study import subspace_points
from etude.retrieval import HNSW, local_intrinsic_dim, order_experiment


def full_search(points, queries, k):
    far = np.linalg.norm(points[None] - queries[:, None], axis=2)
    return np.argsort(far, axis=1)[:, :k], np.sort(far, axis=1)[:, :k]


def two_heaps(points, links, query, entries, ef):
    def far(i):
        return float(((points[i] - query) ** 2).sum())

    seen, todo = set(entries), [(far(i), i) for i in entries]
    best = [(-d, i) for d, i in todo]
    heapq.heapify(todo)
    heapq.heapify(best)
    while todo:
        d, i = heapq.heappop(todo)
        if d > -best[0][0]:
            break
        for j in links[i]:
            if j < 0 or j in seen:
                continue
            seen.add(j)
            if len(best) < ef or far(j) < -best[0][0]:
                heapq.heappush(todo, (far(j), j))
                heapq.heappush(best, (-far(j), j))
                if len(best) > ef:
                    heapq.heappop(best)
    return [i for _, i in sorted((-d, i) for d, i in best)]


def slow_choice(points, point, ids, most, diverse):
    """(3), the nearest first; a list that fits is kept whole."""

    def far(a, b):
        return float(((points[a] - points[b]) ** 2).sum())

    if len(ids) <= most:
        return list(ids)
    kept = []
    for c in sorted(ids, key=lambda c: far(c, point)):
        if not diverse or all(far(c, n) >= far(c, point) for n in kept):
            kept.append(c)
    return kept[:most]


def slow_graph(points, levels, n_links, ef, diverse):
    """For each layer the lists of all points, inserted one by one."""
    layers = [[[] for _ in points] for _ in range(max(levels) + 1)]
    entry = 0
    for point in range(1, len(points)):
        entries = [entry]
        for layer in range(levels[entry], levels[point], -1):
            entries = two_heaps(points, layers[layer], points[point], entries, 1)
        for layer in range(min(levels[entry], levels[point]), -1, -1):
            links, most = layers[layer], n_links * (1 if layer else 2)
            entries = two_heaps(points, links, points[point], entries, ef)
            links[point] = slow_choice(points, point, entries, n_links, diverse)
            for other in links[point]:
                links[other] = slow_choice(points, other, [*links[other], point], most, diverse)
        if levels[point] > levels[entry]:
            entry = point
    return layers


def test_the_walk_is_that_of_two_heaps():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(120, 5)).astype(np.float32)
    links = rng.integers(-1, 120, (120, 6))
    links = -np.sort(-links, axis=1)  # -1 closes a list
    for ef in (1, 3, 17):
        for number, query in enumerate(rng.normal(size=(8, 5)).astype(np.float32)):
            seen = np.zeros(120, np.int64)
            ids, far = beam(points, links, query, np.array([7]), ef, seen, number + 1)
            assert ids.tolist() == two_heaps(points, links, query, [7], ef)
            want = ((points[ids].astype(float) - query) ** 2).sum(1)
            np.testing.assert_allclose(far, want, rtol=1e-5)


def test_neighbors_are_chosen_by_the_diversity_rule():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(40, 3)).astype(np.float32)
    ids = rng.permutation(np.arange(1, 40))
    kept = slow_choice(points, 0, ids, 6, True)
    assert choose(points, 0, ids, 6, True).tolist() == kept
    nearest = full_search(points[1:], points[:1], 6)[0][0] + 1
    assert choose(points, 0, ids, 6, False).tolist() == nearest.tolist()
    assert kept != nearest.tolist()
    assert sorted(choose(points, 0, ids, 39, True)) == sorted(ids)


@pytest.mark.parametrize("diverse", [True, False])
def test_the_graph_is_that_of_slow_insertions(diverse):
    points = np.random.default_rng(10).normal(size=(160, 3)).astype(np.float32)
    graph = HNSW(3, n_links=3, ef_construction=8, diverse=diverse, seed=1).insert(points)
    want = slow_graph(points.astype(float), graph.levels_, 3, 8, diverse)
    assert len(graph.links_) == len(want) >= 4
    for links, lists in zip(graph.links_, want, strict=True):
        assert [set(row[row >= 0]) for row in links] == [set(row) for row in lists]


def test_a_search_goes_down_through_every_layer():
    graph = HNSW(1, n_links=2).insert(np.arange(4.0)[:, None])
    graph.levels_, graph.entry_ = np.array([2, 2, 1, 0]), 0
    graph.links_ = [np.full((4, width), -1) for width in (4, 2, 2)]
    for layer, point in ((2, 0), (1, 1), (0, 2)):  # the only ways on
        graph.links_[layer][point, 0] = point + 1
    ids, far = graph.search(np.array([[3.0]]), n_results=1, ef=1)
    assert (ids.item(), far.item()) == (3, 0)


def test_a_beam_over_all_points_is_full_search():
    rng = np.random.default_rng(2)
    points, queries = rng.normal(size=(300, 6)), rng.normal(size=(20, 6))
    graph = HNSW(6, n_links=6, ef_construction=40, ef_search=300).insert(points)
    ids, far = graph.search(queries)
    want, distances = full_search(points.astype(np.float32), queries.astype(np.float32), 10)
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_allclose(far, distances, rtol=1e-5)
    narrow = graph.search(queries, ef=1)[0]
    assert 0.2 < (narrow[:, :, None] == want[:, None]).any(1).mean() < 1  # a narrow beam misses


def test_narrow_beams_find_as_much_as_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(9)
    points, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (1500, 300))
    want = full_search(points, queries, 10)[0]
    peer = faiss.IndexHNSWFlat(16, 6)
    peer.hnsw.efConstruction, peer.hnsw.efSearch = 30, 12
    for row in points:
        peer.add(row[None])
    graph = HNSW(16, n_links=6, ef_construction=30, ef_search=12).insert(points)
    ours, theirs = (
        (ids[:, :, None] == want[:, None]).any(1).mean()
        for ids in (graph.search(queries)[0], peer.search(queries, 10)[1])
    )
    assert 0.4 < theirs < 0.9
    assert ours == pytest.approx(theirs, abs=0.03)


def test_with_enough_links_the_lowest_layer_is_complete():
    points = np.random.default_rng(3).normal(size=(30, 4))
    graph = HNSW(4, n_links=29, ef_construction=30, diverse=False).insert(points)
    rows = np.sort(graph.links_[0], axis=1)[:, -29:]
    want = [[j for j in range(30) if j != i] for i in range(30)]
    np.testing.assert_array_equal(rows, want)
    ids, _ = graph.search(points, ef=30, n_results=3)
    np.testing.assert_array_equal(ids[:, 0], np.arange(30))


def test_the_shape_of_the_graph():
    points = np.random.default_rng(4).normal(size=(600, 5))
    graph = HNSW(5, n_links=4, ef_construction=20).insert(points)
    assert [links.shape[1] for links in graph.links_] == [8] + [4] * (len(graph.links_) - 1)
    assert len(graph.links_) == graph.levels_.max() + 1 >= 3
    assert graph.levels_[graph.entry_] == graph.levels_.max()
    # (2): a share 1 / M of the points rises above each layer
    assert (graph.levels_ >= 1).mean() == pytest.approx(1 / 4, abs=0.06)
    for layer, links in enumerate(graph.links_):
        linked = (links >= 0).any(1)
        assert (graph.levels_[linked] >= layer).all()
        there = links[links >= 0]
        assert (graph.levels_[there] >= layer).all()
        assert not (links == np.arange(600)[:, None]).any()


def test_same_seed_same_graph_however_the_points_come():
    points = np.random.default_rng(5).normal(size=(200, 5))
    whole = HNSW(5, n_links=4, ef_construction=20, seed=3).insert(points)
    parts = HNSW(5, n_links=4, ef_construction=20, seed=3).insert(points[:70]).insert(points[70:])
    for one, other in zip(whole.links_, parts.links_, strict=True):
        np.testing.assert_array_equal(one, other)
    other = HNSW(5, n_links=4, ef_construction=20, seed=4).insert(points)
    assert not np.array_equal(other.levels_, whole.levels_)


def test_duplicates_and_a_single_point():
    graph = HNSW(3, n_links=2, ef_construction=4).insert(np.ones((1, 3)))
    ids, far = graph.search(np.zeros((1, 3)), n_results=2)
    assert ids.tolist() == [[0, -1]]
    np.testing.assert_allclose(far, [[np.sqrt(3), np.inf]])
    graph.insert(np.ones((20, 3)))
    ids, far = graph.search(np.ones((1, 3)), n_results=5)
    assert len(set(ids[0])) == 5
    assert (far == 0).all()


@pytest.mark.parametrize(("dim", "slack"), [(2, 0.05), (5, 0.05), (10, 0.07)])
def test_at_the_center_of_a_ball_the_estimate_is_its_dimension(dim, slack):
    rng = np.random.default_rng(6)
    ball = rng.normal(size=(20000, dim))
    ball *= (rng.random(20000) ** (1 / dim) / np.linalg.norm(ball, axis=1))[:, None]
    found = local_intrinsic_dim(ball, np.zeros((1, dim)), n_neighbors=1000)
    assert found[0] == pytest.approx(dim, rel=slack)


def test_local_dimension_against_loops_scale_and_duplicates():
    points = np.random.default_rng(7).normal(size=(60, 4)).astype(np.float32)
    found = local_intrinsic_dim(points, n_neighbors=7)
    for i in range(60):
        others = [np.linalg.norm(points[i].astype(float) - p) for j, p in enumerate(points)]
        near = sorted(d for d in others if d > 0)[:7]
        assert found[i] == pytest.approx(-7 / sum(np.log(d / near[-1]) for d in near))
    np.testing.assert_allclose(local_intrinsic_dim(4 * points, n_neighbors=7), found)
    doubled = np.concatenate([points, points])
    np.testing.assert_allclose(local_intrinsic_dim(doubled, n_neighbors=14)[:60], found)
    ring = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert local_intrinsic_dim(ring, np.zeros((1, 2)), n_neighbors=3)[0] == np.inf


def test_recall_of_an_order_counts_the_rows_of_the_collection():
    rng = np.random.default_rng(8)
    points, queries, category = subspace_points(rng, (2, 16), 400)
    assert (len(points), len(category), len(queries)) == (400, 400, 400)
    assert np.linalg.matrix_rank(points[category == 0]) == 2
    queries = queries[::20]
    orders = {"as they are": np.arange(400), "shuffled": rng.permutation(400)}
    wide = order_experiment(points, queries, orders, ef_search=400)
    assert wide == {"as they are": 1.0, "shuffled": 1.0}
    narrow = order_experiment(points, queries, orders, n_links=2, ef_construction=4, ef_search=1)
    assert 0 < min(narrow.values()) < 1
    assert len(set(narrow.values())) == 2
    other = order_experiment(
        points, queries, orders, n_links=2, ef_construction=4, ef_search=1, seed=1
    )
    assert other != narrow  # other levels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HNSW(0), "dim must be at least 1"),
        (lambda: HNSW(2, n_links=1), "n_links must be at least 2"),
        (lambda: HNSW(2, ef_construction=0), "ef_construction must be at least 1"),
        (lambda: HNSW(2, ef_search=0), "ef_search must be at least 1"),
        (lambda: HNSW(2).search(np.ones((1, 2))), "queries must be asked after insert"),
        (lambda: HNSW(2).insert(np.ones((3, 4))), "vectors must be rows of width 2"),
        (lambda: HNSW(2).insert(np.full((1, 2), np.nan)), "vectors must be finite"),
        (lambda: HNSW(2).insert(np.ones((1, 2))).search(np.ones((1, 2)), ef=0), "ef must be"),
        (lambda: local_intrinsic_dim(np.ones((5, 2)), n_neighbors=2), "n_neighbors must be from 2"),
        (
            lambda: order_experiment(np.eye(3), np.eye(3), {"a": np.zeros(3, int)}, n_results=1),
            r"orders\['a'\] must be a permutation",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(EtudeError, match=message):
        make()
