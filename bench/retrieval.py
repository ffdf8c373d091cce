"""Vector search against faiss, usearch and hnswlib: one process, contenders in turn.

    pip install -e ".[text,bench]"
    ETUDE_DATA=folder python bench/retrieval.py --cache /tmp/cache [--quick]

Vectors: all-MiniLM-L6-v2 of real texts, those of ETUDE_DATA that `texts` names (questions,
intents, sentences of reviews), 500 of them held out as queries. A collection larger than the
texts is grown: a row is a real vector, moved up to half way to one of its ten neighbors, plus
half the difference of two other neighbors, and scaled to unit length, so that the noise lies as
real differences do. Grown to the size of its source, it has similarities and local dimension
close to the real ones (printed below). `--worst` takes independent Gaussians instead, which
have no neighborhoods: a worst case that no text shows.

A round asks every contender the same query (or the same batch); the table gives the median over
the queries of a round, then the median and the range over rounds. Build times are of one run.
Recall is the share of the exact 10 best. Contenders with a knob take the cheapest setting, of
those listed, that reaches the recall asked for, else their best.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import threadpoolctl
from text_vectors import grow, neighborhood, real_vectors, unit, wordllama_vectors

from etude.core.funnel import Funnel
from etude.core.nearest import Exact
from etude.retrieval import BiGranularIndex

N_QUERIES, TOP = 500, 10
Search = Callable[[np.ndarray], np.ndarray]


@dataclass
class Contender:
    name: str
    search: Search
    build_s: float
    n_bytes: float
    recall: float = 0.0
    rounds: list[float] = field(default_factory=list)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float((found[:, :, None] == true[:, None, :]).any(axis=1).mean())


def timed(work: Callable) -> tuple:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def cheapest(settings: list, run: Callable, queries: np.ndarray, true: np.ndarray, goal: float):
    """The first setting whose recall reaches the goal, else the last; sets it; its recall."""
    for setting in settings:
        reached = recall(run(setting)(queries), true)
        if reached >= goal:
            break
    return run(setting), reached, setting


def ours(rows: np.ndarray, n_threads: int, queries: np.ndarray, true: np.ndarray, goal: float):
    index, seconds = timed(lambda: BiGranularIndex(rows.shape[1], n_threads=n_threads).add(rows))

    def run(setting: tuple[int, int]) -> Search:
        index.n_near, index.n_verified = setting
        return lambda q: index.search(q, TOP)[0]

    ladder = [(500, 100), (1000, 200), (2000, 300), (2000, 500), (4000, 600), (8000, 1000)]
    search, reached, setting = cheapest(ladder, run, queries, true, goal)
    name = f"etude BiGranular {setting[0]}/{setting[1]}"
    return Contender(name, search, seconds, index.memory_bytes / len(rows), reached)


def funnel(rows: np.ndarray, n_threads: int, queries: np.ndarray, true: np.ndarray, goal: float):
    index, seconds = timed(lambda: Funnel(rows, n_threads=n_threads))

    def run(setting: tuple[int, int]) -> Search:
        index.n_kept = setting
        return lambda q: index.search(q, TOP)[0]

    ladder = [(2000, 200), (4000, 400), (8000, 600), (16_000, 1000), (32_000, 1500)]
    search, reached, setting = cheapest(ladder, run, queries, true, goal)
    name = f"etude Funnel {setting[0]}/{setting[1]}"
    return Contender(name, search, seconds, index.memory_bytes / len(rows), reached)


def refined(rows: np.ndarray, queries: np.ndarray, true: np.ndarray, goal: float) -> Contender:
    """IVF-PQ fast scan, 48 bytes a vector, verified by the full vectors, as ours are."""
    dim, lists = rows.shape[1], 4 * int(len(rows) ** 0.5)
    key = f"IVF{lists},PQ{dim // 4}x4fs"
    index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    _, seconds = timed(lambda: (index.train(rows[:100_000]), index.add(rows)))

    def run(setting: tuple[int, int]) -> Search:
        index.nprobe, n = setting

        def search(q: np.ndarray) -> np.ndarray:
            listed = index.search(q, n)[1]
            products = np.einsum("bnd,bd->bn", rows[listed], q)
            products[listed < 0] = -2
            order = np.argsort(-products, axis=1)[:, :TOP]
            return np.take_along_axis(listed, order, axis=1)

        return search

    ladder = [(8, 100), (16, 200), (64, 400), (256, 800)]
    ladder = [(min(p, lists), n) for p, n in ladder]
    search, reached, setting = cheapest(ladder, run, queries[:200], true[:200], goal)
    name = f"faiss IVF-PQfs+full {setting[0]}/{setting[1]}"
    return Contender(name, search, seconds, dim / 8 + 8, reached)


def graphs(rows: np.ndarray, n_threads: int, queries: np.ndarray, true: np.ndarray, goal: float):
    """faiss HNSW, usearch and hnswlib, 16 links; their bytes hold the vectors."""
    dim = rows.shape[1]
    efs = [16, 32, 64, 128, 256]
    index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    _, seconds = timed(lambda: index.add(rows))

    def run_faiss(ef: int) -> Search:
        index.hnsw.efSearch = ef
        return lambda q: index.search(q, TOP)[1]

    search, reached, ef = cheapest(efs, run_faiss, queries, true, goal)
    yield Contender(f"faiss HNSW16 {ef}", search, seconds, 4 * dim + 136, reached)
    import hnswlib
    from usearch.index import Index

    peer = Index(ndim=dim, metric="ip", dtype="f32", connectivity=16)
    _, seconds = timed(lambda: peer.add(np.arange(len(rows)), rows, threads=n_threads))

    def run_usearch(ef: int) -> Search:
        peer.expansion_search = ef
        return lambda q: np.asarray(peer.search(q, TOP, threads=n_threads).keys).reshape(-1, TOP)

    search, reached, ef = cheapest(efs, run_usearch, queries, true, goal)
    n_bytes = peer.memory_usage / len(rows)
    yield Contender(f"usearch HNSW {ef}", search, seconds, n_bytes, reached)
    other = hnswlib.Index(space="ip", dim=dim)
    other.init_index(max_elements=len(rows), M=16, ef_construction=100)
    other.set_num_threads(n_threads)
    _, seconds = timed(lambda: other.add_items(rows))

    def run_hnswlib(ef: int) -> Search:
        other.set_ef(ef)
        return lambda q: other.knn_query(q, k=TOP)[0]

    search, reached, ef = cheapest(efs, run_hnswlib, queries, true, goal)
    yield Contender(f"hnswlib {ef}", search, seconds, 4 * dim + 144, reached)


def race(contenders: list[Contender], queries: np.ndarray, n_rounds: int, n_each: int) -> None:
    """ms a query of each, one query at a time, by rounds."""
    for one in contenders:
        one.search(queries[:1])
    for r in range(n_rounds):
        times: dict[str, list[float]] = {one.name: [] for one in contenders}
        for n in range(n_each):
            query = queries[(r * n_each + n) % len(queries)][None]
            for one in contenders:
                times[one.name].append(timed(lambda one=one, query=query: one.search(query))[1])
        for one in contenders:
            one.rounds.append(1e3 * statistics.median(times[one.name]))


def show(contenders: list[Contender], title: str) -> None:
    print(f"\n{title}")
    print(f"{'':<28}{'recall':>7}{'build s':>8}{'bytes':>7}{'ms a query (range)':>25}{'x':>8}")
    flat = statistics.median(contenders[0].rounds)
    for one in contenders:
        middle = statistics.median(one.rounds)
        span = f"{middle:.2f} ({min(one.rounds):.2f}-{max(one.rounds):.2f})"
        print(f"{one.name[:28]:<28}{one.recall:>7.3f}{one.build_s:>8.1f}{one.n_bytes:>7.0f}"
              f"{span:>25}{flat / middle:>8.2f}", flush=True)  # fmt: skip


def batches(rows: np.ndarray, queries: np.ndarray, n_threads: int, n_rounds: int) -> float:
    """How many times as fast as faiss Flat a batch of 1,000 is answered exactly: the median."""
    flat, mine = faiss.IndexFlatIP(rows.shape[1]), Exact(rows, n_threads=n_threads)
    flat.add(rows)
    many = np.tile(queries, (2, 1))[:1000]
    both: tuple[list[float], list[float]] = ([], [])
    for _ in range(n_rounds):
        both[0].append(timed(lambda: flat.search(many, TOP))[1])
        both[1].append(timed(lambda: mine.search(many, TOP))[1])
    ratios = [a / b for a, b in zip(*both, strict=True)]
    ratio = statistics.median(both[0]) / statistics.median(both[1])
    print(f"batch of 1,000, exact: faiss {statistics.median(both[0]):.2f} s, ratio {ratio:.2f} "
          f"({min(ratios):.2f}-{max(ratios):.2f})", flush=True)  # fmt: skip
    return ratio


GOALS: list[str] = []


def goal(name: str, value: float, least: float) -> None:
    GOALS.append(f"{'met' if value >= least else 'NOT MET':<8}{name}: {value:.2f}, goal {least:g}")


def measure(rows: np.ndarray, queries: np.ndarray, n_threads: int, options) -> None:
    """Everything for one collection and one number of threads."""
    faiss.omp_set_num_threads(n_threads)
    n = len(rows)
    exact, flat = Exact(rows, n_threads=n_threads), faiss.IndexFlatIP(rows.shape[1])
    _, seconds = timed(lambda: flat.add(rows))
    true = exact.search(queries, TOP)[0]
    size = 4.0 * rows.shape[1]
    found = [
        Contender("faiss Flat", lambda q: flat.search(q, TOP)[1], seconds, size, 1.0),
        Contender("etude Exact", lambda q: exact.search(q, TOP)[0], 0.0, size, 1.0),
        ours(rows, n_threads, queries, true, 0.99),
    ]
    if n <= options.ivf:
        found.append(refined(rows, queries, true, 0.99))
    if n <= options.graphs:
        found += graphs(rows, n_threads, queries, true, 0.99)
    race(found, queries, options.rounds, options.each)
    show(found, f"{n:,} x {rows.shape[1]}, top {TOP}, {n_threads} thread(s), recall 0.99")
    ratio = batches(rows, queries, n_threads, options.rounds) if n <= 100_000 else None
    if n < 100_000:
        return  # the aims are for what no cache holds
    middle = [statistics.median(one.rounds) for one in found]
    where = f"{n:,}, {n_threads} thread(s)"
    goal(f"exact, one query, of Flat's rate, {where}", middle[0] / middle[1], 0.9)
    if found[2].recall >= 0.99:
        goal(
            f"codes first, of Flat's rate, {where}", middle[0] / middle[2], 8 if n > 500_000 else 4
        )
    if ratio is not None:
        goal(f"exact, batch of 1,000, of Flat's, {where}", ratio, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for encoded texts")
    parser.add_argument("--quick", action="store_true", help="10,000 and 50,000 vectors")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--texts", type=int, default=18_000, help="real texts to start from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=20, help="queries a round")
    parser.add_argument("--graphs", type=int, default=100_000, help="largest size for HNSW")
    parser.add_argument("--ivf", type=int, default=1_000_000, help="largest size for IVF-PQ")
    parser.add_argument("--wordllama", type=Path, help="the wheel, for the funnel")
    parser.add_argument("--worst", action="store_true", help="independent Gaussians")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    sizes = [10_000, 50_000] if options.quick else options.sizes
    real = real_vectors(options.cache, options.texts)
    real = real[np.random.default_rng(1).permutation(len(real))]
    queries, base = real[:N_QUERIES], real[N_QUERIES:]
    neighborhood(base, queries, "real, held-out queries")
    neighborhood(grow(base, len(base)), queries, "grown to the same size")
    for n in sizes:
        rows = grow(base, n)
        if options.worst:
            rows = unit(np.random.default_rng(2).standard_normal(rows.shape, dtype=np.float32))
        for n_threads in options.threads:
            with threadpoolctl.threadpool_limits(n_threads):
                measure(rows, queries, n_threads, options)
    if options.wordllama:
        words = wordllama_vectors(options.wordllama, options.cache, 30_000)
        queries, rows = words[:N_QUERIES], grow(words[N_QUERIES:], sizes[-1])
        with threadpoolctl.threadpool_limits(1):
            faiss.omp_set_num_threads(1)
            exact, flat = Exact(rows), faiss.IndexFlatIP(256)
            flat.add(rows)
            true = exact.search(queries, TOP)[0]
            found = [
                Contender("faiss Flat", lambda q: flat.search(q, TOP)[1], 0.0, 1024, 1.0),
                Contender("etude Exact", lambda q: exact.search(q, TOP)[0], 0.0, 1024, 1.0),
                funnel(rows, 1, queries, true, 0.99),
                ours(rows, 1, queries, true, 0.99),
            ]
            race(found, queries, options.rounds, options.each)
            show(found, f"Matryoshka, {len(rows):,} x 256 (wordllama), 1 thread, recall 0.99")
            middle = [statistics.median(one.rounds) for one in found]
            goal(f"funnel at recall {found[2].recall:.3f}", middle[1] / middle[2], 6)
    print("\n" + "\n".join(GOALS))


if __name__ == "__main__":
    main()
