"""Dynamic subspace learners against one learner, on characters never trained on.

Data: the 136 characters of Omniglot's small background set, twenty drawings each, at 14 x 14
pixels. Each seed draws 60 characters to train on, 38 to tune on and 38 to test on, and other
initial weights. A network of two convolutions under the embedding of 64 neurons trains on the
first; recall at 1 and the normalized mutual information of k-means clusters are measured among all
drawings of the test characters (headline: recall at 1 against one learner; then the other
baselines, and both measures).

Arms: one learner is the same training without a split; two and four learners are fixed from the
start; "softmax" is the pooled features of the same network under a linear classifier.

The draws start at 50: learning rates and the number of epochs were settled after a look at draw 0.

Tuning: every arm has two learning rates and the same number of epochs and batches; the tuning
characters choose by recall at 1, and their mutual information tells dynamic learners of a stall.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.experiments.losses._baselines import clustering
from etude.experiments.losses.proto_triplet_icnn import _drawings
from etude.losses import DynamicSubspaceEmbedding, SubspaceMarginTrainer
from etude.tasks.base import Pair
from etude.tasks.measures import recall_at_1
from etude.tasks.training import optimize

__all__ = ["measure"]

N_TRAIN, N_TUNING = 60, 38  # characters; the rest are tested
CHANNELS, OUT_DIM = 32, 64
N_EPOCHS, JOINT, PATIENCE = 24, 19, 2
RATES = (3e-3, 1e-2)
FIRST_DRAW = 50
FIXED = {"one_learner": 1, "two_learners": 2, "four_learners": 4}


@dataclass(frozen=True)
class Result:
    """Recall on the tuning characters; recall and mutual information on the test characters."""

    tuning: float
    recall: float
    information: float


def measure(seed: int) -> list[Pair]:
    """The pairs of one seed; the first is recall at 1 against one learner."""
    seed += FIRST_DRAW
    x, y = _drawings()
    characters = np.random.default_rng([seed, 150]).permutation(len(np.unique(y)))
    cut = np.split(characters, [N_TRAIN, N_TRAIN + N_TUNING])
    parts = [torch.from_numpy(np.isin(y.numpy(), c)).nonzero()[:, 0] for c in cut]
    values, seconds = {}, {}
    for arm in ("dynamic", *FIXED, "softmax"):
        started = time.perf_counter()
        runs = [_run(arm, x, y, parts, lr, seed) for lr in RATES]
        seconds[arm] = time.perf_counter() - started
        values[arm] = max(runs, key=lambda run: run.tuning)
    ours = values["dynamic"]
    return [
        Pair(metric=metric, ours=getattr(ours, name), baseline=getattr(values[arm], name),
             baseline_name=arm, data="omniglot-small", setting="new characters",
             ours_s=seconds["dynamic"], baseline_s=seconds[arm])
        for metric, name in (("recall_at_1", "recall"),
                             ("normalized_mutual_information", "information"))
        for arm in (*FIXED, "softmax")
    ]  # fmt: skip


def _network(seed: int) -> nn.Sequential:
    """(B, 784) ink -> (B, CHANNELS, 7, 7) features."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28)), nn.AvgPool2d(2)]
        for inputs, outputs, stride in ((1, 32, 2), (32, CHANNELS, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)


def _run(arm: str, x: Tensor, y: Tensor, parts: list[Tensor], lr: float, seed: int) -> Result:
    train, tuning, test = parts
    network = _network(seed)
    if arm == "softmax":
        target = torch.unique(y[train], return_inverse=True)[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            classifier = nn.Linear(CHANNELS, N_TRAIN)

        def loss(rows: Tensor) -> Tensor:
            logits = classifier(network(x[train][rows]).mean(dim=(2, 3)))
            return F.cross_entropy(logits, target[rows])

        n_steps = N_EPOCHS * (len(train) // 32)  # as many batches, twice as large
        weights = [*network.parameters(), *classifier.parameters()]
        optimize(weights, loss, len(train), seed=seed, lr=lr, n_steps=n_steps)
        network.eval()
        with torch.inference_mode():
            z = F.normalize(network(x).mean(dim=(2, 3)), dim=1).numpy()
        return _result(z, y, tuning, test, seed)
    head = DynamicSubspaceEmbedding(
        CHANNELS, out_dim=OUT_DIM, n_learners=FIXED.get(arm, 1),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    trainer = SubspaceMarginTrainer(
        network, head=head, n_epochs=N_EPOCHS, joint_epoch=JOINT,
        patience=PATIENCE if arm == "dynamic" else N_EPOCHS, lr=lr, seed=seed,
    )  # fmt: skip

    def held() -> float:
        z = F.normalize(trainer.embed(x[tuning]), dim=1).numpy()
        return clustering(z, y[tuning].numpy(), seed)

    trainer.fit(x[train], y[train], held if arm == "dynamic" else lambda: 0.0)
    z = F.normalize(trainer.embed(x), dim=1).numpy()
    return _result(z, y, tuning, test, seed)


def _result(z: np.ndarray, y: Tensor, tuning: Tensor, test: Tensor, seed: int) -> Result:
    labels = y.numpy()
    return Result(
        recall_at_1(z[tuning], labels[tuning]), recall_at_1(z[test], labels[test]),
        clustering(z[test], labels[test], seed),
    )  # fmt: skip
