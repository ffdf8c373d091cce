"""Data in: from a name or a file to a checked ``Dataset``, or to one line of what is wrong."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from etude.core import EtudeError, require
from etude.lab.arrays import read_npy, read_npz
from etude.lab.builtin import BUILTIN, load_builtin
from etude.lab.columns import MISSING, Table, read_table
from etude.lab.images import read_images
from etude.lab.labels import label_columns, take_labels
from etude.lab.rows import encode_rows
from etude.lab.sets import has_vectors, read_vectors, set_bytes, text_sets
from etude.lab.shelf import SUFFIXES, data_folder, find_data, list_datasets
from etude.lab.tables import read_csv, read_parquet
from etude.tasks.base import Dataset

__all__ = [
    "content_hash", "describe", "encode_rows", "find_data", "list_datasets", "load_dataset",
]  # fmt: skip

LIMIT_SEED = 70_11
FEWEST_ROWS = 3  # of a class: one for each part of a split


def load_dataset(
    source: str | Path,
    *,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
    need_labels: bool = True,
    limit: int | None = None,
    image_size: int | None = None,
    token_sets: bool = False,
) -> Dataset:
    """Read and check a data set.

    Args:
        source: a built-in name; a CSV, Parquet, NPZ or NPY file; or a folder of images in class
            folders. A path that is not here is looked for in the folder that ETUDE_DATA names.
        target: name of the column to predict; by default a table's last one. Several names
            with commas between are labels of 0 and 1.
        kinds: column name -> "number", "category", "text" or "ignore", over what etude would
            decide; "category" for the target takes any integers as classes, "labels" lists.
        missing: what happens to empty cells: "error", "drop" (the row) or "median" (the
            column's median, and a category of its own).
        need_labels: refuse data without class labels; where False, a table has a target only if
            `target` names one.
        limit: keep the first `limit` rows of a fixed permutation.
        image_size: width and height of the images of a folder.
        token_sets: read a table's text as sets of token vectors, and leave its numbers out.

    Raises:
        EtudeError: the source cannot be read, or its content breaks a rule.
    """
    found = open_source(
        source, target=target, kinds=kinds or {}, missing=missing, need_labels=need_labels,
        image_size=image_size,
    )  # fmt: skip
    if need_labels:
        check_classes(found.y, found.classes, str(source))
    digest = ""
    if isinstance(found, Table):
        digest = text_hash(found) if found.has_text else ""
        found = text_sets(found, Path(source).stem) if token_sets and found.has_text else Dataset(
            name=Path(source).stem, x=found.encode(), y=found.y, classes=found.classes,
            labels=found.labels, schema=found.schema,
        )  # fmt: skip
    if limit is not None:
        require(limit >= 1, "limit", "a positive number of rows", limit)
        found = take(found, limit)
        digest = hashlib.sha256(f"{digest}:{limit}".encode()).hexdigest() if digest else ""
    return replace(found, hash=digest or content_hash(found))


def open_source(
    source: str | Path,
    *,
    target: str | None,
    kinds: Mapping[str, str],
    missing: str,
    need_labels: bool,
    image_size: int | None = None,
) -> Dataset | Table:
    """Let the reader of its kind open the source; a table is not yet encoded."""
    if missing not in MISSING:
        raise EtudeError(f"--missing must be one of {', '.join(MISSING)}, got {missing!r}")
    if str(source) in BUILTIN:
        refuse_options(str(source), BUILTIN[str(source)].target, target, kinds)
        return load_builtin(str(source))
    path = locate(source)
    suffix = path.suffix.lower()
    if image_size is not None and not path.is_dir():
        raise EtudeError(f"{path}: image_size is for folders of images, this is a file")
    if suffix == ".parquet" and path.is_file() and has_vectors(path, kinds):
        return read_vectors(
            path, target=target, kinds=kinds, missing=missing, need_labels=need_labels
        )
    if suffix in (".csv", ".tsv", ".parquet") and not path.is_dir():
        frame = read_parquet(path) if suffix == ".parquet" else read_csv(path)
        several = label_columns(frame.columns, target, kinds, str(path))
        if several:
            return labeled_table(frame, several, str(path), kinds, missing)
        return read_table(
            frame, where=str(path), target=target, kinds=kinds, missing=missing,
            need_labels=need_labels,
        )  # fmt: skip
    refuse_options(str(path), "y", target, kinds)
    if path.is_dir():
        return read_images(path, image_size=image_size)
    if suffix == ".npz":
        return read_npz(path, missing=missing, need_labels=need_labels, forced="y" in kinds)
    if suffix == ".npy":
        return read_npy(path, missing=missing, need_labels=need_labels)
    raise EtudeError(
        f"{path} must end in {', '.join(SUFFIXES)} or be a folder of images, got {suffix!r}"
    )


def labeled_table(
    frame: pl.DataFrame, several: list[str], where: str, kinds: Mapping[str, str], missing: str
) -> Table:
    """A table whose rows have several labels each."""
    if missing == "drop":
        raise EtudeError(f"{where}: rows with several labels go with --missing median, not drop")
    rest, labels, classes = take_labels(frame, several, where)
    table = read_table(
        rest, where=where, target=None, missing=missing, need_labels=False,
        kinds={name: kind for name, kind in kinds.items() if name not in several},
    )  # fmt: skip
    schema = {**table.schema, "target": ",".join(several), "target_why": "labels, as asked"}
    return replace(table, labels=labels, classes=classes, schema=schema)


def locate(source: str | Path) -> Path:
    """The file or folder, here or below ETUDE_DATA."""
    path = Path(source).expanduser()
    root = data_folder()
    try:
        if not path.exists() and root is not None and (root / path).exists():
            path = find_data(str(source))
        if path.is_file() or path.is_dir():
            return path
        there = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a folder that is closed
        raise EtudeError(f"{source!s:.80} cannot be opened ({error})") from None
    if there:
        raise EtudeError(f"{path} must be a file or a folder; it is neither")
    near = difflib.get_close_matches(str(source), BUILTIN, n=1)
    guess = f"; did you mean {near[0]}?" if near else f"; built in are {', '.join(BUILTIN)}"
    raise EtudeError(f"{path}: there is no such file or data set{guess}")


def refuse_options(where: str, own: str, target: str | None, kinds: Mapping[str, str]) -> None:
    """Data that is no table of columns has one target, and nothing to decide about the rest."""
    if target not in (None, own):
        raise EtudeError(f"{where} has the target {own!r} and no other, got --target {target}")
    for name, kind in kinds.items():
        if (name, kind) != (own, "category"):
            raise EtudeError(f"{where} has no columns to read differently, got --as {name}={kind}")


def check_classes(y: np.ndarray | None, classes: tuple[str, ...], where: str) -> None:
    """Refuse fewer than two classes, and a class that cannot be in all parts of a split."""
    if y is None:
        return
    counts = np.bincount(y, minlength=len(classes))
    if len(classes) < 2:
        raise EtudeError(f"{where} must have two classes or more, got {', '.join(classes)}")
    rare = int(np.argmin(counts))
    if counts[rare] < FEWEST_ROWS:
        raise EtudeError(
            f"{where}: class {classes[rare]!r} has {counts[rare]} row(s); a split into train, "
            f"validation and test needs at least {FEWEST_ROWS} of each class: add rows or drop "
            "the class"
        )


def take(data: Dataset, limit: int) -> Dataset:
    """The first `limit` rows of a permutation that depends on nothing but the row count."""
    rows = np.random.default_rng(LIMIT_SEED).permutation(len(data.x))[:limit]
    y = None if data.y is None else data.y[rows]
    tokens = None if data.tokens is None else data.tokens[rows]
    labels = None if data.labels is None else data.labels[rows]
    items = None if data.items is None else data.items[rows]
    return replace(data, x=data.x[rows], y=y, tokens=tokens, labels=labels, items=items)


def content_hash(data: Dataset) -> str:
    """sha256 of features, labels, class names and tokens, with their shapes and dtypes."""
    digest = hashlib.sha256("\0".join(data.classes).encode())
    for array in (data.x, data.y, data.tokens):
        if array is None:
            digest.update(b"none;")
            continue
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        if array.dtype == object:
            digest.update(set_bytes(array))
            continue
        digest.update(np.ascontiguousarray(array).data)
    if data.labels is not None:
        digest.update(f"labels{data.labels.shape};".encode() + data.labels.tobytes())
    if data.items is not None:
        digest.update(f"items{data.items.shape};".encode() + data.items.tobytes())
    return digest.hexdigest()


def text_hash(table: Table) -> str:
    """sha256 of a table that has text, from its words: vectors differ in the last bit from
    machine to machine."""
    digest = hashlib.sha256("\0".join(table.classes).encode())
    for column in table.columns:
        digest.update(f";{column.kind};".encode())
        if column.numbers is not None:
            digest.update(column.numbers.astype(np.float32).tobytes())
        elif column.words is not None:
            digest.update(json.dumps(column.words.to_list()).encode())
    digest.update(b"none" if table.y is None else table.y.tobytes())
    if table.labels is not None:
        digest.update(table.labels.tobytes())
    return digest.hexdigest()


def shape_of(tokens: np.ndarray) -> list[int | str]:
    """(N, T, D), with the range of T where the sets differ in size."""
    if tokens.dtype != object:
        return list(tokens.shape)
    sizes = [len(one) for one in tokens]
    return [len(tokens), f"{min(sizes)}-{max(sizes)}", tokens[0].shape[1]]


def describe(
    source: str | Path,
    *,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
) -> dict[str, Any]:
    """What etude sees in the data, as JSON values; text is not embedded for it.

    Returns {"source", "format", "rows", "features", "target", "target_why", "classes":
    [{"name", "rows"}], "columns": the schema's, "ignored", "image_shape", "tokens", "missing",
    "dropped_rows", "why", "hash"}; "features" is the width that methods get.

    Raises:
        EtudeError: as ``load_dataset`` does.
    """
    suffix = Path(source).suffix.lower()
    table_like = suffix not in (".npz", ".npy")
    if suffix == ".parquet":
        table_like = not has_vectors(locate(source), kinds or {}, alone=True)
    found = open_source(
        source, target=target, kinds=kinds or {}, missing=missing, need_labels=table_like
    )
    check_classes(found.y, found.classes, str(source))
    counts = [] if found.y is None else np.bincount(found.y).tolist()
    if found.labels is not None:
        counts = found.labels.sum(axis=0).tolist()
    schema, columns = found.schema, list(found.schema.get("columns", ()))
    if isinstance(found, Table):
        n_rows, image_shape, tokens = found.n_rows, None, None
        n_features = sum(column["width"] for column in columns)
        digest = text_hash(found) if found.has_text else content_hash(
            Dataset(name="", x=found.encode(), y=found.y, classes=found.classes,
                    labels=found.labels)
        )  # fmt: skip
    else:
        n_rows, n_features = found.x.shape
        image_shape = found.image_shape and list(found.image_shape)
        tokens = None if found.tokens is None else shape_of(found.tokens)
        digest = content_hash(found)
    return {
        "source": str(source), "format": schema["format"], "rows": n_rows, "features": n_features,
        "target": schema.get("target"), "target_why": schema.get("target_why", ""),
        "classes": [
            {"name": name, "rows": n} for name, n in zip(found.classes, counts, strict=True)
        ],
        "columns": columns, "ignored": list(schema.get("ignored", ())),
        "image_shape": image_shape, "tokens": tokens, "missing": missing,
        "dropped_rows": schema.get("dropped_rows", 0), "why": schema.get("why", ""),
        "hash": digest,
    }  # fmt: skip
