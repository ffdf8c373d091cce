"""The store on SQLite and PostgreSQL: merging, order, writers at once, killed writers."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from etude.core import EtudeError
from etude.papers import papers
from etude.papers.entry import Entry, title_key
from etude.papers.store import Outcome, Store

WRITER = """
import sys
from etude.papers.entry import Entry
from etude.papers.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for piece in range(20):
    batch = [Entry(title=f"Paper {piece * 10 + i}", arxiv=f"2601.{piece * 10 + i:05d}",
                   sources=(sys.argv[2],)) for i in range(10)]
    done = store.add(batch if sys.argv[2] == "a" else batch[::-1])
    print(done.added, done.merged, flush=True)
"""


def of_catalogue(store) -> int:
    return sum(entry.sources[0] == "catalogue" for entry in store.everything())


def test_the_catalogue_is_there_once(store, database) -> None:
    assert store.count() == of_catalogue(store) == len(papers())
    change = store.changed()
    again = Store(database)
    assert (again.count(), again.changed()) == (len(papers()), change)
    first = next(p for p in papers() if p.arxiv)
    entry = store.get(f"arXiv:{first.arxiv}v3")
    assert (entry.title, entry.slug, entry.abstract) == (first.title, first.key, "")


def test_an_entry_comes_back_whole(store) -> None:
    entry = Entry(
        title="Ein Maß für «Ähnlichkeit» 数", abstract="With 'quotes', \"more\" and 50 % \\ {}.",
        authors=("Ada Lovelace", "李 明"), arxiv="2601.00001", date="2026-01-02",
        categories=("cs.LG", "stat.ML"), doi="10.1/x", venue="ICLR", url="https://a.b/c?d=e",
        votes=7, sources=("arxiv", "file:a.bib"),
    )  # fmt: skip
    assert store.add([entry]) == Outcome(added=1)
    assert store.get("2601.00001") == replace(entry, id="2601.00001")


def test_any_version_of_an_id_is_the_same_paper(store) -> None:
    done = store.add(
        [Entry(title="One", arxiv="2601.00001v1"), Entry(title="Uno", arxiv="arXiv:2601.00001v2")]
    )
    assert (done.added, done.merged) == (1, 1)
    assert store.get("2601.00001").title == "One"


@pytest.mark.parametrize("at_once", [True, False])
def test_two_ids_of_one_title_are_two_papers(store, at_once) -> None:
    entries = [
        Entry(title="Editorial", arxiv="2601.00001", abstract="first"),
        Entry(title="Editorial", arxiv="2601.00002", abstract="second"),
        Entry(title="editorial!", abstract="a third and longer one"),
        Entry(title="Editorial", arxiv="2601.00002", venue="here"),
    ]
    parts = [entries] if at_once else [[entry] for entry in entries]
    assert sum(map(store.add, parts), Outcome()) == Outcome(added=2, merged=2)
    assert store.get("2601.00001").abstract == "a third and longer one"  # the first of both
    second = store.get("2601.00002")
    assert (second.abstract, second.venue) == ("second", "here")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_paper_known_by_title_keeps_its_id_when_arxiv_is_known(store, at_once) -> None:
    by_title = "t" + title_key("Found again")[:15]
    entries = [
        Entry(title="Found again", sources=("file:a.txt",)),
        Entry(title="Found Again.", arxiv="2601.00007", sources=("arxiv",)),
        Entry(title="Another title of version 2", arxiv="2601.00007", date="2026-01-01"),
        Entry(title="Found again", arxiv="2601.00008"),
    ]
    parts = [entries] if at_once else [[entry] for entry in entries]
    assert sum(map(store.add, parts), Outcome()) == Outcome(added=2, merged=2)
    paper = store.get("2601.00007v4")
    assert paper == store.get(by_title)
    assert (paper.id, paper.arxiv, paper.date) == (by_title, "2601.00007", "2026-01-01")
    assert paper.sources == ("file:a.txt", "arxiv")
    assert store.get("2601.00008").id == "2601.00008"


def test_what_breaks_a_rule_is_refused_with_its_place(store) -> None:
    done = store.add([Entry(title="Good"), Entry(title="!"), Entry(title="Bad", date="soon")])
    assert (done.added, done.n_refused) == (1, 2)
    assert [place for place, _ in done.refused] == ["entry 2", "entry 3"]
    assert "date must be YYYY-MM-DD" in done.refused[1][1]


def test_all_or_none(store) -> None:
    def broken():
        yield from (Entry(title=f"Paper {i}") for i in range(1_200))
        raise EtudeError("the source broke")

    before = store.changed()
    with pytest.raises(EtudeError, match="the source broke"):
        store.add(broken())
    assert (store.count(), store.changed()) == (len(papers()), before)


def test_changes_are_numbered_in_order(store) -> None:
    start = store.changed()
    store.add([Entry(title=f"Paper {i}") for i in range(3)])
    assert [e.title for _, e in store.since(start)] == ["Paper 0", "Paper 1", "Paper 2"]
    middle = store.changed()
    store.add([Entry(title="Paper 1", votes=4), Entry(title="Paper 2")])  # the second says nothing
    assert [(e.title, e.votes) for _, e in store.since(middle)] == [("Paper 1", 4)]
    numbers = [number for number, _ in store.since(0)]
    assert numbers == sorted(set(numbers))
    assert store.since(store.changed()) == []
    assert len(store.since(0, limit=2)) == 2


def test_papers_of_days_weeks_and_months(store) -> None:
    store.add(
        [
            Entry(title="A", date="2026-11-21", votes=1), Entry(title="B", date="2026-11-22"),
            Entry(title="C", date="2026-11-22", votes=9), Entry(title="D", date="2026-11"),
            Entry(title="E", date="2026"), Entry(title="F", date="2026-12-01"), Entry(title="G"),
        ]
    )  # fmt: skip

    def titles(*between: str) -> str:
        return "".join(e.title for e in store.of(*between))

    assert titles("2026-11-22", "2026-11-22") == "CB"
    assert titles("2026-11-16", "2026-11-22") == "CAB"
    assert titles("2026-11-01", "2026-11-30") == "CABD"
    assert store.days(2) == [("2026-12-01", 1), ("2026-11-22", 2)]
    assert store.days(1, before="2026-11-22") == [("2026-11-21", 1)]
    assert [e.title for e in store.newest(3)] == ["F", "C", "B"]
    assert [e.title for e in store.newest(1, start=2)] == ["B"]
    assert [e.title for e in store.many(["nix", store.newest(1)[0].id])] == ["F"]


@pytest.mark.parametrize("name", ["", "nix", "\x00", "a' OR '1'='1", "\ud800", "%", "x" * 100_000])
def test_hostile_names_are_unknown(store, name) -> None:
    assert store.get(name) is None
    assert store.many([name]) == []


def test_hostile_text_is_stored_and_read(store) -> None:
    title = "ﷺ" * 500  # normalization makes 18 letters of one
    title2 = "'; DROP TABLE papers; --"
    assert store.add([Entry(title=title), Entry(title=title2, abstract="\x00\ud800x")]).added == 2
    assert [e.title for e in store.everything()][-2:] == [title, title2]


def start(database: str, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, database, name]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_two_importers_at_once_make_no_duplicate_and_lose_none(database) -> None:
    writers = [start(database, "a"), start(database, "b")]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sum(int(n) for words in said for n in words[::2]) == 200  # each paper is added once
    store = Store(database)
    found = [e for e in store.everything() if e.arxiv.startswith("2601.")]
    assert sorted(e.arxiv for e in found) == [f"2601.{i:05d}" for i in range(200)]
    assert all(sorted(e.sources) == ["a", "b"] for e in found)
    assert store.count() == len(papers()) + 200
    store.close()


def test_a_killed_importer_leaves_all_that_it_was_told_is_stored(database) -> None:
    writer = start(database, "a")
    writer.stdout.readline()
    writer.stdin.write("\n")
    writer.stdin.flush()
    told = [writer.stdout.readline() for _ in range(5)]
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert told == ["10 0\n"] * 5
    store = Store(database)
    found = store.count() - len(papers())
    assert found >= 50
    assert found % 10 == 0
    store.close()


def test_turns_are_apart(store) -> None:
    assert store.turn("arxiv", 1_000, 3) == 1_000
    assert store.turn("arxiv", 1_001, 3) == 1_003
    assert store.turn("arxiv", 1_001, 3) == 1_006
    assert store.turn("arxiv", 2_000, 3) == 2_000


def test_outcomes_add_up_and_stay_small() -> None:
    many = Outcome(refused=tuple((f"line {i}", "why") for i in range(700)))
    total = many + many + Outcome(1, 2, failed=(("x", "down"),))
    assert (len(total.refused), total.unlisted, total.n_refused) == (1_000, 400, 1_400)
    assert str(total) == "1 added, 2 merged, 1,400 refused"
    assert total.failed == (("x", "down"),)


def test_a_store_opens_quickly_with_many_papers(tmp_path) -> None:
    store = Store(str(tmp_path / "p.sqlite"))
    store.add(Entry(title=f"Paper {i}", arxiv=f"2601.{i:05d}") for i in range(5_000))
    began = time.thread_time()  # work, not waiting: the machine may be busy
    Store(str(tmp_path / "p.sqlite")).close()
    assert time.thread_time() - began < 1


def test_two_databases_are_told_apart_and_one_stays_itself(tmp_path):
    path = tmp_path / "p.sqlite"
    first = Store(str(path)).identity
    assert Store(str(path)).identity == first
    for name in ("p.sqlite", "p.sqlite-wal", "p.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    assert Store(str(path)).identity != first
