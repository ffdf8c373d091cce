"""Pairs of a query and its right item, for the task match: two arrays, or two columns of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from etude.core import EtudeError
from etude.lab.arrays import unpack
from etude.lab.builtin import BUILTIN
from etude.lab.columns import read_table
from etude.lab.data import content_hash, locate, text_hash
from etude.lab.rows import embed
from etude.lab.sets import has_vectors, is_nested, read_cells
from etude.lab.tables import read_csv, read_parquet
from etude.tasks.base import Dataset

__all__ = ["load_pairs"]

FORMS = (
    "an NPZ file with arrays queries (N, D) and items (N, E), a Parquet file with two columns of "
    "vectors, or a table with two columns of text; the first asks, the second is to be found"
)


def load_pairs(
    source: str | Path,
    *,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
) -> Dataset:
    """Read and check pairs; `x` are the queries, `items` what each of them should find.

    Args:
        source: an NPZ, Parquet, CSV or TSV file, as ``FORMS`` says; other columns are left out.
        target: a pair has no classes; anything but None is refused.
        kinds: column name -> "ignore" or "text", over what etude would decide.
        missing: "error", or for texts "drop".

    Raises:
        EtudeError: the file cannot be read, or holds no pairs of finite numbers.
    """
    if str(source) in BUILTIN:
        raise EtudeError(f"{source} is built in and holds no pairs; give {FORMS}")
    path, kinds = locate(source), kinds or {}
    if target is not None:
        raise EtudeError(f"{path}: pairs have no classes, got --target {target}")
    suffix = path.suffix.lower()
    if suffix == ".npz" and path.is_file():
        return vector_pairs(path, unpack(path), missing)
    if suffix == ".parquet" and path.is_file() and has_vectors(path, kinds):
        nested = [
            name for name, dtype in pl.read_parquet_schema(path).items()
            if is_nested(dtype) and kinds.get(name) != "ignore"
        ]  # fmt: skip
        found = {}
        for key, name in zip(("queries", "items"), chosen(path, nested, "vectors"), strict=True):
            series = read_parquet(path, nested=name)[name]
            if series.null_count():
                row = int(series.is_null().arg_max() or 0) + 1
                raise EtudeError(f"{path}: row {row} must have a value in {name!r}, it is empty")
            cells, is_set = read_cells(series, str(path), np.arange(1, len(series) + 1))
            if is_set:
                raise EtudeError(f"{path}: column {name!r} must hold one vector a row, got sets")
            found[key] = cells
        return vector_pairs(path, found, missing)
    if suffix in (".csv", ".tsv", ".parquet") and path.is_file():
        frame = read_parquet(path) if suffix == ".parquet" else read_csv(path)
        return text_pairs(path, frame, kinds, missing)
    raise EtudeError(f"{path} must be {FORMS}")


def chosen(path: Path, names: list[str], what: str) -> list[str]:
    """The two columns, or what is wrong with their number."""
    if len(names) != 2:
        more = f"; leave one out with --as {names[-1]}=ignore" if len(names) > 2 else ""
        got = ", ".join(names) or "none"
        raise EtudeError(f"{path} must have two columns of {what} to match, got {got}{more}")
    return names


def vector_pairs(path: Path, arrays: Mapping[str, np.ndarray], missing: str) -> Dataset:
    """Two arrays of one length, finite and in float32."""
    if missing != "error":
        raise EtudeError(f"{path}: pairs of vectors go with --missing error, got {missing}")
    if not {"queries", "items"} <= arrays.keys():
        raise EtudeError(f"{path} must be {FORMS}")
    checked = []
    for name in ("queries", "items"):
        array = arrays[name]
        if array.ndim != 2 or array.dtype.kind not in "fiub" or 0 in array.shape:
            raise EtudeError(
                f"{path}: {name} must be numbers of shape (N, D), got {array.shape} of "
                f"{array.dtype}"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            raise EtudeError(
                f"{path}: {name} must be finite float32 numbers, row {int(bad.argmax()) + 1} is not"
            )
        checked.append(array)
    x, items = checked
    if len(x) != len(items):
        raise EtudeError(f"{path}: queries and items must be pairs, got {len(x)} and {len(items)}")
    schema: dict[str, Any] = {
        "format": "array", "n_features": x.shape[1], "target": None,
        "why": f"pairs of a query of {x.shape[1]} and an item of {items.shape[1]} numbers",
    }  # fmt: skip
    data = Dataset(name=path.stem, x=x, y=None, items=items, schema=schema)
    return replace(data, hash=content_hash(data))


def text_pairs(path: Path, frame: pl.DataFrame, kinds: Mapping[str, str], missing: str) -> Dataset:
    """Two columns of text, embedded; a served row is the first alone."""
    table = read_table(
        frame, where=str(path), target=None, kinds=kinds, missing=missing, need_labels=False
    )
    texts = {column.name: column.words for column in table.columns if column.kind == "text"}
    names = chosen(path, list(texts), "text")
    vectors = [embed(texts[name].to_list(), f"{path}: column {name!r}") for name in names]  # type: ignore[union-attr]
    columns = {column["name"]: column for column in table.schema["columns"]}
    out = [c for name, c in columns.items() if name not in names]
    ignored = [{"name": c["name"], "why": "pairs are of the two texts alone"} for c in out]
    schema = {
        **table.schema, "columns": [columns[names[0]]],
        "ignored": [*table.schema["ignored"], {"name": names[1], "why": "is found"}, *ignored],
    }  # fmt: skip
    return Dataset(
        name=path.stem, x=vectors[0], y=None, items=vectors[1], schema=schema,
        hash=text_hash(table),
    )  # fmt: skip
