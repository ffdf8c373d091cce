"""FastRP against dense matrix powers, its reductions, and the released code's numbers."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from etude.core import EtudeError, check_names
from etude.experiments.graphs import _node_labels as node_labels
from etude.graphs import fast_rp, very_sparse_projection


def random_graph(n_nodes, share=0.1, seed=0, weighted=True):
    """A symmetric weighted graph without isolated nodes (a ring runs through it)."""
    generator = np.random.default_rng(seed)
    upper = np.triu(generator.random((n_nodes, n_nodes)) < share, 1) * 1.0
    if weighted:
        upper *= generator.uniform(0.2, 3.0, upper.shape)
    ring = np.roll(np.eye(n_nodes), 1, axis=1)
    dense = np.maximum(upper + upper.T, ring + ring.T)
    return sparse.csr_array(dense)


def dense_sum(adjacency, projection, weights, beta):
    """Equations (1), (2), (4), (5) with loops and full powers, no row scaling."""
    a = adjacency.toarray()
    n = len(a)
    degree = [sum(a[i]) for i in range(n)]
    S = np.array([[a[i, j] / degree[i] for j in range(n)] for i in range(n)])
    L = np.diag([(degree[j] / sum(degree)) ** beta for j in range(n)])
    powers = [np.linalg.matrix_power(S, k + 1) for k in range(len(weights))]
    return sum(w * p for w, p in zip(weights, powers, strict=True)) @ L @ projection.toarray()


@pytest.mark.parametrize("beta", [-0.8, 0.0, 0.5])
def test_equals_the_dense_polynomial(beta):
    graph, weights = random_graph(40), (0.5, 0.0, 1.0, 4.0)
    R = very_sparse_projection(40, dim=7, sparsity=3, seed=2)
    got = fast_rp(
        graph, weights=weights, beta=beta, projection=R, unit_rows=False, standardize=False
    )
    np.testing.assert_allclose(got, dense_sum(graph, R, weights, beta), rtol=1e-11, atol=1e-11)


def test_rows_are_scaled_power_by_power_before_the_sum():
    graph, R = random_graph(30), very_sparse_projection(30, dim=6, sparsity=2)
    got = fast_rp(graph, weights=(0.0, 1.0, 3.0), beta=-0.5, projection=R, standardize=False)
    expected = 0.0
    for weight, mixture in ((1.0, (0, 1)), (3.0, (0, 0, 1))):
        power = dense_sum(graph, R, mixture, -0.5)
        expected = expected + weight * power / np.linalg.norm(power, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


def test_agrees_with_the_released_code():
    """GTmac/FastRP 3a6a71c, fastrp_projection (trans, alpha = -0.63) and fastrp_merge, run on
    this graph with this projection in place of its random one: 1e-6, as many digits as written.
    """
    n = 12
    edges = [(k, (k + 1) % n, 1.0) for k in range(n)] + [(0, k, 1.0) for k in (3, 4, 6, 8)]
    dense = np.zeros((n, n))
    for a, b, weight in [*edges, (2, 7, 2.0), (5, 9, 0.5)]:
        dense[a, b] = dense[b, a] = weight
    pattern = np.fromfunction(lambda i, j: (i * i + 3 * i * j + 2 * j) % 5, (n, 4))
    R = sparse.csr_array((pattern == 1) * 1.0 - (pattern == 4) * 1.0)
    graph = sparse.csc_matrix(dense)
    got = fast_rp(graph, weights=(0, 0, 1.0, 6.0), beta=-0.63, projection=R)
    expected = [
        [-0.730536, -1.389689, -1.571872, 0.239892],
        [-0.988518, -1.57518, -1.314691, 0.431457],
        [1.673636, 0.524323, 0.602912, -2.015453],
    ]
    np.testing.assert_allclose(got[[0, 5, 11]], expected, atol=1e-6)
    mixed = fast_rp(graph, weights=(1.0, 0.5, 0.0, 2.0), beta=-0.63, projection=R, unit_rows=False)
    expected = [
        [-0.151606, -0.076237, 0.067873, 0.277214],
        [0.381217, -1.424899, -1.529261, 0.289492],
        [2.01941, 2.652581, -0.330379, 1.679568],
    ]
    np.testing.assert_allclose(mixed[[0, 5, 11]], expected, atol=1e-6)


def test_projection_has_the_distribution_of_equation_3():
    n, dim, s = 400, 500, 8.0
    R = very_sparse_projection(n, dim=dim, sparsity=s, seed=5)
    assert R.shape == (n, dim)
    np.testing.assert_allclose(np.abs(R.data), np.sqrt(s))
    cells = n * dim
    assert abs(R.nnz - cells / s) < 5 * np.sqrt(cells / s * (1 - 1 / s))
    assert abs((R.data > 0).sum() - R.nnz / 2) < 5 * np.sqrt(R.nnz / 4)
    assert len({(i, j) for i, j in zip(*R.nonzero(), strict=True)}) == R.nnz  # no cell twice
    default = very_sparse_projection(10_000, dim=64)
    np.testing.assert_allclose(np.abs(default.data), 10.0)


def test_projection_keeps_inner_products_and_the_error_falls_with_the_square_root_of_dim():
    n = 200
    errors = []
    for dim in (64, 256, 1024):
        R = very_sparse_projection(n, dim=dim, seed=1).toarray()
        errors.append(np.sqrt((((R @ R.T) / dim - np.eye(n)) ** 2).mean()))
    assert np.isclose(errors[0] / errors[1], 2, rtol=0.25)
    assert np.isclose(errors[1] / errors[2], 2, rtol=0.25)


def test_permuted_nodes_give_permuted_rows():
    graph, R = random_graph(50), very_sparse_projection(50, dim=9, seed=3)
    order = np.random.default_rng(0).permutation(50)
    got = fast_rp(graph[order][:, order], projection=R[order])
    np.testing.assert_allclose(got, fast_rp(graph, projection=R)[order], atol=1e-10)


def test_a_factor_on_all_edges_disappears():
    graph = random_graph(60)
    np.testing.assert_allclose(
        fast_rp(graph * 7.0, dim=16), fast_rp(graph, dim=16), rtol=1e-9, atol=1e-9
    )


def test_negative_beta_weakens_the_hub():
    star = np.zeros((21, 21))
    star[0, 1:] = star[1:, 0] = 1
    star += np.roll(np.eye(21), 1, 0) + np.roll(np.eye(21), -1, 0)
    R = sparse.eye_array(21, format="csr")  # the projection off: columns are target nodes
    strong, weak = (
        fast_rp(
            sparse.csr_array(star), weights=(1,), beta=beta, projection=R, unit_rows=False,
            standardize=False,
        )
        for beta in (0.0, -0.9)
    )  # fmt: skip
    hub = slice(5, 6), 0
    others = slice(5, 6), 4
    assert weak[hub] / weak[others] < 0.3 * strong[hub] / strong[others]


def test_columns_are_standardized_and_seeds_repeat():
    graph = random_graph(80, seed=4)
    embeddings = fast_rp(graph, dim=24, seed=9)
    np.testing.assert_allclose(embeddings.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(embeddings.std(0), 1, rtol=1e-12)
    np.testing.assert_array_equal(embeddings, fast_rp(graph, dim=24, seed=9))
    assert not np.allclose(embeddings, fast_rp(graph, dim=24, seed=10))


def test_limits():
    assert fast_rp(random_graph(30, weighted=False).astype(np.int64), dim=8).dtype == np.float32
    assert fast_rp(random_graph(30).astype(np.float32), dim=8).dtype == np.float32
    lonely = random_graph(30).tolil()
    lonely[4, :] = 0
    lonely[:, 4] = 0
    with np.errstate(divide="raise", invalid="raise"):
        raw = fast_rp(lonely, dim=8, sparsity=2, standardize=False)
    assert np.isfinite(raw).all()
    assert (raw[4] == 0).all()
    assert (np.abs(raw).sum(1) > 0).sum() == 29
    assert np.isfinite(fast_rp(lonely, dim=8)).all()
    empty = fast_rp(sparse.csr_array((5, 5)), dim=3)
    np.testing.assert_array_equal(empty, np.zeros((5, 3)))
    regular = sparse.csr_array(np.ones((6, 6)))  # every node the same: all columns constant
    np.testing.assert_array_equal(fast_rp(regular, dim=4, sparsity=1), np.zeros((6, 4)))


def test_the_input_stays_as_it_was():
    graph = random_graph(30)
    before = graph.toarray()
    fast_rp(graph, dim=4)
    np.testing.assert_array_equal(graph.toarray(), before)


def test_refusals():
    graph = random_graph(10)
    with pytest.raises(EtudeError, match="adjacency must be a scipy sparse matrix"):
        fast_rp(graph.toarray())
    with pytest.raises(EtudeError, match="adjacency must be square"):
        fast_rp(graph[:, :5])
    with pytest.raises(EtudeError, match="adjacency must be finite and non-negative"):
        fast_rp(-graph)
    broken = graph.copy()
    broken.data[3] = np.nan
    with pytest.raises(EtudeError, match="adjacency must be finite and non-negative"):
        fast_rp(broken)
    with pytest.raises(EtudeError, match="weights must be finite numbers, not all zero"):
        fast_rp(graph, weights=(0.0, 0.0))
    with pytest.raises(EtudeError, match="projection must be a matrix of 10 rows"):
        fast_rp(graph, projection=very_sparse_projection(11, dim=4))
    with pytest.raises(EtudeError, match="sparsity must be"):
        very_sparse_projection(10, sparsity=0.5)
    with pytest.raises(EtudeError, match="dim must be at least 1"):
        fast_rp(graph, dim=0)
    check_names(fast_rp)
    check_names(very_sparse_projection)


def test_communities_of_a_block_model_are_found():
    generator = np.random.default_rng(7)
    blocks = np.repeat(np.arange(4), 100)
    chance = np.where(blocks[:, None] == blocks, 0.12, 0.02)
    upper = np.triu(generator.random((400, 400)) < chance, 1)
    embeddings = fast_rp(sparse.csr_array((upper | upper.T) * 1.0), dim=64)
    order = generator.permutation(400)
    model = LogisticRegression().fit(embeddings[order[:200]], blocks[order[:200]])
    assert model.score(embeddings[order[200:]], blocks[order[200:]]) > 0.9


def test_the_experiment_s_regressions_are_scikit_learn_s():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 5))
    positives = x @ generator.standard_normal((5, 3)) + generator.standard_normal((200, 3)) > 0.5
    weights = node_labels.fit_labels(x, positives, 0.3)
    for k in range(3):
        peer = LogisticRegression(C=0.3, tol=1e-8).fit(x, positives[:, k])
        np.testing.assert_allclose(weights[:-1, k], peer.coef_[0], atol=2e-3)
        np.testing.assert_allclose(weights[-1, k], peer.intercept_[0], atol=2e-3)
    guess = node_labels.predict_top(np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]), np.array([2, 1]))
    np.testing.assert_array_equal(guess, [[True, False, True], [False, True, False]])
    parts = node_labels.split_nodes(200, 3)
    assert [len(part) for part in parts] == [80, 20, 100]
    assert sorted(np.concatenate(parts)) == list(range(200))
    scores = node_labels.best_scores([generator.standard_normal((200, 5)), x], positives, parts)
    assert scores.choice == 1  # the validation nodes prefer features to noise
    assert scores.micro > 0.6 > f1_score(positives, np.ones_like(positives), average="micro") - 0.4
