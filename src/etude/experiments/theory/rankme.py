"""theory.rankme: does the rank of embeddings choose as good a run as labels would?

For SimCLR and for VICReg apart, 12 runs on scikit-learn's digits (719 images, no labels used)
differ in one knob of the loss (temperature; covariance weight) and in the learning rate; all
other settings, the initial weights and the augmentations are the same. Each selector sees the 12
runs of one method and takes one:

- RankMe: the highest effective rank of the projector's output on the training images;
- "lowest_loss", the card's baseline: the lowest self-supervised loss on validation images, with
  the same augmentations for all runs. It compares learning rates fairly; where the knob scales
  the loss itself (most in VICReg, where weight 0 must win) it is misled, and nothing can be
  tuned about it, so "random_run" stands beside it;
- "random_run": the mean over the 12 runs, what a choice in the dark is worth;
- "oracle": the best linear probe on the validation labels, which a label-free rule cannot use.

The value of a run is the accuracy of a linear probe (multinomial logistic regression on the
frozen encoder's standardized output, its C by validation accuracy) on the test images, which no
selector sees. The headline is the mean over the two methods; each is reported alone too, with
the regret against the oracle, and the rank correlation of each label-free score with the
accuracy over the 12 runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from etude.lab.data import load_dataset
from etude.tasks.base import Dataset, Pair, Split, split_rows
from etude.theory.rankme import RankMeSelector

__all__ = ["measure"]

METHODS = {
    "simclr": (0.03, 0.07, 0.2, 0.5, 1.0, 3.0),  # temperature
    "vicreg": (0.0, 0.01, 0.1, 1.0, 10.0, 100.0),  # covariance weight
}
LRS = (1e-3, 5e-3)
N_STEPS, BATCH, HIDDEN, WIDTH, PROJECTED = 300, 256, 256, 64, 64
PROBE_CS = (0.01, 0.1, 1.0, 10.0)


class Network(nn.Module):
    """An encoder (the representation) and a projector (the embedding that the loss sees)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(dim, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, WIDTH, bias=False),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
        )
        self.projector = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, PROJECTED),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D) -> embeddings (B, PROJECTED)."""
        return self.projector(self.encoder(x))


def simclr_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the other view among all other samples of both views, in nats."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def vicreg_loss(a: Tensor, b: Tensor, covariance_weight: float) -> Tensor:
    """25 times invariance, 25 times the hinge on standard deviations, and the covariances."""
    total = 25 * F.mse_loss(a, b)
    for z in (a, b):
        centered = z - z.mean(dim=0)
        covariance = centered.T @ centered / (len(z) - 1)
        deviation = (covariance.diagonal() + 1e-4).sqrt()
        total = total + 25 * F.relu(1 - deviation).mean() / 2
        off = covariance - torch.diag(covariance.diagonal())
        total = total + covariance_weight * off.square().sum() / z.shape[1]
    return total


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "simclr": simclr_loss,
    "vicreg": vicreg_loss,
}


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 64) turned, shifted and scaled a little, with noise and a fifth erased."""
    B = len(x)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, generator=generator)

    angle, size = between(-0.3, 0.3), between(0.8, 1.2)
    cosine, sine = angle.cos() * size, angle.sin() * size
    rows = [cosine, -sine, between(-0.3, 0.3), sine, cosine, between(-0.3, 0.3)]
    grid = F.affine_grid(torch.stack(rows, 1).view(B, 2, 3), [B, 1, 8, 8], align_corners=False)
    moved = F.grid_sample(x.view(B, 1, 8, 8), grid, align_corners=False).flatten(1)
    moved = moved + 0.1 * torch.randn(moved.shape, generator=generator)
    return moved * (torch.rand(moved.shape, generator=generator) > 0.2)


@dataclass(frozen=True)
class Outcome:
    """What the selectors may see of a run, and its value."""

    embeddings: np.ndarray
    loss: float
    validation: float
    test: float


def probe(data: Dataset, split: Split, features: np.ndarray) -> tuple[float, float]:
    """Validation and test accuracy of a linear probe, its C chosen on validation."""
    assert data.y is not None
    train = features[split.train]
    z = (features - train.mean(axis=0)) / (train.std(axis=0) + 1e-6)
    found = []
    for C in PROBE_CS:
        model = LogisticRegression(C=C, max_iter=300).fit(z[split.train], data.y[split.train])
        held = model.score(z[split.validation], data.y[split.validation])
        found.append((held, model.score(z[split.test], data.y[split.test])))
    return max(found, key=lambda pair: pair[0])


def run(method: str, knob: float, lr: float, data: Dataset, split: Split, seed: int) -> Outcome:
    """Train one network without labels and value it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(data.x.shape[1])
    x = torch.from_numpy(data.x)
    train, held = x[split.train], x[split.validation]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    for _ in range(N_STEPS):
        rows = torch.randperm(len(train), generator=generator)[:BATCH]
        a, b = view(train[rows], generator), view(train[rows], generator)
        optimizer.zero_grad()
        LOSSES[method](network(a), network(b), knob).backward()
        optimizer.step()
    network.eval()
    generator.manual_seed(seed + 1)
    with torch.no_grad():
        a, b = network(view(held, generator)), network(view(held, generator))
        loss = LOSSES[method](a, b, knob).item()
        validation, test = probe(data, split, network.encoder(x).numpy())
        return Outcome(network(train).numpy(), loss, validation, test)


def measure(seed: int) -> list[Pair]:
    """The pairs of one seed; the first is the card's claim."""
    data = load_dataset("digits")
    split = split_rows(data, seed, test=0.4)
    chosen: dict[str, dict[str, float]] = {}
    correlation: dict[str, dict[str, float]] = {}
    seconds = 0.0
    for method, knobs in METHODS.items():
        settings = [(knob, lr) for knob in knobs for lr in LRS]
        runs = [run(method, knob, lr, data, split, seed) for knob, lr in settings]
        start = time.perf_counter()
        selector = RankMeSelector().fit([outcome.embeddings for outcome in runs])
        seconds += time.perf_counter() - start
        losses, tests = np.array([r.loss for r in runs]), np.array([r.test for r in runs])
        chosen[method] = {
            "rankme": tests[selector.selected_],
            "lowest_loss": tests[losses.argmin()],
            "random_run": tests.mean(),
            "oracle": tests[np.argmax([r.validation for r in runs])],
        }
        correlation[method] = {
            "rankme": spearmanr(selector.rankmes_, tests)[0],
            "lowest_loss": spearmanr(-losses, tests)[0],
        }

    def pair(metric: str, baseline: str, setting: str) -> Pair:
        methods = [setting] if setting else list(METHODS)

        def value(arm: str) -> float:
            table = correlation if metric == "spearman" else chosen
            values = [table[method][arm] for method in methods]
            if metric == "regret":
                best = [chosen[method]["oracle"] for method in methods]
                values = [b - v for b, v in zip(best, values, strict=True)]
            return float(np.mean(values))

        return Pair(
            metric=metric,
            ours=value("rankme"),
            baseline=value(baseline),
            baseline_name=baseline,
            data="digits",
            setting=setting,
            ours_s=seconds,
        )

    return [
        pair(metric, baseline, setting)
        for setting in ("", *METHODS)
        for metric, baseline in (
            ("accuracy", "lowest_loss"),
            ("accuracy", "random_run"),
            ("accuracy", "oracle"),
            ("regret", "lowest_loss"),
            ("spearman", "lowest_loss"),
        )
    ]
