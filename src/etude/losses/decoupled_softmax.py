r"""Decoupled softmax: each positive label is told from the negatives, never from other positives.

With several right labels a sample, one softmax over all labels sets the right ones against each
other: its loss is least where each positive has probability 1 / |P|, so an easy positive that is
above that share is pushed down. The decoupled loss leaves the other positives out of each
positive's denominator. For one sample with scores s, positives P and negatives N:

    loss = -1/|P| sum_{p in P} log( exp(s_p) / (exp(s_p) + sum_{n in N} exp(s_n)) )        (1)

With one positive this is cross-entropy; with any number its infimum is 0, and the slope of one
positive's term in another positive's score is 0. The second loss looks at the first k places
only. The soft top-k operator shifts all scores until k sigmoids add up to k:

    theta_i = sigmoid(a (s_i + t)),   t such that sum_i theta_i = k                        (2)
    loss = -1/|P| sum_{p in P} log theta_p                                                 (3)

t is found by halving an interval and is differentiated by the implicit function theorem, not
through the halving. With v = a theta (1 - theta) and w = v / sum(v):

    dt/ds_j = -w_j,    dtheta_i/ds_j = v_i (delta_ij - w_j)                                (4)

Both losses can draw `n_sampled` positives a step; the positives left out are neither numerator
nor denominator. Scores are cosines over a temperature, 0.05 in the release. Where K scores a row
are too many, `sampled` puts n drawn labels into the sum over N of (1), times K / n.

Source: Gupta, Khatri, Rawat, Bhojanapalli, Jain, Dhillon, "Dual-Encoders for Extreme Multi-Label
Classification", ICLR 2024, arXiv:2310.10636; released code nilesh2797/DEXML.
Departures: labels are left out by minus infinity, not by the score -100; t is sought between
-max s + c and -min s + c with c = logit(k / K) / a, which always holds it, where the release's
-max s - 10 / a does not once K exceeds 22,026 k; and how negatives are sampled (see the card).
Not found in the paper: its text beyond the abstract could not be read; that (1) is a mean over
the positives, a = 2, k = 5 and one sampled positive are the release's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from etude.core import Card, require

__all__ = ["DecoupledSoftmaxLoss", "SoftTopKLoss", "log_soft_topk", "soft_topk"]

CARD = Card(
    slug="decoupled_softmax",
    family="losses",
    title="Dual-Encoders for Extreme Multi-Label Classification",
    year=2023,
    arxiv="2310.10636",
    move="leave the other positives out of each positive's softmax denominator",
    task="train",
    claim="with several positive labels a query, a dual encoder trained with the decoupled "
    "softmax has a higher precision at 1 than with one softmax over all labels",
    baseline="cross_entropy",
    metric="precision_at_1",
    better="higher",
    published="abstract: up to 2 % above the state of the art in precision at 1 on the largest "
    "data sets; README of the release: EURLex-4K P@1 86.78, P@5 60.19",
    fidelity="full",
    cost="M",
    data=("synthetic",),
    code="nilesh2797/DEXML",
    departs=(
        "Labels that are left out get the score minus infinity, where the release writes -100.",
        "The bracket of the soft top-k threshold is one that holds for any number of labels.",
        "All positives are used unless n_sampled says otherwise; the release draws one a step.",
        "Sampled negatives are drawn evenly and their sum is scaled; the release takes them from "
        "the batch or a shortlist of hard ones, and does not scale.",
    ),
    search={"temperature": (1.0, 0.5, 2.0)},
    example={"temperature": 1.0},
)


def _draw(positives: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """(B, K) bool -> the same with at most `n` True a row, drawn without replacement."""
    rows, columns = positives.nonzero(as_tuple=True)
    keys = torch.rand(len(rows), generator=generator, dtype=torch.float64).to(rows.device)
    order = torch.argsort(rows + keys)  # shuffles within rows; `rows` itself stays sorted
    counts = positives.sum(dim=1)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    kept = torch.zeros_like(positives)
    kept[rows[place < n], columns[order][place < n]] = True
    return kept


def _prepare(
    logits: Tensor, positives: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (half precision raised to float32), positives, and the labels that take part."""
    require(logits.ndim == 2, "logits", "of shape (B, K)", logits)
    require(positives.dtype == torch.bool, "positives", "bool", positives)
    require(positives.shape == logits.shape, "positives", "of the shape of logits", positives)
    takes_part = torch.ones_like(positives) if mask is None else mask
    fits = takes_part.dtype == torch.bool and takes_part.shape == logits.shape
    require(fits, "mask", "bool of the shape of logits", mask)
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide / temperature, positives & takes_part, takes_part


def _mean_over_positives(terms: Tensor, drawn: Tensor, n_rows: int) -> Tensor:
    """Sum over the rows of the mean of each row's terms, divided by `n_rows`."""
    rows = drawn.nonzero(as_tuple=True)[0]
    return (terms / rows.bincount(minlength=len(drawn))[rows]).sum() / n_rows


class DecoupledSoftmaxLoss(nn.Module):
    """Equation (1).

    Args:
        temperature: logits are divided by it.
        n_sampled: positives drawn a row and step; None takes all.
        generator: of the draws.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self, *, temperature: float = 1.0, n_sampled: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require(temperature > 0, "temperature", "positive", temperature)
        require(n_sampled is None or n_sampled >= 1, "n_sampled", "None or >= 1", n_sampled)
        self.temperature, self.n_sampled, self.generator = temperature, n_sampled, generator

    def forward(self, logits: Tensor, positives: Tensor, mask: Tensor | None = None) -> Tensor:
        """logits (B, K), positives (B, K) bool -> mean loss over the B rows, in nats.

        `mask` (B, K) bool, True = keep: labels outside it are neither positive nor negative. A
        row without positives, or without negatives, adds 0. Half-precision logits are
        computed, and answered, in float32.
        """
        scores, known, takes_part = _prepare(logits, positives, mask, self.temperature)
        drawn = known if self.n_sampled is None else _draw(known, self.n_sampled, self.generator)
        negatives = takes_part & ~known
        against = scores.masked_fill(~negatives, -torch.inf).logsumexp(dim=1)
        rows, columns = drawn.nonzero(as_tuple=True)
        terms = -F.logsigmoid(scores[rows, columns] - against[rows])  # (1)
        return _mean_over_positives(terms, drawn, len(drawn))

    def sampled(
        self, embeddings: Tensor, positives: Tensor, encode_labels: Callable[[Tensor], Tensor],
        *, n_negatives: int,
    ) -> Tensor:  # fmt: skip
        """Equation (1) from the scores of the positives and of `n_negatives` labels, drawn evenly.

        embeddings (B, D), positives (B, K) bool; `encode_labels` takes ids (n,), returns (n, D).
        One draw serves the batch; a row's sum over negatives is right on average, so the loss, a
        logarithm of it, is a little low on average, and exact for n_negatives = K.

        Raises:
            EtudeError: shapes do not fit, or n_negatives outside 1..K.
        """
        fits = embeddings.ndim == positives.ndim == 2 and len(embeddings) == len(positives)
        require(fits, "positives", "(B, K), with embeddings (B, D)", positives)
        k = positives.shape[1]
        require(1 <= n_negatives <= k, "n_negatives", f"from 1 to {k}", n_negatives)
        drawn = torch.randperm(k, generator=self.generator)[:n_negatives].to(positives.device)
        limit = self.n_sampled
        known = positives if limit is None else _draw(positives, limit, self.generator)
        rows, columns = known.nonzero(as_tuple=True)
        labels = encode_labels(torch.cat((drawn, columns)))
        others, _, _ = _prepare(
            embeddings @ labels[:n_negatives].T, positives[:, drawn], None, self.temperature
        )
        against = others.masked_fill(positives[:, drawn], -torch.inf).logsumexp(dim=1)
        against = against + math.log(k / n_negatives)
        own = (embeddings[rows] * labels[n_negatives:]).sum(dim=1).to(against.dtype)
        terms = -F.logsigmoid(own / self.temperature - against[rows])  # (1)
        return _mean_over_positives(terms, known, len(known))


class _SoftTopK(torch.autograd.Function):
    """theta or log theta of (2) with the implicit gradient (4)."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, top_k: Tensor, steepness: float, n_steps: int, log: bool
    ) -> Tensor:
        finite = scores > -torch.inf
        odds = torch.logit(top_k.to(scores.dtype) / finite.sum(dim=1)) / steepness
        low = odds - scores.max(dim=1).values
        high = odds - scores.masked_fill(~finite, torch.inf).min(dim=1).values
        for _ in range(n_steps):
            middle = (low + high) / 2
            short = torch.sigmoid(steepness * (scores + middle[:, None])).sum(dim=1) < top_k
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        z = steepness * (scores + ((low + high) / 2)[:, None])
        ctx.save_for_backward(z)
        ctx.steepness, ctx.log = steepness, log
        return F.logsigmoid(z) if log else torch.sigmoid(z)  # (2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:
        (z,) = ctx.saved_tensors
        # w as a softmax of log v: it keeps its sense where every v is too small for a float
        w = (F.logsigmoid(z) + F.logsigmoid(-z)).softmax(dim=1)
        direct = slope * ctx.steepness * torch.sigmoid(-z)
        if not ctx.log:
            direct = direct * torch.sigmoid(z)
        return direct - w * direct.sum(dim=1, keepdim=True), None, None, None, None  # (4)


def soft_topk(
    scores: Tensor, *, top_k: int | Tensor = 5, steepness: float = 2.0, n_steps: int = 32
) -> Tensor:
    """theta of (2): (B, K) -> (B, K) in (0, 1), each row adding up to `top_k`.

    Args:
        scores: (B, K) float; minus infinity leaves a label out.
        top_k: how many places, or (B,) int64, one number a row; fewer than the row's labels.
        steepness: a in (2); larger is nearer to the hard choice.
        n_steps: halvings; the error in t is the row's range of scores / 2^n_steps.

    Raises:
        EtudeError: a value outside its range.
    """
    return _apply(scores, top_k, steepness, n_steps, log=False)


def log_soft_topk(
    scores: Tensor, *, top_k: int | Tensor = 5, steepness: float = 2.0, n_steps: int = 32
) -> Tensor:
    """Logarithm of `soft_topk`, exact also where that is 0 or 1 in floating point."""
    return _apply(scores, top_k, steepness, n_steps, log=True)


def _apply(
    scores: Tensor, top_k: int | Tensor, steepness: float, n_steps: int, *, log: bool
) -> Tensor:
    require(scores.ndim == 2, "scores", "of shape (B, K)", scores)
    require(steepness > 0, "steepness", "positive", steepness)
    require(n_steps >= 1, "n_steps", "at least 1", n_steps)
    places = torch.as_tensor(top_k, device=scores.device).expand(len(scores))
    room = (scores > -torch.inf).sum(dim=1)
    fits = bool(((places >= 1) & (places < room)).all())
    require(fits, "top_k", "at least 1 and less than the number of labels", top_k)
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    found: Tensor = _SoftTopK.apply(wide, places, steepness, n_steps, log)  # type: ignore[no-untyped-call]
    return found


class SoftTopKLoss(nn.Module):
    """Equation (3).

    Args:
        top_k: k in (2); None takes each row's number of positives.
        temperature: logits are divided by it, before `steepness` multiplies them.
        steepness: a in (2).
        n_steps: halvings in the search for t.
        generator: draws k of a row's positives where it has more than k.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self, *, top_k: int | None = 5, temperature: float = 1.0, steepness: float = 2.0,
        n_steps: int = 32, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require(top_k is None or top_k >= 1, "top_k", "None or at least 1", top_k)
        require(temperature > 0, "temperature", "positive", temperature)
        require(steepness > 0, "steepness", "positive", steepness)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        self.top_k, self.temperature, self.steepness = top_k, temperature, steepness
        self.n_steps, self.generator = n_steps, generator

    def forward(self, logits: Tensor, positives: Tensor, mask: Tensor | None = None) -> Tensor:
        """logits (B, K), positives (B, K) bool -> mean loss over the B rows, in nats.

        `mask` (B, K) bool, True = keep. A row without positives, or with no more labels than
        places, has nothing to choose and adds 0.
        """
        scores, known, takes_part = _prepare(logits, positives, mask, self.temperature)
        drawn = known if self.top_k is None else _draw(known, self.top_k, self.generator)
        takes_part = takes_part & (drawn | ~known)
        counts = known.sum(dim=1)
        places = counts if self.top_k is None else torch.full_like(counts, self.top_k)
        open_rows = (places < takes_part.sum(dim=1)) & (counts > 0)
        chosen = scores.masked_fill(~takes_part, -torch.inf)[open_rows]
        log_theta = log_soft_topk(
            chosen, top_k=places[open_rows], steepness=self.steepness, n_steps=self.n_steps
        )
        drawn_open = drawn[open_rows]
        terms = -log_theta[drawn_open]  # (3), row by row as nonzero lists them
        return _mean_over_positives(terms, drawn_open, len(drawn))
