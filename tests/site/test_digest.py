"""The digest: who gets which papers, once; bounces, outages, crashes, several senders at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta

import pytest
import time_machine
from click.testing import CliRunner

from etude.cli import cli
from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.site import sending
from etude.site.digest import issue_of, readers_of, today, words_of
from etude.site.readers import bare
from etude.site.scheduler import Scheduler, mailing
from etude.site.sending import dry_run, send

DAY = 86_400
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


def subscribe(site, address, frequency="daily", query="", back=1):
    readers = readers_of(site)
    nonce = readers.ask(address, frequency, query, "net")
    since = (today() - timedelta(back)).isoformat()
    reader = readers.confirm(nonce, {"daily": since, "weekly": since})
    return reader


def publish(site, *titles, back=0, **facts):
    day = (today() - timedelta(back)).isoformat()
    site.store.add([Entry(title=title, date=day, **facts) for title in titles])


def crowd(site, n):
    return [subscribe(site, f"reader{i:02}@example.org").address for i in range(n)]


def test_a_paper_is_sent_to_a_reader_once(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "First paper", "Second paper")
    subscribe(site, "ada@example.org")
    assert send(site).sent == 1
    assert "First paper" in inbox.text()
    assert "Second paper" in inbox.text()
    publish(site, "Third paper")
    assert send(site).sent == 0  # this day's issue is out
    with time_machine.travel(time.time() + DAY):
        assert send(site).sent == 1
        assert "Third paper" in inbox.text()
        assert "First paper" not in inbox.text()
        assert send(site).sent == 0
    with time_machine.travel(time.time() + 2 * DAY):
        assert send(site).sent == 0
    assert inbox.to == ["ada@example.org"] * 2


def test_no_papers_no_mail_and_no_connection(mailing_site, inbox) -> None:
    subscribe(mailing_site, "ada@example.org")
    inbox.sender = "550 nobody should ask"
    assert send(mailing_site) == sending.Report()
    assert inbox.mails == []


def test_only_those_who_confirmed_get_mail(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    readers = readers_of(site)
    readers.ask("pending@example.org", "daily", "", "net")
    gone = subscribe(site, "gone@example.org")
    readers.unsubscribe(gone.key)
    subscribe(site, "ada@example.org")
    report = send(site)
    assert (report.sent, report.confirmations) == (1, 1)
    assert [m["To"] for m in inbox.mails if "Confirm" not in m["Subject"]] == ["ada@example.org"]


def test_papers_of_before_are_not_sent_and_late_ones_are(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "Long before", back=2)
    publish(site, "The day before", back=1)
    publish(site, "Another year", back=400)
    subscribe(site, "ada@example.org")
    send(site)
    assert "The day before" in inbox.text()
    assert "Long before" not in inbox.text()
    with time_machine.travel(time.time() + 2 * DAY):
        publish(site, "Imported late", back=2)
        publish(site, "Imported too late", back=4)
        send(site)
    assert "Imported late" in inbox.text()
    assert "too late" not in inbox.text()


def test_weekly_readers_get_one_mail_a_week(mailing_site, inbox) -> None:
    site = mailing_site
    monday = date(2026, 11, 23)
    with time_machine.travel(f"{monday}T08:00:00Z", tick=False) as clock:
        subscribe(site, "ada@example.org", "weekly", back=7)
        for back in (0, 3, 6, 9):
            publish(site, f"Paper of {back} days ago", back=back)
        assert send(site, "daily").sent == 0
        assert send(site, "weekly").sent == 1
        text = inbox.text()
        assert all(f"Paper of {back} days ago" in text for back in (0, 3, 6))
        assert "Paper of 9" not in text
        for day in range(1, 7):
            clock.shift(DAY)
            publish(site, f"Day {day} of the week")
            assert send(site).sent == 0
        clock.shift(DAY)
        assert send(site).sent == 1
    assert all(f"Day {day} of" in inbox.text() for day in range(1, 7))
    assert "days ago" not in inbox.text()


def test_issues_are_named_by_day_and_iso_week() -> None:
    assert issue_of("daily", date(2026, 11, 24)) == "2026-11-24"
    assert issue_of("weekly", date(2027, 1, 3)) == "2026-W53"
    assert issue_of("weekly", date(2024, 12, 30)) == "2025-W01"
    assert words_of("weekly", "a b") == "new papers that answer “a b”, every week"


def test_a_saved_search_brings_what_answers_it(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "Graph embeddings at scale", "Protein folding with diffusion",
            "A survey of graph embeddings")  # fmt: skip
    subscribe(site, "ada@example.org", query="graph embeddings")
    subscribe(site, "bob@example.org", query="graph embeddings -survey")
    subscribe(site, "eve@example.org", query="quantum gravity")
    assert send(site).sent == 2
    by_reader = {str(m["To"]): m.get_body(("plain",)).get_content() for m in inbox.mails}
    assert set(by_reader) == {"ada@example.org", "bob@example.org"}
    assert "at scale" in by_reader["ada@example.org"]
    assert "survey of" in by_reader["ada@example.org"]
    assert "survey of" not in by_reader["bob@example.org"]
    assert not any("Protein" in text for text in by_reader.values())


def test_a_changed_choice_sends_no_paper_again(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    reader = subscribe(site, "ada@example.org")
    send(site)
    readers_of(site).change(reader.key, "weekly", "")
    assert send(site).sent == 0
    publish(site, "B paper")
    assert send(site).sent == 1
    assert "A paper" not in inbox.text()


def test_an_address_that_bounces_is_stopped(mailing_site, inbox) -> None:
    site = mailing_site
    reader = subscribe(site, "ada@example.org")
    inbox.answers["ada@example.org"] = "550 no such user"
    for day in range(4):
        with time_machine.travel(time.time() + day * DAY):
            publish(site, f"Paper {day}")
            report = send(site)
        assert report.refused == (day < 3)
        assert report.stopped == (day == 2)
    assert readers_of(site).get(reader.key).state == "stopped"
    inbox.answers.clear()
    subscribe(site, "ada@example.org")
    assert readers_of(site).get(reader.key).state == "confirmed"


def test_a_mail_that_arrives_ends_the_count_of_bounces(mailing_site, inbox) -> None:
    site = mailing_site
    reader = subscribe(site, "ada@example.org")
    inbox.answers["ada@example.org"] = ["550 no", "550 no", "", "550 no", "550 no"]
    for day in range(5):
        with time_machine.travel(time.time() + day * DAY):
            publish(site, f"Paper {day}")
            send(site)
    assert readers_of(site).get(reader.key).state == "confirmed"


def test_a_mail_that_is_put_off_is_sent_at_the_next_call(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    crowd(site, 3)
    inbox.answers["reader01@example.org"] = ["452 full"]
    report = send(site)
    assert (report.sent, report.later, report.refused) == (2, 1, 0)
    assert send(site).sent == 1
    assert send(site).sent == 0
    assert Counter(inbox.to) == {f"reader0{i}@example.org": 1 for i in range(3)}


def test_a_mail_that_is_put_off_for_days_is_given_up(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    subscribe(site, "ada@example.org")
    inbox.answers["ada@example.org"] = "452 full"
    assert send(site).later == 1
    with time_machine.travel(time.time() + 6 * DAY):
        assert send(site).refused == 1
        assert send(site) == sending.Report()


def test_a_refused_text_counts_against_no_address(mailing_site, inbox) -> None:
    site = mailing_site
    reader = subscribe(site, "ada@example.org")
    inbox.data = "554 looks like spam"
    for day in range(4):
        with time_machine.travel(time.time() + day * DAY):
            publish(site, f"Paper {day}")
            assert send(site).refused == 1
    assert readers_of(site).get(reader.key).state == "confirmed"


def test_an_outage_loses_nothing(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    everyone = crowd(site, 4)
    away = replace(site, settings=replace(site.settings, smtp="smtp://u:secret@127.0.0.1:9"))
    report = send(away)
    assert (report.sent, report.later) == (0, 1)
    assert "smtp://127.0.0.1:9 cannot be reached" in report.problem
    assert "secret" not in report.problem
    inbox.data = "drop"
    assert "broke off" in send(site).problem
    inbox.data = ""
    assert send(site).sent == 4
    assert inbox.to == everyone


def test_one_mail_at_which_the_server_breaks_off_keeps_no_other(mailing_site, inbox) -> None:
    site = mailing_site
    publish(site, "A paper")
    everyone = crowd(site, 4)
    real = type(inbox).handle_DATA

    async def breaks(server, session, envelope):
        if envelope.rcpt_tos == ["reader00@example.org"]:
            server.transport.abort()
            return "421 gone"
        return await real(inbox, server, session, envelope)

    inbox.handle_DATA = breaks
    for _ in range(2):
        report = send(site)
        assert report.later == 1
        assert report.problem == ""
    assert inbox.to == everyone[1:]


def test_a_dry_run_writes_files_and_marks_nothing(mailing_site, inbox, tmp_path) -> None:
    site = mailing_site
    publish(site, "A paper")
    crowd(site, 3)
    for _ in range(2):
        assert dry_run(site, tmp_path / "mails") == 3
    files = list((tmp_path / "mails").glob("*.eml"))
    assert len(files) == 3
    assert b"List-Unsubscribe: <https://etude.example/" in files[0].read_bytes()
    assert inbox.mails == []
    assert send(site).sent == 3
    assert dry_run(site, tmp_path / "none") == 0


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


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_killed_between_two_mails_each_reader_gets_exactly_one(mailing_site, inbox, step) -> None:
    """The server holds the sixth mail at a step before it has the text; there the sender dies."""
    site = mailing_site
    publish(site, "A paper", "Another paper")
    everyone = crowd(site, 12)
    real, held = getattr(inbox, f"handle_{step}"), []

    async def hold(*facts):
        import asyncio

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
        import asyncio

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
    from etude.site.outbox import Outbox

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


def run(site, *words):
    where = ["--database", site.settings.database, "--folder", str(site.settings.folder)]
    base = ["--base-url", "https://etude.example"]
    return CliRunner().invoke(cli, ["digest", "send", *where, *base, *words])


def test_the_command_sends_and_says_so(mailing_site, inbox, monkeypatch, tmp_path) -> None:
    site = mailing_site
    publish(site, "A paper")
    crowd(site, 2)
    result = run(site)
    assert result.exit_code == 2
    assert "ETUDE_SMTP" in result.output
    result = run(site, "--dry-run", str(tmp_path / "mails"), "--json")
    assert json.loads(result.output) == {"written": 2, "folder": str(tmp_path / "mails")}
    monkeypatch.setenv("ETUDE_SMTP", "smtp://127.0.0.1:9")
    result = run(site)
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert "the next call sends the rest" in result.stderr
    monkeypatch.setenv("ETUDE_SMTP", site.settings.smtp)
    assert run(site, "--frequency", "weekly").stdout == "0 mails sent\n"
    result = run(site, "--json")
    assert json.loads(result.stdout)["sent"] == 2
    assert run(site).stdout == "0 mails sent\n"
    assert run(site, "--base-url", "example.org").exit_code == 2
    assert len(inbox.mails) == 2


def test_a_folder_that_cannot_be_written_is_named(mailing_site, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    publish(mailing_site, "A paper")
    subscribe(mailing_site, "ada@example.org")
    with pytest.raises(EtudeError, match="file: mails cannot be written"):
        dry_run(mailing_site, tmp_path / "file")


def test_the_scheduler_sends_in_turns(mailing_site, inbox, capsys) -> None:
    site = mailing_site
    publish(site, "A paper")
    crowd(site, 2)
    with time_machine.travel(f"{today()}T12:00:00Z", tick=False) as clock:
        one, two = Scheduler(site), Scheduler(site)
        one.look()
        assert len(inbox.mails) == 2
        late = subscribe(site, "late@example.org")
        two.look()
        assert len(inbox.mails) == 2  # it was not its turn
        clock.shift(901)
        two.look()
        assert inbox.to == sorted([late.address, "reader00@example.org", "reader01@example.org"])
    away = replace(site, settings=replace(site.settings, smtp="smtp://127.0.0.1:9"))
    readers_of(away).ask("ada@example.org", "daily", "", "net")
    broken = Scheduler(away)
    broken.look()
    broken.look()
    assert capsys.readouterr().err.count("cannot be reached") == 1


def test_the_scheduler_waits_for_its_hour(mailing_site, inbox, monkeypatch) -> None:
    publish(mailing_site, "A paper")
    subscribe(mailing_site, "ada@example.org")
    with time_machine.travel(f"{today()}T05:59:00Z", tick=False):
        Scheduler(mailing_site).look()
        assert inbox.mails == []
        monkeypatch.setenv("ETUDE_DIGEST_HOUR", "5")
        Scheduler(mailing_site).look()
        assert len(inbox.mails) == 1
    monkeypatch.setenv("ETUDE_DIGEST_HOUR", "24")
    with pytest.raises(EtudeError, match="an hour from 0 to 23"):
        Scheduler(mailing_site)


def test_the_scheduler_runs_beside_the_site(mailing_site, inbox, monkeypatch) -> None:
    monkeypatch.setattr("etude.site.scheduler.STEP_S", 0.05)
    monkeypatch.setattr(Scheduler.__init__, "__defaults__", (0.05,))
    monkeypatch.setenv("ETUDE_DIGEST_HOUR", "0")
    publish(mailing_site, "A paper")
    subscribe(mailing_site, "ada@example.org")
    with mailing(mailing_site) as scheduler:
        end = time.monotonic() + 20
        while not inbox.mails and time.monotonic() < end:
            time.sleep(0.02)
    assert not scheduler._thread.is_alive()
    assert inbox.to == ["ada@example.org"]
    silent = replace(mailing_site, settings=replace(mailing_site.settings, smtp=""))
    with mailing(silent) as nothing:
        assert nothing is None


def test_mailboxes_behind_addresses() -> None:
    assert bare("Ada+one@Example.org") == bare("ada@example.org") == "ada@example.org"
    assert bare("+x@example.org") == "+x@example.org"
