"""The import as a whole: what a source is, what is recorded, how it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys

import httpx2
import pytest

from etude.core import EtudeError
from etude.papers import papers
from etude.papers.importers import arxiv, import_from
from etude.papers.store import Outcome, Store

ATOM = """<?xml version="1.0" encoding="UTF-8"?><feed xmlns="http://www.w3.org/2005/Atom"
xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"><title>x</title>
<opensearch:totalResults>{total}</opensearch:totalResults>{entries}</feed>"""
IMPORTER = """
import sys
from etude.papers.importers import import_from
from etude.papers.store import Store
def tell(source, position, total, outcome):
    print(position, outcome.added, flush=True)
done = import_from(Store(sys.argv[1]), [sys.argv[2]], tell=tell)
print("done", done.added, done.merged)
try:  # what a process inherits from its parent counts in ru_maxrss, and not here
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
except OSError:
    print("unknown")
"""


def atom(names, total) -> bytes:
    items = "".join(
        f"<entry><id>http://arxiv.org/abs/{name}v1</id><title>Paper {name}</title></entry>"
        for name in names
    )
    return ATOM.format(total=total, entries=items).encode()


def client(answer) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.MockTransport(answer))


def day(request) -> httpx2.Response:
    """One paper on each day, week or month."""
    period = next(v for k, v in request.url.params.items() if k in ("date", "week", "month"))
    rows = [{"paper": {"id": "2611.00001", "title": f"Of {period}", "upvotes": 3}}]
    return httpx2.Response(200, json=rows)


@pytest.mark.parametrize("period", ["2026-11-22", "2026-W47", "2026-11"])
def test_periods_are_asked_of_the_feed(store, period) -> None:
    done = import_from(store, [period], client=client(day))
    assert done == Outcome(added=1)
    assert store.get("2611.00001").title == f"Of {period}"
    ((source, at, ok, message),) = store.refreshed()
    assert (source, ok, message) == (f"hf:{period}", True, "1 added, 0 merged, 0 refused")
    assert at.endswith("+00:00")
    assert import_from(store, [period], client=client(day)) == Outcome(merged=1)
    assert len(store.refreshed()) == 1


def test_queries_and_ids_go_to_arxiv_three_seconds_apart(store) -> None:
    asked, slept = [], []

    def answer(request):
        asked.append(dict(request.url.params))
        names = request.url.params.get("id_list", "2611.00001").split(",")
        return httpx2.Response(200, content=atom(names, len(names)))

    sources = [
        "arxiv:cat:cs.LG AND ti:x", "2611.00002v3", "arXiv:2611.00003", "hep-th/9901001",
        "arxiv:2611.00004,2611.00005", "arxiv:all:2611",
    ]  # fmt: skip
    done = import_from(store, sources, client=client(answer), sleep=slept.append)
    assert done == Outcome(added=6, merged=1)
    assert [a.get("search_query") for a in asked] == ["cat:cs.LG AND ti:x", "all:2611", None]
    assert asked[2]["id_list"] == "2611.00002,2611.00003,hep-th/9901001,2611.00004,2611.00005"
    assert len(slept) == 2
    assert 2 < slept[0] <= 3 < slept[1] <= 6  # nothing slept really: turns are kept, not guessed


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("2026-13", "of the calendar"), ("2026-02-30", "of the calendar"),
        ("2026-W54", "of the calendar"), ("0000-01-01", "of the calendar"),
        ("arxiv:", "no source of papers"), ("a.pdf", "no source of papers; a source is a day"),
        ("", "no source of papers"), ("\x1b[31m", r"'\\x1b\[31m' is no source"),
        ("nix.bib", "nix.bib cannot be read"), ("arxiv:" + "x" * 2_000, "at most 1,000"),
        ("arxiv:a\nb", "printable"), ("\x1b[2J.bib", r"^\[2J\.bib cannot be read"),
        ("https://a.b/c", "no source of papers"), ("a\0.bib", "cannot be read"),
    ],
)  # fmt: skip
def test_bad_sources_are_refused_before_anything_is_read(tmp_path, source, why) -> None:
    store = Store(str(tmp_path / "p.sqlite"))
    with pytest.raises(EtudeError, match=why):
        import_from(store, ["2026-11-22", source], client=client(day))
    assert (store.count(), store.refreshed()) == (len(papers()), [])


def test_upstream_down_leaves_all_as_it_was_and_says_why(store) -> None:
    def down(request):
        if request.url.params.get("date") == "2026-11-21":
            return day(request)
        return httpx2.Response(500, content=b"oh no")

    import_from(store, ["2026-11-21"], client=client(down))
    before = (store.count(), store.changed())
    sources = ["2026-11-22", "2026-11-21"]
    done = import_from(store, sources, client=client(down), sleep=lambda _: None)
    why = "huggingface.co answers 500 (tried 4 times)"
    assert done == Outcome(merged=1, failed=(("hf:2026-11-22", why),))
    assert (store.count(), store.changed()) == before
    shown = [(source, ok, message) for source, _, ok, message in store.refreshed()]
    assert shown == [
        ("hf:2026-11-21", True, "0 added, 1 merged, 0 refused"), ("hf:2026-11-22", False, why),
    ]  # fmt: skip


def test_the_last_success_is_shown_beside_a_failure(store) -> None:
    fail = client(lambda request: httpx2.Response(200, content=b"half of"))
    for asks in (client(day), fail, fail):
        import_from(store, ["2026-11-22"], client=asks)
    assert [ok for _, _, ok, _ in store.refreshed()] == [False, True]
    assert "no JSON, or half of it" in store.refreshed()[0].message
    import_from(store, ["2026-11-22"], client=client(day))
    assert [ok for _, _, ok, _ in store.refreshed()] == [True]


def test_a_query_that_broke_goes_on_at_its_last_page(store, monkeypatch) -> None:
    monkeypatch.setattr(arxiv, "PAGE", 2)
    names, asked, broken = [f"2611.{i:05d}" for i in range(6)], [], [True]

    def answer(request):
        start = int(request.url.params["start"])
        asked.append(start)
        if start == 4 and broken:
            return httpx2.Response(400, content=b"too far")
        return httpx2.Response(200, content=atom(names[start : start + 2], 6))

    def run() -> Outcome:
        return import_from(store, ["arxiv:x"], client=client(answer), sleep=lambda _: None)

    done = run()
    assert (done.added, done.failed) == (4, (("arxiv:x", "export.arxiv.org answers 400: too far"),))
    broken.clear()
    assert run() == Outcome(added=2)
    assert asked == [0, 2, 4, 4]
    assert run() == Outcome(merged=6)  # after a good end it begins anew


def test_files_are_imported_and_refusals_name_file_and_line(store, tmp_path) -> None:
    path = tmp_path / "refs.bib"
    path.write_text("@misc{a, title={One}}\n@misc{b, author={B}}\n@misc{c, title={Two\n")
    told = []
    done = import_from(store, [str(path)], tell=lambda *words: told.append(words))
    assert (done.added, done.merged) == (1, 0)
    assert done.refused == (
        ("file:refs.bib, line 2", "title must be words, got ''"),
        ("file:refs.bib, line 3", "a brace or quote is not closed"),
    )
    assert told[-1] == ("file:refs.bib", 0, 0, done)
    empty = tmp_path / "empty.ris"
    empty.write_text("")
    assert "holds no record" in import_from(store, [str(empty)]).failed[0][1]


def snapshot(path, n: int, n_words: int = 300) -> None:
    with path.open("w") as file:
        for i in range(n):
            facts = {"id": f"2611.{i:05d}", "title": f"Paper {i}", "abstract": "word " * n_words}
            file.write(json.dumps(facts) + "\n")


def test_a_killed_import_of_a_snapshot_goes_on_where_it_was(database, tmp_path) -> None:
    path = tmp_path / "arxiv.json"
    snapshot(path, 6_000)
    command = [sys.executable, "-c", IMPORTER, database, str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    told = [int(child.stdout.readline().split()[0]) for _ in range(4)]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert told[-1] > 0
    store = Store(database)
    kept = store.count() - len(papers())
    assert 0 < kept < 6_000
    assert store.refreshed() == []
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert int(again.stdout.split()[0]) > told[-1]  # it did not begin at the first byte
    assert again.stdout.splitlines()[-2] == f"done {6_000 - kept} 0"
    assert store.count() - len(papers()) == 6_000
    path.write_text(path.read_text() + '{"id": "2612.00001", "title": "New"}\n')
    assert import_from(store, [str(path)]) == Outcome(added=1, merged=6_000)
    store.close()


def test_memory_does_not_grow_with_a_snapshot(tmp_path) -> None:
    path = tmp_path / "arxiv.json"
    snapshot(path, 2_500, 3_000)
    command = [sys.executable, "-c", IMPORTER, str(tmp_path / "p.sqlite"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    *_, said, peak = done.stdout.splitlines()
    assert said == "done 2500 0"
    if peak == "unknown":
        pytest.skip("no /proc here tells the memory of a process")
    assert int(peak) < 100 * 1024  # kB
