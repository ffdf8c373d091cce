"""Search of the stored papers: in step with the store, across processes, without the encoder."""

import multiprocessing
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from etude.core import EtudeError
from etude.papers import finder as module
from etude.papers.catalogue import papers
from etude.papers.entry import Entry
from etude.papers.finder import Finder
from etude.papers.search.folder import locked
from etude.papers.store import Store
from etude.papers.vectors import text_of

FROGS = Entry(
    title="Frogs in the rain", abstract="Toads and newts too.", authors=("Kermit Frog",),
    date="2026-11-20", categories=("q-bio.PE",), arxiv="2611.00001",
)  # fmt: skip


@cache
def word_vector(word: str) -> np.ndarray:
    seed = int.from_bytes(word.encode()[:8], "little")
    return np.random.default_rng(seed).standard_normal(384)


def fake(texts: list[str]) -> np.ndarray:
    """Vectors without the encoder: the sum of the words', and what all texts share."""
    rows = [sum(map(word_vector, text.lower().split())) + word_vector("") for text in texts]
    found = np.array(rows, np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """Texts that were encoded; no real encoder runs."""
    texts: list[str] = []

    def encode(given: list[str]) -> np.ndarray:
        texts.extend(given)
        return fake(given)

    monkeypatch.setattr(module, "_encode", encode)
    monkeypatch.setattr(module, "_has_encoder", lambda: True)
    return texts


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "papers.sqlite"))


@pytest.mark.usefixtures("seen")
def test_the_catalogue_is_found_from_the_start(store: Store, tmp_path: Path) -> None:
    finder = Finder(store, tmp_path / "index")
    found = finder.search("matryoshka representation", 3)
    assert found.entries[0].title == "Matryoshka Representation Learning"
    assert found.scores == sorted(found.scores, reverse=True)
    assert found.note == ""
    # its move and its needs are searched where there is no abstract
    assert len(finder.search("embedding", 500).entries) > 50
    assert finder.sync() == 0


@pytest.mark.usefixtures("seen")
def test_filters_and_places(store: Store, tmp_path: Path) -> None:
    finder = Finder(store, tmp_path / "index")
    whole = finder.search("noisy labels", 40)
    pages = [finder.search("noisy labels", 10, start=start).entries for start in (0, 10, 20, 30)]
    assert [e.id for page in pages for e in page] == [e.id for e in whole.entries]
    runs = finder.search("noisy labels", 500, runnable=True).entries
    assert runs
    keys = {e.slug for e in runs}
    assert keys <= set(module.cards())
    assert all(e.slug.startswith("losses.") for e in finder.search("loss", family="losses").entries)
    dated = finder.search("learning", 300, first="2024-01", last="2024-06").entries
    assert dated
    assert all("2024-01" <= e.date < "2024-07" for e in dated)


def test_an_imported_paper_is_found_at_once_and_merging_keeps_its_vector(
    store: Store, tmp_path: Path, seen: list[str]
) -> None:
    finder = Finder(store, tmp_path / "index")
    finder.sync()
    store.add([FROGS])
    told: list[tuple[int, int]] = []
    assert finder.sync(lambda done, total: told.append((done, total))) == 1
    assert told[-1] == (1, 1)
    for query in ("toads", "au:kermit", "cat:q-bio", "id:2611.00001v2", 'ti:"the rain"'):
        assert [e.id for e in finder.search(query, 1).entries] == ["2611.00001"]
    encoded = len(seen)
    store.add([replace(FROGS, votes=12)])
    assert finder.search("toads", 1).entries[0].votes == 12
    assert seen[encoded:] == ["toads"]  # the query, not the paper
    store.add([replace(FROGS, abstract="Toads, newts and salamanders too.")])
    assert finder.search("salamanders", 1).entries[0].id == "2611.00001"


@pytest.mark.usefixtures("seen")
def test_a_search_does_not_wait_for_who_writes(store: Store, tmp_path: Path) -> None:
    finder = Finder(store, tmp_path / "index")
    finder.sync()
    with locked(tmp_path / "index"):  # as an import does for as long as it encodes
        store.add([FROGS])
        assert finder.search("toads au:kermit").entries == []
        assert finder.search("matryoshka", 1).entries
    assert finder.search("toads", 1).entries[0].id == "2611.00001"


@pytest.mark.usefixtures("seen")
def test_similar(store: Store, tmp_path: Path) -> None:
    finder = Finder(store, tmp_path / "index")
    entry = finder.search('ti:"matryoshka representation learning"', 1).entries[0]
    near = finder.similar(entry.id, 4)
    vectors = fake([text_of(paper) for paper in papers()])
    place = next(n for n, p in enumerate(papers()) if p.key == entry.slug)
    order = np.argsort(-(vectors @ vectors[place]))
    wanted = [papers()[n].key for n in order if n != place][:4]
    assert [e.slug for e in near] == wanted
    assert finder.similar("unknown") == []


def test_without_the_encoder_words_alone_are_searched_and_then_meaning_too(
    store: Store, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_has_encoder", lambda: False)
    found = Finder(store, tmp_path / "index").search("matryoshka", 3)
    assert found.entries[0].title == "Matryoshka Representation Learning"
    assert 'search by meaning needs pip install "etude[text]"' in found.note
    monkeypatch.setattr(module, "_has_encoder", lambda: True)
    monkeypatch.setattr(module, "_encode", fake)
    finder = Finder(store, tmp_path / "index")
    assert finder.search("matryoshka", 3).note == ""
    assert finder.similar(found.entries[0].id)


@pytest.mark.usefixtures("seen")
def test_a_damaged_index_or_another_store_is_indexed_anew(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Finder(store, folder).sync()
    next(folder.rglob("rows.npy")).write_bytes(b"x")
    assert Finder(store, folder).search("matryoshka", 1).entries
    other = Store(str(tmp_path / "other.sqlite"))
    other.add([FROGS])
    assert Finder(other, folder).search("toads", 1).entries[0].id == "2611.00001"


@pytest.mark.usefixtures("seen")
def test_refusals(store: Store, tmp_path: Path) -> None:
    finder = Finder(store, tmp_path / "index")
    with pytest.raises(EtudeError, match="k must be at least 1, got 0"):
        finder.search("x", 0)
    with pytest.raises(EtudeError, match="start must be at least 0, got -1"):
        finder.search("x", start=-1)
    with pytest.raises(EtudeError, match="query must be words"):
        finder.search("--")


def importing(url: str, folder: str, first: int) -> None:
    """What the import command does in a process of its own."""
    module._has_encoder, module._encode = lambda: True, fake
    store = Store(url)
    for n in range(first, first + 5):
        store.add([Entry(title=f"A paper about topic{n}", date="2026-11-21")])
        Finder(store, Path(folder)).sync()


@pytest.mark.usefixtures("seen")
def test_the_site_finds_what_other_processes_import(store: Store, tmp_path: Path) -> None:
    site = Finder(store, tmp_path / "index")
    site.sync()
    url, folder = str(tmp_path / "papers.sqlite"), str(tmp_path / "index")
    start = multiprocessing.get_context("spawn")
    imports = [start.Process(target=importing, args=(url, folder, f)) for f in (100, 200)]
    for process in imports:
        process.start()
    while any(process.is_alive() for process in imports):
        assert site.search("matryoshka", 1).entries
        time.sleep(0.05)
    for process in imports:
        process.join()
    assert [process.exitcode for process in imports] == [0, 0]
    for n in (*range(100, 105), *range(200, 205)):
        found = site.search(f"topic{n}", 1).entries
        assert found[0].title == f"A paper about topic{n}"
    fresh = Finder(store, tmp_path / "index")
    assert fresh.sync() == 0
    assert fresh.search("topic204", 1).entries[0].title == "A paper about topic204"
