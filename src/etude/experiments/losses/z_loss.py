"""Z-loss against cross-entropy in next-word prediction, by the rank of the right word.

Measured: how often the right word is among the first ten of the network's ranking (headline),
and how often it is the first. Data: the validation part of WikiText-2 (`valid.txt`,
looked for in ETUDE_DATA); the classes are its 2,000 most frequent words, everything else is one
unknown word that is read but never predicted. The network embeds the two words before and has
one hidden layer. The text is cut into blocks of 400 words, and a seed deals the blocks 60 / 20 /
20 into training, validation and test, of which the last two give 8,000 words each; it also sets
the initial weights and the batches, the same for every candidate of both arms.

Tuning: three slopes and locations for the Z-loss, three label smoothings for cross-entropy, each
at two learning rates and two stopping points; twelve candidates an arm. Validation words choose,
for each measure by itself; the test words are read once, for the chosen candidate.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.lab.data import find_data
from etude.losses import ZLoss
from etude.tasks.base import Pair

__all__ = ["measure"]

N_WORDS, BLOCK, CONTEXT, N_HELD = 2000, 400, 2, 8000
DIM, HIDDEN, BATCH = 32, 64, 128
SETTINGS = ((1.0, 0.0), (0.3, 10.0), (0.1, 30.0))  # slope and location
SMOOTHINGS = (0.0, 0.1, 0.3)
LEARNING_RATES = (3e-3, 1e-2)
CHECKPOINTS = (150, 300)
DATA = "wikitext2-valid"
METRICS = {"recall_at_10": 10, "recall_at_1": 1}
Loss = Callable[[Tensor, Tensor], Tensor]
Part = tuple[Tensor, Tensor]  # (N, CONTEXT) words before, (N,) the word


@dataclass(frozen=True)
class Stop:
    """One network where its training is found to have stopped: recall by metric."""

    validation: dict[str, float]
    test: dict[str, float]


def measure(seed: int) -> list[Pair]:
    """Recall at ten, then at one."""
    parts = _parts(seed)
    ours, ours_s = _arm(parts, [ZLoss(slope=a, location=b) for a, b in SETTINGS], seed)
    theirs, theirs_s = _arm(parts, [_smoothed(smoothing) for smoothing in SMOOTHINGS], seed)
    return [
        Pair(metric=metric, ours=_chosen(ours, metric), baseline=_chosen(theirs, metric),
             baseline_name="cross_entropy", data=DATA, setting=f"{N_WORDS} words",
             ours_s=ours_s, baseline_s=theirs_s)
        for metric in METRICS
    ]  # fmt: skip


def _chosen(stops: list[Stop], metric: str) -> float:
    return max(stops, key=lambda stop: stop.validation[metric]).test[metric]


def _smoothed(smoothing: float) -> Loss:
    return lambda logits, target: F.cross_entropy(logits, target, label_smoothing=smoothing)


def _arm(parts: list[Part], losses: list[Loss], seed: int) -> tuple[list[Stop], float]:
    started = time.perf_counter()
    runs = [_train(parts, loss, lr, seed) for loss in losses for lr in LEARNING_RATES]
    return [stop for run in runs for stop in run], time.perf_counter() - started


def _parts(seed: int) -> list[Part]:
    """Train, validation and test; the last class id, N_WORDS, is the unknown word."""
    words = find_data(f"{DATA}/valid.txt").read_text(encoding="utf-8").split()
    frequent = Counter(word for word in words if word != "<unk>").most_common(N_WORDS)
    number = {word: k for k, (word, _) in enumerate(frequent)}
    ids = torch.tensor([number.get(word, N_WORDS) for word in words])
    blocks = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)
    order = torch.from_numpy(np.random.default_rng([seed, 48]).permutation(len(blocks)))
    held = round(0.2 * len(blocks))
    parts = []
    for rows in (order[2 * held :], order[:held], order[held : 2 * held]):
        windows = blocks[rows].unfold(1, CONTEXT + 1, 1).reshape(-1, CONTEXT + 1)
        windows = windows[windows[:, -1] < N_WORDS]
        parts.append((windows[:, :-1], windows[:, -1]))
    train, *rest = parts
    return [train, *((before[:N_HELD], word[:N_HELD]) for before, word in rest)]


def _train(parts: list[Part], loss: Loss, lr: float, seed: int) -> list[Stop]:
    """The network at each checkpoint."""
    (before, word), *held = parts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Embedding(N_WORDS + 1, DIM), nn.Flatten(), nn.Linear(CONTEXT * DIM, HIDDEN),
            nn.ReLU(), nn.Linear(HIDDEN, N_WORDS),
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    stops = []
    for step in range(1, CHECKPOINTS[-1] + 1):
        rows = torch.randint(len(word), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(network(before[rows]), word[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in CHECKPOINTS:
            stops.append(Stop(*(_recalls(network, part) for part in held)))
    return stops


@torch.inference_mode()
def _recalls(network: nn.Module, part: Part) -> dict[str, float]:
    """The share of words that fewer than k others outscore; a tie counts half."""
    ranks = []
    for before, word in zip(*(torch.split(side, 2048) for side in part), strict=True):
        scores = network(before)
        own = scores.gather(1, word[:, None])
        ranks.append((scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2)
    rank = torch.cat(ranks)
    return {metric: float((rank < k).double().mean()) for metric, k in METRICS.items()}
