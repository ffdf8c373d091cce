"""Files that readers send: bounded while they stream in, known by content, gone after the run.

A file is kept under a random folder and a name of ours; the name that the reader gave is only
shown. What a file claims to be is checked from its first bytes (``store``) and, in the process
that is allowed to use little, from its own tables (``inspect``) before anything is unpacked.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
import unicodedata
import zipfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from starlette.datastructures import FormData, Headers
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from etude.core import EtudeError

__all__ = [
    "DAY_S", "SUFFIXES", "TooLargeError", "Upload", "clean_name", "forget", "inspect", "read_form",
    "store", "sweep",
]  # fmt: skip

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")
NAME = "upload"  # of every stored file, before its suffix
FOLDER = re.compile(r"[0-9a-f]{32}")
DAY_S = 86_400.0
SLACK = 64 << 10  # bytes of a form beside its file
MOST_FIELDS = 20
LONGEST_FIELD = 4 << 10
MOST_NAMES = 64  # members of an NPZ file
MOST_UNPACKED = 512 << 20  # bytes of all its members together
MOST_GROWTH = 200  # times its packed size
LEAST_GROWN = 1 << 20  # bytes; what unpacks to less is no bomb
MOST_CELLS = 50_000_000  # of a Parquet file
HEAD = 64 << 10  # bytes of a text that are looked at
MAGIC = {".npz": b"PK\x03\x04", ".parquet": b"PAR1"}


class TooLargeError(EtudeError):
    """More bytes than the site reads: answered with status 413."""


@dataclass(frozen=True)
class Upload:
    """A stored file.

    Attributes:
        folder: random name of its folder under the site's uploads.
        file: its name there, ``upload`` and the suffix.
        shown: the name that the reader gave, safe to print.
        size: bytes.
    """

    folder: str
    file: str
    shown: str
    size: int


def clean_name(given: str) -> str:
    """The last part of a file's name without control and format characters, at most 80 long."""
    last = re.split(r"[/\\]", given)[-1]
    kept = "".join(c for c in last if unicodedata.category(c)[0] != "C")
    stem, dot, suffix = " ".join(kept.split()).rpartition(".")
    return f"{stem[:70]}{dot}{suffix[:9]}" if dot else suffix[:80]


async def read_form(headers: Headers, stream: AsyncIterator[bytes], most: int) -> FormData:
    """The fields and at most one file of a posted form; close it when done.

    Args:
        headers: of the request.
        stream: its body, piece by piece.
        most: bytes of the largest file.

    Raises:
        TooLargeError: as soon as more has come in; nothing of it stays.
        EtudeError: no form, or one that is cut off.
    """
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and len(declared) < 19 and int(declared) > most + SLACK:
        raise _too_large(most)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    bounded = _bounded(stream, most + SLACK, most)
    try:
        if kind == "multipart/form-data":
            return await MultiPartParser(
                headers, bounded, max_files=1, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD
            ).parse()
        if kind == "application/x-www-form-urlencoded":
            small = _bounded(stream, SLACK, SLACK)
            return await FormParser(headers, small, max_fields=MOST_FIELDS).parse()
    except MultiPartException as error:
        raise EtudeError(f"the form cannot be read: {error.message}") from None
    raise EtudeError("the form must be multipart/form-data, or urlencoded where it has no file")


async def _bounded(
    stream: AsyncIterator[bytes], most: int, shown: int
) -> AsyncGenerator[bytes, None]:
    come = 0
    async for piece in stream:
        come += len(piece)
        if come > most:
            raise _too_large(shown)
        yield piece


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the file must be at most {most / 1e6:,.0f} MB: send a part of its rows")


def store(root: Path, file: BinaryIO, given: str, most: int) -> Upload:
    """Keep a file under `root`, in a folder of its own.

    Raises:
        TooLargeError: more than `most` bytes.
        EtudeError: it is empty, of a kind that is not read, or not what its name says.
    """
    shown = clean_name(given)
    suffix = "." + shown.rpartition(".")[2].lower()
    if suffix not in SUFFIXES:
        raise EtudeError(f"the file must end in {', '.join(SUFFIXES)}, got {shown!r}")
    name = secrets.token_hex(16)
    folder = root / name
    folder.mkdir(parents=True, mode=0o700)
    path = folder / f"{NAME}{suffix}"
    try:
        size = 0
        with path.open("xb") as target:
            while piece := file.read(1 << 20):
                size += len(piece)
                if size > most:
                    raise _too_large(most)
                target.write(piece)
        _check_kind(path, suffix, shown)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise EtudeError(f"{shown} cannot be kept: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Upload(name, path.name, shown, size)


def _check_kind(path: Path, suffix: str, shown: str) -> None:
    """Refuse a file whose first bytes are not those of its suffix."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(-min(4, path.stat().st_size), 2)
        tail = file.read(4)
    if not head:
        raise EtudeError(f"{shown} is empty; it needs columns and rows")
    magic = MAGIC.get(suffix)
    if magic is not None:
        good = head.startswith(magic) and (suffix != ".parquet" or tail == magic)
    else:
        good = b"\0" not in head and not head.startswith((*MAGIC.values(), b"\x1f\x8b", b"%PDF"))
    if not good:
        kind = {".npz": "an NPZ", ".parquet": "a Parquet"}.get(suffix, "a text")
        raise EtudeError(f"{shown} must be {kind} file as its name says; its first bytes are not")


def inspect(path: Path, shown: str) -> None:
    """Refuse what would become far larger than it is, and what holds more than arrays.

    Raises:
        EtudeError: says what it is; nothing has been unpacked.
    """
    if path.suffix == ".npz":
        _inspect_npz(path, shown)
    elif path.suffix == ".parquet":
        _inspect_parquet(path, shown)


def _inspect_npz(path: Path, shown: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, path.stat().st_size, shown)
            for member in members:
                with archive.open(member) as file:
                    _check_array(file, f"{shown}: {clean_name(member.filename)}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise EtudeError(
            f"{shown} must be an NPZ file, got {error}; save it with np.savez"
        ) from None


def _check_members(members: list[zipfile.ZipInfo], size: int, shown: str) -> None:
    """The zip's own table: how many, how large, which names; sizes are bounds to the reader."""
    if not 0 < len(members) <= MOST_NAMES:
        raise EtudeError(f"{shown} must hold 1 to {MOST_NAMES} arrays, got {len(members)}")
    for member in members:
        name = member.orig_filename
        if re.search(r"[\\/:\0]", name) or name in ("", ".", "..") or not name.endswith(".npy"):
            raise EtudeError(
                f"{shown} must hold arrays by plain names, got {clean_name(name)!r} with a path "
                "or of another kind; save it with np.savez"
            )
    unpacked = sum(member.file_size for member in members)
    growing = unpacked > LEAST_GROWN and unpacked > MOST_GROWTH * size
    if unpacked > MOST_UNPACKED or growing:
        raise EtudeError(
            f"{shown} must unpack to at most {MOST_UNPACKED >> 20} MB and {MOST_GROWTH} times its "
            f"size, it declares {unpacked / 2**20:,.0f} MB from {size / 2**20:,.2f} MB"
        )


def _check_array(file: IO[bytes], where: str) -> None:
    npy = np.lib.format
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        dtype = read(file)[2]
    except ValueError as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise EtudeError(f"{where} must be an array in NPY form ({reason})") from None
    if dtype.hasobject:
        raise EtudeError(
            f"{where} must be numbers or fixed-width strings, got objects (a pickle, which etude "
            "never reads); convert it: x.astype(float) or y.astype(str)"
        )


def _inspect_parquet(path: Path, shown: str) -> None:
    import polars as pl

    try:
        n_columns = len(pl.read_parquet_schema(path))
        n_rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise EtudeError(f"{shown}: not readable as Parquet ({reason}); write it anew") from None
    if n_rows * n_columns > MOST_CELLS:
        raise EtudeError(
            f"{shown} must have at most {MOST_CELLS:,} cells, it declares {n_rows:,} rows of "
            f"{n_columns:,}; send a part of its rows"
        )


def forget(root: Path, folder: str) -> None:
    """Delete a stored file; nothing happens where there is none."""
    if FOLDER.fullmatch(folder):
        shutil.rmtree(root / folder, ignore_errors=True)


def sweep(root: Path, older_s: float = DAY_S) -> int:
    """Delete what has been kept for longer; returns how many folders that were."""
    found = 0
    for folder in root.iterdir() if root.is_dir() else ():
        try:
            old = folder.stat().st_mtime < time.time() - older_s
        except OSError:  # another process was quicker
            continue
        if old and FOLDER.fullmatch(folder.name):
            forget(root, folder.name)
            found += 1
    return found
