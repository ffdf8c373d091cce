"""NPZ and NPY files: sizes are checked against what is declared before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from etude.core import EtudeError
from etude.lab.columns import fill_array
from etude.lab.kinds import read_labels
from etude.lab.labels import labels_of_array
from etude.lab.sets import cut_sets, mean_of_sets
from etude.tasks.base import Dataset

__all__ = ["read_npy", "read_npz", "unpack"]

LARGEST = 4 << 30  # bytes of one array
BOMB_BYTES = 256 << 20  # what grows beyond this size by more than BOMB_RATIO is not unpacked
BOMB_RATIO = 200
MOST_NAMES = 1000
KEYS = ("x", "embeddings", "tokens", "lengths", "y", "queries", "items")


def read_npy(path: Path, *, missing: str, need_labels: bool) -> Dataset:
    """An (N, D) array of features; an NPY file has no place for labels.

    Raises:
        EtudeError: labels are needed, or the file is no array of finite numbers.
    """
    if need_labels:
        raise EtudeError(
            f"{path} holds features only and labels are needed; "
            "save both: np.savez('data.npz', x=x, y=y)"
        )
    with path.open("rb") as file:
        x = read_array(file, path.stat().st_size, str(path))
    return finish(path, x, None, None, None, missing)


def read_npz(path: Path, *, missing: str, need_labels: bool, forced: bool) -> Dataset:
    """Arrays x (N, D), or uint8 images (N, H, W[, C]), and y (N,); or embeddings for x; or tokens.

    A y of shape (N, L) is labels of 0 and 1, any number a row.

    Sets of several sizes are tokens (sum of sizes, D) and lengths (N,), the sizes.
    Without x, the features are the mean over the tokens of each sample.

    Raises:
        EtudeError: it is no NPZ file, holds pickled objects or would unpack to too much, an
            array is absent or of the wrong shape, a number is not finite.
    """
    arrays = unpack(path)
    x = arrays.get("x", arrays.get("embeddings"))
    tokens, target = arrays.get("tokens"), arrays.get("y")
    if tokens is not None and "lengths" in arrays:
        tokens = sets_of(tokens, arrays["lengths"], path)
        x = mean_of_sets(tokens) if x is None else x
    elif tokens is not None and (tokens.ndim != 3 or tokens.dtype.kind not in "fiub"):
        raise EtudeError(
            f"{path}: tokens must be numbers of shape (N, T, D), got {tokens.shape} of "
            f"{tokens.dtype}"
        )
    if tokens is not None and tokens.dtype != object:
        tokens = np.asarray(tokens, dtype=np.float32)
        if not np.isfinite(tokens).all():
            row = int(np.argwhere(~np.isfinite(tokens))[0][0])
            raise EtudeError(f"{path}: tokens must be finite float32 numbers, row {row + 1} is not")
        x = tokens.mean(axis=1) if x is None and tokens.shape[1] else x
    if x is None:
        raise EtudeError(
            f"{path} must hold an array x, embeddings or tokens (queries and items are for --task "
            "match); save np.savez(path, x=x, y=y)"
        )
    for name, array in (("y", target), ("tokens", tokens)):
        if array is not None and (array.ndim < 1 or len(array) != len(x)):
            raise EtudeError(
                f"{path}: {name} must have one entry a row of x ({len(x)}), got shape {array.shape}"
            )
    if target is None and need_labels:
        raise EtudeError(f"{path} must hold an array y with the labels; np.savez(path, x=x, y=y)")
    several, y, classes = None, None, None
    if target is not None and target.ndim == 2 and target.shape[1] > 1:
        if missing == "drop":
            raise EtudeError(f"{path}: rows with several labels go with --missing median, not drop")
        several, classes = labels_of_array(target, str(path))
    elif target is not None:
        y, classes = labels(target, path, forced)
    data = finish(path, x, y, classes, tokens, missing)
    more: dict[str, Any] = {} if target is None else {"target": "y"}
    if tokens is not None and not arrays.keys() & {"x", "embeddings"}:
        more["sets"] = int(tokens[0].shape[1])  # a row is a set, and its mean the features
    return replace(data, labels=several, schema={**data.schema, **more})


def sets_of(tokens: np.ndarray, lengths: np.ndarray, path: Path) -> np.ndarray:
    """Sets of several sizes, from all their tokens in a row."""
    good = tokens.ndim == 2 and tokens.dtype.kind in "fiub" and 0 not in tokens.shape
    if not good or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise EtudeError(
            f"{path}: with lengths (N,) of integers, tokens must be numbers of shape "
            f"(sum of lengths, D), got {tokens.shape} and {lengths.shape} of {lengths.dtype}"
        )
    if len(lengths) == 0 or lengths.min() < 1 or int(lengths.sum()) != len(tokens):
        raise EtudeError(
            f"{path}: lengths must be positive and sum to the {len(tokens)} tokens, they sum to "
            f"{int(lengths.sum())}"
        )
    tokens = tokens.astype(np.float32)
    if not np.isfinite(tokens).all():
        row = int(np.argwhere(~np.isfinite(tokens))[0][0])
        raise EtudeError(f"{path}: tokens must be finite float32 numbers, token {row + 1} is not")
    return cut_sets(tokens, lengths.astype(np.int64))


def labels(target: np.ndarray, path: Path, forced: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids and names of a vector of numbers or words."""
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1 or target.dtype.kind not in "fiubU":
        raise EtudeError(
            f"{path}: y must be a vector of numbers or words, got shape {target.shape} of "
            f"{target.dtype}"
        )
    words = target.dtype.kind == "U"
    series = pl.Series("y", target.tolist() if words else target.astype(np.float64))
    y, classes = read_labels(series, where=str(path), forced=forced)
    if (y < 0).any():
        row = int(np.flatnonzero(y < 0)[0]) + 1
        raise EtudeError(f"{path}: row {row} of y must have a label, it is empty or NaN")
    return y, classes


def finish(
    path: Path,
    x: np.ndarray,
    y: np.ndarray | None,
    classes: tuple[str, ...] | None,
    tokens: np.ndarray | None,
    missing: str,
) -> Dataset:
    """Check the features, and settle what is missing in them."""
    schema: dict[str, Any] = {"format": "array", "target": None if y is None else "y"}
    shape = None
    if x.dtype == np.uint8 and (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3))):
        planes = x[:, None] if x.ndim == 3 else np.moveaxis(x, -1, 1)
        shape = (planes.shape[1], planes.shape[2], planes.shape[3])
        x = planes.reshape(len(x), math.prod(shape)).astype(np.float32) / np.float32(255)
        schema |= {"range": [0, 1], "why": "uint8 images, scaled from 0..255 to [0, 1]"}
    if x.ndim != 2 or x.dtype.kind not in "fiub" or 0 in x.shape:
        raise EtudeError(
            f"{path}: x must be numbers of shape (N, D), or uint8 images (N, H, W) or "
            f"(N, H, W, 3), got shape {x.shape} of {x.dtype}"
        )
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if tokens is not None and missing == "drop" and np.isnan(x).any():
        raise EtudeError(f"{path}: x must not have NaN where tokens are given; leave the rows out")
    x, y, notes = fill_array(x, y, where=str(path), missing=missing)
    schema |= {"n_features": x.shape[1], **notes}
    return Dataset(
        name=path.stem, x=x, y=y, classes=classes or (), image_shape=shape, tokens=tokens,
        schema=schema,
    )  # fmt: skip


def unpack(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a zip file that etude knows by name; the others stay packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_NAMES:
                raise EtudeError(f"{path} must hold at most {MOST_NAMES} arrays")
            found = {e.filename.removesuffix(".npy"): e for e in entries}
            known = [key for key in KEYS if key in found]
            if not known:
                raise EtudeError(
                    f"{path} must hold an array x and y, got {', '.join(list(found)[:8])}; "
                    "save np.savez(path, x=x, y=y)"
                )
            arrays = {}
            for key in known:
                entry = found[key]
                check_growth(entry, f"{path}: {key}")
                with archive.open(entry) as file:
                    arrays[key] = read_array(file, entry.file_size, f"{path}: {key}")
            return arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        with path.open("rb") as file:
            head = file.read(2)
        what = "a pickle, which etude never reads" if head[:1] == b"\x80" else str(error)
        raise EtudeError(
            f"{path} must be an NPZ file, got {what}; save it with np.savez(path, x=x, y=y)"
        ) from None


def check_growth(entry: zipfile.ZipInfo, where: str) -> None:
    """Refuse what would unpack to far more than it is, from the zip's own table."""
    size, packed = entry.file_size, max(entry.compress_size, 1)
    if size > LARGEST or (size > BOMB_BYTES and size > BOMB_RATIO * packed):
        raise EtudeError(
            f"{where} must unpack to at most {BOMB_BYTES >> 20} MB or {BOMB_RATIO} times its size, "
            f"it declares {size / 2**20:,.0f} MB from {packed / 2**20:,.1f} MB; "
            "save it with np.savez, which does not compress"
        )


def read_array(file: IO[bytes], size: int, where: str) -> np.ndarray:
    """One array in NPY form of `size` bytes in all; object arrays (pickles) are refused."""
    npy = np.lib.format
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except (ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise EtudeError(f"{where} must be an array in NPY form ({reason})") from None
    if dtype.hasobject:
        raise EtudeError(
            f"{where} must be numbers or fixed-width strings, got objects (a pickle, which etude "
            "never reads); convert it: x.astype(float) or y.astype(str)"
        )
    n_bytes = math.prod(shape) * dtype.itemsize
    at_most = max(size - 10, 0)  # the least header has ten bytes
    if min(shape, default=0) < 0 or n_bytes > at_most or n_bytes > LARGEST:
        raise EtudeError(
            f"{where} declares {n_bytes:,} bytes of data but has {size:,}; it is cut off or not "
            "what it says; save it anew"
        )
    content = file.read(n_bytes)
    if len(content) != n_bytes:
        raise EtudeError(f"{where} ends after {len(content):,} of {n_bytes:,} bytes; save it anew")
    array = np.frombuffer(content, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")
