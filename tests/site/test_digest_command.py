"""``etude digest send``, and the scheduler that does the same beside the site."""

import json
import time
from dataclasses import replace

import pytest
import time_machine
from click.testing import CliRunner
from postbox import crowd, publish, subscribe

from etude.cli import cli
from etude.core import EtudeError
from etude.site.digest import readers_of, today
from etude.site.scheduler import Scheduler, mailing
from etude.site.sending import dry_run


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
