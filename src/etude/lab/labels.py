"""Tables whose rows have several labels each: as columns of yes and no, or as one of lists.

With ``--target spam,urgent,billing`` these are columns of 0 and 1 (or of true and false); with
``--target tags --as tags=labels`` cells such as "spam; urgent", empty where there is no label.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from etude.core import EtudeError

__all__ = ["label_columns", "labels_of_array", "take_labels"]

KIND = "labels"
YES, NO = ("1", "1.0", "true", "True", "TRUE", "yes"), ("0", "0.0", "false", "False", "FALSE", "no")
SEPARATORS = (";", "|", ",")
MOST_LABELS = 1000


def label_columns(
    columns: Sequence[str], target: str | None, kinds: Mapping[str, str], where: str
) -> list[str]:
    """The columns that hold several labels a row; [] where the target is one class a row.

    Raises:
        EtudeError: one of several columns is not there.
    """
    if target is None or (target in columns and kinds.get(target) != KIND):
        return []
    if target in columns:
        return [target]
    names = [name.strip() for name in target.split(",")]
    if len(names) < 2:
        return []
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise EtudeError(f"{where} has no column {name!r} for the labels of --target{guess}")
    if len(set(names)) < len(names):
        raise EtudeError(f"{where}: --target must name each column once, got {target}")
    return names


def take_labels(
    frame: pl.DataFrame, names: Sequence[str], where: str
) -> tuple[pl.DataFrame, np.ndarray, tuple[str, ...]]:
    """The other columns, the labels (N, L) bool, and their L names.

    Raises:
        EtudeError: a cell is neither yes nor no, fewer than two labels, or more than 1,000.
    """
    rest = frame.drop(names)
    if len(names) == 1:
        labels, classes = _lists(frame[names[0]], where)
    else:
        labels = np.stack([_answers(frame[name], where) for name in names], axis=1)
        classes = tuple(names)
    if not 2 <= len(classes) <= MOST_LABELS:
        raise EtudeError(f"{where} must have from 2 to {MOST_LABELS} labels, got {len(classes)}")
    for name, count in zip(classes, labels.sum(axis=0), strict=True):
        if count in (0, len(labels)):
            rows = "no row has" if count == 0 else "every row has"
            raise EtudeError(f"{where}: {rows} the label {name!r}, which says nothing; drop it")
    return rest, labels, classes


def labels_of_array(target: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N, L) of 0 and 1 -> bool, and the names "label_1" and so on.

    Raises:
        EtudeError: other numbers, or a label that no row or every row has.
    """
    good = target.dtype.kind in "fiub" and bool(np.isin(target, (0, 1)).all())
    if not good:
        raise EtudeError(f"{where}: y of shape {target.shape} must be labels of 0 and 1 only")
    names = [f"label_{n + 1}" for n in range(target.shape[1])]
    frame = pl.DataFrame({n: target[:, k].astype(np.float64) for k, n in enumerate(names)})
    _, labels, classes = take_labels(frame, names, where)
    return labels, classes


def _answers(series: pl.Series, where: str) -> np.ndarray:
    words = [str(word).strip() for word in series.to_list()]
    found = np.array([word in YES for word in words])
    for row, word in enumerate(words):
        if word not in YES and word not in NO:
            raise EtudeError(
                f"{where}: row {row + 1}, column {series.name!r} must be 0 or 1 (a label that the "
                f"row has or lacks), got {word!r}"
            )
    return found


def _lists(series: pl.Series, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    cells = ["" if cell is None else str(cell) for cell in series.to_list()]
    whole = "".join(cells)
    sign = next((s for s in SEPARATORS if s in whole), None)
    if sign is None:
        raise EtudeError(
            f"{where}: no cell of {series.name!r} has two labels, such as 'spam; urgent'; "
            "one label a row is a class: leave --as out"
        )
    rows = [[part.strip() for part in cell.split(sign) if part.strip()] for cell in cells]
    classes = tuple(sorted({label for row in rows for label in row}))
    place = {label: n for n, label in enumerate(classes)}
    labels = np.zeros((len(rows), len(classes)), dtype=bool)
    for n, row in enumerate(rows):
        labels[n, [place[label] for label in row]] = True
    return labels, classes
