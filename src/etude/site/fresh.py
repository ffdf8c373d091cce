"""Conditional answers and a memory of rendered pages: nothing is rendered twice unchanged.

All that a page shows is summed up in a *stamp*: the store's last change, the votes, the last
import, the ledger's last runs. Pages are kept under their address and the stamp, so that a kept
page is never stale: the stamp is read for every request, but requests that wait together share
one reading that began after the last of them came.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import etude
from etude.core import EtudeError

__all__ = ["Fresh"]

LARGEST = 32 << 20  # bytes of all kept pages
DECAY_S = 600  # how often what fades with time is made anew
WORTH = 1_000  # bytes from which a page is sent compressed


@dataclass(frozen=True)
class Page:
    """A rendered answer."""

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    packed: bytes | None

    @property
    def size(self) -> int:
        return len(self.body) + len(self.packed or b"")


class Fresh:
    """Middleware: ETag, Last-Modified, 304, HEAD and Cache-Control for everything that is read.

    Args:
        app: what renders.
        stamp: reads what all pages depend on; called in a thread.
        largest: bytes of pages that are kept.
    """

    def __init__(
        self, app: ASGIApp, stamp: Callable[[], object], *, largest: int = LARGEST
    ) -> None:
        self.app, self._read, self._largest = app, stamp, largest
        self._kept: OrderedDict[tuple[str, str], Page] = OrderedDict()
        self._making: dict[tuple[str, str], asyncio.Event] = {}
        self._bytes = 0
        self._last, self._modified = "", 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._now: asyncio.Task[str] | None = None
        self._next: asyncio.Task[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        inner = scope
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):
            inner, send = {**scope, "method": "GET"}, _without_body(send)
        if not lasting(scope["path"]):
            await self.app(inner, receive, _with_control(send, scope))
            return
        try:
            stamp = await self._stamp()
        except EtudeError:  # a database that is away: the app tells it
            await self.app(inner, receive, send)
            return
        await self._answer(stamp, inner, receive, send)

    async def _answer(self, stamp: str, scope: Scope, receive: Receive, send: Send) -> None:
        fades = str(int(time.time() / DECAY_S)) if "trending" in scope["path"] else ""
        # A path may hold a question mark, written %3F, but no zero byte: the guard refuses it.
        address = f"{scope['path']}\0{scope['query_string'].decode('latin-1')}"
        key = (address, stamp + fades)
        tag = 'W/"' + hashlib.sha256("\0".join(key).encode()).hexdigest()[:24] + '"'
        asked = Headers(scope=scope)
        page = self._kept.get(key) or await self._render(key, scope, receive, send)
        if page is None:
            return
        if key in self._kept:
            self._kept.move_to_end(key)
        life = "public, max-age=300" if scope["path"].startswith("/feeds/") else "no-cache"
        facts = [
            (b"etag", tag.encode()), (b"cache-control", life.encode()),
            (b"last-modified", formatdate(self._modified, usegmt=True).encode()),
            (b"vary", b"Accept-Encoding"),
        ]  # fmt: skip
        if self._is_known(asked, tag):
            await send({"type": "http.response.start", "status": 304, "headers": facts})
            await send({"type": "http.response.body", "body": b""})
            return
        body, packed = page.body, page.packed
        if packed is not None and "gzip" in asked.get("accept-encoding", ""):
            body = packed
            facts.append((b"content-encoding", b"gzip"))
        facts += [*page.headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": facts})
        await send({"type": "http.response.body", "body": body})

    def _is_known(self, asked: Headers, tag: str) -> bool:
        """Whether the reader has this very answer: by its tag, else by its time."""
        named = asked.get("if-none-match")
        if named is not None:
            return named.strip() == "*" or tag[2:] in (
                part.strip().removeprefix("W/") for part in named.split(",")
            )
        try:
            since = parsedate_to_datetime(asked["if-modified-since"]).timestamp()
        except (KeyError, ValueError, TypeError, OverflowError):
            return False
        return self._modified <= since

    async def _render(
        self, key: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> Page | None:
        """The page from the app, kept for the next; None where another answer was sent."""
        other = self._making.get(key)
        if other is not None:
            await other.wait()
            if key in self._kept:
                return self._kept[key]
        done = self._making[key] = asyncio.Event()
        try:
            messages: list[Message] = []

            async def catch(message: Message) -> None:
                messages.append(message)

            await self.app(scope, receive, catch)
            if messages[0]["status"] != 200:
                for message in messages:
                    await send(message)
                return None
            page = await run_in_threadpool(_page, messages)
            self._keep(key, page)
            return page
        finally:
            done.set()
            if self._making.get(key) is done:
                del self._making[key]

    def _keep(self, key: tuple[str, str], page: Page) -> None:
        if page.size > self._largest // 8:
            return
        before = self._kept.pop(key, None)
        self._kept[key] = page
        self._bytes += page.size - (before.size if before else 0)
        while self._bytes > self._largest:
            self._bytes -= self._kept.popitem(last=False)[1].size

    async def _stamp(self) -> str:
        """The stamp by a reading that begins now or later, never one that was under way."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._now, self._next = loop, None, None
            self._making.clear()
        if self._next is None:
            self._next = loop.create_task(self._take_turn(self._now))
        return await asyncio.shield(self._next)

    async def _take_turn(self, before: asyncio.Task[str] | None) -> str:
        if before is not None:
            await asyncio.wait([before])
        self._now, self._next = self._next, None
        found = f"{etude.__version__} {await run_in_threadpool(self._read)}"
        if found != self._last:
            # Of two changes in one second the second must still look newer.
            self._last, self._modified = found, max(int(time.time()), self._modified + 1)
            self._kept.clear()
            self._bytes = 0
        return found


def lasting(path: str) -> bool:
    """Whether what is read at a path depends on the stamp only, and on no reader."""
    whole = ("/", "/index.json", "/about", "/feeds", "/methods", "/papers", "/openapi.json")
    begins = ("/papers/", "/papers.", "/methods.", "/feeds/", "/feeds.")
    return path in whole or path.startswith(begins)


def _page(messages: list[Message]) -> Page:
    body = b"".join(m.get("body", b"") for m in messages[1:])
    packed = gzip.compress(body, 6, mtime=0) if len(body) >= WORTH else None
    kept = tuple((k, v) for k, v in messages[0]["headers"] if k.lower() != b"content-length")
    return Page(kept, body, packed)


def _without_body(send: Send) -> Send:
    async def headless(message: Message) -> None:
        if message["type"] == "http.response.body":
            if message.get("more_body"):
                return
            message = {**message, "body": b""}
        await send(message)

    return headless


def _with_control(send: Send, scope: Scope) -> Send:
    """Cache-Control for what is not kept here: files of static/ by fingerprint, else nothing."""
    named = scope["path"].startswith("/static/")
    life = "no-store"
    if named:
        life = "public, max-age=31536000, immutable" if scope["query_string"] else "no-cache"

    async def controlled(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).setdefault("cache-control", life)
        await send(message)

    return controlled
