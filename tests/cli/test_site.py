"""``etude site``: what it refuses and warns of; serving itself is in tests/site."""

import pytest
from click.testing import CliRunner

from etude.cli import cli
from etude.papers.place import index_folder
from etude.papers.store import Store
from etude.site.settings import Settings
from etude.site.state import open_site


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ETUDE_PAPERS", str(tmp_path / "papers.sqlite"))
    for name in ("ETUDE_TOKEN", "ETUDE_SECRET", "ETUDE_SMTP"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def served(monkeypatch):
    """What ``serve`` is called with, instead of serving."""
    calls = []
    monkeypatch.setattr("etude.site.running.serve", lambda *given: calls.append(given))
    return calls


def run(*words):
    return CliRunner().invoke(cli, ["site", "--no-open", "--port", "0", *words])


def test_trials_beyond_loopback_need_a_token(served, monkeypatch):
    result = run("--host", "0.0.0.0", "--allow-trials")
    assert result.exit_code == 2
    assert "ETUDE_TOKEN" in result.stderr
    assert served == []
    monkeypatch.setenv("ETUDE_TOKEN", "a long token that nobody guesses")
    assert run("--host", "0.0.0.0", "--allow-trials").exit_code == 0
    assert served[0][0].allow_trials


def test_beyond_loopback_it_warns(served):
    result = run("--host", "0.0.0.0")
    assert result.exit_code == 0
    assert "warning" in result.stderr
    assert "warning" not in run().stderr


@pytest.mark.parametrize("address", ["ftp://papers.example.org", "papers.example.org", "http://"])
def test_an_address_of_readers_that_is_none_is_refused(served, address):
    result = run("--base-url", address)
    assert result.exit_code == 2
    assert "--base-url must be an address such as" in result.stderr


def test_the_address_of_readers_is_where_it_listens_unless_told(served):
    run()
    run("--base-url", "https://papers.example.org/")
    assert served[0][0].base_url.startswith("http://127.0.0.1:")
    assert served[1][0].base_url == "https://papers.example.org"


def test_a_port_that_is_taken_is_told(served):
    from etude.site.running import listen

    taken = listen("127.0.0.1", 0)
    port = taken.address.rpartition(":")[2]
    result = CliRunner().invoke(cli, ["site", "--no-open", "--port", port])
    assert result.exit_code == 2
    assert port in result.stderr


def test_site_and_commands_share_one_index(home):
    site = open_site(Settings(folder=home / "site"))
    assert site.finder.folder == index_folder(Store())
    assert site.finder.folder == home / "papers.sqlite.index"
