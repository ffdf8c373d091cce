"""The record of imports: where each one stands, when it ended, and why it failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa

from etude.lab.database import Database
from etude.papers.entry import line
from etude.papers.tables import IMPORTS

__all__ = ["Refreshed", "advance", "begin", "finish", "refreshed"]

KEPT = 1_000  # imports that are remembered


class Refreshed(NamedTuple):
    """One import that ended.

    `source` is such as "hf:2026-11-22" or "file:refs.bib", `at` the time in ISO 8601 (UTC);
    `message` counts what was stored, or says why it failed where it is not `ok`.
    """

    source: str
    at: str
    ok: bool
    message: str


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def begin(database: Database, source: str, stamp: str) -> tuple[int, int]:
    """Note that an import begins; its number, and the position from which it goes on.

    That is 0 unless the last import of the same source and stamp did not end well.
    """
    source = line(source, 500)
    same = sa.and_(IMPORTS.c.source == source, IMPORTS.c.stamp == stamp)
    last = sa.select(IMPORTS).where(same).order_by(IMPORTS.c.number.desc()).limit(1)
    with database.begin() as connection:
        row = connection.execute(last).mappings().first()
        start = int(row["position"]) if row and row["state"] != "ok" else 0
        facts = {
            "source": source, "stamp": stamp, "at": _now(), "state": "running", "message": "",
            "position": start,
        }  # fmt: skip
        query = sa.insert(IMPORTS).values(facts).returning(IMPORTS.c.number)
        number = int(connection.execute(query).scalar_one())
        connection.execute(sa.delete(IMPORTS).where(IMPORTS.c.number <= number - KEPT))
    return number, start


def advance(connection: sa.Connection, number: int, position: int) -> None:
    """Note in the transaction that stores them that all papers before `position` are stored."""
    query = sa.update(IMPORTS).where(IMPORTS.c.number == number)
    connection.execute(query.values(position=position, at=_now()))


def finish(database: Database, number: int, message: str, *, ok: bool) -> None:
    """Note how an import ended."""
    query = sa.update(IMPORTS).where(IMPORTS.c.number == number)
    facts = {"state": "ok" if ok else "failed", "message": line(message, 1_000), "at": _now()}
    with database.begin() as connection:
        connection.execute(query.values(facts))


def refreshed(database: Database) -> list[Refreshed]:
    """The last end of each source's imports and, where that failed, its last success too."""
    query = sa.select(IMPORTS).where(IMPORTS.c.state != "running")
    with database.begin() as connection:
        rows = connection.execute(query.order_by(IMPORTS.c.number.desc())).mappings().all()
    seen: dict[str, bool] = {}
    found = []
    for row in rows:
        ok = row["state"] == "ok"
        if row["source"] not in seen or (ok and not seen[row["source"]]):
            seen[row["source"]] = ok
            found.append(Refreshed(row["source"], row["at"], ok, row["message"]))
    return found
