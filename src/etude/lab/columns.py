"""From a table of raw columns to a matrix, and from raw rows to the same columns when serving.

What was decided about each column is written down as the schema, a JSON value:

    {"format": "table", "target": "species", "target_why": "the last column", "missing": "error",
     "columns": [{"name": "size", "kind": "number", "why": "every value is a number", "width": 1},
                 {"name": "color", "kind": "category", "why": "3 different values in 90 cells",
                  "width": 3, "categories": ["blue", "green", "red"]}, ...]}

A column that was filled also has "fill" (its median, or "(missing)"). Features that never were
columns, from an array or images, have {"format": "array", "n_features": D, ...} instead, and
"range": [0, 1] where they are pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from etude.core import EtudeError
from etude.lab.kinds import KINDS, Column, decide, read_labels
from etude.lab.rows import encode_columns, encode_rows

__all__ = ["MISSING", "Table", "encode_rows", "fill_array", "read_table"]

MISSING = ("error", "drop", "median")
FILL_WORD = "(missing)"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns that are read, decided and without gaps; ``encode`` makes them a matrix."""

    columns: list[Column]
    y: np.ndarray | None
    classes: tuple[str, ...]
    n_rows: int
    labels: np.ndarray | None = None
    schema: dict[str, Any] = field(default_factory=dict)

    @property
    def has_text(self) -> bool:
        """Whether ``encode`` needs the sentence encoder."""
        return any(column.kind == "text" for column in self.columns)

    def encode(self) -> np.ndarray:
        """(N, D) float32."""
        values: list[Any] = [
            c.numbers if c.numbers is not None else c.words.to_list()  # type: ignore[union-attr]
            for c in self.columns
        ]
        return encode_columns(self.schema, values, self.n_rows)


def read_table(
    frame: pl.DataFrame,
    *,
    where: str,
    target: str | None,
    kinds: Mapping[str, str],
    missing: str,
    need_labels: bool,
) -> Table:
    """Decide every column, settle what is missing, and turn the target into class ids.

    Raises:
        EtudeError: a column, the target or an option breaks a rule; the message names `where`,
            the row (counted from 1 below the header) and the column.
    """
    target_why = "as asked"
    if target is None and need_labels:
        target, target_why = frame.columns[-1], "the last column"
    check_options(frame.columns, where=where, target=target, kinds=kinds, missing=missing)
    columns = [
        decide(frame[name], where=where, kinds=kinds) for name in frame.columns if name != target
    ]
    ignored = [column for column in columns if column.kind == "ignore"]
    columns = [column for column in columns if column.kind != "ignore"]
    if not columns:
        raise EtudeError(f"{where} must have a column of features besides the target {target!r}")
    y: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if target is not None:
        forced = kinds.get(target) == "category"
        y, classes = read_labels(frame[target], where=where, forced=forced)
    keep = settle(columns, y, target, where=where, missing=missing)
    if not keep.all():
        columns = [column.take(keep) for column in columns]
        if y is not None:
            y, classes = used_classes(y[keep], classes)
    filled = [fill(column) for column in columns] if missing == "median" else [
        (column, None) for column in columns
    ]  # fmt: skip
    schema = {
        "format": "table", "target": target, "target_why": target_why, "missing": missing,
        "dropped_rows": int((~keep).sum()),
        "columns": [describe_column(column, fill_value) for column, fill_value in filled],
        "ignored": [{"name": column.name, "why": column.why} for column in ignored],
    }  # fmt: skip
    columns = [column for column, _ in filled]
    return Table(columns=columns, y=y, classes=classes, n_rows=int(keep.sum()), schema=schema)


def check_options(
    names: list[str], *, where: str, target: str | None, kinds: Mapping[str, str], missing: str
) -> None:
    """Refuse a column that is not there, a kind or a rule that does not exist."""
    if missing not in MISSING:
        raise EtudeError(f"--missing must be one of {', '.join(MISSING)}, got {missing!r}")
    for name in [*([] if target is None else [target]), *kinds]:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise EtudeError(f"{where} has no column {name!r}{guess}; it has {listed}")
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise EtudeError(f"--as {name}= must be one of {', '.join(KINDS)}, got {kind!r}")
        if name == target and kind != "category":
            raise EtudeError(f"--as {name}= must be category for the target, got {kind!r}")


def settle(
    columns: list[Column], y: np.ndarray | None, target: str | None, *, where: str, missing: str
) -> np.ndarray:
    """(N,) bool, True for the rows that stay.

    Raises:
        EtudeError: cells are empty and `missing` does not say what to do about them.
    """
    gaps = {column.name: column.missing for column in columns}
    if y is not None and target is not None:
        gaps[target] = y < 0
    n_rows = len(next(iter(gaps.values())))
    bad = np.zeros(n_rows, dtype=bool)
    for name, gap in gaps.items():
        bad |= gap
        fillable = missing == "median" and name != target
        if missing == "drop" or fillable or not gap.any():
            continue
        row = int(np.flatnonzero(gap)[0]) + 1
        do = "--missing drop leaves such rows out"
        if name != target:
            do += ", --missing median fills them"
        raise EtudeError(
            f"{where}: row {row}, column {name!r} must have a value, the cell is empty or NaN "
            f"({int(gap.sum())} in this column); {do}"
        )
    if missing != "drop":
        return np.ones(n_rows, dtype=bool)
    if bad.all():
        raise EtudeError(
            f"{where}: every row has an empty cell, --missing drop would leave none; "
            "use --missing median, or leave a column out with --as COLUMN=ignore"
        )
    return ~bad


def used_classes(y: np.ndarray, classes: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids and names without the classes that lost their last row."""
    present, y = np.unique(y, return_inverse=True)
    return y.astype(np.int64), tuple(classes[k] for k in present)


def fill(column: Column) -> tuple[Column, float | str | None]:
    """The column without gaps, and the value that stands for them (None for text)."""
    if column.numbers is not None:
        median = float(np.nanmedian(column.numbers))
        numbers = np.where(np.isnan(column.numbers), median, column.numbers)
        return Column(name=column.name, kind="number", why=column.why, numbers=numbers), median
    assert column.words is not None
    words = column.words.fill_null(FILL_WORD)
    return Column(name=column.name, kind=column.kind, why=column.why, words=words), FILL_WORD


def describe_column(column: Column, fill_value: float | str | None) -> dict[str, Any]:
    """The column's part of the schema."""
    entry: dict[str, Any] = {"name": column.name, "kind": column.kind, "why": column.why}
    if column.kind == "category":
        assert column.words is not None
        words = set(column.words.unique().to_list())
        if fill_value is not None:
            words.add(FILL_WORD)
        entry["categories"] = sorted(words)
    entry["width"] = {"number": 1, "text": 384}.get(column.kind, len(entry.get("categories", ())))
    if fill_value is not None:
        entry["fill"] = fill_value
    return entry


def fill_array(
    x: np.ndarray, y: np.ndarray | None, *, where: str, missing: str
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Settle NaN in an (N, D) array as a table's empty cells are; infinity is refused.

    Returns the features, the labels, and {"missing", "dropped_rows", "fill": [D medians]}.
    """
    if missing not in MISSING:
        raise EtudeError(f"--missing must be one of {', '.join(MISSING)}, got {missing!r}")
    infinite = np.isinf(x)
    if infinite.any():
        row, column = (int(i) for i in np.argwhere(infinite)[0])
        raise EtudeError(
            f"{where}: row {row + 1}, column {column + 1} of x must be a finite float32 number, "
            f"got {float(x[row, column])!r}; correct it"
        )
    gaps = np.isnan(x)
    notes: dict[str, Any] = {"missing": missing, "dropped_rows": 0}
    if not gaps.any():
        return x, y, notes
    row, column = (int(i) for i in np.argwhere(gaps)[0])
    if missing == "error":
        raise EtudeError(
            f"{where}: row {row + 1}, column {column + 1} of x must be a number, got NaN "
            f"({int(gaps.sum())} in all); --missing drop leaves such rows out, "
            "--missing median fills them"
        )
    if missing == "drop":
        keep = ~gaps.any(axis=1)
        if not keep.any():
            raise EtudeError(f"{where}: every row has a NaN, --missing drop would leave none")
        notes["dropped_rows"] = int((~keep).sum())
        return x[keep], None if y is None else y[keep], notes
    empty = gaps.all(axis=0)
    if empty.any():
        raise EtudeError(f"{where}: column {int(np.flatnonzero(empty)[0]) + 1} of x is only NaN")
    medians = np.nanmedian(x, axis=0).astype(np.float32)
    notes["fill"] = [float(m) for m in medians]
    return np.where(gaps, medians, x), y, notes
