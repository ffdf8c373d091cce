"""Mosaics of garments with one rare garment, and questions about it.

Garments are Fashion-MNIST images of 28 x 28 pixels; their classes have a name and a phrase of the
question's own, each as vectors of a sentence encoder (all-MiniLM-L6-v2).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from etude.lab.data import load_dataset
from etude.nets.minilm import encode
from etude.retrieval import patchify

__all__ = ["NAMES", "SIZE", "Question", "garments", "mosaic_scene", "question", "turned", "words"]

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
         "ankle boot")  # fmt: skip
PHRASES = ("tee shirt", "trousers", "knitted pullover", "evening dress", "winter coat",
           "leather sandals", "button-up shirt", "pair of sneakers", "shoulder bag",
           "ankle boots")  # fmt: skip
KIND = np.array([0, 1, 0, 0, 0, 2, 0, 2, 3, 2])  # tops, trousers, shoes, bags
SIDE, SIZE = 30, 28


class Question(NamedTuple):
    """The scene's patches (900, 784), the rare class, its patch, its turns."""

    patches: Tensor
    target: int
    place: int
    turns: int


def question(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Question:
    """A scene of `images` (N, 28, 28) and classes `labels`, cut, and what is asked of it."""
    target = int(rng.integers(len(NAMES)))
    others = rng.permutation(np.flatnonzero(KIND[target] != KIND))[:3]
    scene, box, turns = mosaic_scene(
        images, labels, target=target, background=others.tolist(), side=SIDE, generator=rng
    )
    boxes = patchify(*scene.shape, scheme="tiles", tile=SIZE)
    patches = np.stack([scene[top:bottom, left:right] for left, top, right, bottom in boxes])
    place = int((boxes == box).all(axis=1).argmax())
    return Question(torch.from_numpy(patches).flatten(1), target, place, turns)


def mosaic_scene(
    images: np.ndarray, labels: np.ndarray, *, target: int, background: list[int], side: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """side x side square images, one of class `target`, the others of classes `background`.

    `images` (N, H, H) have class ids `labels` (N,); each is turned by 0 to 3 quarters. Returns
    the scene (side * H, side * H) float32, the box (4,) of the rare one, and its quarters.
    """
    others, rare = np.flatnonzero(np.isin(labels, background)), np.flatnonzero(labels == target)
    rows, place = generator.choice(others, side * side), int(generator.integers(side * side))
    rows[place] = generator.choice(rare)
    tiles, _, turns = turned(images[rows], labels[rows], generator)
    size = images.shape[1]
    whole = tiles.numpy().reshape(side, side, size, size).swapaxes(1, 2)
    row, column = divmod(place, side)
    box = size * np.array([column, row, column + 1, row + 1])
    return whole.reshape(side * size, side * size), box, int(turns[place])


def turned(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Flat images (N, H * H), their labels, and by how many quarters each was turned."""
    turns = rng.integers(0, 4, len(images))
    found = images.copy()
    for turn in range(1, 4):
        found[turns == turn] = np.rot90(images[turns == turn], turn, axes=(1, 2))
    return torch.from_numpy(found).flatten(1), labels, turns


@cache
def garments() -> tuple[np.ndarray, np.ndarray]:
    """21,000 images (N, 28, 28) of 0 to 1, and their classes."""
    data = load_dataset("fashion_mnist", limit=21_000)
    images = data.x.reshape(-1, SIZE, SIZE)
    return images / images.max(), np.asarray(data.y)


@cache
def words() -> tuple[np.ndarray, np.ndarray]:
    """(10, 2, 384) vectors of the names and the phrases: for the encoder, and as sentences."""
    vectors = np.stack([np.asarray(encode(NAMES)), np.asarray(encode(PHRASES))], axis=1)
    prompts = np.stack(
        [
            np.asarray(encode([f"a photo of a {word}" for word in each]))
            for each in (NAMES, PHRASES)
        ],
        axis=1,
    )
    return prompts, vectors
