"""Folders of arrays that notice every change."""

import json
import os
import stat

import numpy as np
import pytest

from etude.core import EtudeError
from etude.core.sealed import read_arrays, read_manifest, write_arrays, write_manifest


def test_sealed_arrays_come_back_and_every_changed_byte_is_noticed(tmp_path):
    arrays = {"codes": np.arange(300, dtype=np.uint8), "wide": np.ones((40, 5), np.float32)}
    entries = write_arrays(tmp_path, arrays)
    write_manifest(tmp_path, {"kind": "test", "arrays": entries})
    found = read_arrays(tmp_path, read_manifest(tmp_path, "test")["arrays"], mapped=("wide",))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert isinstance(found["wide"], np.memmap)
    assert write_arrays(tmp_path, arrays) == entries
    for name, entry in entries.items():
        path = tmp_path / entry["file"]
        content = path.read_bytes()
        for n in range(0, len(content), 37):
            changed = bytearray(content)
            changed[n] ^= 1
            path.write_bytes(changed)
            with pytest.raises(EtudeError, match=f"{name}-.*npy was cut or changed"):
                read_arrays(tmp_path, entries)
        path.write_bytes(content[:-1])
        for verify in (True, False):
            with pytest.raises(EtudeError, match=f"{name}-.*npy was cut or changed"):
                read_arrays(tmp_path, entries, verify=verify)
        path.unlink()
        with pytest.raises(EtudeError, match=f"{name}-.*cannot be read"):
            read_arrays(tmp_path, entries)
        path.write_bytes(content)


def test_all_of_a_file_is_on_the_disk_before_the_manifest_names_it(tmp_path, monkeypatch):
    seen = []

    def fsync(handle):
        found = os.fstat(handle)
        seen.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)

    monkeypatch.setattr("os.fsync", fsync)
    entries = write_arrays(tmp_path, {"small": np.ones(3), "large": np.ones(10**5)})
    write_manifest(tmp_path, {"kind": "test", "arrays": entries})
    sizes = [(tmp_path / entry["file"]).stat().st_size for entry in entries.values()]
    assert [entry["bytes"] for entry in entries.values()] == sizes
    assert seen == [*sizes, (tmp_path / "index.json").stat().st_size, "folder"]


def test_a_changed_manifest_is_noticed(tmp_path):
    with pytest.raises(EtudeError, match=r"index.json cannot be read"):
        read_manifest(tmp_path, "test")
    write_manifest(tmp_path, {"kind": "test", "n": 1})
    assert read_manifest(tmp_path, "test")["n"] == 1
    with pytest.raises(EtudeError, match="must be of kind 'other'"):
        read_manifest(tmp_path, "other")
    path = tmp_path / "index.json"
    whole = json.loads(path.read_text())
    whole["content"]["n"] = 2
    for text in (json.dumps(whole), path.read_text()[:-2], "", "[]", '{"content": 3}'):
        path.write_text(text)
        with pytest.raises(EtudeError, match=r"index.json was cut or changed"):
            read_manifest(tmp_path, "test")
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]
