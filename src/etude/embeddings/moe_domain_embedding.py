r"""One sentence encoder for many domains: its feed-forward parts are copied, one copy a domain.

A model tuned on one narrow field embeds that field well and the others badly. Instead of N tuned
models, a pretrained encoder is upcycled: in every block the feed-forward part is copied N times,
attention, norms and words stay shared, and the known domain m of a sentence decides, without a
gate, which copy all of its tokens pass in every block. A token of the domain stands first, in the
place of [CLS], from which it starts. So N domains cost one model's compute a token.

    h_0 = [u_m; word(x_1); ...; word(x_T)] + position,      u_m = [CLS] at first           (1)
    h   <- h + attention(LN h),   h <- h + FFN_m(LN h),     FFN_m = FFN at first           (2)
    z   = W2 tanh(W1 LN(mean over the sentence of LN h))                                   (3)

Pairs that belong together are papers that a third paper cites together. With A, B (n, D) the
embeddings of n pairs of one domain, the others of the batch are the negatives:

    mnr:   mean_i CE(A_i B^T, i)                                                           (4)
    plus:  1/2 mean_i CE(A_i B^T, t_i) + 1/2 mean_j CE(B_j A^T, s_j),                      (5)
           P = row softmax of (A A^T + B B^T) / 2,  t_i = argmax_j P_ij,  s_j = argmax_i P_ij

The release neither normalizes A and B nor scales the products: the loss then depends on their
lengths, while pairs are judged by the cosine.

Source: Hallee, Kapur, Patel, Gleghorn, Khomtchouk, "Contrastive Learning and Mixture of Experts
Enables Precise Vector Embeddings", 2024, arXiv:2401.15713; released code at 2a67569.
Not found in the text at hand: the first version's scale of the loss, and its tables.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["EnforcedMoEEncoder", "cocitation_pairs", "mnr_loss"]

CARD = Card(
    slug="moe_domain_embedding",
    family="embeddings",
    title="Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings",
    year=2024,
    arxiv="2401.15713",
    move="Copy a text encoder's feed-forward parts once a domain and let the known domain of a "
    "sentence choose the copy, so that one model holds many specialists.",
    task="experiment",
    claim="On questions of five domains, copies a domain tell pairs of one intent from other pairs "
    "with a higher F1 than the same encoder tuned on all five domains without copies.",
    baseline="one_dense_model",
    metric="macro_f1",
    better="higher",
    published="README: N experts are almost as effective as N individual models, one layer of them "
    "has 85 % of the gain, and small BERT models gain nothing; no table",
    fidelity="full",
    cost="L",
    data=("clinc150",),
    code="Gleghorn-Lab/Mixture-of-Experts-Sentence-Similarity",
    departs=(
        "A small encoder with learned positions and GELU in place of ModernBERT.",
        "The domain token is put before the words, so a text comes without [CLS].",
        "Routing is enforced a sentence; the README's routing of single tokens, learned routers "
        "and products over a learned temperature are left out.",
    ),
    example={"dim": 8, "n_words": 30, "depth": 1, "n_heads": 2},
)


class EnforcedMoEEncoder(nn.Module):
    """Word ids and domains to embeddings; with one domain an ordinary encoder.

    Args:
        dim: width D of tokens and embeddings, a multiple of `n_heads`.
        n_words: size of the vocabulary.
        n_domains: N.
        depth, n_heads: blocks and heads of attention; the feed-forward part is 4 D wide.
        most_tokens: longest text.
        moe_blocks: numbers of the blocks that are copied; None are all.
        generator: of the starting weights.

    Raises:
        EtudeError: a number out of its range.
    """

    def __init__(
        self, dim: int = 64, *, n_words: int = 10_000, n_domains: int = 1, depth: int = 2,
        n_heads: int = 4, most_tokens: int = 64, moe_blocks: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        numbers = {"dim": dim, "n_words": n_words, "n_domains": n_domains, "depth": depth}
        for name, number in (numbers | {"n_heads": n_heads, "most_tokens": most_tokens}).items():
            require(number >= 1, name, "at least 1", number)
        require(dim % n_heads == 0, "dim", f"a multiple of n_heads {n_heads}", dim)
        chosen = _chosen(moe_blocks, depth)
        self.dim, self.n_words, self.n_domains, self.depth = dim, n_words, n_domains, depth
        self.n_heads, self.most_tokens, self.moe_blocks = n_heads, most_tokens, moe_blocks

        def normal(*shape: int, spread: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * spread

        self.words = nn.Parameter(normal(n_words, dim, spread=0.1))
        self.positions = nn.Parameter(normal(most_tokens + 1, dim, spread=0.02))
        self.domain_tokens = nn.Parameter(normal(1, dim, spread=0.1).repeat(n_domains, 1))
        self.blocks = nn.ModuleList(
            _Block(dim, n_heads, n_domains if b in chosen else 1) for b in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pool = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = normal(*module.weight.shape, spread=dim**-0.5)
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # copies start alike, also without upcycling
            for expert in block.experts:
                expert.load_state_dict(block.experts[0].state_dict())

    def upcycle(
        self, n_domains: int, moe_blocks: Sequence[int] | None = None
    ) -> EnforcedMoEEncoder:
        """A copy of this encoder of one domain with `n_domains` of them; outputs are the same.

        Raises:
            EtudeError: this encoder has several domains already, or a number out of its range.
        """
        require(self.n_domains == 1, "n_domains", "1 to be upcycled", self.n_domains)
        require(n_domains >= 1, "n_domains", "at least 1", n_domains)
        chosen = _chosen(moe_blocks, self.depth)
        grown = copy.deepcopy(self)
        grown.n_domains, grown.moe_blocks = n_domains, moe_blocks
        grown.domain_tokens = nn.Parameter(self.domain_tokens.detach().repeat(n_domains, 1))
        for b in chosen:
            copies = (copy.deepcopy(self.blocks[b].experts[0]) for _ in range(n_domains))
            grown.blocks[b].experts = nn.ModuleList(copies)
        return grown

    def forward(
        self, ids: Tensor, domains: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) int64, domains (B,) int64 (default 0), mask (B, T) bool -> (B, D).

        What the mask hides changes nothing.

        Raises:
            EtudeError: ids or domains out of range, a text that is too long, or shapes that
                do not fit.
        """
        fits = ids.ndim == 2 and ids.shape[1] <= self.most_tokens
        require(fits, "ids", f"of shape (B, up to {self.most_tokens})", ids)
        domains = ids.new_zeros(len(ids)) if domains is None else domains
        known = domains.shape == ids.shape[:1] and bool(
            ((domains >= 0) & (domains < self.n_domains)).all()
        )
        require(known, "domains", f"(B,) in 0..{self.n_domains - 1}", domains)
        inside = bool(((ids >= 0) & (ids < self.n_words)).all())
        require(inside, "ids", f"in 0..{self.n_words - 1}", ids)
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        require(mask.shape == ids.shape, "mask", f"of shape {tuple(ids.shape)}", mask)
        keep = F.pad(mask, (1, 0), value=True)
        first = self.domain_tokens[domains][:, None]
        h = torch.cat([first, self.words[ids]], dim=1) + self.positions[: keep.shape[1]]  # (1)
        for block in self.blocks:
            h = block(h, domains, keep)
        weight = keep[..., None].to(h.dtype)
        mean = (self.norm(h) * weight).sum(dim=1) / weight.sum(dim=1)
        return self.pool(mean)  # (3)


def _chosen(moe_blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    chosen = tuple(range(depth)) if moe_blocks is None else tuple(moe_blocks)
    known = all(0 <= b < depth for b in chosen)
    require(known, "moe_blocks", f"numbers in 0..{depth - 1}", moe_blocks)
    return chosen


class _Block(nn.Module):
    def __init__(self, dim: int, n_heads: int, n_experts: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in range(n_experts)
        )

    def forward(self, h: Tensor, domains: Tensor, keep: Tensor) -> Tensor:
        b, t, d = h.shape
        qkv = self.qkv(self.norms[0](h)).reshape(b, t, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None])
        h = h + self.out(seen.transpose(1, 2).reshape(b, t, d))
        x = self.norms[1](h)
        if len(self.experts) == 1:
            return h + self.experts[0](x)  # (2)
        change = torch.empty_like(x)
        for m, expert in enumerate(self.experts):  # each sees its own sentences only
            mine = domains == m
            if mine.any():
                change[mine] = expert(x[mine])
        return h + change  # (2)


def mnr_loss(
    anchor: Tensor, positive: Tensor, *, kind: str = "plus", normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Scalar (4) or (5) of n pairs, one domain's.

    Args:
        anchor, positive: (n, D).
        kind: "mnr" or "plus".
        normalize: take cosines (the release's option, off by default).
        scale: products are multiplied by it; 1 in the release.

    Raises:
        EtudeError: unlike shapes, unknown kind, or a scale that is not positive.
    """
    require(kind in ("mnr", "plus"), "kind", "mnr or plus", kind)
    require(0 < scale < float("inf"), "scale", "positive", scale)
    fits = anchor.ndim == 2 and anchor.shape == positive.shape and len(anchor) > 0
    require(fits, "positive", f"of anchor's shape {tuple(anchor.shape)}", positive)
    a, b = (F.normalize(x, dim=1) if normalize else x for x in (anchor, positive))
    logits = scale * a @ b.T
    if kind == "mnr":
        return F.cross_entropy(logits, torch.arange(len(a), device=a.device))  # (4)
    with torch.no_grad():
        share = ((a @ a.T + b @ b.T) / 2).softmax(dim=1)
        there, back = share.argmax(dim=1), share.argmax(dim=0)
    return (F.cross_entropy(logits, there) + F.cross_entropy(logits.T, back)) / 2  # (5)


def cocitation_pairs(
    citations: np.ndarray, *, parts: np.ndarray | None = None, at_least: int = 1
) -> np.ndarray:
    """(P, 2) pairs a < b of papers that some paper cites together, in ascending order.

    Args:
        citations: (M, 2) int rows (citing, cited); a row that comes twice counts once.
        parts: (number of papers,) the part of the split that each paper belongs to; only pairs
            inside one part are kept, so no paper is in two parts.
        at_least: how many papers have to cite both.

    Raises:
        EtudeError: another shape, negative numbers, or a paper without a part.
    """
    citations = np.asarray(citations)
    whole = citations.ndim == 2 and citations.shape[1] == 2 and citations.dtype.kind in "iu"
    require(whole and (citations >= 0).all(), "citations", "(M, 2) whole numbers from 0", citations)
    require(at_least >= 1, "at_least", "at least 1", at_least)
    rows = np.unique(citations, axis=0).astype(np.int64)
    shape = tuple(rows.max(axis=0, initial=-1) + 1)
    cited = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows[:, 0], rows[:, 1])), shape=shape)
    both = scipy.sparse.triu(cited.T @ cited, k=1).tocoo()
    enough = both.data >= at_least
    pairs = np.stack([both.row[enough], both.col[enough]], axis=1).astype(np.int64)
    if parts is not None:
        known = np.asarray(parts).shape[0] >= shape[1]
        require(known, "parts", f"one for each of {shape[1]} papers", np.asarray(parts))
        pairs = pairs[np.asarray(parts)[pairs[:, 0]] == np.asarray(parts)[pairs[:, 1]]]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
