r"""Adapt zero-shot scores by a cache of confident and typical unlabeled samples.

Zero-shot classification compares a feature f with the embedding w_k of each class, unit vectors
all. The features of the target domain themselves are not used. Here p(f) = softmax_k(f.w_k / t)
picks, without labels, a cache: for each class the 2K rows of largest p_k, of which the K most
typical stay, with score of a row j in its pool P (lower is more typical)

    score_j = sum_{i in P} KL(p_j || p_i)                                             (1)

A cached row carries its class as label L (one-hot; a row may be cached for several classes).
For a new feature f and a cached u, feature and semantic similarity are multiplied:

    S(f, u) = 2 (1 - minmax_u KL(p(f) || p(u)))        in [0, 2] for each f           (2)
    logits = scale f.W + alpha sum_u exp(-beta (1 - (f.u) S(f, u))) L_u               (3)

K = clip(int(share N / C), 9, 16). TFUP-T trains a residual R of the class vectors and a
two-layer adapter g of the features, again without labels:

    w' = unit(w / 2 + R / 2),   f' = unit(g(f) / 5 + 4 f / 5),   logits = scale f'.w'     (4)

first on the rows that (1) selects, labeled by (3); then on all rows, where the strong view must
answer what (3) answers to the plain view with a probability above 0.9; plus 0.3 times

    sum_k m_k log m_k,   m = the mean probability of the batch                        (5)

which is least where the batch uses all classes alike, however sharp the single answers are.

Source: Long, Wang, Zhao, Tan, Wu, Wang, Wang, "Training-Free Unsupervised Prompt for
Vision-Language Models", 2024, arXiv:2404.16339. The abstract and the authors' release were read.
Departures: where all KL of a row are equal S is 1 (0 / 0 there); the last epoch of TFUP-T is
kept (the release keeps the one with the best test accuracy); the cosine schedule ends with the
training. The z-score that the release puts before min-max cancels and is left out.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

from etude.core import Card, require

__all__ = ["TFUP", "TFUPT", "FeatureCacheModel", "marginal_entropy_loss", "multilevel_similarity"]

CARD = Card(
    slug="tfup_cache",
    family="heads",
    title="Training-Free Unsupervised Prompt for Vision-Language Models",
    year=2024,
    arxiv="2404.16339",
    move="Build, without labels, a small cache of confident and typical samples of each class "
    "and add its votes, weighted by feature and semantic similarity, to zero-shot scores.",
    task="experiment",
    claim="On banking requests TFUP is more accurate than zero-shot classification by the names "
    "of the intents, in the best of as many wordings.",
    baseline="zero_shot",
    metric="accuracy",
    better="higher",
    published="Release's README, DomainNet average: TFUP 60.9, TFUP-T 63.5. Abstract: TFUP-T "
    "improves on POUF by 3.3 % on DomainNet.",
    fidelity="full",
    cost="S",
    data=(),
    code="wlb12345/TFUP",
    departs=(
        "Where all divergences of a sample are equal, its semantic similarity is 1.",
        "TFUP-T keeps its last epoch, never the one that is best on test labels.",
        "Strong views of TFUP-T are given as features; by default they are the plain ones.",
        "The learning rate of TFUP-T falls to 0 with the last step.",
    ),
    search={"alpha": (0.3, 1.0, 3.0), "beta": (1.0, 5.0)},
    example={"class_embeddings": ((1.0, 0.0, 0.2), (0.0, 1.0, 0.0), (0.0, 0.3, 1.0))},
)


def _unit(x: object, name: str) -> np.ndarray:
    """(N, D) rows of length 1, float64."""
    array = np.asarray(x, dtype=np.float64)
    require(array.ndim == 2 and len(array) > 0, name, "(N, D), N > 0", array)
    length = np.linalg.norm(array, axis=1, keepdims=True)
    good = bool(np.isfinite(array).all() and (length > 0).all())
    require(good, name, "finite, no row zero", array)
    return np.asarray(array / length)


def multilevel_similarity(
    features: np.ndarray, keys: np.ndarray, class_embeddings: np.ndarray, temperature: float = 0.1
) -> np.ndarray:
    """(f.u) S(f, u) of (2): features (B, D), keys (M, D), class_embeddings (K, D) -> (B, M)."""
    f, u = _unit(features, "features"), _unit(keys, "keys")
    w = _unit(class_embeddings, "class_embeddings")
    log_f, log_u = (log_softmax(x @ w.T / temperature, axis=1) for x in (f, u))
    p = np.exp(log_f)
    kl = (p * log_f).sum(axis=1, keepdims=True) - p @ log_u.T  # (B, M)
    low, high = kl.min(axis=1, keepdims=True), kl.max(axis=1, keepdims=True)
    span = high - low
    # Below rounding there is no order among the cached rows.
    even = span <= 1e-12
    S = np.where(even, 1.0, 2 * (1 - (kl - low) / np.where(even, 1.0, span)))  # (2)
    return np.asarray((f @ u.T) * S)


def marginal_entropy_loss(logits: Tensor) -> Tensor:
    """(5): logits (B, K) -> scalar in nats, between -log K and 0."""
    m = logits.softmax(dim=1).mean(dim=0)
    return (m * torch.log(m + 1e-6)).sum()


class FeatureCacheModel:
    """The selection (1). `n_per_class`: K; `temperature`: t.

    Fitted: `rows_` (M,) row numbers, class by class, the most typical first; `labels_` (M,)
    class ids; `keys_` (M, D) their unit vectors.
    """

    def __init__(
        self, class_embeddings: np.ndarray, *, n_per_class: int = 16, temperature: float = 0.1
    ) -> None:
        require(n_per_class >= 1, "n_per_class", "at least 1", n_per_class)
        require(temperature > 0, "temperature", "positive", temperature)
        self.class_embeddings = _unit(class_embeddings, "class_embeddings")
        self.n_per_class = n_per_class
        self.temperature = temperature

    def fit(self, features: np.ndarray) -> FeatureCacheModel:
        """features (N, D), unlabeled -> self. Where N < 2K a pool is all rows."""
        f = _unit(features, "features")
        log_p = log_softmax(f @ self.class_embeddings.T / self.temperature, axis=1)
        pools = np.argsort(-log_p, axis=0, kind="stable")[: 2 * self.n_per_class].T  # (C, 2K)
        inside = log_p[pools]  # (C, 2K, C)
        own = np.exp(inside)
        entropy = (own * inside).sum(axis=2)
        # sum_i KL(p_j || p_i) = n sum p_j log p_j - p_j . sum_i log p_i
        cross = np.einsum("cjk,ck->cj", own, inside.sum(axis=1))
        score = pools.shape[1] * entropy - cross  # (1)
        best = np.argsort(score, axis=1, kind="stable")[:, : self.n_per_class]
        chosen = np.take_along_axis(pools, best, axis=1)
        self.rows_ = chosen.ravel()
        self.labels_ = np.repeat(np.arange(len(chosen)), chosen.shape[1])
        self.keys_ = f[self.rows_]
        return self


class TFUP:
    """Equations (1) to (3). No labels and no gradient steps.

    Args:
        class_embeddings: (K, D), normalized here.
        alpha, beta: weight and sharpness of the cache's votes; alpha = 0 is zero-shot.
        scale: of the zero-shot cosines. temperature: t of the softmax in (1) and (2).
        share: of the rows that are cached, within 9 and 16 a class.
    Fitted: `keys_` (M, D), `labels_` (M,), `rows_` (M,) as in ``FeatureCacheModel``.
    """

    def __init__(
        self,
        class_embeddings: np.ndarray,
        *,
        alpha: float = 0.3,
        beta: float = 1.0,
        scale: float = 100.0,
        temperature: float = 0.1,
        share: float = 0.3,
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta), ("scale", scale)):
            require(value >= 0 and math.isfinite(value), name, "finite, not negative", value)
        require(temperature > 0, "temperature", "positive", temperature)
        require(0 < share <= 1, "share", "in (0, 1]", share)
        self.class_embeddings = _unit(class_embeddings, "class_embeddings")
        self.alpha, self.beta, self.scale = alpha, beta, scale
        self.temperature, self.share = temperature, share

    def fit(self, features: np.ndarray) -> TFUP:
        """features (N, D), unlabeled -> self."""
        n_per_class = int(self.share * len(features) / len(self.class_embeddings))
        cache = FeatureCacheModel(
            self.class_embeddings, n_per_class=min(max(n_per_class, 9), 16),
            temperature=self.temperature,
        ).fit(features)  # fmt: skip
        self.keys_, self.labels_, self.rows_ = cache.keys_, cache.labels_, cache.rows_
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K): (3)."""
        return self._with(_unit(features, "features"), self.class_embeddings)

    def _with(self, f: np.ndarray, w: np.ndarray) -> np.ndarray:
        require(hasattr(self, "keys_"), "TFUP", "fitted: call fit first", "an unfitted one")
        A = multilevel_similarity(f, self.keys_, w, self.temperature)
        votes = np.exp(-self.beta * (1 - A)) @ np.eye(len(w))[self.labels_]
        return np.asarray(self.scale * f @ w.T + self.alpha * votes)  # (3)


class TFUPT:
    """Equation (4), trained on the answers of ``TFUP``; the cache is not used afterwards.

    Args:
        class_embeddings: (K, D). tfup: None for ``TFUP`` with its defaults.
        threshold: probability from which an answer is learned; marginal: weight of (5).
        training_share: of the rows, as many a class are selected for the first `warm_epochs`.
        lr, weight_decay, eps, batch_size: of AdamW, as in the release.
    Fitted: `residual_` (K, D), `down_` (D // 4, D), `up_` (D, D // 4) of the adapter.
    """

    def __init__(
        self, class_embeddings: np.ndarray, *, tfup: TFUP | None = None, threshold: float = 0.9,
        marginal: float = 0.3, training_share: float = 0.75, n_epochs: int = 30,
        warm_epochs: int = 5, batch_size: int = 256, lr: float = 0.012,
        weight_decay: float = 0.1, eps: float = 3e-3, seed: int = 0,
    ) -> None:  # fmt: skip
        require(0 <= threshold <= 1, "threshold", "in [0, 1]", threshold)
        require(marginal >= 0, "marginal", "not negative", marginal)
        require(0 < training_share <= 1, "training_share", "in (0, 1]", training_share)
        require(0 <= warm_epochs <= n_epochs, "warm_epochs", "from 0 to n_epochs", warm_epochs)
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        require(lr > 0 and weight_decay >= 0, "lr, weight_decay", "positive", lr)
        self.class_embeddings = _unit(class_embeddings, "class_embeddings")
        self.tfup = TFUP(self.class_embeddings) if tfup is None else tfup
        self.threshold, self.marginal, self.training_share = threshold, marginal, training_share
        self.n_epochs, self.warm_epochs, self.batch_size = n_epochs, warm_epochs, batch_size
        self.lr, self.weight_decay, self.eps, self.seed = lr, weight_decay, eps, seed

    def fit(self, features: np.ndarray, strong: np.ndarray | None = None) -> TFUPT:
        """features (N, D), unlabeled; strong (N, D) their strong views, by default they -> self."""
        f = _unit(features, "features")
        view = torch.from_numpy(f if strong is None else _unit(strong, "strong"))
        require(view.shape == f.shape, "strong", f"{f.shape}, as features", view)
        (N, D), K = f.shape, len(self.class_embeddings)
        W, plain = torch.from_numpy(self.class_embeddings), torch.from_numpy(f)
        per_class = max(int(self.training_share * N / K), 9)
        chosen = FeatureCacheModel(
            W.numpy(), n_per_class=per_class, temperature=self.tfup.temperature
        ).fit(f).rows_  # fmt: skip
        self.tfup.fit(f)
        first = torch.from_numpy(self.tfup.logits(f[chosen]).argmax(axis=1))
        generator = torch.Generator().manual_seed(self.seed)
        hidden = max(D // 4, 1)

        def uniform(n_out: int, n_in: int) -> Tensor:
            x = torch.rand(n_out, n_in, generator=generator, dtype=torch.float64)
            return ((2 * x - 1) / math.sqrt(n_in)).requires_grad_()

        R = torch.zeros(K, D, dtype=torch.float64, requires_grad=True)
        A, B = uniform(hidden, D), uniform(D, hidden)
        settings = {"lr": self.lr, "weight_decay": self.weight_decay, "eps": self.eps}
        optimizer = torch.optim.AdamW([R, A, B], **settings)
        n_warm, n_all = -(-len(chosen) // self.batch_size), -(-N // self.batch_size)
        n_steps = self.warm_epochs * n_warm + (self.n_epochs - self.warm_epochs) * n_all
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(n_steps, 1))
        for epoch in range(self.n_epochs):
            warm = epoch < self.warm_epochs
            order = torch.randperm(len(chosen) if warm else N, generator=generator)
            for batch in order.split(self.batch_size):
                w = _classes(W, R)
                rows = torch.from_numpy(chosen)[batch] if warm else batch
                logits = self.tfup.scale * _adapted(view[rows], A, B) @ w.T
                if warm:
                    loss = F.cross_entropy(logits, first[batch])
                else:
                    with torch.no_grad():
                        seen = _adapted(plain[rows], A, B).numpy()
                        answer = torch.from_numpy(self.tfup._with(seen, w.detach().numpy()))
                    p, target = answer.softmax(dim=1).max(dim=1)
                    each = F.cross_entropy(logits, target, reduction="none")
                    sure = p > self.threshold
                    loss = (each * sure).sum() / sure.sum().clamp(min=1)
                    loss = loss + self.marginal * marginal_entropy_loss(logits)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.residual_, self.down_, self.up_ = (x.detach().numpy().copy() for x in (R, A, B))
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B, K): (4)."""
        require(hasattr(self, "up_"), "TFUPT", "fitted: call fit first", "an unfitted one")
        f, A, B = map(torch.from_numpy, (_unit(features, "features"), self.down_, self.up_))
        w = _classes(torch.from_numpy(self.class_embeddings), torch.from_numpy(self.residual_))
        return np.asarray((self.tfup.scale * _adapted(f, A, B) @ w.T).numpy())


def _classes(W: Tensor, R: Tensor) -> Tensor:
    return F.normalize(0.5 * W + 0.5 * R, dim=1)  # (4)


def _adapted(f: Tensor, A: Tensor, B: Tensor) -> Tensor:
    g = torch.relu(torch.relu(f @ A.T) @ B.T)
    return F.normalize(0.2 * g + 0.8 * f, dim=1)  # (4)
