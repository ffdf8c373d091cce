r"""CNN-SVM: end a convolutional network in support vector machines and train it by their loss.

A softmax asks the right class to be likelier than the others, and never rests. A support vector
machine asks each class's own score to clear a margin, and then leaves the example alone. Put the
second on top of a network and send its slope down through all layers. With h the features, f the
scores and y in {-1, +1} one sign per class:

    f_k = w_k . h + b_k,   y_ik = +1 if k is the class of sample i, else -1                (1)
    hinge_ik = max(0, 1 - y_ik f_ik)                                                       (2)
    loss = mean_jk W_jk^2 + C mean_ik hinge_ik^2                                           (3)

The square makes the slope continuous at the margin (the L2-SVM; Tang 2013). W is the last
layer's weight; its bias and the other layers are not penalized. On frozen features (3) without
bias is scikit-learn's ``LinearSVC`` with squared hinge and C_svc = C d / (2 n). The class is

    argmax_k f_k                                                                           (4)

The released evaluation takes argmax_k sign(f_k) instead: with no positive score, or several, the
lowest index wins, so it understates the network. `predict` gives both.

Source: Agarap, "An Architecture Combining Convolutional Neural Network (CNN) and Support Vector
Machine (SVM) for Image Classification", 2017, arXiv:1712.03541.
Not found in the paper: how the paper scales the norm term of (3); the released code's means are
used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["L2SVMLoss", "CNNSVM"]

CARD = Card(
    slug="cnn_svm",
    family="losses",
    title="An Architecture Combining Convolutional Neural Network (CNN) and Support Vector "
    "Machine (SVM) for Image Classification",
    year=2017,
    arxiv="1712.03541",
    move="train a convolutional network by the squared hinge of one-versus-rest support vector "
    "machines on its last layer",
    task="train",
    claim="on Fashion-MNIST the squared hinge trains the same small convolutional network to a "
    "higher accuracy than softmax cross-entropy, both with a tuned learning rate",
    baseline="cross_entropy",
    metric="accuracy",
    better="higher",
    published="README of the released code: Fashion-MNIST 90.72 % (SVM) against 91.86 % (softmax), "
    "MNIST 99.04 % against 99.23 %; the SVM by argmax of the scores' signs",
    fidelity="full",
    cost="M",
    data=("fashion_mnist",),
    code="AFAgarap/cnn-svm",
    departs=("The class is the largest score's; the released sign rule is an option.",),
    search={"penalty": (1.0, 0.1, 10.0)},
    example={"dim": 6, "n_classes": 3},
)


class L2SVMLoss(nn.Module):
    """Equations (1) to (3): the last layer and its loss.

    Args:
        dim: width d of the features; n_classes: K.
        penalty: C > 0, the weight of the hinge against the norm.
        generator: of the first weights, normal with standard deviation 0.1, cut off at 0.2;
            biases start at 0.1.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        penalty: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        require(math.isfinite(penalty) and penalty > 0, "penalty", "positive", penalty)
        self.dim, self.n_classes, self.penalty = dim, n_classes, penalty
        self.readout = nn.Linear(dim, n_classes)
        _reset(self.readout, generator)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"penalty={self.penalty}"

    def classify(self, embeddings: Tensor) -> Tensor:
        """(B, d) -> (B, K) scores of (1)."""
        scores: Tensor = self.readout(embeddings)
        return scores

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """embeddings (B, d), target (B,) int64 -> (3), a scalar.

        float16 and bfloat16 are computed, and answered, in float32.
        """
        require(
            embeddings.ndim == 2 and embeddings.shape[1] == self.dim,
            "embeddings", f"of shape (B, {self.dim})", embeddings,
        )  # fmt: skip
        require(target.shape == embeddings.shape[:1], "target", "(B,) class ids", target)
        weight: Tensor = self.readout.weight
        bias: Tensor = self.readout.bias
        h = embeddings
        if h.dtype in (torch.float16, torch.bfloat16):
            weight, bias, h = weight.float(), bias.float(), h.float()
        y = 2 * F.one_hot(target, self.n_classes).to(h.dtype) - 1  # (1)
        hinge = (1 - y * F.linear(h, weight, bias)).clamp(min=0)  # (2)
        return weight.square().mean() + self.penalty * hinge.square().mean()  # (3)


class CNNSVM(nn.Module):
    """The paper's network: two blocks of 5 x 5 convolution and pooling, a hidden layer, (1).

    Args:
        n_classes: K.
        image_shape: (channels, height, width).
        widths: channels of the two convolutions.
        hidden_dim: width of the fully connected layer.
        dropout: share of its outputs set to zero in training.
        penalty: C of (3).
        generator: of all first weights, as in ``L2SVMLoss``.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        widths: tuple[int, int] = (32, 64),
        hidden_dim: int = 1024,
        dropout: float = 0.5,
        penalty: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(min(image_shape) >= 1, "image_shape", "three positive sizes", image_shape)
        require(min(widths) >= 1, "widths", "two positive numbers", widths)
        require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        require(0 <= dropout < 1, "dropout", "in [0, 1)", dropout)
        self.image_shape = image_shape
        channels, height, width = image_shape
        pooled = math.ceil(height / 4) * math.ceil(width / 4)  # padded as in TensorFlow's SAME
        self.features = nn.Sequential(
            nn.Conv2d(channels, widths[0], 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(widths[0], widths[1], 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(),
            nn.Linear(pooled * widths[1], hidden_dim), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        for layer in self.features:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _reset(layer, generator)
        self.objective = L2SVMLoss(hidden_dim, n_classes, penalty=penalty, generator=generator)

    def embed(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), or (B, C H W), in [0, 1] -> (B, hidden_dim)."""
        h: Tensor = self.features(x.reshape(-1, *self.image_shape))
        return h

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) or (B, C H W) -> (B, K) scores."""
        return self.objective.classify(self.embed(x))

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Equation (3) for images x (B, ...) and their classes (B,)."""
        value: Tensor = self.objective(self.embed(x), target)
        return value

    def predict(self, x: Tensor, *, by_sign: bool = False) -> Tensor:
        """x (B, ...) -> (B,) class ids by (4), or by the released argmax of signs."""
        scores = self(x)
        return _class_of(scores, by_sign=by_sign)


def _class_of(scores: Tensor, *, by_sign: bool) -> Tensor:
    """(B, K) -> (B,): (4), or the lowest index among the largest signs."""
    if not by_sign:
        return scores.argmax(dim=1)
    signs = scores.sign()
    # argmax does not promise which of several equal entries it gives
    largest = signs == signs.amax(dim=1, keepdim=True)
    places = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(largest, places, scores.shape[1]).amin(dim=1)


def _reset(layer: nn.Conv2d | nn.Linear, generator: torch.Generator | None) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2, generator=generator)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 0.1)
