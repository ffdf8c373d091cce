"""Safety of the site: who may post, how often, how much; signed tokens; headers of answers.

``Guard`` wraps the whole app. A browser says by ``Sec-Fetch-Site`` where a request comes from;
over plain http it does not, then ``Origin`` must name the host that was asked. A program sends
neither and holds no cookie that could be misused, so it may post. The one path that anyone may
post to is the one-click unsubscribe of RFC 8058: its signed token is the proof.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import secrets
import time
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from etude.core import EtudeError
from etude.site.settings import Settings

if TYPE_CHECKING:
    from etude.site.state import Site

__all__ = ["HEADERS", "Guard", "address", "limit", "read", "reader", "sign"]

READING = ("GET", "HEAD", "OPTIONS")
ONE_CLICK = re.compile(r"/unsubscribe/[^/]+")
LARGE = re.compile(r"/papers/[^/]+/try")  # takes a file and bounds it by itself
MOST_BYTES = 64 * 1024  # of any other posted body
LONGEST_TOKEN = 2_000
COOKIE = "etude_reader"
COOKIE_S = 400 * 86_400  # browsers keep a cookie no longer
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        "form-action 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
    # not no-referrer: with it a browser sends "Origin: null" from our own forms
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Middleware around the app: refuses what is forged or too large, adds the headers.

    A header of `HEADERS` that an answer sets by itself is left as it is.

    Args:
        app: what is guarded.
        site: for the settings.
    """

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site
        secure = site.settings.base_url.startswith("https:")
        self._headers = HEADERS | (
            {"strict-transport-security": "max-age=31536000"} if secure else {}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if "new_reader" in state:
                    headers.append("set-cookie", self._cookie(state["new_reader"]))
            await send(message)

        refused = zero(scope) or forged(scope, self.site.settings) or too_large(scope)
        if refused is None:
            await self.app(scope, receive, guarded)
        else:
            await _answer(scope, guarded, *refused)

    def _cookie(self, name: str) -> str:
        secure = "; Secure" if self.site.settings.base_url.startswith("https:") else ""
        value = sign(self.site, "reader", name)
        return f"{COOKIE}={value}; Path=/; Max-Age={COOKIE_S}; HttpOnly; SameSite=Lax{secure}"


def zero(scope: Scope) -> tuple[int, str] | None:
    """(status, reason) where the address holds a zero byte, which no database takes as text."""
    found = "\0" in scope["path"] or b"%00" in scope.get("query_string", b"")
    return (400, "the address must hold no zero byte") if found else None


def forged(scope: Scope, settings: Settings) -> tuple[int, str] | None:
    """(status, reason) where a request that changes something may come from a foreign page."""
    if scope["method"] in READING or ONE_CLICK.fullmatch(scope["path"]):
        return None
    headers = Headers(scope=scope)
    host = headers.get("host", "").lower()
    if not _own(host, settings):
        return 403, f"the host {host!r} is not this site's: start it with --base-url"
    origin, fetch_site = headers.get("origin"), headers.get("sec-fetch-site")
    if fetch_site is not None:
        known = fetch_site in ("same-origin", "none")
    else:
        places = (host, urlsplit(settings.base_url).netloc.lower())
        known = origin is None or _netloc(origin.lower()) in places
    return None if known else (403, "refused: the form was sent from another site's page")


def _own(host: str, settings: Settings) -> bool:
    """Whether a name can be ours: no foreign domain that was pointed at this machine."""
    try:
        name = urlsplit("//" + host).hostname or ""
    except ValueError:  # such as a bracket that is not closed
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        wanted = urlsplit(settings.base_url).hostname
        return bool(host) and ("." not in name or name == wanted or name.endswith(".localhost"))
    return True


def _netloc(address: str) -> str:
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def too_large(scope: Scope) -> tuple[int, str] | None:
    """(status, reason) where a body is larger than a form can be, or hides its length."""
    if scope["method"] in READING or LARGE.fullmatch(scope["path"]):
        return None
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers:
        return 411, "the length of the body must be declared (Content-Length)"
    declared = headers.get("content-length", "0")
    if not re.fullmatch(r"\d{1,18}", declared, re.ASCII):
        return 400, "Content-Length must be a number"
    if int(declared) > MOST_BYTES:
        return 413, f"the body must be at most {MOST_BYTES:,} bytes"
    return None


async def _answer(scope: Scope, send: Send, status: int, message: str) -> None:
    if "text/html" in Headers(scope=scope).get("accept", ""):
        kind, text = "text/html", f"<!doctype html><title>{status}</title><p>{escape(message)}</p>"
    else:
        kind = "application/json"
        text = json.dumps({"error": {"message": message, "status": status}})
    body = text.encode()
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@lru_cache(maxsize=64)
def _signer(settings: Settings, purpose: str) -> URLSafeTimedSerializer:
    how = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeTimedSerializer(settings.key(), salt=f"etude.{purpose}", signer_kwargs=how)


def sign(site: Site, purpose: str, value: Any) -> str:
    """A token for a URL or a cookie that holds `value` (JSON) readable, but not forgeable."""
    token = _signer(site.settings, purpose).dumps(value)
    return token if isinstance(token, str) else token.decode()


def read(site: Site, purpose: str, token: str, max_age: float | None) -> Any:
    """The value that was signed for this purpose, at most `max_age` seconds ago (None: ever).

    Raises:
        EtudeError: the token is forged, of another purpose, or too old.
    """
    try:
        if len(token) > LONGEST_TOKEN:
            raise BadSignature("too long")
        age = None if max_age is None else int(max_age)
        return _signer(site.settings, purpose).loads(token, max_age=age)
    except SignatureExpired:
        raise EtudeError("the link has expired: ask for a new one") from None
    except BadSignature:
        raise EtudeError("the link is not one of this site: copy it whole") from None


def reader(site: Site, request: Request) -> str:
    """The name of this reader, from the signed cookie; a new one is set with the answer."""
    try:
        return str(read(site, "reader", request.cookies.get(COOKIE, ""), COOKIE_S))
    except EtudeError:
        if not hasattr(request.state, "new_reader"):
            request.state.new_reader = secrets.token_hex(12)
        return str(request.state.new_reader)


def address(site: Site, request: Request) -> str:
    """The reader's address of the network; of IPv6 the /64, which one household has.

    With ``settings.proxies`` = n the n last hops are trusted: the n-th entry from the end of
    X-Forwarded-For is what the outermost of them saw. With 0 that header counts for nothing.
    """
    seen = request.client.host if request.client else ""
    n = site.settings.proxies
    if n > 0:
        told = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        chain = [*(part.strip() for part in told if part.strip()), seen]
        seen = chain[-min(n + 1, len(chain))]
    try:
        known = ipaddress.ip_address(seen.partition("%")[0])
    except ValueError:
        return seen[:64]
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known, 64), strict=False))
    return str(known)


@lru_cache(maxsize=64)
def _window(settings: Settings) -> MovingWindowRateLimiter:
    return MovingWindowRateLimiter(MemoryStorage())


def limit(site: Site, request: Request, what: str, rate: str) -> None:
    """Count one `what` of this reader's address: ``limit(site, request, "vote", "30/hour")``.

    The count is kept by this process; what must hold over a restart is counted in the database.

    Raises:
        HTTPException: 429 with Retry-After, where the rate is used up.
    """
    counter, item, who = _window(site.settings), parse(rate), address(site, request)
    if not counter.hit(item, what, who):
        wait = counter.get_window_stats(item, what, who).reset_time - time.time()
        raise too_often(wait)


def too_often(wait: float) -> HTTPException:
    """The answer 429 that says to come back after `wait` seconds."""
    seconds = max(1, int(wait) + 1)
    said = f"too many requests: try again in {seconds} s"
    return HTTPException(429, said, headers={"Retry-After": str(seconds)})
