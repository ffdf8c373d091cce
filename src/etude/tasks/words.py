"""Class names as vectors: what methods that never see a label know about the classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from etude.tasks.base import Dataset

__all__ = ["are_words", "is_text", "name_distances", "name_vectors"]


def is_text(data: Dataset) -> bool:
    """Whether a row's features are the sentence encoder's vector of one text, and nothing else."""
    columns = data.schema.get("columns", ())
    return len(columns) == 1 and columns[0].get("kind") == "text"


def are_words(classes: Sequence[str]) -> bool:
    """Whether every class has a name that says something: it has two letters in a row."""
    return bool(classes) and all(
        any(a.isalpha() and b.isalpha() for a, b in pairwise(name)) for name in classes
    )


@lru_cache(maxsize=16)
def _encoded(sentences: tuple[str, ...]) -> np.ndarray:
    from etude.nets.minilm import encode

    return encode(sentences)


def name_vectors(classes: Sequence[str], wording: str = "{}") -> np.ndarray:
    """(K, 384) unit vectors of the names in a wording; an underscore is read as a space.

    Raises:
        EtudeError: the sentence encoder is not installed.
    """
    sentences = tuple(wording.replace("{}", name.replace("_", " ")) for name in classes)
    return _encoded(sentences).copy()


def name_distances(classes: Sequence[str]) -> np.ndarray:
    """(K, K) Euclidean distances between the vectors of the names."""
    vectors = name_vectors(classes).astype(np.float64)
    squares = np.maximum(2 - 2 * vectors @ vectors.T, 0.0)  # of unit vectors
    np.fill_diagonal(squares, 0.0)
    return np.sqrt((squares + squares.T) / 2)
