r"""UCoFiA: compare a video and a text as wholes, by frames and by patches, and balance the levels.

A mean over frames keeps a video's topic and loses its small details. Three similarities are
taken: (a) the pooled video with the sentence, (b) each frame with the sentence, (c) chosen
patches with each word. (b) and (c) are vectors or matrices, so something must reduce them. The
interactive aggregation lets positions speak to one another before they are weighed:

    w = softmax( softmax(c / tau) M / tau ),   ISA(c) = sum_i w_i c_i,   M starts at I     (1)
    a: scale <A s, B v>,  v the mean of the frames after a temporal layer, A, B start at I (2)
    b: scale ISA_i(<s, f_i>) over frames f_i without the temporal layer                    (3)
    c: scale (ISA_v(ISA_w(C)) + ISA_w(ISA_v(C))) / 2,  C = words x patches                 (4)
    total = (a + b + c) / 3                                                                (5)

The patches of (4) are each frame's own vector and its `n_kept` best patches by a learned score,
chosen in training by a perturbed top-k, the mean of many noisy choices, which has a gradient.

Some videos are close to all texts. A level's matrix S between texts and videos is given biases
by Sinkhorn's rounds, in logarithms, until each video gets the same mass:

    a_i = 1 / sum_j e^(S_ij) b_j,   b_j = 1 / sum_i a_i e^(S_ij),   four times             (6)

and log b_j is added to S_ij, level by level. The biases of test videos are found with training
texts, so that no test query is seen before its turn; for video-to-text the roles change.

Source: Wang, Sung, Cheng, Bertasius, Bansal, "Unified Coarse-to-Fine Alignment for Video-Text
Retrieval", ICCV 2023, arXiv:2309.10091; released code Ziyang412/UCoFiA at commit 6098be2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.core import Card, require

__all__ = ["InteractiveSimilarityAggregation", "UCoFiA", "sinkhorn_normalize"]

CARD = Card(
    slug="coarse_to_fine_video_text",
    family="retrieval",
    title="Unified Coarse-to-Fine Alignment for Video-Text Retrieval",
    year=2023,
    arxiv="2309.10091",
    move="Add up similarities of whole videos, frames and patches with a text, and give each "
    "video a bias, per level, that evens out how much all texts like it.",
    task="experiment",
    claim="On generated videos whose objects fill single patches, the three levels with biases "
    "from training texts give a higher text-to-video Recall@1 than mean pooling of frames.",
    baseline="mean_pooling",
    metric="recall_at_1",
    better="higher",
    published="abstract: +2.4 %, +1.4 % and +1.3 % text-to-video Recall@1 on MSR-VTT, "
    "ActivityNet and DiDeMo over earlier methods on CLIP",
    fidelity="miniature",
    cost="M",
    data=("patch_videos",),
    code="Ziyang412/UCoFiA",
    departs=(
        "All three levels are multiplied by the scale; the release leaves out the third.",
        "Padded frames and words have no weight in (1); the release does not mask them there.",
        "The patches are chosen without noise outside training.",
        "One temporal layer that starts as the identity, not four that start from CLIP's; the "
        "patches' scores come from one hidden layer, not from three and a normalization.",
        "Features are given; no CLIP encoder is trained.",
    ),
    example={"n_tokens": 3},
)


class InteractiveSimilarityAggregation(nn.Module):
    """Equation (1) over the last axis. `n_tokens`: its length; `temperature`: tau, twice."""

    def __init__(self, n_tokens: int, *, temperature: float = 0.01) -> None:
        super().__init__()
        require(n_tokens >= 1, "n_tokens", "at least 1", n_tokens)
        require(0 < temperature < math.inf, "temperature", "positive", temperature)
        self.n_tokens, self.temperature = n_tokens, temperature
        self.mixing = nn.Parameter(torch.eye(n_tokens))

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """(..., n_tokens) -> (...); mask broadcasts to the scores, True = keep.

        Raises EtudeError for another length and for a row that keeps nothing.
        """
        fits = scores.ndim >= 1 and scores.shape[-1] == self.n_tokens
        require(fits, "scores", f"(..., {self.n_tokens})", scores)
        keep = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
        require(bool(keep.any(-1).all()), "mask", "true somewhere in every row", keep)
        first = (scores / self.temperature).masked_fill(~keep, -math.inf).softmax(-1)
        mixed = first @ self.mixing / self.temperature
        weight = mixed.masked_fill(~keep, -math.inf).softmax(-1)
        return (weight * scores.masked_fill(~keep, 0)).sum(-1)  # (1)


class UCoFiA(nn.Module):
    """The three levels (2) to (4) and their mean (5) on given features.

    Args:
        dim: width D of all features.
        n_frames, n_patches, n_words: lengths of a video, a frame, a sentence; pad and mask.
        n_kept: patches kept of a frame, at most `n_patches`.
        scale: of the cosines; CLIP's is about 100.
        temperature: of (1).
        n_heads: of the temporal layer; must divide `dim`.
        n_samples, sigma: noisy choices of the perturbed top-k, and their noise.
        generator: of the noise; the global one where None.
    """

    def __init__(
        self,
        dim: int,
        *,
        n_frames: int,
        n_patches: int,
        n_words: int,
        n_kept: int = 3,
        scale: float = 100.0,
        temperature: float = 0.01,
        n_heads: int = 4,
        n_samples: int = 500,
        sigma: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(1 <= n_kept <= n_patches, "n_kept", f"in 1..{n_patches}", n_kept)
        require(0 < scale < math.inf, "scale", "positive", scale)
        require(dim >= 1 and dim % n_heads == 0, "dim", f"a multiple of {n_heads} heads", dim)
        require(n_samples >= 1, "n_samples", "at least 1", n_samples)
        require(0 < sigma < math.inf, "sigma", "positive", sigma)
        self.n_kept, self.scale, self.n_samples, self.sigma = n_kept, scale, n_samples, sigma
        self.generator = generator
        self.places = nn.Parameter(torch.zeros(n_frames, dim))
        self.temporal = nn.TransformerEncoderLayer(
            dim, n_heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        nn.init.zeros_(self.temporal.self_attn.out_proj.weight)  # starts as the identity, so that
        nn.init.zeros_(self.temporal.linear2.weight)  # the features' own alignment is kept
        nn.init.zeros_(self.temporal.linear2.bias)
        self.maps = nn.ParameterList(torch.eye(dim) for _ in range(4))
        self.selector = nn.Sequential(
            nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 1), nn.Tanh()
        )
        lengths = {"frames": n_frames, "words": n_words, "patches": n_frames * (1 + n_kept)}
        sizes = ("frames", "words", "patches", "patches", "words")
        self.isa = nn.ModuleList(
            InteractiveSimilarityAggregation(lengths[size], temperature=temperature)
            for size in sizes
        )

    def levels(
        self,
        sentences: Tensor,
        words: Tensor,
        frames: Tensor,
        patches: Tensor,
        *,
        word_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N) similarities (2), (3) and (4) of all texts and all videos.

        Args:
            sentences: (B, D); words: (B, S, D), word_mask (B, S) bool.
            frames: (N, F, D) a vector a frame, frame_mask (N, F) bool; patches: (N, F, P, D).
        """
        n, n_frames, dim = frames.shape
        given = patches.ndim == 4 and patches.shape[:2] == (n, n_frames)
        require(given, "patches", f"({n}, {n_frames}, P, {dim})", patches)
        words_in = words.shape == (len(sentences), self.isa[1].n_tokens, dim)
        require(words_in, "words", f"({len(sentences)}, {self.isa[1].n_tokens}, {dim})", words)
        w_mask = _all_true(words) if word_mask is None else word_mask
        f_mask = _all_true(frames) if frame_mask is None else frame_mask
        text, token = F.normalize(sentences, dim=-1), F.normalize(words, dim=-1)
        moved = frames + self.temporal(frames + self.places, src_key_padding_mask=~f_mask)
        steady = F.normalize(moved, dim=-1).masked_fill(~f_mask[..., None], 0).sum(1)
        video = F.normalize(steady, dim=-1)
        whole = (text @ self.maps[0]) @ (video @ self.maps[1]).T  # (2)
        by_frame = torch.einsum("bd,nfd->bnf", text, F.normalize(frames, dim=-1))
        middle = self.isa[0](by_frame, f_mask[None].expand_as(by_frame))  # (3)
        seen, seen_mask = self._select(frames, patches, f_mask)
        pairs = torch.einsum(
            "bsd,nvd->bnsv", token @ self.maps[2], F.normalize(seen, dim=-1) @ self.maps[3]
        )
        keep_w = w_mask[:, None, None].expand(-1, n, pairs.shape[3], -1)
        keep_v = seen_mask[None, :, None].expand_as(pairs)
        by_patch = self.isa[1](pairs.transpose(2, 3), keep_w)
        by_word = self.isa[3](pairs, keep_v)
        fine = self.isa[2](by_patch, keep_v[:, :, 0]) + self.isa[4](by_word, keep_w[:, :, 0])
        return self.scale * whole, self.scale * middle, self.scale * fine / 2  # (4)

    def forward(
        self,
        sentences: Tensor,
        words: Tensor,
        frames: Tensor,
        patches: Tensor,
        *,
        word_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N) the mean (5) of the levels; arguments as there."""
        three = self.levels(
            sentences, words, frames, patches, word_mask=word_mask, frame_mask=frame_mask
        )
        return torch.stack(three).mean(0)  # (5)

    def _select(self, frames: Tensor, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F * (1 + n_kept), D) each frame's vector and its chosen patches; their mask."""
        beside = frames[:, :, None].expand_as(patches)
        score = self.selector(torch.cat([patches, beside], dim=-1))[..., 0]  # (N, F, P)
        if self.training:
            noise = torch.randn(
                (self.n_samples, *score.shape), generator=self.generator, dtype=score.dtype
            ).to(score.device)
            chosen = _PerturbedTopK.apply(score, noise, self.n_kept, self.sigma)
        else:
            best = score.topk(self.n_kept, dim=-1).indices.sort(-1).values
            chosen = F.one_hot(best, score.shape[-1]).to(score.dtype)
        kept = torch.cat([frames[:, :, None], chosen @ patches], dim=2)
        return kept.flatten(1, 2), mask[..., None].expand(kept.shape[:3]).flatten(1)


def sinkhorn_normalize(scores: Tensor, *, n_rounds: int = 4) -> tuple[Tensor, Tensor]:
    """Equation (6) in logarithms: (B, N) -> log a (B,) and log b (N,).

    exp(scores + log a + log b) has columns that sum to 1, and rows that sum to about N / B. Add
    the bias of the side that is ranked; the other changes no ranking.
    """
    require(scores.ndim == 2 and scores.numel() > 0, "scores", "(B, N), not empty", scores)
    require(n_rounds >= 1, "n_rounds", "at least 1", n_rounds)
    columns = -scores.logsumexp(0)
    for _ in range(n_rounds):
        rows = -(scores + columns).logsumexp(1)  # (6)
        columns = -(scores + rows[:, None]).logsumexp(0)
    return rows, columns


class _PerturbedTopK(torch.autograd.Function):
    """The mean one-hot choice of the top k under Gaussian noise, and its gradient.

    Berthet et al., 2020: d E[choice(x + sigma z)] / dx = E[choice(x + sigma z) z^T] / sigma.
    """

    @staticmethod
    def forward(ctx: Any, score: Tensor, noise: Tensor, k: int, sigma: float) -> Tensor:
        best = (score + sigma * noise).topk(k, dim=-1).indices.sort(-1).values
        choice = F.one_hot(best, score.shape[-1]).to(score.dtype)  # (samples, ..., k, P)
        ctx.save_for_backward(choice, noise)
        ctx.sigma = sigma
        return choice.mean(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        choice, noise = ctx.saved_tensors
        along = (choice * gradient).sum((-1, -2))  # of each sample's choice
        return (along[..., None] * noise).mean(0) / ctx.sigma, None, None, None


def _all_true(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
