"""Evidence files: read, checked, and where they are looked for."""

import json
from pathlib import Path

import pytest

from etude.core import EtudeError
from etude.papers import evidence as module
from etude.papers.evidence import evidence, headline

ROW = {
    "method": "graphs.fast_rp", "metric": "macro_f1", "better": "higher", "data": "toy",
    "setting": "", "baseline_name": "spectral_embedding", "ours_mean": 0.9, "baseline_mean": 0.8,
    "difference": 0.1, "low": 0.05, "high": 0.15, "label": "better", "verdict": "holds",
    "seeds": 5, "headline": True, "version": "0.1.0", "machine": "2 cores",
    "at": "2026-01-01T00:00:00Z", "seconds": 3.0,
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "folder", lambda: tmp_path)
    return tmp_path


def write(place: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (place / "graphs.fast_rp.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_rows_come_headlines_first(place) -> None:
    write(place, {**ROW, "headline": False, "setting": "x"}, ROW)
    rows = evidence("fast_rp")
    assert [row["headline"] for row in rows] == [True, False]
    assert rows[0] == ROW
    assert evidence("graphs.fast_rp") == rows


def test_headline_is_the_newest(place) -> None:
    old = {**ROW, "at": "2025-01-01T00:00:00Z", "verdict": "undecided"}
    write(place, ROW, old, {**ROW, "headline": False, "at": "2027-01-01T00:00:00Z"})
    best = headline("fast_rp")
    assert best == ROW


def test_none_measured(place) -> None:
    assert evidence("muvera") == []
    assert headline("muvera") is None


def test_unknown_name_is_refused(place) -> None:
    with pytest.raises(EtudeError, match="the nearest are"):
        evidence("../../etc/passwd")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not a measurement"),
        ("[]", "line 2 lacks metric"),
        ("3", "line 2 is not a measurement"),
        ({**ROW, "verdict": "great"}, "line 2 is not a measurement"),
        ({k: v for k, v in ROW.items() if k != "ours_mean"}, "line 2 lacks ours_mean"),
    ],
)
def test_damaged_line_is_named(place, row, message) -> None:
    write(place, ROW, row)
    with pytest.raises(EtudeError, match=rf"graphs.fast_rp.jsonl, {message}"):
        evidence("fast_rp")


def test_folder_is_in_the_package_or_beside_src(tmp_path, monkeypatch) -> None:
    home = tmp_path / "src" / "etude"
    (home / "papers").mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(home / "papers" / "evidence.py"))
    assert module.folder() is None
    (tmp_path / "evidence").mkdir()
    assert module.folder() == tmp_path / "evidence"
    (home / "evidence").mkdir()
    assert module.folder() == home / "evidence"


def test_installed_package_does_not_look_outside(tmp_path, monkeypatch) -> None:
    home = tmp_path / "site-packages" / "etude"
    (home / "papers").mkdir(parents=True)
    (tmp_path / "evidence").mkdir()
    monkeypatch.setattr(module, "__file__", str(home / "papers" / "evidence.py"))
    assert module.folder() is None
