r"""The Z-loss: standardize the outputs over the classes, then ask the target to stand out.

The log-softmax looks at every class, and so does its gradient. A loss that looks at the outputs
o in R^K only through three numbers can be trained without forming them:

    s = sum_k o_k,   q = sum_k o_k^2,   o_c (c the target)                                 (1)

Such losses are called spherical. The Z-loss is the spherical loss that also ignores shift and
scale of the outputs, as a ranking does. With slope a and location b:

    z_c = (o_c - mu) / sigma,   mu = s / K,   sigma^2 = q / K - mu^2                       (2)
    loss = log(1 + exp(a (b - z_c))) / a                                                   (3)

For a linear output layer o = W h the numbers of (1) come from two small statistics of W:

    s = w_bar . h,   q = h^T Q h,   w_bar = W^T 1,   Q = W^T W                             (4)

and exact gradient descent on W needs no pass over its K rows if W is kept as V U + 1 omega^T.
With g_q, g_s, g_c the slopes of the loss, H the batch (one h a row), e the learning rate:

    dL/dh = 2 g_q Q h + g_s w_bar + g_c w_c                                                (5)
    A = I - 2 e H^T diag(g_q) H,   U <- U A,   omega <- A omega - e H^T g_s                (6)
    V_c <- V_c - e g_c h^T U^-1   (the new U), for the targets' rows only                  (7)
    Q <- Q - e (D^T H + H^T D) + e^2 H^T M H,   w_bar <- w_bar - e H^T m                   (8)

D holds (5) as rows; M = G G^T and m = G 1 for G = dL/do follow from (1) and the targets' rows.

Source: de Brebisson, Vincent, "The Z-loss: a shift and scale invariant classification loss
belonging to the Spherical Family", 2016, arXiv:1604.08859; (4) to (8) after Vincent, de
Brebisson, Bouthillier, NeurIPS 2015, arXiv:1412.7091, written here for a whole batch.
Not found in the paper: the text could not be read. (3) agrees with the released code at a = 1,
b = 0; which a and b the paper used is unknown, so they are knobs to be tuned.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["ZLoss", "FactoredZLoss", "spherical_statistics"]

CARD = Card(
    slug="z_loss",
    family="losses",
    title="The Z-loss: a shift and scale invariant classification loss belonging to the "
    "Spherical Family",
    year=2016,
    arxiv="1604.08859",
    move="standardize the outputs over the classes and ask only how far the target stands out",
    task="train",
    claim="in next-word prediction the Z-loss, its slope and location tuned, puts the right word "
    "among the first ten more often than tuned cross-entropy",
    baseline="cross_entropy",
    metric="recall_at_10",
    better="higher",
    published="abstract: significantly outperforms other spherical losses, and the log-softmax in "
    "certain top-k scores on word language modeling; 40 times faster than the log-softmax on the "
    "One Billion Word data",
    fidelity="full",
    cost="M",
    data=("wikitext2-valid",),
    code="pascal20100/factored_output_layer",
    departs=(
        "eps is added to the variance, not to the standard deviation, so that constant outputs "
        "have a finite gradient.",
        "The loss is the mean over a batch; the released code sums.",
        "U^-1 is found by solving (6), d^3 a batch, where the released code updates it by rank.",
        "Where a singular value of U leaves [1/2, 2] the whole of U is folded into V; the "
        "released code moves single singular directions.",
    ),
    search={"slope": (1.0, 0.3, 0.1), "location": (0.0, 3.0, 10.0)},
    example={"slope": 0.5, "location": 2.0},
)


def _softplus_of_gap(z: Tensor, slope: float, location: float) -> Tensor:
    return F.softplus(slope * (location - z)) / slope  # (3)


class ZLoss(nn.Module):
    """Equations (2) and (3) on outputs that are there.

    Args:
        slope: a > 0; a large one is a hinge at `location`.
        location: b, in standard deviations over the classes: from where on the target need not
            stand out further. z_c cannot exceed sqrt(K - 1).
        eps: added to sigma^2, in squared units of the outputs.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(self, *, slope: float = 1.0, location: float = 0.0, eps: float = 1e-12) -> None:
        super().__init__()
        _check(slope, location, eps)
        self.slope, self.location, self.eps = slope, location, eps

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"slope={self.slope}, location={self.location}"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (B, K), target (B,) int64 -> mean loss over the batch.

        float16 and bfloat16 logits are computed, and answered, in float32.
        """
        require(logits.ndim == 2, "logits", "of shape (B, K)", logits)
        require(target.shape == logits.shape[:1], "target", "(B,) class ids, one a row", target)
        eps, wide = self.eps, logits
        if logits.dtype in (torch.float16, torch.bfloat16):
            eps, wide = max(eps, 1e-8), logits.float()  # 1 / sqrt(eps) must fit float16
        wide = wide - wide.detach().amax(dim=1, keepdim=True)  # a far mean would be rounded
        centered = wide - wide.mean(dim=1, keepdim=True)  # q / K - mu^2 would cancel
        variance = centered.square().mean(dim=1)
        z = centered.gather(1, target[:, None])[:, 0] / (variance + eps).sqrt()  # (2)
        return _softplus_of_gap(z, self.slope, self.location).mean()


def spherical_statistics(embeddings: Tensor, gram: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (4): sum and squared norm of the outputs W h, from Q and w_bar.

    Args:
        embeddings: (B, d) the h.
        gram: (d, d), Q = W^T W.
        total: (d,), w_bar = W^T 1.

    Returns:
        s and q, each (B,). Give float64: sigma^2 is a difference of both.

    Raises:
        EtudeError: shapes do not fit.
    """
    dim = embeddings.shape[-1]
    require(gram.shape == (dim, dim), "gram", f"of shape ({dim}, {dim})", gram)
    require(total.shape == (dim,), "total", f"of shape ({dim},)", total)
    return embeddings @ total, ((embeddings @ gram) * embeddings).sum(dim=-1)


class FactoredZLoss(nn.Module):
    """A linear layer to K classes under the Z-loss; a step reads and writes B of its K rows.

    The layer learns by plain gradient descent inside `step`; the embeddings' gradient is
    returned, for whatever network is below. A step costs O(B^2 d + B d^2 + d^3); folding U back
    into V costs O(K d^2), happens rarely and is counted in `n_folds`.

    Args:
        dim: d, width of the embeddings; n_classes: K.
        slope, location, eps: as in ``ZLoss``.
        lr: e, learning rate of the layer.
        check_every: steps between two looks at the singular values of U.
        dtype: of the (K, d) matrix V. The small matrices are float64.
        generator: of V's first values, normal with standard deviation 0.1 / sqrt(d).

    Raises:
        EtudeError: a value outside its range.
    """

    v: Tensor
    u: Tensor
    u_inverse: Tensor
    omega: Tensor
    gram: Tensor
    total: Tensor
    n_steps: Tensor

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        slope: float = 1.0,
        location: float = 0.0,
        eps: float = 1e-12,
        lr: float = 0.1,
        check_every: int = 100,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(slope, location, eps)
        require(dim >= 1, "dim", "at least 1", dim)
        require(n_classes >= 2, "n_classes", "at least 2", n_classes)
        require(math.isfinite(lr) and lr >= 0, "lr", "a number from 0 on", lr)
        require(check_every >= 1, "check_every", "at least 1", check_every)
        self.dim, self.n_classes, self.lr, self.check_every = dim, n_classes, lr, check_every
        self.slope, self.location, self.eps = slope, location, eps
        rows = torch.randn(n_classes, dim, generator=generator, dtype=dtype)
        self.register_buffer("v", rows.mul_(0.1 / math.sqrt(dim)))
        for name in ("u", "u_inverse"):
            self.register_buffer(name, torch.eye(dim, dtype=torch.float64))
        self.register_buffer("omega", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("gram", torch.empty(dim, dim, dtype=torch.float64))
        self.register_buffer("total", torch.empty(dim, dtype=torch.float64))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        self.n_folds = -1
        self.fold()

    @property
    def weight(self) -> Tensor:
        """W, (K, d) in the dtype of V."""
        return self.v @ self.u.to(self.v.dtype) + self.omega.to(self.v.dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """Set V to W, U to I and omega to 0, and count Q and w_bar anew; W stays as it is."""
        identity = torch.eye(self.dim, dtype=torch.float64, device=self.u.device)
        fresh = torch.equal(self.u, identity) and not self.omega.any()
        self.gram.zero_()
        self.total.zero_()
        for block in torch.split(self.v, 65536):  # float64 of a block only
            if not fresh:
                block.copy_((block.double() @ self.u + self.omega).to(block.dtype))
            wide = block.double()
            self.gram += wide.T @ wide
            self.total += wide.sum(dim=0)
        self.u.copy_(identity)
        self.u_inverse.copy_(identity)
        self.omega.zero_()
        self.n_folds += 1

    def classify(self, embeddings: Tensor) -> Tensor:
        """(B, d) -> (B, K) outputs; this one does touch every class."""
        h = embeddings.double()
        outputs: Tensor = (h @ self.u.T).to(self.v.dtype) @ self.v.T
        return outputs + (h @ self.omega).to(self.v.dtype)[:, None]

    @torch.no_grad()
    def step(self, embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """embeddings (B, d), target (B,) -> mean loss, its gradient (B, d); then W has learned.

        Both are those of W before the step, in the dtype of `embeddings`.
        """
        require(
            embeddings.ndim == 2 and embeddings.shape[1] == self.dim,
            "embeddings", f"of shape (B, {self.dim})", embeddings,
        )  # fmt: skip
        require(target.shape == embeddings.shape[:1], "target", "(B,) class ids", target)
        h = embeddings.double()
        s, q = spherical_statistics(h, self.gram, self.total)
        w = self.v[target].double() @ self.u + self.omega  # (B, d), the targets' rows of W
        o_c = (h * w).sum(dim=1)
        loss, g_c, g_s, g_q = self._slopes(o_c, s, q)
        back = 2 * g_q[:, None] * (h @ self.gram) + g_s[:, None] * self.total
        back += g_c[:, None] * w  # (5)
        self._learn(h, target, w, back, (g_c, g_s, g_q), s)
        return loss.to(embeddings.dtype), back.to(embeddings.dtype)

    def _slopes(self, o_c: Tensor, s: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean loss, and its derivatives with respect to o_c, s and q."""
        mu = s / self.n_classes
        variance = (q / self.n_classes - mu.square()).clamp(min=0) + self.eps
        z = (o_c - mu) / variance.sqrt()
        g_z = -torch.sigmoid(self.slope * (self.location - z)) / len(z)
        g_c = g_z / variance.sqrt()
        g_q = -g_z * z / (2 * variance * self.n_classes)
        g_s = -g_c / self.n_classes - 2 * mu * g_q
        return _softplus_of_gap(z, self.slope, self.location).mean(), g_c, g_s, g_q

    def _learn(
        self, h: Tensor, target: Tensor, w: Tensor, back: Tensor, slopes: tuple[Tensor, ...],
        s: Tensor,
    ) -> None:  # fmt: skip
        g_c, g_s, g_q = slopes
        n, e = self.n_classes, self.lr
        # G = a_i o_i + g_s + g_c at the target, with a = 2 g_q: the products of its rows
        a, cross = 2 * g_q, h @ w.T  # cross[i, j] = o_i at the target of j
        mixed = a[:, None] * (s[:, None] * g_s + cross * g_c) + g_s[:, None] * g_c
        same = target[:, None] == target
        m = a[:, None] * (h @ self.gram @ h.T) * a + mixed + mixed.T
        m += n * g_s[:, None] * g_s + same * g_c[:, None] * g_c
        shift = -e * (back.T @ h)
        self.gram += shift + shift.T + e**2 * (h.T @ m @ h)  # (8)
        self.total -= e * (h.T @ (a * s + n * g_s + g_c))
        change = torch.eye(self.dim, dtype=h.dtype, device=h.device) - e * (h.T * a) @ h
        self.u.copy_(self.u @ change)  # (6)
        self.omega.copy_(change @ self.omega - e * (h.T @ g_s))
        self.u_inverse.copy_(torch.linalg.solve(change, self.u_inverse))
        rows = (-e * g_c[:, None] * h) @ self.u_inverse
        self.v.index_add_(0, target, rows.to(self.v.dtype))  # (7)
        self.n_steps += 1
        if int(self.n_steps) % self.check_every == 0:
            sizes = torch.linalg.svdvals(self.u)
            if float(sizes[0]) > 2 or float(sizes[-1]) < 0.5:
                self.fold()


def _check(slope: float, location: float, eps: float) -> None:
    require(math.isfinite(slope) and slope > 0, "slope", "positive", slope)
    require(math.isfinite(location), "location", "a finite number", location)
    require(math.isfinite(eps) and eps > 0, "eps", "positive", eps)
