"""FastRP against DeepWalk (pecanpy 2.0.9 + gensim 4.4.0) on BlogCatalog: seconds and F1.

pecanpy needs numpy < 2, so this runs in an environment of its own, from the repository's root:

    python -m venv .venv-bench
    .venv-bench/bin/pip install 'numpy<2' scipy scikit-learn pecanpy==2.0.9 gensim==4.4.0
    PYTHONPATH=src .venv-bench/bin/python bench/fast_rp.py PATH/TO/blogcatalog.mat

Both contenders run in one process with one thread, in alternation: an equal share of the FastRP
repeats before each DeepWalk run and after the last. The time is that of embedding all nodes from
the sparse adjacency in memory; reading the file and classifying are outside for both. pecanpy
compiles its walker in each call; a run on a ring of ten nodes shows how long that takes, and the
ratio is given with it and without. DeepWalk: p = q = 1, 10 walks of 80 steps a node, window 10,
skip-gram with negative sampling, one epoch (more walks classify better and take longer: try
--walks 80 --walk-length 40). gensim feeds its one worker from a second thread, which the peer
keeps. F1: a logistic regression a label, C tuned on validation nodes, the same splits for both;
FastRP as it comes, with its default parameters.
"""

# ruff: noqa: E402
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # read when the libraries are imported, hence above them

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
from scipy import sparse
from scipy.io import loadmat

from etude.experiments.graphs._node_labels import best_scores, split_nodes
from etude.graphs.fast_rp import fast_rp


def load_graph(path: Path) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The (N, N) float32 adjacency and the (N, K) bool labels of a .mat file."""
    content = loadmat(path)
    graph = sparse.csr_matrix(content["network"], dtype=np.float32)
    return graph, sparse.csr_matrix(content["group"]).toarray() > 0


def deep_walk(
    graph: sparse.csr_matrix, dim: int, seed: int, n_walks: int, walk_length: int
) -> np.ndarray:
    """DeepWalk as the peer ships it: pecanpy's first-order walks, gensim's skip-gram."""
    from pecanpy.pecanpy import FirstOrderUnweighted

    peer = FirstOrderUnweighted(p=1, q=1, workers=1, random_state=seed)
    peer.set_node_ids(None, implicit_ids=True, num_nodes=graph.shape[0])
    peer.indptr = graph.indptr.astype(np.uint32)
    peer.indices = graph.indices.astype(np.uint32)
    peer.data = np.ones(graph.nnz, dtype=np.float32)
    return peer.embed(dim=dim, num_walks=n_walks, walk_length=walk_length, window_size=10)


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def described(times: list[float]) -> str:
    middle = statistics.median(times)
    return f"median {middle:.3f} s, range {min(times):.3f} to {max(times):.3f} s, n = {len(times)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mat", type=Path, help="blogcatalog.mat with `network` and `group`")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15, help="runs of FastRP")
    parser.add_argument("--peer-repeats", type=int, default=1, help="runs of DeepWalk")
    parser.add_argument("--walks", type=int, default=10, help="DeepWalk's walks a node")
    parser.add_argument("--walk-length", type=int, default=80, help="steps of a walk")
    parser.add_argument("--splits", type=int, default=3, help="splits that F1 is averaged over")
    options = parser.parse_args()
    graph, positives = load_graph(options.mat)
    import gensim
    import pecanpy.pecanpy  # noqa: F401  (imported here so that no timing holds an import)

    print(
        f"{options.mat.name}: {graph.shape[0]:,} nodes, {graph.nnz // 2:,} edges, "
        f"{positives.shape[1]} labels; dim {options.dim}; python {platform.python_version()}, "
        f"numpy {np.__version__}, scipy {scipy.__version__}, gensim {gensim.__version__}"
    )
    ring = sparse.csr_matrix(np.roll(np.eye(10), 1, axis=0) + np.roll(np.eye(10), -1, axis=0))
    deep_walk(ring, 8, 0, 1, 5)  # what is compiled once only, and gensim's own warm-up
    compiling = timed(lambda: deep_walk(ring, 8, 0, 1, 5))[1]
    fast_rp(graph, dim=options.dim)

    ours: list[float] = []
    theirs: list[float] = []
    embedded: dict[str, np.ndarray] = {}
    share = -(-options.repeats // (options.peer_repeats + 1))
    for block in range(options.peer_repeats + 1):
        for repeat in range(min(share, options.repeats - len(ours))):
            embedded["ours"], seconds = timed(
                lambda repeat=repeat: fast_rp(graph, dim=options.dim, seed=repeat)
            )
            ours.append(seconds)
        if block < options.peer_repeats:
            embedded["theirs"], seconds = timed(
                lambda block=block: deep_walk(
                    graph, options.dim, block, options.walks, options.walk_length
                )
            )
            theirs.append(seconds)
    print(f"FastRP    {described(ours)}")
    print(f"DeepWalk  {described(theirs)} (compiling: {compiling:.1f} s of each)")
    ratio = statistics.median(theirs) / statistics.median(ours)
    lean = (statistics.median(theirs) - compiling) / statistics.median(ours)
    print(f"ratio     {ratio:.0f}x; without the peer's compiling {lean:.0f}x")
    for label, name in (("FastRP", "ours"), ("DeepWalk", "theirs")):
        scores = [
            best_scores([embedded[name]], positives, split_nodes(len(positives), seed))
            for seed in range(options.splits)
        ]
        macro, micro = ([getattr(s, kind) for s in scores] for kind in ("macro", "micro"))
        print(
            f"{label:9} macro-F1 {np.mean(macro):.4f} ({min(macro):.4f} to {max(macro):.4f}), "
            f"micro-F1 {np.mean(micro):.4f} ({min(micro):.4f} to {max(micro):.4f}), "
            f"train 50 %, {options.splits} splits"
        )


if __name__ == "__main__":
    main()
