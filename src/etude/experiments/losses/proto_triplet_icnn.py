"""Few-shot episodes of unseen characters, with and without the two distance losses.

Data: Omniglot (its small background set: 136 characters, 20 drawings each), averaged down to
28 x 28. A seed draws 90 characters to train on, 20 to choose the learning rate on and 26 to test
on. Measured: accuracy by the nearest prototype in 600 episodes of five of the 26 characters, one
support row and five queries of each; the same episodes for every arm, and further pairs with
five support rows.

Every arm trains the same small convolutional encoder from the same initial weights, on the same
episodes (five ways, one shot, five queries), at the better of two learning rates, chosen by 300
validation episodes. Arms: prototypical cross-entropy alone; with the prototype triplet (ours);
with the neighborhood score; with both; and the prototype triplet alone.
"""

from __future__ import annotations

import io
import time
import zipfile
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etude.lab.data import find_data
from etude.losses import EpisodicTrainer
from etude.nets.encoders import ConvEncoder
from etude.tasks.base import Pair

__all__ = ["measure"]

N_TRAIN, N_VALIDATION = 90, 20
WAY, QUERIES, STEPS = 5, 5, 150
RATES = (1e-3, 4e-3)
ARMS = {
    "prototypical": ("prototypical",),
    "with_triplet": ("prototypical", "proto_triplet"),
    "with_icnn": ("prototypical", "icnn"),
    "with_both": ("prototypical", "proto_triplet", "icnn"),
    "triplet_alone": ("proto_triplet",),
}


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed against prototypical cross-entropy; the first adds the triplet."""
    x, y = _drawings()
    order = np.random.default_rng([seed, 129]).permutation(int(y.max()) + 1)
    cuts = np.split(order, [N_TRAIN, N_TRAIN + N_VALIDATION])
    train, validation, test = (torch.from_numpy(np.isin(y.numpy(), some)) for some in cuts)
    right: dict[str, tuple[float, float]] = {}
    spent: dict[str, float] = {}
    for name, losses in ARMS.items():
        started, best = time.perf_counter(), -1.0
        for lr in RATES:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = ConvEncoder((1, 28, 28), 64, width=16)
            trainer = EpisodicTrainer(network, losses=losses, n_way=WAY, n_query=QUERIES,
                                      n_steps=STEPS, lr=lr, seed=seed)  # fmt: skip
            trainer.fit(x[train], y[train])
            held = _episodes(network, x[validation], y[validation], 1, 300, seed)
            if held > best:
                best, right[name] = held, (
                    _episodes(network, x[test], y[test], 1, 600, seed),
                    _episodes(network, x[test], y[test], 5, 600, seed),
                )  # fmt: skip
        spent[name] = time.perf_counter() - started

    def pair(arm: str, shots: int) -> Pair:
        at = 0 if shots == 1 else 1
        return Pair(
            metric="accuracy", ours=right[arm][at], baseline=right["prototypical"][at],
            baseline_name="prototypical", data="omniglot",
            setting=f"{arm}, {WAY} ways, {shots} shot", ours_s=spent[arm],
            baseline_s=spent["prototypical"],
        )  # fmt: skip

    arms = ("with_triplet", "with_icnn", "with_both", "triplet_alone")
    return [pair(arm, shots) for shots in (1, 5) for arm in arms]


def _episodes(network: ConvEncoder, x: Tensor, y: Tensor, shots: int, n: int, seed: int) -> float:
    """Mean accuracy over `n` episodes, drawn by the seed alone."""
    with torch.inference_mode():
        z = network(x).numpy()
    rng, classes, right = np.random.default_rng([seed, shots, n]), np.unique(y), []
    rows_of = {c: np.flatnonzero(y.numpy() == c) for c in classes.tolist()}
    for _ in range(n):
        ways = rng.permutation(classes)[:WAY].tolist()
        drawn = np.stack([rng.permutation(rows_of[c])[: shots + QUERIES] for c in ways])
        centers = z[drawn[:, :shots]].mean(axis=1)
        query = z[drawn[:, shots:]].reshape(WAY * QUERIES, -1)
        d = ((query[:, None] - centers[None]) ** 2).sum(axis=2)
        right.append((d.argmin(axis=1) == np.repeat(np.arange(WAY), QUERIES)).mean())
    return float(np.mean(right))


@cache
def _drawings() -> tuple[Tensor, Tensor]:
    """(2720, 784) ink in [0, 1] and character ids; read once a process."""
    rows, names = [], []
    with zipfile.ZipFile(find_data("omniglot-small/images_background_small1.zip")) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".png") and "__MACOSX" not in name:
                image = Image.open(io.BytesIO(archive.read(name))).convert("L")
                rows.append(1 - np.asarray(image.resize((28, 28), Image.Resampling.BOX)) / 255.0)
                names.append(name.rpartition("/")[0])
    x = torch.from_numpy(np.stack(rows).reshape(len(rows), -1)).float()
    return x, torch.from_numpy(np.unique(names, return_inverse=True)[1])
