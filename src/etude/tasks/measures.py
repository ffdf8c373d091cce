"""What the tasks measure, from arrays to figures; every name is a key of ``METRICS``."""

from __future__ import annotations

import numpy as np

__all__ = [
    "classification", "clustering", "detection", "mean_average_precision", "multi_label",
    "neighbors", "recall_at_1", "retrieval", "unit",
]  # fmt: skip

MOST_QUERIES = 2_000  # of mean average precision: each sorts all the other rows


def unit(rows: np.ndarray) -> np.ndarray:
    """(N, D) of length 1, float32."""
    long = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return np.asarray(rows / long, dtype=np.float32)


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


def mean_average_precision(
    vectors: np.ndarray, labels: np.ndarray, most_queries: int | None = None
) -> float:
    """Each row queries all others by inner product; mean over rows that have a match.

    `most_queries`: only the first so many rows query.
    """
    queries, total, n_found = len(vectors[:most_queries]), 0.0, 0
    block = max(1, 8_000_000 // max(1, len(vectors)))
    for start in range(0, queries, block):
        rows = np.arange(start, min(start + block, queries))
        scores = vectors[rows] @ vectors.T
        scores[np.arange(len(rows)), rows] = -np.inf  # the row itself comes last
        order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
        hits = labels[order] == labels[rows, None]
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        matches = hits.sum(axis=1)
        some = matches > 0
        total += float(((precision * hits).sum(axis=1)[some] / matches[some]).sum())
        n_found += int(some.sum())
    return total / n_found if n_found else 0.0


def clustering(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Normalized mutual information of k-means clusters, as many as classes, and the labels."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    found = KMeans(len(np.unique(labels)), n_init=3, random_state=seed).fit_predict(vectors)
    return float(normalized_mutual_info_score(labels, found))


def retrieval(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """embeddings (N, D) by cosine, labels (N,) -> Recall@1, mean average precision, clustering.

    Each row is a query among the others (for mean average precision the first 2,000 are).
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return {
        "recall_at_1": recall_at_1(embeddings, labels),
        "mean_average_precision": mean_average_precision(unit, labels, MOST_QUERIES),
        "normalized_mutual_information": clustering(unit, labels, 0),
    }


def multi_label(
    scores: np.ndarray, positives: np.ndarray, threshold: float = 0.0
) -> dict[str, float]:
    """scores (B, L), positives (B, L) bool -> F1 of what is above the threshold; Precision@1.

    Micro F1 counts all cells alike; macro F1 is the mean over the labels that occur. Precision@1
    is the share of rows whose highest score is one of their labels.
    """
    chosen = scores > threshold
    hits = (chosen & positives).sum(axis=0)
    sizes = chosen.sum(axis=0) + positives.sum(axis=0)
    occurs = positives.any(axis=0)
    each = 2 * hits[occurs] / sizes[occurs]
    top = positives[np.arange(len(scores)), scores.argmax(axis=1)]
    return {
        "micro_f1": float(2 * hits.sum() / max(1, sizes.sum())),
        "macro_f1": float(each.mean()) if occurs.any() else 0.0,
        "precision_at_1": float(top.mean()),
    }
