"""Candidates by meaning from a Milvus server: ``milvus://host:19530`` beside an index's folder.

The words, the filters and the full vectors stay in the folder; the search among the vectors, which
the codes in memory do otherwise, is the server's. What it finds is ranked by the exact inner
products from the folder, so the answers are those of the embedded index wherever both have found
the nearest. A search with filters takes the codes, since the server does not know the filters.

Each segment of the index is one partition of the folder's own collection, and both are never
altered: ``follow`` adds the partitions that are missing or not whole and drops those of segments
that the index has no more. It can be killed at any time, and repeated.

    milvus://host[:port], milvus://user:password@host   a server
    milvus:///folder/file.db                            Milvus Lite, in this process
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from etude.core import EtudeError, require
from etude.papers.search import folder as disk
from etude.papers.search.snapshot import Snapshot

__all__ = ["Milvus"]

INSTALL = 'pip install "etude[milvus]"'
NAME = "milvus"  # the file with the name of the folder's collection
BATCH = 2_000  # vectors of one request
MOST = 16_384  # that a server returns


class Milvus:
    """The server of an address; connects at once.

    Raises:
        EtudeError: another kind of address, pymilvus is not installed, or no answer.
    """

    def __init__(self, address: str) -> None:
        whole = urlsplit(address)
        lite = not whole.netloc and whole.path.endswith(".db")
        fits = whole.scheme == "milvus" and (lite or bool(whole.hostname))
        shown = address.replace(f":{whole.password}@", ":***@") if whole.password else address
        require(fits, "index", "milvus://host:19530 or milvus:///folder/file.db", shown)
        self.shown, self._lite = shown, lite
        self._there: dict[Path, frozenset[str]] = {}  # segments by folder
        self._lock = RLock()
        try:
            self._pymilvus: Any = importlib.import_module("pymilvus")
        except ImportError:
            raise EtudeError(f"{shown} needs {INSTALL}") from None
        with self._talking():
            place = whole.path if lite else f"http://{whole.hostname}:{whole.port or 19530}"
            user, password = unquote(whole.username or ""), unquote(whole.password or "")
            self._client: Any = self._pymilvus.MilvusClient(place, user=user, password=password)

    def follow(
        self, folder: Path, now: Snapshot, tell: Callable[[int, int], None] | None = None
    ) -> None:
        """Bring the folder's collection in step with the snapshot; `tell` as ``Index.build``.

        Raises:
            EtudeError: the server refuses or does not answer, or the folder cannot be written.
        """
        wanted = frozenset(segment.name for segment in now.segments)
        if wanted <= self._there.get(folder, frozenset()):
            return
        with self._lock, disk.locked(folder), self._talking():
            dim = now.segments[0]["vectors"].shape[1]
            name = self._collection(folder, dim)
            kept = wanted | {entry["name"] for entry in disk.read_manifest(folder)["segments"]}
            parts = {partition(name) for name in kept}
            for old in self._client.list_partitions(name):
                if old.startswith("segment") and old not in parts:
                    self._drop(name, old)
            for segment in now.segments:
                rows = np.flatnonzero(segment["encoded"])
                part = partition(segment.name)
                if self._client.has_partition(name, part):
                    stats = self._client.get_partition_stats(name, part)
                    if int(stats["row_count"]) == len(rows):
                        continue
                    self._drop(name, part)
                self._client.create_partition(name, part)
                for start in range(0, len(rows), BATCH):
                    some = rows[start : start + BATCH]
                    vectors = segment["vectors"][some].astype(np.float32)
                    facts = zip(some, vectors, strict=True)
                    data = [{"key": f"{segment.name}:{row}", "vector": v} for row, v in facts]
                    self._client.insert(name, data, partition_name=part)
                    if tell:
                        tell(start + len(some), len(rows))
                self._client.flush(name)
            self._client.load_collection(name)
            self._there[folder] = wanted

    def near(self, folder: Path, now: Snapshot, vector: np.ndarray, k: int) -> np.ndarray:
        """Sorted numbers of the living documents among the `k` nearest to a vector (D,)."""
        if not now.segments:
            return np.empty(0, np.int64)
        self.follow(folder, now)
        dead = sum(map(len, now.dead))
        with self._talking():
            found = self._client.search(
                self._collection(folder, len(vector)), [vector], limit=min(k + dead, MOST),
                search_params={"metric_type": "IP"}, output_fields=["key"],
                consistency_level="Strong",
            )[0]  # fmt: skip
        places = {segment.name: place for place, segment in enumerate(now.segments)}
        numbers = []
        for hit in found:
            name, _, row = hit["entity"]["key"].rpartition(":")
            place = places.get(name, -1)
            if place >= 0 and (not len(now.alive[place]) or now.alive[place][int(row)]):
                numbers.append(int(now.bases[place]) + int(row))
        return np.unique(np.array(numbers, np.int64))

    def close(self) -> None:
        """Let go of the server."""
        self._client.close()

    def _collection(self, folder: Path, dim: int) -> str:
        """The name of the folder's collection, which is made if need be."""
        path = folder / NAME
        if not path.exists():
            path.write_text(f"etude_{uuid.uuid4().hex[:12]}", encoding="utf-8")
        name = f"{path.read_text(encoding='utf-8').strip()}_{dim}"
        if folder not in self._there and not self._client.has_collection(name):
            kinds = self._pymilvus.DataType
            schema = self._client.create_schema(auto_id=False)
            schema.add_field("key", kinds.VARCHAR, max_length=64, is_primary=True)
            schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dim)
            index = self._client.prepare_index_params()
            kind = "FLAT" if self._lite else "AUTOINDEX"  # Lite's own choice misses a third
            index.add_index("vector", index_type=kind, metric_type="IP")
            self._client.create_collection(name, schema=schema, index_params=index)
        return name

    def _drop(self, name: str, part: str) -> None:
        if not self._lite:  # which has no release of a part, and needs none
            self._client.release_partitions(name, [part])
        self._client.drop_partition(name, part)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """What the server or its client raises, as one line."""
        try:
            yield
        except EtudeError:
            raise
        except Exception as error:  # grpc's own errors share no class with Milvus's
            said = " ".join(str(getattr(error, "message", error)).split())[:200]
            raise EtudeError(f"{self.shown} does not serve the index: {said}") from None


def partition(name: str) -> str:
    """A segment's name as Milvus allows it."""
    return name.replace("-", "_")
