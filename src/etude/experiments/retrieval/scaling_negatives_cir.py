"""A second stage against all training images, against more steps of the first.

Data: `drawn_scenes` (see ``_composed``). Both towers first learn from 3,000 pictures with
captions, as a pretrained model has. A request is a picture and a text such as "make it striped";
its target shows the same scene with that one respect changed. 1,500 triplets are for training;
for 500 validation requests and 2,000 test requests a gallery of its own holds one picture of each
of the 1,024 kinds of scene, one of which is right.

All arms start from the same weights after 300 steps of stage 1 (batches of 64, the better of two
learning rates by validation), where more of it gains little, and take 150 more steps:
"longer_stage_one" of the same kind; "queue" with the last 1,024 targets of a slowly following
image tower as further negatives (He et al., 2020); stage 2 against all training images. Each
chooses among two learning rates and two temperatures by Recall@1 on validation. The times are
those of the chosen run.

A further setting has a tenth of the triplets: stage 1 with 1,500 triplets synthesized from
captions beside them against stage 1 without, and with stage 2 after both against stage 1 alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from etude.experiments.retrieval._composed import (
    Scenes,
    World,
    caption,
    changes,
    numbered,
    pretrain,
    recalls,
)
from etude.retrieval import TwoStageCIRTrainer, synthesize_triplets
from etude.tasks.base import Pair

__all__ = ["measure"]

N_TRAIN, N_VALIDATION, N_TEST, BATCH, QUEUE = 1500, 500, 2000, 64, 1024
FIRST, N_STEPS = 300, 150
RATES, TEMPERATURES = (3e-4, 2e-3), (0.02, 0.05)
Towers = tuple[nn.Module, nn.Module]
Triplets = tuple[Tensor, Tensor, Tensor, Tensor]  # images, reference, texts, target
Training = Callable[[Towers, float, float], None]


@dataclass
class Requests:
    """references, texts, wanted kinds (B, 4), and a gallery with one picture of each kind."""

    references: Tensor
    texts: Tensor
    wanted: np.ndarray
    gallery: Scenes

    @torch.no_grad()
    def recall(self, towers: Towers) -> float:
        """Recall@1 of the sum of raw features."""
        asked = towers[0](self.references) + towers[1](self.texts)
        shown = towers[0](self.gallery.images)
        return recalls(asked, shown, self.wanted, self.gallery.values, 1)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is stage 2 against as many more steps of stage 1."""
    world = World(seed)
    learned = world.draw(world.kinds(3000))
    towers = pretrain(learned, numbered([caption(v) for v in learned.values]), seed, n_steps=300)
    triplets = _triplets(world, N_TRAIN)
    held, test = _requests(world, N_VALIDATION), _requests(world, N_TEST)

    start, _ = _best(towers, held, _stage_one(triplets, seed, FIRST), RATES, TEMPERATURES[1:])
    arms = {
        "stage_two": _stage_two(triplets, seed),
        "longer_stage_one": _stage_one(triplets, seed + 1),
        "queue": _queue(triplets, seed + 1),
    }
    found, spent = {"stage_one": test.recall(start)}, {"stage_one": 0.0}
    for name, training in arms.items():
        trained, spent[name] = _best(start, held, training, RATES, TEMPERATURES)
        found[name] = test.recall(trained)

    few = N_TRAIN // 10
    some = (triplets[0], triplets[1][:few], triplets[2][:few], triplets[3][:few])
    more = _more(towers, world, some, seed)
    for name, given in (("few", some), ("synthesized", more)):
        trained, spent[name] = _best(
            towers, held, _stage_one(given, seed, FIRST), RATES, TEMPERATURES[1:]
        )
        found[name] = test.recall(trained)
    trained, seconds = _best(trained, held, _stage_two(more, seed), RATES, TEMPERATURES)
    found["both"], spent["both"] = test.recall(trained), seconds + spent["synthesized"]

    def pair(ours: str, other: str, setting: str) -> Pair:
        return Pair(
            metric="recall_at_1", ours=found[ours], baseline=found[other], baseline_name=other,
            data="drawn_scenes", setting=setting, ours_s=spent[ours], baseline_s=spent[other],
        )  # fmt: skip

    return [
        *(pair("stage_two", other, "all triplets") for other in
          ("longer_stage_one", "queue", "stage_one")),
        pair("synthesized", "few", "a tenth of the triplets, synthesized ones added"),
        pair("both", "few", "a tenth of the triplets, synthesized ones and stage 2 added"),
    ]  # fmt: skip


def _triplets(world: World, n: int) -> Triplets:
    kinds, wanted, words = changes(world, n)
    texts = [f"make it {word}" for word in words]
    images = torch.cat([world.draw(kinds).images, world.draw(wanted).images])
    return images, torch.arange(n), numbered(texts), torch.arange(n, 2 * n)


def _requests(world: World, n: int) -> Requests:
    kinds, wanted, words = changes(world, n)
    texts = [f"make it {word}" for word in words]
    return Requests(world.draw(kinds).images, numbered(texts), wanted, world.gallery())


def _more(towers: Towers, world: World, some: Triplets, seed: int) -> Triplets:
    """`some` and triplets synthesized from as many captioned pictures as there are triplets."""
    scenes = world.draw(world.kinds(N_TRAIN))
    with torch.no_grad():
        features = towers[0](scenes.images).numpy()
    made = synthesize_triplets(
        [caption(v) for v in scenes.values], features, ranks=(10, 200), seed=seed
    )
    n = len(some[0])
    reference, texts, target = zip(*made, strict=True)
    return (
        torch.cat([some[0], scenes.images]), torch.cat([some[1], n + torch.tensor(reference)]),
        torch.cat([some[2], numbered(texts)]), torch.cat([some[3], n + torch.tensor(target)]),
    )  # fmt: skip


def _best(
    start: Towers, held: Requests, training: Training, rates: tuple[float, ...],
    temperatures: tuple[float, ...],
) -> tuple[Towers, float]:  # fmt: skip
    """The towers with the best validation recall, and the seconds of their training."""
    runs = []
    for lr in rates:
        for temperature in temperatures:
            towers = copy.deepcopy(start)
            begun = time.perf_counter()
            training(towers, lr, temperature)
            runs.append((held.recall(towers), towers, time.perf_counter() - begun))
    _, towers, seconds = max(runs, key=lambda run: run[0])
    return towers, seconds


def _stage_one(triplets: Triplets, seed: int, n_steps: int = N_STEPS) -> Training:
    def train(towers: Towers, lr: float, temperature: float) -> None:
        trainer = TwoStageCIRTrainer(*towers, temperature=temperature, batch_size=BATCH, seed=seed)
        trainer.stage_one(*triplets, n_steps=n_steps, lr=lr)

    return train


def _stage_two(triplets: Triplets, seed: int) -> Training:
    def train(towers: Towers, lr: float, temperature: float) -> None:
        trainer = TwoStageCIRTrainer(*towers, temperature=temperature, batch_size=BATCH, seed=seed)
        trainer.stage_two(*triplets, n_steps=N_STEPS, lr=lr)

    return train


def _queue(triplets: Triplets, seed: int) -> Training:
    images, reference, texts, target = triplets

    def train(towers: Towers, lr: float, temperature: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        slow = copy.deepcopy(towers[0]).requires_grad_(False)
        first = torch.randint(len(images), (QUEUE,), generator=generator)
        queue = normalize(slow(images[first]), dim=1)
        optimizer = torch.optim.AdamW([w for t in towers for w in t.parameters()], lr=lr)
        for _ in range(N_STEPS):
            rows = torch.randint(len(target), (BATCH,), generator=generator)
            asked = normalize(towers[0](images[reference[rows]]) + towers[1](texts[rows]), dim=1)
            own = normalize(towers[0](images[target[rows]]), dim=1)
            scores = asked @ torch.cat([own, queue]).T / temperature
            optimizer.zero_grad()
            cross_entropy(scores, torch.arange(BATCH)).backward()
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(slow.parameters(), towers[0].parameters(), strict=True):
                    old.lerp_(new, 0.01)
                late = normalize(slow(images[target[rows]]), dim=1)
                queue = torch.cat([queue[BATCH:], late])

    return train
