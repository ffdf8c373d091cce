"""Try a method from its paper's page: the form, the job it makes, and the run that is watched.

Off unless the site allows it; a site that others can reach wants a token. What a reader sends is
read with bounds, looked at in a bounded process, and measured in another one (``worker``).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit
from weakref import WeakValueDictionary

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from etude.core import Card, EtudeError, cards, require
from etude.papers.about import commands
from etude.papers.entry import Entry
from etude.site import uploads
from etude.site.guard import address, limit, reader
from etude.site.jobs import Job, Jobs, QueueFullError
from etude.site.runs import run_routes
from etude.site.schema import ERRORS, Name
from etude.site.state import Site
from etude.site.uploads import TooLargeError
from etude.site.worker import Worker, check, uploads_of

__all__ = ["form_facts", "router"]

RATE = "30/hour"  # of one address; a refused form counts too
SEEDS = (2, 10)
LONGEST_TARGET = 200
MISSING = ("error", "drop", "median")
UPLOAD_S = 180.0  # that a file may take to come in
AT_ONCE, LOOKS = 8, 2  # forms that come in, and data looked at, in one process at a time
EACH = 2  # of those forms from one address: slow ones of one reader must not keep out the others
FIELDS = ("data", "target", "seeds", "missing")
OFF = (
    "Trials are off on this site. Who runs it can switch them on: "
    "etude site --allow-trials (and a token in ETUDE_TOKEN where others can reach it)."
)
NO_TOKEN = (
    "Trials from other machines need a token, and this site has none: "
    "who runs it can set ETUDE_TOKEN and start it again."
)
WRONG_TOKEN = "The token is not the one of this site: ask who runs it."
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "data": {"type": "string", "description": "a built-in data set's name"},
                        "file": {"type": "string", "format": "binary"},
                        "target": {"type": "string", "maxLength": LONGEST_TARGET},
                        "seeds": {"type": "integer", "minimum": SEEDS[0], "maximum": SEEDS[1]},
                        "missing": {"type": "string", "enum": list(MISSING)},
                        "token": {"type": "string"},
                    },
                },
            },
        },
    },
}  # fmt: skip


def form_facts(site: Site, paper: str, method: str) -> dict[str, Any] | None:
    """What the form shows, or None for a paper whose method is no module here.

    Args:
        site: for its settings.
        paper: the paper's stable id; `method`: its ``family.slug``.
    """
    card = cards().get(method)
    if card is None:
        return None
    from etude.lab.builtin import BUILTIN, is_available

    settings = site.settings
    sets = [
        {"name": b.name, "what": b.what, "rows": b.rows, "classes": b.classes}
        for b in BUILTIN.values() if is_available(b.name)
    ]  # fmt: skip
    names = [item["name"] for item in sets]
    return {
        "action": f"/papers/{quote(paper)}/try", "page": f"/papers/{quote(paper)}",
        "method": card.slug, "title": card.title, "task": card.task,
        "is_experiment": card.task == "experiment", "commands": commands(card),
        "allowed": settings.allow_trials, "off": OFF, "needs_token": bool(settings.token),
        "data": sets, "suffixes": uploads.SUFFIXES, "missing": MISSING, "seeds": SEEDS,
        "minutes": f"{settings.trial_s / 60:.3g}", "upload_mb": f"{settings.upload_bytes / 1e6:g}",
        "error": "", "values": {
            "data": next((n for n in card.data if n in names), names[0] if names else ""),
            "target": "", "seeds": "5", "missing": "error",
        },
    }  # fmt: skip


def _must_allow(site: Site, request: Request, given: str | None) -> None:
    """Refuse who may not start a trial; `given` is the token, None where none can have come yet."""
    settings = site.settings
    if not settings.allow_trials:
        raise HTTPException(403, OFF)
    if settings.token:
        known, said = (text.encode("utf-8", "replace") for text in (settings.token, given or ""))
        if given is not None and not hmac.compare_digest(said, known):
            raise HTTPException(403, WRONG_TOKEN)
        return
    passed_on = settings.proxies or {"forwarded", "x-forwarded-for"} & set(request.headers)
    asked = urlsplit("//" + request.headers.get("host", "")).hostname or ""
    own = urlsplit(settings.base_url).hostname or ""
    if passed_on or not all(map(_is_loopback, (address(site, request), asked, own))):
        raise HTTPException(403, NO_TOKEN)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_network(host.partition("%")[0]).network_address in LOOPBACKS[
            ":" in host
        ]  # fmt: skip
    except ValueError:
        return host == "localhost"


# Of IPv6 the guard tells the /64, as of a household: that of ::1 holds no other host.
LOOPBACKS = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::/64"))


def _bearer(request: Request) -> str | None:
    found = re.fullmatch(r"Bearer +(\S+)", request.headers.get("authorization", ""), re.I)
    return found[1] if found else None


def _words(form: FormData) -> dict[str, str]:
    """The fields that are text, as the reader gave them."""
    found = {name: form.get(name) for name in (*FIELDS, "token")}
    return {name: value.strip() for name, value in found.items() if isinstance(value, str)}


def _job(paper: str, card: Card, words: dict[str, str], made_by: str) -> Job:
    """The job that a form without its file asks for.

    Raises:
        EtudeError: a field breaks a rule.
    """
    text = words.get("seeds") or "5"
    least, most = SEEDS
    seeds = int(text) if re.fullmatch(r"\d{1,3}", text, re.ASCII) else -1
    require(least <= seeds <= most, "seeds", f"a number from {least} to {most}", text)
    target = words.get("target", "")
    plain = len(target) <= LONGEST_TARGET and target.isprintable()
    require(plain, "target", f"a column's name of at most {LONGEST_TARGET} characters", target)
    missing = words.get("missing") or "error"
    require(missing in MISSING, "missing", f"one of {', '.join(MISSING)}", missing)
    return Job(
        paper=paper, method=card.key, data="", target=target, missing=missing, seeds=seeds,
        made_by=made_by,
    )  # fmt: skip


def _with_data(job: Job, site: Site, name: str, sent: UploadFile | None) -> Job:
    """The job with its data: a file where one was sent, else the built-in set of that name."""
    from dataclasses import replace

    from etude.lab.builtin import BUILTIN, is_available

    if sent is not None and sent.filename:
        file: BinaryIO = sent.file
        kept = uploads.store(
            uploads_of(site.settings), file, sent.filename, site.settings.upload_bytes
        )
        return replace(job, data=kept.shown, folder=kept.folder, file=kept.file)
    known = [item for item in BUILTIN if is_available(item)]
    require(name in known, "data", f"a file, or one of {', '.join(known)}", name)
    own = BUILTIN[name].target
    require(job.target in ("", own), "target", f"{own!r} or nothing for {name}", job.target)
    return replace(job, data=name)


def router(site: Site) -> APIRouter:
    """The form, and the pages of runs; its lifespan runs waiting trials where they are allowed."""
    jobs = Jobs(site.settings.database)
    worker = Worker(site.settings, jobs)
    gate, looks = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(LOOKS)
    doors: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if site.settings.allow_trials:
            worker.start()
        yield
        if site.settings.allow_trials:
            await run_in_threadpool(worker.stop)

    routes = APIRouter(tags=["trials"], lifespan=lifespan)
    site.templates.globals["try_facts_of"] = lambda paper, method: form_facts(site, paper, method)

    def of(name: str) -> tuple[Entry, Card]:
        entry = None if "\0" in name else site.store.get(name)
        if entry is None:
            raise HTTPException(404, f"There is no paper {name[:60]!r} here.")
        card = cards().get(entry.slug)
        if card is None:
            raise HTTPException(404, "No module here plays this paper: it cannot be tried.")
        return entry, card

    def shown(
        request: Request, entry: Entry, status: int = 200, error: str = "",
        words: dict[str, str] | None = None,
    ) -> HTMLResponse:  # fmt: skip
        facts = form_facts(site, entry.id, entry.slug)
        assert facts is not None
        given = {k: v[:LONGEST_TARGET] for k, v in (words or {}).items() if k != "token"}
        facts |= {"error": error, "values": facts["values"] | given}
        return site.page(request, "try.html", status=status, try_facts=facts)

    @routes.get("/papers/{name:path}/try", include_in_schema=False)
    def form_page(request: Request, name: Name) -> HTMLResponse:
        return shown(request, of(name)[0])

    def made(job: Job, name: str, sent: UploadFile | None) -> Job:
        """Keep the file, look at the data, and let the job wait."""
        job = _with_data(job, site, name, sent)
        try:
            if job.folder:
                check(site.settings, job)
            return jobs.add(job, site.settings.trial_queue)
        except BaseException:
            uploads.forget(uploads_of(site.settings), job.folder)
            raise

    async def read(request: Request) -> FormData:
        try:
            async with asyncio.timeout(UPLOAD_S):
                return await uploads.read_form(
                    request.headers, request.stream(), site.settings.upload_bytes
                )
        except TimeoutError:
            raise HTTPException(408, f"The file did not come in within {UPLOAD_S:g} s.") from None
        except ClientDisconnect:  # nobody is there to read this
            raise HTTPException(400, "The file was cut off.") from None

    @routes.post(
        "/papers/{name:path}/try", openapi_extra=FORM, status_code=303, response_class=Response,
        responses={**ERRORS, 303: {"description": "the run's page, or its JSON twin"},
                   **dict.fromkeys((403, 408, 413), ERRORS[404])},
    )  # fmt: skip
    async def start(request: Request, name: Name) -> Response:
        """Try the paper's method on built-in data or a file; the answer leads to the run."""
        from etude.site.app import wants_json

        bearer = _bearer(request)
        limit(site, request, "try", RATE)  # first: a wrong token counts too
        _must_allow(site, request, bearer)
        entry, card = await run_in_threadpool(of, name)
        words: dict[str, str] = {}
        try:
            if card.task == "experiment":
                raise EtudeError(
                    f"{card.slug} answers no task on a file; etude verify {card.slug} runs its "
                    "own experiment"
                )
            door = doors.setdefault(address(site, request), asyncio.Semaphore(EACH))
            async with door, gate:
                form = await read(request)
                try:
                    words = _words(form)
                    _must_allow(site, request, bearer or words.get("token", ""))
                    job = _job(entry.id, card, words, reader(site, request))
                    sent = form.get("file")
                    file = sent if isinstance(sent, UploadFile) else None
                    async with looks:
                        job = await run_in_threadpool(made, job, words.get("data", ""), file)
                finally:
                    await form.close()
        except EtudeError as error:
            if " cannot be used: " in str(error):  # a database that is away
                raise
            status = {TooLargeError: 413, QueueFullError: 503}.get(type(error), 422)
            if wants_json(request):
                fact = {"message": str(error), "status": status}
                return JSONResponse({"error": fact}, status)
            return shown(request, entry, status, str(error), words)
        worker.wake()
        return RedirectResponse(f"/runs/{job.id}{'.json' if wants_json(request) else ''}", 303)

    run_routes(routes, site, jobs)
    return routes
