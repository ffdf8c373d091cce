"""One connection to the outside: bounded answers, timeouts, retries with patience."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from etude import __version__
from etude.core import EtudeError
from etude.papers.entry import line
from etude.papers.importers.common import MB, SourceError

if TYPE_CHECKING:
    import httpx2

__all__ = ["Upstream", "open_client"]

TRIES = 4
AGAIN = (429, 500, 502, 503, 504)
LONGEST_WAIT_S = 120.0  # that an upstream may ask for
LONGEST_ANSWER_S = 120.0
QUIET_S = 30.0  # without a byte
INSTALL = 'pip install "etude[site]"'


class _PassingError(Exception):
    """A failure that may pass; `wait` is what the upstream asks for, or 0."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@contextmanager
def open_client() -> Iterator[httpx2.Client]:
    """A client with one connection that follows no redirect.

    Raises:
        EtudeError: the extra is not installed.
    """
    try:
        import httpx2
    except ImportError:
        raise EtudeError(f"papers of the net need {INSTALL}") from None
    limits = httpx2.Limits(max_connections=1)
    with httpx2.Client(limits=limits, timeout=QUIET_S) as client:
        yield client


class Upstream:
    """Asks one upstream.

    Args:
        client: that asks.
        sleep: how to wait, given seconds.
        turn: called before every request: keeps the distance that the upstream wishes.
        largest: bytes of an answer, unpacked.
    """

    def __init__(
        self, client: httpx2.Client, *, sleep: Callable[[float], None] = time.sleep,
        turn: Callable[[], None] | None = None, largest: int = 20 * MB,
    ) -> None:  # fmt: skip
        self.client, self.sleep, self.turn, self.largest = client, sleep, turn, largest

    def get(self, url: str, params: Mapping[str, str]) -> bytes:
        """The body of the answer; busy and broken servers are asked four times.

        Raises:
            SourceError: it cannot be reached, answers with an error, too much, or too slowly.
        """
        import httpx2

        host = httpx2.URL(url).host
        reason = ""
        for attempt in range(TRIES):
            if self.turn is not None:
                self.turn()
            try:
                return self._once(url, params, host)
            except _PassingError as error:
                reason, wait = str(error), max(2.0**attempt, error.wait)
            except httpx2.TransportError as error:
                reason = f"{host} cannot be reached: {str(error) or type(error).__name__}"
                wait = 2.0**attempt
            if wait > LONGEST_WAIT_S:
                raise SourceError(f"{reason}; it asks to come back in {wait:.0f} s")
            if attempt < TRIES - 1:
                self.sleep(wait)
        raise SourceError(f"{reason} (tried {TRIES} times)")

    def _once(self, url: str, params: Mapping[str, str], host: str) -> bytes:
        headers = {
            "User-Agent": f"etude/{__version__}",
            "Accept-Encoding": "gzip",
        }
        with self.client.stream("GET", url, params=dict(params), headers=headers) as answer:
            code = answer.status_code
            if code in AGAIN:
                wait = _wait(answer.headers.get("Retry-After", ""))
                raise _PassingError(f"{host} answers {code}", wait)
            if code != 200:
                said = b"".join(self._body(answer, host, 2_000, cut=True))
                why = line(said.decode("utf-8", "replace"), 200)
                raise SourceError(f"{host} answers {code}: {why}")
            told = answer.headers.get("Content-Length", "")
            if told.isdigit() and int(told) > self.largest:
                raise SourceError(f"{host} answers with {int(told):,} bytes, {self._most()}")
            return b"".join(self._body(answer, host, self.largest))

    def _most(self) -> str:
        return f"more than {self.largest:,} are not read"

    def _body(
        self, answer: httpx2.Response, host: str, most: int, *, cut: bool = False
    ) -> Iterator[bytes]:
        """The unpacked body, piece by piece and never more than `most` bytes of it."""
        packing = answer.headers.get("Content-Encoding", "identity").lower()
        if packing not in ("identity", "gzip", "deflate"):
            raise SourceError(f"{host} answers packed as {line(packing, 40)}, though not asked to")
        # a transport without a net has read, and unpacked, its answer before it gives it
        is_read = answer.is_stream_consumed
        unpack = zlib.decompressobj(47) if packing != "identity" and not is_read else None
        end, left = time.monotonic() + LONGEST_ANSWER_S, most
        for raw in [answer.content] if is_read else answer.iter_raw():
            if time.monotonic() > end:
                rule = f"did not end its answer in {LONGEST_ANSWER_S:.0f} s"
                raise SourceError(f"{host} {rule}")
            try:
                piece = unpack.decompress(raw, left + 1) if unpack else raw
            except zlib.error:
                raise _PassingError(f"{host} answers with a broken {packing}") from None
            if len(piece) > left:
                if cut:
                    yield piece[:left]
                    return
                raise SourceError(f"{host} answers without end, {self._most()}")
            left -= len(piece)
            yield piece
        if unpack and not unpack.eof:
            raise _PassingError(f"{host} broke its answer off")


def _wait(text: str) -> float:
    """Seconds that a Retry-After asks for: a number or a date."""
    if text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        then = parsedate_to_datetime(text)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
