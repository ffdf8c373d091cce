"""Files of papers, good and bad; all pages and references here are invented."""

import json
import os

import pytest

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.papers.importers import bibtex, page, ris, snapshot
from etude.papers.importers.common import Mark, Refusal, SourceError, find_arxiv

LONG = "We study a thing that was invented for this test and measure it with great care. " * 6
HEADER = "new\n\nGet papers by mail!\n\nSubscribe\n\nDaily Papers\n\nbyAK and others\n\n"


def write(tmp_path, name: str, text: str | bytes):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def turns(*titles: str) -> str:
    return "".join(f"{title}\n\n{LONG}{title}\n\n" for title in titles)


@pytest.mark.parametrize(
    ("header", "date"),
    [(f"{HEADER}Nov 22\n\n", ""), (f"{HEADER}Nov 22, 2026\n\n", "2026-11-22"),
     (f"{HEADER}November 2, 2025\n\n", "2025-11-02"), (HEADER, ""), ("", "")],
)  # fmt: skip
def test_a_page_is_read_in_turn(tmp_path, header, date) -> None:
    path = write(tmp_path, "a.txt", header + turns("One", "A Title: Two?", "One"))
    found = list(page.read(path))
    assert [e.title for e in found] == ["One", "A Title: Two?", "One"]
    assert found[1].abstract == f"{LONG}A Title: Two?"
    assert {e.date for e in found} == {date}
    assert found[0].sources == ("file:a.txt",)


def test_a_short_abstract_after_a_header_with_a_day(tmp_path) -> None:
    path = write(tmp_path, "a.txt", f"{HEADER}Nov 22\n\nOne\n\nBrief.\n\nTwo\n\nBrief too.\n")
    assert [(e.title, e.abstract) for e in page.read(path)] == [
        ("One", "Brief."), ("Two", "Brief too."),
    ]  # fmt: skip


def test_a_missing_abstract_costs_one_paper(tmp_path) -> None:
    text = f"{HEADER}Nov 22\n\n" + turns("One") + "Bare\n\n" + turns("Two", "Three") + "Footer\n"
    found = list(page.read(write(tmp_path, "a.txt", text)))
    assert [getattr(item, "title", "") for item in found] == ["One", "", "Two", "Three", ""]
    assert found[1] == Refusal("line 17", "no abstract under 'Bare'")
    assert "no abstract under 'Footer'" in found[4].reason


def test_paragraphs_and_broken_lines_of_an_abstract_are_joined(tmp_path) -> None:
    text = (
        f"{HEADER}Nov 22\r\n\r\nA title\r\nin two lines\r\n\r\n{LONG}\r\nand more\r\n\r\n{LONG}\r\n"
    )
    (found,) = page.read(write(tmp_path, "a.txt", text))
    assert found.title == "A title in two lines"
    assert found.abstract == f"{LONG}and more {LONG.strip()}"


@pytest.mark.parametrize("text", ["", "\n\n", "new\n\nSubscribe\n", f"{HEADER}Nov 22\n", LONG])
def test_a_page_without_papers_says_so(tmp_path, text) -> None:
    with pytest.raises(SourceError, match=r"a\.txt holds no title with an abstract"):
        list(page.read(write(tmp_path, "a.txt", text)))


@pytest.mark.parametrize("reader", [page, bibtex, ris, snapshot])
def test_what_is_no_file_is_refused(tmp_path, reader) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(EtudeError, match="must be a file, not a folder, pipe or device"):
            next(reader.read(type(tmp_path)(path)))
    with pytest.raises(EtudeError, match=r"nix\.txt cannot be read: No such file"):
        next(reader.read(tmp_path / "nix.txt"))
    with pytest.raises(EtudeError, match="cannot be read"):
        next(reader.read(tmp_path / "a\0b"))


@pytest.mark.parametrize("reader", [page, bibtex, ris])
def test_encodings_and_sizes(tmp_path, reader, monkeypatch) -> None:
    latin = write(tmp_path, "l.txt", "M\xfcller".encode("latin-1"))
    with pytest.raises(EtudeError, match="must be text in UTF-8, byte 1 is none: try iconv"):
        next(reader.read(latin))
    with pytest.raises(EtudeError, match="holds a NUL"):
        next(reader.read(write(tmp_path, "n.txt", b"a\0b")))
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(EtudeError, match=r"must have at most 50 MB, it has 10240: split it"):
        next(reader.read(large))


def test_utf16_and_marks_are_read(tmp_path) -> None:
    text = f"{HEADER}Nov 22\n\n" + turns("Größe")
    for coded in (text.encode("utf-16"), text.encode("utf-8-sig")):
        (found,) = page.read(write(tmp_path, "a.txt", coded))
        assert found.title == "Größe"


BIB = r"""
Free text is a comment, me@example.org too.
@string{acm = "ACM Press"}
@Preamble{"\newcommand{\x}{y}"}
@comment{@article{no, title={No}}}
@article{a,
  title     = "On {{\"U}ber}-Things: $x^{2}$ --- a \emph{study}",
  author    = {M{\"u}ller, Hans and {Barnes and Noble} and de la Cruz, Jr., Ana and others},
  journal   = acm # { Letters},
  year = 2024, month = nov, day = 7,
  doi = {https://doi.org/10.1000/a_b}, url = {https://a.b/c\_d},
  keywords = {pruning; graphs, pruning},
  abstract = {Line one
     line two \& 50\%.}
}
@inproceedings(b, title={Second}, year={2023a}, month={March},
  booktitle={Proc. of X}, eprint={2405.19504v3}, archivePrefix={arXiv}, primaryClass={cs.LG})
@misc{c, title={Third}, url={http://arxiv.org/abs/hep-th/9901001}, date={2020-05-06/2020-07}}
@misc{d, title={Fourth}, journal={arXiv preprint arXiv:2101.00001}, year={soon}} @misc{e,title=5}
"""


def test_bibtex_as_it_is_found(tmp_path) -> None:
    a, b, c, d, e = bibtex.read(write(tmp_path, "r.bib", BIB))
    assert a == Entry(
        title="On Über-Things: $x^{2}$ — a study", date="2024-11-07", doi="10.1000/a_b",
        authors=("Hans Müller", "Barnes and Noble", "Ana de la Cruz Jr."),
        venue="ACM Press Letters", url="https://a.b/c_d", categories=("pruning", "graphs"),
        abstract="Line one line two & 50%.", sources=("file:r.bib",),
    )  # fmt: skip
    assert (b.arxiv, b.date, b.venue, b.categories) == (
        "2405.19504", "2023-03", "Proc. of X", ("cs.LG",),
    )  # fmt: skip
    assert (c.arxiv, c.date) == ("hep-th/9901001", "2020-05-06")
    assert (d.arxiv, d.venue, d.date, e.title) == ("2101.00001", "", "", "5")


def test_broken_entries_are_refused_with_their_line(tmp_path) -> None:
    text = (
        "@article{a, title={Good}}\n@article{b, title={Open\n\n@article{c, author={A}}\n"
        "@article{d title={x}}\n@article{e, title=}\n@misc{f, title={Good too}}\n"
        '@misc{g, title={G}, url={javascript:x}, year=3000}\n@misc{h, title="unclosed}\n'
    )
    found = list(bibtex.read(write(tmp_path, "r.bib", text)))
    assert [getattr(i, "title", i.place if isinstance(i, Refusal) else "") for i in found] == [
        "Good", "line 2", "line 4", "line 5", "line 6", "Good too", "G", "line 9",
    ]  # fmt: skip
    assert found[1].reason == "a brace or quote is not closed"
    assert (found[6].url, found[6].date) == ("", "")
    with pytest.raises(SourceError, match="holds no entry"):
        list(bibtex.read(write(tmp_path, "e.bib", "nothing here")))


@pytest.mark.parametrize(
    "text",
    [
        "@a{" * 300_000, "@a{b," + "{" * 900_000, "\n@a{b, c=" * 100_000, "@a{b,c={" + "}" * 10**6,
        "@string{a={xxxxxxxx}}\n" + "@string{a = a # a}\n" * 60 + "@a{b, title = a # a}",
        "@string{a={" + "x" * 9_000 + "}}\n@a{b, title = a" + " # a" * 200_000 + "}",
    ],
    ids=["nested", "open", "many", "closed", "doubling", "long"],
)  # fmt: skip
def test_hostile_bibtex_ends_soon(tmp_path, text) -> None:
    found = list(bibtex.read(write(tmp_path, "h.bib", text)))
    assert len(found) >= 1


RIS = (
    "TY  - JOUR\r\nTI  - A title\r\nthat goes on\r\nAU  - Lovelace, Ada\r\n"
    "AU  - Davis, Sammy, Jr.\r\nA1  - Plato\r\nPY  - 2024///\r\n"
    "DA  - 2024/11/07/\r\nJO  - J. of X\r\nDO  - doi:10.1/x\r\n"
    "UR  - https://arxiv.org/abs/2405.19504v1\r\nKW  - graphs\r\nN2  - What\r\nER  - \r\n"
    "\r\nTY  - GEN\r\nT1  - Second\r\nY1  - 2020\r\nER  -\r\n"
)


def test_ris_as_it_is_found(tmp_path) -> None:
    first, second = ris.read(write(tmp_path, "r.ris", RIS))
    assert first == Entry(
        title="A title that goes on", authors=("Ada Lovelace", "Sammy Davis Jr.", "Plato"),
        date="2024-11-07", venue="J. of X", doi="10.1/x", arxiv="2405.19504", abstract="What",
        url="https://arxiv.org/abs/2405.19504v1", categories=("graphs",), sources=("file:r.ris",),
    )  # fmt: skip
    assert (second.title, second.date) == ("Second", "2020")


def test_broken_records_are_refused_with_their_line(tmp_path) -> None:
    text = (
        "TY  - A\nTI  - One\nTY  - B\nER  - \nTY  - C\nTI  - Three\nER  - \nTY  - D\nTI  - Four\n"
    )
    found = list(ris.read(write(tmp_path, "r.ris", text)))
    assert [getattr(item, "place", "") for item in found] == ["line 1", "line 3", "", "line 8"]
    assert found[0].reason == "no ER before the next record in line 3"
    assert found[2].title == "Three"
    with pytest.raises(SourceError, match="holds no record"):
        list(ris.read(write(tmp_path, "e.ris", "TI  - x\nER  - \n")))


def row(number: int, **facts) -> str:
    known = {
        "id": f"2611.{number:05d}", "authors": "A. Foo and B. Bar", "title": f"Paper\n  {number}",
        "categories": "cs.LG stat.ML", "abstract": "  What\n", "doi": "10.1/x 10.2/y",
        "journal-ref": None, "update_date": "2026-11-21",
        "versions": [{"version": "v1", "created": "Thu, 19 Nov 2026 19:18:42 GMT"}],
        "authors_parsed": [["Foo", "A.", ""], ["Bar", "B.", "Jr."], ["Lab", "", ""]],
    }  # fmt: skip
    return json.dumps(known | facts) + "\n"


def test_a_snapshot_is_read_line_by_line(tmp_path) -> None:
    lines = [
        row(1), "\n", "nonsense\n", row(2, versions=[], authors_parsed=None), "[1]\n",
        row(3, id="x"), row(4, id=None), row(5, versions="x", update_date=7),
        row(6, abstract="x" * 3 * 2**20), "{" * 9 + '"a":' * 100_000 + "\n", row(7).rstrip(),
    ]  # fmt: skip
    found = list(snapshot.read(write(tmp_path, "s.json", "".join(lines))))
    assert found[0] == Entry(
        title="Paper 1", abstract="What", authors=("A. Foo", "B. Bar Jr.", "Lab"), doi="10.1/x",
        arxiv="2611.00001", date="2026-11-19", categories=("cs.LG", "stat.ML"), sources=("arxiv",),
    )  # fmt: skip
    assert [i.place for i in found if isinstance(i, Refusal)] == [
        "line 3", "line 5", "line 6", "line 7", "line 9", "line 10",
    ]  # fmt: skip
    second = next(i for i in found if getattr(i, "arxiv", "") == "2611.00002")
    assert (second.date, second.authors) == ("2026-11-21", ("A. Foo", "B. Bar"))
    assert [i.arxiv for i in found if isinstance(i, Entry)][-1] == "2611.00007"
    assert isinstance(found[-1], Mark)
    assert found[-1].position == found[-1].total == (tmp_path / "s.json").stat().st_size


def test_a_snapshot_goes_on_from_every_mark(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(snapshot, "STEP", 3)
    monkeypatch.setattr(snapshot, "LONGEST", 2_000)
    text = "".join(row(i, abstract="x" * 5_000 if i in (2, 5) else "é") for i in range(10))
    path = write(tmp_path, "s.jsonl", text)
    found = list(snapshot.read(path))
    names = [item.arxiv for item in found if isinstance(item, Entry)]
    assert len(names) == 8
    for at, item in enumerate(found):
        if isinstance(item, Mark):
            rest = [i.arxiv for i in snapshot.read(path, item.position) if isinstance(i, Entry)]
            assert rest == [i.arxiv for i in found[at:] if isinstance(i, Entry)]
    assert sum(isinstance(item, Mark) for item in found) == 4


@pytest.mark.parametrize("text", ["", "\n\n", "x\n", "[\n{}\n]\n", "\xef\xbb\xbf[]"])
def test_a_file_that_is_no_snapshot(tmp_path, text) -> None:
    with pytest.raises(SourceError, match="one JSON object a line"):
        list(snapshot.read(write(tmp_path, "s.json", text.encode("latin-1"))))


def test_arxiv_ids_in_running_text() -> None:
    assert find_arxiv("", "see https://arxiv.org/pdf/2405.19504v2.pdf") == "2405.19504"
    assert find_arxiv("10.48550/arXiv.2405.19504") == "2405.19504"
    assert find_arxiv("2405.19504") == "2405.19504"
    assert find_arxiv("10.1000/2405.19504", "https://a.b/2405.19504") == ""
