"""The store of papers: what was imported, merged by arXiv id or title; SQLite or PostgreSQL.

Every change of a paper gives it the next number of ``changed``, so that whoever keeps a copy
(the search index, a page's cache) asks for what is newer than the last number it has seen.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from etude.core import EtudeError, require
from etude.lab.database import Database
from etude.papers import imports
from etude.papers.catalogue import CATALOGUE, papers
from etude.papers.entry import Entry, arxiv_id, clean, entry_id, merged, title_key
from etude.papers.imports import Refreshed
from etude.papers.tables import LISTS, META, PAPERS, TABLES, VERSION, papers_url

__all__ = ["Outcome", "Store"]

CHUNK = 500  # papers of one statement; SQLite binds at most 32,766 values
LISTED = 1_000  # refusals that an outcome quotes


@dataclass(frozen=True)
class Outcome:
    """What became of entries: how many are new, how many were merged, and what was refused.

    `merged` counts entries that named a paper which was there, whether it changed or not;
    `refused` holds (place, reason) pairs, such as ("line 12", "title must be words, got ''"),
    the first 1,000 of them, and `unlisted` counts the others. `failed` holds (source, reason)
    pairs of imports that could not be read to the end.
    """

    added: int = 0
    merged: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    unlisted: int = 0
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def n_refused(self) -> int:
        """How many entries were refused."""
        return len(self.refused) + self.unlisted

    def __add__(self, other: Outcome) -> Outcome:
        refused = (self.refused + other.refused)[:LISTED]
        n_refused = self.n_refused + other.n_refused
        return Outcome(
            self.added + other.added, self.merged + other.merged, refused,
            n_refused - len(refused), self.failed + other.failed,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.added:,} added, {self.merged:,} merged, {self.n_refused:,} refused"


class Store:
    """Papers in a database; holds the catalogue from the start.

    Args:
        url: a file, ``sqlite:///FILE`` or ``postgresql://…``; by default the variable
            ETUDE_PAPERS, else ``~/.etude/papers.sqlite``.

    Raises:
        EtudeError: the database cannot be opened, or is of a newer version.
    """

    def __init__(self, url: str | None = None) -> None:
        self.database = Database(papers_url(url), TABLES, version=VERSION, what="the papers")
        self.name = self.database.name
        digest = int(hashlib.sha256(CATALOGUE.read_bytes()).hexdigest()[:15], 16)
        if self._fact("catalogue") != digest:
            self.add(_catalogue())
            with self.database.begin() as connection:
                self._keep_in(connection, "catalogue", digest, digest)

    @property
    def identity(self) -> str:
        """What tells this database from any other, of the same name too; drawn once for it."""
        number = self._fact("identity")
        if not number:
            with self.database.begin() as connection:  # the first of several writers wins
                drawn = 1 + secrets.randbits(61)
                number = self._keep_in(connection, "identity", drawn, META.c.value)
        return f"{number:016x}"

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()

    def add(self, entries: Iterable[Entry], *, running: int = 0, position: int = 0) -> Outcome:
        """Store entries, merged with what is there; all of them or none.

        A paper is known by its arXiv id, else by its normalized title; papers of one title and
        two arXiv ids are two. What breaks a rule is refused with its place, "entry 1" being the
        first. With the number of a `running` import its `position` is stored with the entries.
        """
        total, batch = Outcome(), []
        with self.database.begin() as connection:
            for place, entry in enumerate(entries, 1):
                try:
                    batch.append(clean(entry))
                except EtudeError as error:
                    total += Outcome(refused=((f"entry {place}", str(error)),))
                if len(batch) == CHUNK:
                    total += self._merge(connection, batch)
                    batch = []
            if batch:
                total += self._merge(connection, batch)
            if running:
                imports.advance(connection, running, position)
        return total

    def refreshed(self) -> list[Refreshed]:
        """The imports that ended, newest first: (source, at, ok, message).

        Of each source the last one and, where that failed, also the last that did not.
        """
        return imports.refreshed(self.database)

    def get(self, name: str) -> Entry | None:
        """The paper with this stable id or arXiv id (whatever its version), or None."""
        if not name.isprintable():  # PostgreSQL takes no NUL
            return None
        wanted = [name, arxiv_id(name) or name]
        query = sa.select(PAPERS).where(sa.or_(PAPERS.c.id.in_(wanted), PAPERS.c.arxiv.in_(wanted)))
        found = self._read(query.limit(1))
        return found[0] if found else None

    def many(self, ids: Sequence[str]) -> list[Entry]:
        """The papers with these stable ids, in this order; unknown ids are left out."""
        require(len(ids) <= 10_000, "ids", "at most 10,000", len(ids))
        wanted = PAPERS.c.id.in_([i for i in ids if i.isprintable()])
        known = {e.id: e for e in self._read(sa.select(PAPERS).where(wanted))}
        return [known[i] for i in ids if i in known]

    def of(self, first: str, last: str, *, limit: int = 1_000, start: int = 0) -> list[Entry]:
        """Papers whose date lies between two full days, most votes first, then newest.

        A date of which only the month is known counts where the whole month lies between.
        """
        where = sa.or_(
            sa.and_(sa.func.length(PAPERS.c.date) == 10, PAPERS.c.date.between(first, last)),
            sa.and_(
                sa.func.length(PAPERS.c.date) == 7,
                PAPERS.c.date + "-01" >= first, PAPERS.c.date + "-28" <= last,
            ),
        )  # fmt: skip
        order = (PAPERS.c.votes.desc(), PAPERS.c.date.desc(), PAPERS.c.number)
        return self._read(
            sa.select(PAPERS).where(where).order_by(*order).offset(start).limit(limit)
        )

    def newest(self, limit: int = 50, *, start: int = 0) -> list[Entry]:
        """Papers by date, the newest first."""
        order = (PAPERS.c.date.desc(), PAPERS.c.votes.desc(), PAPERS.c.number)
        return self._read(sa.select(PAPERS).order_by(*order).offset(start).limit(limit))

    def days(self, limit: int = 400, *, before: str = "9999") -> list[tuple[str, int]]:
        """(day, number of papers) of the days that have papers, the newest first."""
        query = (
            sa.select(PAPERS.c.date, sa.func.count())
            .where(sa.func.length(PAPERS.c.date) == 10, PAPERS.c.date < before)
            .group_by(PAPERS.c.date).order_by(PAPERS.c.date.desc()).limit(limit)
        )  # fmt: skip
        with self.database.begin() as connection:
            return [(str(day), int(n)) for day, n in connection.execute(query)]

    def since(self, changed: int, limit: int = 10_000) -> list[tuple[int, Entry]]:
        """(change, paper) of what changed after this change, oldest change first."""
        query = sa.select(PAPERS).where(PAPERS.c.changed > changed)
        with self.database.begin() as connection:
            rows = connection.execute(query.order_by(PAPERS.c.changed).limit(limit)).mappings()
            return [(int(row["changed"]), _entry(row)) for row in rows]

    def changed(self) -> int:
        """The number of the last change, 0 if there was none."""
        with self.database.begin() as connection:
            return int(connection.execute(sa.select(sa.func.max(PAPERS.c.changed))).scalar() or 0)

    def count(self) -> int:
        """Number of papers."""
        with self.database.begin() as connection:
            return int(connection.execute(sa.select(sa.func.count(PAPERS.c.number))).scalar() or 0)

    def everything(self) -> Iterator[Entry]:
        """Every paper in the order in which they came, read in pieces."""
        last = 0
        while True:
            query = sa.select(PAPERS).where(PAPERS.c.number > last).order_by(PAPERS.c.number)
            with self.database.begin() as connection:
                rows = connection.execute(query.limit(CHUNK)).mappings().all()
            if not rows:
                return
            yield from map(_entry, rows)
            last = int(rows[-1]["number"])

    def _read(self, query: sa.Select[Any]) -> list[Entry]:
        with self.database.begin() as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]

    def _merge(self, connection: sa.Connection, batch: list[Entry]) -> Outcome:
        """Merge a batch within itself and with what is there; two statements and the changes."""
        change = self._next_change(connection, len(batch))
        before = {entry.id: entry for entry in self._known(connection, batch)}
        now, added = dict(before), 0
        names: dict[str, list[str]] = {}  # of an arXiv id or a title's key: ids in order
        for entry in before.values():
            for name in _names(entry):
                names.setdefault(name, []).append(entry.id)
        for entry in batch:
            # by title only where at most one of both has an arXiv id: two ids are two papers
            known = (now[i] for name in _names(entry) for i in names.get(name, ()))
            same = (e for e in known if not (e.arxiv and entry.arxiv) or e.arxiv == entry.arxiv)
            old = next(same, None)
            added += old is None
            new = merged(old, entry) if old else replace(entry, id=entry_id(entry))
            now[new.id] = new
            for name in _names(new):
                if new.id not in names.setdefault(name, []):
                    names[name].append(new.id)
        fresh = [e for e in now.values() if e.id not in before]
        altered = [e for e in now.values() if e.id in before and e != before[e.id]]
        rows = [
            _packed(e) | {"changed": change + i, "added": time.time()}
            for i, e in enumerate([*fresh, *altered])
        ]
        if fresh:
            connection.execute(sa.insert(PAPERS), rows[: len(fresh)])
        for row in rows[len(fresh) :]:
            del row["added"]
            connection.execute(sa.update(PAPERS).where(PAPERS.c.id == row["id"]).values(row))
        return Outcome(added, len(batch) - added)

    def _known(self, connection: sa.Connection, batch: list[Entry]) -> list[Entry]:
        ids = [e.arxiv for e in batch if e.arxiv]
        titles = [title_key(e.title) for e in batch]
        same = sa.or_(PAPERS.c.arxiv.in_(ids), PAPERS.c.title_key.in_(titles))
        query = sa.select(PAPERS).where(same).order_by(PAPERS.c.number)
        return [_entry(row) for row in connection.execute(query).mappings()]

    def _next_change(self, connection: sa.Connection, n: int) -> int:
        """The first of `n` numbers that nobody else gets; its row's lock orders the writers."""
        last = self._keep_in(connection, "change", n, META.c.value + n)
        return last - n + 1

    def turn(self, name: str, now: int, gap: int) -> int:
        """When the caller may go: `gap` after the turn before, but not before `now`."""
        after = META.c.value + gap
        with self.database.begin() as connection:
            then = sa.case((after > now, after), else_=now)
            return self._keep_in(connection, name, now, then)

    def _fact(self, name: str) -> int:
        query = sa.select(META.c.value).where(META.c.name == name)
        with self.database.begin() as connection:
            return int(connection.execute(query).scalar() or 0)

    def _keep_in(self, connection: sa.Connection, name: str, first: int, then: Any) -> int:
        put = self.database.insert(META).values(name=name, value=first)
        put = put.on_conflict_do_update(index_elements=["name"], set_={"value": then})
        return int(connection.execute(put.returning(META.c.value)).scalar_one())


def _names(entry: Entry) -> list[str]:
    """What a paper is known by: its arXiv id first."""
    return [*filter(None, [entry.arxiv]), title_key(entry.title)]


def _packed(entry: Entry) -> dict[str, Any]:
    facts = {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
    facts |= {name: json.dumps(facts[name], ensure_ascii=False) for name in LISTS}
    return facts | {"title_key": title_key(entry.title), "arxiv": entry.arxiv or None}


def _entry(row: Any) -> Entry:
    facts = {name: row[name] for name in Entry.__dataclass_fields__}
    facts |= {name: tuple(json.loads(facts[name])) for name in LISTS}
    return Entry(**facts | {"arxiv": facts["arxiv"] or ""})


def _catalogue() -> Iterator[Entry]:
    """The catalogue's papers; an arXiv id names the month, others the year of publication."""
    for paper in papers():
        month = f"20{paper.arxiv[:2]}-{paper.arxiv[2:4]}" if paper.arxiv[:4].isdigit() else ""
        yield Entry(
            title=paper.title, arxiv=paper.arxiv, date=month or str(paper.year), slug=paper.key,
            url=paper.url, sources=("catalogue",),
        )  # fmt: skip
