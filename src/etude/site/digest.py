"""The digest: which papers are in whose next mail, and how the mail looks.

A daily mail looks 3 days back and a weekly one 14, so that papers that were imported late and
mails of a day on which the site was down are caught up; what a reader was sent is left out, so
that in the usual course a mail holds the papers of the last day or week. The first mail begins
with the day or week before the reader confirmed.

A saved search is the best papers of those days for its words; one that holds fewer than half of
the telling words, and was found by its meaning only, is no reason for a mail.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from typing import Any

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.papers.search.query import parse
from etude.papers.search.words import EMPTY, split, stem, stems
from etude.site.facts import paper_facts
from etude.site.guard import sign
from etude.site.mail import compose
from etude.site.outbox import Mail
from etude.site.readers import Choice, Reader, Readers
from etude.site.state import Site

__all__ = [
    "FIRST_DAYS", "confirm_mail", "digest_mail", "issue_of", "news", "readers_of", "today",
    "words_of",
]  # fmt: skip

DAYS = {"daily": 3, "weekly": 14}  # that a mail looks back
FIRST_DAYS = {"daily": 1, "weekly": 7}  # before the day of confirming, for the first mail
MOST = 5_000  # papers of one mail; further ones wait for the next
MOST_FOUND = {"daily": 10, "weekly": 25}  # papers of a saved search
FULL = 25  # papers that a mail shows whole
TITLES = 200  # further ones of which it shows the title
MOST_AUTHORS = 6
LEAD = 320  # characters of the first sentences


def readers_of(site: Site) -> Readers:
    """The readers of a site, opened once."""
    return Readers.of(site)


def today() -> date:
    """The day in UTC, as papers are dated."""
    return datetime.now(UTC).date()


def issue_of(frequency: str, day: date) -> str:
    """The name of the mail of a day: "2026-11-24", or "2026-W48"."""
    if frequency == "daily":
        return day.isoformat()
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def words_of(frequency: str, query: str) -> str:
    """A choice in words, such as "new papers that answer “graph embeddings”, every week"."""
    what = f"new papers that answer “{query}”" if query else "all new papers"
    return what + (", every day" if frequency == "daily" else ", every week")


def news(site: Site, reader: Reader, day: date, known: dict[Any, list[Entry]]) -> list[Entry]:
    """The papers of a reader's days, most votes or best found first, sent before or not.

    `known` keeps what was looked up, for the other readers of one round. A saved search that no
    longer can be read finds nothing: it must not keep the mails of those who come after it.
    """
    first = max(reader.since, (day - timedelta(DAYS[reader.frequency])).isoformat())
    key = (first, reader.query, reader.frequency)
    if key not in known:
        last = day.isoformat()
        if reader.query:
            known[key] = _found(site, reader, first, last)
        else:
            known[key] = site.store.of(first, last, limit=MOST)
    return known[key]


def _found(site: Site, reader: Reader, first: str, last: str) -> list[Entry]:
    try:
        wanted = telling(parse(reader.query).text)
    except EtudeError:
        return []
    most = MOST_FOUND[reader.frequency]
    best = site.finder.search(reader.query, 4 * most, first=first, last=last).entries
    return [entry for entry in best if answers(entry, wanted)][:most]


def telling(text: str) -> set[str]:
    """The stems of a text's words, without those that say nothing unless there are no others."""
    words = set(split(text))
    return set(map(stem, words - EMPTY or words))


def answers(entry: Entry, wanted: Collection[str]) -> bool:
    """Whether a paper holds at least half of these stems; one of no stems is any paper."""
    (facts,) = paper_facts([entry], {})
    held = set(stems(f"{entry.title} {entry.abstract} {facts['move']}"))
    return 2 * sum(word in held for word in wanted) >= len(wanted)


def lead(text: str) -> str:
    """The first sentences of a text, at most 320 characters of whole sentences, or cut."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"“(])", text):
        if kept and len(kept) + 1 + len(sentence) > LEAD:
            return kept
        kept = f"{kept} {sentence}".strip()
    return kept if len(kept) <= LEAD else kept[:LEAD].rsplit(" ", 1)[0].rstrip(" ,;:.") + " …"


def _shown(site: Site, entry: Entry) -> dict[str, Any]:
    """What a mail says of one paper."""
    (facts,) = paper_facts([entry], {})
    authors = list(entry.authors[:MOST_AUTHORS])
    if len(entry.authors) > MOST_AUTHORS:
        authors.append(f"and {len(entry.authors) - MOST_AUTHORS} more")
    return {
        "title": entry.title, "authors": ", ".join(authors), "date": entry.date,
        "lead": facts["move"] or lead(entry.abstract), "runnable": facts["runnable"],
        "verdict": facts["verdict"], "link": site.settings.base_url.rstrip("/") + facts["page"],
    }  # fmt: skip


def links(site: Site, reader: Reader) -> dict[str, str]:
    """The signed links of a reader, to change the choice and to end the mails."""
    base = site.settings.base_url.rstrip("/")
    return {
        "manage": f"{base}/manage/{sign(site, 'manage', reader.key)}",
        "unsubscribe": f"{base}/unsubscribe/{sign(site, 'unsubscribe', ['reader', reader.key])}",
    }


def name_of(*parts: str) -> str:
    """What stands before the @ of a Message-ID: the same for the same parts, telling nothing."""
    return "etude." + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def digest_mail(site: Site, mail: Mail, entries: Sequence[Entry]) -> EmailMessage:
    """The mail of an issue; a second copy of it has the same Message-ID and Date."""
    reader, n = mail.reader, len(entries)
    first = entries[0].title
    short = first if len(first) <= 60 else first[:60].rsplit(" ", 1)[0] + " …"
    subject = short if n == 1 else f"{n} papers: {short}"
    made = links(site, reader)
    facts = {
        "issue": mail.issue, "frequency": reader.frequency, "query": reader.query, "n": n,
        "papers": [_shown(site, entry) for entry in entries[:FULL]],
        "titles": [_shown(site, entry) for entry in entries[FULL : FULL + TITLES]],
        "more": max(0, n - FULL - TITLES), "choice": words_of(reader.frequency, reader.query),
        "manage": made["manage"], "home": site.settings.base_url,
    }  # fmt: skip
    return compose(
        site.settings, to=reader.address, subject=subject, template="mail_digest",
        message_id=name_of(reader.key, mail.issue), unsubscribe=made["unsubscribe"], at=mail.at,
        facts=facts,
    )  # fmt: skip


def confirm_mail(site: Site, choice: Choice, at: float) -> EmailMessage:
    """The mail that asks whether somebody wants what was asked for in their name."""
    base = site.settings.base_url.rstrip("/")
    decline = sign(site, "unsubscribe", ["choice", choice.nonce])
    what = "new papers of a saved search" if choice.query else "all new papers"
    facts = {
        "confirm": f"{base}/confirm/{sign(site, 'confirm', choice.nonce)}",
        # Whoever asked may be a stranger: no word of theirs goes to this address.
        "choice": f"{what}, every {'day' if choice.frequency == 'daily' else 'week'}",
        "home": site.settings.base_url,
    }  # fmt: skip
    return compose(
        site.settings, to=choice.address, subject="Confirm your subscription to etude",
        template="mail_confirm", message_id=name_of(choice.nonce),
        unsubscribe=f"{base}/unsubscribe/{decline}", at=at, facts=facts,
    )  # fmt: skip
