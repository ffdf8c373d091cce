"""What all importers share: what they yield, and how a file of a user is opened."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from etude.core import EtudeError
from etude.papers.entry import Entry, arxiv_id, clean, line

__all__ = [
    "MB", "Item", "Mark", "Refusal", "SourceError", "checked", "find_arxiv", "open_file",
    "read_text", "reference", "shown", "string",
]  # fmt: skip

MB = 2**20
LARGEST = 50 * MB  # of a file that is read at once
ARXIV = re.compile(
    r"arxiv(?:\.org/(?:abs|pdf|html)/|[:.\s]+)(\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?!\d)",
    re.IGNORECASE,
)
DOI_HOST = re.compile(r"^(?:https?://(?:dx\.)?doi\.org/|doi:\s*)", re.IGNORECASE)


class SourceError(EtudeError):
    """A source that could not be read, or not to its end; says why."""


@dataclass(frozen=True)
class Refusal:
    """A paper that was not taken: where it stands in its source, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Mark:
    """All that stands before `position` of `total` was yielded: an import may go on from it."""

    position: int
    total: int


Item = Entry | Refusal | Mark


def checked(place: str, entry: Entry) -> Entry | Refusal:
    """The cleaned entry, or its refusal."""
    try:
        return clean(entry)
    except EtudeError as error:
        return Refusal(place, str(error))


def string(value: object) -> str:
    """The value if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def find_arxiv(*texts: str) -> str:
    """The first arXiv id that one of the texts names as such, or is."""
    for text in texts:
        found = ARXIV.search(text[:1_000])
        if known := arxiv_id(found[1] if found else text[:100]):
            return known
    return ""


def reference(entry: Entry, file: str, urls: Sequence[str], named: str, *texts: str) -> Entry:
    """The entry of a file of references, as its fields are usually filled.

    Its DOI may begin with an address, a venue may only say that it is at arXiv, not every URL is
    an address of the web; `named`, the URLs, DOI, venue and `texts` may name its arXiv id.
    """
    doi, venue = DOI_HOST.sub("", entry.doi), entry.venue
    return replace(
        entry, doi=doi, venue="" if venue.lower().startswith("arxiv") else venue,
        arxiv=find_arxiv(named, *urls, doi, venue, *texts),
        url=next((url for url in urls if url.lower().startswith("http")), ""),
        sources=(f"file:{file}",),
    )  # fmt: skip


def shown(path: Path) -> str:
    """The file's name as messages and sources call it; a name may hold terminal escapes."""
    return line(path.name, 100) or "the file"


def open_file(path: Path, largest: int | None = None) -> BinaryIO:
    """The file, open for reading; it is a regular one and at most `largest` bytes long.

    Raises:
        EtudeError: missing, no regular file (a pipe is not waited for), or too large.
    """
    name = shown(path)
    try:
        # without O_NONBLOCK the opening of a pipe waits until somebody writes
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise EtudeError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from None
    file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:
        os.close(handle)
        raise EtudeError(f"{name} must be a file, not a folder, pipe or device")
    size = os.fstat(handle).st_size
    if largest is not None and size > largest:
        file.close()
        raise EtudeError(
            f"{name} must have at most {largest // MB} MB, it has {size // MB}: split it"
        )
    return file


def read_text(path: Path) -> str:
    """The text of a file of at most 50 MB in UTF-8 (or UTF-16 with its mark), lines ending in LF.

    Raises:
        EtudeError: see ``open_file``; also where it is no text.
    """
    with open_file(path, LARGEST) as file:
        raw = file.read(LARGEST + 1)
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        cure = f"iconv -f latin1 -t utf-8 {shown(path)}"
        rule = f"must be text in UTF-8, byte {error.start:,} is none: try {cure}"
        raise EtudeError(f"{shown(path)} {rule}") from None
    if "\0" in text:
        raise EtudeError(f"{shown(path)} must be text, it holds a NUL")
    return text.replace("\r\n", "\n").replace("\r", "\n")
