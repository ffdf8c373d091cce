"""The scheduler of a running site: sends what waits every minute, and the digests every day.

Any number of site processes may run: the database says whose turn it is, and a mail is taken
before it is sent, so that none is sent twice. Without a mail server there is nothing to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event, Thread

from etude.core import EtudeError, require
from etude.site.digest import readers_of
from etude.site.sending import send
from etude.site.state import Site

__all__ = ["Scheduler", "mailing"]

STEP_S = 60.0  # between two looks
ROUND_S = 900.0  # between two rounds of digests, of all processes together
HOUR = 6  # of the day in UTC from which digests are sent


class Scheduler:
    """A thread that sends; it ends with the process, or by ``stop``.

    Args:
        site: whose mails.
        step: seconds between two looks.

    Raises:
        EtudeError: ETUDE_DIGEST_HOUR is no hour.
    """

    def __init__(self, site: Site, step: float = STEP_S) -> None:
        self.site, self.step = site, step
        hour = os.environ.get("ETUDE_DIGEST_HOUR", str(HOUR))
        known = hour.isascii() and hour.isdigit() and int(hour) < 24
        require(known, "ETUDE_DIGEST_HOUR", "an hour from 0 to 23 (UTC)", hour)
        self.hour = int(hour)
        self._end = Event()
        self._thread = Thread(target=self._run, name="etude-digest", daemon=True)
        self._said = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, wait: float = 10.0) -> None:
        """End after the mail in hand, at most `wait` seconds from now."""
        self._end.set()
        self._thread.join(wait)

    def look(self) -> None:
        """One look: confirmations, and in its turn the digests; a failure is told once."""
        try:
            readers = readers_of(self.site)
            due = datetime.now(UTC).hour >= self.hour and readers.turn("digest", ROUND_S)
            report = send(self.site, digests=due)
            problem = report.problem
            if due:
                readers.forget()
        except EtudeError as error:
            problem = str(error)
        if problem and problem != self._said:
            print(f"etude site: mail: {problem}", file=sys.stderr, flush=True)
        self._said = problem

    def _run(self) -> None:
        while not self._end.wait(self.step):
            try:
                self.look()
            except Exception as error:  # the thread must live as long as the site
                print(f"etude site: mail: {type(error).__name__}", file=sys.stderr, flush=True)


@contextmanager
def mailing(site: Site) -> Iterator[Scheduler | None]:
    """Send while the block lasts, where a mail server is set; the mail in hand is finished."""
    if not site.settings.smtp:
        yield None
        return
    scheduler = Scheduler(site)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
