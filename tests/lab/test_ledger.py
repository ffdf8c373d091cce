"""The ledger, on SQLite and on PostgreSQL; killed writers, two writers at once, bad addresses."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from etude.core import EtudeError
from etude.lab.ledger import VERSION, Ledger
from etude.lab.row import Row, Run

RUN = Run(
    id="3f2a9c0d1e2b", command="etude try muvera --data digits", spec={"seeds": [0, 1], "tune": 4},
    started="2026-11-22T10:00:00+00:00", extra={"note": "é"},
)  # fmt: skip
ROW = Row(
    run=RUN.id, method="heads.naive_bayes_probe", arm="ours", task="probe", data="digits",
    data_hash="ab" * 32, split="test", seed=0, metric="accuracy", value=0.1 + 0.2, unit="share",
    fit_s=0.25, infer_s=0.5, bytes=2**40, status="ok", params={"C": 0.1, "deep": {"a": [1, None]}},
    setting="tuned", config_hash="0123456789ab", version="0.1.0", machine="2 cores",
    at="2026-11-22T10:00:01+00:00",
)  # fmt: skip
OTHER = {
    "run": "4b", "method": "flat_pca", "arm": "baseline", "split": "validation", "seed": 7,
    "metric": "log_loss", "setting": "default", "config_hash": "ffff",
}  # fmt: skip
WRITER = """
import sys
from dataclasses import replace
from tests_ledger_rows import ROW, RUN
from etude.lab.ledger import Ledger
ledger = Ledger(sys.argv[1])
ledger.start(RUN)
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    ledger.add([replace(ROW, seed=seed), replace(ROW, seed=seed, arm="baseline")])
    print(seed, flush=True)
"""


@pytest.fixture
def ledger(database):
    made = Ledger(database)
    made.start(RUN)
    yield made
    made.close()


def test_row_and_run_come_back_whole(ledger) -> None:
    failed = replace(ROW, seed=1, value=None, status="failed: ValueError: \u4e2d")
    assert ledger.add([ROW, failed]) == 2
    assert ledger.rows(RUN.id) == [ROW, failed]
    assert ledger.run(RUN.id) == RUN


@pytest.mark.parametrize("name", OTHER)
def test_each_part_of_the_key_tells_rows_apart(ledger, name) -> None:
    ledger.start(replace(RUN, id="4b"))
    other = replace(ROW, **{name: OTHER[name]}, value=0.5)
    assert ledger.add([ROW]) == 1
    assert ledger.add([replace(ROW, value=0.9), other]) == 1
    assert ledger.rows(ROW.run)[0] == ROW
    assert other in ledger.rows(other.run)


def test_the_same_measurement_in_one_batch_is_kept_once(ledger) -> None:
    assert ledger.add([ROW, replace(ROW, value=0.9), replace(ROW, seed=1)]) == 2
    assert [row.value for row in ledger.rows(RUN.id)] == [ROW.value, ROW.value]


def test_thousands_of_rows_keep_their_order(ledger) -> None:
    rows = [replace(ROW, seed=seed) for seed in range(2000, 0, -1)]
    assert ledger.add(rows) == 2000
    assert ledger.rows(RUN.id) == rows


def test_rows_are_filtered(ledger) -> None:
    rows = [replace(ROW, method=m, seed=s) for m in ("a", "b") for s in (0, 1)]
    ledger.add(rows)
    assert ledger.rows(RUN.id, method="b") == rows[2:]
    assert ledger.rows(RUN.id, seed=0) == rows[::2]
    assert ledger.rows(RUN.id, method="a", seed=1) == rows[1:2]


def test_measured_counts_failures_too(ledger) -> None:
    ledger.add([ROW, replace(ROW, metric="log_loss"), replace(ROW, seed=1, value=None, status="x")])
    one = (ROW.method, 0, "test", "tuned", ROW.config_hash)
    assert ledger.measured(RUN.id) == {one, (ROW.method, 1, *one[2:])}


def test_start_again_keeps_rows_and_sets_back_to_running(ledger, database) -> None:
    ledger.add([ROW])
    ledger.finish(RUN.id, "failed")
    assert ledger.run(RUN.id).state == "failed"
    assert ledger.run(RUN.id).finished is not None
    again = Ledger(database)
    again.start(ledger.run("latest"))
    assert again.run(RUN.id) == RUN
    assert again.rows(RUN.id) == [ROW]
    again.close()


def test_latest_is_the_run_started_last(ledger) -> None:
    ledger.start(replace(RUN, id="0aaa"))
    assert ledger.run("latest").id == "0aaa"
    ledger.start(RUN)  # within the same second
    assert ledger.run("latest").id == RUN.id
    assert [run.id for run in ledger.runs()] == [RUN.id, "0aaa"]
    assert [run.id for run in ledger.runs(limit=1)] == [RUN.id]


def test_prefix_must_be_known_and_unique(ledger) -> None:
    ledger.start(replace(RUN, id="3f2b"))
    ledger.start(replace(RUN, id="3f2b77"))
    assert ledger.run("3f2a").id == RUN.id
    assert ledger.run("3f2b").id == "3f2b"  # an id itself, though it begins another one
    with pytest.raises(EtudeError, match=r"'3f2' fits 3 runs: 3f2b77, 3f2b, 3f2a9c0d1e2b"):
        ledger.run("3f2")
    with pytest.raises(EtudeError, match=r"no run is called '3f2c'.*3f2b.*etude runs"):
        ledger.run("3f2c")
    with pytest.raises(EtudeError, match="no run is called ''"):
        ledger.run("")
    for run in ledger.runs():
        ledger.delete(run.id)
    with pytest.raises(EtudeError, match="no run is called 'latest', the nearest: none"):
        ledger.run("latest")


def test_delete_forgets_one_run_only(ledger) -> None:
    ledger.start(replace(RUN, id="4b"))
    ledger.add([ROW, replace(ROW, run="4b")])
    ledger.delete(RUN.id)
    assert ledger.counts() == {"4b": 1}
    assert [run.id for run in ledger.runs()] == ["4b"]


def test_refusals(ledger) -> None:
    with pytest.raises(EtudeError, match="value must be None where it failed"):
        ledger.add([replace(ROW, value=None)])
    with pytest.raises(EtudeError, match="finite"):
        ledger.add([ROW, replace(ROW, seed=1, value=float("nan"))])
    with pytest.raises(EtudeError, match="run that was started"):  # a batch: all or nothing
        ledger.add([replace(ROW, seed=5), replace(ROW, run="never")])
    with pytest.raises(EtudeError, match=r"ledger .* cannot be used"):
        ledger.add([replace(ROW, seed=2**70)])
    with pytest.raises(EtudeError, match="no run is called 'never'"):
        ledger.finish("never", "finished")
    with pytest.raises(EtudeError, match="limit must be a positive"):
        ledger.runs(limit=0)
    assert ledger.rows(RUN.id) == []


def test_numpy_values_and_broken_text_are_stored(ledger) -> None:
    row = replace(ROW, seed=np.int64(3), value=np.float32(0.5), params={"k": np.int64(2)})
    ledger.add([replace(row, value=None, status="nul \0 and half \ud800 sign"), row])
    ledger.add([replace(row, seed=4)])
    failed, kept = ledger.rows(RUN.id)
    assert failed.status == "nul \ufffd and half ? sign"
    assert (kept.seed, kept.value, kept.params) == (4, 0.5, {"k": 2})


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "ndjson"])
def test_export_has_every_column(ledger, tmp_path, suffix) -> None:
    import polars as pl

    ledger.start(replace(RUN, id="4b"))
    rows = [ROW, replace(ROW, seed=1, value=None, status='failed: "a",\nb'), replace(ROW, run="4b")]
    ledger.add(rows)
    path = tmp_path / f"rows.{suffix}"
    read = {"csv": pl.read_csv, "parquet": pl.read_parquet}.get(suffix, pl.read_ndjson)
    assert ledger.export(path) == 3
    found = read(path).to_dicts()
    assert [{**f, "params": json.loads(f["params"])} for f in found] == [asdict(r) for r in rows]
    assert ledger.export(path, run="4b") == 1
    assert [f["run"] for f in read(path).to_dicts()] == ["4b"]
    assert [p.name for p in tmp_path.iterdir() if "rows" in p.name] == [path.name]
    with pytest.raises(EtudeError, match=r"must be a file .csv, .parquet, .jsonl, .ndjson, got"):
        ledger.export(tmp_path / "rows.xlsx")
    with pytest.raises(EtudeError, match="cannot be written"):
        ledger.export(tmp_path / "nowhere" / "rows.csv")


def test_a_newer_version_is_refused_and_left_alone(database) -> None:
    import sqlalchemy as sa

    ledger = Ledger(database)
    with ledger._database.begin() as connection:
        connection.execute(sa.text(f"UPDATE etude_meta SET value = {VERSION + 1}"))
    ledger.close()
    with pytest.raises(EtudeError, match=f"version {VERSION + 1}.*up to {VERSION}: upgrade etude"):
        Ledger(database)


def start_writer(tmp_path, database: str, first: int, end: int) -> subprocess.Popen:
    """A process that adds two rows a seed and prints each seed that is stored."""
    source = f"from etude.lab.row import Row, Run\nROW = {ROW!r}\nRUN = {RUN!r}\n"
    (tmp_path / "tests_ledger_rows.py").write_text(source, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, database, str(first), str(end)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip


def test_two_writers_at_once_both_finish(database, tmp_path) -> None:
    # Both make the tables, both start the same run, and 20 seeds are measured by both.
    writers = [start_writer(tmp_path, database, 0, 60), start_writer(tmp_path, database, 40, 100)]
    for writer in writers:
        errors = writer.communicate(timeout=120)[1]
        assert writer.returncode == 0, errors
    ledger = Ledger(database)
    seeds = sorted((row.seed, row.arm) for row in ledger.rows(RUN.id))
    assert seeds == [(seed, arm) for seed in range(100) for arm in ("baseline", "ours")]
    ledger.close()


def test_a_killed_writer_leaves_all_that_it_was_told_is_stored(database, tmp_path) -> None:
    told: list[int] = []
    for _ in range(3):
        writer = start_writer(tmp_path, database, len(told), 100_000)
        assert writer.stdout is not None
        told.append(int(writer.stdout.readline()))
        time.sleep(0.15)
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.communicate()[0].splitlines() if line.strip()]
        ledger = Ledger(database)
        pairs = [(row.seed, row.arm) for row in ledger.rows(RUN.id)]
        assert set(told) <= {seed for seed, _ in pairs}
        # A batch is stored whole or not at all, and nothing twice.
        whole = [(seed, arm) for seed in range(len(pairs) // 2) for arm in ("baseline", "ours")]
        assert sorted(pairs) == whole
        ledger.close()
    assert len(told) > 3
    if not database.startswith("postgres"):
        with sqlite3.connect(database) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_default_address(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ETUDE_LEDGER", raising=False)
    assert Ledger().name == str(tmp_path / ".etude" / "ledger.sqlite")
    monkeypatch.setenv("ETUDE_LEDGER", f"sqlite:///{tmp_path}/b.sqlite")
    assert Ledger().name == str(tmp_path / "b.sqlite")


def test_bad_addresses(tmp_path, monkeypatch) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database, just a long enough line of words " * 40)
    with pytest.raises(EtudeError, match=r"notes.txt cannot be used: file is not a database"):
        Ledger(str(text))
    with pytest.raises(EtudeError, match="unable to open database file"):
        Ledger(str(tmp_path))
    with pytest.raises(EtudeError, match="cannot be made"):
        Ledger(str(text / "ledger.sqlite"))
    with pytest.raises(EtudeError, match=r"ledger must be a file.*got 'mysql'"):
        Ledger("mysql://me:secret@host/db")
    with pytest.raises(EtudeError, match="like postgresql://USER") as caught:
        Ledger("postgresql://me:secret@host:port/db")
    assert "secret" not in str(caught.value)


def test_unreachable_server_and_missing_driver(monkeypatch) -> None:
    pytest.importorskip("psycopg")
    # The password is a word of the driver's message: "Connection refused".
    with pytest.raises(EtudeError, match=r"postgresql://127.0.0.1:9/db cannot be used") as caught:
        Ledger("postgresql://me:ref%75sed@127.0.0.1:9/db")
    assert "\n" not in str(caught.value)
    assert "refused" not in str(caught.value)
    assert "Connection ***" in str(caught.value)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(EtudeError, match=r'pip install "etude\[postgres\]"'):
        Ledger("postgresql://me@127.0.0.1:9/db")
