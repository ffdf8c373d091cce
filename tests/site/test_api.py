"""The API: conditional requests, the memory of pages, and its description fuzzed."""

import asyncio
import gzip
import json
import os
import time
from email.utils import formatdate, parsedate_to_datetime

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from site_set_up import PAPERS, settings_of, site_client

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.site.app import make_app
from etude.site.fresh import Fresh

CHECKS = [
    getattr(schemathesis.checks, name)
    for name in (
        "not_a_server_error", "content_type_conformance", "response_schema_conformance",
        "status_code_conformance", "response_headers_conformance",
    )
]  # fmt: skip
READ = ["/", "/index.json", "/papers", "/papers/2405.19504", "/papers/2405.19504.md", "/methods",
        "/feeds/latest.atom", "/feeds/latest.json", "/about", "/openapi.json"]  # fmt: skip


@pytest.fixture
def client(tmp_path):
    with site_client(tmp_path) as client:
        yield client


@pytest.mark.parametrize("path", READ)
def test_what_a_reader_has_is_not_sent_again(client, path):
    first = client.get(path)
    tag, when = first.headers["etag"], first.headers["last-modified"]
    assert first.headers["cache-control"]
    for asked in ({"if-none-match": tag}, {"if-none-match": f'"x", {tag}'},
                  {"if-none-match": "*"}, {"if-modified-since": when}):  # fmt: skip
        again = client.get(path, headers=asked)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    for asked in ({"if-none-match": '"x"'}, {"if-modified-since": "yesterday"},
                  {"if-modified-since": formatdate(0, usegmt=True)},
                  {"if-none-match": '"x"', "if-modified-since": when}):  # fmt: skip
        assert client.get(path, headers=asked).status_code == 200


def test_addresses_have_tags_of_their_own(client):
    tags = {client.get(path).headers["etag"] for path in [*READ, "/papers?page=2", "/papers?q="]}
    assert len(tags) == len(READ) + 2


def test_a_new_paper_a_vote_and_an_import_change_the_page(client):
    site = client.app.state.site
    seen, times = [], []
    for change in (
        lambda: None,
        lambda: site.store.add([Entry(title="One more", date="2026-11-22")]),
        lambda: client.post("/papers/2611.00002/vote"),
        lambda: client.post("/papers/2611.00002/vote"),
    ):
        change()
        answer = client.get("/", headers={"if-none-match": seen[-1] if seen else '"x"'})
        assert answer.status_code == 200
        seen.append(answer.headers["etag"])
        times.append(parsedate_to_datetime(answer.headers["last-modified"]))
    assert "One more" in client.get("/").text
    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[1], "a vote that was taken back leaves the page as it was"
    assert times == sorted(set(times)), "each version must look newer than the last"


def test_a_vote_counts_on_the_page(client):
    before = client.get("/papers/2611.00002.json").json()["votes"]
    client.post("/papers/2611.00002/vote")
    assert client.get("/papers/2611.00002.json").json()["votes"] == before + 1
    assert f"({before + 1} so far)" in client.get("/papers/2611.00002").text


def test_head_is_get_without_a_body(client):
    for path in [*READ, "/static/site.css", "/nothing"]:
        whole, head = client.get(path), client.head(path)
        assert head.status_code == whole.status_code
        assert head.content == b""
        for name in ("etag", "content-type", "cache-control"):
            assert head.headers.get(name) == whole.headers.get(name), path


def test_files_of_the_style_may_be_kept_for_long(client):
    page = client.get("/").text
    path = page.split('<link rel="stylesheet" href="')[1].split('"')[0]
    assert "immutable" in client.get(path).headers["cache-control"]
    assert client.get("/static/site.css").headers["cache-control"] == "no-cache"


def test_no_page_is_kept_by_others_where_it_may_change_by_reader(client):
    for path in ("/nothing", "/runs", "/subscribe", "/confirm/x"):
        assert client.get(path).headers["cache-control"] == "no-store", path
    assert "set-cookie" not in client.get("/").headers


def test_the_safety_headers_are_on_every_answer(client):
    for path in ("/", "/nothing", "/static/site.css", "/feeds/latest.atom", "/index.json"):
        for answer in (client.get(path), client.get(path, headers={"if-none-match": "*"})):
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_last_good_page_stays_when_upstream_is_down(client):
    from etude.site.refresh import refresh

    site = client.app.state.site
    rows = [{"paper": {"id": "2611.00009", "title": "From upstream", "summary": "x", "upvotes": 3},
             "publishedAt": "2026-11-24T00:00:00.000Z"}]  # fmt: skip

    def up(request):
        body = json.dumps(rows).encode()
        return httpx2.Response(200, stream=httpx2.ByteStream(body))

    def down(request):
        return httpx2.Response(404, stream=httpx2.ByteStream(b"gone"))

    assert client.get("/").text.count("Last refreshed") == 0
    refresh(site, client=httpx2.Client(transport=httpx2.MockTransport(up)))
    good = client.get("/")
    assert "From upstream" in client.get("/papers").text
    assert "Last refreshed" in good.text
    assert "The last try failed" not in good.text
    refresh(site, client=httpx2.Client(transport=httpx2.MockTransport(down)))
    page = client.get("/")
    assert page.status_code == 200
    assert "The last try failed" in page.text
    assert "404" in page.text.split("The last try failed")[1]
    assert "From upstream" in client.get("/papers").text


def test_a_database_that_is_gone_is_told_and_not_remembered(client, monkeypatch):
    site = client.app.state.site
    good = client.get("/methods")

    def gone():
        raise EtudeError("the papers x cannot be used: disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(type(site.store), "changed", lambda self: gone())
        patch.setattr(type(site.store), "newest", lambda self, *a, **k: gone())
        answer = client.get("/papers.json")
        assert answer.status_code == 503
        assert answer.json()["error"]["status"] == 503
    assert client.get("/methods").headers["etag"] == good.headers["etag"]


def fresh(body, stamp, *, largest=1 << 20):
    """The middleware around an app that counts how often it renders."""
    calls = []

    async def app(scope, receive, send):
        calls.append(scope["path"])
        await asyncio.sleep(0.01)
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body(scope)})

    wrapped = Fresh(app, stamp, largest=largest)
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(wrapped), base_url="http://t")
    return wrapped, client, calls


def test_readers_at_once_share_one_rendering():
    state = [1]
    _, client, calls = fresh(lambda scope: f"v{state[0]}".encode(), lambda: state[0])

    async def main():
        first = await asyncio.gather(*(client.get("/papers") for _ in range(50)))
        assert {a.text for a in first} == {"v1"}
        assert len(calls) == 1
        state[0] = 2
        assert (await client.get("/papers")).text == "v2"
        assert len(calls) == 2

    asyncio.run(main())


def test_a_change_is_seen_by_whoever_asks_after_it():
    """A reading of the stamp that was under way when the change came does not count."""
    state, slow = [1], [0.05]

    def stamp():
        seen = state[0]
        time.sleep(slow[0])
        return seen

    _, client, _ = fresh(lambda scope: f"v{state[0]}".encode(), stamp)

    async def main():
        await client.get("/papers")
        under_way = asyncio.create_task(client.get("/papers"))
        await asyncio.sleep(0.01)
        state[0] = 2
        assert (await client.get("/papers")).text == "v2"
        await under_way

    asyncio.run(main())


def test_the_memory_is_bounded():
    wrapped, client, calls = fresh(lambda scope: os.urandom(900), lambda: 1, largest=10_000)

    async def main():
        for i in range(50):
            await client.get(f"/papers?page={i}")
        assert len(wrapped._kept) <= 11
        assert sum(page.size for page in wrapped._kept.values()) == wrapped._bytes <= 10_000
        await client.get("/papers?page=49")
        assert len(calls) == 50
        await client.get("/papers?page=0")
        assert len(calls) == 51

    asyncio.run(main())


def test_a_kept_page_is_of_its_whole_address():
    """A path may hold a question mark: its page must not be taken for that of a query."""
    _, client, calls = fresh(lambda s: s["path"].encode() + b" " + s["query_string"], lambda: 1)

    async def main():
        for path, said in (("/papers/x%3Fa", "/papers/x?a "), ("/papers/x?a?", "/papers/x a?")):
            assert (await client.get(path)).text == said
        assert len(calls) == 2

    asyncio.run(main())


def test_pages_are_sent_packed_to_those_who_read_that(client):
    plain = client.get("/", headers={"accept-encoding": "identity"})
    with client.stream("GET", "/", headers={"accept-encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(raw) == plain.content
    assert "content-encoding" not in plain.headers


def test_the_description_names_every_twin_and_post(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/index.json", "/papers.json", "/papers/{name}.json", "/papers/{name}.md",
                 "/papers/date/{day}.json", "/papers/week/{week}.json", "/methods.json",
                 "/papers/month/{month}.json", "/papers/trending.json",
                 "/feeds/search.{shape}"):  # fmt: skip
        assert "get" in paths[path], path
    assert [path for path in paths if "post" in paths[path] and path.endswith("/vote")]
    assert not [p for p, verbs in paths.items() if "get" in verbs and p in ("/", "/papers")]


def test_no_input_breaks_the_server(tmp_path):
    """Every operation of the description with made inputs: no 5xx, answers as described."""
    app = make_app(settings_of(tmp_path))
    app.state.site.store.add(PAPERS)
    app.state.site.finder.sync()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    fuzzed = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        def fuzz(case):
            answer = case.call()
            if case.path == "/subscribe" and answer.status_code == 503:
                return  # without a mail server it says so
            assert answer.status_code < 500, (case.formatted_path, answer.text[:500])
            case.validate_response(answer, checks=CHECKS)

        fuzz()
        fuzzed.append(operation.label)
    assert len(fuzzed) >= 20
