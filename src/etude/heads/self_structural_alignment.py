r"""Name unlabeled clusters from a large vocabulary: Cluster, Vote, Prompt, Realign.

Where the class names are not known, an image is compared with every word of a large vocabulary,
and single answers scatter over near synonyms. Clusters of images answer together. Vectors are of
unit length, v_w belongs to a word w.

C: k-means on the features gives clusters. V: the members vote for their top k words,

    F[c, w] = votes of cluster c for w / size of c                                   (1)

and the Hungarian assignment that maximizes sum_c F[c, w_c] gives every cluster a word of its own;
then each image moves to the nearest of the words that were chosen,

    y_i = argmax_{w in chosen} x_i . v_w                                             (2)

which defines new clusters. (1) and (2) run for three rounds. P: each cluster's three best words
have attributes, each with a vector; R: its images vote for their three nearest attributes,

    G[c, w] = sum_{a of w} r_a votes_c(a),   sum_{a of w} r_a = 1                     (3)

so that a long list does not win; G goes through assignment and (2) again. The words y_i so found
are structural labels. Self-training: a student on a strong view learns from its moving average,

    CE(student, teacher's word where its probability over ALL words exceeds 0.5)
    + 1/4 CE(student, structural label)                                              (4)

Structural labels are fixed for two epochs; then C's place is taken by these first labels, and V
is run anew with the teacher's features, without P and R.

Source: Zhang, Naseer, Chen, Shen, Khan, Zhang, Khan, "Towards Realistic Zero-Shot Classification
via Self Structural Semantic Alignment", AAAI 2024, arXiv:2308.12960. The abstract and the
authors' release were read.
Departures: features are frozen; the student is a matrix that starts as the identity, and the
strong view of a sample is its vector with coordinates dropped. No language model is asked:
attributes are given, or P and R are left out. Weights r_a sum to 1 for each word (in the release
the other words' lengths enter too). The number of clusters is given; the paper can estimate it.
Scale, decay and its ramp suit a small encoder; the release has 100, 0.999 to 0.9998, 2,000 steps.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from etude.core import Card, require

__all__ = ["S3A", "cvpr_align"]

CARD = Card(
    slug="self_structural_alignment",
    family="heads",
    title="Towards Realistic Zero-Shot Classification via Self Structural Semantic Alignment",
    year=2024,
    arxiv="2308.12960",
    move="Let clusters of unlabeled samples vote for words of a large vocabulary and assign "
    "each cluster a word of its own, in rounds: structure decides between near synonyms.",
    task="experiment",
    claim="Naming requests from a vocabulary several times larger than their classes, "
    "structural labels with self-training are more accurate than self-training without them.",
    baseline="self_training",
    metric="accuracy",
    better="higher",
    published="Abstract: over 15 % average improvement on CLIP in top-1 accuracy.",
    fidelity="miniature",
    cost="S",
    data=(),
    code="sheng-eatamath/S3A",
    departs=(
        "Features are frozen; the student is a linear map on them, from the identity on.",
        "The strong view drops coordinates of the features.",
        "Attributes are given or left out: no language model is asked.",
        "The number of clusters is given.",
        "The weights of a word's attributes sum to 1 whatever other words have.",
        "Cosines are scaled by 20, not 100; the moving average decays by 0.9 to 0.99, not 0.999.",
    ),
    search={"n_votes": (1, 3), "lr": (3e-4, 1e-3)},
    example={"class_embeddings": ((1.0, 0.0, 0.2), (0.0, 1.0, 0.0), (0.0, 0.3, 1.0)),
             "n_clusters": 2},
)  # fmt: skip


def _unit(x: object, name: str) -> np.ndarray:
    """(N, D) rows of length 1, float64."""
    array = np.asarray(x, dtype=np.float64)
    require(array.ndim == 2 and len(array) > 0, name, "(N, D), N > 0", array)
    length = np.linalg.norm(array, axis=1, keepdims=True)
    good = bool(np.isfinite(array).all() and (length > 0).all())
    require(good, name, "finite, no row zero", array)
    return np.asarray(array / length)


def _votes(clusters: np.ndarray, top: np.ndarray, n_words: int) -> np.ndarray:
    """(1): clusters (N,) ids 0..C-1, top (N, k) words -> (C, V); each row sums to k."""
    F_ = np.zeros((clusters.max() + 1, n_words))
    np.add.at(F_, (clusters[:, None], top), 1.0)
    return F_ / np.bincount(clusters)[:, None]


def _assign(scores: np.ndarray) -> np.ndarray:
    """(C, V) -> (C,) distinct words of largest total score."""
    return np.asarray(linear_sum_assignment(scores, maximize=True)[1])


def _move(similarity: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(2): similarity (N, V) and the chosen words -> (N,) word ids."""
    chosen = np.unique(words)
    return chosen[similarity[:, chosen].argmax(axis=1)]


def cvpr_align(
    features: np.ndarray,
    class_embeddings: np.ndarray,
    *,
    n_clusters: int = 10,
    n_rounds: int = 3,
    n_votes: int = 1,
    n_candidates: int = 3,
    attribute_embeddings: np.ndarray | None = None,
    attribute_words: np.ndarray | None = None,
    attribute_counts: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Structural labels (N,): for each row of features (N, D) the id of a word, by (1) to (3).

    Args:
        class_embeddings: (V, D) of the words, V >= n_clusters.
        n_votes: k of (1). n_candidates: words and attributes a cluster considers in P and R.
        attribute_embeddings, attribute_words: (A, D) and (A,) the word that each describes;
            without them P and R are left out. attribute_counts: (A,) how often each was named.
        clusters: (N,) integers, equal in one cluster, to start from; by default C finds them.

    At most n_clusters words occur; a word may lose all its images to the others.
    """
    require(n_rounds >= 1, "n_rounds", "at least 1", n_rounds)
    x, v = _unit(features, "features"), _unit(class_embeddings, "class_embeddings")
    limit = min(len(x), len(v))
    require(1 <= n_clusters <= limit, "n_clusters", f"in 1..{limit} (rows, words)", n_clusters)
    require(1 <= n_votes <= len(v), "n_votes", f"in 1..{len(v)}", n_votes)
    require(n_candidates >= 1, "n_candidates", "at least 1", n_candidates)
    similarity = x @ v.T
    top = np.argsort(-similarity, axis=1, kind="stable")[:, :n_votes]
    clusters = _cluster(x, n_clusters, seed) if clusters is None else np.asarray(clusters)
    require(clusters.shape == x.shape[:1], "clusters", "(N,), one a row", clusters)
    for _ in range(n_rounds):
        clusters = np.unique(clusters, return_inverse=True)[1]
        scores = _votes(clusters, top, len(v))
        labels = _move(similarity, _assign(scores))
        before, clusters = clusters, labels
    if attribute_embeddings is None:
        return labels
    scores = _described(
        x, before, scores, _unit(attribute_embeddings, "attribute_embeddings"),
        attribute_words, attribute_counts, n_candidates,
    )  # fmt: skip
    return _move(similarity, _assign(scores))


def _cluster(x: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """The best of three k-means runs from k-means++ starts, (N,); a cluster may be empty."""
    best, least = np.zeros(len(x), dtype=np.int64), np.inf
    for run in range(3):
        generator = np.random.default_rng([seed, run])
        centers = x[generator.integers(len(x))][None]
        near = ((x - centers) ** 2).sum(axis=1)
        while len(centers) < n_clusters:
            total = near.sum()
            row = generator.choice(len(x), p=near / total if total > 0 else None)
            centers = np.concatenate([centers, x[row][None]])
            near = np.minimum(near, ((x - x[row]) ** 2).sum(axis=1))
        for _ in range(30):
            distance = (centers**2).sum(axis=1) - 2 * x @ centers.T
            labels = distance.argmin(axis=1)
            member = np.eye(n_clusters)[labels]
            size = member.sum(axis=0)[:, None]
            moved = np.where(size > 0, member.T @ x / np.maximum(size, 1.0), centers)
            if np.array_equal(moved, centers):
                break
            centers = moved
        cost = float(distance.min(axis=1).sum())
        if cost < least:
            best, least = labels, cost
    return np.asarray(best)


def _described(
    x: np.ndarray, clusters: np.ndarray, scores: np.ndarray, attributes: np.ndarray,
    words: np.ndarray | None, counts: np.ndarray | None, n_candidates: int,
) -> np.ndarray:  # fmt: skip
    """(3): (C, V), zero for words that are not among a cluster's candidates."""
    words = np.asarray([] if words is None else words)
    rule = "(A,) word ids, one an attribute"
    require(words.shape == attributes.shape[:1], "attribute_words", rule, words)
    r = np.ones(len(words)) if counts is None else np.asarray(counts, dtype=np.float64)
    require(bool((r > 0).all()) and r.shape == words.shape, "attribute_counts", "positive", r)
    r = r / np.bincount(words, weights=r)[words]
    agreement, G = x @ attributes.T, np.zeros_like(scores)
    for c, row in enumerate(scores):
        candidates = np.argsort(-row, kind="stable")[:n_candidates]
        own = np.flatnonzero(np.isin(words, candidates))
        if len(own):
            k = min(n_candidates, len(own))
            near = np.argsort(-agreement[clusters == c][:, own], axis=1, kind="stable")[:, :k]
            np.add.at(G[c], words[own][near], r[own][near])
    return G


class S3A:
    """Structural labels with self-training (4).

    Args:
        class_embeddings: (V, D) of the words. n_clusters: given, not estimated.
        n_epochs, batch_size, lr: of AdamW on the student. fixed_epochs: before voting anew.
        threshold: probability from which the teacher's word is learned.
        weight: of the structural label. dropout: share of coordinates that the strong view lacks.
        scale: cosines are multiplied by it before the softmax.
        decay: of the moving average, from its first to its last value over `ramp` steps.
        attribute_embeddings and the rest: as in ``cvpr_align``, for the first labels.
    Fitted: `weight_` (D, D), the teacher; `labels_` (N,), the last structural labels.
    """

    def __init__(
        self, class_embeddings: np.ndarray, *, n_clusters: int = 10, n_votes: int = 1,
        n_epochs: int = 10, fixed_epochs: int = 2, batch_size: int = 64, lr: float = 3e-4,
        threshold: float = 0.5, weight: float = 0.25, dropout: float = 0.2, scale: float = 20.0,
        decay: tuple[float, float] = (0.9, 0.99), ramp: int = 100,
        attribute_embeddings: np.ndarray | None = None, attribute_words: np.ndarray | None = None,
        attribute_counts: np.ndarray | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        require(n_clusters >= 1, "n_clusters", "at least 1", n_clusters)
        require(n_votes >= 1, "n_votes", "at least 1", n_votes)
        require(n_epochs >= 0 and fixed_epochs >= 0, "n_epochs", "not negative", n_epochs)
        require(batch_size >= 1 and ramp >= 1, "batch_size, ramp", "at least 1", batch_size)
        require(lr > 0 and scale > 0, "lr, scale", "positive", lr)
        require(0 <= threshold <= 1, "threshold", "in [0, 1]", threshold)
        require(weight >= 0, "weight", "not negative", weight)
        require(0 <= dropout < 1, "dropout", "in [0, 1)", dropout)
        require(0 <= decay[0] <= decay[1] < 1, "decay", "rising, in [0, 1)", decay)
        require(seed >= 0, "seed", "not negative", seed)
        self.class_embeddings = _unit(class_embeddings, "class_embeddings")
        self.n_clusters, self.n_votes, self.n_epochs = n_clusters, n_votes, n_epochs
        self.fixed_epochs, self.batch_size, self.lr = fixed_epochs, batch_size, lr
        self.threshold, self.weight, self.dropout = threshold, weight, dropout
        self.scale, self.decay, self.ramp, self.seed = scale, decay, ramp, seed
        self.attribute_embeddings, self.attribute_words = attribute_embeddings, attribute_words
        self.attribute_counts = attribute_counts

    def fit(self, features: np.ndarray) -> S3A:
        """features (N, D), unlabeled -> self."""
        x = torch.from_numpy(_unit(features, "features"))
        v = torch.from_numpy(self.class_embeddings)
        generator = torch.Generator().manual_seed(self.seed)
        student = torch.eye(x.shape[1], dtype=torch.float64, requires_grad=True)
        teacher, step = student.detach().clone(), 0
        optimizer = torch.optim.AdamW([student], lr=self.lr, weight_decay=0.0)
        first = cvpr_align(
            x.numpy(), self.class_embeddings, n_clusters=self.n_clusters, n_votes=self.n_votes,
            attribute_embeddings=self.attribute_embeddings, attribute_words=self.attribute_words,
            attribute_counts=self.attribute_counts, seed=self.seed,
        )  # fmt: skip
        self.labels_ = first

        def logits(view: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
            return self.scale * F.normalize(view @ W.T, dim=1) @ v.T

        for epoch in range(self.n_epochs):
            if epoch >= self.fixed_epochs:
                self.labels_ = cvpr_align(
                    (x @ teacher.T).numpy(), self.class_embeddings, n_clusters=self.n_clusters,
                    n_votes=self.n_votes, clusters=first,
                )  # fmt: skip
            structural = torch.from_numpy(self.labels_)
            for rows in torch.randperm(len(x), generator=generator).split(self.batch_size):
                keep = torch.rand(len(rows), x.shape[1], generator=generator) >= self.dropout
                p, word = logits(x[rows], teacher).softmax(dim=1).max(dim=1)
                sure = (p > self.threshold).double()
                z = logits(x[rows] * keep, student)
                taught = F.cross_entropy(z, word, reduction="none") * sure
                loss = taught.sum() / sure.sum().clamp(min=1)
                loss = loss + self.weight * F.cross_entropy(z, structural[rows])  # (4)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                low, high = self.decay
                keep_old = low + (high - low) * min(1.0, step / self.ramp)
                teacher.lerp_(student.detach(), 1 - keep_old)
                step += 1
        self.weight_ = teacher.numpy().copy()
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, V): the teacher's, over the full vocabulary."""
        require(hasattr(self, "weight_"), "S3A", "fitted: call fit first", "an unfitted one")
        seen = _unit(_unit(features, "features") @ self.weight_.T, "adapted features")
        return np.asarray(self.scale * seen @ self.class_embeddings.T)
