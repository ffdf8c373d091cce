"""The text of a papers feed's page, saved from a browser.

A header, then title and abstract in turn, with blank lines between. The header ends with the
day of the page ("Nov 22"), else before the title of the first abstract.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from etude.papers.entry import Entry, day
from etude.papers.importers.common import Item, Refusal, SourceError, checked, read_text, shown

__all__ = ["read"]

DAY = re.compile(r"[A-Z][a-z]{2,8} \d{1,2}(?:, (\d{4}))?")
HEADER = 20  # paragraphs in which its end is looked for
TITLE = 300  # characters: a title has at most as many
SHORT = 200  # an abstract has more


def read(path: Path) -> Iterator[Item]:
    """The papers of the page, each with the number of its title's line as its place.

    Raises:
        EtudeError: no file, or no text.
        SourceError: no title with an abstract under it.
    """
    blocks, file = _blocks(read_text(path)), f"file:{shown(path)}"
    start, date = _header(blocks)
    if start is None:
        raise SourceError(f"{shown(path)} holds no title with an abstract under it")
    at = start
    while at < len(blocks):
        number, title = blocks[at]
        at += 1
        parts: list[str] = []
        # Without its abstract a title would make titles of all abstracts that follow.
        if at < len(blocks) and not (len(blocks[at][1]) <= SHORT and _is_long(blocks, at + 1)):
            parts.append(blocks[at][1])
            at += 1
            while at < len(blocks) and len(blocks[at][1]) > TITLE:
                parts.append(blocks[at][1])
                at += 1
        if not parts:
            yield Refusal(f"line {number}", f"no abstract under {title[:60]!r}")
            continue
        yield checked(
            f"line {number}",
            Entry(title=title, abstract=" ".join(parts), date=date, sources=(file,)),
        )


def _blocks(text: str) -> list[tuple[int, str]]:
    """(line number, paragraph)."""
    found: list[tuple[int, list[str]]] = []
    gap = True
    for number, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            gap = True
        elif gap:
            found.append((number, [row]))
            gap = False
        else:
            found[-1][1].append(row)
    return [(number, " ".join(rows).strip()) for number, rows in found]


def _is_long(blocks: list[tuple[int, str]], at: int) -> bool:
    return at < len(blocks) and len(blocks[at][1]) > TITLE


def _header(blocks: list[tuple[int, str]]) -> tuple[int | None, str]:
    """Where the first title stands, and the day of the page if its year is told."""
    for at, (_, text) in enumerate(blocks[:HEADER]):
        found = DAY.fullmatch(text)
        if found and at + 2 < len(blocks):
            return at + 1, _date(text) if found[1] else ""
        if len(text) > TITLE:
            break
    first = next((at for at, (_, text) in enumerate(blocks) if len(text) > SHORT and at), None)
    return (first - 1 if first is not None else None), ""


def _date(text: str) -> str:
    for form in ("%b %d, %Y", "%B %d, %Y"):
        try:
            return day(datetime.strptime(text, form).date().isoformat())
        except ValueError:
            continue
    return ""
