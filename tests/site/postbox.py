"""What the tests of mail share: a mail server that keeps what it takes, readers and papers."""

import re
import socket
from datetime import timedelta
from email import message_from_bytes, policy

from aiosmtpd.controller import Controller
from fastapi.testclient import TestClient

from etude.papers.entry import Entry
from etude.site.digest import readers_of, today

HTML = {"Accept": "text/html"}
ADA = "ada@example.org"


class Inbox:
    """A mail server on loopback that keeps what it takes, and answers as it is told.

    `answers` maps an address to what RCPT is answered, or to a list of answers that are used up;
    `data` is what the text is answered, "" = taken; "drop" there breaks the connection off.
    """

    def __init__(self):
        self.mails, self.senders = [], []
        self.answers, self.data, self.sender, self.port = {}, "", "", 0

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


class Server(Controller):
    """A mail server on a port that is taken from the start: nobody comes between."""

    def __init__(self, handler, **how):
        self.listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(handler, "127.0.0.1", self.listener.getsockname()[1], **how)

    def _create_server(self):
        return self.loop.create_server(
            self._factory_invoker, sock=self.listener, ssl=self.ssl_context
        )


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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


def make_client(app, host="192.0.2.1", **headers):
    place = "https://etude.example"
    return TestClient(app, place, client=(host, 1), headers=HTML | headers)


def sign_up(client, inbox, address=ADA, **fields):
    assert client.post("/subscribe", data={"email": address, **fields}).status_code == 202
    link = inbox.link("confirm")
    assert client.post(link).status_code == 200
    return link


def everyone(readers):
    return {r.address: r for how in ("daily", "weekly") for r in readers.confirmed(how)}
