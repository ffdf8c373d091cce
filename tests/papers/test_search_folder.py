"""An index in a folder: what is damaged is refused by name, and processes share it."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from etude.core import EtudeError
from etude.papers.search import Document, Index, snapshot
from etude.papers.search import folder as disk
from etude.papers.search.folder import write_manifest


def documents(first: int, n: int) -> list[Document]:
    return [
        Document(f"d{i}", f"graph paper{i}", "about noisy labels") for i in range(first, first + n)
    ]


def vectors(n: int) -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_what_was_saved_is_loaded_without_copies(tmp_path: Path) -> None:
    built = Index.build(documents(0, 30), tmp_path, vectors=vectors(30))
    built.extend([], state={"changed": 7})
    built.remove(["d3"])
    index = Index.load(tmp_path)
    assert index.state == {"changed": 7}
    assert len(index) == 29
    assert index.search("paper5") == built.search("paper5")
    assert index.similar("d7") == built.similar("d7")
    assert index.snapshot.segments[0]["vectors"].base is not None  # a view of the mapped file


def test_every_file_that_is_altered_is_named(tmp_path: Path) -> None:
    Index.build(documents(0, 30), tmp_path, vectors=vectors(30)).remove(["d3"])
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".npy", ".json")]
    assert len(files) >= 20
    for path in files:
        whole = path.read_bytes()
        for broken in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"x"):
            path.write_bytes(broken)
            with pytest.raises(EtudeError, match=rf"{path.name} is damaged: build the index again"):
                Index.load(tmp_path)
        path.write_bytes(whole)
        Index.load(tmp_path)


def test_what_was_checked_is_read_again_only_where_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(documents(0, 30), tmp_path, vectors=vectors(30))
    read: list[str] = []
    real = disk.sealed.file_sum
    monkeypatch.setattr(disk.sealed, "file_sum", lambda path: read.append(path.name) or real(path))
    for _ in range(2):  # too young to be remembered
        read.clear()
        Index.load(tmp_path)
        assert len(read) >= 20
    monkeypatch.setattr(disk, "SETTLED", 0)
    Index.load(tmp_path)
    read.clear()
    index = Index.load(tmp_path)
    assert read == []
    assert index.search("paper5")[0][0] == "d5"
    path = next(tmp_path.rglob("marks.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EtudeError, match=r"marks\.npy is damaged"):
        Index.load(tmp_path)
    path.write_bytes(whole)
    (tmp_path / "checked").write_text("[1")
    read.clear()
    Index.load(tmp_path)
    assert len(read) >= 20


def test_a_folder_that_is_read_only_is_read_whole_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(documents(0, 5), tmp_path)
    monkeypatch.setattr(disk, "SETTLED", 0)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    assert len(Index.load(tmp_path)) == 5
    assert not (tmp_path / "checked").exists()


def test_mapped_pages_are_let_go_once_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(documents(0, 30_000), tmp_path, vectors=vectors(30_000))
    now = Index.load(tmp_path).snapshot
    segment = now.segments[0]

    def touched() -> float:
        assert segment["tokens"].sum() > 0
        assert np.isfinite(segment["vectors"]).all()
        return snapshot._mapped()

    full = touched()
    now.release()
    assert snapshot._mapped() == full
    monkeypatch.setattr(snapshot, "MOST_MAPPED", full - 1)
    now.release()  # the words alone are enough
    words, every = segment["tokens"].nbytes, segment["tokens"].nbytes + segment["vectors"].nbytes
    assert full - every < snapshot._mapped() < full - words / 2
    touched()
    monkeypatch.setattr(snapshot, "MOST_MAPPED", 0)
    now.release()
    assert snapshot._mapped() < full - 0.9 * every
    assert touched() > 0


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match=r"holds no index: manifest\.json is missing"):
        Index.load(tmp_path / "nowhere")
    Index.build(documents(0, 5), tmp_path)
    next(tmp_path.rglob("rows.npy")).unlink()
    with pytest.raises(EtudeError, match=r"rows\.npy is missing: build the index again"):
        Index.load(tmp_path)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    Index.build(documents(0, 5), tmp_path)
    path = next(tmp_path.rglob("rows.npy"))
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    import hashlib

    entry = [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    manifest["segments"][0]["files"]["rows"] = entry
    write_manifest(tmp_path, {k: manifest[k] for k in ("segments", "state")})
    with pytest.raises(EtudeError, match=r"rows\.npy is damaged"):
        Index.load(tmp_path)


def test_a_manifest_that_was_edited_or_is_newer_is_refused(tmp_path: Path) -> None:
    Index.build(documents(0, 5), tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace('"n": 5', '"n": 6'))
    with pytest.raises(EtudeError, match=r"manifest\.json is damaged"):
        Index.load(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(EtudeError, match=r"manifest\.json is damaged"):
        Index.load(tmp_path)


def test_few_more_do_not_rewrite_the_many(tmp_path: Path) -> None:
    index = Index.build(documents(0, 2_000), tmp_path, vectors=vectors(2_000))
    before = {p: p.stat().st_ino for p in tmp_path.rglob("segment-*/*.npy")}
    index.extend(documents(5_000, 10), vectors(10))
    index.extend([Document("d7", "another text")], vectors(1))
    after = {p: p.stat().st_ino for p in tmp_path.rglob("segment-*/*.npy")}
    assert before.items() <= after.items()
    assert [i for i, _ in index.search("paper5003")][:1] == ["d5003"]
    assert index.search("paper7 -graph") == []


def test_a_change_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch) -> None:
    index = Index.build(documents(0, 5), tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("etude.papers.search.folder.write_manifest", full)
        with pytest.raises(EtudeError, match="cannot be written: No space left on device"):
            index.extend(documents(5, 5), state={"changed": 1})
    assert (len(index), index.state) == (5, {})
    assert len(Index.load(tmp_path)) == 5
    index.extend(documents(5, 5))
    assert len(Index.load(tmp_path)) == 10


def test_what_no_manifest_names_is_swept_away(tmp_path: Path) -> None:
    index = Index.build(documents(0, 8), tmp_path)
    (tmp_path / "segment-left").mkdir()
    (tmp_path / "segment-left" / "rows.npy").write_bytes(b"x")
    for n in range(30):
        index.extend(documents(100 + n, 1))
    index.remove(["d1"])
    index.remove(["d2"])
    assert not (tmp_path / "segment-left").exists()
    assert len(list(tmp_path.glob("segment-*"))) == len(index.snapshot.segments)
    assert len(list(tmp_path.glob("dead-*"))) == 1


def writer(folder: str, first: int) -> None:
    index = Index.load(folder)
    for n in range(first, first + 8):
        index.extend(documents(n, 1))


def test_two_processes_write_and_a_third_reads(tmp_path: Path) -> None:
    reader = Index.build(documents(0, 20), tmp_path)
    start = multiprocessing.get_context("spawn")
    writers = [start.Process(target=writer, args=(str(tmp_path), f)) for f in (100, 200)]
    for process in writers:
        process.start()
    while any(process.is_alive() for process in writers):
        reader.refresh()
        assert reader.search("paper5")[0][0] == "d5"
        for process in writers:
            process.join(0.01)
    assert [process.exitcode for process in writers] == [0, 0]
    assert reader.refresh() or len(reader) == 36
    assert len(reader) == 36
    assert not reader.refresh()
    assert {i for i, _ in reader.search("graph", 100)} == {
        f"d{n}" for n in (*range(20), *range(100, 108), *range(200, 208))
    }


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EtudeError, match=r"the index .*file/i cannot be written: Not a directory"):
        Index.build([], tmp_path / "file" / "i")
