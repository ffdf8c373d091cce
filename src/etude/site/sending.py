"""Sending: the confirmations that wait, then the digests that are due, over one connection.

What a crash does. A mail is noted with its papers before the server hears of it, and noted as
sent when the server has taken it; both are on the disk before the next step.

- A crash between two mails, or before the server has the whole text: that mail is taken again by
  the next round, once its lease is over. Nobody gets two, nobody none.
- A crash in the moment between the server's "250" and our note of it: nobody can know whether
  the server has the mail (RFC 5321, 4.2.5, leaves the same question to every mail server). It is
  sent again, with the same Message-ID and Date, by which mailboxes know a copy. So this one case
  is at least once, never lost.

Two senders never have the same mail: it is taken for a lease, and the lease is renewed when only
the text is missing; who finds it taken by another lets go.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.site.digest import confirm_mail, digest_mail, issue_of, news, readers_of, today
from etude.site.mail import Courier, Refusal
from etude.site.outbox import Mail, Outbox
from etude.site.readers import FREQUENCIES
from etude.site.state import Site

__all__ = ["Report", "dry_run", "send"]

LEASE_S = 180.0  # longer than the three commands that come before the text may take
PAUSE_S = 60.0  # before a confirmation that was put off is tried again
GIVE_UP_S = 5 * 86_400  # how long a mail is tried that the server puts off, as mail servers do
MOST_BREAKS = 2  # of the connection one after the other, then the round ends
Tell = Callable[[int, int], None]
log = logging.getLogger("etude.site")


@dataclass
class Report:
    """What a round did.

    Attributes:
        sent, later, refused: digests that the server took, put off, and refused.
        stopped: addresses that get no mail any more because three mails came back.
        confirmations: mails sent that ask whether somebody wants the digest.
        problem: why the round ended early, in one line, or "".
    """

    sent: int = 0
    later: int = 0
    refused: int = 0
    stopped: int = 0
    confirmations: int = 0
    problem: str = ""


def send(
    site: Site, frequency: str | None = None, *, digests: bool = True, tell: Tell | None = None,
    lease: float = LEASE_S,
) -> Report:  # fmt: skip
    """Send what waits and what is due; safe to call from any number of processes at once.

    Args:
        site: whose readers.
        frequency: "daily" or "weekly", None for both.
        digests: False for the confirmations only.
        tell: called with (readers seen, readers) now and then.
        lease: seconds for which a mail is nobody else's.

    Raises:
        EtudeError: no mail server is set, or the database cannot be used.
    """
    return asyncio.run(_Round(site, frequency, digests, tell, lease).run())


def dry_run(site: Site, folder: Path, frequency: str | None = None) -> int:
    """Write the digests that are due as ``.eml`` files and mark nothing; how many.

    Raises:
        EtudeError: the folder cannot be written.
    """
    outbox = Outbox(readers_of(site).database, "dry run", 0.0)
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for mail, entries in _dry(site, outbox, frequency):
            path = folder / f"{mail.issue}-{mail.reader.key}.eml"
            path.write_bytes(digest_mail(site, mail, entries).as_bytes())
            count += 1
    except OSError as error:
        raise EtudeError(f"{folder}: mails cannot be written: {error.strerror}") from None
    return count


def _dry(site: Site, outbox: Outbox, frequency: str | None) -> Iterator[tuple[Mail, list[Entry]]]:
    for mail in outbox.open_mails(frequency):
        entries = site.store.many(mail.papers)
        if entries:
            yield mail, entries
    known: dict[Any, list[Entry]] = {}
    for how in FREQUENCIES if frequency is None else (frequency,):
        issue = issue_of(how, today())
        for reader in readers_of(site).confirmed(how):
            if not outbox.has(reader, issue):
                entries = news(site, reader, today(), known)
                fresh = set(outbox.unsent(reader, [e.id for e in entries]))
                if fresh:
                    kept = [entry for entry in entries if entry.id in fresh]
                    yield Mail(reader, issue, tuple(e.id for e in kept), time.time()), kept


class _Round:
    """One round of sending; the arguments are those of ``send``."""

    def __init__(
        self, site: Site, frequency: str | None, digests: bool, tell: Tell | None, lease: float
    ) -> None:
        self.site, self.frequency, self.digests, self.tell = site, frequency, digests, tell
        self.lease = lease
        self.readers = readers_of(site)
        self.outbox = Outbox(self.readers.database, secrets.token_hex(8), lease)
        self.report = Report()
        self.start = time.time()
        self.breaks = 0
        self.courier: Courier | None = None
        Courier(site.settings)  # says at once where the setting is no server

    async def run(self) -> Report:
        """Everything that is due, until the server is gone."""
        try:
            await self._confirmations()
            if self.digests:
                for mail in self._due():
                    await self._digest(mail)
        except _GoneError as error:
            self.report.problem = str(error)
        finally:
            await self._hang_up()
        return self.report

    async def _confirmations(self) -> None:
        while choice := self.readers.take_choice(self.lease):
            try:
                refused = await self._hand(confirm_mail(self.site, choice, time.time()))
            except _GoneError:
                self.readers.settle_choice(choice.nonce, "waiting", 0.0)
                raise
            except Exception:
                log.exception("a confirmation that cannot be made")
                self.readers.settle_choice(choice.nonce, "refused")
                continue
            if refused is None:
                self.readers.settle_choice(choice.nonce, "sent")
                self.report.confirmations += 1
            elif refused.forever:
                self.readers.settle_choice(choice.nonce, "refused")
            else:
                self.readers.settle_choice(choice.nonce, "waiting", PAUSE_S)

    def _due(self) -> Iterator[Mail]:
        """Mails to send now, each taken: those begun earlier, then the new ones."""
        yield from self._begun()
        known: dict[Any, list[Entry]] = {}
        day = today()
        chosen = FREQUENCIES if self.frequency is None else (self.frequency,)
        total, seen = sum(map(self.outbox.count, chosen)), 0
        for how in chosen:
            issue = issue_of(how, day)
            for reader in self.readers.confirmed(how):
                seen += 1
                if self.tell:
                    self.tell(seen, max(total, seen))
                if self.outbox.has(reader, issue):
                    continue
                papers = [entry.id for entry in news(self.site, reader, day, known)]
                papers = self.outbox.unsent(reader, papers)
                mail = self.outbox.take(reader, issue, papers) if papers else None
                if mail is not None:
                    yield mail
        # What another sender holds is its own, unless it was killed: then the lease ends.
        while (wait := self.outbox.held(self.frequency)) > 0:
            time.sleep(min(wait + 0.01, 1.0))
            yield from self._begun()

    def _begun(self) -> Iterator[Mail]:
        while mail := self.outbox.take_open(self.frequency, self.start):
            yield mail

    async def _digest(self, mail: Mail) -> None:
        entries = self.site.store.many(mail.papers)
        if not entries:
            self.outbox.settle(mail, "refused")
            return
        try:
            message = digest_mail(self.site, mail, entries)
            refused = await self._hand(message, lambda: self.outbox.renew(mail))
        except _GoneError:
            self.outbox.settle(mail, "later")
            self.report.later += 1
            raise
        except Exception as error:
            # One mail that cannot be made must not keep those behind it, at each round again.
            log.exception("a digest that cannot be made")
            refused = Refusal(False, False, type(error).__name__)
        if refused is None:
            self.outbox.settle(mail, "sent")
            self.report.sent += 1
        elif not refused.forever and mail.at > time.time() - GIVE_UP_S:
            self.outbox.settle(mail, "later")
            self.report.later += 1
        else:
            self.report.refused += 1
            if refused.address:
                self.report.stopped += self.outbox.bounced(mail)
            else:
                self.outbox.settle(mail, "refused")

    async def _hand(
        self, message: EmailMessage, ready: Callable[[], bool] = lambda: True
    ) -> Refusal | None:
        """Hand a mail to the server; a connection that broke costs this mail a delay.

        The next mail gets a new connection, so that a mail at which a server breaks off does
        not keep those behind it; a second break one after the other ends the round.
        """
        try:
            if self.courier is None:
                self.courier = await Courier(self.site.settings).__aenter__()
        except EtudeError as error:
            raise _GoneError(str(error)) from None
        try:
            outcome = await self.courier.deliver(message, ready)
        except EtudeError as error:
            await self._hang_up()
            self.breaks += 1
            if self.breaks == MOST_BREAKS:
                raise _GoneError(str(error)) from None
            return Refusal(False, False, str(error))
        self.breaks = 0
        return outcome

    async def _hang_up(self) -> None:
        if self.courier is not None:
            await self.courier.__aexit__(None, None, None)
            self.courier = None


class _GoneError(Exception):
    """The server cannot be used now; the message says why."""
