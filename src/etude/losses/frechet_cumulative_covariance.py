r"""Fréchet cumulative covariance: learn directions from the order of distances alone.

A response that is a direction, a distribution or a matrix has no mean to regress on, but it has
distances d. Draw a ball around one response Y' with another, Y'', on its edge: a summary f(X)
that tells something of Y is on average different inside the ball. With F the summaries of n
samples, centered, and balls around every k through every j:

    FCCov(f | Y) = E over Y', Y'' of Cov(f(X), 1{d(Y, Y') < d(Y'', Y')})^2                 (1)
    c_jk = (1/n) sum_i F_i 1{d_ik < d_jk}                                                  (2)
    M = (1/n^2) sum_jk c_jk c_jk^T                                                         (3)
    loss = -trace(M) + lambda |Cov(f(X)) - I|_F^2                                          (4)

Only the order of the distances to each center counts, so a response that is very far away does
little harm, and any increasing transformation of d gives the same M. One sort a center and sums
along it give (2) for every j in O(n^2 log n). Without the second term of (4) the scale of f would
grow without bound.

What is found is a function of the index behind Y, not the index: M(F A) = A^T M(F) A, so that no
rotation is told from another, and one direction may come out even in the index: where responses
have long tails, "near the center or far out" tells as much of the balls as the index itself. So
learn more directions than the index has, and score them by what no rotation changes, such as the
distance correlation with the index.

Source: Yuan, Wang, Yu, "Fréchet Cumulative Covariance Net for Deep Nonlinear Sufficient Dimension
Reduction with Random Objects", 2025, arXiv:2502.15374.
Not found in the paper: only its abstract and introduction and descriptions by others could be
read, and no code is released. The square in (1) is needed, else balls cancel; lambda, the
network's sizes, Adam and the simulated models are ours, and the terms j = k are kept (they are 0:
no distance is below 0).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from etude.core import Card, EtudeError, require

__all__ = ["FCCovNet", "FCCovLoss", "fccov", "metric_responses", "response_distances"]

CARD = Card(
    slug="frechet_cumulative_covariance",
    family="losses",
    title="Fréchet Cumulative Covariance Net for Deep Nonlinear Sufficient Dimension Reduction "
    "with Random Objects",
    year=2025,
    arxiv="2502.15374",
    move="learn a summary by how its mean changes inside balls of responses, of which only the "
    "order of distances counts",
    task="experiment",
    claim="with a tenth of the responses far outliers, the directions that the Fréchet cumulative "
    "covariance finds tell more of the true index than those of kernel dimension reduction",
    baseline="kernel_reduction",
    metric="distance_correlation",
    better="higher",
    published="",
    fidelity="full",
    cost="M",
    departs=("The network has two hidden layers; the convolutional one is left to the caller.",),
    search={"penalty": (0.1, 1.0, 0.03)},
    example={"n_steps": 5},
)
METRICS = ("euclidean", "sphere", "wasserstein", "spd")


def fccov(embeddings: Tensor, distances: Tensor) -> Tensor:
    """Equation (3): embeddings (n, d), distances (n, n), d_ik to the center k -> (d, d).

    Differentiable in `embeddings`; the balls are constants.

    Raises:
        EtudeError: shapes do not fit, or a distance is NaN.
    """
    require(embeddings.ndim == 2, "embeddings", "of shape (n, d)", embeddings)
    n = len(embeddings)
    require(distances.shape == (n, n), "distances", f"of shape ({n}, {n})", distances)
    require(not bool(distances.isnan().any()), "distances", "numbers, none NaN", distances)
    f = embeddings
    if f.dtype in (torch.float16, torch.bfloat16):
        f = f.float()
    centered = f - f.mean(dim=0)
    from_center = distances.detach().T.contiguous()  # row k: the distances to center k
    ordered, order = from_center.sort(dim=1)
    inside = torch.searchsorted(ordered, ordered, side="left")  # strictly nearer than j
    ones = torch.ones_like(ordered, dtype=f.dtype)
    balls = torch.zeros_like(ones).scatter_add_(1, inside, ones)
    sums = centered.T[:, order].cumsum(dim=2)  # (d, k, n)
    c = torch.nn.functional.pad(sums[..., :-1], (1, 0)) / n  # (2) of the nearest 0 .. n - 1
    flat = c.flatten(1)
    m: Tensor = (flat * balls.flatten()) @ flat.T / n**2  # (3), equal balls taken together
    return m


class FCCovLoss(nn.Module):
    """Equation (4). Give whole batches: the balls of a part of the data are other balls.

    Args:
        penalty: lambda >= 0.

    Raises:
        EtudeError: a negative `penalty`.
    """

    def __init__(self, *, penalty: float = 0.1) -> None:
        super().__init__()
        require(math.isfinite(penalty) and penalty >= 0, "penalty", "a number from 0 on", penalty)
        self.penalty = penalty

    def forward(self, embeddings: Tensor, distances: Tensor) -> Tensor:
        """embeddings (n, d), distances (n, n) between the responses -> scalar."""
        m = fccov(embeddings, distances)
        f = embeddings.to(m.dtype)
        centered = f - f.mean(dim=0)
        eye = torch.eye(f.shape[1], dtype=m.dtype, device=m.device)
        gap = centered.T @ centered / len(f) - eye
        loss: Tensor = -m.trace() + self.penalty * gap.square().sum()  # (4)
        return loss


def response_distances(y: np.ndarray, metric: str) -> np.ndarray:
    """Distances between responses, (n, ...) -> (n, n) float64.

    "euclidean": (n,) or (n, r). "sphere": (n, r) unit vectors, the angle between them.
    "wasserstein": (n, r) quantiles at equal levels of distributions on the line, the 2-distance.
    "spd": (n, r, r) positive definite matrices, the log-Euclidean distance.

    Raises:
        EtudeError: an unknown metric, or responses that it does not fit.
    """
    require(metric in METRICS, "metric", f"one of {', '.join(METRICS)}", metric)
    values = np.asarray(y, dtype=np.float64)
    require(bool(np.isfinite(values).all()), "y", "finite", y)
    if metric == "spd":
        require(values.ndim == 3, "y", "of shape (n, r, r) for spd", y)
        size, axes = np.linalg.eigh(values)
        require(bool((size > 0).all()), "y", "positive definite for spd", y)
        values = np.einsum("nij,nj,nkj->nik", axes, np.log(size), axes)
    flat = values.reshape(len(values), -1)
    if metric == "sphere":
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        return np.asarray(np.arccos(np.clip(flat @ flat.T, -1, 1)))
    gaps = np.square(flat[:, None] - flat).sum(axis=2)
    return np.asarray(np.sqrt(gaps / (flat.shape[1] if metric == "wasserstein" else 1)))


def metric_responses(index: np.ndarray, metric: str, generator: np.random.Generator) -> np.ndarray:
    """Responses that follow `index` (n,) with a little noise, for ``response_distances``.

    "sphere": (n, 3), the index turns around the pole; "wasserstein": (n, 20) quantiles of a
    normal of that mean; "spd": (n, 2, 2) of that log-scale; "euclidean": (n,).

    Raises:
        EtudeError: an unknown metric.
    """
    require(metric in METRICS, "metric", f"one of {', '.join(METRICS)}", metric)
    t = np.asarray(index, dtype=np.float64) + 0.2 * generator.normal(size=len(index))
    if metric == "euclidean":
        return t
    if metric == "sphere":
        turn = np.tanh(t / 2) * np.pi / 2
        return np.stack((np.cos(turn), np.sin(turn), 0.2 * np.ones_like(t)), axis=1) / 1.04**0.5
    if metric == "wasserstein":
        level = torch.special.ndtri((torch.arange(20, dtype=torch.float64) + 0.5) / 20).numpy()
        spread = np.exp(0.2 * generator.normal(size=(len(t), 1)))
        return np.asarray(t[:, None] + spread * level)
    lower = np.zeros((len(t), 2, 2))
    lower[:, 0, 0] = lower[:, 1, 1] = np.exp(t / 2)
    lower[:, 1, 0] = 0.2 * generator.normal(size=len(t))
    return np.asarray(lower @ lower.swapaxes(1, 2))


class FCCovNet:
    """A network of two hidden layers trained by (4) on all samples at once.

    Args:
        n_directions: d, how many directions to learn; more than the index has (see above).
        metric: of the responses, see ``response_distances``.
        penalty: lambda of (4).
        hidden_dim: width of both hidden layers.
        n_steps: Adam steps; lr: their size.
        seed: of the first weights.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self,
        *,
        n_directions: int = 2,
        metric: str = "euclidean",
        penalty: float = 0.1,
        hidden_dim: int = 32,
        n_steps: int = 200,
        lr: float = 0.01,
        seed: int = 0,
    ) -> None:
        require(n_directions >= 1, "n_directions", "at least 1", n_directions)
        require(metric in METRICS, "metric", f"one of {', '.join(METRICS)}", metric)
        require(math.isfinite(penalty) and penalty >= 0, "penalty", "a number from 0 on", penalty)
        require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        require(math.isfinite(lr) and lr > 0, "lr", "positive", lr)
        self.n_directions, self.metric, self.penalty = n_directions, metric, penalty
        self.hidden_dim, self.n_steps, self.lr, self.seed = hidden_dim, n_steps, lr, seed

    def fit(self, features: np.ndarray, y: np.ndarray) -> FCCovNet:
        """features (n, p), responses y (n, ...) -> self.

        Raises:
            EtudeError: shapes do not fit, fewer than three samples, or values not finite.
        """
        x = np.asarray(features, dtype=np.float64)
        require(x.ndim == 2 and len(x) >= 3, "features", "of shape (n, p), n at least 3", features)
        require(bool(np.isfinite(x).all()), "features", "finite", features)
        require(len(y) == len(x), "y", "one response a row of features", y)
        distances = torch.from_numpy(response_distances(y, self.metric))
        self.mean_, self.scale_ = x.mean(axis=0), x.std(axis=0) + 1e-9
        inputs = torch.from_numpy((x - self.mean_) / self.scale_)
        generator = torch.Generator().manual_seed(self.seed)
        sizes = (x.shape[1], self.hidden_dim, self.hidden_dim, self.n_directions)
        weights = []
        for n_in, n_out in pairwise(sizes):
            first = torch.randn(n_in, n_out, generator=generator, dtype=torch.float64)
            weights += [first * math.sqrt(2 / n_in), torch.zeros(n_out, dtype=torch.float64)]
        for weight in weights:
            weight.requires_grad_(True)
        loss, optimizer = FCCovLoss(penalty=self.penalty), torch.optim.Adam(weights, lr=self.lr)
        for _ in range(self.n_steps):
            optimizer.zero_grad()
            loss(_network(inputs, weights), distances).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = [weight.detach().numpy() for weight in weights]
        self.w1_, self.b1_, self.w2_, self.b2_, self.w3_, self.b3_ = found
        return self

    def transform(self, features: np.ndarray) -> np.ndarray:
        """(n, p) -> (n, d) float64, the learned directions.

        Raises:
            EtudeError: not fitted, or another width than in `fit`.
        """
        if not hasattr(self, "w1_"):
            raise EtudeError("FCCovNet must be fitted before transform: call fit first")
        x = np.asarray(features, dtype=np.float64)
        width = len(self.mean_)
        require(x.ndim == 2 and x.shape[1] == width, "features", f"(n, {width})", features)
        found = (self.w1_, self.b1_, self.w2_, self.b2_, self.w3_, self.b3_)
        weights = [torch.from_numpy(np.asarray(weight)) for weight in found]
        return _network(torch.from_numpy((x - self.mean_) / self.scale_), weights).numpy()


def _network(x: Tensor, weights: list[Tensor]) -> Tensor:
    w1, b1, w2, b2, w3, b3 = weights
    return torch.relu(torch.relu(x @ w1 + b1) @ w2 + b2) @ w3 + b3
