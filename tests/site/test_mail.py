"""Mails: headers that nobody can add to, text and HTML, addresses, and the way to a server."""

import asyncio
import os
import shutil
import ssl
import subprocess
import time
from email import message_from_bytes, policy

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.site import mail as mails
from etude.site.digest import confirm_mail, digest_mail, lead, name_of
from etude.site.mail import Courier, compose, mail_address, wrap
from etude.site.outbox import Mail
from etude.site.readers import Choice, Reader
from etude.site.settings import Settings

READER = Reader(1, "k" * 24, "ada@example.org", "daily", "", "confirmed", "2026-11-01")
HOSTILE = [
    "x\r\nBcc: everyone@example.org", "x\nX-Evil: 1", "x\r\n\r\n<script>alert(1)</script>",
    "x\u2028Bcc: a@b.example", "x\x00y", "\x1b]0;owned\x07", "=?utf-8?q?x=0D=0ABcc:_a?=",
    "é" * 400, "a" * 900, "\u202eevil", "{{ 7777*7777 }}", "<img src=x onerror=alert(1)>",
    " .\r\n.\r\n",
]  # fmt: skip


@pytest.fixture
def site(tmp_path):
    from types import SimpleNamespace

    return SimpleNamespace(settings=Settings(folder=tmp_path, base_url="https://etude.example"))


def entries(*titles, **facts):
    return [
        Entry(title=t, id=f"2611.{i:05}", date="2026-11-24", **facts) for i, t in enumerate(titles)
    ]


def sent(message):
    """The mail as its receiver reads it."""
    return message_from_bytes(message.as_bytes(), policy=policy.default)


def digest(site, papers, query=""):
    from dataclasses import replace

    mail = Mail(replace(READER, query=query), "2026-11-24", (), time.time())
    return digest_mail(site, mail, papers)


def test_every_mail_has_the_headers_of_a_list(site) -> None:
    choice = Choice("n" * 24, "ada@example.org", "weekly", "graphs")
    for message in (digest(site, entries("A")), confirm_mail(site, choice, time.time())):
        read = sent(message)
        assert read["To"] == "ada@example.org"
        assert read["From"] == "etude <etude@localhost>"
        assert read["List-Id"] == "etude digest <digest.etude.example>"
        assert read["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert read["Auto-Submitted"] == "auto-generated"
        assert abs(read["Date"].datetime.timestamp() - time.time()) < 60
        assert read["Message-ID"].endswith("@etude.example>")
        assert [part.get_content_type() for part in read.iter_parts()] == [
            "text/plain",
            "text/html",
        ]


def test_the_unsubscribe_link_is_on_the_wire_as_it_is(site) -> None:
    # The standard library encodes words longer than a line, which no mail program undoes here.
    head = digest(site, entries("A")).as_bytes().partition(b"\r\n\r\n")[0]
    lines = [line for line in head.split(b"\r\n") if line.startswith(b"List-Unsubscribe:")]
    assert len(lines) == 1
    assert lines[0].startswith(b"List-Unsubscribe: <https://etude.example/unsubscribe/")
    assert lines[0].endswith(b">")
    assert max(map(len, head.split(b"\r\n"))) < 998


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_adds_a_header_or_a_tag(site, text) -> None:
    plain = digest(site, entries("A title"))
    for message in (
        digest(site, entries(text, authors=(text,), abstract=text)),
        digest(site, entries("A title"), query=text),
        compose(
            site.settings, to="ada@example.org", subject=text, template="mail_confirm",
            message_id="x", unsubscribe="https://etude.example/u", at=0.0,
            facts={"confirm": "c", "choice": text, "home": "h"},
        ),
    ):  # fmt: skip
        read = sent(message)
        assert read.keys() == plain.keys()
        assert len(read.get_all("To")) == 1
        assert len(read["Subject"].splitlines()) == 1
        assert not read.defects
        html = read.get_body(("html",)).get_content()
        assert "<script" not in html
        assert "<img" not in html
        assert "60481729" not in html
        assert "\x1b" not in html + read.get_body(("plain",)).get_content() + read["Subject"]
        for line in message.as_bytes().split(b"\r\n"):
            assert len(line) < 998
            assert b"\n" not in line
            assert b"\r" not in line


def test_a_second_copy_has_the_same_message_id(site) -> None:
    mail = Mail(READER, "2026-11-24", (), 1000.0)
    one, two = (digest_mail(site, mail, entries("A")) for _ in range(2))
    other = digest_mail(site, Mail(READER, "2026-11-25", (), 1000.0), entries("A"))
    assert one["Message-ID"] == two["Message-ID"] != other["Message-ID"]
    assert one["Date"] == two["Date"]
    assert READER.key not in one["Message-ID"]
    assert name_of("a", "bc") != name_of("ab", "c")


def test_a_mail_says_what_runs_here(site) -> None:
    from etude.papers.catalogue import papers
    from etude.site.facts import verdict_of

    key = next(p.key for p in papers() if verdict_of(p.key) == "holds")
    read = sent(digest(site, entries("A method", slug=key) + entries("Another")))
    assert "[runs here: holds]" in read.get_body(("plain",)).get_content()
    assert read.get_body(("html",)).get_content().count("runs here: holds") == 1
    assert read["Subject"] == "2 papers: A method"


def test_long_days_are_shortened_and_counted(site) -> None:
    read = sent(digest(site, entries(*(f"Paper {i}." for i in range(240)), abstract="Why. " * 99)))
    text = read.get_body(("plain",)).get_content()
    assert text.count("https://etude.example/papers/") == 225
    assert "And 15 more" in text
    assert (
        len(digest(site, entries(*("P" * 90,) * 240, abstract="Why. " * 99)).as_bytes()) < 200_000
    )
    links = [line for line in text.splitlines() if "https://" in line]
    assert max(len(line) for line in text.splitlines() if line not in links) <= 72


def test_text_is_wrapped_and_led() -> None:
    assert all(len(line) <= 72 for line in wrap("word " * 100, "  ").splitlines())
    assert wrap("a\r\nb\x07c") == "a b c"
    assert lead("One. Two. " + "X" * 400) == "One. Two."
    assert lead("y " * 400).endswith(" …")
    assert len(lead("y " * 400)) <= 322
    assert lead("") == ""
    assert lead("It is 3.5 e.g. so. End.") == "It is 3.5 e.g. so. End."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Ada@Example.ORG", "Ada@example.org"), (" a@b.example ", "a@b.example"),
        ("a+tag@b.example", "a+tag@b.example"), ("a@bücher.example", "a@xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_addresses_have_one_form(given, expected) -> None:
    assert mail_address(given) == expected


@pytest.mark.parametrize(
    "given",
    ["", "a", "a@", "@b.example", "a@b", "a b@c.example", "a@b.example\r\nBcc: c@d.example",
     "a@b.example, c@d.example", "Ada <a@b.example>", '"a b"@c.example', "é@b.example",
     "a@[127.0.0.1]", "a@localhost", "a@b..example", "a@b.example\x00", "x" * 65 + "@b.example",
     "a@" + "b" * 250 + ".example", "a@b.example>", "=?utf-8?q?x=0D=0ABcc:_a?=@b.example"],
)  # fmt: skip
def test_what_is_no_address_is_refused(given) -> None:
    with pytest.raises(EtudeError, match="the address must be like"):
        mail_address(given)


def deliver(smtp, message=None, mail_from="digest@etude.example", ready=lambda: True):
    settings = Settings(smtp=smtp, mail_from=mail_from, base_url="https://etude.example")

    async def run():
        async with Courier(settings) as courier:
            return message and await courier.deliver(message, ready)

    return asyncio.run(run())


def test_a_mail_arrives_whole(site, inbox) -> None:
    dots = ".\r\n..two\n. three"
    message = digest(site, entries("Größe \U0001f600", abstract=dots))
    assert deliver(f"smtp://127.0.0.1:{inbox.port}", message) is None
    assert inbox.mails[0]["Subject"] == "Größe \U0001f600"
    assert inbox.senders == ["digest@etude.example"]
    assert ". ..two . three" in inbox.text()


@pytest.mark.parametrize(("answer", "forever"), [("550 no such user", True), ("452 full", False)])
def test_a_refused_address_is_told_apart(site, inbox, answer, forever) -> None:
    inbox.answers["ada@example.org"] = answer
    refusal = deliver(f"smtp://127.0.0.1:{inbox.port}", digest(site, entries("A")))
    assert (refusal.forever, refusal.address) == (forever, True)
    assert answer in refusal.reason


def test_a_mail_that_another_took_is_called_off_before_its_text(site, inbox) -> None:
    server, message = f"smtp://127.0.0.1:{inbox.port}", digest(site, entries("A"))
    refusal = deliver(server, message, ready=lambda: False)
    assert (refusal.forever, refusal.address) == (False, False)
    assert inbox.mails == []


def test_a_server_that_breaks_off_is_no_refusal(site, inbox) -> None:
    inbox.data = "drop"
    with pytest.raises(EtudeError, match=r"smtp://127\.0\.0\.1:\d+ broke off"):
        deliver(f"smtp://127.0.0.1:{inbox.port}", digest(site, entries("A")))


def test_a_refused_text_is_not_the_addresss_fault(site, inbox) -> None:
    inbox.data = "554 no spam please"
    refusal = deliver(f"smtp://127.0.0.1:{inbox.port}", digest(site, entries("A")))
    assert (refusal.forever, refusal.address) == (True, False)


def test_a_server_that_is_away_is_named_in_one_line() -> None:
    with pytest.raises(EtudeError, match=r"smtp://127\.0\.0\.1:9 cannot be reached") as caught:
        deliver("smtp://user:secret%40word@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "smtp", ["", "localhost", "http://a", "smtp://", "smtp://u:geheim@h:99999", "smtp:geheim"]
)
def test_what_is_no_server_is_refused_without_its_password(smtp) -> None:
    with pytest.raises(EtudeError, match="ETUDE_SMTP") as caught:
        Courier(Settings(smtp=smtp))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("sender", ["", "etude", "a@b.example\r\nBcc: c@d.example", "é@b.example"])
def test_what_is_no_sender_is_refused(sender) -> None:
    with pytest.raises(EtudeError, match="ETUDE_MAIL_FROM"):
        Courier(Settings(smtp="smtp://127.0.0.1", mail_from=sender))


def test_a_refused_sender_ends_it(site, inbox) -> None:
    inbox.sender = "553 not yours"
    with pytest.raises(EtudeError, match=r"refuses the sender digest@etude\.example: 553"):
        deliver(f"smtp://127.0.0.1:{inbox.port}", digest(site, entries("A")))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate for a server with TLS")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


class Keeper:
    def __init__(self):
        self.secure = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        self.secure.append(server.transport.get_extra_info("sslcontext") is not None)
        return "250 OK"


def login(server, session, envelope, mechanism, data):
    good = (data.login, data.password) == (b"ada", b"p@ss word")
    return AuthResult(success=good, handled=good)


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_tls_is_used_where_it_is_offered(site, certificate, scheme) -> None:
    from conftest import free_port

    keeper, port = Keeper(), free_port()
    how = {"ssl_context": certificate} if scheme == "smtps" else {"tls_context": certificate}
    controller = Controller(
        keeper, hostname="127.0.0.1", port=port, authenticator=login,
        auth_require_tls=scheme == "smtp", **how,
    )  # fmt: skip
    controller.start()
    try:
        url = f"{scheme}://ada:p%40ss%20word@127.0.0.1:{port}"
        assert deliver(url, digest(site, entries("A"))) is None
        with pytest.raises(EtudeError, match="refuses the user or the password") as caught:
            deliver(url.replace("word", "wrong"), digest(site, entries("A")))
        assert "p@ss" not in str(caught.value)
    finally:
        controller.stop()
    assert keeper.secure == [True]


def test_a_password_crosses_no_open_network(inbox, monkeypatch) -> None:
    monkeypatch.setattr(mails, "_is_here", lambda host: False)
    with pytest.raises(EtudeError, match="offers no TLS: the password is not sent"):
        deliver(f"smtp://ada:secret@127.0.0.1:{inbox.port}")


SMTPD = "/usr/sbin/smtpd"


@pytest.mark.skipif(
    not os.access(SMTPD, os.X_OK) or os.geteuid() != 0, reason="needs OpenSMTPD and root"
)
def test_a_mail_goes_through_a_real_mail_server(site, inbox, tmp_path) -> None:
    from conftest import free_port

    port, conf = free_port(), tmp_path / "smtpd.conf"
    conf.write_text(
        f"listen on 127.0.0.1 port {port}\n"
        f'action "on" relay host "smtp://127.0.0.1:{inbox.port}"\n'
        'match from any for domain "example.org" action "on"\n'
    )
    conf.chmod(0o644)
    server = subprocess.Popen(
        [SMTPD, "-d", "-f", str(conf)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        message, end = digest(site, entries("Through a server")), time.monotonic() + 20
        while True:
            try:
                assert deliver(f"smtp://127.0.0.1:{port}", message) is None
                break
            except EtudeError:
                if server.poll() is not None:
                    pytest.skip(f"smtpd does not start here: {server.stdout.read()[-200:]!r}")
                assert time.monotonic() < end
                time.sleep(0.2)
        elsewhere = confirm_mail(site, Choice("n", "a@elsewhere.example", "daily", ""), 0.0)
        refusal = deliver(f"smtp://127.0.0.1:{port}", elsewhere)
        assert (refusal.forever, refusal.address) == (True, True)
        while not inbox.mails and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(10)
    assert inbox.mails[0]["Subject"] == "Through a server"
    assert inbox.mails[0]["Message-ID"] == message["Message-ID"]
    assert inbox.mails[0]["List-Unsubscribe"] == message["List-Unsubscribe"]
