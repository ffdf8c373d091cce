r"""Multi-grained uncertainty: noise the targets, and ask less of a match the more they fluctuate.

A request of an image and a text ("like this, but red") often has several right answers, of which
training names one and punishes the rest. Let the named target's feature stand for its
neighborhood: f of width D with mean mu and standard deviation s over its D entries becomes

    f~ = a * (f - mu) / sqrt(s^2 + eps) + b,  a_d ~ N(1, s^2),  b_d ~ N(mu, s^2)           (1)

with a and b drawn for every entry anew and without gradient. The scale a is about 1, not s, so
f~ has the mean of f and a standard deviation of about sqrt(1 + 2 s^2). How far the batch
fluctuates, u = the standard deviation of all entries of all f~ (one number, with gradient),
weighs the match of the queries q with the noised targets:

    L_u = (exp(-u) L(q, f~) + u) / 2                                                       (2)
    L(q, f) = -mean_i log exp(q_i f_i) / sum over j of the batch exp(q_i f_j)              (3)
    loss = g L_u + (1 - g) L(q, f),  g = exp(-gamma epoch / epochs)                        (4)

q and f have length `scale`. Training begins coarse, with (2) alone, and turns partly to the named
target; for gamma = 1 the share of (2) never falls below exp(-1). For a given L(q, f~) = l, (2) is
least at u = log l: the harder the match, the more fluctuation is preferred. Only the target is
noised, in training only.

Source: Chen, Zheng, Ji, Qu, Chua, "Composed Image Retrieval with Text Feedback via Multi-grained
Uncertainty Regularization", ICLR 2024, arXiv:2211.07394; released code at commit f1fd828 (scale
4, gamma 1). `ComposedRetriever` is the last step of the release's composition, by a text's scale
and shift, on feature vectors in place of feature maps: its two attention modules need maps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from etude.core import Card, require

__all__ = ["MultiGrainedUncertaintyLoss", "NormalAugmenter", "ComposedRetriever"]

CARD = Card(
    slug="multigrained_uncertainty",
    family="retrieval",
    title="Composed Image Retrieval with Text Feedback via Multi-grained Uncertainty "
    "Regularization",
    year=2022,
    arxiv="2211.07394",
    move="Noise the target's feature by its own statistics and weaken the demand for a match by "
    "the spread of the noised batch, ever less as training goes on.",
    task="experiment",
    claim="On drawn scenes whose requests have several right answers, of which training names "
    "one, the uncertainty loss gives a higher Recall@10 than InfoNCE on the named target.",
    baseline="infonce",
    metric="recall_at_10",
    better="higher",
    published="abstract: +4.03 %, +3.38 % and +2.40 % Recall@50 on FashionIQ, Fashion200k and "
    "Shoes over a strong baseline",
    fidelity="full",
    cost="M",
    data=("drawn_scenes",),
    code="Monoxide-Chen/uncertainty_retrieval",
    departs=(
        "Of the release's compositor the scale and shift by the text are kept, on vectors, and not "
        "the attention over a feature map before them.",
    ),
    search={"gamma": (1.0, 3.0)},
)


class NormalAugmenter(nn.Module):
    """(1) for features (B, D), D of at least 2.

    Args:
        alpha_scale, beta_scale: a and b are multiplied by them.
        eps: of (1).
        generator: of the noise.
    """

    def __init__(
        self, *, alpha_scale: float = 1.0, beta_scale: float = 1.0, eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("alpha_scale", alpha_scale), ("beta_scale", beta_scale)):
            require(0 <= value < np.inf, name, "at least 0", value)
        require(0 < eps < np.inf, "eps", "positive", eps)
        self.alpha_scale, self.beta_scale, self.eps = alpha_scale, beta_scale, eps
        self.generator = generator

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) features -> f~, of the same shape."""
        require(features.ndim == 2 and features.shape[1] >= 2, "features", "(B, D)", features)
        mu = features.mean(dim=1, keepdim=True)
        variance = features.var(dim=1, keepdim=True, correction=0)
        s = features.std(dim=1, keepdim=True).detach()  # of the noise: with D - 1, as released
        noise = torch.randn(
            2, *features.shape, generator=self.generator, dtype=features.dtype,
            device=features.device,
        )  # fmt: skip
        a = self.alpha_scale * (1 + s * noise[0])
        b = self.beta_scale * (mu.detach() + s * noise[1])
        return a * (features - mu) / torch.sqrt(variance + self.eps) + b  # (1)


class MultiGrainedUncertaintyLoss(nn.Module):
    """(4) for composed queries and their named targets.

    Args:
        gamma: how fast training turns to the named target; 0 never.
        scale: length of queries and targets.
        alpha_scale, beta_scale: of the noise, see ``NormalAugmenter``.
        generator: of the noise.
    """

    def __init__(
        self, *, gamma: float = 1.0, scale: float = 4.0, alpha_scale: float = 1.0,
        beta_scale: float = 1.0, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require(0 <= gamma < np.inf, "gamma", "at least 0", gamma)
        require(0 < scale < np.inf, "scale", "positive", scale)
        self.gamma, self.scale = gamma, scale
        self.alpha_scale, self.beta_scale, self.generator = alpha_scale, beta_scale, generator
        self.augment = NormalAugmenter(
            alpha_scale=alpha_scale, beta_scale=beta_scale, generator=generator
        )

    def forward(self, anchor: Tensor, positive: Tensor, *, progress: float = 0.0) -> Tensor:
        """Scalar loss of queries (B, D) and targets (B, D), of any length above 0.

        `progress` is epoch / epochs, in [0, 1]. Raises EtudeError outside it or for other shapes.
        """
        require(anchor.ndim == 2, "anchor", "(B, D)", anchor)
        require(positive.shape == anchor.shape, "positive", f"of shape {anchor.shape}", positive)
        require(0 <= progress <= 1, "progress", "in [0, 1]", progress)
        q = self.scale * normalize(anchor, dim=1)
        f = self.scale * normalize(positive, dim=1)
        g = float(np.exp(-self.gamma * progress))
        return g * self.uncertain(q, self.augment(f)) + (1 - g) * self.match(q, f)  # (4)

    def uncertain(self, q: Tensor, augmented: Tensor) -> Tensor:
        """(2) for given f~; both as they are."""
        u = augmented.std()
        return (torch.exp(-u) * self.match(q, augmented) + u) / 2  # (2)

    def match(self, q: Tensor, f: Tensor) -> Tensor:
        """(3); both as they are."""
        return cross_entropy(q @ f.T, torch.arange(len(q), device=q.device))  # (3)


class ComposedRetriever(nn.Module):
    """A query from an image's feature and a text's: the text scales and shifts the image.

    Args:
        dim: width of the image features.
        text_dim: width of the text features; 0 is `dim`.
    """

    def __init__(self, dim: int, *, text_dim: int = 0) -> None:
        super().__init__()
        require(dim >= 2, "dim", "at least 2", dim)
        require(text_dim >= 0, "text_dim", "at least 0", text_dim)
        self.style = nn.Linear(text_dim or dim, 2 * dim)
        self.gate = nn.Linear(text_dim or dim, 2 * dim)
        with torch.no_grad():  # at first nearly the image's own statistics
            self.style.bias.copy_(torch.cat([torch.ones(dim), torch.zeros(dim)]))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, D) and (B, D') -> (B, D), not normalized."""
        mu = image.mean(dim=1, keepdim=True)
        s = image.var(dim=1, keepdim=True, correction=0).add(1e-5).sqrt()
        at_rest, (mu, s) = (image - mu) / s, (mu.detach(), s.detach())  # what is kept is constant
        keep_s, keep_mu = torch.sigmoid(self.gate(text)).chunk(2, dim=1)
        scale, shift = self.style(text).chunk(2, dim=1)
        return (keep_s * s + scale) * at_rest + keep_mu * mu + shift
