"""A folder of arrays in which nothing can be cut or changed unnoticed.

Every array is a .npy file whose name ends in the start of its own sha256; a manifest lists the
files with their full sums and holds its own. Files are never changed: who writes a newer state
adds files and then swaps the manifest in one step, so readers see the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from etude.core.errors import EtudeError

__all__ = [
    "MANIFEST", "file_sum", "read_arrays", "read_manifest", "settle", "write_array", "write_arrays",
    "write_manifest",
]  # fmt: skip

MANIFEST = "index.json"
CURE = "copy it again from its source, or build it anew"


class _Summing:
    """A file to write to that also sums."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.sum.update(part)
        return self.file.write(part)


def write_array(path: Path, array: np.ndarray) -> tuple[int, str]:
    """Write a .npy file, which is on the disk when this returns; its bytes and its sha256."""
    with path.open("wb") as raw:
        file = _Summing(raw)
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        raw.flush()
        os.fsync(raw.fileno())
        return raw.tell(), file.sum.hexdigest()


def file_sum(path: Path) -> str:
    """The sha256 of a file, which is read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle(folder: Path) -> None:
    """Have the folder's new names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Write each array; for each name the file's entry in the manifest (file, sha256, bytes).

    The manifest does not change: a half-written state is never read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, array in arrays.items():
        part = folder / f".{name}.{os.getpid()}.part"
        try:
            n_bytes, digest = write_array(part, array)
            final = f"{name}-{digest[:16]}.npy"
            entries[name] = {"file": final, "sha256": digest, "bytes": n_bytes}
            os.replace(part, folder / final)
        finally:
            part.unlink(missing_ok=True)
    return entries


def _sum_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Swap the manifest for one with `content` (JSON values), in one step."""
    part = folder / f".{MANIFEST}.{os.getpid()}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump({"content": content, "sha256": _sum_of(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / MANIFEST)
    settle(folder)


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The content of the manifest.

    Raises:
        EtudeError: missing, changed, or of another kind.
    """
    path = folder / MANIFEST
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        content, found = whole["content"], whole["sha256"]
        intact = found == _sum_of(content) and isinstance(content, dict)
    except OSError:
        raise EtudeError(f"{path} cannot be read; {CURE}") from None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise EtudeError(f"{path} was cut or changed; {CURE}")
    if content.get("kind") != kind:
        raise EtudeError(f"{path} must be of kind {kind!r}, got {content.get('kind')!r}")
    return dict(content)


def read_arrays(
    folder: Path, entries: Mapping[str, Mapping[str, Any]], *, mapped: tuple[str, ...] = (),
    verify: bool = True,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The arrays of `entries` by name; those in `mapped` stay on disk (read-only memory maps).

    `verify` sums every file, which reads it once; without it sizes alone are compared.

    Raises:
        EtudeError: a file is missing, cut or changed; the message names it.
    """
    found = {}
    for name, entry in entries.items():
        path = folder / Path(str(entry["file"])).name  # never outside the folder
        try:
            size = path.stat().st_size
            if size != entry["bytes"] or (verify and file_sum(path) != entry["sha256"]):
                raise EtudeError(f"{path} was cut or changed; {CURE}")
            found[name] = np.load(
                path, mmap_mode="r" if name in mapped else None, allow_pickle=False
            )
        except OSError as error:
            raise EtudeError(f"{path} cannot be read ({error.strerror}); {CURE}") from None
    return found
