"""Data in: from a name or a file to a checked ``Dataset``, or to one line of what is wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from etude.core import EtudeError, require
from etude.lab.builtin import BUILTIN, load_builtin
from etude.tasks.base import Dataset

__all__ = ["content_hash", "find_data", "load_dataset"]

LIMIT_SEED = 70_11


def load_dataset(
    source: str | Path,
    *,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
    need_labels: bool = True,
    limit: int | None = None,
) -> Dataset:
    """Read and check a data set.

    Args:
        source: a built-in name, or a file or folder.
        target: name of the column to predict.
        kinds: column name -> "number", "category" or "text", over what etude would decide.
        missing: what happens to empty cells: "error", "drop" or "median".
        need_labels: refuse data without class labels.
        limit: keep the first `limit` rows of a fixed permutation.

    Raises:
        EtudeError: the source cannot be read, or its content breaks a rule.
    """
    if str(source) in BUILTIN:
        data = load_builtin(str(source))
    else:
        raise EtudeError(f"{source}: no such data set; built in are {', '.join(BUILTIN)}")
    if limit is not None:
        data = take(data, limit)
    return replace(data, hash=content_hash(data))


def take(data: Dataset, limit: int) -> Dataset:
    """The first `limit` rows of a permutation that depends on nothing but the row count."""
    require(limit >= 1, "limit", "a positive number of rows", limit)
    rows = np.random.default_rng(LIMIT_SEED).permutation(len(data.x))[:limit]
    y = None if data.y is None else data.y[rows]
    tokens = None if data.tokens is None else data.tokens[rows]
    return replace(data, x=data.x[rows], y=y, tokens=tokens)


def content_hash(data: Dataset) -> str:
    """sha256 of features, labels, class names and tokens, with their shapes and dtypes."""
    digest = hashlib.sha256("\0".join(data.classes).encode())
    for array in (data.x, data.y, data.tokens):
        if array is None:
            digest.update(b"none;")
            continue
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find_data(relative: str) -> Path:
    """The file or folder `relative` under the folder that the variable ETUDE_DATA names.

    Raises:
        EtudeError: ETUDE_DATA is not set or no folder, nothing is there, or the path leads out.
    """
    folder = os.environ.get("ETUDE_DATA", "")
    if not folder:
        raise EtudeError(
            f"{relative} is data that etude does not carry: set the environment variable "
            "ETUDE_DATA to the folder that holds it"
        )
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise EtudeError(f"ETUDE_DATA must name a folder, got {folder!r}")
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise EtudeError(f"{relative!r} must lie inside ETUDE_DATA ({root}), it leads to {path}")
    if not path.exists():
        raise EtudeError(f"{relative!r} is not in ETUDE_DATA ({root}): put it there")
    return path
