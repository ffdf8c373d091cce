"""Upvotes: one a reader and paper, taken back by a second press.

A reader is whoever holds the signed cookie (``guard.reader``); how many readers one address of
the network may bring is limited, because a cookie can be thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from etude.lab.database import meta_table
from etude.site.beside import Beside
from etude.site.guard import limit, reader
from etude.site.state import Site

__all__ = ["Votes", "router", "votes"]

DAY_S = 86_400.0
RATE = "30/minute"  # votes of one address of the network
NEW_READERS = "30/hour"  # readers without a cookie that vote from one address
CHUNK = 10_000  # ids of one statement
TABLES = sa.MetaData()
meta_table("votes", TABLES)
VOTES = sa.Table(
    "votes", TABLES,
    sa.Column("paper", sa.String, primary_key=True),
    sa.Column("reader", sa.String, primary_key=True),
    sa.Column("at", sa.Double, nullable=False, index=True),
)  # fmt: skip


class Votes(Beside):
    """The votes in a database."""

    tables, what = TABLES, "the votes"

    def toggle(self, paper: str, name: str) -> bool:
        """Vote for a paper, or take the vote back; whether it stands now."""
        taken_back = sa.delete(VOTES).where(VOTES.c.paper == paper, VOTES.c.reader == name)
        row = {"paper": paper, "reader": name, "at": time.time()}
        with self.database.begin() as connection:
            if connection.execute(taken_back).rowcount:
                return False
            # Of two presses at once one inserts; the other finds the vote and leaves it.
            connection.execute(self.database.insert(VOTES).values(row).on_conflict_do_nothing())
            return True

    def counts(self, ids: Sequence[str]) -> dict[str, int]:
        """Votes by paper; papers without votes are left out."""
        found: dict[str, int] = {}
        with self.database.begin() as connection:
            for start in range(0, len(ids), CHUNK):
                chosen = VOTES.c.paper.in_(list(ids[start : start + CHUNK]))
                found |= _counted(connection, chosen)
        return found

    def recent(self, days: float = 30, now: float | None = None) -> dict[str, int]:
        """Votes of the last days by paper."""
        since = (time.time() if now is None else now) - days * DAY_S
        with self.database.begin() as connection:
            return _counted(connection, VOTES.c.at >= since)

    def mine(self, ids: Sequence[str], name: str) -> set[str]:
        """Those of these papers (at most 10,000) that a reader voted for."""
        chosen = VOTES.c.paper.in_(list(ids[:CHUNK]))
        query = sa.select(VOTES.c.paper).where(VOTES.c.reader == name, chosen)
        with self.database.begin() as connection:
            return {str(paper) for (paper,) in connection.execute(query)}


def _counted(connection: sa.Connection, where: sa.ColumnElement[bool]) -> dict[str, int]:
    query = sa.select(VOTES.c.paper, sa.func.count()).where(where).group_by(VOTES.c.paper)
    return {str(paper): int(n) for paper, n in connection.execute(query)}


def votes(site: Site) -> Votes:
    """The votes of a site, opened once."""
    return Votes.of(site)


def local_path(text: str, default: str) -> str:
    """A path of this site to go back to; `default` for anything that leads elsewhere."""
    plain = text.isascii() and text.isprintable() and "\\" not in text and len(text) <= 500
    return text if plain and text.startswith("/") and not text.startswith("//") else default


def router(site: Site) -> APIRouter:
    """``POST /papers/{id}/vote``: as JSON, or as a plain form that goes back (303)."""
    routes, kept = APIRouter(), votes(site)

    def press(request: Request, name: str) -> tuple[str, bool, int]:
        entry = site.store.get(name)
        if entry is None:
            raise HTTPException(404, "There is no such paper.")
        limit(site, request, "vote", RATE)
        who = reader(site, request)
        if hasattr(request.state, "new_reader"):
            limit(site, request, "reader", NEW_READERS)
        stands = kept.toggle(entry.id, who)
        return entry.id, stands, kept.counts([entry.id]).get(entry.id, 0)

    @routes.post("/papers/{name:path}/vote", responses={303: {"description": "back to the page"}})
    async def vote(request: Request, name: str) -> Response:
        """Vote for a paper, or take the vote back; the field ``back`` of a form says where to."""
        paper, stands, count = await run_in_threadpool(press, request, name)
        takes = request.headers.get("accept", "")
        if "text/html" not in takes:
            return JSONResponse({"id": paper, "voted": stands, "votes": count})
        back = (await request.form()).get("back", "")
        target = local_path(back if isinstance(back, str) else "", f"/papers/{paper}")
        return RedirectResponse(target, 303)

    return routes
