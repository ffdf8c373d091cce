"""The pages of runs: what waits, runs or is done, its progress as events, its report."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from etude.site.guard import COOKIE, reader
from etude.site.jobs import Job, Jobs
from etude.site.schema import ERRORS
from etude.site.state import Site
from etude.site.worker import command_of

__all__ = ["run_facts", "run_routes"]

LOOK_S = 0.5  # between two looks at a run that is watched
STILL_S = 10.0  # of silence after which a comment keeps the line open
STREAM_S = 900.0  # that one stream lasts at most; a browser comes back by itself
MOST_STREAMS = 200  # of one process
RECENT = 50
# The report has its style in the page, and a policy that forbids all else.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-top-navigation-by-user-activation"
)
RunId = Annotated[str, Path(max_length=40, examples=["3f2a9c0d1e2b4c5d"])]


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat("T", "seconds")


def run_facts(job: Job, ahead: int = 0) -> dict[str, Any]:
    """What everyone may know of a job, as JSON values."""
    return {
        "id": job.id, "page": f"/runs/{job.id}", "state": job.state, "open": job.is_open,
        "paper": job.paper, "paper_page": f"/papers/{quote(job.paper)}", "method": job.method,
        "data": job.data, "uploaded": bool(job.folder), "target": job.target,
        "missing": job.missing, "seeds": job.seeds, "created": _when(job.created),
        "started": _when(job.started), "finished": _when(job.finished), "done": job.done,
        "total": job.total, "label": job.label, "stopping": bool(job.wish), "ahead": ahead,
        "message": job.message, "run": job.run, "command": command_of(job),
        "report": f"/runs/{job.id}/report" if job.state == "finished" else "",
    }  # fmt: skip


class Watch:
    """Jobs as those who watch them see them; many who watch one job share one look."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self._seen: dict[str, tuple[float, dict[str, Any] | None]] = {}

    async def look(self, name: str) -> dict[str, Any] | None:
        """The facts, at most ``LOOK_S`` old; None where there is no such job."""
        at, facts = self._seen.get(name, (-LOOK_S, None))
        if time.monotonic() - at < LOOK_S * 0.8:
            return facts
        facts = await run_in_threadpool(self.read, name)
        if len(self._seen) > MOST_STREAMS:
            self._seen.clear()
        self._seen[name] = (time.monotonic(), facts)
        return facts

    def read(self, name: str) -> dict[str, Any] | None:
        """The facts as they are."""
        job = self.jobs.get(name)
        if job is None:
            return None
        return run_facts(job, self.jobs.ahead(job) if job.state == "queued" else 0)


def _event(name: str, facts: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(facts)}\n\n"


async def events(watch: Watch, name: str, lasts: float = STREAM_S) -> AsyncIterator[str]:
    """The progress of a run as server-sent events: ``progress`` each time, at last ``end``."""
    last, said, end = None, time.monotonic(), time.monotonic() + lasts
    while time.monotonic() < end:
        facts = await watch.look(name)
        if facts is None or not facts["open"]:
            yield _event("end", facts or {"id": name, "state": "gone", "open": False})
            return
        if facts != last:
            last, said = facts, time.monotonic()
            yield _event("progress", facts)
        elif time.monotonic() - said > STILL_S:
            said = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_S)


def run_routes(routes: APIRouter, site: Site, jobs: Jobs) -> None:
    """Add the routes of runs."""
    watch, streams = Watch(jobs), [0]

    def who(request: Request) -> str:
        """The reader's name, "" for one who never started anything: no cookie for reading."""
        return reader(site, request) if COOKIE in request.cookies else ""

    def found(run: RunId) -> Job:
        job = jobs.get(run) if re.fullmatch(r"[0-9a-f]{16}", run) else None
        if job is None:
            raise HTTPException(404, "There is no such run here.")
        return job

    known = Depends(found)

    def recent(request: Request) -> list[dict[str, Any]]:
        return [run_facts(job) for job in jobs.recent(who(request), RECENT)]

    def whole(job: Job) -> dict[str, Any]:
        ahead = jobs.ahead(job) if job.state == "queued" else 0
        return run_facts(job, ahead) | {"result": jobs.result(job.id)}

    @routes.get("/runs.json", responses=ERRORS)
    def runs_as_json(request: Request) -> dict[str, Any]:
        """The newest trials on built-in data, and the reader's own."""
        return {"runs": recent(request)}

    @routes.get("/runs", include_in_schema=False)
    def runs_page(request: Request) -> HTMLResponse:
        return site.page(request, "runs.html", runs=recent(request))

    @routes.get("/runs/{run}.json", responses=ERRORS)
    def run_as_json(job: Job = known) -> dict[str, Any]:
        """One trial: its state, its progress, and what it measured."""
        return whole(job)

    @routes.get("/runs/{run}/events", include_in_schema=False)
    async def run_events(run: RunId) -> Response:
        await run_in_threadpool(found, run)
        if streams[0] >= MOST_STREAMS:
            raise HTTPException(503, "Too many watch already.", {"Retry-After": "10"})

        async def counted() -> AsyncIterator[str]:
            streams[0] += 1
            try:
                async for event in events(watch, run):
                    yield event
            finally:
                streams[0] -= 1

        plain = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(counted(), media_type="text/event-stream", headers=plain)

    @routes.get("/runs/{run}/report", include_in_schema=False)
    def run_report(job: Job = known) -> Response:
        page = jobs.report(job.id)
        if page is None:
            raise HTTPException(404, "This run has no report.")
        return HTMLResponse(page, headers={"content-security-policy": REPORT_POLICY})

    @routes.get("/runs/{run}/rows.csv", include_in_schema=False)
    def run_rows(job: Job = known) -> Response:
        if not job.run:
            raise HTTPException(404, "This run has measured nothing.")
        name = f'attachment; filename="{job.id}.csv"'
        body = _rows(site, job)
        return StreamingResponse(body, media_type="text/csv", headers={"content-disposition": name})

    @routes.post(
        "/runs/{run}/stop", status_code=303, response_class=Response,
        responses={**ERRORS, 303: {"description": "the run's page"}, 403: ERRORS[404]},
    )  # fmt: skip
    def stop(request: Request, job: Job = known) -> Response:
        """Stop a trial; only the reader who started it can."""
        if who(request) != job.made_by:
            raise HTTPException(403, "Only the reader who started a trial can stop it.")
        jobs.ask_stop(job.id, job.made_by)
        return RedirectResponse(f"/runs/{job.id}", 303)

    @routes.get("/runs/{run}", include_in_schema=False)
    def run_page(request: Request, job: Job = known) -> HTMLResponse:
        mine = job.is_open and who(request) == job.made_by
        return site.page(request, "run.html", job=whole(job), mine=mine)


def _rows(site: Site, job: Job) -> Iterator[str]:
    """What the ledger holds of the run, as CSV."""
    from etude.lab.ledger import Ledger
    from etude.lab.row import Row

    line = io.StringIO()
    writer = csv.writer(line)
    book = Ledger(site.settings.ledger)
    try:
        rows = [row for row in book.rows(job.run) if row.seed < job.seeds]
    finally:
        book.close()
    writer.writerow([f.name for f in fields(Row)])
    for row in rows:
        facts = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in asdict(row).items()}
        writer.writerow([_cell(value) for value in facts.values()])
    yield line.getvalue()


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
