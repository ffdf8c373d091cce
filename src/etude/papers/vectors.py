"""Vectors of the catalogue, for search by meaning: ``python -m etude.papers.vectors``.

``vectors.npz`` holds one unit vector a paper (float16, 384 wide, of all-MiniLM-L6-v2) and the
sha256 of the catalogue that they were made from. Run this module after every change of the
catalogue: a test compares the sums, and search refuses vectors of another catalogue.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path

import numpy as np

from etude.core import EtudeError
from etude.papers.catalogue import CATALOGUE, Paper, papers

__all__ = ["VECTORS", "catalogue_hash", "vectors", "write_vectors"]

VECTORS = Path(__file__).with_name("vectors.npz")


def catalogue_hash() -> str:
    """sha256 of the catalogue's bytes."""
    return hashlib.sha256(CATALOGUE.read_bytes()).hexdigest()


def text_of(paper: Paper) -> str:
    """What is encoded of a paper: its title, its move, and the needs that it answers."""
    return f"{paper.title}. {paper.move} {', '.join(paper.keywords)}."


@cache
def vectors() -> np.ndarray:
    """(N, 384) float32 unit vectors, in the order of ``papers()``.

    Raises:
        EtudeError: missing, damaged, or made from another catalogue.
    """
    cure = "make it with: python -m etude.papers.vectors"
    try:
        with np.load(VECTORS, allow_pickle=False) as file:
            made_from, found = str(file["catalogue"]), file["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError):
        raise EtudeError(f"{VECTORS.name} is missing or damaged; {cure}") from None
    if made_from != catalogue_hash() or len(found) != len(papers()):
        raise EtudeError(f"{VECTORS.name} was made from another catalogue; {cure}")
    # float16 rounding shortens a vector by up to 1e-3, enough to swap close neighbors
    unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def write_vectors(path: Path = VECTORS) -> tuple[int, int]:
    """Encode the catalogue and write the file; returns its shape. Needs etude[text]."""
    from etude.nets.minilm import encode

    found = np.asarray(encode([text_of(paper) for paper in papers()]))
    np.savez(path, vectors=found.astype(np.float16), catalogue=np.array(catalogue_hash()))
    return found.shape[0], found.shape[1]


if __name__ == "__main__":
    try:
        shape = write_vectors()
    except EtudeError as error:
        sys.exit(str(error))
    print(f"{VECTORS}: {shape[0]} x {shape[1]}, float16")
