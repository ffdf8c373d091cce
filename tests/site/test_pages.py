"""Pages and their JSON twins: what they show and what they refuse."""

import json
import re
from html.parser import HTMLParser

import pytest
from site_set_up import site_client

from etude.papers.entry import Entry

PAGES = [
    "/", "/papers", "/papers?family=retrieval", "/papers/date/2026-11-22", "/papers/week/2026-W47",
    "/papers/month/2026-11", "/papers/trending", "/papers/2405.19504", "/papers/2611.00003",
    "/papers/cs/0112017", "/methods", "/methods?held=holds", "/feeds", "/about",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with site_client(tmp_path_factory.mktemp("site")) as client:
        yield client


class Tags(HTMLParser):
    """What a page holds: (tag, attributes) pairs, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def links(page):
    return [a["href"] for tag, a in Tags(page).tags if tag == "a"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_small_and_asks_no_other_host(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert len(answer.content) < 100_000
    for tag, facts in Tags(answer.text).tags:
        for name in ("src", "srcset", "action", "data", "poster"):
            assert not re.match(r"(?i)(\w+:)?//", facts.get(name) or ""), (tag, facts)
        if tag == "link":
            assert facts["href"].startswith("/")
        assert "style" not in facts
        assert not [name for name in facts if name.startswith("on")]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_can_be_used_by_keyboard_and_reader(client, path):
    tags = Tags(client.get(path).text).tags
    kinds = [tag for tag, _ in tags]
    assert kinds.count("h1") == 1
    assert kinds.count("main") == 1
    assert ("html", {"lang": "en"}) in tags
    first = next(facts for tag, facts in tags if tag == "a")
    assert first["href"] == "#main"
    named = {facts.get("for") for tag, facts in tags if tag == "label"}
    for tag, facts in tags:
        if tag in ("input", "select") and facts.get("type") != "hidden":
            assert facts["id"] in named
        if tag in ("svg", "img") and "aria-hidden" not in facts:
            assert facts.get("aria-label") or facts.get("alt")
    ids = [facts["id"] for _, facts in tags if "id" in facts]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", PAGES)
def test_the_links_of_a_page_lead_somewhere(client, path):
    for link in set(links(client.get(path).text)):
        if link.startswith("/") and not link.startswith(("/subscribe", "/runs")):
            assert client.get(link).status_code in (200, 307), link


def test_the_first_page_is_the_newest_day_most_votes_first(client):
    facts = client.get("/index.json").json()
    assert (facts["kind"], facts["name"], facts["before"]) == ("day", "2026-11-22", "2026-11-20")
    assert [p["id"] for p in facts["papers"]] == ["2611.00003", "2611.00002"]
    assert "Sunday, 22 November 2026" in client.get("/").text


def test_a_new_site_opens_with_the_papers_that_run_here(tmp_path):
    with site_client(tmp_path, papers=()) as client:
        facts = client.get("/index.json").json()
        assert facts["kind"] == "catalogue"
        runs = [p["runnable"] for p in facts["papers"]]
        assert runs[0]
        assert runs == sorted(runs, reverse=True)
        dates = [p["date"] for p in facts["papers"] if p["runnable"]]
        assert dates == sorted(dates, reverse=True)
        page = client.get("/").text
        assert "etude papers import YYYY-MM-DD" in page
        assert 'rel="prev"' not in page


def test_a_week_and_a_month_hold_their_days(client):
    week = client.get("/papers/week/2026-W47.json").json()
    assert (week["first"], week["last"]) == ("2026-11-16", "2026-11-22")
    assert (week["before"], week["after"]) == ("2026-W46", "2026-W48")
    month = client.get("/papers/month/2026-11.json").json()
    assert (month["first"], month["last"]) == ("2026-11-01", "2026-11-30")
    for span in (week, month):
        ids = [p["id"] for p in span["papers"]]
        assert ids == ["2405.19504", "2611.00001", "2611.00003", "2611.00002"]


def test_a_day_without_papers_says_so_and_leads_on(client):
    page = client.get("/papers/date/2026-11-21")
    assert page.status_code == 200
    assert "No papers on this day" in page.text
    assert "/papers/date/2026-11-20" in links(page.text)
    assert "/papers/date/2026-11-22" in links(page.text)


@pytest.mark.parametrize("path", [
    "/papers/date/2026-13-45", "/papers/date/2026-02-30", "/papers/date/today",
    "/papers/week/9999-W60", "/papers/week/2026-W54", "/papers/week/2026-W00",
    "/papers/month/2026-13", "/papers/month/2026-1", "/papers/date/٢٠٢٦-11-22",
    "/papers/date/0000-01-01", "/nothing", "/papers/nothing", "/papers/date/a/b",
])  # fmt: skip
def test_what_is_not_there_is_a_404_that_helps(client, path):
    page = client.get(path)
    assert page.status_code == 404
    assert {"/", "/papers/trending", "/methods"} <= set(links(page.text))
    assert "error-q" in page.text
    twin = client.get(path + ".json")
    assert (twin.status_code, twin.json()["error"]["status"]) == (404, 404)
    assert len(twin.json()["error"]["message"]) > 10


@pytest.mark.parametrize("path", [
    "/papers/date/0001-01-01", "/papers/date/9999-12-31", "/papers/week/0001-W01",
    "/papers/week/9999-W51", "/papers/month/0001-01", "/papers/month/9999-12",
])  # fmt: skip
def test_the_ends_of_the_calendar_are_days_like_others(client, path):
    assert client.get(path).status_code == 200
    assert client.get(path + ".json").json()["papers"] == []


def test_the_error_shape_is_one(client):
    assert client.get("/papers.json?family=x").json()["error"]["status"] == 400
    assert client.get("/papers.json?page=0").json()["error"]["status"] == 422
    assert client.get("/nowhere", headers={"accept": "application/json"}).json() == {
        "error": {"message": "There is no such page.", "status": 404}
    }
    assert client.put("/about").status_code == 405


def test_a_paper_has_all_its_facts(client):
    facts = client.get("/papers/2405.19504.json").json()
    assert facts["method"] == "retrieval.muvera"
    assert facts["runnable"] is True
    assert facts["known"]["signature"][0].startswith("MuveraEncoder(")
    assert facts["known"]["measured"]
    assert "Dhulipala" in facts["bibtex"]
    assert facts["similar"]
    assert facts["id"] not in [near["id"] for near in facts["similar"]]
    page = client.get("/papers/2405.19504").text
    for said in ("MuveraEncoder(", "Published", "etude verify muvera", "<svg", "@", "Past trials"):
        assert said in page


def test_a_paper_without_a_module_says_so(client):
    facts = client.get("/papers/2611.00001.json").json()
    assert (facts["known"], facts["runnable"], facts["trials"]) == (None, False, [])
    assert "Published against measured" not in client.get("/papers/2611.00001").text


def test_one_paper_has_one_address(client):
    for name in ("muvera", "retrieval.muvera", "2405.19504v2", "arXiv:2405.19504"):
        answer = client.get(f"/papers/{name}")
        assert (answer.status_code, answer.headers["location"]) == (307, "/papers/2405.19504")
    assert client.get("/papers/cs/0112017").status_code == 200
    assert client.get("/papers/cs%2F0112017").status_code == 200
    assert client.get("/papers/cs/0112017.json").json()["page"] == "/papers/cs/0112017"
    assert client.get("/papers/cs/0112017.md").status_code == 200


def test_filters_of_the_papers(client):
    heads = client.get("/papers.json?family=heads").json()["papers"]
    assert {p["family"] for p in heads} == {"heads"}
    runs = client.get("/papers.json?runnable=yes").json()["papers"]
    assert runs
    assert all(p["runnable"] for p in runs)
    old = client.get("/papers.json?last=2002-01-01").json()["papers"]
    assert [p["id"] for p in old] == ["cs/0112017"]
    newest = client.get("/papers.json").json()["papers"][0]
    assert newest["date"] == "2026-11-22"


def test_search_finds_by_words_and_filters(client):
    hits = client.get("/papers.json", params={"q": "newest paper"}).json()["papers"]
    assert hits[0]["id"] == "2611.00002"
    hits = client.get("/papers.json", params={"q": "retrieval", "runnable": "yes"}).json()["papers"]
    assert hits
    assert all(p["runnable"] for p in hits)


def test_an_added_paper_is_found_at_once(tmp_path):
    with site_client(tmp_path) as client:
        query = {"q": "ti:zymurgy"}
        assert client.get("/papers.json", params=query).json()["papers"] == []
        client.app.state.site.store.add([Entry(title="Zymurgy of networks", date="2026-11-23")])
        assert len(client.get("/papers.json", params=query).json()["papers"]) == 1
        assert "Zymurgy" in client.get("/").text


def test_pages_follow_one_another(tmp_path):
    many = [Entry(title=f"Paper number {i}", date="2026-11-23", votes=i) for i in range(70)]
    with site_client(tmp_path, papers=many) as client:
        seen = []
        for page in (1, 2, 3):
            facts = client.get(f"/papers/date/2026-11-23.json?page={page}").json()
            seen += [p["votes"] for p in facts["papers"]]
            assert facts["more"] is (page < 3)
        assert seen == list(range(69, -1, -1))
        page = client.get("/papers/date/2026-11-23?page=2").text
        assert {"/papers/date/2026-11-23", "/papers/date/2026-11-23?page=3"} <= set(links(page))
        assert len(client.get("/papers/date/2026-11-23").content) < 100_000


def test_the_longest_papers_still_make_a_small_page(tmp_path):
    many = [
        Entry(title="W" * 490 + str(i), abstract="<" * 20_000, date="2026-11-23",
              authors=("N" * 190,) * 3_000, categories=("c" * 190,) * 50, venue="v" * 290)
        for i in range(31)
    ]  # fmt: skip
    with site_client(tmp_path, papers=many) as client:
        answer = client.get("/papers/date/2026-11-23")
        assert len(answer.content) < 250_000  # 30 papers, each at the bound of every field
        one = client.get(answer.text.split('<h2><a href="')[1].split('"')[0])
        assert one.status_code == 200


def test_methods_by_filter(client):
    every = client.get("/methods.json").json()
    assert len(every["methods"]) == every["total"]
    held = client.get("/methods.json?held=holds&family=retrieval").json()["methods"]
    assert "retrieval.muvera" in [m["key"] for m in held]
    assert {m["verdict"] for m in held} == {"holds"}
    cheap = client.get("/methods.json?cost=S&runnable=yes").json()["methods"]
    assert {m["cost"] for m in cheap} == {"S"}
    rest = client.get("/methods.json?runnable=no").json()["methods"]
    assert not any(m["runnable"] for m in rest)
    parts = [len(client.get(f"/methods.json?held={h}").json()["methods"])
             for h in ("holds", "fails", "undecided", "unmeasured")]  # fmt: skip
    assert sum(parts) == every["total"] - len(rest)


def test_trending_shows_its_formula(client):
    facts = client.get("/papers/trending.json").json()
    assert facts["formula"]
    assert facts["formula"].splitlines()[0] in client.get("/papers/trending").text.replace(
        "&#39;", "'"
    )
    assert "2611.00003" in [p["id"] for p in facts["papers"]]


def test_the_web_process_does_not_import_torch_for_pages(tmp_path):
    import subprocess
    import sys

    code = f"""
import sys; sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from pathlib import Path
from site_set_up import site_client
with site_client(Path({str(tmp_path)!r})) as client:
    for path in ("/", "/papers/trending", "/methods", "/papers?family=heads", "/feeds/latest.atom"):
        assert client.get(path).status_code == 200, path
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def test_json_twins_are_json(client):
    for path in ("/index.json", "/papers.json", "/methods.json", "/feeds.json", "/openapi.json"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        json.loads(answer.text)
