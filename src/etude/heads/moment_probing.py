r"""Probe the tokens' second moments beside their mean.

A linear probe reads one vector g a sample: the class token, or the average of the tokens. It is
blind to how tokens vary together. Moment probing adds v, made of second moments, at a small cost:

    logits = (W1 g + b1 + W2 v + b2) / 2                                             (1)

v comes from a multi-head convolutional cross-covariance. Tokens are projected to `hidden_dim`
channels and cut into h heads of width w, each normalized by one LayerNorm shared by all heads,
giving X_1..X_h (N, w). Only neighboring heads meet, and each column gets unit length:

    C_i = X_i^T X_{i+1} / N,    i = 1..h-1                                           (2)
    C_i[:, b] <- C_i[:, b] / |C_i[:, b]|                                             (3)

The h-1 maps (w, w) are the channels of an image which two convolutions shrink (3 x 3, stride 2,
no padding, no bias, GELU between); flattened, that is v:

    v = conv(GELU(conv([C_1, ..., C_{h-1}])))                                        (4)

In the paper hidden_dim = 512 and h = 4: w = 128 -> 63 -> 31, and v has 3 * 31^2 = 2,883 numbers.
MP+ also recalibrates the frozen backbone, where a block's MLP is added to its attention's output
x, by two maps that share their lower layer (PSRP):

    x <- x + (1 + s) * MLP(LN(x)) + b,    s = U1 relu(D x),    b = U2 relu(D x)      (5)

Source: Gao, Wang, Lin, Zhu, Hu, Zhou, "Tuning Pre-trained Model via Moment Probing", ICCV 2023,
arXiv:2307.11342; the introduction and the authors' release were read.
Departures: hidden_dim defaults to 128, for small data; U1 and U2 start at zero, so that the
backbone starts unchanged; heads are contiguous channels for convolutional features too (the
release interleaves them there, which the learned projection can undo).
Not found in the text that could be read: whether moments are centered. The release subtracts one
scalar a sample and head, the mean over tokens and channels, which is zero after a new LayerNorm.
That is the default here; `center` also offers "channel", the true covariance, and "none".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, refuse, require

__all__ = ["MomentProbe", "MultiHeadCrossCovariance", "PSRP"]

CARD = Card(
    slug="moment_probing",
    family="heads",
    title="Tuning Pre-trained Model via Moment Probing",
    year=2023,
    arxiv="2307.11342",
    move="Add to the linear probe a second one on cross-moments of the tokens, kept small by "
    "heads that only meet their neighbor and by two strided convolutions.",
    task="probe",
    claim="Where classes share their mean and differ in the covariance of their tokens, moment "
    "probing is more accurate than a logistic regression on bilinear pooling of the tokens.",
    baseline="bilinear_pooling",
    metric="accuracy",
    better="higher",
    published="README, ImageNet-1K top-1 in %, ViT-B/16 pretrained on ImageNet-21K: linear probe "
    "82.04, MP 83.15, full fine-tuning 83.58, MP+ 83.62.",
    fidelity="full",
    cost="L",
    data=("digits", "fashion_mnist"),
    code="mingzeG/Moment-Probing",
    departs=(
        "The default hidden width is 128 instead of 512.",
        "The up-projections of the recalibration start at zero.",
        "Heads are contiguous channels for convolutional features too.",
    ),
    search={"lr": (3e-3, 1e-3, 1e-2), "hidden_dim": (128, 64)},
    example={"dim": 6, "n_classes": 3, "hidden_dim": 32},
)

CENTERS = ("scalar", "channel", "none")
SMALLEST = 7  # 7 -> 3 -> 1: the least width that two 3 x 3 convolutions with stride 2 leave


def _halved(width: int) -> int:
    """The width that a 3-wide convolution with stride 2 and no padding leaves."""
    return (width - 3) // 2 + 1


class MultiHeadCrossCovariance(nn.Module):
    """Equations (2) to (4): tokens (B, T, dim) -> v (B, out_dim).

    `hidden_dim` must be `n_heads` times at least 7. `out_dim` is (n_heads - 1) times the square
    of the width after both convolutions: 147 by default, 2,883 for 512 and 4.
    """

    def __init__(
        self, dim: int, *, hidden_dim: int = 128, n_heads: int = 4, center: str = "scalar"
    ) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        require(n_heads >= 2, "n_heads", "at least 2, since heads meet in pairs", n_heads)
        require(hidden_dim % n_heads == 0, "hidden_dim", f"a multiple of {n_heads}", hidden_dim)
        width = hidden_dim // n_heads
        if width < SMALLEST:
            rule = f"at least {SMALLEST * n_heads} for {n_heads} heads, so that each has {SMALLEST}"
            refuse(
                "hidden_dim", f"{rule} channels for two 3x3 convolutions of stride 2", hidden_dim
            )
        require(center in CENTERS, "center", f"one of {', '.join(CENTERS)}", center)
        self.hidden_dim = hidden_dim
        self.n_heads = n_heads
        self.center = center
        self.out_dim = (n_heads - 1) * _halved(_halved(width)) ** 2
        self.projection = nn.Linear(dim, hidden_dim)
        self.norm = nn.LayerNorm(width)
        maps = n_heads - 1
        self.shrink = nn.Sequential(
            nn.Conv2d(maps, maps, 3, stride=2, bias=False),
            nn.GELU(),
            nn.Conv2d(maps, maps, 3, stride=2, bias=False),
        )

    def moments(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, dim) -> the normalized maps (B, n_heads - 1, w, w) of (3)."""
        heads = self.projection(tokens).unflatten(2, (self.n_heads, -1))  # (B, T, h, w)
        X = self.norm(heads).transpose(1, 2)  # (B, h, T, w)
        if self.center != "none":
            X = X - X.mean(dim=2 if self.center == "channel" else (2, 3), keepdim=True)
        C = X[:, :-1].transpose(2, 3) @ X[:, 1:] / X.shape[2]  # (2)
        return F.normalize(C, dim=2)  # (3)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, dim) -> v (B, out_dim)."""
        v: Tensor = self.shrink(self.moments(tokens)).flatten(1)  # (4)
        return v


class MomentProbe(nn.Module):
    """Equation (1) on frozen tokens; the linear probe and the moment probe are trained together.

    `class_token` True: the first token is the class token, which is g as it is and has no part in
    the moments (as in the release for a ViT). False: g is the LayerNorm of the tokens' average
    (as in the release for a CNN). Others as in `MultiHeadCrossCovariance`.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        hidden_dim: int = 128,
        n_heads: int = 4,
        center: str = "scalar",
        class_token: bool = False,
    ) -> None:
        super().__init__()
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.n_heads = n_heads
        self.center = center
        self.class_token = class_token
        self.second = MultiHeadCrossCovariance(
            dim, hidden_dim=hidden_dim, n_heads=n_heads, center=center
        )
        self.first = nn.Identity() if class_token else nn.LayerNorm(dim, eps=1e-6)
        self.W1 = nn.Linear(dim, n_classes)
        self.W2 = nn.Linear(self.second.out_dim, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, dim) -> logits (B, n_classes); T at least 2 with a class token."""
        fits = tokens.ndim == 3 and tokens.shape[2] == self.dim
        require(fits, "tokens", f"(B, T, {self.dim})", tokens)
        least = 2 if self.class_token else 1
        require(tokens.shape[1] >= least, "tokens", f"at least {least} a sample", tokens)
        g, words = tokens.mean(dim=1), tokens
        if self.class_token:
            g, words = tokens[:, 0], tokens[:, 1:]
        logits: Tensor = (self.W1(self.first(g)) + self.W2(self.second(words))) / 2  # (1)
        return logits


class PSRP(nn.Module):
    """Equation (5): a residual block's branch, recalibrated token by token.

    D has `hidden_dim` outputs (16 in the release); D, U1 and U2 have no bias.
    """

    def __init__(self, dim: int, *, hidden_dim: int = 16) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        self.hidden_dim = hidden_dim
        self.D = nn.Linear(dim, hidden_dim, bias=False)
        self.U1 = nn.Linear(hidden_dim, dim, bias=False)
        self.U2 = nn.Linear(hidden_dim, dim, bias=False)
        nn.init.zeros_(self.U1.weight)
        nn.init.zeros_(self.U2.weight)

    def forward(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """x (..., dim), the frozen branch `network` (MLP after LN) -> the block's output."""
        r = torch.relu(self.D(x))
        s, b = self.U1(r), self.U2(r)
        y: Tensor = x + ((1 + s) * network(x) + b)  # (5)
        return y
