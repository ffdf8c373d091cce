"""Feeds, read back by feedparser and an XML parser: one entry a paper, ids that stay, text safe."""

import re
from xml.etree import ElementTree

import feedparser
import pytest
from site_set_up import HOSTILE, PAPERS, site_client

from etude.papers.entry import Entry
from etude.site.feeds import entry_uuid, moment, plain

FEEDS = [
    "/feeds/latest", "/feeds/trending", "/feeds/date/2026-11-22", "/feeds/family/retrieval",
    "/feeds/search",
]  # fmt: skip
WORDS = {"q": "newest paper"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with site_client(tmp_path_factory.mktemp("site"), base_url="https://papers.test") as client:
        yield client


@pytest.mark.parametrize("shape", ["atom", "rss"])
@pytest.mark.parametrize("path", FEEDS)
def test_feedparser_reads_it_without_complaint(client, path, shape):
    answer = client.get(f"{path}.{shape}", params=WORDS if "search" in path else None)
    assert answer.headers["content-type"] == f"application/{shape}+xml; charset=utf-8"
    ElementTree.fromstring(answer.content)
    feed = feedparser.parse(answer.content, response_headers=dict(answer.headers))
    assert feed.bozo is False
    assert feed.version == {"atom": "atom10", "rss": "rss20"}[shape]
    assert feed.feed.title.startswith("etude")
    assert feed.entries
    for entry in feed.entries:
        assert entry.link.startswith("https://papers.test/papers/")
        assert entry.id.startswith("urn:uuid:")
        assert entry.published_parsed
        assert entry.title
    assert len({entry.id for entry in feed.entries}) == len(feed.entries)


@pytest.mark.parametrize("path", FEEDS)
def test_json_feed_has_the_same_entries(client, path):
    words = WORDS if "search" in path else None
    feed = client.get(f"{path}.json", params=words)
    assert feed.headers["content-type"] == "application/feed+json"
    facts = feed.json()
    assert facts["version"] == "https://jsonfeed.org/version/1.1"
    assert facts["feed_url"].startswith(f"https://papers.test{path}.json")
    atom = feedparser.parse(client.get(f"{path}.atom", params=words).content)
    assert [item["id"] for item in facts["items"]] == [entry.id for entry in atom.entries]
    assert all(item["content_text"] for item in facts["items"])


def test_an_id_is_of_the_paper_not_of_the_place_or_shape(client, tmp_path):
    known = "urn:uuid:" + "".join(entry_uuid("2405.19504").split(":")[2:])
    assert known == entry_uuid("2405.19504")
    seen = set()
    for path in ("/feeds/family/retrieval.atom", "/feeds/date/2026-11-20.rss"):
        feed = feedparser.parse(client.get(path).content)
        seen |= {e.id for e in feed.entries if e.link.endswith("/papers/2405.19504")}
    with site_client(tmp_path, base_url="http://elsewhere.test") as other:
        feed = feedparser.parse(other.get("/feeds/date/2026-11-20.atom").content)
        seen |= {e.id for e in feed.entries if e.link.endswith("/papers/2405.19504")}
    assert seen == {known}


@pytest.mark.parametrize("shape", ["atom", "rss"])
def test_hostile_text_is_only_text(client, shape):
    answer = client.get(f"/feeds/date/2026-11-22.{shape}")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", answer.text)
    assert "<script" not in answer.text
    root = ElementTree.fromstring(answer.content)
    titles = [e.text for e in root.iter() if e.tag.rpartition("}")[2] == "title"]
    wanted = HOSTILE.replace("\x1b", "")
    assert wanted in titles
    texts = [e.text or "" for e in root.iter()
             if e.tag.rpartition("}")[2] in ("summary", "description")]  # fmt: skip
    shown = "<img src=x" if shape == "atom" else "&lt;img src=x"  # RSS holds HTML there
    assert any(text.startswith(shown) for text in texts)


def test_control_characters_are_gone():
    assert plain("a\x00b\x1bc\ud800d\ufffee\tf\U0001f600") == "abcde\tf\U0001f600"


@pytest.mark.parametrize(("date", "wanted"), [
    ("2026-11-22", "2026-11-22"), ("2026-11", "2026-11-01"), ("2026", "2026-01-01"),
    ("", "1970-01-01"), ("0001", "0001-01-01"),
])  # fmt: skip
def test_the_moment_of_a_date(date, wanted):
    assert moment(date).strftime("%Y-%m-%d").rjust(10, "0") == wanted


def test_an_old_paper_and_one_without_a_date(tmp_path):
    odd = [Entry(title="Ancient", date="1901-01-02"), Entry(title="Undated")]
    with site_client(tmp_path, papers=odd) as client:
        for query in ({"last": "1902-01-01"}, {"q": "undated"}):
            assert client.get("/papers", params=query).status_code == 200
        feed = feedparser.parse(client.get("/feeds/date/1901-01-02.atom").content)
        assert feed.entries[0].published == "1901-01-02T00:00:00Z"
        assert feedparser.parse(client.get("/feeds/search.atom?q=undated").content).bozo is False


def test_a_saved_search_is_a_feed_of_its_own(client):
    one, other = (
        feedparser.parse(client.get("/feeds/search.atom", params={"q": q}).content)
        for q in ("newest paper", "plain paper")
    )
    assert one.feed.id != other.feed.id
    assert one.feed.title == "etude: newest paper"
    own = next(link.href for link in one.feed.links if link.rel == "self")
    again = feedparser.parse(client.get(own.removeprefix("https://papers.test")).content)
    assert [e.id for e in again.entries] == [e.id for e in one.entries]
    quoted = client.get("/feeds/search.rss", params={"q": '"><b> & \x1b]'})
    assert quoted.status_code == 200
    assert feedparser.parse(quoted.content).bozo is False


def test_opml_and_page_list_the_feeds(client):
    root = ElementTree.fromstring(client.get("/feeds.opml").content)
    urls = [e.get("xmlUrl") for e in root.iter("outline")]
    assert "https://papers.test/feeds/latest.atom" in urls
    page = client.get("/feeds").text
    for url in urls:
        path = url.removeprefix("https://papers.test")
        assert client.get(path).status_code == 200
        assert f'href="{path}"' in page
    listed = client.get("/feeds.json").json()["feeds"]
    assert [feed["path"] + ".atom" for feed in listed] == [
        url.removeprefix("https://papers.test") for url in urls
    ]


def test_what_is_no_feed_is_refused(client):
    assert client.get("/feeds/latest.xml").status_code == 422
    assert client.get("/feeds/date/2026-99-99.atom").status_code == 404
    assert client.get("/feeds/family/unknown.rss").status_code == 404
    assert client.get("/feeds/search.atom", params={"q": "x" * 301}).status_code == 422


def test_the_newest_come_first(client):
    feed = feedparser.parse(client.get("/feeds/latest.atom").content)
    dates = [entry.published for entry in feed.entries]
    assert dates == sorted(dates, reverse=True)
    assert feed.feed.updated == dates[0]
    assert len(feed.entries) == 50
    assert {p.arxiv for p in PAPERS[:4]} <= {e.link.rpartition("/")[2] for e in feed.entries}
