r"""Bias loss: weight each example by how varied its last feature maps are.

A very small network often has nothing to say about an image: its last feature maps are nearly
flat, and whatever it predicts is a guess. Learning from such guesses misleads it. Let the
examples whose maps vary count for more. With F_i the (C, H, W) activations of sample i before
they are pooled, and no slope through any of (1) to (3):

    var_i = variance of all C H W entries of F_i (divided by C H W - 1)                    (1)
    v_i = (var_i - m) / (max_batch var - min_batch var)                                    (2)
    z_i = exp(alpha v_i) - beta                                                            (3)
    loss = mean_i z_i CE_i                                                                 (4)

m is the least variance of the batch (`scope` "local"), or the least that training has seen so far
("global"), where v may exceed 1. The released code has z_i = exp(beta v_i) - 1 + alpha instead of
(3): with its alpha = beta = 0.3 the weights run from 0.3 to 0.65 where those of (3) run from 0.7
to 1.05, so it is also a shorter step. `form` names which; compare at an equal mean weight.

Source: Abrahamyan, Ziatchin, Chen, Deligiannis, "Bias Loss for Mobile Neural Networks", ICCV 2021,
arXiv:2107.11170.
Not found in the paper: its equations could not be read; (3) is the form that others quote, the
released form was read in copies of the released class.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["BiasLoss", "SkipBlock", "feature_variance_weight"]

CARD = Card(
    slug="bias_loss",
    family="losses",
    title="Bias Loss for Mobile Neural Networks",
    year=2021,
    arxiv="2107.11170",
    move="weight each example's cross-entropy by the variance of its last feature maps",
    task="train",
    claim="a very small convolutional network trained by the bias loss is more accurate on "
    "Fashion-MNIST with a tenth of the images blurred than one trained by cross-entropy, at an "
    "equal mean weight",
    baseline="cross_entropy",
    metric="accuracy",
    better="higher",
    published="abstract: SkipNet-M has 1 % higher accuracy than MobileNetV3-Large (on ImageNet); "
    "network and loss both differ",
    fidelity="full",
    cost="M",
    data=("fashion_mnist",),
    code="lusinlu/biasloss-skipnet",
    departs=(
        "Where all variances of a batch are equal, or it holds one sample, v is 0; the "
        "released code divides by zero.",
        "The least variance seen is updated in training only.",
    ),
    search={"alpha": (0.3, 0.1, 0.6), "beta": (0.3, 0.0)},
)


def feature_variance_weight(
    variances: Tensor,
    lowest: Tensor | None = None,
    *,
    alpha: float = 0.3,
    beta: float = 0.3,
    form: str = "paper",
) -> Tensor:
    """Equations (2) and (3): (B,) variances -> (B,) weights, without gradient.

    `lowest` is m, None for the batch's own least; `form` is "paper" or "code".

    Raises:
        EtudeError: variances not (B,), or an unknown form.
    """
    require(variances.ndim == 1 and len(variances) > 0, "variances", "of shape (B,)", variances)
    require(form in ("paper", "code"), "form", "'paper' or 'code'", form)
    var = variances.detach()
    low = var.min()
    span = var.max() - low
    rise = var - (low if lowest is None else lowest.to(var.dtype))
    v = torch.where(span > 0, rise / torch.where(span > 0, span, 1), torch.zeros_like(var))  # (2)
    if form == "code":
        return torch.exp(beta * v) - 1 + alpha
    return torch.exp(alpha * v) - beta  # (3)


class BiasLoss(nn.Module):
    """Equation (4).

    Args:
        alpha, beta: of (3), or of the released form.
        scope: "global" or "local", what m is.
        form: "paper" or "code".

    Raises:
        EtudeError: a value outside its range.
    """

    lowest: Tensor

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.3,
        scope: str = "global",
        form: str = "paper",
    ) -> None:
        super().__init__()
        require(math.isfinite(alpha) and alpha >= 0, "alpha", "a number from 0 on", alpha)
        require(math.isfinite(beta) and beta >= 0, "beta", "a number from 0 on", beta)
        require(scope in ("global", "local"), "scope", "'global' or 'local'", scope)
        require(form in ("paper", "code"), "form", "'paper' or 'code'", form)
        self.alpha, self.beta, self.scope, self.form = alpha, beta, scope, form
        self.register_buffer("lowest", torch.tensor(math.inf))

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"alpha={self.alpha}, beta={self.beta}, scope={self.scope!r}, form={self.form!r}"

    def forward(self, embeddings: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """embeddings (B, ...) last activations, logits (B, K), target (B,) -> mean of (4).

        float16 and bfloat16 are computed, and answered, in float32.
        """
        require(logits.ndim == 2, "logits", "of shape (B, K)", logits)
        require(target.shape == logits.shape[:1], "target", "(B,) class ids, one a row", target)
        require(
            embeddings.ndim >= 2 and len(embeddings) == len(logits),
            "embeddings", "of shape (B, ...), one sample a row of logits", embeddings,
        )  # fmt: skip
        wide = torch.promote_types(logits.dtype, torch.float32)
        z = self.weights(embeddings).to(wide)
        return (z * F.cross_entropy(logits.to(wide), target, reduction="none")).mean()  # (4)

    @torch.no_grad()
    def weights(self, embeddings: Tensor) -> Tensor:
        """(B, ...) activations -> (B,) weights z of (3); in training, m learns of the batch."""
        flat = embeddings.flatten(1)
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        var = flat.var(dim=1) if flat.shape[1] > 1 else torch.zeros_like(flat[:, 0])  # (1)
        lowest = None
        if self.scope == "global":
            lowest = torch.minimum(self.lowest.to(var.dtype), var.min())
            if self.training:
                self.lowest.copy_(lowest)
        return feature_variance_weight(
            var, lowest, alpha=self.alpha, beta=self.beta, form=self.form
        )


class SkipBlock(nn.Module):
    """Bring early feature maps to a late layer: pool, 1 x 1 convolution, add.

    The companion network's idea, that late maps vary more where they see early ones: the early
    maps are averaged down to the late size and projected to its channels.

    Args:
        n_early, n_late: channels of both maps.

    Raises:
        EtudeError: a number below 1.
    """

    def __init__(self, n_early: int = 8, n_late: int = 16) -> None:
        super().__init__()
        require(n_early >= 1, "n_early", "at least 1", n_early)
        require(n_late >= 1, "n_late", "at least 1", n_late)
        self.project = nn.Conv2d(n_early, n_late, 1, bias=False)

    def forward(self, early: Tensor, late: Tensor) -> Tensor:
        """early (B, n_early, H, W), late (B, n_late, h, w) -> (B, n_late, h, w)."""
        small = F.adaptive_avg_pool2d(early, late.shape[-2:])
        total: Tensor = late + self.project(small)
        return total
