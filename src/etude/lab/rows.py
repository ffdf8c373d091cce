"""Raw rows to features by a data set's schema: the way of a request when a winner is served."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from etude.core import EtudeError

__all__ = ["encode_columns", "encode_rows"]

LONGEST_TEXT = 100_000  # characters of one cell
LARGEST = float(np.finfo(np.float32).max)


def encode_columns(
    schema: Mapping[str, Any], values: Sequence[Any], n_rows: int, where: str = "data"
) -> np.ndarray:
    """(N, D) float32 from one sequence of N checked values for each column of the schema."""
    columns = schema["columns"]
    x = np.zeros((n_rows, sum(c["width"] for c in columns)), dtype=np.float32)
    at = 0
    for column, cells in zip(columns, values, strict=True):
        if column["kind"] == "number":
            x[:, at] = cells
        elif column["kind"] == "category":
            ids = {word: k for k, word in enumerate(column["categories"])}
            x[np.arange(n_rows), [at + ids[word] for word in cells]] = 1
        else:
            x[:, at : at + column["width"]] = embed(cells, f"{where}: column {column['name']!r}")
        at += column["width"]
    return x


def embed(texts: Sequence[str], where: str) -> np.ndarray:
    """(N, 384) float32; each different text is encoded once."""
    from etude.nets.minilm import encode

    distinct, back = np.unique(np.array(texts, dtype=object), return_inverse=True)
    try:
        vectors: np.ndarray = encode(distinct.tolist())[back]
    except EtudeError as error:
        raise EtudeError(f"{where} is text: {error}") from None
    return vectors


def encode_rows(schema: Mapping[str, Any], rows: Any) -> np.ndarray:
    """Features of raw rows, encoded as the training data was.

    Args:
        schema: ``Dataset.schema``.
        rows: a list of rows. Each row is a list with one value for each column of the schema, in
            its order, or a dict by column name; for features that came as an array or as images,
            a list of D numbers. An array (N, D) will do where all columns are numbers.

    Returns:
        (N, D) float32.

    Raises:
        EtudeError: a value is absent, of the wrong kind, not finite, or a category that the
            training data did not have; the message names row and column.
    """
    rows = checked_rows(rows)
    names = (
        [str(j) for j in range(schema["n_features"])]
        if schema["format"] != "table"
        else [column["name"] for column in schema["columns"]]
    )
    table = [in_order(row, names, i, schema) for i, row in enumerate(rows, 1)]
    if schema["format"] != "table":
        return encode_array(schema, table)
    values = [
        [cell(column, row[j], i) for i, row in enumerate(table, 1)]
        for j, column in enumerate(schema["columns"])
    ]
    return encode_columns(schema, values, len(table), where="inputs")


def checked_rows(rows: Any) -> Sequence[Any]:
    """The rows as a sequence of at least one."""
    if isinstance(rows, np.ndarray):
        rows = rows.tolist()
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes) or not rows:
        raise EtudeError(f"inputs must be a list of at least one row, got {short(rows)}")
    return rows


def in_order(row: Any, names: list[str], i: int, schema: Mapping[str, Any]) -> Sequence[Any]:
    """The row's values in column order."""
    if isinstance(row, Mapping):
        allowed = {*names, schema.get("target"), *(c["name"] for c in schema.get("ignored", ()))}
        absent = [name for name in names if name not in row]
        extra = [name for name in row if name not in allowed]
        if absent or extra:
            what = f"lacks {absent[0]!r}" if absent else f"has the unknown column {extra[0]!r}"
            raise EtudeError(f"inputs: row {i} {what}; the columns are {listed(names)}")
        return [row[name] for name in names]
    if isinstance(row, np.ndarray):
        row = row.tolist()
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        raise EtudeError(
            f"inputs: row {i} must be a list of {len(names)} values or an object by column name, "
            f"got {short(row)}"
        )
    if len(row) != len(names):
        raise EtudeError(
            f"inputs: row {i} must have {len(names)} values ({listed(names)}), got {len(row)}"
        )
    return row


def cell(column: Mapping[str, Any], value: Any, i: int) -> Any:
    """The value as ``encode_columns`` takes it."""
    name, kind = column["name"], column["kind"]
    if value is None or value == "" or value != value:
        if "fill" not in column:
            refuse(i, name, "a value, for the training data had no empty cell", value)
        return column["fill"]
    if kind == "number":
        return number(value, i, name)
    if kind == "category":
        word = as_word(value)
        if word not in column["categories"]:
            refuse(i, name, f"one of {listed(column['categories'])}", value)
        return word
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        refuse(i, name, f"a text of at most {LONGEST_TEXT:,} characters", value)
    return value.strip()


def number(value: Any, i: int, name: str) -> float:
    """A finite number that float32 can hold; a truth value or a string is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(i, name, "a number", value)
    if abs(value) > LARGEST or not math.isfinite(value):  # in this order for huge integers
        refuse(i, name, "a finite float32 number", value)
    return float(value)


def as_word(value: Any) -> str | None:
    """The category that a JSON value stands for: true is "true", 3.0 is "3"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float) else None


def encode_array(schema: Mapping[str, Any], table: list[Sequence[Any]]) -> np.ndarray:
    """(N, D) float32 of features that never were columns."""
    fills, bounds = schema.get("fill"), schema.get("range")
    x = np.empty((len(table), schema["n_features"]), dtype=np.float32)
    for i, row in enumerate(table, 1):
        for j, value in enumerate(row):
            gap = value is None or value != value
            known = fills[j] if gap and fills is not None else number(value, i, str(j + 1))
            if bounds is not None and not bounds[0] <= known <= bounds[1]:
                refuse(i, str(j + 1), f"a pixel from {bounds[0]} to {bounds[1]}", value)
            x[i - 1, j] = known
    return x


def refuse(i: int, name: str, rule: str, value: Any) -> NoReturn:
    """One cell of one row that breaks a rule."""
    raise EtudeError(f"inputs: row {i}, column {name!r} must be {rule}, got {short(value)}")


def listed(names: Sequence[str]) -> str:
    """The first eight names."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def short(value: Any) -> str:
    """The value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
