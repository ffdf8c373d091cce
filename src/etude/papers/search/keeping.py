"""A snapshot in a folder: what is new of it is written, what is known of it is not read again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from etude.core import EtudeError
from etude.papers.search import folder as disk
from etude.papers.search.segment import Segment
from etude.papers.search.snapshot import Snapshot

__all__ = ["read", "write"]

OFTEN = ("vectors", "rows", "marks")  # read by every query, here and there
TRIES = 5  # a writer may sweep a segment away between the manifest and the segment


def write(path: Path, snapshot: Snapshot, state: dict[str, Any]) -> Snapshot:
    """Write a snapshot; the same, with its segments mapped from the folder.

    A segment that the folder has is left as it is: the cost is that of what is new.
    """
    segments, entries = [], []
    for segment, dead in zip(snapshot.segments, snapshot.dead, strict=True):
        if segment.home != path:
            segment = _written(segment, path)
        entry: dict[str, Any] = {"name": segment.name, "n": len(segment), "files": segment.files}
        if len(dead):
            if segment.dead is None or not np.array_equal(segment.dead[1], dead):
                name = f"dead-{uuid.uuid4().hex[:12]}"
                segment.dead = ([name, *disk.write_array(path, name, dead)], dead)
            entry["dead"] = segment.dead[0]
        segments.append(segment)
        entries.append(entry)
    manifest = {"segments": entries, "state": state}
    disk.write_manifest(path, manifest)
    disk.sweep(path, manifest)
    return Snapshot(tuple(segments), snapshot.dead)


def read(path: Path, known: Iterable[Segment] = ()) -> tuple[Snapshot, dict[str, Any]]:
    """The snapshot and the state in a folder; segments that are known are taken over.

    Raises:
        EtudeError: no index there, or a file is missing, truncated or altered.
    """
    checked = disk.Checked(path)
    have = {segment.name: segment for segment in known if segment.home == path}
    for attempt in range(TRIES):
        manifest = disk.read_manifest(path)
        segments, deads = [], []
        try:
            for entry in manifest["segments"]:
                segment = have.get(entry["name"]) or _mapped(path, entry, checked)
                dead = np.empty(0, np.int64)
                if entry.get("dead"):
                    name, *sums = entry["dead"]
                    dead = np.array(disk.read_array(path, name, sums, checked))
                    segment.dead = (entry["dead"], dead)
                segments.append(segment)
                deads.append(dead)
        except FileNotFoundError as error:
            if attempt == TRIES - 1:
                missing = f"{error.filename} is missing: build the index again"
                raise EtudeError(missing) from None
            continue
        break
    names = {f"{e['name']}/{n}.npy" for e in manifest["segments"] for n in e["files"]}
    checked.keep(names | {f"{e['dead'][0]}.npy" for e in manifest["segments"] if e.get("dead")})
    return Snapshot(tuple(segments), tuple(deads)), manifest["state"]


def _written(segment: Segment, path: Path) -> Segment:
    name = f"segment-{uuid.uuid4().hex[:12]}"
    (path / name).mkdir()
    files = {n: disk.write_array(path / name, n, a) for n, a in segment.arrays.items()}
    arrays = {n: np.load(path / name / f"{n}.npy", mmap_mode="r") for n in files}
    return _placed(arrays, path, name, files)


def _mapped(path: Path, entry: dict[str, Any], checked: disk.Checked) -> Segment:
    name, files = entry["name"], entry["files"]
    arrays = {n: disk.read_array(path / name, n, sums, checked) for n, sums in files.items()}
    return _placed(arrays, path, name, files)


def _placed(
    arrays: dict[str, np.ndarray], path: Path, name: str, files: dict[str, list[Any]]
) -> Segment:
    # Codes are read whole by every query: they are kept in memory, all else is mapped.
    small = {name: np.array(arrays[name]) for name in ("codes", "factors")}
    segment = Segment(arrays | small)
    segment.home, segment.name, segment.files = path, name, files
    maps: dict[str, tuple[mmap, ...]] = {"often": (), "seldom": ()}
    for n, values in arrays.items():
        mapped = getattr(values, "_mmap", None)
        if mapped is not None and n not in small:
            maps["often" if n in OFTEN else "seldom"] += (mapped,)
    segment.maps = maps
    return segment
