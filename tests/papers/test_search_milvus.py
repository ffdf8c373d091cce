"""Candidates from Milvus (its embedded kind): the answers of the embedded index."""

import re
from pathlib import Path

import numpy as np
import pytest

from etude.core import EtudeError
from etude.papers import finder
from etude.papers.entry import Entry
from etude.papers.search import Document, Index
from etude.papers.search.milvus import Milvus, partition
from etude.papers.store import Store

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

DIM = 32
WORDS = ["graph", "noisy", "label", "heat", "flow", "wing", "code", "search", "loss", "layer"]


def encode(texts: list[str]) -> np.ndarray:
    """Vectors that depend on the text only, near where words are shared."""
    known = np.random.default_rng(7).standard_normal((len(WORDS), DIM))
    said = [[w for w in re.findall(r"[a-z]+", text) if w in WORDS] for text in texts]
    found = [sum((known[WORDS.index(w)] for w in one), 1e-3 * known[0]) for one in said]
    rows = np.array(found, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def documents(first: int, n: int) -> list[Document]:
    found = []
    for i in range(first, first + n):
        rng = np.random.default_rng(i)
        title, text = (" ".join(rng.choice(WORDS, size)) for size in (3, 12))
        found.append(Document(f"d{i}", title, text, date=f"20{10 + i % 10}"))
    return found


QUERIES = ["graph noisy", "heat flow wing", "search of codes", "loss", "layer -wing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("milvus")


@pytest.fixture(scope="module")
def milvus(folder: Path) -> Milvus:
    server = Milvus(f"milvus://{folder}/a.db")
    yield server
    server.close()


def test_answers_are_those_of_the_embedded_index(
    folder: Path, milvus: Milvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "i"
    index = Index.build(documents(0, 300), path, encode)
    index.milvus = milvus
    told: list[tuple[int, int]] = []
    index.upload(lambda done, total: told.append((done, total)))
    assert told == [(300, 300)]
    asked: list[int] = []
    real = milvus.near
    monkeypatch.setattr(milvus, "near", lambda *a: asked.append(len(found := real(*a))) or found)

    def compare(n: int) -> None:
        plain = Index.load(path, encode)
        for query in QUERIES:
            asked.clear()
            found = index.search(query, 20)
            # A server that finds all leaves nothing to the choice of candidates.
            assert found == plain.search(query, 20)
            assert asked == ([] if "-" in query else [n])
        filtered = index.search("graph", 20, first="2015")
        assert filtered == plain.search("graph", 20, first="2015")

    compare(300)
    index.extend(documents(300, 5))  # a second part, which the next search brings up
    compare(305)
    index.extend([Document("d7", "wing", "wing wing")])  # replaces one
    index.remove(["d1", "d2"])
    compare(303)
    assert "d7" in {i for i, _ in index.search("wing", 300)}
    # Many small changes join segments: what the index lost is dropped from the server too.
    for n in range(400, 420):
        index.extend(documents(n, 1))
    compare(323)
    name = milvus._collection(path, DIM)
    parts = {p for p in milvus._client.list_partitions(name) if p.startswith("segment")}
    assert parts == {partition(s.name) for s in index.snapshot.segments}


def test_a_part_that_was_not_finished_is_made_anew(folder: Path, milvus: Milvus) -> None:
    path = folder / "j"
    index = Index.build(documents(0, 50), path, encode)
    segment, name = index.snapshot.segments[0], milvus._collection(path, DIM)
    milvus._client.create_partition(name, partition(segment.name))
    row = {"key": f"{segment.name}:0", "vector": segment["vectors"][0].astype(np.float32)}
    milvus._client.insert(name, [row], partition_name=partition(segment.name))
    milvus._client.flush(name)
    milvus._there.clear()
    index.milvus = milvus
    query = encode(["graph noisy"])[0]
    assert len(milvus.near(path, index.snapshot, query, 100)) == 50
    nearest = np.sort(np.argsort(-(segment["vectors"].astype(np.float32) @ query))[:5])
    np.testing.assert_array_equal(milvus.near(path, index.snapshot, query, 5), nearest)


@pytest.mark.parametrize(
    "address", ["http://host:19530", "milvus://", "milvus:///folder/file", "host:19530", ""]
)
def test_another_address_is_refused(address: str) -> None:
    with pytest.raises(EtudeError, match=r"index must be milvus://host:19530"):
        Milvus(address)


def test_no_answer_is_told_without_the_password() -> None:
    with pytest.raises(EtudeError, match=r"milvus://me:\*\*\*@127\.0\.0\.1:1 does not serve"):
        Milvus("milvus://me:secret@127.0.0.1:1")


def test_a_finder_keeps_the_server_in_step(
    folder: Path, milvus: Milvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "_has_encoder", lambda: True)
    monkeypatch.setattr(finder, "_encode", encode)
    monkeypatch.setattr(finder, "Milvus", lambda address: {"milvus://here": milvus}[address])
    store = Store(str(folder / "papers.sqlite"))
    store.add([Entry(title="graph noisy", abstract="loss layer", arxiv="2401.00001")])
    searched = finder.Finder(store, folder / "k", "milvus://here")
    assert searched.sync() > 0
    name = milvus._collection(folder / "k", DIM)
    assert int(milvus._client.get_collection_stats(name)["row_count"]) == len(searched._open())
    assert searched.search("graph noisy", 1).entries[0].title == "graph noisy"
