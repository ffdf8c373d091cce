"""The tables of the papers, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy as sa

from etude.lab.database import NUMBER, meta_table

__all__ = ["IMPORTS", "LISTS", "META", "PAPERS", "TABLES", "VERSION", "papers_url", "wanted"]

VERSION = 1


def wanted(kind: Any, *names: str, index: bool | None = None) -> list[sa.Column[Any]]:
    """Columns of one kind that always hold a value."""
    return [sa.Column(name, kind, nullable=False, index=index) for name in names]


TABLES = sa.MetaData()
META = meta_table("papers", TABLES)
PAPERS = sa.Table(
    "papers", TABLES,
    sa.Column("number", NUMBER, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("arxiv", sa.String, unique=True),  # None where there is none
    # a digest: the index of a title that normalization lengthens would break PostgreSQL's limit
    sa.Column("title_key", sa.String, nullable=False, index=True),
    *wanted(sa.Text, "title", "abstract", "authors"),
    *wanted(sa.String, "date", index=True),
    *wanted(sa.Text, "categories", "doi", "venue", "url"),
    *wanted(sa.BigInteger, "votes"),
    *wanted(sa.Text, "sources"),
    *wanted(sa.String, "slug", index=True),
    *wanted(sa.Double, "added"),
    *wanted(sa.BigInteger, "changed", index=True),
)  # fmt: skip
LISTS = ("authors", "categories", "sources")  # columns of PAPERS that hold JSON
IMPORTS = sa.Table(
    "papers_imports", TABLES,
    sa.Column("number", NUMBER, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("stamp", sa.String, nullable=False),  # tells versions of one source apart
    sa.Column("at", sa.String, nullable=False, index=True),  # of its last step, UTC
    sa.Column("state", sa.String, nullable=False),  # running, ok or failed
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),  # all before it is stored
)  # fmt: skip


def papers_url(given: str | None) -> str:
    """Where the papers are, and with them their readers, votes and trials."""
    return given or os.environ.get("ETUDE_PAPERS") or "~/.etude/papers.sqlite"
