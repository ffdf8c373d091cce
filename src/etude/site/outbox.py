"""The mails of the digest: which paper is in which mail of which reader, and what became of it.

A mail is a row (reader, issue), written together with its papers before anything is sent. The
primary key (reader, paper) says that a paper is in one mail of a reader at most, whatever two
processes do at once. A mail is sent again until the server has taken or refused it, so that
nothing is lost; its Message-ID follows from reader and issue, so that a second copy is known.

States of a mail: sending (taken by one sender until a time, and again by anyone after it), later
(the server put it off), sent, refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from etude.lab.database import Database
from etude.site.readers import MAILS, READERS, SENT, Reader

__all__ = ["Mail", "Outbox"]

MOST_BOUNCES = 3  # in a row, then the address gets no mail
CHUNK = 5_000  # ids of one statement


@dataclass(frozen=True)
class Mail:
    """One mail to one reader, with the ids of its papers; `at` is when it was first taken."""

    reader: Reader
    issue: str
    papers: tuple[str, ...]
    at: float


class Outbox:
    """The mails in the database of the readers.

    Args:
        database: of ``Readers``.
        owner: who takes mails here; no two senders at work have the same.
        lease: seconds for which a taken mail is nobody else's.
    """

    def __init__(self, database: Database, owner: str, lease: float) -> None:
        self.database, self.owner, self.lease = database, owner, lease

    def count(self, frequency: str) -> int:
        """How many readers get mail at this frequency."""
        who = sa.and_(READERS.c.state == "confirmed", READERS.c.frequency == frequency)
        with self.database.begin() as connection:
            query = sa.select(sa.func.count()).select_from(READERS).where(who)
            return int(connection.execute(query).scalar_one())

    def unsent(self, reader: Reader, papers: Sequence[str]) -> list[str]:
        """Those of these papers that are in no mail of the reader, in their order."""
        known: set[str] = set()
        with self.database.begin() as connection:
            for start in range(0, len(papers), CHUNK):
                some = SENT.c.paper.in_(list(papers[start : start + CHUNK]))
                query = sa.select(SENT.c.paper).where(SENT.c.reader == reader.number, some)
                known.update(connection.execute(query).scalars())
        return [paper for paper in papers if paper not in known]

    def has(self, reader: Reader, issue: str) -> bool:
        """Whether this issue's mail to the reader exists already, in whatever state."""
        query = sa.select(MAILS.c.issue).where(*self._is(reader.number, issue))
        with self.database.begin() as connection:
            return connection.execute(query).first() is not None

    def take(self, reader: Reader, issue: str, papers: Sequence[str]) -> Mail | None:
        """A new mail, taken; None where the issue's mail exists, no paper is left for it, or the
        reader has ended it since.
        """
        now = time.time()
        row = {
            "reader": reader.number, "issue": issue, "papers": "[]", "state": "sending",
            "owner": self.owner, "until": now + self.lease, "at": now,
        }  # fmt: skip
        rows = [{"reader": reader.number, "paper": p, "issue": issue} for p in papers]
        insert = self.database.insert
        with self.database.begin() as connection:
            put = insert(MAILS).values(row).on_conflict_do_nothing().returning(MAILS.c.issue)
            wants = sa.select(READERS.c.number).where(*self._wants(reader.number))
            if connection.execute(wants).first() is None or connection.execute(put).first() is None:
                return None
            fresh: set[str] = set()
            for start in range(0, len(rows), CHUNK):
                add = insert(SENT).values(rows[start : start + CHUNK]).on_conflict_do_nothing()
                fresh.update(connection.execute(add.returning(SENT.c.paper)).scalars())
            kept = tuple(paper for paper in papers if paper in fresh)
            where = self._is(reader.number, issue)
            if not kept:
                connection.execute(sa.delete(MAILS).where(*where))
                return None
            fill = sa.update(MAILS).where(*where).values(papers=json.dumps(kept))
            connection.execute(fill)
        return Mail(reader, issue, kept, now)

    def take_open(self, frequency: str | None, before: float) -> Mail | None:
        """A mail begun by somebody that is neither sent nor refused, taken; None if there is none.

        Left out are those that another sender holds, and those put off after `before`.
        """
        free = sa.or_(
            sa.and_(MAILS.c.state == "sending", MAILS.c.until < time.time()),
            sa.and_(MAILS.c.state == "later", MAILS.c.until < before),
        )
        query = self._open(frequency).where(free).order_by(MAILS.c.at).limit(1)
        while True:
            with self.database.begin() as connection:
                row = connection.execute(query).mappings().first()
                if row is None:
                    return None
                take = sa.update(MAILS).where(*self._is(row["number"], row["issue"]), free)
                until = time.time() + self.lease
                take = take.values(state="sending", owner=self.owner, until=until)
                if connection.execute(take).rowcount:
                    return _mail(row)

    def held(self, frequency: str | None) -> float:
        """Seconds until every mail that another sender holds is free; 0 if there is none."""
        query = self._open(frequency).where(MAILS.c.state == "sending")
        with self.database.begin() as connection:
            ends = [row["until"] for row in connection.execute(query).mappings()]
        return max(max(ends, default=0.0) - time.time(), 0.0)

    def open_mails(self, frequency: str | None) -> Iterator[Mail]:
        """Every mail that is neither sent nor refused, of readers that still want mail."""
        with self.database.begin() as connection:
            rows = connection.execute(self._open(frequency).order_by(MAILS.c.at)).mappings().all()
        yield from map(_mail, rows)

    def renew(self, mail: Mail) -> bool:
        """Take the mail for another lease; False where it is ours or wanted no more."""
        wanted = sa.exists().where(*self._wants(mail.reader.number))
        return self._settle(mail, "sending", time.time() + self.lease, wanted)

    def settle(self, mail: Mail, state: str) -> None:
        """Say what became of a mail: sent, later or refused."""
        self._settle(mail, state, time.time())

    def _settle(self, mail: Mail, state: str, until: float, *more: sa.ColumnElement[bool]) -> bool:
        ours = (MAILS.c.owner == self.owner, MAILS.c.state == "sending", *more)
        change = sa.update(MAILS).where(*self._is(mail.reader.number, mail.issue), *ours)
        with self.database.begin() as connection:
            done = connection.execute(change.values(state=state, until=until)).rowcount
            if done and state == "sent":
                calm = sa.update(READERS).where(
                    READERS.c.number == mail.reader.number, READERS.c.bounces > 0
                )
                connection.execute(calm.values(bounces=0))
            return bool(done)

    def bounced(self, mail: Mail) -> bool:
        """Count a mail that the address did not take; whether the address is stopped now."""
        self.settle(mail, "refused")
        who = READERS.c.number == mail.reader.number
        with self.database.begin() as connection:
            count = sa.update(READERS).where(who).values(bounces=READERS.c.bounces + 1)
            connection.execute(count)
            stop = sa.update(READERS).where(
                who, READERS.c.bounces >= MOST_BOUNCES, READERS.c.state == "confirmed"
            )
            return bool(connection.execute(stop.values(state="stopped")).rowcount)

    @staticmethod
    def _is(reader: int, issue: str) -> tuple[sa.ColumnElement[bool], ...]:
        return MAILS.c.reader == reader, MAILS.c.issue == issue

    @staticmethod
    def _wants(reader: int) -> tuple[sa.ColumnElement[bool], ...]:
        return READERS.c.number == reader, READERS.c.state == "confirmed"

    @staticmethod
    def _open(frequency: str | None) -> sa.Select[Any]:
        named = [READERS.c[name] for name in Reader.__dataclass_fields__ if name != "state"]
        query = (
            sa.select(*named, READERS.c.state.label("reader_state"), MAILS.c.issue,
                      MAILS.c.papers, MAILS.c.until, MAILS.c.at)
            .join(READERS, READERS.c.number == MAILS.c.reader)
            .where(READERS.c.state == "confirmed", MAILS.c.state.in_(("sending", "later")))
        )  # fmt: skip
        return query if frequency is None else query.where(READERS.c.frequency == frequency)


def _mail(row: Any) -> Mail:
    facts = {name: row[name] for name in Reader.__dataclass_fields__ if name != "state"}
    reader = Reader(state=row["reader_state"], **facts)
    return Mail(reader, row["issue"], tuple(json.loads(row["papers"])), row["at"])
