"""Running the site: where it listens, who may start trials, and what goes on beside the pages."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING

from etude.core import EtudeError
from etude.lab.serve import is_loopback
from etude.site.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etude.site.state import Site

__all__ = ["Background", "Place", "listen", "repeated", "serve"]

Background = Callable[["Site"], AbstractContextManager[object]]
LONGEST_WAIT = 5  # seconds that a stop waits for open connections, such as a trial's progress


@dataclass(frozen=True)
class Place:
    """A socket that listens, and its address for a browser."""

    listener: socket.socket
    address: str


def listen(host: str, port: int) -> Place:
    """Listen; port 0 takes a free one.

    Raises:
        EtudeError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.create_server((host, port), family=found[0][0], backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise EtudeError(
            f"{host}, port {port} cannot be served: {said}; choose others with --host and --port"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    return Place(listener, f"http://{shown}:{listener.getsockname()[1]}")


def check_reach(settings: Settings, host: str, warn: Callable[[str], None]) -> None:
    """Warn beyond loopback, where trials need a token.

    Raises:
        EtudeError: trials are allowed beyond loopback without a token.
    """
    if is_loopback(host):
        return
    if settings.allow_trials and not settings.token:
        raise EtudeError(
            f"--allow-trials at {host} lets other machines start programs here: set ETUDE_TOKEN "
            "to a secret that readers must show, or stay on 127.0.0.1"
        )
    warn(
        f"warning: {host} lets other machines in, without encryption: put a proxy with TLS in "
        "front, and say with --base-url how readers reach it"
    )


def serve(
    settings: Settings, place: Place, background: Sequence[Background] = (),
    started: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Serve the site until interrupted; `started` is called when it answers."""
    import uvicorn

    from etude.site.app import make_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            app.state.site.answers.set()
            started()

    with ExitStack() as stack:
        stack.callback(place.listener.close)
        app = make_app(settings)
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, lifespan="on", access_log=False,
            timeout_graceful_shutdown=LONGEST_WAIT, proxy_headers=False,
        )  # fmt: skip
        for begin in background:
            stack.enter_context(begin(app.state.site))
        with suppress(KeyboardInterrupt):  # the way to end it
            Server(config).run(sockets=[place.listener])


@contextmanager
def repeated(work: Callable[[], object], seconds: float) -> Iterator[Event]:
    """Do some work now and every so many seconds in a thread, until the block ends.

    Work that fails is done again at its next turn: an ``EtudeError`` it has told by itself, and
    any other failure is logged.
    """
    over = Event()

    def go() -> None:
        while not over.is_set():
            try:
                with suppress(EtudeError):
                    work()
            except Exception:
                logging.getLogger(__name__).exception("the site goes on without this turn")
            over.wait(seconds)

    Thread(target=go, daemon=True, name="etude-repeated").start()
    try:
        yield over
    finally:
        over.set()
