"""BibTeX files: entries, ``@string`` names, braces and quotes, LaTeX's letters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from etude.core import EtudeError
from etude.papers.entry import Entry, day
from etude.papers.importers.common import (
    MB,
    Item,
    Refusal,
    SourceError,
    checked,
    read_text,
    reference,
    shown,
)  # fmt: skip
from etude.papers.latex import plain

__all__ = ["read"]

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
PIECE = re.compile(r"^[ \t]*@[ \t]*[A-Za-z]+\s*[{(]", re.MULTILINE)
ENTRY = re.compile(r"@\s*([A-Za-z]+)\s*([{(])")
FIELD = re.compile(r"\s*,?\s*([^\s\"#%'(),={}]+)\s*=\s*")
WORD = re.compile(r"[^\s\"#%'(),={}]+")
AND = re.compile(r"\s+and\s+|[{}]", re.IGNORECASE)
LONGEST = MB  # of an entry


def read(path: Path) -> Iterator[Item]:
    """The papers of the file; a place is the line where the entry begins.

    Raises:
        EtudeError: no file, or no text.
        SourceError: no entry in it.
    """
    text = read_text(path)
    begins = [m.start() for m in PIECE.finditer(text)]
    if not begins:
        raise SourceError(f"{shown(path)} holds no entry such as @article{{key, title = {{…}}}}")
    names = {month: month for month in MONTHS}
    line, counted = 1, 0
    for begin, end in zip(begins, [*begins[1:], len(text)], strict=True):
        line, counted = line + text.count("\n", counted, begin), begin
        yield from _piece(text[begin:end], line, names, shown(path))


def _piece(text: str, line: int, names: dict[str, str], file: str) -> Iterator[Item]:
    """The entries from one line that begins with one to the next such line."""
    at = 0
    while found := ENTRY.search(text, at):
        place = f"line {line + text.count(chr(10), 0, found.start())}"
        kind, at = found[1].lower(), found.end()
        if kind == "comment":
            return
        if len(text) > LONGEST:
            yield Refusal(place, f"longer than {LONGEST // MB} MB")
            return
        try:
            fields, at = _fields(text, at, "}" if found[2] == "{" else ")", kind, names)
        except EtudeError as error:
            yield Refusal(place, str(error))
            return
        if kind == "string":
            names.update((name, value[:10_000]) for name, value in fields.items())
        elif kind != "preamble":
            yield checked(place, _entry(fields, file))


def _fields(
    text: str, at: int, close: str, kind: str, names: dict[str, str]
) -> tuple[dict[str, str], int]:
    """The fields of the entry whose brace stands before `at`, and where it ends."""
    if kind == "preamble":
        return {}, _value(text, at, names)[1] + 1
    if kind != "string":
        comma = re.compile(r"[^,{}()\s]*\s*(?=[,})])").match(text, at)
        if not comma:
            raise EtudeError("no key after the brace")
        at = comma.end()
    fields: dict[str, str] = {}
    while found := FIELD.match(text, at):
        value, at = _value(text, found.end(), names)
        fields.setdefault(found[1].lower(), value)
    rest = re.compile(r"[\s,]*").match(text, at)
    at = rest.end() if rest else at
    if text[at : at + 1] != close:
        raise EtudeError(f"no {close} after its last field")
    return fields, at + 1


def _value(text: str, at: int, names: dict[str, str]) -> tuple[str, int]:
    """The value at `at`: parts in braces or quotes, numbers and names, joined by #."""
    value = ""
    while len(value) <= LONGEST:
        if text[at : at + 1] in ('"', "{"):
            end = _closing(text, at)
            value += text[at + 1 : end]
            at = end + 1
        else:
            word = WORD.match(text, at)
            if not word:
                raise EtudeError("a field without a value")
            value += names.get(word[0].lower(), word[0])
            at = word.end()
        more = re.compile(r"\s*#\s*").match(text, at)
        if not more:
            return value, at
        at = more.end()
    raise EtudeError(f"a value longer than {LONGEST // MB} MB")


def _closing(text: str, at: int) -> int:
    """Where the brace or quote at `at` is closed; braces count, however they are escaped."""
    depth = 0
    for found in re.compile(r'[{}"]').finditer(text, at):
        mark = found[0]
        if mark == "{":
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0 and text[at] == "{":
                return found.start()
        elif depth == 0 and found.start() > at and text[at] == '"':
            return found.start()
        if depth < 0:
            break
    raise EtudeError("a brace or quote is not closed")


def _entry(fields: dict[str, str], file: str) -> Entry:
    def text(*names: str) -> str:
        return next((plain(fields[name]).strip() for name in names if fields.get(name)), "")

    def raw(name: str) -> str:
        return re.sub(r"\\([_%&#~$])", r"\1", fields.get(name, "")).strip("{} \t\n")

    eprint, kind = raw("eprint"), (fields.get("archiveprefix") or fields.get("eprinttype") or "")
    named = f"arXiv:{eprint}" if kind.lower() in ("", "arxiv") else ""
    keywords = re.split(r"[,;]", text("keywords"))
    entry = Entry(
        title=text("title"), abstract=text("abstract"), authors=_authors(fields.get("author", "")),
        date=_date(fields), categories=tuple(k.strip() for k in [text("primaryclass"), *keywords]),
        doi=raw("doi"), venue=text("journal", "journaltitle", "booktitle"),
    )  # fmt: skip
    return reference(entry, file, [raw("url")], named, text("note"), text("howpublished"))


def _authors(text: str) -> tuple[str, ...]:
    """Names as "Given Family"; what stands in braces is neither split nor turned."""
    names, depth, start = [], 0, 0
    for found in AND.finditer(text):
        if found[0] == "{":
            depth += 1
        elif found[0] == "}":
            depth -= 1
        elif depth == 0:
            names.append(text[start : found.start()])
            start = found.end()
    found_names = (_name(name.strip()) for name in [*names, text[start:]])
    return tuple(name for name in found_names if name)


def _name(text: str) -> str:
    if text == "others":
        return ""
    parts = [""]
    depth = 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    # Family, Given or Family, Suffix, Given
    turned = [parts[-1], *parts[:-1]] if len(parts) > 1 else parts
    return " ".join(plain(" ".join(turned)).split())


def _date(fields: dict[str, str]) -> str:
    whole = day(fields.get("date"))
    year = day(re.sub(r"[^\d]", "", fields.get("year", ""))[:4])
    found = re.search(r"[a-z]{3}|\d{1,2}", fields.get("month", "").lower())
    if whole or not found or not year:
        return whole or year
    month = found[0]
    number = MONTHS.index(month) + 1 if month in MONTHS else int(month) if month.isdigit() else 0
    of_month = re.sub(r"[^\d]", "", fields.get("day", ""))[:2]
    return day(f"{year}-{number:02d}" + (f"-{int(of_month):02d}" if of_month else ""))
