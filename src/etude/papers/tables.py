"""The tables of the papers, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import os

import sqlalchemy as sa

from etude.lab.database import NUMBER, meta_table

__all__ = ["IMPORTS", "LISTS", "META", "PAPERS", "TABLES", "VERSION", "papers_url"]

VERSION = 1
TABLES = sa.MetaData()
META = meta_table("papers", TABLES)
PAPERS = sa.Table(
    "papers", TABLES,
    sa.Column("number", NUMBER, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("arxiv", sa.String, unique=True),  # None where there is none
    # a digest: the index of a title that normalization lengthens would break PostgreSQL's limit
    sa.Column("title_key", sa.String, nullable=False, index=True),
    *(sa.Column(n, sa.Text, nullable=False) for n in ("title", "abstract", "authors")),
    sa.Column("date", sa.String, nullable=False, index=True),
    *(sa.Column(n, sa.Text, nullable=False) for n in ("categories", "doi", "venue", "url")),
    sa.Column("votes", sa.BigInteger, nullable=False),
    sa.Column("sources", sa.Text, nullable=False),
    sa.Column("slug", sa.String, nullable=False, index=True),
    sa.Column("added", sa.Double, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False, index=True),
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
