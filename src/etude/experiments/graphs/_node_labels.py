"""Multi-label node classification: the protocol that both arms, and the benchmark, share.

A logistic regression for each label on standardized embeddings; a node that has n labels is
given the n labels that score highest (the number is told, as in the papers on node embeddings);
macro- and micro-F1 over the labels. Needs numpy, scipy and scikit-learn only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from sklearn.metrics import f1_score

from etude.core import require

__all__ = ["Scores", "best_scores", "fit_labels", "predict_top", "split_nodes", "standardized"]

INVERSE_PENALTIES = (0.03, 0.3, 3.0)  # C of the logistic regressions, tuned for every embedding


def standardized(embeddings: np.ndarray) -> np.ndarray:
    """(N, D) columns with mean 0 and standard deviation 1 in float64; constant ones are 0."""
    x = np.asarray(embeddings, dtype=np.float64)
    x = x - x.mean(axis=0)
    return x / np.maximum(x.std(axis=0), 1e-12)


def fit_labels(x: np.ndarray, positives: np.ndarray, inverse_penalty: float) -> np.ndarray:
    """One logistic regression a label, all at once: (N, D), (N, K) bool -> (D + 1, K) weights.

    Minimizes, for every label, the sum of the log losses + |w|^2 / (2 * inverse_penalty) with a
    free intercept (the last row). The labels share no weight, so that minimizing the sum over
    them by L-BFGS minimizes each. It runs in the eigenbasis of x^T x, each coordinate scaled by
    its approximate curvature, which takes a tenth of the steps.
    """
    require(inverse_penalty > 0, "inverse_penalty", "positive", inverse_penalty)
    shape = (x.shape[1] + 1, positives.shape[1])
    spectrum, basis = np.linalg.eigh(x.T @ x)
    rotated = x @ basis
    rate = np.clip(positives.mean(axis=0), 1e-6, 1 - 1e-6)
    curvature = rate * (1 - rate)
    scale = 1 / np.sqrt(np.outer(np.append(spectrum, len(x)), curvature) + 1 / inverse_penalty)
    sign = np.where(positives, -1.0, 1.0)
    start = np.zeros(shape)
    start[-1] = np.log(rate / (1 - rate)) / scale[-1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape) * scale
        wrong = sign * (rotated @ weights[:-1] + weights[-1])  # the loss is log(1 + e^wrong)
        tail = np.exp(-np.abs(wrong))
        value = np.log1p(tail).sum() + np.maximum(wrong, 0.0).sum()
        value += (weights[:-1] ** 2).sum() / (2 * inverse_penalty)
        residual = sign * np.where(wrong >= 0, 1.0, tail) / (1.0 + tail)
        slope = rotated.T @ residual + weights[:-1] / inverse_penalty
        gradient = np.vstack([slope, residual.sum(axis=0)]) * scale
        return float(value), gradient.ravel()

    options = {"maxiter": 300, "ftol": 1e-7, "gtol": 1e-3}
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights = found.x.reshape(shape) * scale
    return np.vstack([basis @ weights[:-1], weights[-1]])


def predict_top(logits: np.ndarray, n_labels: np.ndarray) -> np.ndarray:
    """(N, K) logits, (N,) counts -> (N, K) bool: each row's `n_labels` highest."""
    ranks = np.argsort(np.argsort(-logits, axis=1, kind="stable"), axis=1, kind="stable")
    return ranks < n_labels[:, None]


def split_nodes(
    n_nodes: int, seed: int, *, train: float = 0.4, validation: float = 0.1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random permutation of the nodes, cut into train, validation and test."""
    order = np.random.default_rng([seed, 19_08]).permutation(n_nodes)
    cuts = [round(n_nodes * train), round(n_nodes * (train + validation))]
    first, second, third = np.split(order, cuts)
    return first, second, third


@dataclass(frozen=True)
class Scores:
    """F1 on the test nodes, and the configuration that the validation nodes chose."""

    macro: float
    micro: float
    choice: int
    inverse_penalty: float


def best_scores(
    candidates: Sequence[np.ndarray],
    positives: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    log: Callable[[str], None] | None = None,
) -> Scores:
    """Tune the embedding and C by validation macro-F1, refit on train + validation, test once.

    `candidates` are (N, D) embeddings of all nodes; `parts` comes from `split_nodes`. With one
    candidate only C is tuned.
    """
    train, validation, test = parts

    def f1(x: np.ndarray, fit: np.ndarray, held: np.ndarray, c: float) -> tuple[float, float]:
        weights = fit_labels(x[fit], positives[fit], c)
        told = positives[held].sum(axis=1)
        guess = predict_top(x[held] @ weights[:-1] + weights[-1], told)
        averages = ("macro", "micro")
        macro, micro = (
            float(f1_score(positives[held], guess, average=a, zero_division=0)) for a in averages
        )
        return macro, micro

    best = (-1.0, 0, INVERSE_PENALTIES[0])
    for i, candidate in enumerate(candidates):
        x = standardized(candidate)
        for c in INVERSE_PENALTIES:
            macro, _ = f1(x, train, validation, c)
            if log is not None:
                log(f"candidate {i}, C = {c}: validation macro-F1 {macro:.4f}")
            if macro > best[0]:
                best = (macro, i, c)
    x = standardized(candidates[best[1]])
    macro, micro = f1(x, np.concatenate([train, validation]), test, best[2])
    return Scores(macro, micro, best[1], best[2])
