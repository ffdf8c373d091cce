"""The ledger: every measurement is a row as soon as it exists; SQLite, or PostgreSQL by a URL.

A row that ``add`` has returned from is on the disk: a killed run, started again, continues
where it was. A row is known by (run, method, arm, split, seed, metric, setting, config_hash);
the same measurement added twice is kept once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from etude.core import EtudeError, require
from etude.lab.database import NUMBER, Database
from etude.lab.row import Row, Run

__all__ = ["KEY", "VERSION", "Ledger"]

VERSION = 1  # of the tables; a ledger of a newer one is refused, never altered
KEY = ("run", "method", "arm", "split", "seed", "metric", "setting", "config_hash")

TABLES = sa.MetaData()
META = sa.Table(
    "etude_meta", TABLES,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)  # fmt: skip
RUNS = sa.Table(
    "etude_runs", TABLES,
    sa.Column("id", sa.String, primary_key=True),
    *(sa.Column(f.name, sa.Text, nullable=f.name == "finished") for f in fields(Run)[1:]),
    sa.Column("touched", sa.Double, nullable=False),  # orders runs of one second
)  # fmt: skip
TYPES = {"int": sa.BigInteger, "float": sa.Double, "float | None": sa.Double}
ROWS = sa.Table(
    "etude_rows", TABLES,
    sa.Column("id", NUMBER, primary_key=True),
    *(
        sa.Column(f.name, TYPES.get(str(f.type), sa.Text), nullable=f.name == "value")
        for f in fields(Row)
    ),
    sa.ForeignKeyConstraint(["run"], ["etude_runs.id"], ondelete="CASCADE"),
    sa.UniqueConstraint(*KEY),
)  # fmt: skip
READ = sa.select(*(ROWS.c[f.name] for f in fields(Row)))
NEWEST = sa.select(RUNS).order_by(RUNS.c.touched.desc(), RUNS.c.id)


class Ledger:
    """Runs and their rows in a database.

    Args:
        url: a file, ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``;
            by default the variable ETUDE_LEDGER, else ``~/.etude/ledger.sqlite``.

    Raises:
        EtudeError: the database cannot be opened or reached, is none, or is of a newer version;
            so does every method where the database fails. No message holds the password.
    """

    def __init__(self, url: str | None = None) -> None:
        chosen = url or os.environ.get("ETUDE_LEDGER") or "~/.etude/ledger.sqlite"
        self._database = Database(
            str(chosen), TABLES, version=VERSION, what="the ledger",
            conflict="rows can only be added to a run that was started",
        )  # fmt: skip
        self.name = self._database.name

    def close(self) -> None:
        """Give the connections back; the ledger opens new ones when it is used again."""
        self._database.close()

    def start(self, run: Run) -> None:
        """Record the run as running; one that is there already keeps its rows."""
        facts = _packed(run) | {"state": "running", "finished": None, "touched": time.time()}
        insert = self._database.insert(RUNS).values(facts)
        with self._database.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=facts))

    def finish(self, run_id: str, state: Literal["finished", "failed"] = "finished") -> None:
        """Record how the run ended."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._database.begin() as connection:
            change = sa.update(RUNS).where(RUNS.c.id == run_id).values(state=state, finished=now)
            if connection.execute(change).rowcount == 0:
                raise EtudeError(f"no run is called {run_id!r} in {self.name}")

    def add(self, rows: Iterable[Row]) -> int:
        """Store the rows, all or none; on the disk when it returns how many were new."""
        facts = [_packed(_checked(row)) for row in rows]
        if not facts:
            return 0
        new = (
            self._database.insert(ROWS)
            .on_conflict_do_nothing(index_elements=KEY)
            .returning(ROWS.c.id)
        )
        with self._database.begin() as connection:
            return len(connection.execute(new, facts).all())

    def rows(self, run: str, *, method: str | None = None, seed: int | None = None) -> list[Row]:
        """The rows of the run with this id, in the order in which they were added."""
        wanted = {"run": run, "method": method, "seed": seed}
        query = READ.where(*(ROWS.c[n] == v for n, v in wanted.items() if v is not None))
        with self._database.begin() as connection:
            found = connection.execute(query.order_by(ROWS.c.id)).mappings()
            return [Row(**{**f, "params": json.loads(f["params"])}) for f in found]

    def measured(self, run: str) -> set[tuple[str, int, str, str, str]]:
        """What need not be measured again: (method, seed, split, setting, config_hash)."""
        return {(r.method, r.seed, r.split, r.setting, r.config_hash) for r in self.rows(run)}

    def runs(self, limit: int = 50) -> list[Run]:
        """The runs that were started last, the last one first."""
        require(limit >= 1, "limit", "a positive number of runs", limit)
        with self._database.begin() as connection:
            return [_run(facts) for facts in connection.execute(NEWEST.limit(limit)).mappings()]

    def counts(self) -> dict[str, int]:
        """Number of rows by the run's id; runs without rows are not in it."""
        query = sa.select(ROWS.c.run, sa.func.count()).group_by(ROWS.c.run)
        with self._database.begin() as connection:
            return {run: int(n) for run, n in connection.execute(query)}

    def run(self, prefix: str) -> Run:
        """The run with this id or beginning of an id, or the "latest"; it must be one."""
        found = self.runs(limit=1 if prefix == "latest" else 10**6)
        same = [r for r in found if prefix in (r.id, "latest")]
        same = same or [r for r in found if prefix and r.id.startswith(prefix)]
        if len(same) == 1:
            return same[0]
        ids = [r.id for r in same or found]
        if same:
            raise EtudeError(f"run {prefix!r} fits {len(ids)} runs: {', '.join(ids[:5])}")
        near = ", ".join(get_close_matches(prefix, ids, 3, 0.3)) or "none"
        raise EtudeError(f"no run is called {prefix!r}, the nearest: {near}; see etude runs")

    def delete(self, run_id: str) -> None:
        """Forget the run and its rows; nothing happens where there is none."""
        with self._database.begin() as connection:
            connection.execute(sa.delete(RUNS).where(RUNS.c.id == run_id))

    def export(self, path: str | Path, *, run: str | None = None) -> int:
        """Write all rows, or one run's, as .csv, .parquet, .jsonl or .ndjson; returns how many.

        `params` is JSON text. The file appears whole or not at all.
        """
        import polars as pl

        target = Path(path).expanduser()
        writers = {".csv": "csv", ".parquet": "parquet", ".jsonl": "ndjson", ".ndjson": "ndjson"}
        kind = writers.get(target.suffix)
        require(kind is not None, "the export", f"a file {', '.join(writers)}", str(path))
        query = READ if run is None else READ.where(ROWS.c.run == self.run(run).id)
        with self._database.begin() as connection:
            table = [tuple(row) for row in connection.execute(query.order_by(ROWS.c.id))]
        kinds = {sa.BigInteger: pl.Int64, sa.Double: pl.Float64, sa.Text: pl.String}
        schema = {f.name: kinds[type(ROWS.c[f.name].type)] for f in fields(Row)}
        frame = pl.DataFrame(table, schema=schema, orient="row")
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            getattr(frame, f"write_{kind}")(draft)
            draft.replace(target)
        except OSError as error:
            raise EtudeError(f"{target}: cannot be written: {error.strerror or error}") from None
        finally:
            draft.unlink(missing_ok=True)
        return len(table)


def _checked(row: Row) -> Row:
    """The row, if its numbers are finite and its value is None exactly where it failed."""
    require((row.value is None) == (row.status != "ok"), "value", "None where it failed", row)
    numbers = (row.value or 0.0, row.fit_s, row.infer_s)
    require(all(map(math.isfinite, numbers)), "value, fit_s and infer_s", "finite", numbers)
    return row


def _packed(record: Row | Run) -> dict[str, Any]:
    """The record's columns: mappings as JSON, text without what PostgreSQL refuses."""
    plain, facts = (lambda v: v.item() if hasattr(v, "item") else str(v)), {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Mapping):
            value = json.dumps(dict(value), sort_keys=True, default=plain)
        elif isinstance(value, str):
            value = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        elif hasattr(value, "item"):
            value = value.item()
        facts[field.name] = value
    return facts


def _run(facts: Any) -> Run:
    words = {name: value for name, value in facts.items() if name != "touched"}
    words |= {name: json.loads(words[name]) for name in ("spec", "extra")}
    return Run(**words)
