r"""Mahalanobis detector: distance to the nearest class Gaussian, in every layer of a network.

A softmax output only says how far a sample is from the decision boundary, so a sample far from
all training data can look certain. If the class-conditional features are Gaussians with one
shared covariance, the posterior is exactly a softmax (linear discriminant analysis), so a
trained softmax network already holds such a generative model, and its density can be read:

    mu_c = (1/N_c) sum_{y_i = c} f(x_i)
    Sigma = (1/N) sum_c sum_{y_i = c} (f(x_i) - mu_c)(f(x_i) - mu_c)^T                      (1)
    M(x) = max_c -(f(x) - mu_c)^T Sigma^-1 (f(x) - mu_c)                                    (2)
    y(x) = argmin_c (f(x) - mu_c)^T Sigma^-1 (f(x) - mu_c)                                  (3)
    x' = x - magnitude * sign(grad_x (f(x) - mu_c*)^T Sigma^-1 (f(x) - mu_c*))              (4)
    score(x) = bias - sum_l alpha_l M_l(x'_l)                                   (Algorithm 1)

f(x): (B, D) features of one layer, a map averaged over its positions; c*: the closest class,
held constant with mu and Sigma in (4); alpha_l: weights of a logistic regression on validation
samples, normal against abnormal. M is a confidence and a layer's score here is -M, the
smallest squared distance: higher = more anomalous.

Source: Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting Out-of-Distribution
Samples and Adversarial Attacks", NeurIPS 2018, arXiv:1807.03888, equations (1) to (4).
Sigma^-1 is the pseudo-inverse (as in the release): what is constant within all classes of the
training set, such as a dead unit, is not seen. As in the release, sign(0) = +1 in (4). Its
scores are M / 2, which ranks alike.
Not found in the paper: the penalty of the logistic regression. Here: L2 on standardized
scores, its strength by stratified cross-validation of the log loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import expit
from torch import Tensor

from etude.core import Card, require

__all__ = ["MahalanobisDetector"]

CARD = Card(
    slug="mahalanobis_ood",
    family="robustness",
    title="A Simple Unified Framework for Detecting Out-of-Distribution Samples and "
    "Adversarial Attacks",
    year=2018,
    arxiv="1807.03888",
    move="Score a sample by its Mahalanobis distance to the nearest class mean, with one "
    "covariance shared by all classes, in every layer of a trained network.",
    task="detect",
    claim="Tuned on FGSM samples only, the layer ensemble with input pre-processing separates "
    "Fashion-MNIST from digits, noise and inverted images with a higher AUROC than the "
    "maximum softmax probability of the same network.",
    baseline="max_softmax",
    metric="auroc",
    better="higher",
    published="CIFAR-10 (ResNet-34) against SVHN, AUROC in %: 89.9 max softmax, 95.5 ours tuned "
    "on FGSM samples (Table 2), 99.1 tuned on SVHN samples (Tables 1 and 2).",
    fidelity="full",
    cost="M",
    data=("fashion_mnist",),
    code="pokaxpoka/deep_Mahalanobis_detector",
    departs=("The layer weights' L2 penalty acts on standardized scores, chosen by log loss.",),
    search={"combine": ("last", "mean"), "shrinkage": (0.0, 0.1)},
    example={"combine": "mean"},
)

PENALTIES = tuple(float(c) for c in np.logspace(-4, 4, 10))  # inverse strengths
N_FOLDS = 5
Network = Callable[[Tensor], Sequence[Tensor]]
Std = float | Tensor


def _layers(layer_features: Any) -> list[np.ndarray]:
    """The layers as float (B, D_l) arrays; maps (B, C, ...) are averaged over positions."""
    several = isinstance(layer_features, list | tuple)
    arrays = [np.asarray(layer) for layer in (layer_features if several else [layer_features])]
    require(len(arrays) > 0, "layer_features", "a non-empty list of (B, D) arrays", layer_features)
    layers = []
    for array in arrays:
        require(array.ndim >= 2 and len(array) > 0, "layer_features", "(B, D) each", array)
        array = array.astype(np.promote_types(array.dtype, np.float32))
        flat = array.reshape(*array.shape[:2], -1).mean(axis=2)
        require(bool(np.isfinite(flat).all()), "layer_features", "finite", array)
        require(len(flat) == len(arrays[0]), "layer_features", "of equally many samples", array)
        layers.append(flat)
    return layers


def _whitener(covariance: np.ndarray, floor: float) -> np.ndarray:
    """W (D, D) with W W^T the pseudo-inverse; eigenvalues up to `floor` * largest count as 0."""
    values, axes = np.linalg.eigh(covariance)
    kept = values > floor * values[-1]
    return axes * np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)


def _logistic(scores: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """(L + 1,) weights and bias that minimize |w|^2 / 2 + penalty * summed log loss."""
    sign = 2.0 * target - 1.0

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scores @ w[:-1] + w[-1])
        pull = -penalty * sign * expit(-margin)
        gradient = np.append(pull @ scores + w[:-1], pull.sum())
        return penalty * np.logaddexp(0.0, -margin).sum() + w[:-1] @ w[:-1] / 2, gradient

    start = np.zeros(scores.shape[1] + 1)
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-7}
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)


def _cross_validated(
    scores: np.ndarray, target: np.ndarray, penalties: tuple[float, ...]
) -> np.ndarray:
    """`_logistic` on all rows, with the penalty of the least log loss over stratified folds."""
    fold, losses = np.empty(len(scores), dtype=int), np.zeros(len(penalties))
    for side in (0, 1):
        fold[target == side] = np.arange((target == side).sum()) % N_FOLDS
    for held in range(N_FOLDS if len(penalties) > 1 else 0):
        train, test = fold != held, fold == held
        for i, penalty in enumerate(penalties):
            w = _logistic(scores[train], target[train], penalty)
            margin = (2.0 * target[test] - 1.0) * (scores[test] @ w[:-1] + w[-1])
            losses[i] += np.logaddexp(0.0, -margin).sum()
    return _logistic(scores, target, penalties[int(losses.argmin())])


class MahalanobisDetector:
    """Equations (1) to (4). `shrinkage` in [0, 1] moves Sigma toward its mean variance times I.

    shrinkage = 0 is the paper's; 1 ranks as the distance to the nearest class mean. `combine`
    weighs the layers until `fit_ensemble` is called: "last" takes the last layer alone (the
    paper's score without the ensemble), "mean" the mean over layers of the squared distance
    divided by its degrees of freedom.
    """

    def __init__(self, *, shrinkage: float = 0.0, combine: str = "last") -> None:
        require(0.0 <= shrinkage <= 1.0, "shrinkage", "in [0, 1]", shrinkage)
        require(combine in ("last", "mean"), "combine", "'last' or 'mean'", combine)
        self.shrinkage = shrinkage
        self.combine = combine

    def fit(self, layer_features: Any, labels: np.ndarray) -> MahalanobisDetector:
        """layer_features: L arrays (B, D_l) or (B, C, ...), or one; labels (B,) -> self.

        Fitted: `classes_` (K,), `dims_`, `floors_` (the relative eigenvalue that counts as 0) and
        `weights_` (L,), `bias_`, `means_` (K, sum D_l), and, flattened one after the other,
        `covariances_` and `whiteners_` (sum D_l^2,). Refused: features that are not finite or
        constant within all classes, layers of unequal lengths.
        """
        layers = _layers(layer_features)
        labels = np.asarray(labels)
        require(labels.shape == (len(layers[0]),), "labels", "(B,), one a sample", labels)
        self.classes_, group = np.unique(labels, return_inverse=True)
        member = np.eye(len(self.classes_))[group]
        means, covariances = [], []
        for f in layers:
            f64 = f.astype(np.float64)
            mu = member.T @ f64 / member.sum(axis=0)[:, None]  # (1)
            residual = f64 - mu[group]
            spread = np.abs(residual).max() > 8 * np.finfo(f.dtype).eps * np.abs(f).max()
            require(bool(spread), "layer_features", "not constant within every class", f)
            means.append(mu)
            covariances.append(residual.T @ residual / len(f))  # (1)
        self.dims_ = np.array([f.shape[1] for f in layers])
        self.floors_ = np.array([f.shape[1] * float(np.finfo(f.dtype).eps) for f in layers])
        self.means_ = np.concatenate(means, axis=1)
        freedom = self._set_covariances(covariances)
        self.weights_ = 1.0 / (freedom * len(layers))
        if self.combine == "last":
            self.weights_ = np.eye(len(layers))[-1]
        self.bias_ = 0.0
        return self

    def add_class(self, layer_features: Any, label: int = -1) -> MahalanobisDetector:
        """Admit a new class by samples of it only (Algorithm 2); `label`: its id, so far unknown.

        Sigma becomes C/(C+1) Sigma + 1/(C+1) Sigma_new; the weights of the layers stay.
        """
        layers = self._same_widths(layer_features)
        require(label not in self.classes_, "label", "a new class id", label)
        n_known, covariances = len(self.classes_), []
        for f, old in zip(layers, self._matrices(self.covariances_), strict=True):
            new = np.cov(f.astype(np.float64).T, bias=True).reshape(old.shape)
            covariances.append((n_known * old + new) / (n_known + 1))
        mean = np.concatenate([f.mean(axis=0, dtype=np.float64) for f in layers])
        self.classes_ = np.append(self.classes_, label)
        self.means_ = np.vstack([self.means_, mean])
        self._set_covariances(covariances)
        return self

    def squared_distances(self, layer_features: Any, *, layer: int = -1) -> np.ndarray:
        """(B, K) squared Mahalanobis distances to the class means in one layer."""
        f = self._same_widths(layer_features)[layer]
        W, mu = self._matrices(self.whiteners_)[layer], self._means()[layer]
        center = mu.mean(axis=0)
        return np.asarray(cdist((f - center) @ W, (mu - center) @ W, "sqeuclidean"))

    def classify(self, layer_features: Any, *, layer: int = -1) -> np.ndarray:
        """(B,) class ids of the generative classifier with equal priors."""
        nearest = self.squared_distances(layer_features, layer=layer).argmin(axis=1)  # (3)
        return np.asarray(self.classes_[nearest])

    def layer_scores(self, layer_features: Any) -> np.ndarray:
        """(B, L) smallest squared distances, -M_l of (2); higher = more anomalous."""
        layers = self._same_widths(layer_features)
        return np.stack(  # (2)
            [self.squared_distances(layers, layer=i).min(axis=1) for i in range(len(layers))], 1
        )

    def score(self, layer_features: Any) -> np.ndarray:
        """(B,) weighted layer scores; higher = more anomalous (-M for one layer)."""
        return np.asarray(self.layer_scores(layer_features) @ self.weights_ + self.bias_)

    def perturbed_layer_scores(
        self, network: Network, x: Tensor, *, magnitude: float = 0.0014, input_std: Std = 1.0
    ) -> np.ndarray:
        """(B, L) layer scores, each at its own pre-processed input x' of equation (4).

        network: x (B, ...) -> the layers as `fit` got them, as tensors; in evaluation mode, so
        that samples do not see each other. magnitude: step in the unit of the raw input;
        input_std: what the raw input was divided by (it broadcasts to x), 1 if not.
        """
        require(magnitude >= 0.0, "magnitude", "at least 0", magnitude)
        x = x.detach().clone().requires_grad_()
        layers = [h.flatten(2).mean(dim=2) if h.ndim > 2 else h for h in network(x)]
        arrays = self._same_widths([h.detach().numpy() for h in layers])
        columns = []
        for index, f in enumerate(layers):
            closest = self.squared_distances(arrays, layer=index).argmin(axis=1)
            mu = torch.from_numpy(self._means()[index][closest]).to(f.dtype)
            W = torch.from_numpy(self._matrices(self.whiteners_)[index]).to(f.dtype)
            distance = ((f - mu) @ W).square().sum()
            (gradient,) = torch.autograd.grad(distance, x, retain_graph=True)
            sign = torch.where(gradient >= 0, 1.0, -1.0).to(x.dtype)
            with torch.no_grad():
                f_moved = [h.numpy() for h in network(x - magnitude * sign / input_std)]  # (4)
            columns.append(self.squared_distances(f_moved, layer=index).min(axis=1))
        return np.stack(columns, axis=1)

    def score_with_perturbation(
        self, network: Network, x: Tensor, *, magnitude: float = 0.0014, input_std: Std = 1.0
    ) -> np.ndarray:
        """(B,) Algorithm 1: weighted `perturbed_layer_scores`; higher = more anomalous."""
        scores = self.perturbed_layer_scores(network, x, magnitude=magnitude, input_std=input_std)
        return np.asarray(scores @ self.weights_ + self.bias_)  # Algorithm 1

    def fit_ensemble(
        self, scores: np.ndarray, target: np.ndarray, *, penalties: tuple[float, ...] = PENALTIES
    ) -> MahalanobisDetector:
        """Weigh the layers by logistic regression; afterwards a score is the log odds.

        scores (B, L): layer scores of validation samples, perturbed or not; target (B,): 1 =
        abnormal (known or adversarial samples, never those of the final test), 0 = normal.
        """
        scores, target = np.asarray(scores, dtype=np.float64), np.asarray(target)
        shape = (len(target), len(self.dims_))
        require(scores.shape == shape, "scores", f"{shape}, one column a layer", scores)
        require(bool(np.isfinite(scores).all()), "scores", "finite", scores)
        require(set(np.unique(target)) == {0, 1}, "target", "0 and 1, both present", target)
        fewest = int(min((target == 0).sum(), (target == 1).sum()))
        require(fewest >= N_FOLDS, "target", f"at least {N_FOLDS} of each side", fewest)
        center, spread = scores.mean(axis=0), scores.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        w = _cross_validated((scores - center) / spread, target, penalties)
        self.weights_ = w[:-1] / spread
        self.bias_ = float(w[-1] - center @ self.weights_)
        return self

    def _set_covariances(self, covariances: list[np.ndarray]) -> np.ndarray:
        """Store Sigma and its whitener a layer; return the (L,) ranks of Sigma."""
        whiteners = []
        for sigma, floor in zip(covariances, self.floors_, strict=True):
            variance = np.trace(sigma) / len(sigma)
            shrunk = (1 - self.shrinkage) * sigma + self.shrinkage * variance * np.eye(len(sigma))
            whiteners.append(_whitener(shrunk, floor))
        self.covariances_ = np.concatenate([sigma.ravel() for sigma in covariances])
        self.whiteners_ = np.concatenate([W.ravel() for W in whiteners])
        return np.array([int((W != 0).any(axis=0).sum()) for W in whiteners])

    def _matrices(self, flat: np.ndarray) -> list[np.ndarray]:
        """The (D_l, D_l) matrices of all layers out of one flat array."""
        pieces = np.split(flat, np.cumsum(self.dims_**2)[:-1])
        return [piece.reshape(D, D) for piece, D in zip(pieces, self.dims_, strict=True)]

    def _means(self) -> list[np.ndarray]:
        """The (K, D_l) class means of all layers."""
        return np.split(self.means_, np.cumsum(self.dims_)[:-1], axis=1)

    def _same_widths(self, layer_features: Any) -> list[np.ndarray]:
        """The layers, checked against the widths of the fitted ones."""
        require(hasattr(self, "dims_"), "detector", "fitted: call fit first", "an unfitted one")
        layers = _layers(layer_features)
        widths, fitted = [f.shape[1] for f in layers], [int(D) for D in self.dims_]
        require(widths == fitted, "layer_features", f"of the fitted widths {fitted}", widths)
        return layers
