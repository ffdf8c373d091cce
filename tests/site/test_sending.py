"""Sending under trouble: several senders at once, kill -9 at every step, a lease that was lost."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import time_machine
from postbox import crowd, publish, subscribe

from etude.site import sending
from etude.site.digest import issue_of, readers_of, today
from etude.site.outbox import Outbox
from etude.site.sending import send

LEASE_S = 2.0  # as the sender below has it
SENDER = """
import sys
from pathlib import Path
from etude.site.sending import send
from etude.site.settings import Settings
from etude.site.state import open_site
database, folder, smtp = sys.argv[1:4]
settings = Settings(
    database=database, folder=Path(folder), smtp=smtp, base_url="https://etude.example",
    mail_from="digest@etude.example",
)
print(send(open_site(settings), lease=2.0), flush=True)
"""


def test_senders_at_once_send_each_mail_once(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    everyone = crowd(site, 20)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: send(site), range(4)))
    assert sum(report.sent for report in reports) == 20
    assert inbox.to == everyone


def start_sender(site, inbox):
    arguments = [site.settings.database, str(site.settings.folder), site.settings.smtp]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SENDER, *arguments], env=environment)


def kill_when(process, ready):
    """kill -9 as soon as something is so."""
    end = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, "the sender ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    time.sleep(LEASE_S + 0.1)  # until then nobody else may send the mail that it held


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_killed_between_two_mails_each_reader_gets_exactly_one(mailing_site, inbox, step) -> None:
    """The server holds the sixth mail at a step before it has the text; there the sender dies."""
    site = mailing_site
    publish(site, "A paper", "Another paper")
    everyone = crowd(site, 12)
    real, held = getattr(inbox, f"handle_{step}"), []

    async def hold(*facts):
        if len(inbox.mails) >= 5 and not held:
            held.append(step)
            # For DATA this is after the text came: the server never takes it, nor answers.
            await asyncio.sleep(3600)
        return await real(*facts)

    setattr(inbox, f"handle_{step}", hold)
    kill_when(start_sender(site, inbox), lambda: held)
    assert len(inbox.mails) == 5
    assert start_sender(site, inbox).wait(60) == 0
    assert inbox.to == everyone
    assert send(site).sent == 0


def test_killed_again_and_again_nobody_gets_none_and_copies_are_known(mailing_site, inbox) -> None:
    """kill -9 at any moment: all get it; a copy, if there is one, has the same Message-ID."""
    site = mailing_site
    publish(site, "A paper")
    everyone = crowd(site, 16)
    kills = 0
    for goal in (3, 7, 11):
        process = start_sender(site, inbox)
        kill_when(process, lambda goal=goal: len(inbox.mails) >= goal)
        kills += 1
    assert start_sender(site, inbox).wait(60) == 0
    assert sorted(set(inbox.to)) == everyone
    copies = len(inbox.mails) - len(everyone)
    assert copies <= kills
    assert len({mail["Message-ID"] for mail in inbox.mails}) == len(everyone)


def test_killed_after_the_server_took_it_the_copy_is_the_same(mailing_site, inbox) -> None:
    """The one case that cannot be known: the server has the mail, its answer never came."""
    site = mailing_site
    publish(site, "A paper")
    subscribe(site, "ada@example.org")
    real = inbox.handle_DATA

    async def silent(*facts):
        await real(*facts)
        await asyncio.sleep(3600)

    inbox.handle_DATA = silent
    kill_when(start_sender(site, inbox), lambda: inbox.mails)
    inbox.handle_DATA = real
    assert start_sender(site, inbox).wait(60) == 0
    one, two = inbox.mails
    assert one["Message-ID"] == two["Message-ID"]
    assert one["Date"] == two["Date"]
    assert send(site).sent == 0


def test_a_sender_that_lost_its_mail_lets_go(mailing_site, inbox) -> None:
    """Slower than its lease: another took the mail, so the first must not send the text."""
    site = mailing_site
    publish(site, "A paper")
    reader = subscribe(site, "ada@example.org")
    database = readers_of(site).database
    slow, quick = Outbox(database, "slow", 0.0), Outbox(database, "quick", 60.0)
    ids = [entry.id for entry in site.store.of(reader.since, today().isoformat())]
    mail = slow.take(reader, issue_of("daily", today()), ids)
    assert quick.take(reader, mail.issue, ids) is None
    assert quick.take_open(None, time.time()) == mail
    assert not slow.renew(mail)
    slow.settle(mail, "sent")
    assert quick.renew(mail)
    assert quick.held("daily") > 50
    quick.settle(mail, "sent")
    assert quick.held(None) == 0
    assert quick.unsent(reader, [*ids, "new"]) == ["new"]
    assert slow.take(reader, "2000-01-01", ids) is None  # every paper is in a mail already
    assert not slow.has(reader, "2000-01-01")


def test_who_ends_it_while_a_round_goes_on_gets_no_more(mailing_site, inbox) -> None:
    """Also the one whose mail is in hand, of which only the text is missing."""
    site, readers = mailing_site, readers_of(mailing_site)
    publish(site, "A paper")
    keys = [subscribe(site, f"reader{i}@example.org").key for i in range(4)]
    real, once = inbox.handle_RCPT, []

    async def leave(*facts):
        if not once:
            once.append(facts)
            for key in (keys[0], keys[2]):
                readers.unsubscribe(key)
        return await real(*facts)

    inbox.handle_RCPT = leave
    assert send(site).sent == 2
    assert inbox.to == ["reader1@example.org", "reader3@example.org"]
    outbox = Outbox(readers.database, "x", 60.0)
    subscribe(site, "reader0@example.org")
    assert list(outbox.open_mails(None)) == []  # what was called off does not come later


def test_a_mail_that_cannot_be_made_keeps_no_other(mailing_site, inbox, monkeypatch) -> None:
    site = mailing_site
    publish(site, "A paper")
    everyone = crowd(site, 3)
    real, real_ask = sending.digest_mail, sending.confirm_mail
    readers_of(site).ask("odd@example.org", "daily", "", "net")
    readers_of(site).ask("even@example.org", "daily", "", "net")

    def broken(site, mail, entries):
        if mail.reader.address == everyone[0]:
            raise ValueError("an odd header")
        return real(site, mail, entries)

    def broken_ask(site, choice, at):
        if choice.address == "odd@example.org":
            raise ValueError("an odd header")
        return real_ask(site, choice, at)

    monkeypatch.setattr(sending, "digest_mail", broken)
    monkeypatch.setattr(sending, "confirm_mail", broken_ask)
    report = send(site)
    assert (report.confirmations, report.sent, report.later, report.problem) == (1, 2, 1, "")
    assert inbox.to == ["even@example.org", *everyone[1:]]
    with time_machine.travel(time.time() + 6 * 86_400):
        assert send(site).refused == 1  # given up, as one that a server puts off
    assert send(site) == sending.Report()


def test_a_search_that_can_no_longer_be_read_keeps_no_other(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    odd = subscribe(site, "odd@example.org")
    readers_of(site).change(odd.key, "daily", "-only -minus")
    subscribe(site, "ada@example.org")
    assert send(site).sent == 1
    assert inbox.to == ["ada@example.org"]
