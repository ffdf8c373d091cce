r"""Fusion of a ranking by words and one by meaning, with feedback of the best documents.

Let U be the best `depth` documents by words and the best `depth` by meaning. BM25 scores w and
inner products v of the same documents are taken relative to the best of U and mixed,

    s = (1 - a) w / max w + a v / max v.                                    (1)

Scores say how far apart two documents are, which reciprocal ranks throw away. Nothing is moved to
0 at the lower end: where all vectors are about as near, as for a name that the encoder does not
know, they hardly count, and the words decide. The best F
documents by (1) then say in which words the need is usually put (pseudo-relevance feedback): with
p(t | d) the share of the term t in the telling words of d,

    e(t) ~ sum over the best F of p(t | d),  for the T terms of highest e(t) idf(t);   (2)
    q'(t) = (1 - b) q(t) + b e(t),                                          (3)

q(t) ~ the square root of how often the query says t. The words' scores of U are counted again
with q', and (1) gives the answer. Terms that only one document holds take no part in (2).

Sources: Bruch, Gai, Ingber, "An analysis of fusion functions for hybrid retrieval", TOIS 2023,
arXiv:2210.11934 (1); Lavrenko and Croft, "Relevance-based language models", SIGIR 2001, and Abdul-
Jaleel et al., "UMass at TREC 2004" (RM3) for (2) and (3), here fed by both rankings together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from etude.papers.search.segment import EMPTY_TERMS
from etude.papers.search.snapshot import Snapshot

__all__ = ["RECIPE", "Recipe", "expanded", "fused"]


@dataclass(frozen=True)
class Recipe:
    """The knobs of the fusion: `depth`, a, F, T and b of the module's equations.

    With `feedback` 0 the answer is that of (1) alone.
    """

    depth: int = 500
    share: float = 0.6
    feedback: int = 10
    terms: int = 30
    trust: float = 0.4


RECIPE = Recipe()


def fused(words: np.ndarray, meaning: np.ndarray, share: float) -> np.ndarray:
    """Equation (1): (N,) from BM25 scores and inner products, NaN where there is no vector."""
    known = ~np.isnan(meaning)
    if not known.any():
        return relative(words)
    filled = np.where(known, meaning, meaning[known].min())
    return (1 - share) * relative(words) + share * relative(filled)


def relative(values: np.ndarray) -> np.ndarray:
    """Values as shares of the best one; where none is positive, the distance to the best."""
    best = float(values.max())
    scaled: np.ndarray = values / best if best > 0 else values - best
    return scaled


def expanded(
    now: Snapshot, query: dict[int, float], best: np.ndarray, recipe: Recipe
) -> dict[int, float]:
    """Equations (2) and (3): the weights q' by term, from q and the numbers of the best."""
    found, shares = [], []
    for place, row in zip(*now.split(best), strict=True):
        words, counts = np.unique(now.segments[place].words_of(int(row)), return_counts=True)
        telling = ~np.isin(words, EMPTY_TERMS, assume_unique=True)
        found.append(words[telling])
        shares.append(counts[telling] / max(int(counts[telling].sum()), 1))
    terms, at = np.unique(np.concatenate(found), return_inverse=True)
    mass = np.bincount(at, np.concatenate(shares), minlength=len(terms))
    n = now.frequencies(terms, living=False)
    idf = np.log(1 + (now.n - np.minimum(n, now.n) + 0.5) / (n + 0.5))
    value = mass * idf * (n > 1)
    chosen = np.argsort(-value, kind="stable")[: recipe.terms]
    chosen = chosen[value[chosen] > 0]
    trust = recipe.trust if len(chosen) else 0.0
    total = sum(query.values())
    weights = {term: (1 - trust) * q / total for term, q in query.items()}
    for term, share in zip(terms[chosen], mass[chosen] / mass[chosen].sum(), strict=True):
        weights[int(term)] = weights.get(int(term), 0.0) + trust * float(share)
    return weights
