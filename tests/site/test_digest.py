"""The digest: who gets which papers, once; bounces, outages, the command, the scheduler."""

import time
from collections import Counter
from dataclasses import replace
from datetime import date

import time_machine
from postbox import crowd, publish, subscribe

from etude.site import sending
from etude.site.digest import issue_of, readers_of, words_of
from etude.site.readers import bare
from etude.site.sending import dry_run, send

DAY = 86_400


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


def test_mailboxes_behind_addresses() -> None:
    assert bare("Ada+one@Example.org") == bare("ada@example.org") == "ada@example.org"
    assert bare("+x@example.org") == "+x@example.org"
