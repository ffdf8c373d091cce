"""Subscribing: asking, confirming, changing and ending the digest.

Whatever is known of an address, the answer to who asks for it is the same and so is the work: a
choice is noted, and its mail is sent after the answer. A page that a link opens changes nothing,
because mail programs open links by themselves; its button does.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta
from threading import Event, Lock
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Form, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from etude.core import EtudeError
from etude.papers.search.query import parse
from etude.site.digest import FIRST_DAYS, readers_of, today, words_of
from etude.site.guard import address, limit, read, sign, too_often
from etude.site.mail import mail_address, plain
from etude.site.readers import LONGEST_QUERY, TOKEN_S, Reader, check
from etude.site.schema import ERRORS
from etude.site.sending import send
from etude.site.state import Site

__all__ = ["router"]

MANAGE_S = 180 * 86_400  # how long the link to change a choice works
RATE = "60/minute"  # pages of links opened from one address of the network
SAID = "If this address can get mail, one is on its way to it: open it and press its button."
FORGOTTEN = "This request was forgotten. A mail that still comes has a link of its own at its end."
PRIVATE = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex"}
Words = Annotated[str, Query(alias="q", max_length=LONGEST_QUERY)]
Text = Annotated[str, Form(max_length=LONGEST_QUERY)]


class Deliveries:
    """The confirmations that wait, sent by one thread: those that answer readers must not all
    wait for a mail server that hangs. Who comes meanwhile leaves the wish that it looks once more.
    """

    def __init__(self, site: Site) -> None:
        self.site, self._wish, self._turn = site, Event(), Lock()

    def send(self) -> None:
        """Send what waits; what cannot be sent now waits for the next round."""
        self._wish.set()
        while self._wish.is_set() and self._turn.acquire(blocking=False):
            try:
                self._wish.clear()
                send(self.site, digests=False)
            except EtudeError:
                pass  # a broken setting or a server away: the digest's next round tells it
            finally:
                self._turn.release()


def read_query(text: str) -> str:
    """A saved search on one line, "" for all papers.

    Raises:
        EtudeError: it is no query (see ``etude.papers.search``).
    """
    query = plain(text)
    check("daily", query)
    if query:
        parse(query)
    return query


def masked(mail: str) -> str:
    """An address as its owner knows it and others do not: "a…@example.org"."""
    local, _, domain = mail.rpartition("@")
    return f"{local[:1]}…@{domain}"


def network_of(site: Site, request: Request) -> str:
    """The reader's network as the database keeps it: countable, but not readable."""
    key = site.settings.key().encode()
    seen = address(site, request).encode()
    return hmac.new(key, seen, hashlib.sha256).hexdigest()[:32]


def router(site: Site) -> APIRouter:
    """The routes of subscribing; they are forms, described only where programs use them."""
    routes, readers = APIRouter(tags=["subscribe"]), readers_of(site)
    deliveries = Deliveries(site)

    def shown(request: Request, name: str, status: int = 200, **facts: Any) -> HTMLResponse:
        page = site.page(request, name, status=status, **facts)
        page.headers.update(PRIVATE)
        return page

    def opened(request: Request, purpose: str, token: str, age: float | None) -> Any:
        limit(site, request, "link", RATE)
        try:
            return read(site, purpose, token, age)
        except EtudeError as error:
            raise HTTPException(400, str(error), headers=PRIVATE) from None

    def known(request: Request, token: str) -> Reader:
        reader = readers.get(str(opened(request, "manage", token, MANAGE_S)))
        if reader is None or reader.state != "confirmed":
            raise HTTPException(400, "This address gets no mail: subscribe again.", headers=PRIVATE)
        return reader

    @routes.get("/subscribe", include_in_schema=False)
    def form(request: Request, query: Words = "") -> HTMLResponse:
        return shown(
            request, "subscribe.html", query=plain(query), email="", frequency="daily",
            problem="", mails=bool(site.settings.smtp),
        )  # fmt: skip

    @routes.post("/subscribe", responses=ERRORS, status_code=202, response_class=JSONResponse)
    def ask(
        request: Request, after: BackgroundTasks, email: Annotated[str, Form(max_length=320)],
        frequency: Annotated[str, Form(max_length=20)] = "daily", query: Text = "",
    ) -> Response:  # fmt: skip
        """Ask for the digest; a mail to the address asks whether its owner wants it."""
        if not site.settings.smtp:
            raise HTTPException(503, "This site sends no mail: its owner set no mail server.")
        network = network_of(site, request)
        wait = readers.wait_of(network)
        if wait > 0:
            raise too_often(wait)
        html = "text/html" in request.headers.get("accept", "")
        try:
            to, wanted = mail_address(email), read_query(query)
            check(frequency, wanted)
        except EtudeError as error:
            if not html:
                raise
            return shown(
                request, "subscribe.html", 400, query=query, email=email, frequency=frequency,
                problem=str(error), mails=True,
            )  # fmt: skip
        readers.ask(to, frequency, wanted, network)
        after.add_task(deliveries.send)
        if html:
            page = shown(request, "subscribed.html", 202, title="One more step", said=SAID)
            page.background = after
            return page
        return JSONResponse({"message": SAID}, 202, background=after)

    @routes.get("/confirm/{token}", include_in_schema=False)
    def confirm_page(request: Request, token: str) -> HTMLResponse:
        choice = readers.choice(str(opened(request, "confirm", token, TOKEN_S)))
        if choice is None:
            raise HTTPException(400, "This link was used already.", headers=PRIVATE)
        words = words_of(choice.frequency, choice.query)
        return shown(
            request, "confirm.html", token=token, choice=words, mail=masked(choice.address)
        )

    @routes.post("/confirm/{token}", include_in_schema=False)
    def confirm(request: Request, token: str) -> HTMLResponse:
        nonce = str(opened(request, "confirm", token, TOKEN_S))
        first = {how: (today() - timedelta(days)).isoformat() for how, days in FIRST_DAYS.items()}
        reader = readers.confirm(nonce, first)
        if reader is None:
            raise HTTPException(400, "This link was used already.", headers=PRIVATE)
        said = f"You will get {words_of(reader.frequency, reader.query)}."
        return shown(
            request, "subscribed.html", title="You are subscribed", said=said,
            manage=f"/manage/{sign(site, 'manage', reader.key)}",
        )  # fmt: skip

    @routes.get("/unsubscribe/{token}", include_in_schema=False)
    def unsubscribe_page(request: Request, token: str) -> HTMLResponse:
        opened(request, "unsubscribe", token, None)
        return shown(request, "unsubscribe.html", token=token)

    @routes.post("/unsubscribe/{token}", include_in_schema=False)
    def unsubscribe(request: Request, token: str) -> HTMLResponse:
        kind, name = opened(request, "unsubscribe", token, None)
        if kind == "reader":
            readers.unsubscribe(str(name))
        elif not readers.decline(str(name)):
            return shown(request, "subscribed.html", title="An old link", said=FORGOTTEN)
        return shown(
            request, "subscribed.html", title="No more mail",
            said="This address gets no more mail from here.",
        )  # fmt: skip

    @routes.get("/manage/{token}", include_in_schema=False)
    def manage_page(request: Request, token: str) -> HTMLResponse:
        return managed(request, known(request, token), token)

    @routes.post("/manage/{token}", include_in_schema=False)
    def manage(
        request: Request, token: str, frequency: Annotated[str, Form(max_length=20)],
        query: Text = "",
    ) -> HTMLResponse:  # fmt: skip
        reader = known(request, token)
        try:
            readers.change(reader.key, frequency, read_query(query))
        except EtudeError as error:
            return managed(request, reader, token, problem=str(error))
        return managed(request, known(request, token), token, done=True)

    def managed(
        request: Request, reader: Reader, token: str, *, problem: str = "", done: bool = False
    ) -> HTMLResponse:
        return shown(
            request, "manage.html", 400 if problem else 200, reader=reader, token=token,
            mail=masked(reader.address), problem=problem, done=done,
            choice=words_of(reader.frequency, reader.query),
            end=sign(site, "unsubscribe", ["reader", reader.key]),
        )  # fmt: skip

    return routes
