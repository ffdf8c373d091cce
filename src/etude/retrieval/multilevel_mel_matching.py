r"""M3EL: link a mention with text and picture to its entity by whole and parts, within and across.

A mention ("Jaguar", a sentence, a photograph) and an entity of a knowledge base have in each
modality a feature of the whole (CLS) and features of its tokens. Each kind is layer-normed; then
the score is the mean of matrices, one row a mention m, one column an entity e.

Within a modality, whole to whole and whole to parts: the entity's tokens z ask the mention's y,

    g2g(m, e) = <cls_m, cls_e>
    c_(m,e) = LayerNorm(mean over z of sum_y softmax_y(<W_q z, W_k y> / sqrt(H)) W_v y)
    intra(m, e) = (g2g + <c_(m,e), W_c cls_e>) / 2                                        (1)

Across, of the text's whole x and the image's tokens Y, mapped to width H, for either side alike,

    match(p, q) = relu(L(softmax(p L(q)^T) q))                                            (2)
    c = match(x, Y),  P = pool(match(Y, x))
    pool(y) = mean over 5 heads of mean_t(y_t) + lambda sum_t softmax_t(T y_t) y_t         (3)
    k = sigmoid(W c + W P),  f = k c + (1 - k) P                                          (4)
    context = LayerNorm(tanh(w x) x + f),  cross(m, e) = <context_m, context_e>            (5)

(3) works entry by entry, with T = 2, 2.5, 3.5, 4.5 and, for the fifth head, the largest entry;
lambda = 1. As x is one vector, match(Y, x) is relu(L(x)) for every token and P = (1 + lambda)
times that: tokens tell something through c alone. The bidirectional form pools c together with
match(Y, x) in place of (4), and adds a fourth matrix, of the image's whole and the text's tokens.

Training adds the cross-entropy of each mention's row, within a batch of pairs, on the score and on
each matrix, and the mean over modalities of a contrast between raw CLS features: with cosines,

    l_i = -log exp(a_ii / tau) / (sum_j exp(w1 a_ij / tau) + sum_j exp(w2 b_ij / tau))     (6)

a between both sides, its positive on the diagonal, also weighted by w1 = 1; b within a side,
w2 = 0.8; tau = 0.03; both sides averaged. The release multiplies b_ii by 0, so that exp(0) stays
in the sum, for each row; `self_masked` leaves it out. (6) sees none of the matcher's weights:
it trains what the features come from, or nothing.

Source: Hu, Gutierrez-Basulto, Li, Pan, "Multi-level Matching Network for Multimodal Entity
Linking", KDD 2025, arXiv:2412.10440; released code at commit 9b99c42, whose bidirectional
matcher trains on one data set but never ranks; here one and the same form does both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu

from etude.core import Card, require

__all__ = ["M3ELMatcher", "intra_inter_contrastive"]

CARD = Card(
    slug="multilevel_mel_matching",
    family="retrieval",
    title="Multi-level Matching Network for Multimodal Entity Linking",
    year=2024,
    arxiv="2412.10440",
    move="Score mention and entity by wholes and parts within text and image and across them, and "
    "train every one of these scores.",
    task="experiment",
    claim="On a drawn knowledge base of ambiguous names the three matrices give a higher Recall@1 "
    "over all entities than learned projections of the whole text and the whole image.",
    baseline="global_dot_product",
    metric="recall_at_1",
    better="higher",
    published="abstract: ahead of the state of the art on WikiMEL, RichpediaMEL and WikiDiverse; "
    "no single figure",
    fidelity="miniature",
    cost="M",
    data=("drawn_entities",),
    code="zhiweihu1103/MEL-M3EL",
    departs=(
        "Text and image features have one width and are handed in; the release tunes CLIP, too.",
        "Padding is masked in attention and pooling; the release lets it take part.",
        "The bidirectional form ranks as it trains; the release trains it and ranks by the other.",
    ),
    example={"dim": 6, "n_text_tokens": 1, "hidden_dim": 8},
)
HEADS = (2.0, 2.5, 3.5, 4.5)


class _Intra(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.whole = (
            nn.Linear(dim, hidden_dim) for _ in range(4)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, mention: tuple[Tensor, ...], entity: tuple[Tensor, ...]) -> Tensor:
        (cls_m, y, there_m), (cls_e, z, there_e) = mention, entity
        query, key, value = self.query(z)[:, None], self.key(y)[None], self.value(y)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (E, M, T_e, T_m)
        scores = scores.masked_fill(~there_m[None, :, None], -torch.inf)
        # The mean over z of weighted values is the values weighed by the mean: a token axis less.
        weights = _mean(scores.softmax(dim=-1), there_e[:, None, :, None])
        context = self.norm(torch.einsum("emt,mth->emh", weights, value))
        local = torch.einsum("eh,emh->me", self.whole(cls_e), context)
        return (cls_m @ cls_e.T + local) / 2  # (1)


class _Cross(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, pool_weight: float, both_ways: bool) -> None:
        super().__init__()
        self.from_text, self.from_image = nn.Linear(dim, hidden_dim), nn.Linear(dim, hidden_dim)
        self.turn, self.fuse = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.gate, self.norm = nn.Linear(hidden_dim, 1), nn.LayerNorm(hidden_dim)
        self.pool_weight, self.both_ways = pool_weight, both_ways

    def match(self, p: Tensor, q: Tensor, there: Tensor) -> Tensor:
        scores = p @ self.turn(q).transpose(-1, -2)
        weights = scores.masked_fill(~there[:, None], -torch.inf).softmax(dim=-1)
        return relu(self.turn(weights @ q))  # (2)

    def context(self, x: Tensor, tokens: Tensor, there: Tensor) -> Tensor:
        """x (B, H), tokens (B, T, H) -> (B, H)."""
        one = there.new_ones(len(x), 1)
        c, back = self.match(x[:, None], tokens, there), self.match(tokens, x[:, None], one)
        if self.both_ways:
            both = torch.cat([c, back], dim=1), torch.cat([one, there], dim=1)
            fused = _pool(*both, self.pool_weight)
        else:
            c, pooled = c[:, 0], _pool(back, there, self.pool_weight)
            k = torch.sigmoid(self.fuse(c) + self.fuse(pooled))
            fused = k * c + (1 - k) * pooled  # (4)
        return self.norm(torch.tanh(self.gate(x)) * x + fused)

    def forward(self, text: tuple[Tensor, ...], image: tuple[Tensor, ...]) -> list[Tensor]:
        """The contexts of one side: one, or two where both ways are asked for."""
        (cls_t, y_t, there_t), (cls_i, y_i, there_i) = text, image
        found = [self.context(self.from_text(cls_t), self.from_image(y_i), there_i)]
        if self.both_ways:
            found.append(self.context(self.from_image(cls_i), self.from_text(y_t), there_t))
        return found


class M3ELMatcher(nn.Module):
    """Scores of mentions (`queries`) and entities (`documents`).

    One item is a row of features: the text's whole, its `n_text_tokens` tokens, the image's
    whole, and the image's tokens, at least one.

    Args:
        dim: D.
        n_text_tokens: at least 1.
        hidden_dim: H.
        pool_weight: lambda of (3).
        both_ways: the bidirectional form.
    """

    def __init__(
        self, dim: int, *, n_text_tokens: int = 32, hidden_dim: int = 96, pool_weight: float = 1.0,
        both_ways: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        require(n_text_tokens >= 1, "n_text_tokens", "at least 1", n_text_tokens)
        require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        require(0 <= pool_weight < np.inf, "pool_weight", "at least 0", pool_weight)
        self.dim, self.n_text_tokens, self.hidden_dim = dim, n_text_tokens, hidden_dim
        self.pool_weight, self.both_ways = pool_weight, both_ways
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.text, self.image = _Intra(dim, hidden_dim), _Intra(dim, hidden_dim)
        self.cross = _Cross(dim, hidden_dim, pool_weight, both_ways)

    def forward(
        self, queries: Tensor, documents: Tensor, *, query_mask: Tensor | None = None,
        document_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(M, T, D) mentions and (E, T', D) entities -> (M, E) scores.

        Masks (M, T) and (E, T') are True at what is there; each modality of an item needs a
        token. Raises EtudeError for shapes that do not fit.
        """
        return torch.stack(self.parts(queries, documents, query_mask, document_mask)).mean(dim=0)

    def parts(
        self, queries: Tensor, documents: Tensor, query_mask: Tensor | None = None,
        document_mask: Tensor | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """The matrices whose mean is the score: text, image, cross (and cross back)."""
        mentions = queries, self._checked("queries", queries, query_mask)
        entities = documents, self._checked("documents", documents, document_mask)
        (text_m, image_m), (text_e, image_e) = self._split(*mentions), self._split(*entities)
        pairs = zip(self.cross(text_m, image_m), self.cross(text_e, image_e), strict=True)
        return [
            self.text(text_m, text_e), self.image(image_m, image_e),
            *(mention @ entity.T for mention, entity in pairs),  # (5)
        ]  # fmt: skip

    def loss(
        self, queries: Tensor, documents: Tensor, *, query_mask: Tensor | None = None,
        document_mask: Tensor | None = None, self_masked: bool = False,
    ) -> Tensor:  # fmt: skip
        """Scalar, for a batch of B mentions and, in the same order, their entities."""
        require(len(queries) == len(documents), "documents", f"{len(queries)} rows", documents)
        parts = self.parts(queries, documents, query_mask, document_mask)
        own = torch.arange(len(queries), device=queries.device)
        total = cross_entropy(torch.stack(parts).mean(dim=0), own)
        for whole in (0, self.n_text_tokens + 1):
            contrast = intra_inter_contrastive(
                queries[:, whole], documents[:, whole], self_masked=self_masked
            )
            total = total + contrast / 2
        return total + sum(cross_entropy(part, own) for part in parts)

    def _checked(self, name: str, items: Tensor, mask: Tensor | None) -> Tensor:
        """The mask (N, T)."""
        at = self.n_text_tokens + 1
        fits = items.ndim == 3 and items.shape[1] > at + 1 and items.shape[2] == self.dim
        require(fits, name, f"(N, T, {self.dim}) with T of at least {at + 2}", items)
        there = items.new_ones(items.shape[:2], dtype=torch.bool) if mask is None else mask
        require(there.shape == items.shape[:2], f"mask of {name}", f"{items.shape[:2]}", there)
        full = there[:, 1:at].any(dim=1) & there[:, at + 1 :].any(dim=1)
        require(bool(full.all()), f"mask of {name}", "True at a token of each modality", there)
        return there

    def _split(self, items: Tensor, there: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of text and of image: the whole, the tokens and their mask."""
        at, of = self.n_text_tokens + 1, self.norms
        return (
            (of[0](items[:, 0]), of[1](items[:, 1:at]), there[:, 1:at]),
            (of[2](items[:, at]), of[3](items[:, at + 1 :]), there[:, at + 1 :]),
        )


def intra_inter_contrastive(
    first: Tensor, second: Tensor, *, temperature: float = 0.03, inter_weight: float = 1.0,
    intra_weight: float = 0.8, self_masked: bool = False,
) -> Tensor:  # fmt: skip
    """(6) for pairs (B, D), (B, D) of any length above 0, averaged over rows and sides.

    Args:
        temperature: tau.
        inter_weight, intra_weight: w1 and w2; they multiply the logits.
        self_masked: leave an item's similarity with itself out, in place of a logit of 0.
    """
    require(first.ndim == 2, "first", "(B, D)", first)
    require(second.shape == first.shape, "second", f"of shape {first.shape}", second)
    require(0 < temperature < np.inf, "temperature", "positive", temperature)
    own = torch.arange(len(first), device=first.device)
    itself = torch.eye(len(first), dtype=torch.bool, device=first.device)
    losses = []
    for one, other in ((first, second), (second, first)):
        one, other = normalize(one, dim=1), normalize(other, dim=1)
        inner = (one @ one.T).masked_fill(itself, 0.0) * (intra_weight / temperature)
        if self_masked:
            inner = inner.masked_fill(itself, -torch.inf)
        inter = one @ other.T * (inter_weight / temperature)
        losses.append(cross_entropy(torch.cat([inter, inner], dim=1), own))  # (6)
    return (losses[0] + losses[1]) / 2


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Mean over the last but one axis, of what is there."""
    return (values * there).sum(dim=-2) / there.sum(dim=-2)


def _pool(tokens: Tensor, there: Tensor, weight: float) -> Tensor:
    """(3)."""
    kept = tokens.masked_fill(~there[..., None], -torch.inf)
    heads = [((t * kept).softmax(dim=1) * tokens).sum(dim=1) for t in HEADS]
    heads.append(kept.amax(dim=1))
    return _mean(tokens, there[..., None]) + weight * torch.stack(heads).mean(dim=0)  # (3)
