"""Mails: headers that nobody can add to, text and HTML, and addresses."""

import time
from email import message_from_bytes, policy

import pytest

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.site.digest import confirm_mail, digest_mail, lead, name_of
from etude.site.mail import compose, mail_address, wrap
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
