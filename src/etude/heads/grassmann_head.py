r"""Give each class a subspace instead of a vector, and score a feature by its projection onto it.

A fully connected classifier has one vector a class, which pulls all features of the class to one
direction. Here class c is a point of a Grassmann manifold: a k-dimensional subspace of R^D, held
as an orthonormal basis S_c (D, k). Features may vary freely within the subspace:

    logit_c(x) = scale |S_c^T x / |x||                                               (1)

No bias, and no length of a class vector to learn; the loss is plain cross-entropy. k = 1 is
scale |cos|, k = D gives every class the same logit. The bases are learned by Riemannian SGD with
momentum. With G the Euclidean gradient, no weight decay on S, and t the step:

    M <- momentum M + G                                                              (2)
    H  = M - S S^T M                 the part of M tangent to the manifold at S      (3)
    S <- (S V cos(t Sigma) + U sin(t Sigma)) V^T,  H = U Sigma V^T,  t = -lr         (4)

(4) is the geodesic, so S^T S = I stays; every few updates a QR decomposition removes round-off.
Other parameters take ordinary SGD steps with the same lr and momentum.

Source: Wang, Li, Zhang, "Get the Best of Both Worlds: Improving Accuracy and Transferability by
Grassmann Class Representation", ICCV 2023, arXiv:2308.01547. The abstract, the introduction and
the authors' release were read; (2) to (4) are in the release's order (the buffer is projected at
the current S, and not transported).
Departures: (3) and (4) are computed in float64 whatever S has; the signs of a QR decomposition
are chosen so that no column turns over, where the release lets a column flip under its momentum.
`GrassmannProbe` learns the subspaces alone, for features that are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["GrassmannProbe", "GrassmannHead", "GrassmannSGD", "grassmann_retract"]

CARD = Card(
    slug="grassmann_head",
    family="heads",
    title="Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class "
    "Representation",
    year=2023,
    arxiv="2308.01547",
    move="Represent each class by a small subspace, score a feature by the length of its "
    "projection, and train the subspaces along the Grassmann manifold.",
    task="probe",
    claim="A network trained with class subspaces is more accurate than one with a fully "
    "connected softmax layer (a logistic regression on its features), and its features transfer "
    "better.",
    baseline="logistic_regression",
    metric="accuracy",
    better="higher",
    published="Release's table, ImageNet-1K top-1 in %, ResNet50-D: class vectors 78.05; subspaces "
    "of dimension 1: 78.42, 4: 78.68, 8: 79.26, 16: 79.21, 32: 78.63. Abstract: linear transfer "
    "over six data sets 77.98 to 79.70.",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="innerlee/GCR",
    departs=(
        "The signs of the QR decomposition keep the columns of a basis as they were.",
        "The geodesic is computed in float64.",
        "The probe learns the subspaces alone, on features that are frozen.",
    ),
    search={"subspace_dim": (4, 2, 8), "scale": (25.0, 10.0)},
    example={"dim": 8, "n_classes": 3, "subspace_dim": 2, "n_steps": 20},
)

BATCH = 64


def grassmann_retract(bases: Tensor, directions: Tensor, step: float) -> Tensor:
    """Equation (4): bases after `step` along the geodesics that start in `directions`.

    Args:
        bases: (..., D, k), orthonormal columns.
        directions: (..., D, k), tangent: bases^T directions = 0.
        step: t; negative to go against the direction.
    """
    require(bases.shape == directions.shape, "directions", "of the bases' shape", directions)
    U, sigma, Vh = torch.linalg.svd(directions, full_matrices=False)
    angle = (step * sigma)[..., None, :]
    moved: Tensor = (bases @ Vh.mT * angle.cos() + U * angle.sin()) @ Vh  # (4)
    return moved


def _orthonormalized(bases: Tensor) -> Tensor:
    """The Q factor whose R has a positive diagonal, so that it is near `bases`."""
    Q, R = torch.linalg.qr(bases)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Q)
    near: Tensor = Q * signs[..., None, :]
    return near


class GrassmannHead(nn.Module):
    """Equation (1). `bases` (n_classes, dim, subspace_dim) starts as the Q of a Gaussian.

    Train `bases` with `GrassmannSGD`: any other optimizer leaves the manifold.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        subspace_dim: int = 4,
        scale: float = 25.0,
        eps: float = 1e-6,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(dim, n_classes, subspace_dim, scale)
        require(eps > 0, "eps", "positive", eps)
        self.subspace_dim = subspace_dim
        self.scale = scale
        self.eps = eps
        gaussian = torch.randn(n_classes, dim, subspace_dim, generator=generator)
        self.bases = nn.Parameter(_orthonormalized(gaussian.double()).to(gaussian))

    def forward(self, features: Tensor) -> Tensor:
        """features (B, dim) -> logits (B, n_classes) in [0, scale]."""
        K, D, k = self.bases.shape
        require(features.shape[-1] == D, "features", f"of width {D}", features)
        x = F.normalize(features, dim=-1, eps=self.eps)
        projection = x @ self.bases.transpose(0, 1).reshape(D, K * k)
        squares = projection.reshape(*x.shape[:-1], K, k).square().sum(dim=-1)
        # The root has no gradient at 0, where the logit is 0: there it is taken of 1 instead.
        # "Not 0" and not "above 0", which would turn what is not a number into 0.
        length = torch.where(squares != 0, squares, 1.0).sqrt() * (squares != 0)
        logits: Tensor = self.scale * length  # (1)
        return logits


class GrassmannSGD(torch.optim.Optimizer):
    """Equations (2) to (4) for `bases`, SGD with momentum for `parameters`.

    Args:
        bases: parameters (..., D, k) with orthonormal columns.
        parameters: all others of the network; `weight_decay` acts on these alone.
        reorthonormalize_every: QR at the first update and at every so many after it.
    """

    def __init__(
        self,
        bases: Iterable[nn.Parameter],
        parameters: Iterable[nn.Parameter] = (),
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        reorthonormalize_every: int = 5,
    ) -> None:
        require(lr >= 0, "lr", "at least 0", lr)
        require(0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        require(weight_decay >= 0, "weight_decay", "at least 0", weight_decay)
        every = reorthonormalize_every
        require(every >= 1, "reorthonormalize_every", "at least 1", every)
        self.reorthonormalize_every = every
        groups = [
            {"params": list(bases), "weight_decay": 0.0, "grassmann": True},
            {"params": list(parameters), "weight_decay": weight_decay, "grassmann": False},
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                gradient = weight.grad + group["weight_decay"] * weight
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.mul_(group["momentum"]).add_(gradient)  # (2)
                if not group["grassmann"]:
                    weight.sub_(group["lr"] * buffer)
                    continue
                S, M = weight.double(), buffer.double()
                H = M - S @ (S.mT @ M)  # (3)
                S = grassmann_retract(S, H, -group["lr"])  # (4)
                n_updates = state.get("n_updates", 0)
                if n_updates % self.reorthonormalize_every == 0:
                    S = _orthonormalized(S)
                state["n_updates"] = n_updates + 1
                weight.copy_(S)
        return loss


class GrassmannProbe:
    """Class subspaces learned on frozen features: `GrassmannHead` trained by `GrassmannSGD`.

    Batches of 64 rows, `n_steps` of them; lr decays to 0 by a cosine. Features narrower than
    `subspace_dim` bound it. Fitted: `bases_` (n_classes, dim, subspace_dim).
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        subspace_dim: int = 4,
        scale: float = 25.0,
        lr: float = 0.1,
        momentum: float = 0.9,
        n_steps: int = 500,
        seed: int = 0,
    ) -> None:
        # Narrow features, such as a table of four columns, have no room for more directions.
        _check(dim, n_classes, min(subspace_dim, dim), scale)
        require(lr > 0, "lr", "positive", lr)
        require(0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        self.dim = dim
        self.n_classes = n_classes
        self.subspace_dim = subspace_dim
        self.scale = scale
        self.lr = lr
        self.momentum = momentum
        self.n_steps = n_steps
        self.seed = seed

    def fit(self, features: np.ndarray, target: np.ndarray) -> GrassmannProbe:
        """features (N, dim), target (N,) class ids -> self."""
        x = torch.from_numpy(np.array(features, dtype=np.float32))
        y = torch.from_numpy(np.array(target))
        shaped = x.ndim == 2 and x.shape[1] == self.dim and len(x) > 0
        require(shaped, "features", f"(N, {self.dim}), N > 0", features)
        require(bool(torch.isfinite(x).all()), "features", "finite", features)
        known = y.shape == x.shape[:1] and y.dtype == torch.int64
        known = known and int(y.min()) >= 0 and int(y.max()) < self.n_classes
        require(known, "target", f"(N,) int64 class ids below {self.n_classes}", target)
        generator = torch.Generator().manual_seed(self.seed)
        head = self._head(generator)
        optimizer = GrassmannSGD([head.bases], lr=self.lr, momentum=self.momentum)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(self.n_steps):
            if len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(x), generator=generator)])
            rows, order = order[:BATCH], order[BATCH:]
            optimizer.param_groups[0]["lr"] = (
                self.lr * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
            )
            loss = F.cross_entropy(head(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.bases_ = head.bases.detach().numpy().copy()
        return self

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, dim) -> (B, n_classes): (1)."""
        require(hasattr(self, "bases_"), "probe", "fitted: call fit first", "an unfitted one")
        head = self._head(torch.Generator())
        head.bases = nn.Parameter(torch.from_numpy(self.bases_))
        with torch.inference_mode():
            scores: np.ndarray = head(torch.from_numpy(np.array(features, np.float32))).numpy()
        return scores

    def _head(self, generator: torch.Generator) -> GrassmannHead:
        k = min(self.subspace_dim, self.dim)
        return GrassmannHead(
            self.dim, self.n_classes, subspace_dim=k, scale=self.scale, generator=generator
        )  # fmt: skip


def _check(dim: int, n_classes: int, subspace_dim: int, scale: float) -> None:
    require(dim >= 1, "dim", "at least 1", dim)
    require(n_classes >= 1, "n_classes", "at least 1", n_classes)
    require(1 <= subspace_dim <= dim, "subspace_dim", f"from 1 to dim = {dim}", subspace_dim)
    require(scale > 0 and math.isfinite(scale), "scale", "positive", scale)
