"""Codes of 48 bytes a vector: trained product codes against faiss PQ and OPQ of the same size.

    pip install -e ".[text,bench]"
    ETUDE_DATA=folder python bench/codes.py --cache /tmp/cache [--quick]

Documents: MiniLM vectors of real texts, grown to size as in bench/retrieval.py. Queries: 4,000
real vectors that no document was grown from, the first 1,000 to choose learning rates by, the
others for the table. Training queries are grown from further held-out texts; the document
that each wants is one of its ten exact neighbors, drawn anew for every copy of the query.

ConstrainedPQ starts from its own OPQ, with as many rounds as faiss's (50); then stage 1 (balanced
codes, centroids by ranking) and stage 2 (codes fixed, queries and centroids). The documents'
vectors stay what they are, and the query's encoder is a linear map that starts as the identity.
Recall is the share of the exact ten best among the ten best by codes alone. Rates are from one
query at a time, contenders in turn.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import torch
from text_vectors import grow, real_vectors
from torch import nn

from etude.core.nearest import Exact, shortlist
from etude.embeddings import ConstrainedPQ, RepCONCTrainer

N_PARTS, TOP, BATCH = 48, 10, 1024
N_CHOICE, N_HELD, N_TRAINING = 1000, 4000, 3000  # queries
Search = Callable[[np.ndarray], np.ndarray]


@dataclass
class Contender:
    name: str
    search: Search
    build_s: float
    rounds: list[float] = field(default_factory=list)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(each(found, true).mean())


def each(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(B,) the share of each query's ten best."""
    return (found[:, :, None] == true[:, None, :]).any(axis=1).mean(axis=1)


def encoded(quantizer: ConstrainedPQ, rows: np.ndarray) -> np.ndarray:
    """(N, M) uint8 nearest codes."""
    parts = [
        quantizer.assign(quantizer.rotate(torch.from_numpy(rows[n : n + 4096])))
        for n in range(0, len(rows), 4096)
    ]
    return torch.cat(parts).to(torch.uint8).numpy()


def by_codes(quantizer: ConstrainedPQ, encoder: nn.Module, codes: np.ndarray) -> Search:
    ones = np.ones(len(codes), dtype=np.float32)

    @torch.no_grad()
    def search(queries: np.ndarray) -> np.ndarray:
        asked = quantizer.rotate(encoder(torch.from_numpy(queries)))
        parts = asked.unflatten(1, (N_PARTS, -1))
        tables = torch.einsum("bmd,mkd->bmk", parts, quantizer.centroids).numpy()
        found = []
        for table in tables:
            ids, scores = shortlist(codes, ones, table, n_kept=TOP)
            found.append(ids[np.argsort(-scores, kind="stable")])
        return np.stack(found)

    return search


def identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def trained(
    start: ConstrainedPQ, rows: np.ndarray, asked: np.ndarray, wanted: np.ndarray,
    hard: np.ndarray, lr: float, n_steps: tuple[int, int],
) -> tuple[ConstrainedPQ, nn.Module, np.ndarray]:  # fmt: skip
    """Both stages from one start; the quantizer, the query encoder and the documents' codes."""
    quantizer, encoder = copy.deepcopy(start), identity(rows.shape[1])
    trainer = RepCONCTrainer(
        quantizer, encoder, nn.Identity(), lr=lr, centroid_lr=lr, temperature=0.02,
        mse_weight=1.0, batch_size=BATCH, seed=0,
    )  # fmt: skip
    queries, documents = torch.from_numpy(asked), torch.from_numpy(rows)
    positive, negatives = torch.from_numpy(wanted), torch.from_numpy(hard)
    trainer.fit(queries, documents, positive, n_steps=n_steps[0], negatives=negatives)
    # stage 2 needs the codes of those documents only that a batch can draw
    used, places = np.unique(np.concatenate([wanted, hard.ravel()]), return_inverse=True)
    trainer.fit_queries(
        queries, documents[used], torch.from_numpy(places[: len(wanted)]), n_steps=n_steps[1],
        negatives=torch.from_numpy(places[len(wanted) :].reshape(hard.shape)),
    )  # fmt: skip
    return quantizer, encoder, encoded(quantizer, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for encoded texts")
    parser.add_argument("--quick", action="store_true", help="10,000 documents, short training")
    parser.add_argument("--size", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options.cache.mkdir(parents=True, exist_ok=True)
    n = 10_000 if options.quick else options.size
    real = real_vectors(options.cache, 18_000)
    real = real[np.random.default_rng(1).permutation(len(real))]
    held, asking, base = np.split(real, [N_HELD, N_HELD + N_TRAINING])
    rows, asked = grow(base, n), grow(asking, 4000 if options.quick else 20_000, seed=7)
    print(f"{n:,} documents, {len(asked):,} training queries, {N_PARTS} bytes a vector")
    choosing, queries = held[:N_CHOICE], held[N_CHOICE:]
    exact = Exact(rows)
    true = exact.search(held, TOP)[0]
    near = exact.search(asked, 100)[0]
    generator = np.random.default_rng(3)
    wanted = near[np.arange(len(asked)), generator.integers(0, TOP, len(asked))]
    hard = near[:, 20:]

    contenders: list[Contender] = []
    for name, key in (("faiss PQ", "PQ48np"), ("faiss OPQ", "OPQ48,PQ48np")):
        index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
        started = time.perf_counter()
        index.train(rows)
        index.add(rows)
        search = lambda q, index=index: index.search(q, TOP)[1]  # noqa: E731
        contenders.append(Contender(name, search, time.perf_counter() - started))
        print(f"{name} built", flush=True)
    started = time.perf_counter()
    start = ConstrainedPQ(rows.shape[1], n_parts=N_PARTS, n_steps=30)
    some = rows[generator.permutation(n)[:50_000]]
    start.initialize(torch.from_numpy(some), n_rounds=50)  # faiss's own number
    search = by_codes(start, nn.Identity(), encoded(start, rows))
    spent = time.perf_counter() - started
    contenders.append(Contender("etude OPQ (the start)", search, spent))
    print(f"start: validation {recall(search(choosing), true[:N_CHOICE]):.4f}", flush=True)
    steps, tried = ((8, 100) if options.quick else (40, 150)), []
    for lr in (3e-5, 1e-4) if options.quick else (1e-5, 3e-5, 1e-4, 3e-4):
        quantizer, encoder, codes = trained(start, rows, asked, wanted, hard, lr, steps)
        search = by_codes(quantizer, encoder, codes)
        tried.append((recall(search(choosing), true[:N_CHOICE]), lr, search))
        print(f"lr {lr:g}: validation {tried[-1][0]:.4f}", flush=True)
    best = max(tried, key=lambda one: one[0])
    spent = time.perf_counter() - started
    contenders.append(Contender(f"etude ConstrainedPQ {best[1]:g}", best[2], spent))

    for r in range(options.rounds):
        times: dict[str, list[float]] = {one.name: [] for one in contenders}
        for query in queries[20 * r : 20 * r + 20]:
            for one in contenders:
                began = time.perf_counter()
                one.search(query[None])
                times[one.name].append(time.perf_counter() - began)
        for one in contenders:
            one.rounds.append(1e3 * statistics.median(times[one.name]))
    print(f"{'':<30}{'recall@10':>10}{'build s':>9}{'ms a query (range)':>24}")
    reached = [each(one.search(queries), true[N_CHOICE:]) for one in contenders]
    for one, values in zip(contenders, reached, strict=True):
        span = f"{statistics.median(one.rounds):.2f} ({min(one.rounds):.2f}-{max(one.rounds):.2f})"
        print(f"{one.name:<30}{values.mean():>10.4f}{one.build_s:>9.1f}{span:>24}")
    for other in (0, 1):
        gains = reached[-1] - reached[other]
        middle, slack = gains.mean(), 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
        met = "met" if middle > slack else "NOT MET" if middle < -slack else "open"
        interval = f"[{middle - slack:+.4f}, {middle + slack:+.4f}] over {len(gains)} queries"
        print(f"{met:<8}trained codes above {contenders[other].name}: {middle:+.4f} {interval}")


if __name__ == "__main__":
    main()
