"""Who gets mail: choices that were asked for, and readers, who confirmed theirs.

A choice is asked for at the page and counts for nothing until its token comes back (double
opt-in). A reader has one choice, the last one confirmed. The tables of mails are here too, so
that one database holds them all; ``Outbox`` works on them.

States of a choice: waiting, sending, sent, dropped (its mail is not sent), refused, used.
States of a reader: confirmed, unsubscribed, stopped (its mails came back).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from etude.core import require
from etude.lab.database import NUMBER, meta_table
from etude.papers.tables import wanted
from etude.site.beside import Beside

__all__ = ["FREQUENCIES", "MAILS", "READERS", "SENT", "Choice", "Reader", "Readers", "check"]

FREQUENCIES = ("daily", "weekly")
LONGEST_QUERY = 300
TOKEN_S = 2 * 86_400  # how long a choice can be confirmed
KEPT_S = 30 * 86_400  # how long a choice that was not confirmed is remembered
PER_NETWORK = (10, 3_600.0)  # choices asked for from one network address in so many seconds
PER_MAILBOX = (3, 86_400.0)  # mails to one mailbox that asks for choices
CHUNK = 500

TABLES = sa.MetaData()
META = meta_table("readers", TABLES)
CHOICES = sa.Table(
    "readers_choices", TABLES,
    sa.Column("nonce", sa.String, primary_key=True),
    *wanted(sa.String, "address", "frequency"),
    *wanted(sa.String, "mailbox", "network", "state", index=True),
    *wanted(sa.Text, "query"),
    *wanted(sa.Double, "until"),
    *wanted(sa.Double, "at", index=True),
)  # fmt: skip
READERS = sa.Table(
    "readers", TABLES,
    sa.Column("number", NUMBER, primary_key=True),
    *(sa.Column(name, sa.String, nullable=False, unique=True) for name in ("key", "mailbox")),
    *wanted(sa.String, "address", "frequency", "state"),
    *wanted(sa.String, "since"),  # papers of earlier days are not sent
    *wanted(sa.Text, "query"),
    *wanted(sa.Integer, "bounces"),
    *wanted(sa.Double, "at"),
)  # fmt: skip
MAILS = sa.Table(
    "readers_mails", TABLES,
    sa.Column("reader", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("issue", sa.String, primary_key=True),
    *wanted(sa.Text, "papers"),
    *wanted(sa.String, "state", index=True),
    *wanted(sa.String, "owner"),
    *wanted(sa.Double, "until", "at"),
)  # fmt: skip
SENT = sa.Table(
    "readers_papers", TABLES,
    sa.Column("reader", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("paper", sa.String, primary_key=True),
    sa.Column("issue", sa.String, nullable=False),
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What was asked for: mail to `address`, of all papers ("") or of a saved search."""

    nonce: str
    address: str
    frequency: str
    query: str


@dataclass(frozen=True)
class Reader:
    """Somebody who confirmed; `key` names the reader in links, `since` is a day."""

    number: int
    key: str
    address: str
    frequency: str
    query: str
    state: str
    since: str


class Readers(Beside):
    """The readers in a database."""

    tables, what = TABLES, "the readers"

    def wait_of(self, network: str) -> float:
        """Seconds until this network address may ask again, 0 if it may now."""
        most, span = PER_NETWORK
        times = sa.select(CHOICES.c.at).where(
            CHOICES.c.network == network, CHOICES.c.at > time.time() - span
        )
        with self.database.begin() as connection:
            found = sorted(connection.execute(times).scalars())
        return max(found[-most] + span - time.time(), 0.001) if len(found) >= most else 0.0

    def ask(self, address: str, frequency: str, query: str, network: str) -> str:
        """Note a choice; its nonce. The work is the same whatever is known of the address.

        Over the rate of a mailbox the choice is dropped: noted, but without a mail.
        """
        check(frequency, query)
        most, span = PER_MAILBOX
        now, box = time.time(), bare(address)
        recent = sa.select(sa.func.count()).where(
            CHOICES.c.mailbox == box, CHOICES.c.at > now - span, CHOICES.c.state != "dropped"
        )
        row = {
            "nonce": secrets.token_urlsafe(18), "address": address, "mailbox": box,
            "network": network, "frequency": frequency, "query": query, "until": 0.0, "at": now,
        }  # fmt: skip
        with self.database.begin() as connection:
            row["state"] = (
                "waiting" if connection.execute(recent).scalar_one() < most else "dropped"
            )
            connection.execute(sa.insert(CHOICES).values(row))
        return str(row["nonce"])

    def take_choice(self, lease: float) -> Choice | None:
        """A choice whose mail is to be sent, taken for `lease` seconds; None if there is none."""
        now = time.time()
        free = sa.and_(
            CHOICES.c.at > now - TOKEN_S,
            CHOICES.c.until < now,
            CHOICES.c.state.in_(("waiting", "sending")),
        )
        query = sa.select(CHOICES).where(free).order_by(CHOICES.c.at).limit(1)
        while True:
            with self.database.begin() as connection:
                row = connection.execute(query).mappings().first()
                if row is None:
                    return None
                take = sa.update(CHOICES).where(CHOICES.c.nonce == row["nonce"], free)
                take = take.values(state="sending", until=now + lease)
                if connection.execute(take).rowcount:
                    return _choice(row)

    def settle_choice(self, nonce: str, state: str, wait: float = 0.0) -> None:
        """Say what became of a choice's mail; `wait`: not to be taken again for so long."""
        change = sa.update(CHOICES).where(CHOICES.c.nonce == nonce, CHOICES.c.state == "sending")
        with self.database.begin() as connection:
            connection.execute(change.values(state=state, until=time.time() + wait))

    def choice(self, nonce: str) -> Choice | None:
        """The choice that can be confirmed, None once it was used."""
        open_ = sa.select(CHOICES).where(CHOICES.c.nonce == nonce, _open())
        with self.database.begin() as connection:
            row = connection.execute(open_).mappings().first()
        return None if row is None else _choice(row)

    def confirm(self, nonce: str, since: dict[str, str]) -> Reader | None:
        """Make a choice count, once; None if it was used. `since`: first day, by frequency."""
        use = sa.update(CHOICES).where(CHOICES.c.nonce == nonce, _open()).values(state="used")
        with self.database.begin() as connection:
            row = connection.execute(use.returning(CHOICES)).mappings().first()
            if row is None:
                return None
            new = {
                "key": secrets.token_hex(12), "mailbox": row["address"].lower(),
                "address": row["address"], "frequency": row["frequency"], "query": row["query"],
                "state": "confirmed", "since": since[row["frequency"]], "bounces": 0,
                "at": time.time(),
            }  # fmt: skip
            keep = ("key", "mailbox", "since", "at")
            put = self.database.insert(READERS).values(new)
            put = put.on_conflict_do_update(
                index_elements=["mailbox"],
                set_={name: new[name] for name in new if name not in keep},
            ).returning(READERS)
            return _reader(connection.execute(put).mappings().one())

    def get(self, key: str) -> Reader | None:
        """The reader of this key, or None."""
        with self.database.begin() as connection:
            row = connection.execute(sa.select(READERS).where(READERS.c.key == key)).mappings()
            return next(map(_reader, row), None)

    def change(self, key: str, frequency: str, query: str) -> None:
        """Change what a confirmed reader gets."""
        check(frequency, query)
        change = sa.update(READERS).where(READERS.c.key == key, READERS.c.state == "confirmed")
        with self.database.begin() as connection:
            connection.execute(change.values(frequency=frequency, query=query))

    def unsubscribe(self, key: str) -> None:
        """No more mail to the reader of this key; twice is as good as once."""
        self._stop(READERS.c.key == key)

    def decline(self, nonce: str) -> bool:
        """No more mail to the address of this choice, which can no more be confirmed.

        False where the choice was forgotten: nobody knows then whose it was.
        """
        address = sa.select(CHOICES.c.address).where(CHOICES.c.nonce == nonce)
        with self.database.begin() as connection:
            found = connection.execute(address).scalar_one_or_none()
            used = sa.update(CHOICES).where(CHOICES.c.nonce == nonce).values(state="used")
            connection.execute(used)
        if found is not None:
            self._stop(READERS.c.mailbox == found.lower())
        return found is not None

    def _stop(self, where: sa.ColumnElement[bool]) -> None:
        """End it, and call off the mails that are not sent yet, also one that is in hand."""
        change = sa.update(READERS).where(where).values(state="unsubscribed")
        whose = sa.select(READERS.c.number).where(where)
        open_ = MAILS.c.state.in_(("sending", "later"))
        void = sa.update(MAILS).where(MAILS.c.reader.in_(whose), open_).values(state="refused")
        with self.database.begin() as connection:
            connection.execute(change)
            connection.execute(void)

    def confirmed(self, frequency: str) -> Iterator[Reader]:
        """The readers that get mail at this frequency, read in pieces."""
        last = 0
        while True:
            query = sa.select(READERS).where(
                READERS.c.number > last, READERS.c.state == "confirmed",
                READERS.c.frequency == frequency,
            )  # fmt: skip
            with self.database.begin() as connection:
                rows = connection.execute(query.order_by(READERS.c.number).limit(CHUNK)).mappings()
                found = [_reader(row) for row in rows]
            if not found:
                return
            yield from found
            last = found[-1].number

    def turn(self, what: str, every: float) -> bool:
        """Whether it is this process's turn to do `what`: one process gets it in `every` s."""
        now = int(time.time())
        put = self.database.insert(META).values(name=what, value=now)
        put = put.on_conflict_do_update(
            index_elements=["name"], set_={"value": now}, where=META.c.value <= now - int(every)
        )
        with self.database.begin() as connection:
            return bool(connection.execute(put.returning(META.c.value)).first())

    def forget(self) -> int:
        """Remove old choices, so that no address is kept that never said yes; how many.

        Those of readers who still get mail stay: the link in their first mail must end it.
        """
        get_mail = sa.select(READERS.c.mailbox).where(READERS.c.state == "confirmed")
        old = sa.delete(CHOICES).where(
            CHOICES.c.at < time.time() - KEPT_S, sa.func.lower(CHOICES.c.address).not_in(get_mail)
        )
        with self.database.begin() as connection:
            return int(connection.execute(old).rowcount)


def check(frequency: str, query: str) -> None:
    """Refuse what is no choice."""
    require(frequency in FREQUENCIES, "frequency", "daily or weekly", frequency)
    rule = f"at most {LONGEST_QUERY} characters on one line"
    require(len(query) <= LONGEST_QUERY and query.isprintable(), "query", rule, query)


def bare(address: str) -> str:
    """The mailbox behind an address: without case and the part after a plus sign."""
    local, _, domain = address.lower().rpartition("@")
    return f"{local.partition('+')[0] or local}@{domain}"


def _open() -> sa.ColumnElement[bool]:
    states = ("waiting", "sending", "sent")
    return sa.and_(CHOICES.c.state.in_(states), CHOICES.c.at > time.time() - TOKEN_S)


def _choice(row: Any) -> Choice:
    return Choice(row["nonce"], row["address"], row["frequency"], row["query"])


def _reader(row: Any) -> Reader:
    return Reader(**{name: row[name] for name in Reader.__dataclass_fields__})
