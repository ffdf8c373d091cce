"""FastRP against spectral embedding: classify the nodes of BlogCatalog by their embeddings.

Measured: macro-F1 (headline) and micro-F1 over the labels of held-out nodes, and the seconds
that one embedding of all nodes takes. Data: BlogCatalog (10,312 nodes, 39 labels, several a
node) from the folder ETUDE_DATA, as `blogcatalog/blogcatalog.mat`; where it is absent, a
degree-corrected stochastic block model of 3,000 nodes and 12 communities that is drawn anew for
each seed. 40 % of the nodes train, 10 % validate, 50 % test.

Both arms have 128 columns, the same splits, and 12 configurations to choose from by validation
macro-F1: four embeddings times three penalties of the logistic regression.

- FastRP: the power of the degree (-0.63, -0.3) times the weight of the fourth power of the
  transition matrix beside the third's 1 (6, 2). One random projection a seed.
- spectral_embedding: the leading eigenvectors of D^-1/2 A D^-1/2 after the trivial one (scipy's
  eigsh), which are those of the normalized Laplacian's smallest eigenvalues; plain, divided by
  sqrt(degree), with rows of unit length, or so after weighting by |eigenvalue|. (Weights alone
  would be undone when the columns are standardized, which every embedding is.)
- deepwalk, where pecanpy and gensim can be imported (they need numpy < 2, see
  bench/fast_rp.py): 10 walks of 80 steps a node, window 10; only the penalty is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np
from scipy import sparse
from scipy.io import loadmat
from scipy.sparse.linalg import eigsh

from etude.core import EtudeError
from etude.experiments.graphs._node_labels import Scores, best_scores, split_nodes
from etude.graphs.fast_rp import fast_rp
from etude.lab.data import find_data
from etude.tasks.base import Pair

__all__ = ["measure"]

DIM = 128


def block_model(
    seed: int, *, n_nodes: int = 3000, n_blocks: int = 12, mean_degree: float = 14.0
) -> tuple[sparse.csr_array, np.ndarray]:
    """A degree-corrected block model: (N, N) adjacency and (N, K) bool labels, one a node.

    Half of a node's expected edges stay in its community; propensities are log-normal.
    """
    generator = np.random.default_rng([seed, 11_51])
    blocks = generator.integers(0, n_blocks, n_nodes)
    pull = generator.lognormal(0.0, 0.8, n_nodes)
    pull /= pull.mean()
    base = mean_degree / n_nodes
    same = blocks[:, None] == blocks[None, :]
    chance = base * np.outer(pull, pull) * np.where(same, 0.5 * n_blocks, 0.5)
    upper = np.triu(generator.random((n_nodes, n_nodes)) < chance, 1)
    graph = sparse.csr_array((upper | upper.T).astype(np.float32))
    return graph, np.eye(n_blocks, dtype=bool)[blocks]


@cache
def blogcatalog() -> tuple[sparse.csr_array, np.ndarray]:
    """BlogCatalog's adjacency and labels. EtudeError where the file is not in ETUDE_DATA."""
    content = loadmat(find_data("blogcatalog/blogcatalog.mat"))
    graph = sparse.csr_array(content["network"], dtype=np.float32)
    return graph, sparse.csr_array(content["group"]).toarray() > 0


def spectral_candidates(graph: sparse.csr_array, dim: int) -> tuple[list[np.ndarray], float]:
    """The four spectral embeddings, and the seconds of the eigenvectors that they share."""
    start = time.perf_counter()
    root = np.sqrt(np.maximum(graph.sum(axis=1), 1.0)).astype(np.float64)
    scale = sparse.diags_array(1.0 / root)
    normalized = scale @ graph.astype(np.float64) @ scale
    first = np.random.default_rng(0).standard_normal(graph.shape[0])
    values, vectors = eigsh(normalized, k=dim + 1, which="LA", v0=first, tol=1e-4)
    seconds = time.perf_counter() - start
    order = np.argsort(-values)[1:]  # the first is trivial: sqrt(degree)
    vectors, values = vectors[:, order], np.abs(values[order])
    weighted = vectors * values
    found = [
        vectors,
        vectors / root[:, None],
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12),
        weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12),
    ]
    return found, seconds


blogcatalog_spectral = cache(lambda: spectral_candidates(blogcatalog()[0], DIM))


def fast_rp_candidates(
    graph: sparse.csr_array, dim: int, seed: int
) -> tuple[list[np.ndarray], float]:
    """Four FastRP embeddings, and the median seconds of one."""
    found, seconds = [], []
    for beta in (-0.63, -0.3):
        for fourth in (6.0, 2.0):
            start = time.perf_counter()
            weights = (0.0, 0.0, 1.0, fourth)
            found.append(fast_rp(graph, dim=dim, weights=weights, beta=beta, seed=seed))
            seconds.append(time.perf_counter() - start)
    return found, float(np.median(seconds))


def deepwalk_candidates(
    graph: sparse.csr_array, dim: int, seed: int
) -> tuple[list[np.ndarray], float]:
    """DeepWalk by pecanpy and gensim, one thread: one embedding, and its seconds."""
    from pecanpy.pecanpy import FirstOrderUnweighted  # type: ignore[import-not-found]

    start = time.perf_counter()
    peer = FirstOrderUnweighted(p=1, q=1, workers=1, random_state=seed)
    peer.set_node_ids(None, implicit_ids=True, num_nodes=graph.shape[0])
    peer.indptr, peer.indices = graph.indptr.astype(np.uint32), graph.indices.astype(np.uint32)
    peer.data = np.ones(graph.nnz, dtype=np.float32)
    found = peer.embed(dim=dim, num_walks=10, walk_length=80, window_size=10)
    return [found], time.perf_counter() - start


def measure(
    seed: int,
    *,
    log: Callable[[str], None] | None = None,
) -> list[Pair]:
    """One seed's split, and FastRP's projection: F1 and seconds against each baseline."""
    try:
        (graph, positives), data = blogcatalog(), "blogcatalog"
        spectral = blogcatalog_spectral()
    except EtudeError:
        (graph, positives), data = block_model(seed), "block_model"
        spectral = spectral_candidates(graph, DIM)
    arms = {"spectral_embedding": spectral}
    if find_spec("pecanpy") and find_spec("gensim"):
        arms["deepwalk"] = deepwalk_candidates(graph, DIM, seed)
    parts = split_nodes(graph.shape[0], seed)
    candidates, ours_s = fast_rp_candidates(graph, DIM, seed)
    ours = best_scores(candidates, positives, parts, log=log)
    pairs = []
    for name, (others, theirs_s) in arms.items():
        theirs: Scores = best_scores(others, positives, parts, log=log)
        values = (
            ("macro_f1", ours.macro, theirs.macro),
            ("micro_f1", ours.micro, theirs.micro),
            ("seconds", ours_s, theirs_s),
        )
        pairs += [
            Pair(
                metric=metric, ours=mine, baseline=other, baseline_name=name, data=data,
                setting=f"dim={DIM}", ours_s=ours_s, baseline_s=theirs_s,
            )
            for metric, mine, other in values
        ]  # fmt: skip
    return pairs
