r"""Label-distributionally robust losses: hedge against the label by its worst-case reweighting.

A given label may be wrong. So let an adversary spread weights p over the K classes and charge the
gap of each class k to the labeled one, y, but make it pay for leaving the uniform weights. With
scores f, a margin c and a temperature lambda,

    L(f, y) = max_p sum_k p_k (f_k - f_y + c [k != y]) - lambda KL(p | 1/K)                (1)
            = lambda log( 1/K sum_k exp((f_k - f_y + c [k != y]) / lambda) )               (2)

lambda = 1, c = 0 is cross-entropy minus log K; lambda -> 0 is the hinge loss of Crammer and
Singer; lambda -> infinity is a mean over k, whose sum over all y does not depend on f: such a
symmetric loss forgives uniform label noise, and learns slowly. Each sample can have its own
lambda_i, tied to lambda_0 by a quadratic penalty in the maximization; that has a closed form too:

    f <- f / (1/K sum_k |f_k|)                                                             (3)
    p_i = softmax(f_i / lambda_i),  lambda_i <- lambda_0 (1 - KL(p_i | 1/K) / (alpha log K))  (4)
    L_i = L(f_i, y_i) at lambda_i - alpha log K / (2 lambda_0) (lambda_i - lambda_0)^2     (5)

As 0 <= KL <= log K, lambda_i stays between (1 - 1/alpha) lambda_0, where the network is sure, and
lambda_0. It is remembered by sample, updated once a visit, and no gradient flows through it; one
does flow through the denominator of (3). (4) does not see the label.

Source: Zhu, Ying, Yang, "Label Distributionally Robust Losses for Multi-class Classification:
Consistency, Robustness and Adaptivity", ICML 2023, arXiv:2112.14869; released code
Optimization-AI/ICML2023_LDR.
Departures: (2) is computed by log1p and expm1 about the largest term, exact for any lambda; the
denominator of (3) is at least 1e-6 (1.5e-4 for float16), so that scores of all zeros are no error.
Not found in the paper: its text beyond the introduction could not be read. (3), the smoothing of
p_i by 1e-5, and that p_i contains no margin are the release's; so are the softplus in place of
the absolute value in the loss with one lambda, and c = 0.1, lambda_0 = 10, alpha = 2 of its runs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["ALDRKLLoss", "LDRKLLoss"]

CARD = Card(
    slug="label_dro_loss",
    family="losses",
    title="Label Distributionally Robust Losses for Multi-class Classification: Consistency, "
    "Robustness and Adaptivity",
    year=2023,
    arxiv="2112.14869",
    move="hedge against a wrong label by its worst-case reweighting, at a temperature that each "
    "sample sets for itself",
    task="train",
    claim="averaged over clean labels, 30 % and 60 % uniform and 30 % class-dependent label noise "
    "on digits, training with ALDR-KL is more accurate than with cross-entropy and tuned label "
    "smoothing, both chosen on noisy validation labels",
    baseline="cross_entropy",
    metric="accuracy",
    better="higher",
    published="abstract: stable and competitive performance on 7 data sets under 6 noisy and 1 "
    "clean settings against 13 loss functions; it gives no number",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="Optimization-AI/ICML2023_LDR",
    departs=(
        "The denominator that normalizes the scores is at least 1e-6 (1.5e-4 for float16).",
        "Without sample indices every visit counts as the first: lambda_i starts at lambda_0.",
    ),
    search={"temperature": (10.0, 1.0, 0.1), "margin": (0.1, 1.0)},
    example={"temperature": 10.0, "n_samples": 12},
)

NORMALIZERS = ("mean_abs", "softplus", "none")
FLOOR = 1e-5  # added to every p_k of (4), as in the release


def _scaled(logits: Tensor, normalize: str) -> Tensor:
    """Equation (3) by row: (B, K) -> (B, K); half precision is raised to float32."""
    f = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if normalize == "none":
        return f
    if normalize == "softplus":
        f = F.softplus(f)
    floor = max(1e-6, 10 / torch.finfo(logits.dtype).max)  # its inverse fits the gradient's type
    return f / f.abs().mean(dim=1, keepdim=True).clamp(min=floor)  # (3)


def _worst_case(f: Tensor, target: Tensor, lam: Tensor | float, margin: float) -> Tensor:
    """Equation (2) per row: f (B, K), target (B,), lam a number or (B, 1) -> (B,)."""
    at_target = f.gather(1, target[:, None])
    gap = f - at_target + margin * (1 - F.one_hot(target, f.shape[1]).to(f.dtype))
    top = gap.amax(dim=1, keepdim=True).detach()  # cancels from value and gradient
    mean = torch.expm1((gap - top) / lam).mean(dim=1, keepdim=True)
    return (top + lam * torch.log1p(mean))[:, 0]  # (2)


def _check(temperature: float, margin: float, normalize: str) -> None:
    fits = math.isfinite(temperature) and temperature > 0
    require(fits, "temperature", "a positive number", temperature)
    require(math.isfinite(margin) and margin >= 0, "margin", "a number from 0 on", margin)
    require(normalize in NORMALIZERS, "normalize", f"one of {', '.join(NORMALIZERS)}", normalize)


def _check_batch(logits: Tensor, target: Tensor) -> None:
    require(logits.ndim == 2 and logits.shape[1] >= 2, "logits", "of shape (B, K), K >= 2", logits)
    require(target.shape == logits.shape[:1], "target", "(B,) class ids, one a row", target)


class LDRKLLoss(nn.Module):
    """Equation (2), one lambda for all samples.

    Args:
        temperature: lambda.
        margin: c, in units of the normalized scores.
        normalize: "softplus" divides softplus(f) by its row's mean, "mean_abs" is (3), "none"
            takes the logits as they are.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self, *, temperature: float = 10.0, margin: float = 0.1, normalize: str = "softplus"
    ) -> None:
        super().__init__()
        _check(temperature, margin, normalize)
        self.temperature, self.margin, self.normalize = temperature, margin, normalize

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (B, K), target (B,) int64 -> mean loss over the batch, in units of the scores.

        float16 and bfloat16 logits are computed, and answered, in float32.
        """
        _check_batch(logits, target)
        f = _scaled(logits, self.normalize)
        return _worst_case(f, target, self.temperature, self.margin).mean()


class ALDRKLLoss(nn.Module):
    """Equations (3) to (5). The buffer `lambdas` (N,) remembers each sample's lambda_i.

    Args:
        temperature: lambda_0, also the first lambda_i of every sample.
        margin: c, in units of the normalized scores.
        alpha: strength of the tie to lambda_0, above 1; large gives one lambda for all.
        normalize: "mean_abs" is (3), "softplus" divides softplus(f) by its row's mean, "none"
            takes the logits as they are.
        n_samples: N, the rows of the training set; 0 remembers nothing.

    Raises:
        EtudeError: a value outside its range.
    """

    lambdas: Tensor

    def __init__(
        self,
        *,
        temperature: float = 10.0,
        margin: float = 0.1,
        alpha: float = 2.0,
        normalize: str = "mean_abs",
        n_samples: int = 0,
    ) -> None:
        super().__init__()
        _check(temperature, margin, normalize)
        require(math.isfinite(alpha) and alpha > 1, "alpha", "a number above 1", alpha)
        require(n_samples >= 0, "n_samples", "0 or the rows of the training set", n_samples)
        self.temperature, self.margin, self.alpha = temperature, margin, alpha
        self.normalize, self.n_samples = normalize, n_samples
        self.register_buffer("lambdas", torch.full((n_samples,), float(temperature)))

    def forward(self, logits: Tensor, target: Tensor, indices: Tensor | None = None) -> Tensor:
        """logits (B, K), target (B,) int64 -> mean of (5) over the batch, in units of the scores.

        `indices` (B,) int64 are the samples' places in the training set; in training mode the
        new lambda_i are stored there. float16 and bfloat16 logits are computed, and answered,
        in float32.
        """
        _check_batch(logits, target)
        f = _scaled(logits, self.normalize)
        before = f.new_full((len(f), 1), self.temperature)
        if indices is not None:
            require(indices.shape == target.shape, "indices", "(B,), one a row", indices)
            inside = bool(((indices >= 0) & (indices < self.n_samples)).all())
            require(inside, "indices", f"in 0..n_samples - 1 = {self.n_samples - 1}", indices)
            before = self.lambdas[indices, None].to(f.dtype)
        log_k = math.log(f.shape[1])
        with torch.no_grad():
            p = F.normalize((f / before).softmax(dim=1) + FLOOR, p=1.0, dim=1)
            kl = (p * p.log()).sum(dim=1, keepdim=True) + log_k
            lam = self.temperature * (1 - kl / (self.alpha * log_k))  # (4)
            if indices is not None and self.training:
                self.lambdas[indices] = lam[:, 0].to(self.lambdas.dtype)
        tie = self.alpha * log_k / (2 * self.temperature) * (lam[:, 0] - self.temperature) ** 2
        return (_worst_case(f, target, lam, self.margin) - tie).mean()  # (5)
