"""Readers' files: hostile zips and names, sizes while they stream, what is deleted when."""

import asyncio
import io
import os
import pickle
import stat
import time
import zipfile

import numpy as np
import polars as pl
import pytest
from starlette.datastructures import Headers

from etude.core import EtudeError
from etude.site import uploads
from etude.site.uploads import TooLargeError, clean_name, inspect, read_form, store, sweep

BOUNDARY = "x" * 20


def npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def zipped(path, members, *, packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def body(content: bytes, name: str = "a.csv", **words: str) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
        for k, v in words.items()
    ]
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    parts.append(f"--{BOUNDARY}\r\n{head}".encode() + content + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def read(pieces, most=1000, **headers):
    """The form, and how many pieces were taken from the stream."""
    taken = 0

    async def stream():
        nonlocal taken
        for piece in pieces:
            taken += 1
            yield piece

    async def whole():
        kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        try:
            form = await read_form(Headers({**kind, **headers}), stream(), most)
        except EtudeError as error:
            return error, taken
        sent = form.get("file")
        facts = {k: v for k, v in form.items() if isinstance(v, str)}
        content = None if sent is None or isinstance(sent, str) else await sent.read()
        await form.close()
        return (facts, content), taken

    return asyncio.run(whole())


def test_a_form_gives_its_fields_and_its_file() -> None:
    (facts, content), _ = read([body(b"a,b\n1,2\n", target="b", seeds="3")])
    assert facts == {"target": "b", "seeds": "3"}
    assert content == b"a,b\n1,2\n"


def test_a_form_without_a_file_may_be_urlencoded() -> None:
    kind = {"content-type": "application/x-www-form-urlencoded"}
    (facts, content), _ = read([b"data=iris&seeds=2"], **kind)
    assert (facts, content) == ({"data": "iris", "seeds": "2"}, None)


def test_what_is_declared_too_large_is_not_read() -> None:
    error, taken = read([b""], most=1000, **{"content-length": str(10 << 30)})
    assert isinstance(error, TooLargeError)
    assert taken == 0


def test_an_endless_stream_is_cut() -> None:
    def endless():
        yield body(b"")[: -len(BOUNDARY) - 8]
        while True:
            yield b"1,2\n" * 5000

    error, taken = read(endless(), most=100_000)
    assert isinstance(error, TooLargeError)
    assert "at most 0 MB" in str(error)
    assert taken < 20


@pytest.mark.parametrize(
    ("pieces", "headers", "match"),
    [
        ([b"{}"], {"content-type": "application/json"}, "multipart/form-data"),
        ([b"--"], {"content-type": "multipart/form-data"}, "boundary"),
        ([body(b"1", **{f"f{i}": "1" for i in range(30)})], {}, "Too many fields"),
        ([body(b"1", target="x" * 9000)], {}, "maximum size"),
        ([b"--" + BOUNDARY.encode() + b"junk"], {}, "Invalid multipart"),
    ],
)
def test_forms_that_are_none(pieces, headers, match) -> None:
    found, _ = read(pieces, most=100_000, **headers)
    assert isinstance(found, EtudeError)
    assert match in str(found)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd.csv", "passwd.csv"),
        ("C:\\Users\\me\\data.csv", "data.csv"),
        ("a\x00\x1b[31m\u202ecsv.csv", "a[31mcsv.csv"),
        ("x" * 300 + ".csv", "x" * 70 + ".csv"),
        ("<script>.csv", "<script>.csv"),
        ("", ""),
    ],
)
def test_a_name_is_shown_without_path_and_control(given, shown) -> None:
    assert clean_name(given) == shown


def test_the_readers_name_never_is_the_files(tmp_path) -> None:
    kept = store(tmp_path / "u", io.BytesIO(b"a,b\n1,2\n"), "../../evil\n.csv", 100)
    assert (kept.shown, kept.file, kept.size) == ("evil.csv", "upload.csv", 8)
    assert [p.name for p in (tmp_path / "u").iterdir()] == [kept.folder]
    assert len(kept.folder) == 32
    assert stat.S_IMODE((tmp_path / "u" / kept.folder).stat().st_mode) == 0o700
    other = store(tmp_path / "u", io.BytesIO(b"a,b\n1,2\n"), "evil.csv", 100)
    assert other.folder != kept.folder


def test_a_stored_file_is_counted_too(tmp_path) -> None:
    with pytest.raises(TooLargeError):
        store(tmp_path, io.BytesIO(b"a,b\n" * 30), "a.csv", 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.exe", b"MZ", "must end in"),
        ("a", b"x", "must end in"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"PK\x03\x04rest", "text file"),
        ("a.csv", b"a,b\n\0\0", "text file"),
        ("a.npz", b"a,b\n1,2\n", "NPZ file"),
        ("a.npz", b"\x80\x04\x95", "NPZ file"),
        ("a.parquet", b"PAR1 cut off", "Parquet file"),
        ("a.parquet", b"a,b\n1,2PAR1", "Parquet file"),
        ("a.tsv", b"\x1f\x8b\x08gz", "text file"),
    ],
)
def test_a_file_must_be_what_its_name_says(tmp_path, name, content, match) -> None:
    with pytest.raises(EtudeError, match=match):
        store(tmp_path, io.BytesIO(content), name, 100)
    assert list(tmp_path.iterdir()) == []


def test_good_files_pass(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros((200, 3)))  # small: its growth is no harm
    pl.DataFrame({"a": [1, 2], "b": ["u", "v"]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("a,b\n1,2\n")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        kept = store(tmp_path / "u", path.open("rb"), path.name, 100_000)
        assert (kept.shown, kept.size, kept.file) == (
            path.name,
            len(content),
            "upload" + path.suffix,
        )
        whole = tmp_path / "u" / kept.folder / kept.file
        inspect(whole, kept.shown)
        assert whole.read_bytes() == content  # whole, and only looked at
    assert len(list((tmp_path / "u").iterdir())) == 4


@pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy", "a/x.npy", "a\\x.npy", "C:x.npy", ".."])
def test_a_path_in_a_member_name_is_refused(tmp_path, name) -> None:
    path = zipped(tmp_path / "a.npz", [("y.npy", npy(np.zeros(3))), (name, npy(np.zeros(3)))])
    with pytest.raises(EtudeError, match="plain names"):
        inspect(path, "a.npz")


def test_a_zip_bomb_is_refused_unread(tmp_path) -> None:
    path = zipped(
        tmp_path / "a.npz", [("x.npy", npy(np.zeros(1 << 20)))], packing=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(EtudeError, match=r"200 times its size, it declares 8 MB"):
        inspect(path, "a.npz")


def test_the_members_count_together(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(uploads, "MOST_UNPACKED", 3000)
    members = [(f"{i}.npy", npy(np.zeros(150))) for i in range(2)]
    inspect(zipped(tmp_path / "a.npz", members), "a.npz")
    with pytest.raises(EtudeError, match="unpack to at most"):
        inspect(zipped(tmp_path / "b.npz", [*members, ("2.npy", npy(np.zeros(150)))]), "b.npz")


def test_too_many_members_are_refused(tmp_path) -> None:
    members = [(f"{i}.npy", npy(np.zeros(1))) for i in range(65)]
    with pytest.raises(EtudeError, match="1 to 64 arrays, got 65"):
        inspect(zipped(tmp_path / "a.npz", members), "a.npz")


class Boom:
    def __reduce__(self):
        return os.mkdir, ("boom",)


@pytest.mark.parametrize("name", ["x.npy", "other.npy"])
def test_a_pickle_in_an_npz_is_refused(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Boom()], dtype=object)
    path = zipped(tmp_path / "a.npz", [(name, npy(objects))])
    with pytest.raises(EtudeError, match="a pickle, which etude never reads"):
        inspect(path, "a.npz")
    raw = zipped(tmp_path / "b.npz", [(name, pickle.dumps(Boom()))])
    with pytest.raises(EtudeError, match="array in NPY form"):
        inspect(raw, "b.npz")
    assert not (tmp_path / "boom").exists()


def test_a_broken_zip_is_told(tmp_path) -> None:
    path = zipped(tmp_path / "a.npz", [("x.npy", npy(np.zeros(50)))])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(EtudeError, match=r"a\.npz must be an NPZ file"):
        inspect(path, "a.npz")


def test_parquet_is_bounded_by_its_own_count(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": [1] * 40, "b": [2] * 40}).write_parquet(path)
    monkeypatch.setattr(uploads, "MOST_CELLS", 80)
    inspect(path, "a.parquet")
    monkeypatch.setattr(uploads, "MOST_CELLS", 79)
    with pytest.raises(EtudeError, match="at most 79 cells, it declares 40 rows of 2"):
        inspect(path, "a.parquet")
    path.write_bytes(b"PAR1" + b"\xff" * 40 + b"PAR1")
    with pytest.raises(EtudeError, match="not readable as Parquet"):
        inspect(path, "a.parquet")


def test_files_go_after_a_day_and_nothing_else_does(tmp_path) -> None:
    old = store(tmp_path, io.BytesIO(b"a,b\n1,2\n"), "a.csv", 100)
    new = store(tmp_path, io.BytesIO(b"a,b\n1,2\n"), "a.csv", 100)
    (tmp_path / "keep").mkdir()
    for name in (old.folder, "keep"):
        os.utime(tmp_path / name, (0, time.time() - uploads.DAY_S - 5))
    assert sweep(tmp_path) == 1
    assert {p.name for p in tmp_path.iterdir()} == {new.folder, "keep"}
    uploads.forget(tmp_path, "../" + tmp_path.name)
    uploads.forget(tmp_path, "")
    assert (tmp_path / new.folder).exists()
    uploads.forget(tmp_path, new.folder)
    assert not (tmp_path / new.folder).exists()
    assert sweep(tmp_path / "nowhere") == 0
