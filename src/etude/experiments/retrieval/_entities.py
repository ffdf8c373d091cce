"""Entities with traits and attributes, their images and captions, and questions about them.

An entity has four identifying traits of 5 values (625 kinds) and two attributes of 6. Its image
is 64 numbers: a random code for each of the six values, summed, squashed, with noise. Its caption
names the four traits, but four of ten are wrong: half of those are another entity's, half have
one trait changed. A question names the traits and asks for one of the attributes; the answer is
two words, the asked attribute's name and its value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["ATTRIBUTES", "CHOICES", "TRAITS", "VALUES", "WIDTH", "Part", "draw"]

TRAITS, VALUES, ATTRIBUTES, CHOICES, WIDTH, NOISE, WRONG = 4, 5, 2, 6, 64, 0.5, 0.4


@dataclass
class Part:
    """Questions (Q, 64), captions and images (M, 2, 64), answers (Q, 2); the true one is row q."""

    questions: Tensor
    items: Tensor
    answers: Tensor


def draw(seed: int) -> list[Part]:
    """Training, validation and test: 425, 100 and 100 kinds; of each of the first four images."""
    rng = np.random.default_rng([seed, 220])
    codes = rng.normal(size=(TRAITS + ATTRIBUTES, CHOICES, WIDTH))
    kinds = np.stack(np.unravel_index(rng.permutation(VALUES**TRAITS), (VALUES,) * TRAITS), axis=1)
    return [
        _part(np.repeat(rows, copies, axis=0), codes, rng)
        for rows, copies in ((kinds[:425], 4), (kinds[425:525], 1), (kinds[525:], 1))
    ]


def _part(kinds: np.ndarray, codes: np.ndarray, rng: np.random.Generator) -> Part:
    n = len(kinds)
    others = _altered(kinds, rng)
    for _ in range(20):  # near misses, but of no kind that is asked for
        taken = np.isin(_number(others), _number(kinds))
        others[taken] = _altered(kinds[taken], rng)
    bank = np.concatenate([kinds, others])
    shown = np.column_stack([bank, rng.integers(0, CHOICES, (2 * n, ATTRIBUTES))])
    images = np.tanh(sum(codes[f][shown[:, f]] for f in range(shown.shape[1])))
    images = images + NOISE * rng.normal(size=images.shape)
    said = bank.copy()
    fate = rng.random(2 * n)
    other = fate < WRONG / 2
    said[other] = bank[rng.integers(0, 2 * n, int(other.sum()))]
    near = (fate >= WRONG / 2) & (fate < WRONG)
    said[near] = _altered(bank[near], rng)
    asked = rng.integers(0, ATTRIBUTES, n)
    questions = np.column_stack([_one_hot(kinds), np.eye(ATTRIBUTES)[asked]])
    value = shown[np.arange(n), TRAITS + asked]
    items = torch.stack([_wide(_one_hot(said)), _wide(images)], dim=1)
    answers = torch.from_numpy(np.column_stack([asked, ATTRIBUTES + value]))
    return Part(_wide(questions), items, answers)


def _altered(kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same kinds with one trait at another value."""
    found, rows = kinds.copy(), np.arange(len(kinds))
    trait = rng.integers(0, TRAITS, len(kinds))
    found[rows, trait] = (found[rows, trait] + rng.integers(1, VALUES, len(kinds))) % VALUES
    return found


def _number(kinds: np.ndarray) -> np.ndarray:
    return np.ravel_multi_index(kinds.T, (VALUES,) * TRAITS)


def _one_hot(kinds: np.ndarray) -> np.ndarray:
    return np.eye(VALUES)[kinds].reshape(len(kinds), -1)


def _wide(x: np.ndarray) -> Tensor:
    return pad(torch.from_numpy(x).float(), (0, WIDTH - x.shape[1]))
