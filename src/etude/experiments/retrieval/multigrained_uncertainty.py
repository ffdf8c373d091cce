"""Requests with several right answers, of which training names one.

Data: `drawn_scenes` (see ``_composed``). Both towers first learn from 3,000 pictures with captions.
A request is a picture and "make it red" or the like (a shape, color or texture); the other two of
these three stay and the background is free, so that 4 of the 1,024 kinds of scene are right. A
training triplet names a picture of one of them at random, and two triplets of a batch may well
name right answers of one another. 1,500 triplets are for training; 500 validation requests and
2,000 test requests have galleries of their own with one picture of each kind. Recall@k is the
share of requests with any right picture among the first k.

Towers and compositor are trained together from the same weights, for 200 steps of 64 triplets, with
the uncertainty loss; with InfoNCE on the named target; or with InfoNCE on the noised target alone
("noised_target"). Each chooses among two learning rates and, in this order, two values of gamma,
of the length of the features, and of the size of the noise, by Recall@10 on validation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from etude.experiments.retrieval._composed import (
    DIM,
    SIZES,
    Scenes,
    World,
    caption,
    change_word,
    numbered,
    pretrain,
    recalls,
)
from etude.retrieval import ComposedRetriever, MultiGrainedUncertaintyLoss, NormalAugmenter
from etude.tasks.base import Pair

__all__ = ["measure"]

N_TRAIN, N_VALIDATION, N_TEST, N_STEPS, BATCH, N_EPOCHS = 1500, 500, 2000, 200, 64, 20
RATES = (5e-4, 2e-3)
Loss = Callable[[Tensor, Tensor, float], Tensor]  # query, target, progress


@dataclass
class Requests:
    """references (B, 300), texts, wanted kinds (B, 4), whose background is one of the right."""

    references: Tensor
    texts: Tensor
    wanted: np.ndarray


class Model(nn.Module):
    """Image tower, text tower and compositor."""

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text, self.compose = image, text, ComposedRetriever(DIM)

    def query(self, references: Tensor, texts: Tensor) -> Tensor:
        """(B, 32), not normalized."""
        return self.compose(self.image(references), self.text(texts))

    @torch.no_grad()
    def recall(self, requests: Requests, gallery: Scenes, k: int) -> float:
        """Share of requests with any right picture among the first k."""
        asked = self.query(requests.references, requests.texts)
        shown = self.image(gallery.images)
        return recalls(asked, shown, requests.wanted[:, :3], gallery.values[:, :3], k)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is the uncertainty loss against InfoNCE by Recall@10."""
    world = World(seed)
    scenes = world.draw(world.kinds(3000))
    towers = pretrain(scenes, numbered([caption(v) for v in scenes.values]), seed, n_steps=300)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = Model(*towers)
    train = _requests(world, N_TRAIN)
    targets = world.draw(train.wanted).images
    held, test = _requests(world, N_VALIDATION), _requests(world, N_TEST)
    galleries = world.gallery(), world.gallery()

    arms: dict[str, list[Loss]] = {
        "uncertainty": [_uncertainty(gamma, seed) for gamma in (1.0, 3.0)],
        "infonce": [_infonce(scale) for scale in (4.0, 6.0)],
        "noised_target": [_noised(share, seed) for share in (1.0, 0.5)],
    }
    found, spent = {}, {}
    for name, losses in arms.items():
        begun, runs = time.perf_counter(), []
        for loss in losses:
            for lr in RATES:
                model = _trained(start, loss, train, targets, lr, seed)
                runs.append((model.recall(held, galleries[0], 10), model))
        spent[name] = time.perf_counter() - begun
        model = max(runs, key=lambda run: run[0])[1]
        found[name] = {k: model.recall(test, galleries[1], k) for k in (10, 1)}
    return [
        Pair(
            metric=f"recall_at_{k}", ours=found["uncertainty"][k], baseline=found[other][k],
            baseline_name=other, data="drawn_scenes", setting="4 right answers",
            ours_s=spent["uncertainty"], baseline_s=spent[other],
        )
        for k in (10, 1) for other in ("infonce", "noised_target")
    ]  # fmt: skip


def _requests(world: World, n: int) -> Requests:
    kinds = world.kinds(n)
    factor = world.rng.integers(0, 3, n)
    sizes = np.asarray(SIZES)[factor]
    wanted, rows = kinds.copy(), np.arange(n)
    shift = 1 + np.floor(world.rng.random(n) * (sizes - 1)).astype(int)
    wanted[rows, factor] = (wanted[rows, factor] + shift) % sizes
    wanted[:, 3] = world.rng.integers(0, SIZES[3], n)
    texts = [f"make it {change_word(v, f)}" for v, f in zip(wanted, factor, strict=True)]
    return Requests(world.draw(kinds).images, numbered(texts), wanted)


def _uncertainty(gamma: float, seed: int) -> Loss:
    generator = torch.Generator().manual_seed(seed)
    loss = MultiGrainedUncertaintyLoss(gamma=gamma, generator=generator)
    return lambda query, target, progress: loss(query, target, progress=progress)


def _infonce(scale: float) -> Loss:
    match = MultiGrainedUncertaintyLoss().match

    def loss(query: Tensor, target: Tensor, progress: float) -> Tensor:
        return match(scale * normalize(query, dim=1), scale * normalize(target, dim=1))

    return loss


def _noised(share: float, seed: int) -> Loss:
    """InfoNCE on the target and `share` of what the augmenter adds to it."""
    augment = NormalAugmenter(generator=torch.Generator().manual_seed(seed))
    match = MultiGrainedUncertaintyLoss().match

    def loss(query: Tensor, target: Tensor, progress: float) -> Tensor:
        target = 4 * normalize(target, dim=1)
        return match(4 * normalize(query, dim=1), torch.lerp(target, augment(target), share))

    return loss


def _trained(
    start: Model, loss: Loss, train: Requests, targets: Tensor, lr: float, seed: int
) -> Model:
    model = copy.deepcopy(start)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(N_STEPS):
        rows = torch.randint(len(targets), (BATCH,), generator=generator)
        query = model.query(train.references[rows], train.texts[rows])
        progress = int(step * N_EPOCHS / N_STEPS) / N_EPOCHS
        value = loss(query, model.image(targets[rows]), progress)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model
