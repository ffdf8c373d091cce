r"""A probe suite for word vectors: four classic kinds, judged side by side by one set of rules.

The paper is a survey, from word counts to multimodal models; what can be built from it is a
protocol. All vectors come from one matrix X of how often word w stands beside word c, with sums
n_w, n_c, n, and all objectives are the exact sums over X, not samples from a stream of words:

    PPMI:  M_wc = max(0, log(X_wc n / (n_w n_c)) - log k),  M ~ U S V^T,  vectors U S^(1/2)  (1)
    SGNS:  max  sum_wc X_wc log sig(<w, c>) + k n_w q_c log sig(-<w, c>),  q_c ~ n_c^power   (2)
    GloVe: min  sum_(X > 0) min(1, X_wc / x_max)^alpha (<w, c> + b_w + b_c - log X_wc)^2     (3)
    subword: (2) where the vector of w is the mean of its n-grams' vectors, hashed to rows   (4)

With power 1, all of X positive and width enough, (2) has its maximum at <w, c> = PMI - log k.
Sentence vectors are means of word vectors, plain, by inverse document frequency, or (SIF)

    s = sum_w a / (a + p_w) w / length,  minus its part along the first singular direction   (5)

of the training sentences, not centered. Judged are rank correlation with known similarities,
analogies a : b = c : ? by cosine, the three words of the question excluded,

    3CosAdd: argmax_d cos(d, b) - cos(d, a) + cos(d, c)                                      (6)
    3CosMul: argmax_d cos'(d, b) cos'(d, c) / (cos'(d, a) + eps),  cos' = (1 + cos) / 2      (7)

and bias (WEAT): with s(w) the mean cosine of w to attributes A minus that to B,

    effect = (mean_X s - mean_Y s) / standard deviation of s over X and Y together           (8)

Source: Zhang et al., "From Word Vectors to Multimodal Embeddings: Techniques, Applications, and
Future Directions For Large Language Models", arXiv:2411.05036 (2024). The parts are others': Levy
and Goldberg 2014 (1, 7), Mikolov et al. 2013 (2, 6), Pennington et al. 2014 (3), Bojanowski et al.
2017 (4), Arora et al. 2017 (5), Caliskan et al. 2017 (8).
Not found in the paper: any number of its own, and the divisor of (8)'s deviation; here n - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import logsigmoid

from etude.core import Card, require

__all__ = [
    "ppmi_svd", "evaluate_embeddings", "glove", "sentence_vectors", "sgns", "subword_vectors",
    "weat",
]  # fmt: skip

CARD = Card(
    slug="embedding_probe_suite",
    family="embeddings",
    title="From Word Vectors to Multimodal Embeddings: Techniques, Applications, and Future "
    "Directions For Large Language Models",
    year=2024,
    arxiv="2411.05036",
    move="Judge counted, predicted, weighted and subword vectors by one set of rules, from one "
    "matrix of counts.",
    task="experiment",
    claim="On a small generated corpus with known latent vectors, PPMI with SVD ranks pairs of "
    "words closer to the truth than skip-gram with negative sampling of the same width.",
    baseline="sgns",
    metric="spearman",
    better="higher",
    published="",
    fidelity="protocol",
    cost="M",
    data=("generated_corpus",),
    departs=(
        "All kinds minimize their exact sums over one matrix of counts by L-BFGS, where the papers "
        "of (2) to (4) take steps of a gradient on samples from a stream of words.",
        "(4): a word as a whole shares the n-grams' hashed rows; fastText gives it one of its own.",
    ),
    search={"shift": (1.0, 5.0, 15.0)},
    example={"dim": 4},
)

Counts = Any  # (N, N) array or scipy sparse matrix


def ppmi_svd(
    cooccurrence: Counts, *, dim: int = 50, shift: float = 1.0, power: float = 1.0
) -> np.ndarray:  # fmt: skip
    """(N, dim) vectors of equation (1); zeros for words that never occur.

    `cooccurrence` (N, N) has words as rows, contexts as columns; `shift` is k, at least 1; with
    `power` below 1 contexts have the shares of their counts to this power.

    Raises:
        EtudeError: counts that are no square matrix, negative, or all 0; a value out of range.
    """
    x = _counts(cooccurrence, dim)
    require(1 <= shift < math.inf, "shift", "at least 1", shift)
    pmi = np.log(np.divide(x, _expected(x, shift, power), out=np.ones_like(x), where=x > 0))
    u, s, _ = np.linalg.svd(np.maximum(pmi, 0))  # (1), of ones where nothing was counted
    return np.asarray(u[:, :dim] * np.sqrt(s[:dim]))


def sgns(
    cooccurrence: Counts, *, dim: int = 50, shift: float = 5.0, power: float = 0.75,
    n_steps: int = 100, seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Word and context vectors, (N, dim) each, by L-BFGS on equation (2).

    `shift` is k, negative samples a pair, above 0; with `power` 1 they are drawn as contexts
    occur; `n_steps` iterations are made (where counts are 0 the optimum is minus infinity).
    """
    x = torch.from_numpy(_counts(cooccurrence, dim))
    words, contexts = _start((len(x), dim), (len(x), dim), seed=seed)
    loss = _sgns_loss(x, shift, power)
    _minimize(lambda: loss(words @ contexts.T), [words, contexts], n_steps)
    return words.detach().numpy(), contexts.detach().numpy()


def glove(
    cooccurrence: Counts, *, dim: int = 50, x_max: float = 100.0, alpha: float = 0.75,
    n_steps: int = 100, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """(N, dim) sums of word and context vectors, by L-BFGS on equation (3)."""
    counts = _counts(cooccurrence, dim)
    require(0 < x_max < math.inf, "x_max", "above 0", x_max)
    require(0 <= alpha <= 1, "alpha", "in 0..1", alpha)
    x, n = torch.from_numpy(counts), len(counts)
    weight = torch.where(x > 0, (x / x_max).clamp(max=1) ** alpha, 0.0)
    logs = x.clamp(min=torch.finfo(x.dtype).tiny).log()
    words, contexts, b, c = _start((n, dim), (n, dim), (n, 1), (1, n), seed=seed)

    def loss() -> Tensor:
        return (weight * (words @ contexts.T + b + c - logs) ** 2).sum() / weight.sum()  # (3)

    _minimize(loss, [words, contexts, b, c], n_steps)
    return (words + contexts).detach().numpy()


def subword_vectors(
    words: Sequence[str], cooccurrence: Counts, *, dim: int = 50, shift: float = 5.0,
    power: float = 0.75, shortest: int = 3, longest: int = 6, n_buckets: int = 2000,
    n_steps: int = 100, seed: int = 0,
) -> Callable[[Sequence[str]], np.ndarray]:  # fmt: skip
    """Equation (4): a function from any words, seen or not, to their (n, dim) vectors.

    `words` are the N words of the matrix; a word is written <word>, and its n-grams are those of
    `shortest` to `longest` letters and itself, hashed to `n_buckets` rows. The rest as ``sgns``.
    """
    x = torch.from_numpy(_counts(cooccurrence, dim))
    require(len(words) == len(x), "words", f"{len(x)} words", len(words))
    require(1 <= shortest <= longest, "shortest", f"in 1..{longest}", shortest)
    require(n_buckets >= 1, "n_buckets", "at least 1", n_buckets)
    mean = torch.from_numpy(_grams(words, n_buckets, shortest, longest).toarray())
    table, contexts = _start((n_buckets, dim), (len(x), dim), seed=seed)
    loss = _sgns_loss(x, shift, power)
    _minimize(lambda: loss(mean @ table @ contexts.T), [table, contexts], n_steps)
    learned = table.detach().numpy()
    return lambda some: np.asarray(_grams(some, n_buckets, shortest, longest) @ learned)


def sentence_vectors(
    vectors: np.ndarray, counts: np.ndarray, *, weighting: str = "sif",
    train_counts: np.ndarray | None = None, a: float = 1e-3,
) -> np.ndarray:  # fmt: skip
    """(S, D) means of word vectors.

    `counts` (S, N) says how often each sentence has each word; `weighting` is "mean", "idf"
    (logarithm of inverse document frequency) or "sif", (5) with its `a`, above 0. Frequencies and
    the direction of (5) are those of the training sentences, `train_counts`, by default `counts`.
    """
    require(weighting in ("mean", "idf", "sif"), "weighting", "mean, idf or sif", weighting)
    require(0 < a < math.inf, "a", "above 0", a)
    train = counts if train_counts is None else train_counts
    weights, total = np.ones(len(vectors)), train.sum(0)
    if weighting == "idf":
        weights = np.log((1 + len(train)) / (1 + (train > 0).sum(0))) + 1
    elif weighting == "sif":
        weights = a / (a + total / total.sum())

    def pooled(c: np.ndarray) -> np.ndarray:
        return np.asarray((c * weights) @ vectors / np.maximum(c.sum(1, keepdims=True), 1))

    found = pooled(counts)
    if weighting == "sif":
        direction = np.linalg.svd(pooled(train), full_matrices=False)[2][0]
        found = found - np.outer(found @ direction, direction)  # (5)
    return found


def evaluate_embeddings(
    vectors: np.ndarray, *, pairs: np.ndarray | None = None,
    similarities: np.ndarray | None = None, analogies: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """Figures by name, of what is given; all by cosine.

    `pairs` (M, 2) word numbers with known `similarities` (M,) give "similarity", Spearman's
    correlation; `analogies` (M, 4), word numbers of a : b = c : d, give "analogy_add" and
    "analogy_mul", the shares of questions that (6) and (7) answer with d.
    """
    unit = _unit(vectors)
    found = {}
    if pairs is not None:
        fits = similarities is not None and len(similarities) == len(pairs)
        require(fits, "similarities", f"{len(pairs)} numbers", similarities)
        cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)
        found["similarity"] = float(spearmanr(cosines, similarities).statistic)
    if analogies is not None:
        a, b, c = (unit @ unit[column].T for column in analogies.T[:3])
        shifted = [(1 + one) / 2 for one in (a, b, c)]
        scores = {"add": b - a + c, "mul": shifted[1] * shifted[2] / (shifted[0] + 1e-3)}  # (6, 7)
        for name, score in scores.items():
            for column in analogies.T[:3]:
                score[column, np.arange(len(analogies))] = -np.inf
            found[f"analogy_{name}"] = float((score.argmax(0) == analogies[:, 3]).mean())
    return found


def weat(
    vectors: np.ndarray, targets: tuple[Sequence[int], Sequence[int]],
    attributes: tuple[Sequence[int], Sequence[int]],
) -> float:  # fmt: skip
    """Effect size (8): word numbers of both sets X, Y of targets, and A, B of attributes."""
    for name, sets in (("targets", targets), ("attributes", attributes)):
        require(min(map(len, sets)) >= 1, name, "two sets of words, none empty", sets)
    unit = _unit(vectors)
    x, y = (
        np.subtract(*((unit[list(t)] @ unit[list(s)].T).mean(1) for s in attributes))
        for t in targets
    )
    return float((x.mean() - y.mean()) / np.concatenate([x, y]).std(ddof=1))  # (8)


def _expected(x: np.ndarray, shift: float, power: float) -> np.ndarray:
    """(N, N) k n_w q_c: what k draws of contexts, whatever the word, would count."""
    require(0 < shift < math.inf, "shift", "above 0", shift)
    require(0 <= power <= 1, "power", "in 0..1", power)
    q = x.sum(0) ** power
    return np.asarray(shift * np.outer(x.sum(1), q / q.sum()))


def _sgns_loss(x: Tensor, shift: float, power: float) -> Callable[[Tensor], Tensor]:
    negative = torch.from_numpy(_expected(x.numpy(), shift, power))
    return lambda s: -(x * logsigmoid(s) + negative * logsigmoid(-s)).sum() / x.sum()  # (2)


def _start(*shapes: tuple[int, int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for shape in shapes
    ]


def _minimize(loss: Callable[[], Tensor], weights: list[Tensor], n_steps: int) -> None:
    require(n_steps >= 1, "n_steps", "at least 1", n_steps)
    optimizer = torch.optim.LBFGS(
        weights, max_iter=n_steps, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(step)  # type: ignore[arg-type]


def _grams(words: Sequence[str], buckets: int, shortest: int, longest: int) -> Any:
    """(len(words), buckets) sparse; a row's shares are its n-grams', by FNV-1a hashes."""
    rows, columns, shares = [], [], []
    for row, word in enumerate(words):
        text = f"<{word}>"
        sizes = range(shortest, min(longest, len(text) - 1) + 1)
        grams = [text] + [text[i : i + n] for n in sizes for i in range(len(text) - n + 1)]
        for gram in grams:
            value = 2166136261
            for byte in gram.encode():
                value = (value ^ byte) * 16777619 % 2**32
            rows.append(row)
            columns.append(value % buckets)
            shares.append(1 / len(grams))
    return scipy.sparse.csr_matrix((shares, (rows, columns)), shape=(len(words), buckets))


def _counts(cooccurrence: Counts, dim: int) -> np.ndarray:
    given = cooccurrence.toarray() if scipy.sparse.issparse(cooccurrence) else cooccurrence
    x = np.array(given, dtype=np.float64)
    require(x.ndim == 2 and x.shape[0] == x.shape[1], "cooccurrence", "(N, N)", x)
    good = bool(np.isfinite(x).all()) and x.min() >= 0 and x.sum() > 0
    require(good, "cooccurrence", "counts of at least 0, some above", x)
    require(1 <= dim <= len(x), "dim", f"in 1..{len(x)}", dim)
    return x


def _unit(vectors: np.ndarray) -> np.ndarray:
    x = np.asarray(vectors, dtype=np.float64)
    require(x.ndim == 2 and bool(np.isfinite(x).all()), "vectors", "(N, D), finite", x)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
