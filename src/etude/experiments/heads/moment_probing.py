"""Moment probing against linear probes on textures and on a frozen convolutional network.

Measured: test accuracy. Data:
- "textures": five classes of 49 tokens with 16 features; all have mean 0 and variance 1 in every
  feature and differ in the correlations of the features only. A random gain a sample multiplies
  its tokens, so that the length of the mean token says nothing either.
- "fashion_mnist": tokens of five classes from a network that was trained on the other five and
  frozen.

Baselines are logistic regressions on: the mean token ("logistic_regression"), the mean and the
variance of each feature ("mean_and_variance"), and the mean with the full second moment
(bilinear pooling: signed square roots of the upper triangle of X^T X / T, unit length,
"bilinear_pooling", the headline's). All arms see the same split and standardized inputs; the
baselines tune six strengths C of the penalty, ours six configurations (three learning rates, two
widths) on the validation part, and the test part is read for the chosen one. Each trains as the
probe task does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from etude.experiments.heads._frozen import clothes_tokens, tuned_accuracy
from etude.heads import MomentProbe
from etude.tasks.base import Arm, Dataset, Pair, split_rows
from etude.tasks.baselines import LogisticRegression

__all__ = ["measure"]

OURS = {"lr": (3e-3, 1e-3, 1e-2), "hidden_dim": (128, 64)}
THEIRS = {"C": (1.0, 0.1, 0.01, 10.0, 100.0, 0.001)}
N_CLASSES, N_ROWS, N_TOKENS, DIM = 5, 1_500, 49, 16


def measure(seed: int) -> list[Pair]:
    """Accuracy pairs of one seed; the first is textures against the mean token."""
    return [
        *_pairs("textures", *textures(seed), seed),
        *_pairs("fashion_mnist", *clothes_tokens(seed, 2_000), seed),
    ]


def textures(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (1500, 49, 16) and class ids; class k has a random correlation matrix of its own."""
    generator = np.random.default_rng([seed, 17])
    mixing = generator.normal(size=(N_CLASSES, DIM, DIM))
    covariance = mixing @ mixing.transpose(0, 2, 1) / DIM + 2.0 * np.eye(DIM)
    spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    correlation = covariance / (spread[:, :, None] * spread[:, None, :])
    y = np.arange(N_ROWS) % N_CLASSES
    noise = generator.normal(size=(N_ROWS, N_TOKENS, DIM))
    gain = generator.uniform(0.5, 2.0, size=(N_ROWS, 1, 1))
    return gain * (noise @ np.linalg.cholesky(correlation).transpose(0, 2, 1)[y]), y


def pooled(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """(N, T, D) -> what each baseline reads, (N, .), by its name."""
    mean, variance = tokens.mean(axis=1), tokens.var(axis=1)
    second = tokens.transpose(0, 2, 1) @ tokens / tokens.shape[1]
    second = second[:, *np.triu_indices(tokens.shape[2])]
    second = np.sign(second) * np.sqrt(np.abs(second))
    second /= np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-12)
    return {
        "bilinear_pooling": np.concatenate([mean, second], axis=1),
        "mean_and_variance": np.concatenate([mean, variance], axis=1),
        "logistic_regression": mean,
    }


def _pairs(name: str, tokens: np.ndarray, y: np.ndarray, seed: int) -> list[Pair]:
    tokens, features = tokens.astype(np.float32), pooled(tokens)
    data = Dataset(
        name=name, x=features["logistic_regression"].astype(np.float32), y=y.astype(np.int64),
        classes=tuple("abcde"), tokens=tokens,
    )  # fmt: skip
    split = split_rows(data, seed)
    ours, ours_s = tuned_accuracy(
        Arm("heads.moment_probing", "Moment probing", MomentProbe), data, split, seed, OURS
    )
    pairs = []
    for baseline, x in features.items():
        theirs, theirs_s = tuned_accuracy(
            Arm(baseline, baseline, LogisticRegression), replace(data, x=x.astype(np.float32)),
            split, seed, THEIRS,
        )  # fmt: skip
        pairs.append(
            Pair(metric="accuracy", ours=ours, baseline=theirs, baseline_name=baseline, data=name,
                 ours_s=ours_s, baseline_s=theirs_s)
        )  # fmt: skip
    return pairs
