"""Votes: one a reader, taken back by a second press; as a form and as JSON; limited."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from etude.papers.entry import Entry
from etude.papers.store import Store
from etude.site.guard import Guard
from etude.site.settings import Settings
from etude.site.votes import Votes, local_path, router, votes

ENTRY = Entry(title="A paper to vote for", arxiv="2601.00001", date="2026-01-02")


@pytest.fixture
def site(database, tmp_path):
    store = Store(database)
    store.add([ENTRY])
    site = SimpleNamespace(settings=Settings(database=database, folder=tmp_path), store=store)
    yield site
    votes(site).close()
    store.close()


def make_client(site, host="192.0.2.1", **headers):
    app = FastAPI()
    app.include_router(router(site))
    app.add_middleware(Guard, site=site)
    place = "http://127.0.0.1:8000"
    return TestClient(app, place, client=(host, 1), headers=headers, follow_redirects=False)


def test_a_reader_has_one_vote_and_can_take_it_back(site) -> None:
    client, other = make_client(site), make_client(site)
    answers = [client.post("/papers/2601.00001/vote").json() for _ in range(3)]
    assert [(a["voted"], a["votes"]) for a in answers] == [(True, 1), (False, 0), (True, 1)]
    assert answers[0]["id"] == "2601.00001"
    assert other.post("/papers/2601.00001v3/vote").json()["votes"] == 2
    assert votes(site).counts(["2601.00001", "none"]) == {"2601.00001": 2}
    assert votes(site).counts([]) == {}


def test_a_form_goes_back_to_where_it_was(site) -> None:
    client = make_client(site, Accept="text/html,*/*")
    answer = client.post("/papers/2601.00001/vote", data={"back": "/papers/trending?page=2"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/papers/trending?page=2")
    answer = client.post("/papers/2601.00001/vote")
    assert answer.headers["location"] == "/papers/2601.00001"


@pytest.mark.parametrize(
    "back",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "",
     "/a\r\nSet-Cookie: x=1", "/\t/evil.example", "/" + "a" * 501, "/é"],
)  # fmt: skip
def test_a_form_goes_nowhere_else(site, back) -> None:
    assert local_path(back, "/home") == "/home"


def test_unknown_papers_and_hostile_names(site) -> None:
    client = make_client(site)
    for name in ("2601.99999", "x' OR 1=1 --", "%00", "../../etc/passwd", "a" * 3000):
        assert client.post(f"/papers/{name}/vote").status_code in (400, 404, 405)
    assert votes(site).recent() == {}


def test_a_foreign_page_cannot_vote(site) -> None:
    answer = make_client(site).post(
        "/papers/2601.00001/vote", headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 403
    assert votes(site).recent() == {}


def test_votes_of_one_address_are_limited(site) -> None:
    client = make_client(site)
    codes = [client.post("/papers/2601.00001/vote").status_code for _ in range(31)]
    assert codes == [200] * 30 + [429]
    assert make_client(site, "192.0.2.2").post("/papers/2601.00001/vote").status_code == 200


def test_throwing_the_cookie_away_is_limited(site, monkeypatch) -> None:
    monkeypatch.setattr("etude.site.votes.RATE", "1000/minute")
    codes = [make_client(site).post("/papers/2601.00001/vote").status_code for _ in range(32)]
    assert codes == [200] * 30 + [429] * 2
    assert votes(site).counts(["2601.00001"]) == {"2601.00001": 30}


def test_recent_votes_by_age_and_by_reader(database) -> None:
    kept = Votes(database)
    assert kept.toggle("a", "one")
    assert kept.toggle("a", "two")
    assert kept.toggle("b", "one")
    assert kept.recent() == {"a": 2, "b": 1}
    assert kept.mine(["a", "c"], "one") == {"a"}
    assert kept.mine(["a", "b"], "three") == set()
    import time

    assert kept.recent(30, now=time.time() + 31 * 86_400) == {}
    kept.close()


def test_two_presses_at_once_count_once(database) -> None:
    kept = Votes(database)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: kept.toggle("a", f"reader{name % 40}"), range(40)))
    assert kept.counts(["a"]) == {"a": 40}
    kept.close()


def test_the_votes_live_beside_the_papers(tmp_path) -> None:
    path = tmp_path / "papers.sqlite"
    store = Store(str(path))
    Votes(str(path)).toggle("a", "one")
    with sqlite3.connect(path) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert {"papers", "papers_meta", "votes", "votes_meta"} <= names
    store.close()
