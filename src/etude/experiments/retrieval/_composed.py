"""Drawn scenes with captions, and two small towers: the setting of composed image retrieval.

A scene is one of 8 shapes in one of 8 colors and 4 textures on one of 4 backgrounds, drawn on 10
by 10 pixels with three colors at a random place and with noise: 1,024 kinds of scene. What the
shapes, colors and textures look like is drawn anew for each seed. A text is a row of word
numbers, 0 where it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu

__all__ = [
    "FACTORS", "SIZES", "ImageTower", "Scenes", "TextTower", "World", "caption", "change_word",
    "changed", "changes", "numbered", "pretrain", "recalls",
]  # fmt: skip

FACTORS = {
    "shape": ("cross", "ring", "moon", "leaf", "boat", "star", "bell", "fish"),
    "color": ("red", "green", "blue", "yellow", "white", "pink", "brown", "gray"),
    "texture": ("plain", "striped", "dotted", "woven"),
    "background": ("sand", "grass", "snow", "night"),
}
SIZES = tuple(len(words) for words in FACTORS.values())
OTHERS = ("[$]", "a", "photo", "of", "that", "on", "in", "instead", "unlike", "i", "want", "make",
          "it", "with", *FACTORS)  # fmt: skip
WORDS = {word: 1 + i for i, word in enumerate((*OTHERS, *sum(FACTORS.values(), ())))}
SIDE, PATCH, WIDTH, DIM, LONGEST = 10, 8, 48, 32, 16


@dataclass
class Scenes:
    """values (N, 4) int64 by FACTORS, and images (N, 300) float32."""

    values: np.ndarray
    images: Tensor


class World:
    """How things look in one seed's world."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 4711])
        self.shapes = rng.random((SIZES[0], PATCH, PATCH)) < 0.5
        self.colors = rng.uniform(-1, 1, (SIZES[1], 3))
        self.textures = rng.uniform(0.3, 1.2, (SIZES[2], PATCH, PATCH))
        self.grounds = rng.uniform(-1, 1, (SIZES[3], 3))
        self.rng = rng

    def kinds(self, n: int) -> np.ndarray:
        """(n, 4) kinds of scene at random."""
        return np.column_stack([self.rng.integers(0, size, n) for size in SIZES])

    def draw(self, values: np.ndarray, noise: float = 0.2) -> Scenes:
        """One picture of each kind."""
        shape, color, texture, ground = values.T
        picture = np.repeat(self.grounds[ground][:, None, None], SIDE, 1).repeat(SIDE, 2)
        painted = self.colors[color][:, None, None] * self.textures[texture][..., None]
        place = self.rng.integers(0, SIDE - PATCH + 1, (2, len(values), 1, 1))
        rows, columns = (
            place[0] + np.arange(PATCH)[None, :, None], place[1] + np.arange(PATCH)[None, None]
        )  # fmt: skip
        which = np.arange(len(values))[:, None, None]
        under = picture[which, rows, columns]
        picture[which, rows, columns] = np.where(self.shapes[shape][..., None], painted, under)
        picture += noise * self.rng.standard_normal(picture.shape)
        return Scenes(values, torch.from_numpy(picture.reshape(len(values), -1)).float())

    def gallery(self) -> Scenes:
        """One picture of each of the 1,024 kinds."""
        return self.draw(np.stack(np.meshgrid(*map(np.arange, SIZES)), axis=-1).reshape(-1, 4))


def caption(kind: Sequence[int]) -> str:
    """Such as "red striped fish on snow"."""
    shape, color, texture, ground = (
        words[value] for words, value in zip(FACTORS.values(), kind, strict=True)
    )
    return f"{color} {texture} {shape} on {ground}"


def changed(world: World, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) kinds with one factor of each at another value, and (N,) which factor."""
    factor = world.rng.integers(0, len(SIZES), len(values))
    rows, sizes = np.arange(len(values)), np.asarray(SIZES)[factor]
    found = values.copy()
    shift = 1 + np.floor(world.rng.random(len(values)) * (sizes - 1)).astype(int)
    found[rows, factor] = (found[rows, factor] + shift) % sizes
    return found, factor


def change_word(kind: Sequence[int], factor: int) -> str:
    """The word of one factor of a kind, such as "red"."""
    return list(FACTORS.values())[factor][kind[factor]]


def changes(world: World, n: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """n kinds at random, the same with one factor changed (both (n, 4)), and the new words."""
    kinds = world.kinds(n)
    wanted, factor = changed(world, kinds)
    return kinds, wanted, [change_word(v, f) for v, f in zip(wanted, factor, strict=True)]


def numbered(texts: Sequence[str]) -> Tensor:
    """(N, 16) int64 numbers of the words, 0 after the end."""
    found = np.zeros((len(texts), LONGEST), dtype=np.int64)
    for row, text in zip(found, texts, strict=True):
        words = [WORDS[word] for word in text.lower().replace(",", "").split()]
        row[: len(words)] = words
    return torch.from_numpy(found)


class ImageTower(nn.Module):
    """(B, 300) -> (B, 32), not normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * SIDE * SIDE, 192), nn.ReLU(), nn.Linear(192, 96), nn.ReLU(),
            nn.Linear(96, DIM),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        return self.layers(images)


class TextTower(nn.Module):
    """(B, T) word numbers -> (B, 32), not normalized: one layer of attention, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + 1, WIDTH)
        self.position = nn.Parameter(0.3 * torch.randn(LONGEST, WIDTH))
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.hidden, self.out = nn.Linear(WIDTH, 96), nn.Linear(96, DIM)

    def forward(self, tokens: Tensor, word: Tensor | None = None) -> Tensor:
        """`word` (B, 48) stands in for the embedding of "[$]", before positions are added."""
        tokens = tokens[:, : int((tokens > 0).sum(dim=1).max())]
        x = self.embedding(tokens)
        if word is not None:
            x = torch.where((tokens == WORDS["[$]"])[..., None], word[:, None], x)
        x = x + self.position[: tokens.shape[1]]
        there = tokens > 0
        q, k, v = self.mix(x).chunk(3, dim=-1)
        scores = (q @ k.transpose(1, 2)) / WIDTH**0.5
        x = x + scores.masked_fill(~there[:, None], -torch.inf).softmax(-1) @ v
        x = relu(self.hidden(x)) * there[..., None]
        return self.out(x.sum(1) / there.sum(1, keepdim=True))


def pretrain(
    scenes: Scenes, texts: Tensor, seed: int, *, n_steps: int = 500, temperature: float = 0.07
) -> tuple[ImageTower, TextTower]:
    """Both towers from the pairs of pictures and texts, by the symmetric contrastive loss."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        towers = ImageTower(), TextTower()
    generator = torch.Generator().manual_seed(seed)
    weights = [w for tower in towers for w in tower.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(texts), (128,), generator=generator)
        images = normalize(towers[0](scenes.images[rows]), dim=1)
        scores = images @ normalize(towers[1](texts[rows]), dim=1).T / temperature
        own = torch.arange(len(rows))
        loss = (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return towers


@torch.no_grad()
def recalls(
    queries: Tensor, gallery: Tensor, wanted: np.ndarray, shown: np.ndarray, k: int
) -> float:
    """Share of queries with a picture of the `wanted` (B, 4) kind in the first `k` of those
    `shown` (N, 4); queries and gallery are vectors, compared by their cosine."""
    top = (normalize(queries, dim=1) @ normalize(gallery, dim=1).T).topk(k, dim=1).indices.numpy()
    return float((shown[top] == wanted[:, None]).all(axis=2).any(axis=1).mean())
