r"""Comp-sum losses: one exponent leads from sum-exponential past cross-entropy to mean error.

Cross-entropy is a concave function of the sum of exponentiated score differences. Keep the sum
and vary the function, and one family holds most surrogates of classification. With h the logits:

    u(h, x, y) = sum_{y' != y} exp(h(x, y') - h(x, y)) = 1 / p_y - 1                       (1)
    Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau),   log(1 + u) at tau = 1              (2)
    loss = Phi_tau(u)                                                                      (3)

tau = 0 is the sum-exponential loss, 1 cross-entropy, 1 < tau < 2 generalized cross-entropy with
q = tau - 1, 2 the mean absolute error 1 - p_y. The slope in log p_y is p_y^(tau - 1): a larger
tau listens less to examples that the model finds unlikely, so it forgives wrong labels, and
learns slowly where every probability is still small. An H-consistency bound says what a small
loss is worth. With R the risks, R* their best values within H, M the minimizability gaps:

    R_01 - R*_01 + M_01 <= T_tau^-1(R_loss - R*_loss + M_loss)                             (4)

`h_consistency_transform` computes T_tau, formulas at the code. Against attacks, a smooth term is
added; D_h(x, y) are the margins h(x, y) - h(x, y') and rho their scale:

    Phi_tau(sum exp(-D_h(x, y) / rho)) + nu max_{|x' - x| <= gamma} |D_h(x', y) - D_h(x, y)|_2   (5)

Source: Mao, Mohri, Zhong, "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
ICML 2023, arXiv:2304.07288.
Not found in the paper: the full text could not be read. (2) and T_tau were checked numerically
(inequality and equality cases are in the tests); in (5), where nu stands and the threshold
nu >= sqrt(K - 1) / rho, from which it bounds the adversarial margin loss, are derived here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["CompSumLoss", "SmoothAdversarialCompSumLoss", "h_consistency_transform"]

CARD = Card(
    slug="comp_sum_loss",
    family="losses",
    title="Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
    year=2023,
    arxiv="2304.07288",
    move="vary the concave function around cross-entropy's sum of exponentials by one exponent",
    task="train",
    claim="with 40 % of the training labels wrong, a comp-sum loss whose tau is chosen on noisy "
    "validation labels is more accurate than cross-entropy with tuned label smoothing",
    baseline="cross_entropy",
    metric="accuracy",
    better="higher",
    published="abstract: adversarial algorithms built on these losses outperform the state of the "
    "art in robust accuracy, with better clean accuracy; it gives no number and no label noise",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    departs=(
        "For tau < 1, where (1 + u)^(1 - tau) would exceed e^30 (e^10 for float16 logits), the "
        "loss goes on along its tangent in log p_y, so that value and gradient stay finite.",
        "The attack of the smooth adversarial loss is for the max norm only.",
    ),
    search={"tau": (1.5, 1.0, 1.2, 1.8)},
    example={"tau": 1.5},
)


def _comp_sum(logits: Tensor, target: Tensor, tau: float) -> Tensor:
    """Equation (3) per row: (B, K), (B,) -> (B,); half precision is raised to float32."""
    require(logits.ndim == 2, "logits", "of shape (B, K)", logits)
    require(target.shape == logits.shape[:1], "target", "(B,) class ids, one a row", target)
    cap = min(30.0, math.log(torch.finfo(logits.dtype).max) - 1)
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    log_p = wide.log_softmax(dim=1).gather(1, target[:, None])[:, 0]  # log 1 / (1 + u) of (1)
    if tau == 1:
        return -log_p
    exponent = (tau - 1) * log_p  # (1 + u)^(1 - tau) is its exponential
    beyond = (exponent - cap).clamp(min=0)
    power = torch.expm1(exponent - beyond) + math.exp(cap) * beyond
    return power / (1 - tau)  # (2)


class CompSumLoss(nn.Module):
    """Equation (3). `tau`: exponent of (2), >= 0; 1 is cross-entropy.

    Raises:
        EtudeError: negative `tau`.
    """

    def __init__(self, *, tau: float = 1.5) -> None:
        super().__init__()
        require(math.isfinite(tau) and tau >= 0, "tau", "a number from 0 on", tau)
        self.tau = tau

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"tau={self.tau}"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (B, K), target (B,) int64 -> mean loss over the batch (nats at tau = 1).

        float16 and bfloat16 logits are computed, and answered, in float32.
        """
        return _comp_sum(logits, target, self.tau).mean()


def h_consistency_transform(
    gap: np.ndarray | float, *, tau: float = 1.0, n_classes: int = 2, inverse: bool = False
) -> np.ndarray:
    """T_tau of (4): the least surrogate regret that a zero-one regret costs; or its inverse.

    Args:
        gap: any shape; zero-one regrets in [0, 1], or surrogate regrets >= 0 with `inverse`.
        tau: exponent of the loss.
        n_classes: K; matters for tau > 1 only.
        inverse: give the largest zero-one regret that a surrogate regret allows, at most 1.

    Returns:
        float64 array of the shape of `gap`.

    Raises:
        EtudeError: a value outside its range.
    """
    require(math.isfinite(tau) and tau >= 0, "tau", "a number from 0 on", tau)
    require(n_classes >= 2, "n_classes", "at least 2", n_classes)
    b = np.asarray(gap, dtype=np.float64)
    require(bool((b >= 0).all()), "gap", "non-negative", gap)
    if not inverse:
        require(bool((b <= 1).all()), "gap", "a zero-one regret in [0, 1]", gap)
        return _transform(b, tau, n_classes)
    low, high = np.zeros_like(b), np.ones_like(b)
    for _ in range(60):  # T_tau increases, so halving finds its inverse
        middle = (low + high) / 2
        below = _transform(middle, tau, n_classes) < b
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    full = _transform(np.ones_like(b), tau, n_classes)
    return np.asarray(np.where(full <= b, 1.0, (low + high) / 2))


def _transform(b: np.ndarray, tau: float, n_classes: int) -> np.ndarray:
    if tau >= 2:
        return np.asarray(b / ((tau - 1) * n_classes ** (tau - 1)))
    if tau == 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            low = np.where(b < 1, (1 - b) / 2 * np.log1p(-b), 0.0)
        return np.asarray((1 + b) / 2 * np.log1p(b) + low)
    root = 1 / (2 - tau)
    mean = (((1 + b) ** root + (1 - b) ** root) / 2) ** (2 - tau)
    if tau < 1:
        return np.asarray(2 ** (1 - tau) / (1 - tau) * (1 - mean))
    return np.asarray((mean - 1) / ((tau - 1) * n_classes ** (tau - 1)))


class SmoothAdversarialCompSumLoss(nn.Module):
    """Equation (5), its maximum sought by projected gradient steps on the margins' distance.

    Args:
        tau: exponent of (2).
        temperature: rho in (5); margins are divided by it.
        smooth_weight: nu in (5); None takes sqrt(K - 1) / rho, from which (5) is a bound.
        radius: gamma in (5), the max-norm radius of the attack, in units of `x`.
        n_steps: gradient steps of the attack.
        step_size: length of a step; None takes 2.5 `radius` / `n_steps`.
        bounds: least and largest legal value of `x`, or None.
        generator: of the attack's random start.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self,
        *,
        tau: float = 1.0,
        temperature: float = 1.0,
        smooth_weight: float | None = None,
        radius: float = 8 / 255,
        n_steps: int = 10,
        step_size: float | None = None,
        bounds: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(math.isfinite(tau) and tau >= 0, "tau", "a number from 0 on", tau)
        require(temperature > 0, "temperature", "positive", temperature)
        require(radius >= 0, "radius", "non-negative", radius)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        require(
            smooth_weight is None or smooth_weight >= 0,
            "smooth_weight", "None or non-negative", smooth_weight,
        )  # fmt: skip
        self.tau, self.temperature, self.smooth_weight = tau, temperature, smooth_weight
        self.radius, self.n_steps, self.bounds = radius, n_steps, bounds
        self.step_size = 2.5 * radius / n_steps if step_size is None else step_size
        self.generator = generator

    def forward(self, network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """network: x (B, ...) -> logits (B, K); target (B,) int64 -> mean of (5) over the batch."""
        worst = self.attack(network, x, target)
        clean = network(x)
        weight = self.smooth_weight
        if weight is None:
            weight = math.sqrt(clean.shape[1] - 1) / self.temperature
        base = _comp_sum(clean / self.temperature, target, self.tau)
        return (base + weight * _margin_shift(network(worst), clean, target)).mean()  # (5)

    def attack(self, network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The x' of (5), as far as the gradient steps find it; same shape as `x`, no gradient."""
        with torch.no_grad():
            clean = network(x)
            # the distance has no gradient at x itself, so the search starts beside it
            noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)
            moved = self._project(x + self.radius * (2 * noise - 1), x)
        for _ in range(self.n_steps):
            with torch.enable_grad():
                moved.requires_grad_(True)
                shift = _margin_shift(network(moved), clean, target).sum()
                (slope,) = torch.autograd.grad(shift, moved)
            moved = self._project(moved.detach() + self.step_size * slope.sign(), x)
        return moved

    def _project(self, moved: Tensor, x: Tensor) -> Tensor:
        near = torch.minimum(torch.maximum(moved, x - self.radius), x + self.radius).detach()
        return near if self.bounds is None else near.clamp(*self.bounds)


def _margin_shift(moved: Tensor, clean: Tensor, target: Tensor) -> Tensor:
    """|D_h(x', y) - D_h(x, y)|_2 per row; the entry y' = y is 0 and adds nothing."""
    change = moved - clean
    margins = change.gather(1, target[:, None]) - change
    norm: Tensor = torch.linalg.vector_norm(margins, dim=1)
    return norm
