"""Shared set-up of the site's tests: papers of one's own, a mail server, a whole app."""

import pytest
from postbox import Inbox, Server, make_client
from trying import settings_in

from etude.lab.database import Database


@pytest.fixture(autouse=True)
def own_papers(tmp_path, monkeypatch):
    """Every test has papers of its own, never the user's, and no mail server from outside."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ETUDE_PAPERS", str(tmp_path / "papers.sqlite"))
    for name in ("ETUDE_SMTP", "ETUDE_MAIL_FROM", "ETUDE_SECRET", "ETUDE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def closed_databases(monkeypatch):
    """What a test opened is closed after it: hundreds of sites would use up the open files."""
    opened, start = [], Database.__init__

    def remember(self, *args, **options):
        start(self, *args, **options)
        opened.append(self)

    monkeypatch.setattr(Database, "__init__", remember)
    yield
    for one in opened:
        one.close()


@pytest.fixture
def settings(tmp_path):
    """Of a site that lets readers try methods."""
    return settings_in(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Files are looked at, but no trial runs: the thread finds nothing to do."""
    from etude.site.jobs import Jobs

    monkeypatch.setattr(Jobs, "idle", lambda self: True)


@pytest.fixture
def inbox():
    """A running mail server."""
    made = Inbox()
    server = Server(made)
    made.port = server.port
    server.start()
    yield made
    server.stop()


@pytest.fixture
def mailing_site(database, tmp_path, inbox):
    """A site with mail, on SQLite and on PostgreSQL."""
    from etude.site.digest import readers_of
    from etude.site.settings import Settings
    from etude.site.state import open_site

    settings = Settings(
        database=database, folder=tmp_path / "site", base_url="https://etude.example",
        smtp=f"smtp://127.0.0.1:{inbox.port}", mail_from="digest@etude.example",
    )  # fmt: skip
    made = open_site(settings)
    yield made
    readers_of(made).close()
    made.store.close()


@pytest.fixture
def app(database, tmp_path, inbox):
    """The whole app with mail, on SQLite and on PostgreSQL."""
    from etude.site.app import make_app
    from etude.site.digest import readers_of
    from etude.site.settings import Settings

    settings = Settings(
        database=database, folder=tmp_path / "site", base_url="https://etude.example",
        smtp=f"smtp://127.0.0.1:{inbox.port}", mail_from="digest@etude.example",
        ledger=str(tmp_path / "ledger.sqlite"),
    )  # fmt: skip
    made = make_app(settings)
    yield made
    readers_of(made.state.site).close()
    made.state.site.store.close()


@pytest.fixture
def client(app):
    """A browser without a past."""
    return make_client(app)


@pytest.fixture
def readers(app):
    """The app's readers."""
    from etude.site.digest import readers_of

    return readers_of(app.state.site)
