"""Files about the classes: how far apart they are, and phrases that describe them.

A label metric is a CSV matrix with the class names in its first row and its first column, or a
tree of names in JSON, whose metric is the number of edges between two names:

    {"animal": {"cat": {}, "dog": {}}, "plant": {"oak": {}}}

Descriptions are JSON, for each class a list of phrases: {"cat": ["has whiskers", "purrs"]}.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from etude.core import EtudeError
from etude.tasks.base import Dataset

__all__ = ["read_descriptions", "read_labels_metric", "with_class_facts"]

LARGEST = 64 << 20  # bytes
DEEPEST = 100  # levels of a tree


def with_class_facts(data: Dataset, labels_metric: str | None, descriptions: str | None) -> Dataset:
    """The data with what the files say of its classes; its hash is then of all of it.

    Raises:
        EtudeError: a file cannot be read, breaks a rule, or leaves a class out.
    """
    digest = hashlib.sha256(data.hash.encode())
    if labels_metric is not None:
        distances = read_labels_metric(labels_metric, data.classes)
        data = replace(data, class_distances=distances)
        digest.update(distances.tobytes())
    if descriptions is not None:
        phrases = read_descriptions(descriptions, data.classes)
        data = replace(data, descriptions=phrases)
        digest.update(json.dumps(phrases).encode())
    if labels_metric is None and descriptions is None:
        return data
    return replace(data, hash=digest.hexdigest())


def read_labels_metric(source: str | Path, classes: Sequence[str]) -> np.ndarray:
    """(K, K) distances between the classes, in their order.

    Raises:
        EtudeError: no matrix and no tree, a class that is not in it, or no metric: a negative
            or infinite number, one from a class to itself, two directions that differ.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        names, distances = _matrix(path)
    elif path.suffix.lower() == ".json":
        names, distances = _tree(path)
    else:
        raise EtudeError(f"--labels-metric {path} must end in .csv (matrix) or .json (tree)")
    place = {name: n for n, name in enumerate(names)}
    for name in classes:
        if name not in place:
            raise EtudeError(f"--labels-metric {path} must name every class, it lacks {name!r}")
    rows = [place[name] for name in classes]
    found = distances[np.ix_(rows, rows)]
    good = np.isfinite(found).all() and (found >= 0).all() and not np.diag(found).any()
    if not good or not np.allclose(found, found.T):
        raise EtudeError(
            f"--labels-metric {path} must hold distances: finite, not negative, 0 from a class "
            "to itself, and equal in both directions"
        )
    return found


def read_descriptions(source: str | Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """Phrases of each class, in the order of the classes; a class may have none.

    Raises:
        EtudeError: not such a JSON object, or it names what is no class.
    """
    path, found = Path(source), _json(Path(source), "--descriptions")
    rule = f'--descriptions {path} must be {{"class": ["phrase", ...], ...}} in JSON'
    if not isinstance(found, Mapping):
        raise EtudeError(f"{rule}, got a {type(found).__name__}")
    for name, phrases in found.items():
        if name not in classes:
            raise EtudeError(
                f"--descriptions {path}: {name!r} is no class; they are "
                f"{', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
            )
        good = isinstance(phrases, list) and all(isinstance(p, str) and p.strip() for p in phrases)
        if not good:
            raise EtudeError(f"{rule}, with a list of phrases for {name!r}")
    if not any(found.values()):
        raise EtudeError(f"{rule}; it has no phrase")
    return {name: list(found.get(name, [])) for name in classes}


def _text(path: Path, option: str) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise EtudeError(f"{option} {path} must be at most {LARGEST >> 20} MB, it is larger")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, EtudeError):
            raise
        raise EtudeError(f"{option} {path} cannot be read ({error})") from None


def _json(path: Path, option: str) -> Any:
    try:
        return json.loads(_text(path, option))
    except (json.JSONDecodeError, RecursionError) as error:
        raise EtudeError(f"{option} {path} must be JSON ({str(error)[:80]})") from None


def _matrix(path: Path) -> tuple[list[str], np.ndarray]:
    rule = "have the class names in its first row and column, and numbers elsewhere"
    try:
        lines = [r for r in csv.reader(_text(path, "--labels-metric").splitlines()) if r]
        names = [name.strip() for name in lines[0][1:]] if lines else []
        rows = {line[0].strip(): [float(cell) for cell in line[1:]] for line in lines[1:]}
        distances = np.array([rows[name] for name in names], dtype=np.float64)
    except (ValueError, KeyError, csv.Error) as error:
        if isinstance(error, EtudeError):
            raise
        raise EtudeError(f"--labels-metric {path} must {rule} ({error!s:.80})") from None
    if len(names) != len(set(names)) or distances.shape != (len(names), len(names)) or not names:
        raise EtudeError(f"--labels-metric {path} must {rule}, each name once")
    return names, distances


def _tree(path: Path) -> tuple[list[str], np.ndarray]:
    """Every name of the tree, and the edges between any two; the root has no name."""
    ways: dict[str, tuple[str, ...]] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), _json(path, "--labels-metric"))]
    while waiting:
        way, node = waiting.pop()
        if not isinstance(node, Mapping) or len(way) > DEEPEST:
            raise EtudeError(
                f'--labels-metric {path} must be a tree of names such as {{"a": {{"b": {{}}}}}}, '
                f"at most {DEEPEST} deep; below {'/'.join(way[-3:]) or 'its root'} it is not"
            )
        for name, below in node.items():
            if name in ways:
                raise EtudeError(f"--labels-metric {path} must name {name!r} once")
            ways[name] = (*way, name)
            waiting.append((ways[name], below))
    names = list(ways)
    steps = [ways[name] for name in names]
    distances = np.zeros((len(names), len(names)))
    for i, one in enumerate(steps):
        for j, other in enumerate(steps[:i]):
            common = next(
                (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)),
            )
            distances[i, j] = distances[j, i] = len(one) + len(other) - 2 * common
    return names, distances
