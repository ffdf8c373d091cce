"""Shared set-up of the site's tests: an empty database of one's own, SQLite or PostgreSQL."""

import os
import re
import socket
import uuid
from email import message_from_bytes, policy

import pytest
from aiosmtpd.controller import Controller

SERVER = os.environ.get("ETUDE_TEST_POSTGRES", "")


@pytest.fixture(autouse=True)
def own_papers(tmp_path, monkeypatch):
    """Every test has papers of its own, never the user's, and no mail server from outside."""
    monkeypatch.setenv("ETUDE_PAPERS", str(tmp_path / "papers.sqlite"))
    for name in ("ETUDE_SMTP", "ETUDE_MAIL_FROM", "ETUDE_SECRET", "ETUDE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request, tmp_path):
    """An empty database's URL; on PostgreSQL a schema that is dropped afterwards."""
    if request.param == "sqlite":
        yield str(tmp_path / "papers.sqlite")
        return
    if not SERVER:
        pytest.skip("ETUDE_TEST_POSTGRES names no PostgreSQL server")
    import psycopg

    schema = f"t{uuid.uuid4().hex}"
    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        mark = "&" if "?" in SERVER else "?"
        yield f"{SERVER}{mark}options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


class Inbox:
    """A mail server on loopback that keeps what it takes, and answers as it is told.

    `answers` maps an address to what RCPT is answered, or to a list of answers that are used up;
    `data` is what the text is answered, "" = taken; "drop" there breaks the connection off.
    """

    def __init__(self):
        self.mails, self.senders = [], []
        self.answers, self.data, self.sender = {}, "", ""
        self.port = free_port()

    async def handle_MAIL(self, server, session, envelope, address, options):  # noqa: N802
        if self.sender:
            return self.sender
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        answer = self.answers.get(address, "")
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else ""
        if answer:
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        if self.data == "drop":
            server.transport.abort()
            return "421 gone"
        if self.data:
            return self.data
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert [mail["To"]] == envelope.rcpt_tos
        self.senders.append(envelope.mail_from)
        self.mails.append(mail)
        return "250 OK"

    @property
    def to(self):
        return sorted(str(mail["To"]) for mail in self.mails)

    def text(self, number=-1):
        return self.mails[number].get_body(("plain",)).get_content()

    def link(self, word, number=-1):
        """The path of the last mail's link that holds this word."""
        found = re.search(rf"https://etude\.example(/{word}/\S+)", self.text(number))
        return found[1]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def inbox():
    """A running mail server."""
    made = Inbox()
    controller = Controller(made, hostname="127.0.0.1", port=made.port)
    controller.start()
    yield made
    controller.stop()


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
