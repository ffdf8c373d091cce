"""What the tasks measure, from arrays to figures; every name is a key of ``METRICS``."""

from __future__ import annotations

import numpy as np

__all__ = ["classification", "detection", "neighbors", "recall_at_1"]


def classification(logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """logits (B, K), target (B,) -> accuracy, balanced accuracy, log loss in nats."""
    correct = logits.argmax(axis=1) == target
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(
            np.mean([correct[target == k].mean() for k in np.unique(target)])
        ),
        "log_loss": float(-log_probs[np.arange(len(target)), target].mean()),
    }


def detection(scores: np.ndarray, is_outlier: np.ndarray) -> dict[str, float]:
    """scores (B,), higher = more anomalous -> AUROC and the two rates at 95 %.

    As in the literature on out-of-distribution detection the inliers are the positives: 95 %
    of them are accepted; the true negative rate is the share of outliers then rejected.
    """
    from sklearn.metrics import roc_auc_score

    threshold = np.quantile(scores[~is_outlier], 0.95)
    accepted = float((scores[is_outlier] <= threshold).mean())
    return {
        "auroc": float(roc_auc_score(is_outlier, scores)),
        "fpr_at_95_tpr": accepted,
        "tnr_at_95_tpr": 1 - accepted,
    }


def neighbors(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    """(B, M) and (N, M) codes -> (B, k) document ids by inner product, best first.

    Blocks of queries bound the memory to about 32 MB of scores.
    """
    k, block = min(k, len(documents)), max(1, 8_000_000 // max(1, len(documents)))
    found = []
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ documents.T
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(top, order, axis=1))
    return np.concatenate(found)


def recall_at_1(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose nearest other row (by cosine) has the same label."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    near = neighbors(unit, unit, 2)
    itself = near[:, 0] == np.arange(len(unit))
    other = np.where(itself, near[:, 1], near[:, 0])
    return float((labels[other] == labels).mean())
