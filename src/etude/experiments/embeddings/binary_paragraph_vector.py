"""Bits of questions to a bank: trained as bits, or cut from real vectors afterwards.

Documents are the questions of BANKING77, 77 intents, as counts of words and pairs of words (those
in two training questions at least, the 2,000 commonest). A seed draws 3,000 training questions as
the collection, 300 others to choose settings on, and 700 of the test part to report; the last
two are inferred, as new documents, with all weights frozen. A hit is a question of the same
intent; the collection is ranked by the number of unlike bits, equal ones in a random order.

Arms at 128 and at 32 bits, 400 steps each; the models choose one of two learning rates:
- ours: rounded in training;
- itq_bits: an ordinary paragraph vector, rotated by iterative quantization (Gong and Lazebnik,
  2011) and cut; the headline's;
- median_bits: the same vectors, not rotated, each coordinate cut at its median;
- sigmoid_bits: as ours without the rounding, cut at 1/2;
- tfidf_lsh: signs of random projections of tf-idf, which has nothing to tune.
The last pair compares with the real vectors uncut, ranked by the cosine.
"""

from __future__ import annotations

import csv
import time
from functools import cache
from itertools import product

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from etude.embeddings import BinaryPVDBOW, hamming_search
from etude.lab.data import find_data
from etude.tasks.base import Pair

__all__ = ["measure"]

N_COLLECTION, N_HELD, N_TEST = 3000, 300, 700
RATES, N_STEPS, N_INFER, BITS = (0.02, 0.05), 400, 50, (128, 32)
OTHERS = ("itq_bits", "median_bits", "sigmoid_bits", "tfidf_lsh")
KINDS = {"ours": "binary", "sigmoid_bits": "sigmoid", "real": "real"}


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is 128 trained bits against those of ITQ."""
    counts, labels = _questions(seed)
    found = []
    for n_bits in BITS:
        values, spent = _arms(counts, labels, n_bits, seed)
        others = OTHERS if n_bits != BITS[0] else (*OTHERS, "real_vectors")
        found.append([
            Pair(
                metric="mean_average_precision", ours=values["ours"], baseline=values[other],
                baseline_name=other, data="banking77", setting=f"{n_bits} bits",
                ours_s=spent["ours"], baseline_s=spent[other],
            ) for other in others
        ])  # fmt: skip
    return [pair for pairs in found for pair in pairs]


def _arms(
    counts: list[scipy.sparse.csr_matrix], labels: list[np.ndarray], n_bits: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Precision on the test part and seconds, by arm, each at its best on the held part."""
    best = dict.fromkeys((*OTHERS, "ours", "real_vectors"), -1.0)
    values, spent = dict(best), dict.fromkeys(best, 0.0)

    def enter(name: str, codes: list[np.ndarray]) -> None:
        held = _precision(codes[1], codes[0], labels[1], labels[0])
        if held > best[name]:
            best[name] = held
            values[name] = _precision(codes[2], codes[0], labels[2], labels[0])

    for kind, lr in product(KINDS, RATES):
        start = time.perf_counter()
        model = BinaryPVDBOW(
            n_bits, code=KINDS[kind], lr=lr, n_steps=N_STEPS, n_infer=N_INFER, seed=seed
        )
        model.fit(counts[0])
        codes = [model.codes_, *(model.transform(part) for part in counts[1:])]
        if kind == "ours":
            enter("ours", codes)
        elif kind == "sigmoid_bits":
            enter(kind, [(part > 0.5).astype(np.uint8) for part in codes])
        else:
            enter("real_vectors", codes)
            enter(
                "median_bits", [(c > np.median(codes[0], axis=0)).astype(np.uint8) for c in codes]
            )
            enter("itq_bits", _itq(codes, seed))
        seconds = time.perf_counter() - start
        for name in ("median_bits", "itq_bits", "real_vectors") if kind == "real" else (kind,):
            spent[name] += seconds
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts[0])
    planes = np.random.default_rng(seed).standard_normal((counts[0].shape[1], n_bits))
    enter("tfidf_lsh", [(weigh.transform(part) @ planes > 0).astype(np.uint8) for part in counts])
    return values, spent


def _itq(codes: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Bits after the rotation that brings the centered collection nearest to signs."""
    mean = codes[0].mean(axis=0)
    x = codes[0] - mean
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))[0]
    for _ in range(30):
        u, _, vt = np.linalg.svd(np.sign(x @ rotation).T @ x)
        rotation = (u @ vt).T
    return [((part - mean) @ rotation > 0).astype(np.uint8) for part in codes]


def _precision(
    queries: np.ndarray, collection: np.ndarray, wanted: np.ndarray, labels: np.ndarray
) -> float:
    """Mean average precision over the whole ranking: bits by distance, numbers by cosine."""
    if collection.dtype == np.uint8:
        order, _ = hamming_search(queries, collection, k=len(collection))
    else:
        lengths = [np.linalg.norm(z, axis=1, keepdims=True) + 1e-12 for z in (queries, collection)]
        order = np.argsort(-(queries / lengths[0]) @ (collection / lengths[1]).T, axis=1)
    right = labels[order] == wanted[:, None]
    at = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    return float(((at * right).sum(axis=1) / np.maximum(right.sum(axis=1), 1)).mean())


def _questions(seed: int) -> tuple[list[scipy.sparse.csr_matrix], list[np.ndarray]]:
    """Counts and intents of collection, held and test part."""
    rng, parts = np.random.default_rng([seed, 177]), []
    for name, sizes in {"train": (N_COLLECTION, N_HELD), "test": (N_TEST,)}.items():
        texts, intents = _read(name)
        order = rng.permutation(len(texts))
        for size in sizes:
            rows, order = order[:size], order[size:]
            parts.append(([texts[i] for i in rows], intents[rows]))
    count = CountVectorizer(ngram_range=(1, 2), min_df=2, max_features=2000)
    count.fit(parts[0][0])
    counts, labels = [], []
    for texts, intents in parts:
        found = count.transform(texts)
        some = np.asarray(found.sum(axis=1)).ravel() > 0  # of words that are all unknown: nothing
        counts.append(found[some].tocsr())
        labels.append(intents[some])
    return counts, labels


@cache
def _read(name: str) -> tuple[list[str], np.ndarray]:
    with find_data(f"banking77/{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["category"] for row in rows})
    return [row["text"] for row in rows], np.array([names.index(row["category"]) for row in rows])
