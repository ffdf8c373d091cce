"""arXiv's metadata snapshot, JSON lines: read a line at a time, going on from any byte.

A line is ``{"id", "title", "abstract", "authors", "authors_parsed": [[family, given, suffix]],
"categories": "cs.LG stat.ML", "doi", "journal-ref", "versions": [{"created": …}],
"update_date"}``. What ``etude papers export --format jsonl`` writes is read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from etude.papers.entry import Entry, day
from etude.papers.importers.common import (
    MB,
    Item,
    Mark,
    Refusal,
    SourceError,
    checked,
    open_file,
    shown,
    string,
)  # fmt: skip

__all__ = ["read"]

LONGEST = 2 * MB  # of a line
STEP = 500  # lines from mark to mark


def read(path: Path, start: int = 0) -> Iterator[Item]:
    """The papers from byte `start`, where a line must begin; a mark after every 500 lines.

    Lines are counted from `start`; after a resumption a place is named by its byte.

    Raises:
        EtudeError: no file.
        SourceError: one JSON document instead of a line a paper, or nothing at all.
    """
    with open_file(path) as file:
        total = file.seek(0, 2)
        file.seek(start)
        number, any_paper = 0, start > 0
        for number, (position, raw) in enumerate(_lines(file), 1):
            place = f"line {number}" if not start else f"byte {position}"
            if number == 1 and raw.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                raise SourceError(f"{shown(path)} must hold one JSON object a line, not a list")
            if raw.strip():
                item = _entry(place, raw, shown(path))
                any_paper = any_paper or isinstance(item, Entry)
                yield item
            if number % STEP == 0:
                yield Mark(position + len(raw) if len(raw) <= LONGEST else file.tell(), total)
        if not any_paper:
            raise SourceError(f"{shown(path)} holds no paper: it must have one JSON object a line")
        yield Mark(total, total)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(position, line); of one that is too long the beginning, longer than LONGEST."""
    while raw := file.readline(LONGEST + 1):
        position = file.tell() - len(raw)
        whole = raw
        while len(whole) > LONGEST and not whole.endswith(b"\n"):
            whole = file.readline(LONGEST + 1)
            if not whole:
                break
        yield position, raw


def _entry(place: str, raw: bytes, name: str) -> Entry | Refusal:
    if len(raw) > LONGEST:
        return Refusal(place, f"longer than {LONGEST // MB} MB")
    try:
        facts = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Refusal(place, "no JSON in UTF-8")
    if not isinstance(facts, dict):
        return Refusal(place, "no JSON object")
    if "arxiv" in facts and isinstance(facts.get("authors"), list):
        return checked(place, _own(facts, name))
    kinds = string(facts.get("categories")).split()
    entry = Entry(
        title=string(facts.get("title")), abstract=string(facts.get("abstract")),
        authors=_authors(facts), arxiv=string(facts.get("id")), date=_date(facts),
        categories=tuple(kinds), doi=string(facts.get("doi")).partition(" ")[0],
        venue=string(facts.get("journal-ref")), sources=("arxiv",),
    )  # fmt: skip
    if not entry.arxiv:
        return Refusal(place, "no arXiv id")
    return checked(place, entry)


def _own(facts: dict[str, Any], name: str) -> Entry:
    votes = facts.get("votes")
    known: dict[str, Any] = {
        key: tuple(map(string, found)) if isinstance(found := facts.get(key), list) else ()
        for key in ("authors", "categories", "sources")
    }
    known["sources"] += (f"file:{name}",)
    for key in ("title", "abstract", "arxiv", "date", "doi", "venue", "url"):
        known[key] = string(facts.get(key))
    return Entry(**known, votes=votes if type(votes) is int else 0)


def _authors(facts: dict[str, Any]) -> tuple[str, ...]:
    parsed = facts.get("authors_parsed")
    if not isinstance(parsed, list):
        return tuple(string(facts.get("authors")).replace(" and ", ", ").split(", "))
    names = (list(map(string, name)) for name in parsed if isinstance(name, list) and name)
    return tuple(" ".join([*name[1:2], name[0], *name[2:3]]) for name in names)


def _date(facts: dict[str, Any]) -> str:
    """The day of the first version, else that of the last change."""
    versions = facts.get("versions")
    first = versions[0] if isinstance(versions, list) and versions else None
    try:
        created = string(first.get("created")) if isinstance(first, dict) else ""
        return day(parsedate_to_datetime(created).date().isoformat())
    except (ValueError, TypeError):
        return day(string(facts.get("update_date")))
