"""Sets of partly hidden garments: does the company of a piece help to find it?

Data: Fashion-MNIST, an identity being one image of 14 x 14 pixels. 1,500 identities train the
embedding; another 120, twelve of each of the ten classes, are the catalog with three views each.
Rooms (``make_room_sets``) have five pieces of different classes, each with probability 0.85 of
the room's style, one of six: 600 rooms to learn what stands together, 60 to choose settings on,
150 to report, all different draws of the same styles. A view is shifted by up to one pixel, of
another brightness, noisy, with a random rectangle hidden: at most a tenth of the image in the
catalog, 0.1 to 0.3 of it in rooms ("less hidden") or 0.3 to 0.6 ("much hidden").

Embedding: trained by pseudo attributes and verification with 500 steps of 96 pairs, half of them
of one identity, the others of one class; "attributes_only" and "verification_only" leave one of
both out, "pixels" compares images. Each chooses between two learning rates by Recall@1 by view on
the validation rooms with less hidden. Context: the weight is chosen from 0.1, 0.2, 0.4 and 0.8
on validation. "popularity" instead adds 0.02, 0.05, 0.1 or 0.2 times the logarithm of how often
an identity stands in the rooms to learn from.

The first pair is the claim: Recall@1 with context against popularity, the stronger of the two
without context, where much is hidden; then by view alone, less hidden, all five pieces of a room
right; then each part of the embedding left out, by view alone.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from etude.lab.data import load_dataset
from etude.retrieval import (
    ContextReranker,
    FurnitureSetRetriever,
    SiameseMultiTask,
    make_room_sets,
    pseudo_attributes,
)
from etude.tasks.base import Pair

__all__ = ["measure"]

N_TRAIN, N_EACH, N_VIEWS, N_GROUPS, SIZE = 1500, 12, 3, 64, 14
N_STEPS, BATCH, K, RATES = 500, 96, 10, (1e-3, 3e-3)
WEIGHTS, FAVORS = (0.1, 0.2, 0.4, 0.8), (0.02, 0.05, 0.1, 0.2)
BARELY, LITTLE, MUCH = (0.01, 0.1), (0.1, 0.3), (0.3, 0.6)
ARMS = {"both": (1.0, 1.0), "attributes_only": (0.0, 1.0), "verification_only": (1.0, 0.0)}


@dataclass
class Rooms:
    """Views (P, 196) of pieces, their identities and rooms."""

    views: Tensor
    identities: np.ndarray
    rooms: np.ndarray

    def right(self, found: np.ndarray) -> np.ndarray:
        """(P,) whether the first is the right one."""
        return np.asarray(found[:, 0] == self.identities)

    def whole(self, found: np.ndarray) -> float:
        """Share of rooms with all pieces right."""
        wrong = np.bincount(self.rooms, weights=~self.right(found))
        return float((wrong == 0).mean())


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is Recall@1 with context against popularity."""
    rng = np.random.default_rng([seed, 69])
    data = load_dataset("fashion_mnist", limit=5000)
    images, kinds = data.x.reshape(-1, SIZE, 2, SIZE, 2).mean(axis=(2, 4)), np.asarray(data.y)
    images = images / images.max()
    order = rng.permutation(len(images))
    train, rest = order[:N_TRAIN], order[N_TRAIN:]
    shown = np.concatenate([rest[kinds[rest] == kind][:N_EACH] for kind in range(10)])
    catalog = _views(images[np.tile(shown, N_VIEWS)], BARELY, rng)
    labels = np.tile(np.arange(len(shown)), N_VIEWS)

    def rooms(n: int, hidden: tuple[float, float], room_seed: int) -> Rooms:
        ids, room = make_room_sets(kinds[shown], n_rooms=n, seed=seed, room_seed=room_seed)
        return Rooms(_views(images[shown[ids]], hidden, rng), ids, room)

    known, _ = make_room_sets(kinds[shown], n_rooms=600, seed=seed, room_seed=1)
    held = {"less hidden": rooms(60, LITTLE, 3), "much hidden": rooms(60, MUCH, 2)}
    test = {"much hidden": rooms(150, MUCH, 4), "less hidden": rooms(150, LITTLE, 5)}

    spent, networks = {}, {}
    torch.manual_seed(seed)  # initial weights; batches have their own generator
    first = SiameseMultiTask(SIZE**2, N_GROUPS)
    for name, (weight, attribute_weight) in ARMS.items():
        start = time.perf_counter()
        trained = [
            _train(first, weight, attribute_weight, images[train], kinds[train], lr, seed)
            for lr in RATES
        ]
        quality = [_by_view(net, catalog, labels, held["less hidden"])[1] for net in trained]
        networks[name] = trained[int(np.argmax(quality))]
        spent[name] = time.perf_counter() - start

    start = time.perf_counter()
    context = ContextReranker(len(shown), generator=torch.Generator().manual_seed(seed))
    context.fit(list(known.reshape(600, -1)), seed=seed)
    favor = np.log1p(np.bincount(known, minlength=len(shown)))
    spent["context"] = spent["both"] + time.perf_counter() - start
    net, pairs = networks["both"], []

    def pair(metric: str, values: tuple[float, float], other: str, where: str) -> Pair:
        return Pair(
            metric=metric, ours=values[0], baseline=values[1], baseline_name=other,
            data="fashion_mnist_rooms", setting=where, ours_s=spent["context"],
            baseline_s=spent["both"],
        )  # fmt: skip

    for where, part in test.items():
        arms = {
            "context": [
                FurnitureSetRetriever(context, k=K, weight=weight) for weight in WEIGHTS
            ],
            "view_only": [FurnitureSetRetriever(k=K)],
        }  # fmt: skip
        found = {}
        for name, tried in arms.items():
            fitted = [rag.fit(_embed(net, catalog), labels) for rag in tried]
            best = max(fitted, key=lambda rag: float(_right(rag, net, held[where]).mean()))
            found[name] = best.retrieve(_embed(net, part.views), part.rooms)
        scores = [_popular(net, catalog, labels, held[where], f * favor)[1] for f in FAVORS]
        chosen = FAVORS[int(np.argmax(scores))]
        found["popularity"] = _popular(net, catalog, labels, part, chosen * favor)[0]
        for other in ("popularity", "view_only"):
            both = found["context"], found[other]
            recalls = [float(part.right(each).mean()) for each in both]
            pairs.append(pair("recall_at_1", (recalls[0], recalls[1]), other, where))
        sets = part.whole(found["context"]), part.whole(found["view_only"])
        pairs.append(pair("accuracy", sets, "view_only", f"whole rooms, {where}"))
    part = test["less hidden"]
    ours = _by_view(net, catalog, labels, part)[1]
    for other in ("attributes_only", "verification_only", "pixels"):
        value = _by_view(networks.get(other), catalog, labels, part)[1]
        pairs.append(pair("recall_at_1", (ours, value), other, "by view alone"))
    return pairs


def _right(rag: FurnitureSetRetriever, net: nn.Module, part: Rooms) -> np.ndarray:
    return part.right(rag.retrieve(_embed(net, part.views), part.rooms))


def _by_view(
    net: nn.Module | None, catalog: Tensor, labels: np.ndarray, part: Rooms
) -> tuple[np.ndarray, float]:
    rag = FurnitureSetRetriever(k=K).fit(_embed(net, catalog), labels)
    found = rag.retrieve(_embed(net, part.views), part.rooms)
    return found, float(part.right(found).mean())


def _popular(
    net: nn.Module, catalog: Tensor, labels: np.ndarray, part: Rooms, favor: np.ndarray
) -> tuple[np.ndarray, float]:
    """The order by view plus what an identity is worth by itself."""
    near = _embed(net, part.views) @ _embed(net, catalog).T
    scores = near.reshape(len(near), N_VIEWS, -1).max(axis=1) + favor
    found = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return found, float(part.right(found).mean())


@torch.no_grad()
def _embed(net: nn.Module | None, views: Tensor) -> np.ndarray:
    rows = views if net is None else net(views)
    return nn.functional.normalize(rows).double().numpy()


def _train(
    first: SiameseMultiTask, weight: float, attribute_weight: float, images: np.ndarray,
    kinds: np.ndarray, lr: float, seed: int,
) -> nn.Module:  # fmt: skip
    """Pairs of fresh views; the groups are those of the identities' blurred images."""
    rng = np.random.default_rng([seed, 70])
    net = copy.deepcopy(first)
    net.weight, net.attribute_weight = weight, attribute_weight
    blurred = images.reshape(-1, 7, 2, 7, 2).mean(axis=(2, 4)).reshape(len(images), -1)
    groups = pseudo_attributes(blurred, np.arange(len(images)), n_groups=N_GROUPS, seed=seed)
    same_kind = [np.flatnonzero(kinds == kind) for kind in range(10)]
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    for _ in range(N_STEPS):
        a = rng.integers(0, len(images), BATCH)
        other = np.array([rng.choice(same_kind[kind]) for kind in kinds[a]])
        b = np.where(rng.random(BATCH) < 0.5, a, other)
        views = _views(images[np.concatenate([a, b])], (BARELY[0], MUCH[1]), rng)
        pairs = torch.stack([views[:BATCH], views[BATCH:]], dim=1)
        chosen = torch.from_numpy(np.column_stack([groups[a], groups[b]]))
        optimizer.zero_grad()
        net.loss(pairs, chosen, torch.from_numpy(a == b)).backward()
        optimizer.step()
    return net


def _views(images: np.ndarray, hidden: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """(N, 196): shifted, brighter or darker, noisy, with a rectangle of that share hidden."""
    n, size = len(images), images.shape[1]
    down, right = rng.integers(-1, 2, (2, n, 1))
    rows, columns = (np.arange(size) + down) % size, (np.arange(size) + right) % size
    found = images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    share = rng.uniform(*hidden, n)
    tall = np.clip(share ** rng.uniform(0.3, 0.7, n), share, 1)
    place, spot = np.arange(size) / size, rng.random((2, n, 1))
    high, wide = tall[:, None], (share / tall)[:, None]
    inside = [
        (place >= start * (1 - extent)) & (place < start * (1 - extent) + extent)
        for start, extent in zip(spot, (high, wide), strict=True)
    ]
    cover = inside[0][:, :, None] & inside[1][:, None, :]
    gain = rng.uniform(0.7, 1.3, (n, 1, 1))
    found = np.where(cover, 0.0, gain * found) + 0.1 * rng.normal(size=found.shape)
    return torch.from_numpy(found.reshape(n, -1).astype(np.float32))
