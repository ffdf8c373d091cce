"""Papers as BibTeX, RIS, CSL-JSON and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from etude.core import require
from etude.papers.entry import Entry, entry_id
from etude.papers.latex import tex

__all__ = ["FORMATS", "bibtex", "csl", "export", "key", "ris"]

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MEETING = re.compile(r"\b(?:proceedings|conference|workshop|symposium)\b", re.IGNORECASE)
AND = re.compile(r"\band\b", re.IGNORECASE)


def key(entry: Entry) -> str:
    """The name of the entry in a file of references: its stable id, which nothing changes."""
    return (entry.id or entry_id(entry)).replace("/", "-")


def bibtex(entry: Entry) -> str:
    """The entry for BibTeX and biber, in UTF-8; whatever it holds, LaTeX prints it."""
    meeting = MEETING.search(entry.venue) is not None
    kind = "inproceedings" if meeting else "article" if entry.venue else "misc"
    year, month, day = _parts(entry)
    categories = [tex(category) for category in entry.categories]
    fields = {
        "title": f"{{{tex(entry.title)}}}",  # the second braces keep its capitals
        "author": " and ".join(map(_author, entry.authors)),
        "year": year,
        "day": day,
        "booktitle" if meeting else "journal": tex(entry.venue),
        "eprint": entry.arxiv,
        "archivePrefix": "arXiv" if entry.arxiv else "",
        "primaryClass": categories[0] if entry.arxiv and categories else "",
        "keywords": ", ".join(categories),
        "doi": _verbatim(entry.doi),
        "url": _verbatim(entry.url),
        "abstract": tex(entry.abstract),
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    if month:
        lines.append(f"  month = {MONTHS[int(month) - 1]}")
    return f"@{kind}{{{key(entry)},\n" + ",\n".join(lines) + "\n}\n"


def ris(entry: Entry) -> str:
    """The entry as an RIS record."""
    year, month, day = _parts(entry)
    meeting = MEETING.search(entry.venue) is not None
    lines = [
        ("TY", "CPAPER" if meeting else "JOUR" if entry.venue else "GEN"),
        ("ID", key(entry)),
        ("TI", entry.title),
        *(("AU", _turned(name)) for name in entry.authors),
        ("PY", year),
        ("DA", f"{year}/{month}/{day}/" if year else ""),
        ("T2", entry.venue),
        ("AN", f"arXiv:{entry.arxiv}" if entry.arxiv else ""),
        ("DO", entry.doi),
        ("UR", entry.url),
        *(("KW", category) for category in entry.categories),
        ("AB", entry.abstract),
    ]
    return "".join(f"{tag}  - {value}\r\n" for tag, value in lines if value) + "ER  - \r\n"


def csl(entry: Entry) -> dict[str, Any]:
    """The entry as an item of CSL-JSON."""
    date = [int(part) for part in _parts(entry) if part]
    facts: dict[str, Any] = {
        "id": key(entry),
        "type": "article-journal" if entry.venue else "article",
        "title": entry.title,
        "author": [_csl_name(name) for name in entry.authors],
        "issued": {"date-parts": [date]} if date else None,
        "container-title": entry.venue,
        "archive": "arXiv" if entry.arxiv else "",
        "archive_location": entry.arxiv,
        "number": f"arXiv:{entry.arxiv}" if entry.arxiv else "",
        "DOI": entry.doi,
        "URL": entry.url or (f"https://arxiv.org/abs/{entry.arxiv}" if entry.arxiv else ""),
        "keyword": ", ".join(entry.categories),
        "abstract": entry.abstract,
    }
    return {name: value for name, value in facts.items() if value}


def _jsonl(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False) + "\n"


def _bibtex(entries: Iterable[Entry]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        yield ("\n" if number else "") + bibtex(entry)


def _csl_json(entries: Iterable[Entry]) -> Iterator[str]:
    yield "["
    for number, entry in enumerate(entries):
        yield (",\n" if number else "\n") + json.dumps(csl(entry), ensure_ascii=False)
    yield "\n]\n"


FORMATS: dict[str, Callable[[Iterable[Entry]], Iterator[str]]] = {
    "bibtex": _bibtex,
    "ris": lambda entries: map(ris, entries),
    "csl-json": _csl_json,
    "jsonl": lambda entries: map(_jsonl, entries),
}


def export(entries: Iterable[Entry], form: str) -> Iterator[str]:
    """The file in pieces: "bibtex", "ris", "csl-json" or "jsonl".

    Raises:
        EtudeError: another format.
    """
    require(form in FORMATS, "format", f"one of {', '.join(FORMATS)}", form)
    return FORMATS[form](entries)


def _parts(entry: Entry) -> tuple[str, str, str]:
    year, month, day = [*entry.date.split("-"), "", "", ""][:3]
    return year, month, day


def _author(name: str) -> str:
    """For BibTeX, which would split a name at "and" and drop "others"."""
    text = tex(name)
    return f"{{{text}}}" if AND.search(name) or name == "others" else text


def _verbatim(text: str) -> str:
    """Addresses are printed as they stand: what would end the field is percent-encoded."""
    return re.sub(r"[{}\\\s%](?![0-9A-Fa-f]{2})|[{}\\\s]", lambda m: f"%{ord(m[0]):02X}", text)


def _turned(name: str) -> str:
    """ "Family, Given": the last word is taken for the family's name."""
    given, _, family = name.rpartition(" ")
    return f"{family}, {given}" if given else family


def _csl_name(name: str) -> dict[str, str]:
    given, _, family = name.rpartition(" ")
    return {"family": family, "given": given} if given else {"literal": family}
