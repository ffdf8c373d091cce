"""One way to a database: SQLite by a file, PostgreSQL by a URL, the same SQL for both.

What keeps records (the ledger, the papers, their readers) describes its tables with SQLAlchemy
and hands them to ``Database``, which opens, makes the tables once, and tells every failure in
one line that holds no password.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from etude.core import EtudeError, refuse

__all__ = ["NUMBER", "Database", "meta_table"]

WAIT_S = 60  # that a writer of SQLite waits for another one
INSTALL = 'pip install "etude[postgres]"'
PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
ADVISORY = 0x65747564  # PostgreSQL's lock under which one process makes the tables
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # of a column that counts by itself


def meta_table(prefix: str, tables: sa.MetaData) -> sa.Table:
    """``<prefix>_meta`` among these tables: numbers by name, of which one is their version."""
    return sa.Table(
        f"{prefix}_meta", tables,
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )  # fmt: skip


class Database:
    """A database with the given tables in it.

    Args:
        url: a file, ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``.
        tables: what is made where it is not there yet; one of them is a ``meta_table``.
        version: of these tables; a database of a newer one is refused, never altered.
        what: how messages call it, such as "the ledger".
        conflict: the message where a row breaks a constraint.

    Raises:
        EtudeError: it cannot be opened or reached, is no database, or is of a newer version; so
            does ``begin`` where the database fails. No message holds the password.
    """

    def __init__(
        self, url: str, tables: sa.MetaData, *, version: int, what: str,
        conflict: str = "the record contradicts one that is there",
    ) -> None:  # fmt: skip
        address = _address(url, what)
        self._password = str(address.password or address.query.get("password", "") or "")
        self.name = _shown(address)
        self.what, self._conflict = what, conflict
        self._engine = _engine(address, what)
        self._make(tables, version)

    @property
    def is_file(self) -> bool:
        """Whether it is SQLite."""
        return self._engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Give the connections back; new ones are opened when it is used again."""
        self._engine.dispose()

    def insert(self, table: sa.Table) -> Any:
        """INSERT in the database's own dialect, which knows ON CONFLICT."""
        return (sqlite if self.is_file else postgresql).insert(table)

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction, on the disk when the block ends; its failure is told in one line."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise EtudeError(self._conflict) from None
        except (SQLAlchemyError, OverflowError) as error:
            said = str(getattr(error, "orig", error)).partition("\n")[0]
            said = said.replace(self._password, "***") if self._password else said
            raise EtudeError(f"{self.what} {self.name} cannot be used: {said}") from None

    def _make(self, tables: sa.MetaData, version: int) -> None:
        meta = next(table for name, table in tables.tables.items() if name.endswith("_meta"))
        with self.begin() as connection:
            if not self.is_file:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY)))
            if sa.inspect(connection).has_table(meta.name):
                query = sa.select(meta.c.value).where(meta.c.name == "version")
                found = connection.execute(query).scalar_one_or_none()
                if found is not None and found > version:
                    rule = f"is of version {found}, this etude reads up to {version}"
                    raise EtudeError(f"{self.what} {self.name} {rule}: upgrade etude")
                if found == version:
                    return
            for table in tables.sorted_tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
            fact = {"name": "version", "value": version}
            connection.execute(self.insert(meta).values(fact).on_conflict_do_nothing())


def _address(given: str, what: str) -> sa.URL:
    """The URL for SQLAlchemy of a file or a URL."""
    scheme, mark, rest = given.partition("://")
    if not mark:
        return sa.URL.create("sqlite", database=str(Path(given).expanduser().absolute()))
    if scheme == "sqlite" and len(rest) > 1 and rest[0] == "/":
        return _address(rest[1:], what)
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        refuse(what, "a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE", scheme)
    try:
        return sa.make_url(given).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        # What was given is not quoted: it may hold a password.
        rule = "like postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        raise EtudeError(f"{what} must be {rule}") from None


def _shown(address: sa.URL) -> str:
    """Where the database is, for messages."""
    if address.drivername == "sqlite":
        return str(address.database)
    where = sa.URL.create("postgresql", None, None, address.host, address.port, address.database)
    return where.render_as_string()


def _engine(address: sa.URL, what: str) -> sa.Engine:
    if not address.drivername.startswith("sqlite"):
        wait = {} if "connect_timeout" in address.query else {"connect_timeout": 10}
        try:
            return sa.create_engine(address, connect_args=wait, pool_pre_ping=True)
        except ImportError:
            raise EtudeError(f"{what} on PostgreSQL needs a driver: {INSTALL}") from None
    path = Path(str(address.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EtudeError(f"{what} {path} cannot be made: {error.strerror}") from None
    engine = sa.create_engine(address, connect_args={"timeout": WAIT_S})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        # SQLite does not wait for its lock when two processes turn a new file to WAL at once.
        end = time.monotonic() + WAIT_S
        while True:
            try:
                connection.executescript(PRAGMAS)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    return engine
