"""Mails: composed with text, HTML and the headers of a list, and handed to a server.

``Courier`` keeps one connection for many mails. TLS is used from the start for ``smtps://``, and
by STARTTLS where the server offers it; a password goes over an encrypted connection or to this
machine only. No message of an error holds the password.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from functools import cache
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import aiosmtplib
from email_validator import EmailNotValidError, validate_email
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from etude.core import EtudeError, refuse
from etude.site.settings import Settings
from etude.site.state import HERE

__all__ = ["Courier", "Refusal", "compose", "mail_address"]

LINK = "List-Unsubscribe"
WIDTH = 72  # characters of a line of text
TIMEOUT_S = 30.0  # of one command; a lease of a mail must last longer than three of them


class _Policy(EmailPolicy):
    """As ``email.policy.SMTP``, but a long link of a header is neither folded nor encoded.

    Encoded words (=?utf-8?q?…) are what the standard library writes for a word that is longer
    than a line, and what mailboxes do not read in List-Unsubscribe.
    """

    def fold(self, name: str, value: str) -> str:
        return f"{name}: {value}\r\n" if name == LINK else super().fold(name, value)

    def fold_binary(self, name: str, value: str) -> bytes:
        is_link = name == LINK
        return self.fold(name, value).encode() if is_link else super().fold_binary(name, value)


POLICY = _Policy(linesep="\r\n", cte_type="7bit")


def mail_address(given: str) -> str:
    """The address in its normal form: ASCII, with a domain name in lower case.

    Raises:
        EtudeError: it is none.
    """
    try:
        found = validate_email(
            given.strip(), check_deliverability=False, allow_smtputf8=False, strict=True
        )
    except EmailNotValidError as error:
        said = " ".join(str(error).split())
        raise EtudeError(f"the address must be like ada@example.org: {said}") from None
    address = str(found.ascii_email or found.normalized)
    if address != plain(address):
        raise EtudeError("the address must be like ada@example.org, without '=?'")
    return address


def plain(text: str) -> str:
    """Text on one line without control characters, as headers and lines of text need it.

    The beginning of an encoded word is parted: =?utf-8?q?=0D=0ABcc:…?= in a title would be read
    by the standard library as what it stands for, a new line and another header.
    """
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.replace("=?", "= ?").split())


def wrap(text: str, indent: str = "") -> str:
    """Text in lines of at most 72 characters; a longer word, such as a link, stays whole."""
    return textwrap.fill(
        plain(text), WIDTH, initial_indent=indent, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]), trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"wrap": wrap, "plain": plain}
    return made


def host_of(settings: Settings) -> str:
    """The site's host, for Message-ID and List-Id."""
    return urlsplit(settings.base_url).hostname or "localhost"


def compose(
    settings: Settings, *, to: str, subject: str, template: str, message_id: str,
    unsubscribe: str, at: float, facts: dict[str, Any],
) -> EmailMessage:  # fmt: skip
    """A mail from ``templates/<template>.txt`` and ``.html``.

    Args:
        settings: base_url and mail_from are used.
        to: an address of ``mail_address``.
        subject: any text; what could begin another header is taken out.
        template: such as "mail_digest".
        message_id: what stands before the @.
        unsubscribe: the link that a POST to ends the mails (RFC 8058).
        at: seconds since 1970, for Date.
        facts: of the template, beside `settings` and `unsubscribe`.
    """
    host = host_of(settings)
    mail = EmailMessage(policy=POLICY)
    mail["From"] = Address("etude", addr_spec=settings.mail_from)
    mail["To"] = Address(addr_spec=to)
    mail["Subject"] = plain(subject)
    mail["Date"] = format_datetime(datetime.fromtimestamp(int(at), UTC))
    mail["Message-ID"] = f"<{message_id}@{host}>"
    mail["List-Id"] = f"etude digest <digest.{host}>"
    mail[LINK] = f"<{unsubscribe}>"
    mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    known = {"settings": settings, "unsubscribe": unsubscribe, "subject": plain(subject)}
    text = _templates().get_template(f"{template}.txt").render(**known, **facts)
    page = _templates().get_template(f"{template}.html").render(**known, **facts)
    mail.set_content(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    mail.add_alternative(page, subtype="html")
    return mail


@dataclass(frozen=True)
class Refusal:
    """Why the server did not take a mail.

    Attributes:
        forever: whether it says that it never will (5xx).
        address: whether it is the address that it refuses, not the mail.
        reason: in one line.
    """

    forever: bool
    address: bool
    reason: str


class Courier:
    """One connection to the server of ``settings.smtp``; ``async with`` opens and ends it.

    Raises:
        EtudeError: the setting is no server, or the server cannot be reached or refuses us; the
            line names host and port.
    """

    def __init__(self, settings: Settings) -> None:
        self._sender = settings.mail_from
        try:
            Address("etude", addr_spec=self._sender).addr_spec.encode("ascii")
        except (ValueError, IndexError, HeaderParseError):
            refuse("ETUDE_MAIL_FROM", "an address such as etude@example.org", self._sender)
        url = urlsplit(settings.smtp)
        if url.scheme not in ("smtp", "smtps") or not url.hostname:
            # What was given is not quoted: it may hold a password.
            raise EtudeError("ETUDE_SMTP must be like smtp://USER:PASSWORD@HOST:PORT or smtps://…")
        try:
            port = url.port or (465 if url.scheme == "smtps" else 25)
        except ValueError:
            refuse("the port of ETUDE_SMTP", "a number up to 65535", url.netloc.rpartition(":")[2])
        self.name = f"{url.scheme}://{url.hostname}:{port}"
        self._user, self._password = unquote(url.username or ""), unquote(url.password or "")
        self._here = _is_here(url.hostname)
        context = ssl.create_default_context()
        if self._here:
            # A server on this machine has no certificate that anybody signed.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._client = aiosmtplib.SMTP(
            hostname=url.hostname, port=port, timeout=TIMEOUT_S, tls_context=context,
            use_tls=url.scheme == "smtps", start_tls=False if url.scheme == "smtps" else None,
        )  # fmt: skip

    async def __aenter__(self) -> Courier:
        """Connect and log in."""
        try:
            await self._client.connect()
            if self._user:
                secure = self._client.get_transport_info("sslcontext") is not None
                if not (secure or self._here):
                    raise EtudeError(f"{self.name} offers no TLS: the password is not sent")
                await self._client.login(self._user, self._password)
        except aiosmtplib.SMTPAuthenticationError as error:
            said = f"{self.name} refuses the user or the password ({error.code})"
            raise EtudeError(said) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise EtudeError(f"{self.name} cannot be reached: {_said(error)}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Say goodbye; a server that is gone already is no error."""
        try:
            await self._client.quit()
        except (aiosmtplib.SMTPException, OSError):
            self._client.close()

    async def deliver(
        self, mail: EmailMessage, ready: Callable[[], bool] = lambda: True
    ) -> Refusal | None:
        """Hand over one mail; None where the server took it.

        Args:
            mail: of ``compose``.
            ready: asked when the server has accepted sender and address and only the text is
                missing; False calls it off, with a Refusal that is not for ever.

        Raises:
            EtudeError: the connection broke, or the server refuses the sender: nothing more can
                be sent now. Whether the server has the mail is then not known.
        """
        client = self._client
        to = mail["To"].addresses[0].addr_spec
        try:
            await client.mail(self._sender)
            try:
                await client.rcpt(to)
                if not ready():
                    await client.rset()
                    return Refusal(False, False, "another sender has it")
                await client.data(mail.as_bytes())
            except aiosmtplib.SMTPRecipientRefused as error:
                await client.rset()
                return Refusal(_forever(error), True, _said(error))
            except aiosmtplib.SMTPDataError as error:
                await client.rset()
                return Refusal(_forever(error), False, _said(error))
        except aiosmtplib.SMTPSenderRefused as error:
            said = f"{self.name} refuses the sender {self._sender}: {_said(error)}"
            raise EtudeError(said) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise EtudeError(f"{self.name} broke off: {_said(error)}") from None
        return None


def _forever(error: aiosmtplib.SMTPResponseException) -> bool:
    # 421 says that the server is closing, 521 that it takes no mail at all: not the address's doing
    return 500 <= error.code < 600 and error.code != 521


def _said(error: BaseException) -> str:
    """What the server or the system said, in one line."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return plain(f"{error.code} {error.message}")[:200]
    return plain(str(error) or type(error).__name__)[:200]


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
