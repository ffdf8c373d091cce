"""Hostile titles, queries, addresses and parameters: text stays text."""

import re

import pytest
from site_set_up import HOSTILE, PAPERS, site_client
from starlette.datastructures import URL
from starlette.requests import HTTPConnection


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with site_client(tmp_path_factory.mktemp("site")) as client:
        yield client


def test_hostile_text_is_shown_and_never_obeyed(client):
    for path in ("/", "/papers/2611.00003", "/papers/trending", "/papers?first=2026-11-22"):
        page = client.get(path).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "<i>test" not in page
        assert "49" not in re.findall(r"\]\]&gt; &lt;/title&gt; (\S+)", page)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2028]", page)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "A &lt;b&gt;Bold&lt;/b&gt; Author" in client.get("/").text


def test_a_query_is_shown_and_never_obeyed(client):
    for q in ('"><script>x</script>', "'; DROP TABLE papers; --", "ti:\x1b[31m", "%s {0} ${x}"):
        page = client.get("/papers", params={"q": q, "first": "", "last": ""})
        assert page.status_code in (200, 400)
        assert "<script>x" not in page.text
        assert "\x1b" not in page.text


SQL = ["' OR 1=1 --", "1; DROP TABLE papers", "\\'; SELECT pg_sleep(9)--", "2026-11-22' --", "%00"]


@pytest.mark.parametrize("attack", SQL)
def test_sql_in_every_parameter_is_only_text(client, attack):
    for name in ("q", "first", "last", "family", "runnable", "page"):
        assert client.get("/papers.json", params={name: attack}).status_code in (200, 400, 422)
    for name in ("family", "runnable", "held", "cost"):
        assert client.get("/methods.json", params={name: attack}).status_code in (400, 422)
    for path in ("date/", "week/", "month/", ""):
        assert client.get(f"/papers/{path}{attack}.json").status_code in (400, 404, 422)
    assert client.get(f"/feeds/family/{attack}.atom").status_code in (400, 404, 422)
    assert client.app.state.site.store.count() > len(PAPERS)


def test_bounds_of_a_query(client):
    assert client.get("/papers", params={"q": "a" * 301}).status_code == 422
    assert client.get("/papers", params={"q": "a" * 60_000}).status_code == 422
    assert client.get("/papers?page=201").status_code == 422
    assert client.get("/papers?page=200").status_code == 200
    assert client.get("/papers?first=2026-02-30").status_code == 400
    assert client.get("/papers/" + "a" * 601).status_code in (404, 422)


@pytest.mark.parametrize("path", [
    "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/settings.py",
    "/static/....//app.py", "/static//etc/passwd", "/static/..%5capp.py", "/static/",
])  # fmt: skip
def test_no_path_leads_out_of_static(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_no_header_can_be_set_by_an_address(client):
    answer = client.get("/papers/x%0d%0aSet-Cookie:%20a=b")
    assert answer.status_code == 404
    assert "set-cookie" not in answer.headers
    answer = client.get(
        "/feeds/search.atom", params={"q": "x\r\nSet-Cookie: a=b", "family": "heads"}
    )
    assert "set-cookie" not in answer.headers


def test_markdown_shows_every_letter_of_a_title(client):
    text = client.get("/papers/2611.00003.md").text
    title = text.splitlines()[0]
    assert title.startswith("# Eve ")
    assert re.sub(r"\\(.)", r"\1", title[2:]) == re.sub("\x1b", "", HOSTILE)
    assert not re.search(r"(?<!\\)[<>\[\]`*_&]", title[2:])


@pytest.mark.parametrize("host", ["x/evil-place?y=", "x/evil-place", "[", "x#evil-place"])
def test_the_name_that_a_reader_gives_the_site_is_on_no_page(client, host):
    """What one reader's page says is kept for others: nothing of it may come from a header."""
    for path in ("/papers?page=1", "/papers/trending", "/methods", "/nothing"):
        for answer in (client.get(path, headers={"host": host}), client.get(path)):
            assert answer.status_code == (404 if path == "/nothing" else 200)
            assert "evil-place" not in answer.text


def test_no_page_is_made_of_the_address_that_a_header_may_alter(client, monkeypatch):
    """Of the frameworks' versions some put the header Host before the path as it is."""
    made = property(lambda self: URL("http://x/evil-place?y="))
    monkeypatch.setattr(HTTPConnection, "url", made)
    page = client.get("/papers?page=2&last=2026-12-01").text
    assert "evil-place" not in page
    assert 'name="back" value="/papers?page=2&amp;last=2026-12-01"' in page
    assert 'href="/methods" aria-current="page"' in client.get("/methods?cost=M").text
