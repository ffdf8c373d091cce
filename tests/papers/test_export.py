"""Exports: what goes out comes back, hostile text stays text, keys are stable."""

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etude.core import EtudeError
from etude.papers.entry import Entry, clean, squeeze
from etude.papers.exporting import FORMATS, bibtex, csl, export, key, ris
from etude.papers.importers import bibtex as bibtex_files
from etude.papers.importers import ris as ris_files
from etude.papers.importers import snapshot
from etude.papers.importers.common import Mark
from etude.papers.latex import plain, tex

WHOLE = clean(
    Entry(
        title="Ein Maß für 100 % & {more}: $a_b$ -- \\input{x} ~ ^ # ``q''",
        abstract="It's \"here\" --- and @there{x, y}. %not a comment",
        authors=("Ada Lovelace", "Research and Development", "others", "Plato", "李 明"),
        arxiv="2405.19504", date="2026-11-22", categories=("cs.LG", "stat.ML"), doi="10.1/a_b",
        venue="Proceedings of X & Y", url="https://a.b/c_d?e=%20f&g#h~i", sources=("file:x",),
    )
)  # fmt: skip
LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Cf", "Co", "Cn"])
TEX = st.sampled_from(["\\", "{", "}", "$", "--", "---", "``", "''", "~", "%", "\\'e", "and", "#"])
TEXT = st.lists(LETTERS | TEX | st.just(" "), max_size=12).map("".join)
ADDRESS = st.text("abcXYZ019-._~/?&=#+_", max_size=20)
DATES = st.dates().filter(lambda d: 1000 <= d.year <= 2026).map(str)


@st.composite
def entries(draw) -> Entry:
    """Any entry that the store may hold."""
    arxiv, date = draw(st.sampled_from(["", "2405.19504", "hep-th/9901001"])), draw(DATES)
    url, doi, venue = draw(ADDRESS), draw(ADDRESS), draw(TEXT)
    entry = Entry(
        title="a" + draw(TEXT), abstract=draw(TEXT),
        authors=tuple(draw(st.lists(TEXT, max_size=3))), arxiv=arxiv,
        date=date[: draw(st.sampled_from([0, 4, 7, 10]))],
        categories=tuple(draw(st.lists(TEXT, max_size=3))), doi=doi and f"10.1/{doi}", venue=venue,
        url=url and f"https://a.b/{url}", sources=("file:x",),
    )  # fmt: skip
    return clean(entry)


def back(reader, text: str) -> list[Entry]:
    """What the importer makes of the exported text, as if from the source of WHOLE."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(text.encode())
        found = [item for item in reader.read(path) if not isinstance(item, Mark)]
    return [replace(entry, sources=("file:x",)) for entry in found]


@settings(max_examples=300, deadline=None)
@example(WHOLE)
@given(entries())
def test_bibtex_comes_back(entry) -> None:
    assert back(bibtex_files, bibtex(entry)) == [entry]


@settings(max_examples=300, deadline=None)
@example(WHOLE)
@given(entries())
def test_ris_comes_back(entry) -> None:
    assert back(ris_files, ris(entry)) == [entry]


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_tex_and_back(text) -> None:
    written = tex(text)
    assert plain(written) == text
    assert written.count("{") == written.count("}")
    depth = 0
    for mark in re.findall("[{}]", written):
        depth += 1 if mark == "{" else -1
        assert depth in (0, 1)


def test_jsonl_comes_back() -> None:
    papers = [WHOLE, replace(WHOLE, arxiv="", votes=3)]
    assert back(snapshot, "".join(export(papers, "jsonl"))) == papers


def back_many(form: str, reader) -> int:
    many = [replace(WHOLE, title=f"{WHOLE.title} {i}") for i in range(5)]
    return len(back(reader, "".join(export(many, form))))


def test_many_entries_in_one_file() -> None:
    assert back_many("bibtex", bibtex_files) == 5
    assert back_many("ris", ris_files) == 5
    assert json.loads("".join(export([], "csl-json"))) == []


def test_no_command_of_hostile_text_is_left() -> None:
    text = bibtex(replace(WHOLE, title="\\input{/etc/passwd} $\\write18{x}$ } @misc{y, a = {"))
    commands = set(re.findall(r"\\([A-Za-z]+|.)", text))
    assert commands <= {
        "textbackslash", "textbraceleft", "textbraceright", "textasciitilde", "textasciicircum",
        *"&%$#_",
    }  # fmt: skip
    assert text.count("{") == text.count("}")
    hostile = replace(WHOLE, url="https://a.b/{x}\\y%zz", doi="10.1/}{")
    assert "url = {https://a.b/%7Bx%7D%5Cy%25zz}" in bibtex(hostile)
    assert "doi = {10.1/%7D%7B}" in bibtex(hostile)


def test_forms() -> None:
    assert bibtex(WHOLE).startswith("@inproceedings{2405.19504,\n  title = {{Ein Maß")
    assert "  month = nov\n}\n" in bibtex(WHOLE)
    assert bibtex(Entry(title="T", venue="Journal of X")).startswith("@article{t")
    assert bibtex(Entry(title="T")).startswith("@misc{t")
    assert "author" not in bibtex(Entry(title="T"))
    assert ris(WHOLE).startswith("TY  - CPAPER\r\nID  - 2405.19504\r\nTI  - Ein")
    assert "AU  - Lovelace, Ada\r\n" in ris(WHOLE)
    assert "DA  - 2026/11/22/\r\n" in ris(WHOLE)
    item = csl(WHOLE)
    assert item["issued"] == {"date-parts": [[2026, 11, 22]]}
    assert item["author"][0] == {"family": "Lovelace", "given": "Ada"}
    assert item["author"][3] == {"literal": "Plato"}
    assert (item["DOI"], item["archive_location"]) == ("10.1/a_b", "2405.19504")
    assert csl(Entry(title="T")) == {"id": key(Entry(title="T")), "type": "article", "title": "T"}


def test_keys_are_stable_and_of_their_own() -> None:
    stored = replace(WHOLE, id="t0123456789abcde")
    assert key(stored) == key(replace(stored, title="Other", date="")) == "t0123456789abcde"
    assert key(Entry(title="T", arxiv="hep-th/9901001")) == "hep-th-9901001"
    assert len({key(Entry(title=squeeze(str(i)))) for i in range(100)}) == 100


def test_unknown_format() -> None:
    with pytest.raises(EtudeError, match="format must be one of bibtex, ris, csl-json, jsonl"):
        export([], "word")
    assert set(FORMATS) == {"bibtex", "ris", "csl-json", "jsonl"}
