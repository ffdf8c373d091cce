r"""RagVL: let a model that sees question, caption and image say yes or no to what was retrieved.

An index compares a question with images by an inner product of two separate embeddings, so near
misses and wrong captions come along, and the model that answers believes them. Against that:

A reranker reads question, caption and image together and is asked whether the image helps. Of
its next-word logits only those of "Yes" and "No" count:

    score = exp(z_yes) / (exp(z_yes) + exp(z_no))                                          (1)

Of the K retrieved the N best stay, if their score is at least a threshold:                (2)
the value where, on validation data, the densities of the scores of right and wrong best images
cross (here Gaussian kernels; on [mean score of the wrong ones, 1]).                       (3)
It is trained with the true images as Yes and the index's own mistakes as No.

The answering model is trained with noise. In its data: wrong images that the index found stand
beside the true ones. In its loss: a second pass, without gradient, sees images x diffused for s
steps, and each answer token counts by how much the image mattered to it:

    x~ = sqrt(a_s) x + sqrt(1 - a_s) e,  e ~ N(0, 1),  a_s = prod_(r <= s) (1 - beta_r),
    beta = 1e-5 + (0.005 - 1e-5) sigmoid(1000 values from -6 to 6)                         (4)
    w_t = mean of clamp(z_u[y_u] - z~_u[y_u], 1, 5) over answer tokens u in t-1, t, t+1    (5)
    loss = sum_t w_t CE_t / sum_t w_t, over answer tokens                                  (6)

z, z~: logits of both passes, y: the answer; w carries no gradient. A token that the image does
not matter to keeps weight 1.

Source: Chen, Xu, Qi, Guo, "MLLM Is a Strong Reranker: Advancing Multimodal Retrieval-augmented
Generation via Knowledge-enhanced Reranking and Noise-injected Training", 2024, arXiv:2407.21439;
released code at commit d31de67. In (5) the release reads the first column of the difference of
logits, not the label's; we read the label's, as the method that it builds on does (CAL), and
smooth within one answer, where the release runs over the whole batch and the question's tokens.
Not found in the paper's text at hand: the kind of density in (3).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from etude.core import Card, require

__all__ = [
    "RerankHead",
    "Reranked",
    "ToyMultimodalRAG",
    "adaptive_filter",
    "adaptive_threshold",
    "diffusion_noise",
    "noise_injected_loss",
]

CARD = Card(
    slug="noise_aware_rerank_rag",
    family="retrieval",
    title="MLLM Is a Strong Reranker: Advancing Multimodal Retrieval-augmented Generation via "
    "Knowledge-enhanced Reranking and Noise-injected Training",
    year=2024,
    arxiv="2407.21439",
    move="Rerank what an index found by a yes or no of a model that sees question, caption and "
    "image together, and train the answering model with wrong images and noised ones.",
    task="experiment",
    claim="On drawn entities, four of ten captions wrong, an index of captions and a reranker "
    "trained on questions and the index's mistakes put the true image first more often than an "
    "index trained on the same questions does.",
    baseline="tuned_index",
    metric="recall_at_1",
    better="higher",
    published="abstract: effective on subsets of two data sets; no single figure",
    fidelity="miniature",
    cost="M",
    data=("captioned_entities",),
    code="IDEA-FinAI/RagVL",
    departs=(
        "Small networks on vectors stand for the multimodal language models.",
        "Token weights read the label's logit and stay within one answer; the release reads the "
        "first word's, over the whole batch and the question's tokens.",
        "The densities of the threshold are sums of Gaussian kernels; the paper's were not found.",
    ),
    example={"dim": 6, "n_tokens": 9},
)


class RerankHead(nn.Module):
    """A cross-encoder in small: parts of one candidate, read together, to yes and no.

    Each part has its own projection; the projections and the products of any two of them go
    through a hidden layer.

    Args:
        dim: width D of a part.
        n_tokens: number T of parts: question, caption, image.
        hidden_dim: width of the projections and of the hidden layer.
    """

    def __init__(self, dim: int, *, n_tokens: int = 3, hidden_dim: int = 64) -> None:
        super().__init__()
        sizes = {"dim": dim, "n_tokens": n_tokens, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            require(size >= 1, name, "at least 1", size)
        self.n_tokens, self.hidden_dim = n_tokens, hidden_dim
        self.pairs = list(combinations(range(n_tokens), 2))
        # Normalized, so that products start at the size of the projections themselves.
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden_dim), nn.LayerNorm(hidden_dim))
            for _ in range(n_tokens)
        )
        self.hidden = nn.Linear((n_tokens + len(self.pairs)) * hidden_dim, hidden_dim)
        self.answer = nn.Linear(hidden_dim, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) parts of B candidates -> (B, 2) logits of yes and no."""
        fits = tokens.ndim == 3 and tokens.shape[1] == self.n_tokens
        require(fits, "tokens", f"(B, {self.n_tokens}, D)", tokens)
        parts = [project(tokens[:, n]) for n, project in enumerate(self.project)]
        joint = [parts[a] * parts[b] for a, b in self.pairs]
        logits: Tensor = self.answer(relu(self.hidden(relu(torch.cat([*parts, *joint], dim=1)))))
        return logits

    def score(self, tokens: Tensor) -> Tensor:
        """(B,) probability of yes, equation (1)."""
        logits = self(tokens)
        return (logits[:, 0] - logits[:, 1]).sigmoid()  # (1)

    def loss(self, tokens: Tensor, positives: Tensor) -> Tensor:
        """Mean cross-entropy over yes and no; `positives` (B,) bool, True where yes is right."""
        require(positives.shape == tokens.shape[:1], "positives", f"({len(tokens)},)", positives)
        return cross_entropy(self(tokens), (~positives).long())


def adaptive_filter(scores: np.ndarray, *, n_kept: int = 2, threshold: float = 0.5) -> np.ndarray:
    """(B, K) bool: equation (2), the `n_kept` best of each row that reach `threshold`.

    Of equal scores the earlier stays. Raises EtudeError for NaN or n_kept below 1.
    """
    scores = np.asarray(scores)
    fine = scores.ndim == 2 and not np.isnan(scores).any()
    require(fine, "scores", "(B, K) without NaN", scores)
    require(n_kept >= 1, "n_kept", "at least 1", n_kept)
    require(not np.isnan(threshold), "threshold", "a number", threshold)
    kept = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(kept, np.argsort(-scores, axis=1, kind="stable")[:, :n_kept], True, axis=1)
    return kept & (scores >= threshold)  # (2)


def adaptive_threshold(scores: np.ndarray, positives: np.ndarray, *, width: float = 0.05) -> float:
    """Equation (3), to three decimals; 0 where nothing is gained, that is keep all.

    Args:
        scores: (N,) scores (1) of the best images on validation data.
        positives: (N,) bool, whether each is a true one; both occur.
        width: standard deviation of the kernels.

    Raises:
        EtudeError: scores outside [0, 1], shapes that differ, only one kind.
    """
    scores, positives = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    inside = scores.ndim == 1 and bool(((scores >= 0) & (scores <= 1)).all())
    require(inside, "scores", "(N,) in [0, 1]", scores)
    require(positives.shape == scores.shape, "positives", f"({len(scores)},) bool", positives)
    require(0 < positives.sum() < len(scores), "positives", "of both kinds", positives)
    require(0 < width < np.inf, "width", "positive", width)
    grid = np.linspace(0, 1, 1001)
    right, wrong = (
        np.exp(-(((grid[:, None] - scores[rows]) / width) ** 2) / 2).mean(axis=1)
        for rows in (positives, ~positives)
    )
    crossed = (right >= wrong) & (grid >= scores[~positives].mean())  # (3)
    gained = scores[positives].mean() > scores[~positives].mean() and crossed.any()
    return float(grid[crossed.argmax()]) if gained else 0.0


def diffusion_noise(
    x: Tensor, *, step: int = 500, generator: torch.Generator | None = None
) -> Tensor:
    """Equation (4): `x`, of any shape, after `step` of 1000 diffusion steps, counted from 0."""
    require(0 <= step < 1000, "step", "in 0..999", step)
    beta = 1e-5 + (0.5e-2 - 1e-5) * torch.linspace(-6, 6, 1000, dtype=torch.float64).sigmoid()
    kept = float((1 - beta).cumprod(0)[step])
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return kept**0.5 * x + (1 - kept) ** 0.5 * noise  # (4)


def noise_injected_loss(
    logits: Tensor,
    noised_logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    lowest: float = 1.0,
    highest: float = 5.0,
) -> Tensor:
    """Equations (5) and (6), a scalar.

    Args:
        logits: (B, T, K) with the images; noised_logits: the same with the noised images; no
            gradient reaches them.
        target: (B, T) int64 words of the answers.
        mask: (B, T) bool, True = a token of the answer; by default all are.
        lowest, highest: bounds of the clamp, 0 < lowest <= highest.

    Raises:
        EtudeError: shapes that differ, a mask without any token, bounds in the wrong order.
    """
    require(logits.ndim == 3, "logits", "(B, T, K)", logits)
    require(noised_logits.shape == logits.shape, "noised_logits", "shaped as logits", noised_logits)
    require(target.shape == logits.shape[:2], "target", "(B, T) as in logits", target)
    require(0 < lowest <= highest < np.inf, "lowest, highest", "rising", (lowest, highest))
    mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    require(mask.shape == target.shape, "mask", "(B, T) as in logits", mask)
    require(bool(mask.any()), "mask", "true at least once", mask)
    with torch.no_grad():
        gain = (logits - noised_logits).gather(2, target[..., None])[..., 0]
        inside = mask.to(gain.dtype)
        clamped = gain.clamp(lowest, highest) * inside
        around = nn.functional.pad(torch.stack([clamped, inside]), (1, 1))
        total, count = around[..., :-2] + around[..., 1:-1] + around[..., 2:]
        weight = inside * total / count.clamp(min=1)  # (5)
    loss = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return (weight.flatten() * loss).sum() / weight.sum()  # (6)


class Reranked(NamedTuple):
    """ids (B, K) of the bank, the best score first, scores (B, K), kept (B, K) bool."""

    ids: np.ndarray
    scores: np.ndarray
    kept: np.ndarray


class ToyMultimodalRAG:
    """Index, reranker and filter over one bank of captioned images.

    Args:
        reranker: (B, T, D) parts to (B,) scores in [0, 1]; ``RerankHead.score`` does. None leaves
            the order of the index and scores 1.
        n_retrieved: K of the index, at least 1.
        n_kept, threshold: of (2).
    """

    def __init__(
        self,
        reranker: Callable[[Tensor], Tensor] | None,
        *,
        n_retrieved: int = 20,
        n_kept: int = 2,
        threshold: float = 0.0,
    ) -> None:
        require(n_retrieved >= 1, "n_retrieved", "at least 1", n_retrieved)
        require(1 <= n_kept <= n_retrieved, "n_kept", f"in 1..{n_retrieved}", n_kept)
        require(not np.isnan(threshold), "threshold", "a number", threshold)
        self.reranker, self.n_retrieved = reranker, n_retrieved
        self.n_kept, self.threshold = n_kept, threshold

    def retrieve(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """(B, D') and (M, D') -> (B, min(K, M)) ids by inner product, best first."""
        fits = queries.ndim == vectors.ndim == 2 and queries.shape[1] == vectors.shape[1]
        require(fits, "queries", "(B, D) as wide as the bank's vectors", queries)
        return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, : self.n_retrieved]

    @torch.no_grad()
    def select(
        self, queries: np.ndarray, vectors: np.ndarray, questions: Tensor, items: Tensor
    ) -> Reranked:
        """What the answering model gets to see.

        Args:
            queries, vectors: questions and bank, as the index embeds them.
            questions: (B, D) the questions, and items: (M, T - 1, D) captions and images of the
                bank, as the reranker reads them.

        Raises:
            EtudeError: lengths that differ.
        """
        require(len(questions) == len(queries), "questions", f"{len(queries)} rows", questions)
        require(len(items) == len(vectors), "items", f"{len(vectors)} rows", items)
        ids = self.retrieve(queries, vectors)
        scores = np.ones(ids.shape)
        if self.reranker is not None:
            asked = questions[:, None, None].expand(*ids.shape, 1, -1)
            parts = torch.cat([asked, items[torch.from_numpy(ids)]], dim=2)
            scores = self.reranker(parts.flatten(0, 1)).double().numpy().reshape(ids.shape)
        order = np.argsort(-scores, axis=1, kind="stable")
        ids, scores = (np.take_along_axis(a, order, axis=1) for a in (ids, scores))
        kept = adaptive_filter(scores, n_kept=self.n_kept, threshold=self.threshold)
        return Reranked(ids, scores, kept)
