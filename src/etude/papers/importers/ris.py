"""RIS files: records of lines ``TAG  - value`` from TY to ER."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from etude.papers.entry import Entry, day
from etude.papers.importers.common import (
    Item,
    Refusal,
    SourceError,
    checked,
    read_text,
    reference,
    shown,
)  # fmt: skip

__all__ = ["read"]

LINE = re.compile(r"([A-Z][A-Z0-9]) {1,2}-(?: (.*))?")
LONGEST = 100_000  # characters of a value
MOST = 20_000  # lines of a record


def read(path: Path) -> Iterator[Item]:
    """The papers of the file; a place is the line of its TY.

    Raises:
        EtudeError: no file, or no text.
        SourceError: no record in it.
    """
    fields: dict[str, list[str]] = {}
    begun, last, any_record = 0, "", False
    for number, row in enumerate(read_text(path).split("\n"), 1):
        found = LINE.fullmatch(row.rstrip())
        tag = found[1] if found else ""
        if tag == "TY":
            if begun:
                yield Refusal(f"line {begun}", f"no ER before the next record in line {number}")
            fields, begun, any_record = {}, number, True
        elif tag == "ER" and begun:
            yield checked(f"line {begun}", _entry(fields, shown(path)))
            fields, begun = {}, 0
        elif found and begun:
            fields.setdefault(tag, []).append((found[2] or "").strip()[:LONGEST])
        elif row.strip() and begun and last in fields:  # a value that goes on
            fields[last][-1] = f"{fields[last][-1]} {row.strip()}"[:LONGEST]
        if begun and number - begun > MOST:
            yield Refusal(f"line {begun}", f"a record of more than {MOST:,} lines")
            fields, begun = {}, 0
        last = tag or last
    if begun:
        yield Refusal(f"line {begun}", "no ER at its end")
    if not any_record:
        raise SourceError(f"{shown(path)} holds no record: each begins with 'TY  - '")


def _entry(fields: dict[str, list[str]], file: str) -> Entry:
    def first(*tags: str) -> str:
        return next((value for tag in tags for value in fields.get(tag, ()) if value), "")

    urls = [value for tag in ("UR", "LK", "L2") for value in fields.get(tag, ())]
    names = [_name(value) for tag in ("AU", "A1") for value in fields.get(tag, ())]
    entry = Entry(
        title=first("TI", "T1", "CT"), abstract=first("AB", "N2"),
        authors=tuple(name for name in names if name),
        date=max(day(first("DA")), day(first("PY", "Y1")), key=len),
        categories=tuple(fields.get("KW", ())), doi=first("DO"),
        venue=first("T2", "JO", "JF", "JA", "BT", "C3"),
    )  # fmt: skip
    return reference(entry, file, urls, first("AN"), first("M3"), first("N1"))


def _name(text: str) -> str:
    """ "Family, Given, Suffix" as "Given Family Suffix"."""
    family, _, rest = text.partition(",")
    given, _, suffix = rest.partition(",")
    return " ".join(f"{given} {family} {suffix}".split())
