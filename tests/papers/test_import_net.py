"""Hugging Face and arXiv by answers of our own; and upstreams that do harm."""

import gzip
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from etude.papers.entry import Entry
from etude.papers.importers import arxiv, huggingface, upstream
from etude.papers.importers.common import MB, Mark, Refusal, SourceError
from etude.papers.importers.upstream import Upstream

ATOM = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"
 xmlns:arxiv="http://arxiv.org/schemas/atom"><title>arXiv Query</title>
<id>http://arxiv.org/api/x</id><updated>2026-11-22T00:00:00Z</updated>
<opensearch:totalResults>{total}</opensearch:totalResults>{entries}</feed>"""
ITEM = """<entry><id>http://arxiv.org/abs/{id}v2</id><updated>2026-11-20T10:00:00Z</updated>
<published>2026-11-19T10:00:00Z</published><title>{title}</title>
<summary>  About a &lt; b and
  &lt;b&gt;more&lt;/b&gt;.</summary><author><name>Ada Lovelace</name></author>
<author><name>Li Ming</name></author><arxiv:doi>10.1/x</arxiv:doi>
<arxiv:journal_ref>J. of X 1</arxiv:journal_ref>
<category term="cs.LG"/><category term="stat.ML"/></entry>"""


def atom(names, total=None) -> bytes:
    items = "".join(ITEM.format(id=name, title=f"Paper {name}") for name in names)
    return ATOM.format(total=len(names) if total is None else total, entries=items).encode()


def asks(answer, **settings) -> Upstream:
    """An upstream that answers `answer(request)`; its waits are kept in `slept`."""
    slept: list[float] = []
    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    made = Upstream(client, sleep=slept.append, **settings)
    made.slept = slept
    return made


def hf(name: str, **facts) -> dict:
    paper = {
        "id": name, "title": f"Paper {name}", "summary": "What\nit does.", "upvotes": 7,
        "publishedAt": "2026-11-19T01:00:00.000Z", "submittedOnDailyAt": "2026-11-20T00:00:00.000Z",
        "authors": [{"name": "Ada Lovelace", "hidden": False}, {"_id": "x"}, "odd"],
    }  # fmt: skip
    return {"paper": paper | facts, "title": paper["title"], "publishedAt": paper["publishedAt"]}


def test_daily_papers_of_a_day() -> None:
    asked = []

    def answer(request):
        asked.append(dict(request.url.params))
        pages = {"0": ("2611.00001", "2611.00002"), "1": ("2611.00002", "2611.00003")}
        return httpx2.Response(200, json=list(map(hf, pages.get(asked[-1]["p"], ()))))

    found = list(huggingface.read("2026-11-22", asks(answer)))
    assert asked[0] == {"date": "2026-11-22", "limit": "100", "p": "0"}
    assert [a["p"] for a in asked] == ["0", "1", "2"]
    assert [e.arxiv for e in found] == ["2611.00001", "2611.00002", "2611.00003"]
    assert found[0] == Entry(
        title="Paper 2611.00001", abstract="What it does.", authors=("Ada Lovelace",), votes=7,
        arxiv="2611.00001", date="2026-11-22", sources=("hf:2026-11-22",),
    )  # fmt: skip


@pytest.mark.parametrize(("period", "name"), [("2026-W47", "week"), ("2026-11", "month")])
def test_weeks_and_months_keep_the_day_of_the_list(period, name) -> None:
    def answer(request):
        assert request.url.params[name] == period
        bare = hf("2611.00002", submittedOnDailyAt=None)
        return httpx2.Response(200, json=[hf("2611.00001"), bare])

    found = list(huggingface.read(period, asks(answer)))
    assert [e.date for e in found] == ["2026-11-20", "2026-11-19"]
    assert found[0].sources == ("hf:2026-11-20",)


def test_odd_papers_are_refused_one_by_one() -> None:
    rows = [
        7, {"paper": []}, hf("2611.00001", title="\x1b[2J"), hf("x" * 99, upvotes=True),
        hf("2611.00003", upvotes="many", authors=None, publishedAt=3), {"paper": {"title": None}},
    ]  # fmt: skip
    answer = lambda request: httpx2.Response(200, json=rows)  # noqa: E731
    found = list(huggingface.read("2026-11-22", asks(answer)))
    assert [type(item) for item in found] == [Refusal, Refusal, Entry, Entry, Entry, Refusal]
    assert found[0].reason == "no object with a paper in it"
    assert (found[2].title, found[3].votes, found[3].arxiv, found[4].votes) == ("[2J", 0, "", 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (json.dumps([hf("1")]).encode()[:-9], "no JSON, or half of it"), (b"{}", "no list"),
        (b"<html>", "no JSON"), (b"[" * 200_000, "no JSON"), (b"\xff\xfe", "no JSON"),
    ],
)  # fmt: skip
def test_half_an_answer_gives_no_paper(body, why) -> None:
    with pytest.raises(SourceError, match=why):
        next(
            huggingface.read("2026-11-22", asks(lambda request: httpx2.Response(200, content=body)))
        )


def test_an_arxiv_query_is_paged_and_goes_on_from_a_place(monkeypatch) -> None:
    monkeypatch.setattr(arxiv, "PAGE", 2)
    names = [f"2611.{i:05d}" for i in range(5)]
    asked, turns = [], []

    def answer(request):
        asked.append(dict(request.url.params))
        start = int(asked[-1]["start"])
        page = [] if len(asked) == 2 else names[start : start + 2]  # arXiv does so now and then
        return httpx2.Response(200, content=atom(page, 5))

    up = asks(answer, turn=lambda: turns.append(1))
    found = list(arxiv.read("cat:cs.LG AND ti:x", up))
    assert [item.arxiv for item in found if isinstance(item, Entry)] == names
    marks = [item for item in found if isinstance(item, Mark)]
    assert [(mark.position, mark.total) for mark in marks] == [(2, 5), (2, 5), (4, 5), (5, 5)]
    assert [a["start"] for a in asked] == ["0", "2", "2", "4"]
    assert len(turns) == 4
    assert asked[0]["search_query"] == "cat:cs.LG AND ti:x"
    assert asked[0]["sortOrder"] == "ascending"
    assert found[0] == Entry(
        title="Paper 2611.00000", abstract="About a < b and <b>more</b>.", arxiv="2611.00000",
        authors=("Ada Lovelace", "Li Ming"), date="2026-11-19", categories=("cs.LG", "stat.ML"),
        doi="10.1/x", venue="J. of X 1", sources=("arxiv",),
    )  # fmt: skip
    again = [item.arxiv for item in arxiv.read("x", up, 4) if isinstance(item, Entry)]
    assert again == names[4:]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (atom([], 30_001), "at most 30,000 papers"), (atom([]), "no paper for this query"),
        (atom([], 5), "no more than 0 of 5"), (b"<html></html>", "no Atom"), (b"", "no Atom"),
        (atom(["2611.00001"])[:-30], "half of it"),
        (ATOM.format(total=1, entries="<entry><id>http://arxiv.org/api/errors#1</id><title>Error"
                     "</title><summary>malformed id</summary></entry>").encode(), "malformed id"),
    ],
)  # fmt: skip
def test_what_arxiv_cannot_answer_is_said(body, why) -> None:
    with pytest.raises(SourceError, match=why):
        list(arxiv.read("x", asks(lambda request: httpx2.Response(200, content=body))))


BOMB = "<!DOCTYPE b [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY a{i} '{f'&a{i - 1 if i else str()};' * 10}'>" for i in range(9)
)


@pytest.mark.parametrize(
    "body",
    [
        f"<?xml version='1.0'?>{BOMB}]><feed xmlns='http://www.w3.org/2005/Atom'>&a8;</feed>".encode(),
        b"<!DOCTYPE f [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><feed><title>&x;</title></feed>",
        b"<!doctype f><feed/>", atom(["2611.00001"]).decode().encode("utf-16"),
        atom(["2611.00001"]).replace(b"UTF-8", b"UTF-7"), atom(["2611.00001"]) + b"\xff",
    ],
)  # fmt: skip
def test_bombs_and_entities_are_not_read(body) -> None:
    began = time.thread_time()  # work, not waiting: the machine may be busy
    with pytest.raises(SourceError, match="no plain Atom in UTF-8; it is not read"):
        list(arxiv.read("x", asks(lambda request: httpx2.Response(200, content=body))))
    assert time.thread_time() - began < 2


def test_ids_are_asked_in_lists_and_unknown_ones_refused(monkeypatch) -> None:
    monkeypatch.setattr(arxiv, "PAGE", 2)
    asked = []

    def answer(request):
        asked.append(request.url.params["id_list"])
        known = [name for name in asked[-1].split(",") if name != "2611.00002"]
        return httpx2.Response(200, content=atom(known))

    ids = ["2611.00001", "2611.00002", "2611.00001", "hep-th/9901001"]
    found = list(arxiv.read_ids(ids, asks(answer)))
    assert asked == ["2611.00001,2611.00002", "hep-th/9901001"]
    assert [getattr(item, "arxiv", "") for item in found] == ["2611.00001", "", "hep-th/9901001"]
    assert found[1] == Refusal("2611.00002", "arXiv does not know this id")


def test_busy_servers_are_asked_again_with_patience() -> None:
    answers = [httpx2.Response(503), httpx2.Response(429, headers={"Retry-After": "17"})]
    up = asks(lambda request: answers.pop(0) if answers else httpx2.Response(200, content=b"ok"))
    assert up.get("https://a.b/c", {}) == b"ok"
    assert up.slept == [1.0, 17.0]


def test_a_date_to_come_back_is_understood_and_a_late_one_ends_it() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    answers = [httpx2.Response(503, headers={"Retry-After": soon})]
    up = asks(lambda request: answers.pop(0) if answers else httpx2.Response(200, content=b"ok"))
    assert up.get("https://a.b/c", {}) == b"ok"
    assert 30 < up.slept[0] <= 40
    late = asks(lambda request: httpx2.Response(429, headers={"Retry-After": "3600"}))
    with pytest.raises(SourceError, match=r"a\.b answers 429; it asks to come back in 3600 s"):
        late.get("https://a.b/c", {})
    assert late.slept == []


def test_what_stays_down_is_told() -> None:
    def down(request):
        raise httpx2.ConnectError("no route to host")

    up = asks(down)
    with pytest.raises(SourceError, match=r"a\.b cannot be reached: no route to host \(tried 4"):
        up.get("https://a.b/c", {})
    assert up.slept == [1.0, 2.0, 4.0]
    gone = asks(lambda request: httpx2.Response(404, content=b"\x1b[31mNot\n here" + b"x" * 10**6))
    with pytest.raises(SourceError) as caught:
        gone.get("https://a.b/c", {})
    assert str(caught.value).startswith("a.b answers 404: [31mNot here")
    assert len(str(caught.value)) < 300
    assert gone.slept == []
    moved = asks(lambda request: httpx2.Response(302, headers={"Location": "http://127.0.0.1/"}))
    with pytest.raises(SourceError, match="answers 302"):
        moved.get("https://a.b/c", {})


def test_packed_answers_are_bounded_too() -> None:
    packed = {"Content-Encoding": "gzip"}

    def answers(raw: bytes, headers=packed, **settings) -> Upstream:
        made = lambda _: httpx2.Response(200, headers=headers, content=iter([raw]))  # noqa: E731
        return asks(made, **settings)

    assert answers(gzip.compress(b"ok")).get("https://a.b/c", {}) == b"ok"
    bomb = gzip.compress(bytes(50 * MB))
    with pytest.raises(SourceError, match="answers without end, more than 1,048,576 are not read"):
        answers(bomb, largest=MB).get("https://a.b/c", {})
    with pytest.raises(SourceError, match="broke its answer off"):
        answers(gzip.compress(b"ok")[:9]).get("https://a.b/c", {})
    with pytest.raises(SourceError, match="packed as br"):
        answers(b"x", {"Content-Encoding": "br"}).get("https://a.b/c", {})


class Endless(BaseHTTPRequestHandler):
    """Answers without end, with a length of 10 GB, or a byte at a time."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.startswith("/large"):
            self.send_header("Content-Length", str(10 * 2**30))
        self.end_headers()
        try:
            while True:
                piece = b"x" if self.path.startswith("/slow") else b"x" * 65_536
                self.wfile.write(piece)
                type(self).sent += len(piece)
                if len(piece) == 1:
                    time.sleep(0.05)
        except OSError:
            return

    def log_message(self, *words: object) -> None:
        """Quiet."""


@pytest.fixture
def endless():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_endless_answer_is_cut(endless) -> None:
    Endless.sent = 0
    with upstream.open_client() as client:
        up = Upstream(client, largest=2 * MB)
        with pytest.raises(SourceError, match=r"127\.0\.0\.1 answers without end"):
            up.get(f"{endless}/endless", {})
        time.sleep(0.1)
        assert Endless.sent < 16 * MB  # what the sockets hold of it
        with pytest.raises(SourceError, match="answers with 10,737,418,240 bytes"):
            up.get(f"{endless}/large", {})


def test_a_slow_answer_is_cut(endless, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "LONGEST_ANSWER_S", 0.3)
    with upstream.open_client() as client, pytest.raises(SourceError, match="did not end its"):
        Upstream(client).get(f"{endless}/slow", {})  # which would never end
