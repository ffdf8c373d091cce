"""Four kinds of word vectors on a corpus whose latent vectors are known.

A seed draws 30 stems and 6 endings with a latent vector each (12 coordinates); a word is a stem
with an ending, written as both, and its latent vector their sum, so a stem's forms make analogies.
20 function words have a latent vector of zeros. Each of 2,500 sentences has a discourse vector,
one of four topics' with noise, and 10 words drawn with probability ~ f_w exp(<latent, discourse>);
frequencies f_w fall like 1 / rank over shuffled words, function words are ten times as frequent.
Words of one sentence are one another's contexts. 10 % of the words never occur in training.

Every kind of vectors (20 coordinates) chooses among six settings by Spearman's correlation with
the latent cosines on 1,500 validation pairs of words: k of 1, 5, 15 and contexts' counts to the
power of 1 or 0.75 for PPMI and SGNS, for GloVe three x_max and two alpha, for subwords k and two
lengths. Reported: correlation on 1,500 other pairs (the first pair is PPMI against SGNS); of pairs
with a rare word (lowest quarter), and with a word that never occurred, where only subwords say
anything; analogies; a logistic regression's accuracy on the topics of 800 other sentences, SIF
against means of the PPMI vectors; and the correlation of PPMI cut to 5 principal components or
rounded to 2 bits, against PPMI whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from etude.embeddings import (
    evaluate_embeddings,
    glove,
    ppmi_svd,
    sentence_vectors,
    sgns,
    subword_vectors,
)
from etude.tasks.base import Pair

__all__ = ["measure"]

N_STEMS, N_ENDINGS, N_FUNCTION, LATENT, DIM = 30, 6, 20, 12, 20
N_TRAIN, N_TEST, LENGTH, N_PAIRS = 2_500, 800, 10, 1_500
SHIFTS = (1.0, 5.0, 15.0)
Arm = Callable[[], np.ndarray]


class _Corpus(NamedTuple):
    words: list[str]
    latent: np.ndarray  # (N, LATENT)
    counts: np.ndarray  # (S, N) of words in sentences, training first
    topics: np.ndarray  # (S,)
    rank: np.ndarray  # (N,) place by training frequency, the rarest first


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is PPMI against SGNS on pairs of words."""
    rng = np.random.default_rng([seed, 183])
    corpus = _corpus(rng)
    train = corpus.counts[:N_TRAIN]
    x = train.T @ train
    np.fill_diagonal(x, (train * (train - 1)).sum(0))
    n = N_STEMS * N_ENDINGS
    seen = np.flatnonzero(train[:, :n].sum(0) > 0)
    held, test = _pairs(rng, seen, seen), _pairs(rng, seen, seen)
    arms: dict[str, list[Arm]] = {
        "ppmi_svd": [lambda k=k, p=p: ppmi_svd(x, dim=DIM, shift=k, power=p)
                     for k, p in product(SHIFTS, (1.0, 0.75))],
        "sgns": [lambda k=k, p=p: sgns(x, dim=DIM, shift=k, power=p, seed=seed)[0]
                 for k, p in product(SHIFTS, (1.0, 0.75))],
        "glove": [lambda m=m, a=a: glove(x, dim=DIM, x_max=m, alpha=a, seed=seed)
                  for m, a in product((5.0, 20.0, 100.0), (0.75, 0.25))],
        "subword": [lambda k=k, s=s: subword_vectors(
                        corpus.words, x, dim=DIM, shift=k, shortest=s, n_buckets=1000, seed=seed
                    )(corpus.words)
                    for k, s in product(SHIFTS, (2, 3))],
    }  # fmt: skip
    best, spent = {}, {}
    for name, candidates in arms.items():
        start = time.perf_counter()
        vectors = [arm() for arm in candidates]
        best[name] = max(vectors, key=lambda v: _truth(v, held, corpus))
        spent[name] = time.perf_counter() - start

    def pair(metric: str, ours: float, other: float, names: tuple[str, str], setting: str) -> Pair:
        return Pair(
            metric=metric, ours=ours, baseline=other, baseline_name=names[1],
            data="generated_corpus", setting=setting, ours_s=spent.get(names[0], 0.0),
            baseline_s=spent.get(names[1], 0.0),
        )  # fmt: skip

    def ranked(ours: str, other: str, which: np.ndarray, setting: str) -> Pair:
        values = (_truth(best[name], which, corpus) for name in (ours, other))
        return pair("spearman", *values, (ours, other), setting)

    rare = seen[np.argsort(corpus.rank[seen])[: len(seen) // 4]]
    unseen = np.setdiff1d(np.arange(n), seen)
    found = [ranked("ppmi_svd", o, test, "pairs") for o in ("sgns", "glove", "subword")]
    found.append(ranked("subword", "ppmi_svd", _pairs(rng, rare, seen), "pairs with a rare word"))
    found.append(
        ranked("subword", "ppmi_svd", _pairs(rng, unseen, seen), "pairs with an unseen word")
    )
    questions = _questions(rng, seen)
    answers = {name: evaluate_embeddings(v, analogies=questions) for name, v in best.items()}
    found += [
        pair("accuracy", answers["ppmi_svd"][rule], answers["sgns"][rule], ("ppmi_svd", "sgns"),
             rule)
        for rule in ("analogy_add", "analogy_mul")
    ]  # fmt: skip
    topics = {w: _topics(best["ppmi_svd"], corpus, w) for w in ("sif", "mean", "idf")}
    found += [
        pair("accuracy", topics["sif"], topics[w], ("sif", f"{w}_of_words"), "topics")
        for w in ("mean", "idf")
    ]
    whole = best["ppmi_svd"]
    for name, small in (("5 components", _cut(whole, 5)), ("2 bits", _rounded(whole, 2))):
        values = (_truth(v, test, corpus) for v in (small, whole))
        found.append(pair("spearman", *values, ("compressed", "uncompressed"), name))
    return found


def _corpus(rng: np.random.Generator) -> _Corpus:
    letters, vowels = list("bdfgklmnprstvz"), list("aeiou")
    stems: set[str] = set()
    while len(stems) < N_STEMS:
        stems.add("".join(rng.choice(kind) for kind in (letters, vowels, letters, vowels, letters)))
    endings = ["a", "os", "im", "ek", "ul", "ent"]
    words = [stem + ending for stem in sorted(stems) for ending in endings]
    words += [f"f{i}" for i in range(N_FUNCTION)]
    stem, ending = rng.normal(size=(N_STEMS, LATENT)), 0.7 * rng.normal(size=(N_ENDINGS, LATENT))
    latent = np.vstack([
        (stem[:, None] + ending).reshape(-1, LATENT), np.zeros((N_FUNCTION, LATENT)),
    ])  # fmt: skip
    n = N_STEMS * N_ENDINGS
    frequency = 1 / (1 + rng.permutation(n) / 10)
    frequency[rng.permutation(n)[: n // 10]] = 0  # never in training, drawn again for no test
    log_f = np.log(np.concatenate([frequency, np.full(N_FUNCTION, 10.0)]) + 1e-300)
    n_sentences = N_TRAIN + N_TEST
    topics = rng.integers(4, size=n_sentences)
    centers = rng.normal(size=(4, LATENT))
    discourse = 0.5 * (0.6 * centers[topics] + rng.normal(size=(n_sentences, LATENT)))
    scores = discourse @ latent.T + log_f
    scores[:, n:] += scores[:, :n].max(1, keepdims=True) * 0.3
    shares = np.exp(scores - scores.max(1, keepdims=True))
    counts = rng.multinomial(LENGTH, shares / shares.sum(1, keepdims=True)).astype(np.float64)
    rank = counts[:N_TRAIN].sum(0).argsort(kind="stable").argsort()
    return _Corpus(words, latent, counts, topics, rank)


def _pairs(rng: np.random.Generator, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N_PAIRS, 2) of different words."""
    drawn = np.column_stack([rng.choice(first, 2 * N_PAIRS), rng.choice(second, 2 * N_PAIRS)])
    return drawn[drawn[:, 0] != drawn[:, 1]][:N_PAIRS]


def _questions(rng: np.random.Generator, seen: np.ndarray) -> np.ndarray:
    """a : b = c : d of two stems and two endings, all four words seen."""
    one, two = (rng.integers(N_STEMS, size=4_000) for _ in range(2))
    e, f = (rng.integers(N_ENDINGS, size=4_000) for _ in range(2))
    four = np.column_stack([
        one * N_ENDINGS + e, one * N_ENDINGS + f, two * N_ENDINGS + e, two * N_ENDINGS + f
    ])  # fmt: skip
    good = (one != two) & (e != f) & np.isin(four, seen).all(1)
    return four[good][:500]


def _truth(vectors: np.ndarray, pairs: np.ndarray, corpus: _Corpus) -> float:
    a, b = corpus.latent[pairs[:, 0]], corpus.latent[pairs[:, 1]]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = evaluate_embeddings(vectors, pairs=pairs, similarities=cosines)["similarity"]
    return 0.0 if np.isnan(found) else found  # vectors of zeros rank nothing


def _topics(vectors: np.ndarray, corpus: _Corpus, weighting: str) -> float:
    """Accuracy on test sentences; C chosen on the last 500 training sentences."""
    train = corpus.counts[:N_TRAIN]
    z = sentence_vectors(vectors, corpus.counts, weighting=weighting, train_counts=train)
    z, y, fit = z / z[:N_TRAIN].std(0), corpus.topics, slice(0, N_TRAIN - 500)
    held, test = slice(N_TRAIN - 500, N_TRAIN), slice(N_TRAIN, None)
    fitted = [LogisticRegression(C=c, max_iter=200).fit(z[fit], y[fit]) for c in (0.01, 0.1, 1.0)]
    return float(max(fitted, key=lambda m: m.score(z[held], y[held])).score(z[test], y[test]))


def _cut(x: np.ndarray, dim: int) -> np.ndarray:
    centered = x - x.mean(0)
    return np.asarray(centered @ np.linalg.svd(centered, full_matrices=False)[2][:dim].T)


def _rounded(x: np.ndarray, bits: int) -> np.ndarray:
    low, step = x.min(0), np.ptp(x, axis=0) / (2**bits - 1)
    return np.asarray(low + np.round((x - low) / step) * step)
