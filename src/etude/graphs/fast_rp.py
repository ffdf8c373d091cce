r"""FastRP: project the k-step transition matrices by a very sparse random matrix.

Embeddings trained on random walks factorize, in effect, a matrix of node similarities. FastRP
says that this matrix is what matters, not the training that compresses it: so build the matrix
well, and compress it with a random projection, which keeps inner products in expectation. The
matrix is a weighted sum of powers of the transition matrix, whose columns are scaled by a power
of the degree, so that hubs, which every walk ends in, do not drown the rest:

    S = D^-1 A                                       row-stochastic, D the degrees       (1)
    L = diag((deg_j / 2m)^beta)                      beta < 0 weakens hubs               (2)
    R_ij = +-sqrt(s), each with chance 1 / (2s), else 0;   E[R R^T] = dim * I            (3)
    N_1 = S (L R),   N_k = S N_(k-1)                 no power S^k is ever formed         (4)
    N = sum_k weight_k N_k                                                               (5)

with m the number of edges and s = sqrt(N) by default. The cost is one pass over the edges a
power. As in the released code, each N_k has its rows scaled to unit length before (5), and the
columns of N are standardized after it; both can be switched off.

Source: Chen, Sultan, Tian, Chen, Skiena, "Fast and Accurate Network Embeddings via Very Sparse
Random Projection", CIKM 2019, arXiv:1908.11512; released code GTmac/FastRP. Defaults of `beta`
and `weights`: rounded from the configurations that the released BlogCatalog notebook tuned.
Not found in the paper: nodes without edges. They get a row of zeros before standardization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from etude.core import Card, require

__all__ = ["fast_rp", "very_sparse_projection"]

CARD = Card(
    slug="fast_rp",
    family="graphs",
    title="Fast and Accurate Network Embeddings via Very Sparse Random Projection",
    year=2019,
    arxiv="1908.11512",
    move="project a weighted sum of transition-matrix powers by a very sparse random matrix",
    task="experiment",
    claim="a logistic regression on FastRP embeddings of the nodes has a higher macro-F1 than one "
    "on spectral embeddings of equal width",
    baseline="spectral_embedding",
    metric="macro_f1",
    better="higher",
    published="abstract: over 4,000 times faster than DeepWalk and node2vec, with comparable or "
    "better performance on several networks and tasks",
    fidelity="full",
    cost="L",
    data=("blogcatalog",),
    code="GTmac/FastRP",
    departs=(
        "The released code's option to concatenate the powers instead of adding them is left out.",
    ),
    search={"beta": (-0.63, -0.9, -0.3, 0.0)},
    example={"dim": 8},
)


def very_sparse_projection(
    n_nodes: int, *, dim: int = 128, sparsity: float | None = None, seed: int = 0
) -> sparse.csr_array:
    """Equation (3): a random (n_nodes, dim) float64 matrix R with E[R R^T] = dim * I.

    `sparsity` is s: a share 1/s of the entries is not zero. None means sqrt(n_nodes); on graphs
    of a few dozen nodes take 3, or many rows are all zero (each with chance (1 - 1/s)^dim).

    Raises:
        EtudeError: `n_nodes` or `dim` below 1, or `sparsity` below 1 or not finite.
    """
    require(n_nodes >= 1, "n_nodes", "at least 1", n_nodes)
    require(dim >= 1, "dim", "at least 1", dim)
    s = math.sqrt(n_nodes) if sparsity is None else float(sparsity)
    require(1.0 <= s < math.inf, "sparsity", "a finite number of at least 1", sparsity)
    generator = np.random.default_rng(seed)
    # Independent entries, without drawing the zeros: first how many are not zero, then which.
    count = int(generator.binomial(n_nodes * dim, 1.0 / s))
    cells = generator.choice(n_nodes * dim, size=count, replace=False, shuffle=False)
    values = math.sqrt(s) * (2.0 * generator.integers(0, 2, size=count) - 1.0)  # (3)
    return sparse.csr_array((values, np.divmod(cells, dim)), shape=(n_nodes, dim))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows / np.where(norms > 0, norms, 1)


def _standardized(columns: np.ndarray) -> np.ndarray:
    centered = columns - columns.mean(axis=0)
    spread = np.sqrt(np.einsum("nd,nd->d", centered, centered) / len(columns))
    # A constant column leaves rounding noise behind, which must not be blown up to unit size.
    tiny = 10 * np.finfo(columns.dtype).eps * np.abs(columns).max(axis=0, initial=0)
    centered /= np.where(spread > tiny, spread, np.inf)
    return centered


def fast_rp(
    adjacency: sparse.sparray | sparse.spmatrix,
    *,
    dim: int = 128,
    weights: Sequence[float] = (0.0, 0.0, 1.0, 6.0),
    beta: float = -0.63,
    sparsity: float | None = None,
    unit_rows: bool = True,
    standardize: bool = True,
    projection: sparse.sparray | sparse.spmatrix | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Embed the nodes of an undirected graph.

    Args:
        adjacency: (N, N) sparse, non-negative; entries are edge weights. Computed in its float
            type; integer and bool matrices in float32.
        dim: width of the embeddings.
        weights: weight_k of the powers k = 1, 2, ...; one pass over the edges each.
        beta: exponent of the degree in (2); negative weakens hubs as targets.
        sparsity: s of (3); None means sqrt(N).
        unit_rows: scale the rows of each N_k to unit length before the sum (5).
        standardize: give each column of the sum mean 0 and standard deviation 1.
        projection: (N, dim) sparse R to use instead of a random one, such as one that grew with
            the graph; `dim`, `sparsity` and `seed` then have no effect.
        seed: of the random projection.

    Returns:
        (N, dim) embeddings. A node without edges has a zero row (before standardization).

    Raises:
        EtudeError: not a square, sparse, finite, non-negative matrix; no weights or only zeros;
            a `projection` of another height.
    """
    require(sparse.issparse(adjacency), "adjacency", "a scipy sparse matrix", adjacency)
    n_nodes = adjacency.shape[0]
    require(
        adjacency.ndim == 2 and adjacency.shape[1] == n_nodes >= 1, "adjacency",
        "square with at least one node", adjacency.shape,
    )  # fmt: skip
    real = adjacency.dtype in (np.float32, np.float64)
    S = sparse.csr_array(adjacency, dtype=adjacency.dtype if real else np.float32, copy=True)
    # min() of the data is NaN where any entry is, and then fails the comparison.
    extremes = (S.data.min(initial=0), S.data.max(initial=0))
    require(
        extremes[0] >= 0 and extremes[1] < math.inf, "adjacency", "finite and non-negative",
        extremes,
    )  # fmt: skip
    mixture = [float(weight) for weight in weights]
    require(
        any(mixture) and all(map(math.isfinite, mixture)), "weights",
        "finite numbers, not all zero", tuple(weights),
    )  # fmt: skip
    require(math.isfinite(beta), "beta", "finite", beta)
    if projection is None:
        R = very_sparse_projection(n_nodes, dim=dim, sparsity=sparsity, seed=seed)
    else:
        R = sparse.csr_array(projection)
        require(R.shape[0] == n_nodes, "projection", f"a matrix of {n_nodes} rows", R.shape)

    degrees = np.asarray(S.sum(axis=1), dtype=np.float64).ravel()
    known = np.where(degrees > 0, degrees, 1.0)  # nothing leads to a node without edges
    S.data *= np.repeat(1.0 / known, np.diff(S.indptr)).astype(S.dtype)  # (1)
    L = (known / max(degrees.sum(), 1.0)) ** beta  # (2), degrees sum to 2m
    LR = sparse.csr_array(sparse.diags_array(L) @ R, dtype=S.dtype)
    total = np.zeros((n_nodes, R.shape[1]), dtype=S.dtype)
    # Powers beyond the last one with a weight would be computed for nothing.
    last = max(k for k, weight in enumerate(mixture) if weight)
    power = (S @ LR).toarray()  # (4); both factors are sparse, so this one is nearly free
    for k, weight in enumerate(mixture[: last + 1]):
        if k > 0:
            power = S @ power  # (4)
        if weight:
            total += weight * (_unit_rows(power) if unit_rows else power)  # (5)
    return _standardized(total) if standardize else total
