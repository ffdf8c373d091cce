"""The way to a mail server: refusals, TLS, passwords, and a real server."""

import asyncio
import os
import shutil
import ssl
import subprocess
import time
from types import SimpleNamespace

import pytest
from aiosmtpd.smtp import AuthResult
from postbox import Server, free_port

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.site import mail as mails
from etude.site.digest import confirm_mail, digest_mail
from etude.site.mail import Courier
from etude.site.outbox import Mail
from etude.site.readers import Choice, Reader
from etude.site.settings import Settings

READER = Reader(1, "k" * 24, "ada@example.org", "daily", "", "confirmed", "2026-11-01")


@pytest.fixture
def site(tmp_path):
    return SimpleNamespace(settings=Settings(folder=tmp_path, base_url="https://etude.example"))


def entries(title, abstract=""):
    return [Entry(title=title, id="2611.00001", date="2026-11-24", abstract=abstract)]


def digest(site, papers):
    return digest_mail(site, Mail(READER, "2026-11-24", (), time.time()), papers)


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
    keeper = Keeper()
    how = {"ssl_context": certificate} if scheme == "smtps" else {"tls_context": certificate}
    controller = Server(keeper, authenticator=login, auth_require_tls=scheme == "smtp", **how)
    controller.start()
    try:
        url = f"{scheme}://ada:p%40ss%20word@127.0.0.1:{controller.port}"
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
