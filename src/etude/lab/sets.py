"""Columns whose cells are vectors, or sets of vectors of any number: Parquet, and texts.

A set is a (T, D) array. Sets of one size are one (N, T, D) array, sets of several sizes an (N,)
object array of them, which a mask or row numbers cut as they do any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from etude.core import EtudeError
from etude.lab.columns import MISSING, Table
from etude.lab.kinds import read_labels
from etude.lab.rows import cell, checked_rows, in_order, number, refuse, short
from etude.lab.tables import read_parquet
from etude.tasks.base import Dataset

__all__ = [
    "cut_sets", "encode_sets", "has_vectors", "is_nested", "mean_of_sets", "read_cells",
    "read_vectors", "set_bytes", "text_sets",
]  # fmt: skip

SAVE = "write lists of numbers (a vector a row) or lists of such lists (a set of vectors a row)"


def cut_sets(tokens: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(sum of sizes, D) -> (N, T, D) where the sizes are all T, else (N,) objects (T_n, D)."""
    if len(sizes) and (sizes == sizes[0]).all():
        return tokens.reshape(len(sizes), sizes[0], tokens.shape[1])
    sets = np.empty(len(sizes), dtype=object)
    sets[:] = np.split(tokens, np.cumsum(sizes)[:-1])
    return sets


def mean_of_sets(tokens: np.ndarray) -> np.ndarray:
    """(N, D) float32 means over each set."""
    if tokens.dtype != object:
        return np.asarray(tokens.mean(axis=1), dtype=np.float32)
    return np.stack([one.mean(axis=0) for one in tokens]).astype(np.float32)


def set_bytes(tokens: np.ndarray) -> bytes:
    """What a content hash reads of sets of several sizes."""
    sizes = np.array([len(one) for one in tokens], dtype=np.int64)
    return sizes.tobytes() + np.concatenate(list(tokens)).tobytes()


def is_nested(dtype: pl.DataType | type[pl.DataType]) -> bool:
    """Whether a cell is a list."""
    return isinstance(dtype, pl.List | pl.Array)


def has_vectors(path: Path, kinds: Mapping[str, str], *, alone: bool = False) -> bool:
    """Whether a column of the Parquet file holds lists and is not to be ignored.

    `alone`: and whether no column holds anything else.
    """
    try:
        schema = pl.read_parquet_schema(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return False  # its reader says what is wrong
    if alone and not all(map(is_nested, schema.values())):
        return False
    return any(is_nested(d) and kinds.get(name) != "ignore" for name, d in schema.items())


def read_vectors(
    path: Path, *, target: str | None, kinds: Mapping[str, str], missing: str, need_labels: bool
) -> Dataset:
    """A Parquet file with one column of vectors or of sets of vectors, and maybe a target.

    The features of a set are its mean. Other columns are left out, and the schema says so.

    Raises:
        EtudeError: several columns of lists, cells that are empty, not finite or of several
            widths, or a target that is not there or breaks its rules.
    """
    nested = {name: d for name, d in pl.read_parquet_schema(path).items() if is_nested(d)}
    used = [name for name in nested if kinds.get(name) != "ignore"]
    if len(used) > 1:
        raise EtudeError(
            f"{path} must have one column of vectors, got {', '.join(used)}; "
            f"leave one out with --as {used[-1]}=ignore, or, of pairs, try --task match"
        )
    if missing not in MISSING or missing == "median":
        raise EtudeError(f"{path}: rows of vectors go with --missing error or drop, got {missing}")
    name = used[0]
    frame = read_parquet(path, nested=name)
    flat = [column for column in frame.columns if column != name]
    target_why = "as asked"
    if target is None and need_labels:
        if not flat:
            raise EtudeError(f"{path} holds vectors only; add a column of labels for this task")
        target, target_why = flat[-1], "the last column of no vectors"
    for column in [*([] if target is None else [target]), *kinds]:
        if column not in [*flat, *nested] or column == target == name:
            raise EtudeError(
                f"{path} has no column {column!r} of classes; it has {', '.join(flat)}"
            )
    y, classes = None, tuple[str, ...]()
    keep = np.ones(frame.height, dtype=bool)
    if target is not None:
        forced = kinds.get(target) == "category"
        y, classes = read_labels(frame[target], where=str(path), forced=forced)
        keep &= y >= 0
    keep &= frame[name].is_not_null().to_numpy()
    if missing == "error" and not keep.all():
        row = int(np.argmin(keep)) + 1
        raise EtudeError(
            f"{path}: row {row} must have a value in {name!r}"
            + (f" and in {target!r}" if target else "")
            + ", a cell is empty; --missing drop leaves such rows out"
        )
    tokens, is_set = read_cells(frame[name].filter(keep), str(path), np.flatnonzero(keep) + 1)
    x = mean_of_sets(tokens) if is_set else tokens
    sizes = [len(one) for one in tokens] if is_set else []
    why = f"column {name!r}: " + (
        f"sets of {min(sizes)} to {max(sizes)} vectors of {x.shape[1]} numbers; "
        "the features are their means" if is_set else f"one vector of {x.shape[1]} numbers a row"
    )  # fmt: skip
    others = [*(c for c in flat if c != target), *(c for c in nested if c != name)]
    schema: dict[str, Any] = {
        "format": "array", "n_features": x.shape[1], "target": target,
        **({"sets": x.shape[1]} if is_set else {}),
        "target_why": target_why if target else "", "why": why, "missing": missing,
        "dropped_rows": int((~keep).sum()),
        "ignored": [{"name": c, "why": "vectors are read alone"} for c in others],
    }  # fmt: skip
    return Dataset(
        name=path.stem, x=x, y=None if y is None else y[keep], classes=classes,
        tokens=tokens if is_set else None, schema=schema,
    )  # fmt: skip


def read_cells(series: pl.Series, where: str, rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """The vectors (N, D), or sets as ``cut_sets`` gives them and True.

    `rows` are the numbers by which messages name the cells.
    """
    inner: Any = series.dtype.inner  # type: ignore[attr-defined]
    is_set = is_nested(inner)
    kind = inner.inner if is_set else inner
    if not kind.is_numeric():
        raise EtudeError(
            f"{where}: column {series.name!r} must hold vectors of numbers, got {series.dtype}; "
            f"{SAVE}"
        )
    vector = pl.List(pl.Float32)
    series = series.cast(pl.List(vector) if is_set else vector)
    sizes = np.ones(len(series), dtype=np.int64)
    if len(series) == 0:
        raise EtudeError(f"{where} has no row with a value in {series.name!r}")

    def refuse(row: int, rule: str) -> None:
        raise EtudeError(f"{where}: row {rows[row]}, column {series.name!r} must {rule}")

    if is_set:
        sizes = series.list.len().to_numpy().astype(np.int64)
        if (sizes == 0).any():
            refuse(int(np.argmin(sizes)), "be a set of at least one vector, it is empty")
        series = series.explode()
    widths = series.list.len().fill_null(0).to_numpy().astype(np.int64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    wrong = (widths != widths[0]) | (widths == 0)
    if wrong.any():
        n = int(np.argmax(wrong))
        refuse(int(owners[n]), f"hold vectors of {widths[0]} numbers, got one of {widths[n]}")
    numbers = series.explode().fill_null(float("nan")).to_numpy()
    vectors = np.array(numbers, dtype=np.float32).reshape(len(widths), -1)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        refuse(int(owners[int(np.argmax(bad))]), "hold finite float32 numbers, one is not")
    return (cut_sets(vectors, sizes) if is_set else vectors), is_set


def text_sets(table: Table, name: str) -> Dataset:
    """A table's column of text as sets of token vectors (all-MiniLM-L6-v2, 62 tokens at most).

    Raises:
        EtudeError: two columns of text, or the encoder is not installed.
    """
    from etude.nets.minilm import encode_tokens

    texts = [column for column in table.columns if column.kind == "text"]
    if len(texts) > 1:
        named = " and ".join(repr(column.name) for column in texts)
        raise EtudeError(
            f"{name} must have one column of text to search by its tokens, got {named}; "
            f"leave one out with --as {texts[-1].name}=ignore"
        )
    words = texts[0].words
    assert words is not None
    sets = encode_tokens(words.to_list())
    tokens = cut_sets(np.concatenate(sets), np.array([len(one) for one in sets]))
    rest = [c for c in table.schema["columns"] if c["kind"] != "text"]
    ignored = [{"name": c["name"], "why": "a search by tokens reads the text alone"} for c in rest]
    schema = {
        **table.schema,
        "sets": tokens[0].shape[1],
        "columns": [c for c in table.schema["columns"] if c["kind"] == "text"],
        "ignored": [*table.schema["ignored"], *ignored],
    }
    return Dataset(
        name=name, x=mean_of_sets(tokens), y=table.y, classes=table.classes, tokens=tokens,
        schema=schema,
    )  # fmt: skip


def encode_sets(schema: Mapping[str, Any], rows: Any) -> np.ndarray:
    """Raw rows to sets of vectors, as the training data's were made; ``encode_rows`` for sets.

    Args:
        schema: ``Dataset.schema``, with the width of a vector at "sets".
        rows: a list of rows: lists of vectors, or arrays (T, D); a table's are a list or a dict
            with the one text.

    Returns:
        What ``cut_sets`` gives.

    Raises:
        EtudeError: a row is no set, it is empty, or a number is not finite; the row is named.
    """
    rows, width = checked_rows(rows), schema["sets"]
    if schema["format"] == "table":
        from etude.nets.minilm import encode_tokens

        column = schema["columns"][0]
        names = [column["name"]]
        sets = encode_tokens(
            [cell(column, in_order(row, names, i, schema)[0], i) for i, row in enumerate(rows, 1)]
        )
        return cut_sets(np.concatenate(sets), np.array([len(one) for one in sets]))
    vectors: list[list[float]] = []
    sizes = []
    for i, row in enumerate(rows, 1):
        row = row.tolist() if isinstance(row, np.ndarray) else row
        if not isinstance(row, list | tuple) or not row:
            raise EtudeError(f"inputs: row {i} must be a list of vectors, got {short(row)}")
        for n, one in enumerate(row, 1):
            one = one.tolist() if isinstance(one, np.ndarray) else one
            if not isinstance(one, list | tuple) or len(one) != width:
                refuse(i, f"vector {n}", f"a list of {width} numbers", one)
            vectors.append([number(value, i, f"vector {n}") for value in one])
        sizes.append(len(row))
    return cut_sets(np.array(vectors, dtype=np.float32), np.array(sizes))
