r"""Fix the classifier before training: nearly orthogonal unit vectors, one a class.

A fully connected classifier learns K rows, and grows with K. Equiangular basis vectors (EBVs) are
drawn once, without data, so that no class is favored: N unit vectors in R^d, d possibly much
smaller than N, with

    max_{i != j} |w_i . w_j| <= alpha                                                (1)

They are found by gradient steps on the rows (normalized anew before every step) of

    sum_{i != j} max(|w_i . w_j| - alpha, 0)                                         (2)

No N > d vectors do better than the Welch bound sqrt((N - d) / (d (N - 1))); for N <= d an
orthonormal set has alpha = 0 at once. The network alone learns to point its embedding z at the
vector of the class, and the prediction is the nearest vector:

    logit_k(z) = cos(z, w_k) / temperature                                           (3)
    loss(z, y) = cross-entropy of (3), with label smoothing                          (4)

Classes that come later take vectors that were not yet used; nothing else changes.

Source: Shen, Sun, Wei, "Equiangular Basis Vectors", CVPR 2023, arXiv:2303.11637; the abstract and
the authors' release were read. There the backbone's last linear layer stays, with d outputs: it is
trained and yields z. `EBVHead` has that layer, since its features are frozen.
Departures: for N <= d the vectors are orthonormal (QR of a Gaussian) instead of the result of (2)
with alpha = 0.002; rows that nearly coincide, where the gradient of (2) lies along the rows and
hardly parts them, are looked for every 500 steps, and one of each pair is drawn anew.
Not found in the text that could be read: alpha for N > d; chosen here: 1.5 times the Welch bound.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, EtudeError, require

__all__ = ["EBVHead", "EBVLoss", "generate_ebv"]

CARD = Card(
    slug="equiangular_basis_vectors",
    family="heads",
    title="Equiangular Basis Vectors",
    year=2023,
    arxiv="2303.11637",
    move="Replace the learned classifier by fixed, nearly orthogonal unit vectors and train the "
    "network to point at the vector of the class.",
    task="probe",
    claim="A network trained toward fixed equiangular vectors is more accurate than one with a "
    "fully connected softmax layer (a logistic regression on its features).",
    baseline="logistic_regression",
    metric="accuracy",
    better="higher",
    published="Released logs, ImageNet-1K top-1 in %, ResNet-50, 105 epochs, AdamW, test size 224: "
    "fully connected 72.6, EBV 75.6; with the stronger augmentation 75.4 and 76.5.",
    fidelity="full",
    cost="L",
    data=("digits", "fashion_mnist"),
    code="aassxun/Equiangular-Basis-Vectors",
    departs=(
        "Up to d vectors are orthonormal by a QR decomposition instead of nearly so.",
        "Rows that nearly coincide while vectors are generated are drawn anew.",
        "The head's linear layer is trained on features that are frozen, not the whole network.",
    ),
    search={"temperature": (0.07, 0.2, 0.5), "smoothing": (0.0, 0.1)},
    example={"dim": 8, "n_classes": 3},
)

SLACK = 1e-4  # of (1), as in the release
PATIENCE = 500  # steps after which rows that nearly coincide are drawn anew
SLICE = 2048  # rows of the Gram matrix held at a time


def generate_ebv(
    n_vectors: int,
    dim: int,
    alpha: float | None = None,
    *,
    n_steps: int = 5_000,
    lr: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Unit vectors (n_vectors, dim), float32, that satisfy (1) up to 1e-4.

    Args:
        alpha: bound on |cos|; by default 1.5 times the Welch bound, at most 0.99. Unused for
            n_vectors <= dim, where the vectors are orthonormal.
        n_steps, lr: at most so many steps of plain gradient descent on (2).

    Raises:
        EtudeError: alpha lies below the Welch bound, or is not reached in `n_steps`.
    """
    require(n_vectors >= 1, "n_vectors", "at least 1", n_vectors)
    require(dim >= 1, "dim", "at least 1", dim)
    W = torch.randn(n_vectors, dim, generator=generator)
    if n_vectors <= dim:
        orthonormal: Tensor = torch.linalg.qr(W.T)[0].T.contiguous()
        return orthonormal
    welch = math.sqrt((n_vectors - dim) / (dim * (n_vectors - 1)))
    alpha = min(1.5 * welch, 0.99) if alpha is None else alpha
    rule = f"from {welch:.4f} (the Welch bound of {n_vectors} vectors in {dim} dimensions) to 0.99"
    require(welch <= alpha <= 0.99, "alpha", rule, alpha)
    for step in range(1, n_steps + 1):
        W = F.normalize(W)
        gradient, coherence, twins = torch.zeros_like(W), 0.0, []
        for start in range(0, n_vectors, SLICE):
            C = W[start : start + SLICE] @ W.T
            C.diagonal(start).zero_()
            size = C.abs()
            coherence = max(coherence, float(size.max()))
            if step % PATIENCE == 0:
                first, second = torch.nonzero(size > (1 + alpha) / 2, as_tuple=True)
                twins.append(second[first + start < second])
            # Each pair stands twice in (2), hence the 2.
            gradient[start : start + SLICE] = 2 * ((size > alpha) * C.sign()) @ W
        if coherence <= alpha + SLACK:  # (1)
            return W
        W = W - lr * gradient  # (2)
        for rows in twins:
            W[rows] = torch.randn(len(rows), dim, generator=generator)
    raise EtudeError(
        f"alpha = {alpha:.4f} was not reached for {n_vectors} vectors in {dim} dimensions within "
        f"{n_steps} steps (reached {coherence:.4f}): raise alpha, the dimension or n_steps"
    )


class EBVLoss(nn.Module):
    """Equations (3) and (4) for embeddings of the vectors' own width; nothing is trained here.

    `dim`: width of the embeddings; `n_vectors`: how many vectors are drawn, at least `n_classes`
    and by default as many; class k has the k-th. `alpha` as in `generate_ebv`. With equal `dim`,
    `n_vectors` and generator seed the vectors are the same for any `n_classes`.
    """

    vectors: Tensor

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        n_vectors: int | None = None,
        alpha: float | None = None,
        temperature: float = 0.07,
        smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        n_vectors = n_classes if n_vectors is None else n_vectors
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        require(n_vectors >= n_classes, "n_vectors", f"at least n_classes = {n_classes}", n_vectors)
        require(temperature > 0, "temperature", "positive", temperature)
        require(0 <= smoothing < 1, "smoothing", "in [0, 1)", smoothing)
        self.n_classes = n_classes
        self.temperature = temperature
        self.smoothing = smoothing
        vectors = generate_ebv(n_vectors, dim, alpha, generator=generator)
        self.register_buffer("vectors", vectors)

    def classify(self, embeddings: Tensor) -> Tensor:
        """(B, dim) -> logits (B, n_classes), within +-1 / temperature."""
        width = self.vectors.shape[1]
        require(embeddings.shape[-1] == width, "embeddings", f"of width {width}", embeddings)
        z = F.normalize(embeddings, dim=-1, eps=1e-6)
        return z @ self.vectors[: self.n_classes].T / self.temperature  # (3)

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, dim), (B,) class ids -> mean loss over the batch, in nats."""
        return F.cross_entropy(self.classify(embeddings), target, label_smoothing=self.smoothing)


class EBVHead(nn.Module):
    """A trained linear layer from `dim` to `ebv_dim`, then equation (3) with fixed vectors.

    `ebv_dim`: width d of the vectors, by default `n_vectors` (orthonormal vectors). `project`
    False leaves the linear layer out: the head has no trainable parameter and d is `dim`.
    `smoothing` acts in ``loss``. Others as in `EBVLoss`.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        ebv_dim: int | None = None,
        project: bool = True,
        n_vectors: int | None = None,
        alpha: float | None = None,
        temperature: float = 0.07,
        smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        if ebv_dim is None:
            ebv_dim = (n_vectors or n_classes) if project else dim
        require(project or ebv_dim == dim, "ebv_dim", f"dim = {dim} without projection", ebv_dim)
        self.project = project
        self.temperature = temperature
        self.smoothing = smoothing
        self.projection = nn.Linear(dim, ebv_dim) if project else nn.Identity()
        self.objective = EBVLoss(
            ebv_dim, n_classes, n_vectors=n_vectors, alpha=alpha, temperature=temperature,
            smoothing=smoothing, generator=generator,
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """features (B, dim) -> logits (B, n_classes)."""
        return self.objective.classify(self.projection(features))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (B, n_classes), target (B,) class ids -> (4), in nats."""
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)
