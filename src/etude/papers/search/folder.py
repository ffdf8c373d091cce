"""An index in a folder: a manifest that names every file with its size and sum.

``manifest.json`` is replaced at once, after all that it names is on the disk: a reader sees the
index before a change or after it. Segments are folders that are never altered; what died in one
is a file of its own. Writers take turns by ``lock``. A file that is missing, truncated or altered
is refused with its name.

Reading gigabytes takes seconds: ``checked`` keeps the size, number and times of the files whose
sums were found right, and of these nothing but that is compared again. A file that was written
to since, or copied, has other times and is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from etude.core import EtudeError, sealed

__all__ = [
    "Checked", "Manifest", "is_busy", "locked", "read_array", "read_manifest", "stamp", "sweep",
    "write_array", "write_manifest",
]  # fmt: skip

FORMAT = 2
NAME = "manifest.json"
CHECKED = "checked"
SETTLED = 1_000_000_000  # nanoseconds
Manifest = dict[str, Any]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the block runs no other process writes to the folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise EtudeError(f"the index {folder} cannot be written: {error.strerror}") from None


def is_busy(folder: Path) -> bool:
    """Whether another process, or another index of this one, is writing to the folder."""
    try:
        with (folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def stamp(folder: Path) -> tuple[int, int, int] | None:
    """What changes whenever the manifest does; None where there is no index."""
    try:
        status = (folder / NAME).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_manifest(folder: Path) -> Manifest:
    """The manifest.

    Raises:
        EtudeError: none there, damaged, or of a newer format.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        given = found.pop("sum")
    except FileNotFoundError:
        raise EtudeError(f"{folder} holds no index: {NAME} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        _damaged(path)
    if given != _sum_of(found):
        _damaged(path)
    if found.get("format") != FORMAT:
        said = f"is of format {found.get('format')}, this etude reads {FORMAT}"
        raise EtudeError(f"{path} {said}: build the index again")
    return dict(found)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest; what it names must be on the disk."""
    whole = {**manifest, "format": FORMAT}
    whole["sum"] = _sum_of(whole)
    new = folder / f"{NAME}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(whole, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / NAME)
    sealed.settle(folder)


def write_array(folder: Path, name: str, values: np.ndarray) -> list[Any]:
    """Write ``<name>.npy``; its entry in the manifest: bytes and sha256."""
    return list(sealed.write_array(folder / f"{name}.npy", values))


class Checked:
    """The files of an index's folder whose sums were found right, and as what they were seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, list[Any]] = {}
        self.new = False
        with suppress(OSError, ValueError, AttributeError):  # then everything is read
            self.known = dict(json.loads((folder / CHECKED).read_text(encoding="utf-8")).items())

    def holds(self, path: Path, entry: list[Any]) -> bool:
        """Whether a file is as the manifest's entry says, by its sum or as it was seen before."""
        status = path.stat()
        seen = [
            *entry, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
        ]  # fmt: skip
        name = path.relative_to(self.folder).as_posix()
        if self.known.get(name) == seen:
            return True
        if status.st_size != entry[0] or sealed.file_sum(path) != entry[1]:
            return False
        # What was written a moment ago may be written to again without another time.
        if time.time_ns() - status.st_ctime_ns > SETTLED:
            self.known[name], self.new = seen, True
        return True

    def keep(self, names: Collection[str]) -> None:
        """Remember the files of these names; where that is refused, they are read again."""
        if self.new:
            kept = {name: seen for name, seen in self.known.items() if name in names}
            new = self.folder / f"{CHECKED}.{uuid.uuid4().hex[:8]}"
            try:
                new.write_text(json.dumps(kept), encoding="utf-8")
                new.replace(self.folder / CHECKED)
            except OSError:
                new.unlink(missing_ok=True)


def read_array(folder: Path, name: str, entry: list[Any], checked: Checked) -> np.ndarray:
    """Map ``<name>.npy`` after it was compared with the manifest's entry."""
    path = folder / f"{name}.npy"
    try:
        if not checked.holds(path, entry):
            _damaged(path)
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except FileNotFoundError:
        raise
    except (OSError, ValueError, IndexError, TypeError):
        _damaged(path)


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove what no manifest names any more; who has it open keeps it."""
    named = {segment["name"] for segment in manifest["segments"]}
    named |= {f"{s['dead'][0]}.npy" for s in manifest["segments"] if s.get("dead")}
    for path in folder.iterdir():
        if path.name.startswith(("segment-", "dead-")) and path.name not in named:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _damaged(path: Path) -> NoReturn:
    raise EtudeError(f"{path} is damaged: build the index again") from None


def _sum_of(manifest: Mapping[str, Any]) -> str:
    whole = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(whole.encode()).hexdigest()
